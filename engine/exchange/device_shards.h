// This rank's shards on a device: parameters are copied there from the store's
// memory of the host, asynchronously and unit by unit, when a gather wants
// them. The only reader of the store's parameters where there is a device.
//
// The store's memory that stays where it is is registered with the device for
// as long as this lives. A shard is released in the store when its copy is
// done: the host looks at every call, and waits for it before it takes another
// lease and before a step ends.
//
// Ownership: device, store and plan must outlive it.
// Thread safety: one thread at a time. Errors: the store's and the device's.

#pragma once

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/device/device.h"
#include "engine/exchange/buffer_pool.h"
#include "engine/exchange/shard_store.h"
#include "engine/plan/shard_plan.h"

namespace stowage::engine {

class DeviceShards {
 public:
  struct Options {
    std::int32_t part = 0;         // this rank's in the plan
    std::int64_t width_bytes = 0;  // of an element
    // Parameters are not offloaded: a shard stays on the device until there is
    // a newer one.
    bool keep = false;
  };

  DeviceShards(const Options& options, Device* device, ShardStore* store,
               const plan::ShardPlan* plan);
  DeviceShards(const DeviceShards&) = delete;
  DeviceShards& operator=(const DeviceShards&) = delete;
  ~DeviceShards();

  // Starts bringing the shard of `step`, followed by zeros up to the plan's
  // part. What the copy-in stream is given from now on sees it; the current
  // stream, after Release(). Blocks: as ShardStore::AcquireShard().
  // Requires: not acquired.
  absl::StatusOr<std::span<const std::byte>> Acquire(std::int32_t unit,
                                                     std::int64_t step);
  // The same, into `target`: device memory from a kCopyIn pool.
  absl::Status AcquireInto(std::int32_t unit, std::int64_t step,
                           std::span<std::byte> target);
  // The current stream waits for the copy; the memory may be used for another
  // shard when that stream has come so far.
  absl::Status Release(std::int32_t unit);

  // Waits until the store's memory is not read any more.
  absl::Status Finish();
  // The store is about to be closed: Finish(), and nothing is registered.
  absl::Status Close();

  std::int64_t held_bytes() const { return pool_.held_bytes(); }

 private:
  struct Shard {
    std::span<std::byte> buffer;       // of pool_; empty: none
    std::int64_t step = -1;            // of what is in it
    std::shared_ptr<DeviceCopy> copy;  // of the last one
  };
  struct UnderWay {
    std::int32_t unit = 0;
    std::shared_ptr<DeviceCopy> copy;
  };

  Shard& At(std::int32_t unit) {
    return shards_[static_cast<std::size_t>(unit)];
  }
  void Register();
  absl::Status StartCopy(std::int32_t unit, std::int64_t step,
                         std::span<std::byte> target);
  void ReleaseDone();

  const Options options_;
  Device* const device_;
  ShardStore* const store_;
  const plan::ShardPlan* const plan_;
  BufferPool pool_;
  std::vector<Shard> shards_;  // by unit
  std::deque<UnderWay> under_way_;
  std::vector<const void*> registered_;
};

}  // namespace stowage::engine
