// Unit payloads on NVMe: the ranks' 16-bit copy of the parameters, and fp32
// gradient sums that found no place in memory.
//
// A payload is what a unit's elements take in the ranks' element type
// (parameters) or in fp32 (sums, trainable prefix only). It moves straight
// between the caller's memory and the device: the parameter segment is read
// into and written from in place, so nothing is pinned here.
//
// Parameters are versioned with the state: Write() goes to free space, and
// NvmeStore::Commit() makes what was written part of the step. Reads return the
// newest payload written, committed or not. Sums are of no step: they are
// overwritten in place and gone after a restart.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"

namespace stowage::storage {

// Thread safety: thread-safe. At most one read and one write of a unit may be
//   in flight, and not both at once.
// Errors: IoFaultStatus(); kFailedPrecondition for a unit never written (a new
//   job's, or a sum).
class UnitStore {
 public:
  // Addresses and lengths of payloads must be multiples of this. A layout's
  // units are, in a segment that begins on a page.
  static constexpr std::int64_t kAlignBytes = 4096;

  UnitStore() = default;
  UnitStore(const UnitStore&) = delete;
  UnitStore& operator=(const UnitStore&) = delete;
  virtual ~UnitStore() = default;

  // Bytes of the unit's payload; 0 for a unit that has none.
  virtual std::int64_t payload_bytes(std::int32_t unit_index) const = 0;

  // Starts moving a whole payload; `into` and `from` must stay valid, and
  // `from` unchanged, until the Await() of the unit has returned. A unit with
  // no payload is done at once.
  // Blocks: while the queue is full.
  virtual absl::Status StartRead(std::int32_t unit_index,
                                 std::span<std::byte> into) = 0;
  virtual absl::Status StartWrite(std::int32_t unit_index,
                                  std::span<const std::byte> from) = 0;

  // Ends what was started for the unit; a read is verified here, by the calling
  // thread. OK if nothing was started.
  // Blocks: for I/O.
  virtual absl::Status Await(std::int32_t unit_index) = 0;

  // True if nothing of the unit is in flight any more, so that Await() would
  // not block. Reaps completions. Never blocks.
  virtual bool Done(std::int32_t unit_index) = 0;

  // Bytes moved since the store was opened.
  virtual std::int64_t bytes_read() const = 0;
  virtual std::int64_t bytes_written() const = 0;
};

}  // namespace stowage::storage
