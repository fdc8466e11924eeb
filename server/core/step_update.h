// Applying a step: the optimizer over all chunks in the order of the next
// forward, publishing each unit's version as soon as its last chunk is done.
// Lamb scans the state once before, for the trust ratios (optim/trust_ratio.h):
// until all are known nothing has changed.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "optim/kernels.h"
#include "optim/trust_ratio.h"
#include "server/core/compute_team.h"
#include "server/core/onebit_update.h"
#include "server/core/param_residency.h"
#include "server/core/param_segment.h"
#include "server/core/run_gradients.h"
#include "server/core/step_ledger.h"
#include "server/core/step_rounds.h"
#include "storage/state_store.h"

namespace stowage::core {

// Units in the order in which a forward first uses them, and their chunks.
// Thread safety: immutable.
class UpdateOrder {
 public:
  // `first` units come first; the rest follows in layout order.
  // Errors: kInvalidArgument for an index out of range or given twice.
  static absl::StatusOr<std::shared_ptr<const UpdateOrder>> Create(
      const Layout& layout, std::span<const std::int32_t> first);

  const std::vector<std::int32_t>& units() const { return units_; }
  const std::vector<std::int32_t>& chunks() const { return chunks_; }

 private:
  std::vector<std::int32_t> units_;
  std::vector<std::int32_t> chunks_;
};

struct StepUpdateContext {
  const Layout& layout;
  const OptimizerSpec& optimizer;
  const optim::KernelSet& kernels;
  storage::StateStore& store;
  ParamSegment& params;
  const RunGradients& run;
  const StepGradients& gradients;  // of the step that is applied
  const UpdateOrder& order;
  std::int32_t micro_steps = 1;
  // Parameters on NVMe: units are updated one after another, each given its
  // pages first and to those who wait for it afterwards. Null: in memory.
  ParamResidency* residency = nullptr;
  std::function<void(const std::vector<LeaseGrant>&)> deliver;
  // The run's; Run() is called when those of its step are over.
  const StepRounds& rounds;
};

// Reused from step to step, so that a step allocates nothing per unit.
// Thread safety: externally synchronized.
class StepUpdate {
 public:
  // `one_bit`: of a job with a 1-bit optimizer, else null.
  explicit StepUpdate(const Layout& layout,
                      std::unique_ptr<OneBitUpdate> one_bit = nullptr);

  // Runs `args` as the step after `from` and commits it in the store. Returns
  // the record that is now committed.
  // Requires: args passed CheckApplyArgs().
  // Errors: kDataLoss if a segment is broken. If that is found before anything
  //   was changed, `*touched` is false and the state is still that of `from`;
  //   otherwise it is what StateStore::Abandon() says.
  // Blocks: for the work.
  absl::StatusOr<storage::CommitRecord> Run(const StepUpdateContext& context,
                                            const storage::CommitRecord& from,
                                            const ApplyArgs& args,
                                            ComputeTeam& team, bool* touched);

  // Makes what local rank `rank` has to give in a round of the step after
  // `from`; the results of earlier rounds are in RoundIn(). Changes nothing
  // that is committed. Requires: as Run(); rounds.Has(round).
  // Errors: kDataLoss if a segment is broken; the store's.
  // Blocks: for the work.
  absl::Status MakeRound(const StepUpdateContext& context,
                         const storage::CommitRecord& from,
                         const ApplyArgs& args, std::int32_t round,
                         std::int32_t rank, ComputeTeam& team);
  // What was made, and where the others' goes, by round and local rank.
  std::span<const std::byte> RoundOut(std::int32_t round, std::int32_t rank);
  std::span<std::byte> RoundIn(std::int32_t round, std::int32_t rank);
  // What is in RoundIn() now. Errors: kInvalidArgument for numbers that no node
  //   can have made.
  absl::Status CheckRoundIn(std::int32_t round, std::int32_t rank);

  // Of the last step that was applied; of none if the optimizer has none.
  TrustRatios trust_ratios() const;
  Compression compression() const {
    return one_bit_ == nullptr ? Compression{} : one_bit_->compression();
  }
  // Null unless the job's optimizer is a 1-bit one.
  OneBitUpdate* one_bit() { return one_bit_.get(); }

 private:
  using ChunkWork = std::function<void(std::int64_t position)>;
  void MakeConstants(const StepUpdateContext& context, const ApplyArgs& args,
                     std::int64_t t);
  absl::Status MeasureNorms(const StepUpdateContext& context,
                            ComputeTeam& team);
  absl::Status MeasureWindow(const StepUpdateContext& context,
                             const storage::UpdateWindow& window,
                             ComputeTeam& team);
  absl::Status ForChunks(const StepUpdateContext& context,
                         const storage::UpdateWindow& part, ComputeTeam& team,
                         const ChunkWork& work);
  static absl::Status BringSumIn(const StepUpdateContext& context,
                                 std::int32_t unit, std::int32_t next);
  absl::Status Update(const StepUpdateContext& context, const ApplyArgs& args,
                      std::int64_t t, ComputeTeam& team);
  absl::Status UpdateOneBit(const StepUpdateContext& context,
                            const ApplyArgs& args, std::int64_t t,
                            ComputeTeam& team);
  absl::Status UpdatePart(const StepUpdateContext& context,
                          const storage::UpdateWindow& part, std::int64_t step,
                          ComputeTeam& team);
  absl::Status UpdateUnits(const StepUpdateContext& context,
                           const storage::UpdateWindow& window,
                           std::int64_t step, ComputeTeam& team);
  static absl::Status BringIn(const StepUpdateContext& context,
                              std::int32_t unit, std::int32_t next);
  static void Unchanged(const StepUpdateContext& context, std::int32_t unit,
                        std::int64_t step);
  void UpdateChunk(const StepUpdateContext& context, std::int64_t position,
                   std::int64_t step);
  static void Publish(const StepUpdateContext& context, std::int32_t unit,
                      std::int64_t step);

  const bool copy_stays_cached_;                              // of all units
  std::vector<optim::AdamConstants> constants_;               // by group
  std::unique_ptr<std::atomic<std::int32_t>[]> chunks_left_;  // by unit
  const std::unique_ptr<OneBitUpdate> one_bit_;
  std::unique_ptr<optim::TrustRatioUpdate>
      lamb_;                                 // made by the first Lamb step
  std::vector<optim::LambNorms> norms_;      // this node's, of a round
  std::vector<optim::LambNorms> all_norms_;  // over all nodes

  Mutex mutex_;
  absl::Status unverified_ GUARDED_BY(mutex_);  // the first, of a window
};

// kDataLoss naming rank or segment if a page of a segment was lost.
absl::Status CheckSegments(const ParamSegment& params, const RunGradients& run);

}  // namespace stowage::core
