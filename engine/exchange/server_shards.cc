#include "engine/exchange/server_shards.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/dtype.h"
#include "common/status_macros.h"

namespace stowage::engine {
namespace {

constexpr std::int64_t kPageBytes = 4096;

}  // namespace

ServerShards::ServerShards(client::Session* session,
                           const plan::ShardPlan* plan, plan::NodePart node,
                           std::int32_t part, std::int32_t micro_steps,
                           bool keep_params)
    : session_(session),
      plan_(plan),
      node_(std::move(node)),
      part_(part),
      micro_steps_(micro_steps),
      width_(DtypeBytes(session->layout().param_dtype())),
      dtype_(session->layout().param_dtype()),
      ops_(MakeHostBufferOps()) {
  const auto units = node_.unit.size();
  if (keep_params) kept_.resize(units);
  leased_.resize(units);
  slot_of_.assign(units, -1);
}

absl::StatusOr<std::span<const std::byte>> ServerShards::AcquireFromServer(
    std::int32_t unit, std::int64_t step) {
  const plan::ElemRange shard = plan_->Shard(unit, part_);
  const std::int32_t node_unit = NodeUnit(unit);
  if (shard.empty() || node_unit < 0) return std::span<const std::byte>();
  if (info().params_leased) {
    STOWAGE_RETURN_IF_ERROR(session_->Lease(node_unit, step));
    leased_[static_cast<std::size_t>(unit)] = true;
  } else {
    STOWAGE_RETURN_IF_ERROR(session_->WaitVersion(node_unit, step));
  }
  const std::int64_t begin =
      shard.begin - node_.range[static_cast<std::size_t>(unit)].begin;
  return session_->unit_params(node_unit).subspan(
      static_cast<std::size_t>(begin * width_),
      static_cast<std::size_t>(shard.elems() * width_));
}

absl::StatusOr<std::span<const std::byte>> ServerShards::AcquireShard(
    std::int32_t unit, std::int64_t step) {
  if (kept_.empty()) return AcquireFromServer(unit, step);
  Kept& kept = kept_[static_cast<std::size_t>(unit)];
  if (kept.step != step) {
    STOWAGE_ASSIGN_OR_RETURN(const std::span<const std::byte> bytes,
                             AcquireFromServer(unit, step));
    kept.bytes.assign(bytes.begin(), bytes.end());
    kept.step = step;
    ReleaseShard(unit);
  }
  return std::span<const std::byte>(kept.bytes);
}

bool ServerShards::ShardReady(std::int32_t unit, std::int64_t step) const {
  if (!kept_.empty() && kept_[static_cast<std::size_t>(unit)].step == step) {
    return true;
  }
  const std::int32_t node_unit = NodeUnit(unit);
  if (plan_->Shard(unit, part_).empty() || node_unit < 0) return true;
  // A lease is asked for when the unit's turn has come: it may wait for the
  // disk, and holds the server's memory.
  return !info().params_leased && session_->VersionReady(node_unit, step);
}

void ServerShards::ReleaseShard(std::int32_t unit) {
  if (!leased_[static_cast<std::size_t>(unit)]) return;
  leased_[static_cast<std::size_t>(unit)] = false;
  // A broken session says so at its next call.
  session_->Unlease(NodeUnit(unit)).IgnoreError();
}

absl::Status ServerShards::AwaitSlot(std::int64_t micro_steps_total,
                                     std::int32_t node_unit) {
  if (!info().slots_are_ring) return absl::OkStatus();
  const std::int64_t landed = micro_steps_total - info().slots_per_rank + 1;
  return landed > 0 ? session_->WaitLanded(node_unit, landed)
                    : absl::OkStatus();
}

absl::StatusOr<std::byte*> ServerShards::Slot(std::int64_t step,
                                              std::int32_t micro,
                                              std::int32_t unit) {
  const std::int32_t node_unit = NodeUnit(unit);
  const std::int64_t now = step * micro_steps_ + micro;
  if (slot_of_[static_cast<std::size_t>(unit)] != now) {
    STOWAGE_RETURN_IF_ERROR(AwaitSlot(now, node_unit));
    if (info().gradient_regions > 0) {
      STOWAGE_RETURN_IF_ERROR(session_->ClaimRegion(node_unit));
    }
    slot_of_[static_cast<std::size_t>(unit)] = now;
  }
  return session_->gradient_slot(micro, node_unit).data();
}

absl::StatusOr<std::byte*> ServerShards::GradientPlace(
    std::int64_t step, std::int32_t micro, std::int32_t unit,
    std::int64_t begin_elems) {
  STOWAGE_ASSIGN_OR_RETURN(std::byte* const slot, Slot(step, micro, unit));
  const std::int64_t begin = plan_->GradientShard(unit, part_).begin -
                             node_.range[static_cast<std::size_t>(unit)].begin +
                             begin_elems;
  return slot + begin * width_;
}

absl::Status ServerShards::AddGradient(std::int64_t step, std::int32_t micro,
                                       std::int32_t unit,
                                       std::int64_t begin_elems,
                                       std::span<const void* const> parts,
                                       Dtype dtype, std::int64_t elems) {
  if (elems == 0) return absl::OkStatus();
  STOWAGE_ASSIGN_OR_RETURN(std::byte* const target,
                           GradientPlace(step, micro, unit, begin_elems));
  return ops_->Sum(target, dtype_, parts, dtype, elems);
}

absl::Status ServerShards::GradientDone(std::int64_t step, std::int32_t micro,
                                        std::int32_t unit, bool empty) {
  const std::int32_t node_unit = NodeUnit(unit);
  if (node_unit < 0) return absl::OkStatus();
  // A rank without a share of this unit still has its say in slot and region.
  if (empty) {
    STOWAGE_RETURN_IF_ERROR(AwaitSlot(step * micro_steps_ + micro, node_unit));
  } else {
    STOWAGE_RETURN_IF_ERROR(Slot(step, micro, unit).status());
  }
  return session_->Notice(step, micro, node_unit, empty);
}

absl::StatusOr<Verdict> ServerShards::Prepare(std::int64_t step,
                                              std::span<const double> scalars) {
  return session_->Prepare(step, scalars);
}

absl::Status ServerShards::Apply(const ApplyArgs& args) {
  return session_->Apply(args);
}

absl::Status ServerShards::SetForwardOrder(std::span<const std::int32_t> units,
                                           std::span<const std::int32_t> uses) {
  const auto held = [&](std::span<const std::int32_t> from) {
    std::vector<std::int32_t> to;
    for (const std::int32_t unit : from) {
      if (NodeUnit(unit) >= 0) to.push_back(NodeUnit(unit));
    }
    return to;
  };
  return session_->SetForwardOrder(held(units), held(uses));
}

absl::Status ServerShards::PutState(std::int32_t unit, std::int64_t begin_elems,
                                    std::span<const float> values) {
  const plan::ElemRange range = node_.range[static_cast<std::size_t>(unit)];
  const plan::ElemRange held = plan::Intersect(
      {begin_elems, begin_elems + static_cast<std::int64_t>(values.size())},
      range);
  if (held.empty() || NodeUnit(unit) < 0) return absl::OkStatus();
  return session_->PutState(
      NodeUnit(unit), held.begin - range.begin,
      values.subspan(static_cast<std::size_t>(held.begin - begin_elems),
                     static_cast<std::size_t>(held.elems())));
}

absl::Status ServerShards::FinishInitialization() {
  return session_->FinishInitialization();
}

absl::Status ServerShards::ReadState(std::int32_t unit, StateKind kind,
                                     std::int64_t begin_elems,
                                     std::span<float> out) {
  const plan::ElemRange range = node_.range[static_cast<std::size_t>(unit)];
  const auto elems = static_cast<std::int64_t>(out.size());
  if (NodeUnit(unit) < 0 || begin_elems < range.begin ||
      begin_elems + elems > range.end) {
    return absl::InvalidArgumentError(
        absl::StrCat("read state of unit ", unit, ": elements ", begin_elems,
                     " to ", begin_elems + elems, ", this node holds ",
                     range.begin, " to ", range.end));
  }
  return session_->ReadState(NodeUnit(unit), kind, begin_elems - range.begin,
                             out);
}

absl::Status ServerShards::Close(bool close_job) {
  return session_->Close(close_job);
}

StoreWaits ServerShards::waits() const {
  const client::SessionCounters counters = session_->counters();
  return {counters.version_wait_seconds, counters.prepare_seconds};
}

std::vector<HostRange> ServerShards::host_ranges() {
  std::vector<HostRange> ranges;
  // This rank's elements of the unit in `whole`, which is what the node holds
  // of it, out to whole pages.
  const auto add = [&](std::int32_t unit, std::span<const std::byte> whole,
                       plan::ElemRange own, bool read_only) {
    if (own.empty() || whole.empty()) return;
    const std::int64_t first =
        node_.range[static_cast<std::size_t>(unit)].begin;
    const std::int64_t begin =
        (own.begin - first) * width_ / kPageBytes * kPageBytes;
    const std::int64_t end =
        std::min(RoundUp((own.end - first) * width_, kPageBytes),
                 static_cast<std::int64_t>(whole.size()));
    ranges.push_back({whole.subspan(static_cast<std::size_t>(begin),
                                    static_cast<std::size_t>(end - begin)),
                      read_only});
  };
  for (std::int32_t u = 0; u < plan_->unit_count(); ++u) {
    const std::int32_t node_unit = NodeUnit(u);
    if (node_unit < 0) continue;
    // Leased parameters come and go, and so do regions: a device would keep
    // pages that are no longer the file's.
    if (!info().params_leased) {
      add(u, session_->unit_params(node_unit), plan_->Shard(u, part_), true);
    }
    if (info().gradient_regions > 0) continue;
    const std::int32_t slots = std::min(info().slots_per_rank, micro_steps_);
    for (std::int32_t slot = 0; slot < slots; ++slot) {
      add(u, session_->gradient_slot(slot, node_unit),
          plan_->GradientShard(u, part_), false);
    }
  }
  return ranges;
}

std::int64_t ServerShards::held_bytes() const {
  std::int64_t bytes = 0;
  for (const Kept& kept : kept_) {
    bytes += static_cast<std::int64_t>(kept.bytes.size());
  }
  return bytes;
}

}  // namespace stowage::engine
