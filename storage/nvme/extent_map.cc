#include "storage/nvme/extent_map.h"

#include <algorithm>

#include "common/bytes.h"

namespace stowage::storage {
namespace {

constexpr std::int64_t kStateBytesPerElem = 3 * sizeof(float);

}  // namespace

ExtentMap::ExtentMap(const Shape& shape)
    : shape_(shape), region_bytes_(static_cast<std::size_t>(shape.files)) {}

// The extent of the pieces from `begin_piece` to the last one added.
void ExtentMap::AddExtent(std::int32_t unit, std::int64_t begin_piece) {
  Extent extent;
  extent.unit_index = unit;
  extent.file = static_cast<std::int32_t>(extents_.size()) % shape_.files;
  extent.begin = begin_piece;
  extent.end = static_cast<std::int64_t>(pieces_.size());
  const Piece& last = pieces_.back();
  extent.used_bytes = last.offset_bytes + last.bytes;
  extent.bytes = RoundUp(extent.used_bytes, shape_.align_bytes);
  std::int64_t& region = region_bytes_[static_cast<std::size_t>(extent.file)];
  extent.base_bytes = region;
  region += extent.bytes;
  extent_bytes_max_ = std::max(extent_bytes_max_, extent.bytes);
  total_bytes_ += extent.bytes;
  extents_.push_back(extent);
}

ExtentMap ExtentMap::OfState(const Layout& layout, const Shape& shape) {
  ExtentMap map(shape);
  for (std::int32_t unit = 0; unit < layout.unit_count(); ++unit) {
    map.unit_begin_.push_back(static_cast<std::int32_t>(map.extents_.size()));
    std::int64_t at_bytes = 0;
    std::int64_t at_elems = 0;
    auto begin = static_cast<std::int64_t>(map.pieces_.size());
    const auto add = [&](std::int64_t elems) {
      map.pieces_.push_back(
          {.extent = static_cast<std::int32_t>(map.extents_.size()),
           .begin_elems = at_elems,
           .elems = elems,
           .offset_bytes = at_bytes,
           .bytes = elems * kStateBytesPerElem});
      at_elems += elems;
      at_bytes += elems * kStateBytesPerElem;
    };
    for (std::int64_t c = layout.chunk_begin(unit);
         c < layout.chunk_begin(unit + 1); ++c) {
      const std::int64_t elems =
          layout.chunks()[static_cast<std::size_t>(c)].elems;
      if (at_bytes > 0 &&
          at_bytes + elems * kStateBytesPerElem > shape.extent_bytes) {
        map.AddExtent(unit, begin);
        begin = static_cast<std::int64_t>(map.pieces_.size());
        at_bytes = 0;
      }
      map.chunk_piece_.push_back(static_cast<std::int64_t>(map.pieces_.size()));
      add(elems);
    }
    const std::int64_t rest =
        layout.units()[static_cast<std::size_t>(unit)].trainable_elems -
        at_elems;
    if (rest > 0) add(rest);
    if (at_bytes > 0) map.AddExtent(unit, begin);
  }
  map.unit_begin_.push_back(static_cast<std::int32_t>(map.extents_.size()));
  return map;
}

void ExtentMap::AddPayload(std::int32_t unit, std::int64_t bytes) {
  unit_begin_.push_back(static_cast<std::int32_t>(extents_.size()));
  for (std::int64_t at = 0; at < bytes; at += shape_.extent_bytes) {
    pieces_.push_back({.extent = static_cast<std::int32_t>(extents_.size()),
                       .offset_bytes = 0,
                       .bytes = std::min(shape_.extent_bytes, bytes - at)});
    AddExtent(unit, static_cast<std::int64_t>(pieces_.size()) - 1);
  }
}

ExtentMap ExtentMap::OfParams(const Layout& layout, const Shape& shape) {
  ExtentMap map(shape);
  for (std::int32_t unit = 0; unit < layout.unit_count(); ++unit) {
    map.AddPayload(unit, layout.units()[static_cast<std::size_t>(unit)].elems *
                             DtypeBytes(layout.param_dtype()));
  }
  map.unit_begin_.push_back(static_cast<std::int32_t>(map.extents_.size()));
  return map;
}

ExtentMap ExtentMap::OfSums(const Layout& layout, const Shape& shape) {
  ExtentMap map(shape);
  for (std::int32_t unit = 0; unit < layout.unit_count(); ++unit) {
    map.AddPayload(
        unit, layout.units()[static_cast<std::size_t>(unit)].trainable_elems *
                  static_cast<std::int64_t>(sizeof(float)));
  }
  map.unit_begin_.push_back(static_cast<std::int32_t>(map.extents_.size()));
  return map;
}

}  // namespace stowage::storage
