// RankShards with OneBitAdam or OneBitLamb: every rank holds the whole model,
// and after the freeze momenta travel as signs instead of gradients.
//
// Until then a step is as any other of stage 0. From then on the store takes
// this rank's own gradient, and Apply() is a collective: the compressed mean of
// all ranks' momenta (optim/onebit_reduce.h) over the group that reduced
// gradients before.
//
// Masters and moments are the same on all ranks, bit for bit; errors are each
// rank's own.

#pragma once

#include <memory>

#include "engine/exchange/collectives.h"
#include "engine/exchange/rank_shards.h"
#include "optim/onebit_optimizer.h"

namespace stowage::engine {

class OneBitShards final : public RankShards {
 public:
  // `layout`, `plan` (of one part) and `group` must outlive it.
  OneBitShards(const Layout* layout, const plan::ShardPlan* plan,
               const OptimizerSpec& optimizer, Collectives* group);
  ~OneBitShards() override;

  bool takes_own_gradients() const override;
  absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                  std::span<const double> scalars) override;
  // Blocks: after the freeze, for the other ranks.
  absl::Status Apply(const ApplyArgs& args) override;
  std::int64_t held_bytes() const override;

 private:
  std::vector<optim::OneBitTensor> Tensors();

  const std::unique_ptr<optim::ByteExchange> exchange_;
  const optim::OneBitSettings settings_;
  const std::vector<const Layout::Param*> params_;  // trainable
  std::unique_ptr<optim::OneBitOptimizer> update_;
};

}  // namespace stowage::engine
