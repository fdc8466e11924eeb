// A rank's shard in the node's server: parameters are read from the job's
// segment, reduced gradients go into the range of the shared gradient segment
// that is this rank's (RunSpec::shards).

#pragma once

#include <memory>
#include <vector>

#include "client/offload_client.h"
#include "engine/exchange/buffer_ops.h"
#include "engine/exchange/shard_store.h"
#include "engine/plan/shard_plan.h"

namespace stowage::engine {

class ServerShards : public ShardStore {
 public:
  // `part`: this rank's among the parts of `plan`; `node`: what the session's
  // job holds of the model. `keep_params`: this rank keeps a copy of its shard
  // (parameters are not offloaded) and reads the server's once a step.
  // Ownership: the session and the plan must outlive it.
  ServerShards(client::Session* session, const plan::ShardPlan* plan,
               plan::NodePart node, std::int32_t part, std::int32_t micro_steps,
               bool keep_params);

  const AttachInfo& info() const override { return session_->info(); }
  absl::StatusOr<std::span<const std::byte>> AcquireShard(
      std::int32_t unit, std::int64_t step) override;
  bool ShardReady(std::int32_t unit, std::int64_t step) const override;
  void ReleaseShard(std::int32_t unit) override;
  absl::Status AddGradient(std::int64_t step, std::int32_t micro,
                           std::int32_t unit, std::int64_t begin_elems,
                           std::span<const void* const> parts, Dtype dtype,
                           std::int64_t elems) override;
  bool has_gradient_places() const override { return true; }
  absl::StatusOr<std::byte*> GradientPlace(std::int64_t step,
                                           std::int32_t micro,
                                           std::int32_t unit,
                                           std::int64_t begin_elems) override;
  absl::Status GradientDone(std::int64_t step, std::int32_t micro,
                            std::int32_t unit, bool empty) override;
  absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                  std::span<const double> scalars) override;
  absl::Status Apply(const ApplyArgs& args) override;
  absl::Status SetForwardOrder(std::span<const std::int32_t> units,
                               std::span<const std::int32_t> uses) override;
  absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                        std::span<const float> values) override;
  absl::Status FinishInitialization() override;
  absl::Status ReadState(std::int32_t unit, StateKind kind,
                         std::int64_t begin_elems,
                         std::span<float> out) override;
  absl::Status Close(bool close_job) override;
  StoreWaits waits() const override;
  std::vector<HostRange> host_ranges() override;
  std::int64_t held_bytes() const override;

 protected:
  client::Session* session() { return session_; }

 private:
  struct Kept {
    std::vector<std::byte> bytes;
    std::int64_t step = -1;
  };
  std::int32_t NodeUnit(std::int32_t unit) const {
    return node_.unit[static_cast<std::size_t>(unit)];
  }
  absl::StatusOr<std::span<const std::byte>> AcquireFromServer(
      std::int32_t unit, std::int64_t step);
  // Blocks until the unit's slot of this micro step is free.
  absl::Status AwaitSlot(std::int64_t micro_steps_total,
                         std::int32_t node_unit);
  // The unit's slot of this micro step, free to be written.
  absl::StatusOr<std::byte*> Slot(std::int64_t step, std::int32_t micro,
                                  std::int32_t unit);

  client::Session* session_;
  const plan::ShardPlan* plan_;
  plan::NodePart node_;
  std::int32_t part_;
  std::int32_t micro_steps_;
  std::int64_t width_;
  Dtype dtype_;
  const std::unique_ptr<BufferOps> ops_;  // for gradients that the host has
  std::vector<Kept> kept_;                // by unit; empty unless keep_params
  std::vector<bool> leased_;              // by unit
  std::vector<std::int64_t> slot_of_;  // by unit: micro steps since the start
};

}  // namespace stowage::engine
