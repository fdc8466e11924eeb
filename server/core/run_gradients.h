// Where the gradients of one run lie: a segment per local rank and, for ring
// slots, the fp32 sums.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "optim/kernels.h"
#include "server/core/admission.h"
#include "server/core/step_ledger.h"
#include "server/core/sum_spill.h"
#include "storage/host/pinned_arena.h"
#include "storage/host/segment.h"

namespace stowage::core {

// Thread safety: immutable but for the bytes of slots and sums.
class RunGradients {
 public:
  // Room for the slot pointers of one kernel call, on the caller's stack.
  using SlotPointers = std::array<const void*, kLocalRanksMax>;
  static_assert(kKeptSlotsLimit <= kLocalRanksMax);

  struct Identity {
    std::uint64_t job_id = 0;
    std::uint64_t epoch = 0;
  };

  // `layout` must outlive the object; `reservation` holds need.run_bytes().
  // Above zero `sum_buffers`: sums lie in `spill_store`, which must outlive it.
  // Errors: as storage::Segment::Create() and storage::PinnedArena::Create().
  struct Sums {
    std::int32_t buffers = 0;
    storage::UnitStore* store = nullptr;
  };
  static absl::StatusOr<std::unique_ptr<RunGradients>> Create(
      const Layout& layout, const RunSpec& run, const SlotPlan& plan,
      const Sums& sums, const Identity& identity,
      const storage::SegmentFolder& folder, bool lock_memory,
      storage::MemoryBudget* budget, storage::MemoryReservation reservation);

  bool ring() const { return plan_.ring; }
  // Sums that lie on NVMe; null: in memory. Ring: acquire a unit's sum there
  // before its slots are added or it is read.
  SumSpill* spill() const { return spill_.get(); }
  const std::string& file_name(std::int32_t rank) const;
  // Where the rank's gradient of the unit's micro step goes; region: if the
  // segment is regions. Requires: all indices in range.
  std::span<std::byte> slot_bytes(std::int32_t rank, std::int32_t micro,
                                  std::int32_t region, std::int32_t unit) const;
  std::int32_t regions() const { return plan_.regions; }
  std::int64_t bytes() const;

  // The gradient of a chunk over the whole step, as the kernels take it. The
  // order of the slots is micro x ranks + rank; empty ones are left out.
  // Requires: all micro steps have landed (ring) or been noticed (kept).
  optim::GradientSource StepSource(const StepGradients& gradients,
                                   const Layout::Chunk& chunk,
                                   SlotPointers& pointers) const;

  // Kept slots: the same of one rank's micro-batches alone.
  optim::GradientSource RankSource(const StepGradients& gradients,
                                   const Layout::Chunk& chunk,
                                   std::int32_t rank,
                                   SlotPointers& pointers) const;

  // Ring: the ranks' slots of the micro step that is landing, in rank order.
  std::span<const void* const> MicroSlots(const StepGradients& gradients,
                                          const Layout::Chunk& chunk,
                                          SlotPointers& pointers) const;
  // Ring: the fp32 sum of a chunk.
  float* sum(const Layout::Chunk& chunk) const;

  // True while some rank says that one of its threads sleeps on a word. A hint
  // that a rank can falsify: it decides only on a wake call.
  bool AnyWaiter() const;

  // The first rank whose segment lost a page, or -1.
  std::int32_t BrokenRank() const;

 private:
  RunGradients(const Layout& layout, const SlotPlan& plan)
      : layout_(layout), plan_(plan) {}
  const void* slot(std::int32_t rank, std::int32_t slot,
                   const Layout::Chunk& chunk) const;
  const void* region(std::int32_t rank, std::int32_t region,
                     const Layout::Chunk& chunk) const;

  const Layout& layout_;
  const SlotPlan plan_;
  // By local rank; shards: one for all of them.
  std::vector<std::unique_ptr<storage::Segment>> segments_;
  storage::PinnedArena sums_;
  std::unique_ptr<SumSpill> spill_;
};

}  // namespace stowage::core
