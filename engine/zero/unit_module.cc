#include "engine/zero/unit_module.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "common/check.h"

namespace stowage::engine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Coordinator* Load(AutogradContext* context) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): autograd carries IValues only.
  return reinterpret_cast<Coordinator*>(
      context->saved_data["coordinator"].toInt());
}

void Save(AutogradContext* context, std::int64_t coordinator,
          std::int64_t unit) {
  context->saved_data["coordinator"] = coordinator;
  context->saved_data["unit"] = unit;
}

std::int32_t LoadUnit(AutogradContext* context) {
  return static_cast<std::int32_t>(context->saved_data["unit"].toInt());
}

}  // namespace

at::Tensor BeginBackward::forward(AutogradContext* context,
                                  const at::Tensor& output,
                                  std::int64_t coordinator, std::int64_t unit) {
  Save(context, coordinator, unit);
  return output;
}

variable_list BeginBackward::backward(AutogradContext* context,
                                      variable_list gradients) {
  Load(context)->BeginUse(LoadUnit(context), true);
  return {gradients[0], at::Tensor(), at::Tensor()};
}

at::Tensor EndBackwardUse::forward(AutogradContext* context,
                                   const at::Tensor& input,
                                   std::int64_t coordinator,
                                   std::int64_t unit) {
  Save(context, coordinator, unit);
  return input;
}

variable_list EndBackwardUse::backward(AutogradContext* context,
                                       variable_list gradients) {
  Load(context)->EndUse(LoadUnit(context), true);
  return {gradients[0], at::Tensor(), at::Tensor()};
}

UnitUse::UnitUse(Coordinator* coordinator, std::int32_t unit)
    : coordinator_(coordinator),
      unit_(unit),
      traced_(at::GradMode::is_enabled()) {
  STOWAGE_CHECK(coordinator_ != nullptr);  // Engine::Start() comes first
  coordinator_->BeginUse(unit_, traced_);
}

at::Tensor UnitUse::Input(const at::Tensor& given) {
  const at::Tensor input = coordinator_->CastInput(given);
  if (!traced_ || !input.requires_grad()) return input;
  return EndBackwardUse::apply(
      input, reinterpret_cast<std::int64_t>(coordinator_), std::int64_t{unit_});
}

at::Tensor UnitUse::Output(const at::Tensor& output) {
  coordinator_->EndUse(unit_, traced_);
  if (!traced_ || !output.requires_grad()) return output;
  return BeginBackward::apply(output,
                              reinterpret_cast<std::int64_t>(coordinator_),
                              std::int64_t{unit_});
}

}  // namespace stowage::engine
