#include "engine/zero/coordinator.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "engine/device/torch_device.h"
#include "engine/torch_status.h"

namespace stowage::engine {

std::vector<plan::LivePlan::Unit> Coordinator::PlanUnits(
    const CoordinatorOptions& options, const Layout& layout,
    const std::vector<Unit>& units,
    std::vector<std::vector<bool>>* persistent) {
  std::vector<plan::LivePlan::Unit> plan(units.size());
  std::int64_t persistent_elems = 0;
  for (std::size_t u = 0; u < units.size(); ++u) {
    const Layout::Unit& shape = layout.units()[u];
    std::vector<std::int64_t> elems(units[u].params.size());
    for (const Layout::Param& param : shape.params) {
      elems[static_cast<std::size_t>(param.declared_index)] = param.elems;
    }
    std::vector<bool>& kept = persistent->emplace_back(elems.size(), false);
    for (std::size_t p = 0; p < elems.size(); ++p) {
      // A parameter that would exceed the model threshold is skipped; later,
      // smaller ones may still fit.
      if (elems[p] <= options.persistence_threshold_elems &&
          elems[p] <=
              options.model_persistence_threshold_elems - persistent_elems) {
        kept[p] = true;
        persistent_elems += elems[p];
      } else {
        plan[u].elems += elems[p];
      }
    }
    plan[u].borrows = units[u].borrows;
  }
  return plan;
}

Coordinator::Coordinator(const CoordinatorOptions& options,
                         const Layout* layout, Exchange* exchange,
                         std::vector<Unit> units)
    : options_(options),
      layout_(layout),
      exchange_(exchange),
      live_plan_(options.limits,
                 PlanUnits(options, *layout, units, &persistent_)) {
  const at::ScalarType dtype = ToScalarType(layout->param_dtype());
  const at::Device device = TorchDevice(exchange->device());
  units_.resize(units.size());
  for (std::size_t u = 0; u < units.size(); ++u) {
    const Layout::Unit& shape = layout->units()[u];
    UnitState& state = units_[u];
    state.params.resize(units[u].params.size());
    borrows_.push_back(units[u].borrows);
    if (!partitioned()) {
      state.own = at::zeros({shape.elems},
                            at::TensorOptions().dtype(dtype).device(device));
    }
    for (const Layout::Param& param : shape.params) {
      const auto index = static_cast<std::size_t>(param.declared_index);
      Param& slot = state.params[index];
      slot.begin_elems = param.begin_elems;
      slot.persistent = persistent_[u][index];
      if (slot.persistent) persistent_elems_ += param.elems;
      if (!slot.persistent) state.all_persistent = false;
      at::Tensor& tensor = units[u].params[index];
      if (partitioned()) {
        slot.storage = GatheredStorage::Adopt(tensor, dtype, &ledger_, device);
      } else {
        tensor.set_data(state.own.narrow(0, param.begin_elems, param.elems)
                            .view(tensor.sizes()));
      }
    }
  }
}

Coordinator::~Coordinator() {
  // Views that outlive us must find nothing rather than a gone mapping.
  for (UnitState& state : units_) {
    for (Param& param : state.params) {
      if (partitioned()) param.storage.Empty();
    }
  }
}

// Not all that the unit's next use reads is there.
bool Coordinator::NeedsGather(std::int32_t unit) const {
  const UnitState& state = units_[static_cast<std::size_t>(unit)];
  return state.version != step_ || (!state.fetched && !state.all_persistent);
}

// Where the exchange's units are.
void Coordinator::Copy(void* to, const std::byte* from, std::int64_t bytes) {
  if (Device* const device = exchange_->device(); device != nullptr) {
    ThrowIfError(device->Copy(static_cast<std::byte*>(to), from, bytes));
  } else {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
}

// Exchanges that take their buffer back: persistent parameters are copied into
// memory that stays.
void Coordinator::KeepPersistent(UnitState& state, const std::byte* data) {
  const std::int64_t width = DtypeBytes(layout_->param_dtype());
  for (Param& param : state.params) {
    if (!param.persistent) continue;
    if (!param.kept.defined()) {
      param.kept = at::empty({param.storage.bytes()},
                             at::TensorOptions(at::kByte).device(
                                 TorchDevice(exchange_->device())));
    }
    Copy(param.kept.data_ptr(), data + param.begin_elems * width,
         param.storage.bytes());
    if (!param.storage.filled()) param.storage.Fill(param.kept.data_ptr());
  }
}

void Coordinator::Gather(std::int32_t unit) {
  // A buffer of an earlier version cannot be brought up to date.
  if (At(unit).fetched && !exchange_->in_place()) Release(unit);
  UnitState& state = At(unit);
  absl::StatusOr<std::span<const std::byte>> data =
      exchange_->Fetch(unit, step_);
  ThrowIfError(data.status());
  const std::int64_t width = DtypeBytes(layout_->param_dtype());
  if (!exchange_->in_place()) KeepPersistent(state, data->data());
  for (Param& param : state.params) {
    if (param.storage.filled()) continue;
    param.storage.Fill(data->data() + param.begin_elems * width);
  }
  state.fetched = true;
  state.started = false;
  state.version = step_;
  if (state.all_persistent && !exchange_->in_place()) Release(unit);
}

void Coordinator::Release(std::int32_t unit) {
  UnitState& state = At(unit);
  for (Param& param : state.params) {
    if (!param.persistent) param.storage.Empty();
  }
  if (state.fetched || state.started) exchange_->Release(unit);
  state.fetched = false;
  state.started = false;
}

void Coordinator::Refresh(std::int32_t unit) {
  UnitState& state = At(unit);
  if (state.version == step_) return;
  absl::StatusOr<std::span<const std::byte>> data =
      exchange_->Fetch(unit, step_);
  ThrowIfError(data.status());
  Copy(state.own.data_ptr(), data->data(),
       static_cast<std::int64_t>(data->size()));
  exchange_->Release(unit);
  if (state.started) {
    ahead_elems_ -= layout_->units()[static_cast<std::size_t>(unit)].elems;
  }
  state.started = false;
  state.version = step_;
  RefreshAhead();
}

// Stages 0 to 2 where ranks gather: starts on the units that the forward uses
// next, as far as the bucket allows.
void Coordinator::RefreshAhead() {
  if (!exchange_->collective()) return;
  if (ahead_step_ != step_) {
    ahead_step_ = step_;
    ahead_order_ = ForwardOrder();
    ahead_next_ = 0;
  }
  while (ahead_next_ < ahead_order_.size()) {
    const std::int32_t unit = ahead_order_[ahead_next_];
    const std::int64_t elems =
        layout_->units()[static_cast<std::size_t>(unit)].elems;
    if (At(unit).version != step_) {
      if (ahead_elems_ + elems > options_.refresh_bucket_elems) return;
      if (exchange_->StartFetch(unit, step_) != FetchStart::kStarted) return;
      At(unit).started = true;
      ahead_elems_ += elems;
    }
    ++ahead_next_;
  }
}

void Coordinator::Carry(const plan::LivePlan::Actions& actions) {
  for (const std::int32_t unit : actions.release) Release(unit);
  for (const std::int32_t unit : actions.fetch) {
    if (NeedsGather(unit)) Gather(unit);
  }
  for (const std::int32_t unit : actions.prefetch) {
    if (!NeedsGather(unit)) continue;
    switch (exchange_->StartFetch(unit, step_)) {
      case FetchStart::kReady:
        Gather(unit);
        break;
      case FetchStart::kStarted:
        At(unit).started = true;
        break;
      case FetchStart::kNo:
        live_plan_.CancelPrefetch(unit);
        break;
    }
  }
}

void Coordinator::BeginUse(std::int32_t unit, bool traced) {
  if (!partitioned()) {
    Refresh(unit);
    for (const std::int32_t other : borrows_[static_cast<std::size_t>(unit)]) {
      Refresh(other);
    }
    // The trace is still wanted: it tells the server the forward's order.
    if (traced) live_plan_.BeginUse(unit);
    return;
  }
  const auto state_before = live_plan_.trace().state();
  Carry(traced ? live_plan_.BeginUse(unit) : live_plan_.BeginUntracedUse(unit));
  if (options_.log_trace && traced &&
      state_before != live_plan_.trace().state()) {
    log::Warning(
        "trace left",
        {{"unit", layout_->units()[static_cast<std::size_t>(unit)].name},
         {"step", step_}});
  }
  // A prefetch that was only started is waited for here. A unit kept alive by
  // its persistent parameters alone still needs the version of this step.
  if (NeedsGather(unit)) Gather(unit);
  for (const std::int32_t other : borrows_[static_cast<std::size_t>(unit)]) {
    if (NeedsGather(other)) Gather(other);
  }
}

void Coordinator::EndUse(std::int32_t unit, bool traced) {
  const plan::LivePlan::Actions actions = traced ? live_plan_.EndUse(unit)
                                          : partitioned()
                                              ? live_plan_.EndUntracedUse(unit)
                                              : plan::LivePlan::Actions{};
  if (partitioned()) Carry(actions);
}

void Coordinator::EndPass() {
  const plan::LivePlan::Actions actions = live_plan_.EndPass();
  if (partitioned()) Carry(actions);
}

std::vector<std::int32_t> Coordinator::ForwardOrder() const {
  std::vector<std::int32_t> order;
  std::set<std::int32_t> seen;
  if (live_plan_.trace().state() != plan::UseTrace::State::kFollowing) {
    return order;
  }
  for (const std::int32_t unit : live_plan_.trace().uses()) {
    if (seen.insert(unit).second) order.push_back(unit);
    for (const std::int32_t other : borrows_[static_cast<std::size_t>(unit)]) {
      if (seen.insert(other).second) order.push_back(other);
    }
  }
  return order;
}

at::Tensor Coordinator::CastInput(const at::Tensor& input) const {
  if (!options_.auto_cast || !input.defined() || !input.is_floating_point()) {
    return input;
  }
  return input.to(ToScalarType(layout_->param_dtype()));
}

HeldBytes Coordinator::held() const {
  HeldBytes held;
  held.gathered = ledger_.live_bytes();
  held.gathered_peak = ledger_.peak_bytes();
  for (const UnitState& state : units_) {
    for (const Param& param : state.params) {
      if (partitioned() && param.persistent && param.storage.filled()) {
        held.persistent += param.storage.bytes();
      }
    }
    if (state.own.defined()) {
      held.own_params += static_cast<std::int64_t>(state.own.nbytes());
    }
  }
  return held;
}

std::int64_t Coordinator::gathered_limit_bytes() const {
  return (live_plan_.limit_elems() + persistent_elems_) *
         DtypeBytes(layout_->param_dtype());
}

}  // namespace stowage::engine
