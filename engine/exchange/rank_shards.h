// A rank's shard in its own memory: state that is not offloaded. Masters,
// moments, the fp32 sum of the step's gradients and the copy that ranks compute
// with, updated by the same kernels as in the server, chunk by chunk.
//
// With one part (stage 0) the shard is the whole model. Nothing here outlives
// the process, so a run always begins at step 0.

#pragma once

#include <string>
#include <vector>

#include "engine/exchange/shard_store.h"
#include "engine/plan/shard_plan.h"
#include "optim/kernels.h"

namespace stowage::engine {

class RankShards : public ShardStore {
 public:
  // `layout` and `plan` must outlive it; `threads` update chunks.
  RankShards(const Layout* layout, const plan::ShardPlan* plan,
             std::int32_t part, const OptimizerSpec& optimizer);

  const AttachInfo& info() const override { return info_; }
  absl::StatusOr<std::span<const std::byte>> AcquireShard(
      std::int32_t unit, std::int64_t step) override;
  bool ShardReady(std::int32_t /*unit*/, std::int64_t /*step*/) const override {
    return true;
  }
  void ReleaseShard(std::int32_t /*unit*/) override {}
  absl::Status AddGradient(std::int64_t step, std::int32_t micro,
                           std::int32_t unit, std::int64_t begin_elems,
                           std::span<const void* const> parts, Dtype dtype,
                           std::int64_t elems) override;
  absl::Status GradientDone(std::int64_t step, std::int32_t micro,
                            std::int32_t unit, bool empty) override;
  absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                  std::span<const double> scalars) override;
  absl::Status Apply(const ApplyArgs& args) override;
  absl::Status SetForwardOrder(
      std::span<const std::int32_t> /*units*/,
      std::span<const std::int32_t> /*uses*/) override {
    return absl::OkStatus();
  }
  absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                        std::span<const float> values) override;
  absl::Status FinishInitialization() override { return absl::OkStatus(); }
  absl::Status ReadState(std::int32_t unit, StateKind kind,
                         std::int64_t begin_elems,
                         std::span<float> out) override;
  absl::Status Close(bool /*close_job*/) override { return absl::OkStatus(); }
  StoreWaits waits() const override { return {}; }
  std::int64_t held_bytes() const override;

 protected:
  struct Chunk {
    std::int32_t group = 0;
    std::int64_t begin = 0;  // in the shard
    std::int64_t elems = 0;
  };
  struct Unit {
    plan::ElemRange shard;     // in the unit's flat buffer
    plan::ElemRange gradient;  // of it, what has state
    std::vector<std::byte> params;
    std::vector<float> master;
    std::vector<float> moment1;
    std::vector<float> moment2;
    std::vector<float> sum;  // of this step's gradients
    bool summed = false;     // a micro step has been added
    std::vector<Chunk> chunks;
  };
  // Ends the step: what every optimizer does beside its update.
  absl::Status BeginApply(const ApplyArgs& args);
  void EndApply();
  // This step's gradient of a unit, from an element of its shard on; of a unit
  // without one, zeros.
  static optim::GradientSource GradientFrom(const Unit& unit,
                                            std::int64_t begin);

  Unit& At(std::int32_t unit) { return units_[static_cast<std::size_t>(unit)]; }

  const Layout* layout_;
  const OptimizerSpec optimizer_;
  const optim::KernelSet& kernels_;
  AttachInfo info_;
  std::vector<Unit> units_;

 private:
  std::string NameOf(std::int32_t unit, std::int64_t elem) const;
};

}  // namespace stowage::engine
