// Units that are nothing but their modules: the same model without ZeRO, with
// the same initial values as the engine gives. For parity tests and benches.

#pragma once

#include <torch/utils.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace stowage::gpt {

template <typename M>
class PlainUnit {
 public:
  PlainUnit() = default;
  explicit PlainUnit(std::shared_ptr<M> module) : module_(std::move(module)) {}
  template <typename... Args>
  at::Tensor operator()(const at::Tensor& input, Args&&... args) {
    return module_->forward(input, std::forward<Args>(args)...);
  }
  M& module() { return *module_; }

 private:
  std::shared_ptr<M> module_;
};

class PlainBuilder {
 public:
  explicit PlainBuilder(std::uint64_t seed) : seed_(seed) {}

  template <typename M>
  PlainUnit<M> AddUnit(const std::string& name,
                       std::function<std::shared_ptr<M>()> make) {
    torch::manual_seed(
        engine::Engine::UnitSeed(seed_, static_cast<int>(modules_.size())));
    std::shared_ptr<M> module = make();
    modules_.emplace_back(name, module);
    return PlainUnit<M>(module);
  }

  // Named units in order.
  const std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>>&
  modules() const {
    return modules_;
  }

 private:
  std::uint64_t seed_;
  std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>>
      modules_;
};

}  // namespace stowage::gpt
