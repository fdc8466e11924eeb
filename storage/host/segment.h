// A file in the segment folder, mapped by the server and by ranks of its host.
//
// Space is allocated when it is made, so a full tmpfs is a refusal and not a
// SIGBUS; a peer that truncates it is caught by the SigbusGuard.
//
// Source: fallocate(2), mmap(2), madvise(2) on MADV_COLLAPSE.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"
#include "storage/host/memory_budget.h"
#include "storage/host/segment_folder.h"
#include "storage/host/sigbus_guard.h"

namespace stowage::storage {

// Ownership: mapping and file; both go with the object (ranks that still map
//   the file keep their pages, no new rank finds it).
// Thread safety: immutable but for the bytes inside.
class Segment {
 public:
  struct Options {
    std::string_view kind;    // suffix of the file name: "param", "grad"
    std::int64_t bytes = 0;   // a multiple of the page
    bool lock_memory = true;  // mlock where the limit allows
    bool huge_pages = true;   // MADV_COLLAPSE where the kernel does
    // So many bytes at its front are a hole: Populate() gives ranges of it
    // their pages, Punch() takes pages anywhere. A multiple of the huge page;
    // what is populated there is neither locked nor in huge pages.
    std::int64_t hole_bytes = 0;
  };

  // `reservation` must hold exactly options.bytes, or with a hole what the
  // owner will have populated at once. The bytes are zero.
  // Errors: kResourceExhausted if the file system has not the space (with what
  //   it has and what to raise); errno's otherwise, naming the file.
  static absl::StatusOr<std::unique_ptr<Segment>> Create(
      const SegmentFolder& folder, const Options& options, MemoryBudget* budget,
      MemoryReservation reservation);

  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();

  // With a hole: makes sure of the pages of a range; what was there stays, the
  // rest is zero. Offset and length are multiples of the page.
  // Errors: as Create().
  absl::Status Populate(std::int64_t offset_bytes, std::int64_t bytes);
  // With a hole: gives the pages of a range back; it reads as zero afterwards.
  void Punch(std::int64_t offset_bytes, std::int64_t bytes);

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  const std::string& file_name() const { return file_name_; }  // in the folder

  // True once a page of the file was found missing: its content is lost.
  bool broken() const { return guard_.broken(); }

 private:
  Segment() = default;

  const SegmentFolder* folder_ = nullptr;
  MemoryBudget* budget_ = nullptr;
  MemoryReservation reservation_;
  SigbusGuard guard_;
  std::string file_name_;
  bool linked_ = false;
  UniqueFd fd_;  // with a hole only
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  std::int64_t locked_bytes_ = 0;
};

}  // namespace stowage::storage
