// A mapped segment file, and waiting on the words in it.
//
// The server makes the files (common/segment_format.h has their bytes); a rank
// maps the job's parameters read-only and its own gradients read-write. Waiting
// spins for a moment, then sleeps in a futex on the word itself, in slices
// after which the caller's check decides whether to go on.
//
// Source: mmap(2); futex(2), FUTEX_WAIT on a shared mapping.

#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/segment_format.h"

namespace stowage::client {

// What the header of a segment must say.
struct SegmentIdentity {
  std::uint64_t magic = 0;
  std::uint64_t job_id = 0;
  std::uint64_t layout_fingerprint = 0;
};

// Ownership: the mapping. Thread safety: as the memory in it.
class MappedSegment {
 public:
  MappedSegment() = default;
  MappedSegment(MappedSegment&& other) noexcept;
  MappedSegment& operator=(MappedSegment&& other) noexcept;
  MappedSegment(const MappedSegment&) = delete;
  MappedSegment& operator=(const MappedSegment&) = delete;
  ~MappedSegment();

  struct Options {
    std::int64_t bytes = 0;
    bool or_longer = false;
    bool writable = false;
  };

  // Maps all of the file. Errors: kFailedPrecondition if it is missing, has
  //   another size or another header; the message has the path and what to set
  //   when the server runs in a container.
  static absl::StatusOr<MappedSegment> Map(const std::string& path,
                                           const Options& options,
                                           const SegmentIdentity& identity);

  std::byte* data() const { return data_; }
  std::int64_t size_bytes() const { return size_bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t size_bytes_ = 0;
};

// Blocks until `word` has reached `target` (WordReached), `check` returns an
// error, or `timeout` has passed. `waiters` is the hint that a thread of this
// rank sleeps; `check` runs every 50 ms.
// Errors: what `check` returned; kDeadlineExceeded (the caller words it).
absl::Status WaitForWord(const std::atomic<std::uint32_t>& word,
                         std::uint32_t target,
                         std::atomic<std::uint32_t>& waiters,
                         std::chrono::milliseconds timeout,
                         const std::function<absl::Status()>& check);

}  // namespace stowage::client
