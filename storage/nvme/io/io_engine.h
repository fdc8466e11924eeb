// Moves bytes between memory and files, many requests at once: the seam between
// the transfer queue and io_uring, the pread/pwrite pool, or a test's simulated
// disk.
//
// An engine decides nothing: it reports what came of each request exactly once,
// in any order, as the kernel would. Splitting, short transfers and errors are
// transfer_queue.h's.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace stowage::storage {

struct IoRequest {
  bool write = false;
  std::int32_t file = 0;  // index into the engine's files
  std::int64_t offset_bytes = 0;
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
  std::int32_t buffer =
      -1;                 // index of the buffer that `data` lies in; -1: none
  std::uint64_t tag = 0;  // the caller's; returned with the completion
};

struct IoCompletion {
  std::uint64_t tag = 0;
  std::int64_t result = 0;  // bytes moved, or -errno
};

struct IoEngineOptions {
  std::int32_t queue_depth = 16;  // requests in flight, at most
  std::int32_t threads = 1;       // of the pool
  bool single_submit = false;     // a system call per request
};

// Ownership: files and buffers outlive the engine. A request's memory belongs
//   to the engine from Submit() to its completion.
// Thread safety: one thread in Submit() and one in Poll() at a time; the two
//   may be different threads at the same time.
// Shutdown: the destructor waits for what is in flight.
class IoEngine {
 public:
  IoEngine() = default;
  IoEngine(const IoEngine&) = delete;
  IoEngine& operator=(const IoEngine&) = delete;
  virtual ~IoEngine() = default;

  // Requests in flight at most.
  virtual std::int32_t capacity() const = 0;

  // Takes requests from the front. Returns how many, 0 if the queue is full,
  // or -errno if the engine itself fails (then none was taken).
  virtual std::int32_t Submit(std::span<const IoRequest> requests) = 0;

  // Appends what has completed, after waiting for at least `min` completions.
  // Requires: min <= requests in flight.
  // Returns: how many were appended, or -errno if the engine itself fails.
  // Blocks: until then; never if min is 0.
  virtual std::int32_t Poll(std::int32_t min,
                            std::vector<IoCompletion>* completions) = 0;

  // System calls that handed requests over; 0 where there are none.
  virtual std::int64_t submit_calls() const { return 0; }

  // "io_uring, registered files and buffers".
  virtual std::string Describe() const = 0;
};

}  // namespace stowage::storage
