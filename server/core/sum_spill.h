// Gradient sums that find no place in memory: a few buffers, each for one
// unit's fp32 sum, in front of NVMe.
//
// Landing fills a buffer and its write starts at once; the buffer keeps the sum
// until another unit needs the room, least recently used first. Backward lands
// the last units first and an update wants the first ones first, so what is
// still in memory is what is wanted next.
//
// The values and their order are those of sums in memory: same bits.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "storage/host/pinned_arena.h"
#include "storage/nvme/unit_store.h"

namespace stowage::core {

// Thread safety: one thread at a time (the busy one's); data() also by the
//   compute team for a unit that is acquired.
// Errors: of the store; final for the run.
class SumSpill {
 public:
  // `layout` and `store` must outlive it; `reservation` holds `buffers` x
  // PinnedArena::MappedBytes() of the largest unit's sum.
  static absl::StatusOr<std::unique_ptr<SumSpill>> Create(
      const Layout& layout, std::int32_t buffers, storage::UnitStore& store,
      bool lock_memory, storage::MemoryBudget* budget,
      storage::MemoryReservation reservation);
  ~SumSpill();
  SumSpill(const SumSpill&) = delete;
  SumSpill& operator=(const SumSpill&) = delete;

  // Brings the unit's sum into a buffer, with what was saved if `load`.
  // Blocks: for I/O.
  absl::Status Acquire(std::int32_t unit, bool load);
  // Starts writing the acquired unit's sum; it is not to be changed until it is
  // acquired again.
  absl::Status Save(std::int32_t unit);
  // Starts reading a unit's saved sum if a buffer is empty.
  absl::Status ReadAhead(std::int32_t unit);
  // The sum is used up; its buffer is empty.
  absl::Status Drop(std::int32_t unit);

  // First element of the unit's sum. Requires: acquired.
  float* data(std::int32_t unit) const;
  std::int64_t bytes() const;

 private:
  enum class State : std::uint8_t { kEmpty, kIdle, kReading, kWriting };
  struct Buffer {
    storage::PinnedArena arena;
    std::int32_t unit = -1;
    State state = State::kEmpty;
    std::int64_t used = 0;
  };

  SumSpill(const Layout& layout, storage::UnitStore& store)
      : store_(store),
        buffer_of_(static_cast<std::size_t>(layout.unit_count()), -1) {}
  absl::Status Finish(Buffer& buffer);
  absl::StatusOr<Buffer*> Free();
  Buffer* Find(std::int32_t unit);

  storage::UnitStore& store_;
  std::vector<Buffer> buffers_;
  std::vector<std::int32_t> buffer_of_;  // by unit; -1: in none
  std::int64_t uses_ = 0;
};

}  // namespace stowage::core
