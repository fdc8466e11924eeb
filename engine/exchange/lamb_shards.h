// RankShards with Lamb: a tensor's trust ratio is over all ranks' parts of it.
//
// Apply() makes the sums of squares of this rank's parts, adds up those of all
// ranks in rank order (a collective, unless every rank holds the whole model),
// and then updates (optim/trust_ratio.h).

#pragma once

#include <vector>

#include "engine/exchange/collectives.h"
#include "engine/exchange/rank_shards.h"
#include "optim/trust_ratio.h"

namespace stowage::engine {

class LambShards final : public RankShards {
 public:
  // `layout`, `plan` and `group` must outlive it.
  LambShards(const Layout* layout, const plan::ShardPlan* plan,
             std::int32_t part, const OptimizerSpec& optimizer,
             Collectives* group);

  absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                  std::span<const double> scalars) override;
  // Blocks: for the other ranks, unless each holds the whole model.
  absl::Status Apply(const ApplyArgs& args) override;

 private:
  // Of all units, in the order in which Apply() goes over them.
  std::vector<Layout::Chunk> Chunks() const;
  absl::Status AddUp(std::span<optim::LambNorms> norms);
  // Calls work(index of the chunk, its gradient, its state, its copy).
  template <typename Work>
  void ForEachChunk(const Work& work);

  Collectives* const group_;
  const bool replicated_;
  const std::vector<Layout::Chunk> chunks_;
  optim::TrustRatioUpdate update_;
};

}  // namespace stowage::engine
