// Which gradients of the current step have been noticed and which have landed.
//
// Pure bookkeeping of one run: it decides when a unit may land, when the step's
// gradients are complete, and what is a repeat. A rank notices the micro steps
// of a unit in order. With kept slots a unit lands once, when every rank has
// noticed all its micro steps; with ring slots it lands micro step by micro
// step, and a rank notices the next one only after that (its slot is free
// then). Units without trainable elements have no gradient and never land.

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "server/core/admission.h"

namespace stowage::core {

// Which slots of a step hold a gradient; what landing finds out and apply
// needs.
struct StepGradients {
  std::size_t slots = 0;  // per rank; 1 for a ring
  std::size_t ranks = 0;
  // 1: noticed as empty, the slot must not be read. Of a ring slot: as of the
  // micro step that is landing.
  std::vector<std::uint8_t> empty;
  // Regions: where the slot lies, by the same index.
  std::vector<std::int32_t> region;
  // Ring: by unit; 1 once the fp32 sum holds a gradient of this step.
  std::vector<std::uint8_t> sum_started;

  std::size_t EmptyIndex(std::int32_t unit, std::int32_t slot,
                         std::int32_t rank) const {
    return (static_cast<std::size_t>(unit) * slots +
            static_cast<std::size_t>(slot)) *
               ranks +
           static_cast<std::size_t>(rank);
  }
};

// Thread safety: externally synchronized.
class StepLedger {
 public:
  // `layout` must outlive the ledger.
  StepLedger(const Layout& layout, const RunSpec& run, const SlotPlan& plan);

  // Records a notice. Returns: true if a unit became ready to land.
  // Requires: all indices in range. A repeat changes nothing.
  // Errors: kFailedPrecondition for a micro step before its turn;
  //   kInvalidArgument for a region that there is not or that is taken.
  absl::StatusOr<bool> Notice(std::int32_t rank, std::int32_t micro,
                              std::int32_t unit, bool empty,
                              std::int32_t region = 0);

  struct Landing {
    std::int32_t unit = 0;
    std::int32_t micro = 0;  // ring: which one; kept: 0, all at once
    bool last = true;        // completes the unit
  };
  bool HasReady() const { return ready_size_ > 0; }
  // The oldest ready unit. Requires: HasReady().
  Landing PopReady();
  // The landing that PopReady() gave is done. Returns: the unit's landed micro
  // steps of this step.
  std::int32_t MarkLanded(const Landing& landing);

  // All units of the step have landed.
  bool complete() const { return units_to_land_ == 0; }
  // First (unit, micro) that the rank has not noticed, nothing if it has all.
  struct Missing {
    std::int32_t unit = 0;
    std::int32_t micro = 0;
  };
  std::optional<Missing> FirstMissing(std::int32_t rank) const;

  StepGradients& gradients() { return gradients_; }

  // Begins the next step; the finished step's gradients go to `*finished`,
  // whose buffers are reused.
  void NextStep(StepGradients* finished);

 private:
  void Reset();
  // Shards: true for the first notice of a slot; an error if a later one says
  // something else.
  absl::StatusOr<bool> JoinShards(std::int32_t unit, std::size_t at, bool empty,
                                  std::int32_t region) const;
  bool Trainable(std::int32_t unit) const;
  void PushReady(std::int32_t unit);

  const Layout& layout_;
  const bool ring_;
  const std::int32_t micro_steps_;
  const std::size_t ranks_;
  const bool shards_;  // all ranks write into one slot

  std::vector<std::int32_t> noticed_;  // by (unit, rank): micro steps
  std::vector<std::int32_t>
      ranks_ready_;                    // by unit: ranks with the next landing
  std::vector<std::int32_t> landed_;   // by unit: micro steps
  std::vector<std::int64_t> missing_;  // by rank: notices to come
  std::int64_t units_to_land_ = 0;
  const std::int32_t regions_;
  std::vector<bool> region_taken_;  // by (rank, region): noticed, not landed
  std::vector<std::int32_t> noticed_by_;  // shards: by slot: ranks
  StepGradients gradients_;
  // A queue of units; each is in it at most once, so it never grows.
  std::vector<std::int32_t> ready_;
  std::size_t ready_begin_ = 0;
  std::size_t ready_size_ = 0;
};

}  // namespace stowage::core
