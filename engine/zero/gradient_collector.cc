#include "engine/zero/gradient_collector.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/device/torch_device.h"
#include "engine/torch_status.h"
#include "engine/zero/coordinator.h"

namespace stowage::engine {

// The hook of one parameter. Also runs when the gradient is undefined.
class CollectorHook final : public torch::autograd::PostAccumulateGradHook {
 public:
  CollectorHook(GradientCollector* collector, std::int32_t unit,
                std::size_t index)
      : collector_(collector), unit_(unit), index_(index) {}

  void operator()(const torch::autograd::Variable& tensor) override {
    at::Tensor& gradient = tensor.mutable_grad();
    if (!gradient.defined()) return;
    collector_->Arrive(unit_, index_, gradient);
    gradient.reset();
  }

 private:
  GradientCollector* collector_;
  std::int32_t unit_;
  std::size_t index_;
};

GradientCollector::GradientCollector(
    const Layout* layout, Exchange* exchange,
    std::vector<std::vector<at::Tensor>> params, const Options& options)
    : layout_(layout), exchange_(exchange), options_(options) {
  units_.resize(params.size());
  for (std::size_t u = 0; u < params.size(); ++u) {
    Unit& unit = units_[u];
    unit.params.resize(params[u].size());
    for (const Layout::Param& shape : layout_->units()[u].params) {
      const auto index = static_cast<std::size_t>(shape.declared_index);
      Param& param = unit.params[index];
      param.tensor = params[u][index];
      param.begin_elems = shape.begin_elems;
      param.elems = shape.elems;
      param.trainable = !shape.frozen;
      if (!param.trainable) continue;
      ++unit.trainable;
      torch::autograd::impl::set_post_acc_grad_hooks(
          param.tensor, std::make_unique<CollectorHook>(
                            this, static_cast<std::int32_t>(u), index));
    }
  }
}

GradientCollector::~GradientCollector() {
  for (Unit& unit : units_) {
    for (Param& param : unit.params) {
      if (param.trainable) {
        torch::autograd::impl::set_post_acc_grad_hooks(param.tensor, nullptr);
      }
    }
  }
}

void GradientCollector::BeginMicroStep(std::int64_t step, std::int32_t micro) {
  step_ = step;
  micro_ = micro;
  open_ = true;
  for (Unit& unit : units_) {
    unit.arrived = 0;
    unit.target = nullptr;
    for (Param& param : unit.params) param.arrived = false;
  }
}

std::byte* GradientCollector::Target(std::int32_t unit_index) {
  Unit& unit = units_[static_cast<std::size_t>(unit_index)];
  if (unit.target == nullptr) {
    absl::StatusOr<std::span<std::byte>> target =
        exchange_->GradientTarget(step_, micro_, unit_index);
    ThrowIfError(target.status());
    unit.target = target->data();
  }
  return unit.target;
}

void GradientCollector::Arrive(std::int32_t unit_index, std::size_t index,
                               const at::Tensor& gradient) {
  if (!open_) {
    throw StatusError(absl::FailedPreconditionError(
        "backward: a gradient arrived outside Engine::Backward(); call the "
        "engine's Backward(loss) rather than loss.backward()"));
  }
  Param& param = units_[static_cast<std::size_t>(unit_index)].params[index];
  if (options_.contiguous) {
    Copy(unit_index, param, gradient);
  } else {
    param.held = gradient;
    held_bytes_ += static_cast<std::int64_t>(gradient.nbytes());
    held_bytes_peak_ = std::max(held_bytes_peak_, held_bytes_);
  }
  if (options_.keep_gradients) {
    at::Tensor wide = gradient.to(at::kFloat);
    param.kept = param.kept.defined() ? param.kept.add_(wide) : wide;
  }
  CountArrival(unit_index, param);
}

void GradientCollector::Copy(std::int32_t unit_index, const Param& param,
                             const at::Tensor& gradient) {
  const Dtype dtype = layout_->param_dtype();
  std::byte* place = Target(unit_index) + param.begin_elems * DtypeBytes(dtype);
  const auto bytes = static_cast<std::size_t>(param.elems * DtypeBytes(dtype));
  Device* const device = exchange_->device();
  if (!gradient.is_contiguous() ||
      gradient.scalar_type() != ToScalarType(dtype)) {
    at::from_blob(place, gradient.sizes(),
                  at::TensorOptions()
                      .dtype(ToScalarType(dtype))
                      .device(TorchDevice(device)))
        .copy_(gradient);
  } else if (device != nullptr) {
    ThrowIfError(device->Copy(
        place, static_cast<const std::byte*>(gradient.const_data_ptr()),
        static_cast<std::int64_t>(bytes)));
  } else {
    std::memcpy(place, gradient.data_ptr(), bytes);
  }
  copied_bytes_ += static_cast<std::int64_t>(bytes);
}

void GradientCollector::CopyHeld(std::int32_t unit_index) {
  if (options_.contiguous) return;
  for (Param& param : units_[static_cast<std::size_t>(unit_index)].params) {
    if (!param.held.defined()) continue;
    Copy(unit_index, param, param.held);
    held_bytes_ -= static_cast<std::int64_t>(param.held.nbytes());
    param.held.reset();
  }
}

void GradientCollector::CountArrival(std::int32_t unit_index, Param& param) {
  Unit& unit = units_[static_cast<std::size_t>(unit_index)];
  if (param.arrived) {
    throw StatusError(absl::InternalError(absl::StrCat(
        "backward: unit \"",
        layout_->units()[static_cast<std::size_t>(unit_index)].name,
        "\" got a second gradient for one parameter in one micro step")));
  }
  param.arrived = true;
  if (++unit.arrived == unit.trainable) {
    CopyHeld(unit_index);
    ThrowIfError(exchange_->GradientReady(step_, micro_, unit_index, false));
  }
}

void GradientCollector::Clear(std::byte* place, std::int64_t bytes) {
  if (Device* const device = exchange_->device(); device != nullptr) {
    ThrowIfError(device->Clear(place, bytes));
  } else {
    std::memset(place, 0, static_cast<std::size_t>(bytes));
  }
}

void GradientCollector::EndBackward() {
  open_ = false;
  const std::int64_t width = DtypeBytes(layout_->param_dtype());
  for (std::size_t u = 0; u < units_.size(); ++u) {
    Unit& unit = units_[u];
    if (unit.trainable == 0 || unit.arrived == unit.trainable) continue;
    const auto unit_index = static_cast<std::int32_t>(u);
    const bool empty = unit.arrived == 0;
    if (!empty) {
      CopyHeld(unit_index);
      for (const Param& param : unit.params) {
        if (!param.trainable || param.arrived) continue;
        Clear(Target(unit_index) + param.begin_elems * width,
              param.elems * width);
      }
    }
    ThrowIfError(exchange_->GradientReady(step_, micro_, unit_index, empty));
  }
}

void GradientCollector::EndStep() {
  for (Unit& unit : units_) {
    for (Param& param : unit.params) param.kept.reset();
  }
}

std::int64_t GradientCollector::kept_bytes() const {
  std::int64_t bytes = 0;
  for (const Unit& unit : units_) {
    for (const Param& param : unit.params) {
      if (param.kept.defined()) {
        bytes += static_cast<std::int64_t>(param.kept.nbytes());
      }
    }
  }
  return bytes;
}

std::int64_t GradientCollector::TakeCopiedBytes() {
  return std::exchange(copied_bytes_, 0);
}

}  // namespace stowage::engine
