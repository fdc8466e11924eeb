// The wrapper that makes a LibTorch module a unit: one line per block.
//
//   UnitModule<Block> block = engine.AddUnit<Block>("block.0", [&] {
//     return std::make_shared<BlockImpl>(config); });
//   x = block(x);
//
// C++ modules have no hooks, so the wrapper does their work: fetch before the
// forward, release after it; an autograd function on the output fetches before
// the unit's backward, one on the input releases after it. A unit whose input
// needs no gradient is released at the end of backward.
//
// Source: Rajbhandari et al., "ZeRO-Infinity", section on ease of use (hooks
//   that gather and partition); DESIGN, "Release must free".

#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "engine/zero/coordinator.h"

namespace stowage::engine {

// Identity in the forward; its backward begins the unit's backward use.
struct BeginBackward : torch::autograd::Function<BeginBackward> {
  static at::Tensor forward(torch::autograd::AutogradContext* context,
                            const at::Tensor& output, std::int64_t coordinator,
                            std::int64_t unit);
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context,
      torch::autograd::variable_list gradients);
};

// Identity in the forward; its backward ends the unit's backward use.
struct EndBackwardUse : torch::autograd::Function<EndBackwardUse> {
  static at::Tensor forward(torch::autograd::AutogradContext* context,
                            const at::Tensor& input, std::int64_t coordinator,
                            std::int64_t unit);
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context,
      torch::autograd::variable_list gradients);
};

// Connects one forward of a unit to the coordinator.
class UnitUse {
 public:
  UnitUse(Coordinator* coordinator, std::int32_t unit);
  UnitUse(const UnitUse&) = delete;
  UnitUse& operator=(const UnitUse&) = delete;
  ~UnitUse() = default;  // a forward that threw is released with the pass

  at::Tensor Input(const at::Tensor& input);
  // A further argument: tensors as CoordinatorOptions::auto_cast says, others
  // as they are.
  template <typename T>
  decltype(auto) Argument(T&& argument) const {
    if constexpr (std::is_convertible_v<T&&, const at::Tensor&>) {
      return coordinator_->CastInput(argument);
    } else {
      return std::forward<T>(argument);
    }
  }
  at::Tensor Output(const at::Tensor& output);

 private:
  Coordinator* coordinator_;
  std::int32_t unit_;
  bool traced_;
};

// M is the module type (an Impl). Copyable: copies are the same unit.
// Thread safety: as the coordinator's.
template <typename M>
class UnitModule {
 public:
  UnitModule() = default;
  // `coordinator` is the engine's slot for it: it exists once the engine has
  // started.
  UnitModule(const std::unique_ptr<Coordinator>* coordinator, std::int32_t unit,
             std::shared_ptr<M> module)
      : coordinator_(coordinator), unit_(unit), module_(std::move(module)) {}

  // Runs the module's forward; the first argument carries the gradient.
  template <typename... Args>
  at::Tensor operator()(const at::Tensor& input, Args&&... args) {
    UnitUse use(coordinator_->get(), unit_);
    return use.Output(module_->forward(
        use.Input(input), use.Argument(std::forward<Args>(args))...));
  }

  M& module() { return *module_; }
  std::int32_t index() const { return unit_; }

 private:
  const std::unique_ptr<Coordinator>* coordinator_ = nullptr;
  std::int32_t unit_ = -1;
  std::shared_ptr<M> module_;
};

}  // namespace stowage::engine
