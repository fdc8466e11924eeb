// Which bytes of a job lie in which extent, and where each extent's places are.
//
// A unit's chunks are laid end to end (each chunk: master, moment1, moment2)
// and cut into extents of at most extent_bytes, at chunk borders; an extent
// never spans two units. The elements between a unit's last run and the end of
// its padded prefix belong to no chunk; they follow in its last extent.
// Payloads (parameters, gradient sums) are cut every extent_bytes. Extent i
// lies in the folder i mod folders.
//
// Every extent has a fixed number of *places* of its size: one for each kept
// version and one to write the next into. A file is laid out place by place,
// and inside a place extent by extent, so that a pass in order reads and writes
// in order too. Pure: no I/O.

#pragma once

#include <cstdint>
#include <vector>

#include "common/layout.h"

namespace stowage::storage {

struct Extent {
  std::int32_t unit_index = 0;
  std::int32_t file = 0;        // index of the folder
  std::int64_t used_bytes = 0;  // what carries data
  std::int64_t bytes = 0;       // of the place: used, padded to the alignment
  std::int64_t base_bytes = 0;  // offset inside a place's region of the file
  std::int64_t begin = 0;       // first piece
  std::int64_t end = 0;         // behind the last piece
};

// A *piece* is what has a checksum of its own: a chunk of the state (or the
// rest of a unit's prefix), or a whole extent of a payload.
struct Piece {
  std::int32_t extent = 0;
  std::int64_t begin_elems = 0;   // in the unit; state only
  std::int64_t elems = 0;         // state only
  std::int64_t offset_bytes = 0;  // in the extent
  std::int64_t bytes = 0;
};

// Immutable after it is made. Thread safety: immutable.
class ExtentMap {
 public:
  struct Shape {
    std::int64_t extent_bytes = 0;
    std::int64_t align_bytes = 4096;
    std::int32_t files = 1;
    std::int32_t places = 2;
  };

  ExtentMap() = default;

  // Masters and moments.
  static ExtentMap OfState(const Layout& layout, const Shape& shape);
  // The ranks' copy of every unit; piece i is extent i.
  static ExtentMap OfParams(const Layout& layout, const Shape& shape);
  // fp32 sums of every unit's trainable prefix; piece i is extent i.
  static ExtentMap OfSums(const Layout& layout, const Shape& shape);

  const std::vector<Extent>& extents() const { return extents_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  const Extent& extent(std::int32_t index) const {
    return extents_[static_cast<std::size_t>(index)];
  }
  const Piece& piece(std::int64_t index) const {
    return pieces_[static_cast<std::size_t>(index)];
  }
  // State only: the piece of a chunk of the layout.
  std::int64_t chunk_piece(std::int32_t chunk) const {
    return chunk_piece_[static_cast<std::size_t>(chunk)];
  }
  // Extents of unit u are [unit_begin(u), unit_begin(u + 1)).
  std::int32_t unit_begin(std::int32_t unit_index) const {
    return unit_begin_[static_cast<std::size_t>(unit_index)];
  }

  std::int64_t OffsetBytes(std::int32_t extent_index,
                           std::int32_t place) const {
    const Extent& at = extent(extent_index);
    return place * region_bytes_[static_cast<std::size_t>(at.file)] +
           at.base_bytes;
  }
  // Of one folder's file.
  std::int64_t file_bytes(std::int32_t file) const {
    return shape_.places * region_bytes_[static_cast<std::size_t>(file)];
  }
  const Shape& shape() const { return shape_; }
  std::int64_t extent_bytes_max() const { return extent_bytes_max_; }
  std::int64_t total_bytes() const { return total_bytes_; }  // of one version

 private:
  explicit ExtentMap(const Shape& shape);
  void AddPayload(std::int32_t unit, std::int64_t bytes);
  void AddExtent(std::int32_t unit, std::int64_t begin_piece);

  Shape shape_;
  std::vector<Extent> extents_;
  std::vector<Piece> pieces_;
  std::vector<std::int32_t> unit_begin_;
  std::vector<std::int64_t> chunk_piece_;
  std::vector<std::int64_t> region_bytes_;  // by file
  std::int64_t extent_bytes_max_ = 0;
  std::int64_t total_bytes_ = 0;
};

}  // namespace stowage::storage
