// ServerShards of jobs whose optimizer needs all nodes between verdict and
// apply: servers do not know each other, so the ranks carry what they have to
// tell each other (server/core/step_rounds.h).
//
// Apply() ends with a collective after which every node's server holds the last
// round's result, and only then is the step applied anywhere: a node that is
// cut off in between ends the step by itself (node_alignment.h).

#pragma once

#include <vector>

#include "engine/exchange/collectives.h"
#include "engine/exchange/server_shards.h"

namespace stowage::engine {

// Which of the run's ranks and nodes this one is.
struct SpreadPlace {
  Collectives* group = nullptr;  // of all ranks; must outlive the shards
  std::int32_t local_rank = 0;   // among those of this node's server
  bool spread = false;           // there are other servers
};

// Lamb: sums of squares of each tensor, over all nodes.
class LambServerShards final : public ServerShards {
 public:
  // `tensor`: by trainable tensor of the node's job, the model's; `tensors`:
  // the model's.
  LambServerShards(client::Session* session, const plan::ShardPlan* plan,
                   plan::NodePart node, std::int32_t part,
                   std::int32_t micro_steps, bool keep_params,
                   const SpreadPlace& place, std::int32_t tensors);

  // Blocks: for the other ranks.
  absl::Status Apply(const ApplyArgs& args) override;

 private:
  absl::Status ShareNorms(const ApplyArgs& args);

  const SpreadPlace place_;
  const std::vector<std::int32_t> tensor_;
  const std::int32_t tensors_;
};

// OneBitAdam and OneBitLamb at stage 0: every node's server holds the model and
// the errors of its own ranks. Until the freeze the node's first rank brings
// the mean gradient of all ranks, afterwards each rank its own, and signs
// travel between nodes.
class OneBitServerShards final : public ServerShards {
 public:
  OneBitServerShards(client::Session* session, const plan::ShardPlan* plan,
                     plan::NodePart node, std::int32_t micro_steps,
                     const SpreadPlace& place, std::int64_t freeze_step);

  bool takes_own_gradients() const override {
    return applied_steps_ + 1 > freeze_step_;
  }
  // Not every rank's gradient goes anywhere.
  bool has_gradient_places() const override { return false; }
  absl::Status AddGradient(std::int64_t step, std::int32_t micro,
                           std::int32_t unit, std::int64_t begin_elems,
                           std::span<const void* const> parts, Dtype dtype,
                           std::int64_t elems) override;
  absl::Status GradientDone(std::int64_t step, std::int32_t micro,
                            std::int32_t unit, bool empty) override;
  // Blocks: after the freeze, for the other ranks.
  absl::Status Apply(const ApplyArgs& args) override;

 private:
  bool Brings() const {
    return takes_own_gradients() || place_.local_rank == 0;
  }
  absl::Status SwapSigns(const ApplyArgs& args);

  const SpreadPlace place_;
  const std::int64_t freeze_step_;
  std::int64_t applied_steps_;
};

}  // namespace stowage::engine
