#include "engine/exchange/device_shards.h"

#include <string>
#include <utility>

#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace stowage::engine {

DeviceShards::DeviceShards(const Options& options, Device* device,
                           ShardStore* store, const plan::ShardPlan* plan)
    : options_(options),
      device_(device),
      store_(store),
      plan_(plan),
      pool_(device, BufferPool::Use::kCopyIn),
      shards_(static_cast<std::size_t>(plan->unit_count())) {
  Register();
}

DeviceShards::~DeviceShards() { Close().IgnoreError(); }

// Where it fails, copies are slower and the same.
void DeviceShards::Register() {
  std::int64_t refused_bytes = 0;
  absl::Status first;
  for (const HostRange& range : store_->host_ranges()) {
    const auto bytes = static_cast<std::int64_t>(range.bytes.size());
    const absl::StatusOr<bool> done =
        device_->Register(range.bytes.data(), bytes, range.read_only);
    if (done.ok() && *done) {
      registered_.push_back(range.bytes.data());
      continue;
    }
    refused_bytes += bytes;
    if (!done.ok()) first.Update(done.status());
  }
  if (refused_bytes == 0) return;
  log::Warning(
      "segments are not registered with the device, its driver stages copies",
      {{"device", std::string(device_->name())},
       {"bytes", refused_bytes},
       {"because", first.ok() ? "it cannot register read-only memory"
                              : first.ToString()}});
}

absl::Status DeviceShards::StartCopy(std::int32_t unit, std::int64_t step,
                                     std::span<std::byte> target) {
  // Leases are few: those of copies that are under way must not stand in the
  // way of the next.
  if (store_->info().params_leased) STOWAGE_RETURN_IF_ERROR(Finish());
  STOWAGE_ASSIGN_OR_RETURN(const std::span<const std::byte> shard,
                           store_->AcquireShard(unit, step));
  STOWAGE_CHECK(shard.size() <= target.size());
  Shard& held = At(unit);
  held.copy.reset();
  if (!shard.empty()) {
    STOWAGE_ASSIGN_OR_RETURN(
        held.copy, device_->CopyIn(target.data(), shard.data(),
                                   static_cast<std::int64_t>(shard.size())));
    under_way_.push_back({unit, held.copy});
  }
  if (shard.size() == target.size()) return absl::OkStatus();
  const std::unique_ptr<DeviceScope> scope = device_->Enter(CopyDirection::kIn);
  const std::span<std::byte> rest = target.subspan(shard.size());
  return device_->Clear(rest.data(), static_cast<std::int64_t>(rest.size()));
}

absl::Status DeviceShards::AcquireInto(std::int32_t unit, std::int64_t step,
                                       std::span<std::byte> target) {
  ReleaseDone();
  return StartCopy(unit, step, target);
}

absl::StatusOr<std::span<const std::byte>> DeviceShards::Acquire(
    std::int32_t unit, std::int64_t step) {
  ReleaseDone();
  Shard& shard = At(unit);
  if (options_.keep && shard.step == step) {
    return std::span<const std::byte>(shard.buffer);
  }
  if (shard.buffer.empty()) {
    STOWAGE_ASSIGN_OR_RETURN(shard.buffer, pool_.Take(plan_->part_elems(unit) *
                                                      options_.width_bytes));
  } else {
    // A kept one of an earlier step, which a gather may still send.
    STOWAGE_ASSIGN_OR_RETURN(const std::unique_ptr<DeviceMark> mark,
                             device_->Mark());
    STOWAGE_RETURN_IF_ERROR(device_->Hold(CopyDirection::kIn, *mark));
  }
  STOWAGE_RETURN_IF_ERROR(StartCopy(unit, step, shard.buffer));
  shard.step = step;
  return std::span<const std::byte>(shard.buffer);
}

absl::Status DeviceShards::Release(std::int32_t unit) {
  ReleaseDone();
  Shard& shard = At(unit);
  if (shard.copy != nullptr) {
    STOWAGE_RETURN_IF_ERROR(shard.copy->JoinCompute());
  }
  shard.copy.reset();
  if (options_.keep || shard.buffer.empty()) return absl::OkStatus();
  pool_.Give(shard.buffer);
  shard.buffer = {};
  shard.step = -1;
  return absl::OkStatus();
}

void DeviceShards::ReleaseDone() {
  while (!under_way_.empty() && under_way_.front().copy->Done()) {
    store_->ReleaseShard(under_way_.front().unit);
    under_way_.pop_front();
  }
}

absl::Status DeviceShards::Finish() {
  while (!under_way_.empty()) {
    STOWAGE_RETURN_IF_ERROR(under_way_.front().copy->Wait());
    store_->ReleaseShard(under_way_.front().unit);
    under_way_.pop_front();
  }
  return absl::OkStatus();
}

absl::Status DeviceShards::Close() {
  const absl::Status finished = Finish();
  for (const void* memory : std::exchange(registered_, {})) {
    device_->Unregister(memory);
  }
  return finished;
}

}  // namespace stowage::engine
