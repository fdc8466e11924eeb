// Exchange between ranks with process groups: parameters are gathered from the
// ranks' shards, gradients are summed over the ranks, and each rank moves only
// its shard to and from a ShardStore.
//
// Gathers and reductions have a process group each, so that both kinds are
// started in an order that is the same on all ranks: gathers in the order of
// the model's uses, reductions in that of GradientReducer. A gather that was
// asked for early waits in a queue until this rank's shard has its new version;
// the queue moves on at every call.
//
// On a device the shards are copied there first (device_shards) and gathered
// behind that copy, beside what the compute stream does; only the use of a
// unit waits for its gather.
//
// Ownership: owns groups and store. Thread safety: as Exchange.

#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/layout.h"
#include "engine/exchange/buffer_ops.h"
#include "engine/exchange/buffer_pool.h"
#include "engine/exchange/collectives.h"
#include "engine/exchange/device_shards.h"
#include "engine/exchange/exchange.h"
#include "engine/exchange/gradient_reducer.h"
#include "engine/exchange/shard_store.h"
#include "engine/plan/shard_plan.h"

namespace stowage::engine {

struct C10dOptions {
  ReduceOptions reduce;
  // Elements of one gather of parameters; a larger unit takes several.
  std::int64_t gather_bucket_elems = 500'000'000;
  // One all-gather; false: a broadcast from each rank.
  bool all_gather = true;
  // Ranks that share a server's verdict, in rank order: verdicts of the groups
  // are summed. All ranks: one server. 1: each rank has a verdict of its own.
  std::int32_t verdict_ranks = 1;
  // Every rank holds the whole state (stage 0).
  bool replicated = false;
  Exchange::InitialShare initial_share;
  // Where units and gradients are; null: in the host's memory. It must outlive
  // the exchange.
  Device* device = nullptr;
  // On a device: a shard stays there until there is a newer one.
  bool keep_shards = false;
  // What a rank may hold where a node's server leases parameters, the least of
  // all nodes: ranks that gather together must plan alike. Absent: none leases.
  std::optional<std::int64_t> leased_elems_max;
};

struct C10dParts {
  std::unique_ptr<Collectives> gathers;
  std::unique_ptr<Collectives> reduces;
  std::unique_ptr<ShardStore> store;
};

class C10dExchange final : public Exchange {
 public:
  // `layout` and `plan` must outlive it.
  C10dExchange(const C10dOptions& options, const Layout* layout,
               const plan::ShardPlan* plan, C10dParts parts);
  ~C10dExchange() override;

  std::string_view name() const override { return "c10d"; }
  const AttachInfo& info() const override { return info_; }
  bool in_place() const override { return false; }
  bool collective() const override { return true; }
  Device* device() const override { return options_.device; }
  InitialShare initial_share() const override { return options_.initial_share; }
  absl::StatusOr<std::span<const std::byte>> Fetch(std::int32_t unit,
                                                   std::int64_t step) override;
  FetchStart StartFetch(std::int32_t unit, std::int64_t step) override;
  void Release(std::int32_t unit) override;
  absl::StatusOr<std::span<std::byte>> GradientTarget(
      std::int64_t step, std::int32_t micro, std::int32_t unit) override;
  absl::Status GradientReady(std::int64_t step, std::int32_t micro,
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
  double gradient_divisor() const override { return options_.reduce.divisor; }
  ExchangeTraffic traffic() const override;
  std::int64_t held_bytes() const override;
  ExchangeWaits TakeWaits() override;

 private:
  struct Piece {
    plan::ElemRange in_part;
    std::span<std::byte> staged;  // gathered here first; empty: in place
    std::span<std::byte> mine;    // a padded copy of this rank's piece
    std::vector<std::unique_ptr<Pending>> pending;
  };
  struct Gather {
    std::span<std::byte> buffer;  // empty: not fetched
    std::int64_t step = 0;
    bool queued = false;  // not launched yet
    bool done = false;
    std::vector<Piece> pieces;  // launched, not done
  };

  Gather& At(std::int32_t unit) {
    return gathers_[static_cast<std::size_t>(unit)];
  }
  absl::Status Queue(std::int32_t unit, std::int64_t step);
  // Launches queued gathers in order, up to and including `until` (waiting for
  // shards), then those that need no wait. What failed once fails ever after: a
  // gather that was not started leaves the buffer as it was.
  absl::Status Launch(std::int32_t until);
  absl::Status TryLaunch(std::int32_t until);
  absl::Status LaunchOne(std::int32_t unit);
  // With one part: this rank's shard is the unit.
  absl::Status LaunchLone(std::int32_t unit);
  // On a device gathers wait for what the copy-in stream has been given, and
  // for nothing else. Buffers are taken outside of it.
  std::unique_ptr<DeviceScope> EnterCopyIn() const;
  absl::Status ReleaseShard(std::int32_t unit);
  absl::Status LaunchPiece(std::int32_t unit, std::span<const std::byte> shard,
                           Piece& piece);
  absl::Status Complete(std::int32_t unit);
  absl::StatusOr<Verdict> Combine(Verdict own, std::int64_t step,
                                  std::span<const double> scalars);
  std::int64_t ParamPosition(const std::string& name) const;
  std::string ParamName(std::int64_t position) const;

  const C10dOptions options_;
  const Layout* layout_;
  const plan::ShardPlan* plan_;
  std::unique_ptr<Collectives> gather_group_;
  std::unique_ptr<Collectives> reduce_group_;
  std::unique_ptr<ShardStore> store_;
  AttachInfo info_;
  const std::int32_t part_;
  const std::int64_t width_;
  const std::unique_ptr<BufferOps> ops_;
  std::unique_ptr<DeviceShards> device_shards_;  // null: no device
  BufferPool pool_;
  std::vector<Gather> gathers_;  // by unit
  std::deque<std::int32_t> queue_;
  absl::Status launched_;  // the first error of Launch()
  GradientReducer reducer_;
  double params_seconds_ = 0;
  double prepare_seconds_ = 0;
};

}  // namespace stowage::engine
