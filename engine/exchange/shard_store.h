// Where the part of the state lives that a rank answers for, as the c10d
// exchange sees it: with the node's server (server_shards), or in this process
// (rank_shards). The exchange moves parameters and gradients between ranks; a
// store takes this rank's reduced gradient and gives this rank's parameters.
//
// Units and elements are the model's (plan/shard_plan.h says which are this
// rank's). No LibTorch here.
//
// Thread safety: one thread at a time.
// Errors: of a store with a server: the session's first status.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"

namespace stowage::engine {

// How often the store made its caller wait, in seconds since it began.
struct StoreWaits {
  double params_seconds = 0;
  double prepare_seconds = 0;
};

// Memory of the host that a device copies from or to.
struct HostRange {
  std::span<const std::byte> bytes;
  bool read_only = false;
};

class ShardStore {
 public:
  ShardStore() = default;
  ShardStore(const ShardStore&) = delete;
  ShardStore& operator=(const ShardStore&) = delete;
  virtual ~ShardStore() = default;

  virtual const AttachInfo& info() const = 0;

  // This rank's shard of the unit's parameters after `step` committed steps;
  // valid until ReleaseShard(). Blocks: until they are there.
  virtual absl::StatusOr<std::span<const std::byte>> AcquireShard(
      std::int32_t unit, std::int64_t step) = 0;
  // AcquireShard() would not wait.
  virtual bool ShardReady(std::int32_t unit, std::int64_t step) const = 0;
  virtual void ReleaseShard(std::int32_t unit) = 0;

  // Adds elements [begin, begin + elems) of this rank's gradient shard (counted
  // from the shard's first) of one micro step: the sum of `parts`, in order, in
  // fp32. Each element once a micro step, then GradientDone().
  // Blocks: until the place for it is free.
  virtual absl::Status AddGradient(std::int64_t step, std::int32_t micro,
                                   std::int32_t unit, std::int64_t begin_elems,
                                   std::span<const void* const> parts,
                                   Dtype dtype, std::int64_t elems) = 0;
  // False: gradients are added up here, by AddGradient() only.
  virtual bool has_gradient_places() const { return false; }
  // Where the sum of those elements may be written instead, in the parameters'
  // type. Blocks: as AddGradient(). Requires: has_gradient_places().
  virtual absl::StatusOr<std::byte*> GradientPlace(
      std::int64_t /*step*/, std::int32_t /*micro*/, std::int32_t /*unit*/,
      std::int64_t /*begin_elems*/) {
    return absl::UnimplementedError("this store has no places for gradients");
  }
  // `empty`: nothing was added, on no rank.
  virtual absl::Status GradientDone(std::int64_t step, std::int32_t micro,
                                    std::int32_t unit, bool empty) = 0;

  // True: this step takes this rank's own gradient, not the sum over the ranks.
  // The same on all ranks; changes with Apply() only.
  virtual bool takes_own_gradients() const { return false; }

  // The verdict on what this store and those that share its server hold;
  // rank_scalars: of the same ranks.
  virtual absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                          std::span<const double> scalars) = 0;
  virtual absl::Status Apply(const ApplyArgs& args) = 0;
  virtual absl::Status SetForwardOrder(std::span<const std::int32_t> units,
                                       std::span<const std::int32_t> uses) = 0;

  // Initial values of [begin, begin + size) of the unit; what this store does
  // not hold is dropped.
  virtual absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                                std::span<const float> values) = 0;
  virtual absl::Status FinishInitialization() = 0;
  // Errors: kInvalidArgument for elements that the store does not hold.
  virtual absl::Status ReadState(std::int32_t unit, StateKind kind,
                                 std::int64_t begin_elems,
                                 std::span<float> out) = 0;
  virtual absl::Status Close(bool close_job) = 0;
  virtual StoreWaits waits() const = 0;
  // What stays where it is as long as the store is open: worth registering with
  // a device.
  virtual std::vector<HostRange> host_ranges() { return {}; }
  // Memory of this process that holds state, in bytes.
  virtual std::int64_t held_bytes() const = 0;
};

}  // namespace stowage::engine
