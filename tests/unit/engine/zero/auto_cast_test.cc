// fp16.auto_cast: a unit's floating inputs take the parameters' type.

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <memory>
#include <utility>
#include <vector>

#include "engine/zero/coordinator.h"
#include "engine/zero/unit_module.h"
#include "tests/unit/engine/zero/null_exchange.h"

namespace stowage::engine {
namespace {

// One unit of zeros; nothing else happens.
class ZeroExchange final : public NullExchange {
 public:
  explicit ZeroExchange(const Layout& layout)
      : bytes_(static_cast<std::size_t>(layout.total_elems() * 2)) {}
  std::string_view name() const override { return "zeros"; }
  absl::StatusOr<std::span<const std::byte>> Fetch(std::int32_t,
                                                   std::int64_t) override {
    return std::span<const std::byte>(bytes_);
  }
  absl::StatusOr<std::span<std::byte>> GradientTarget(std::int64_t,
                                                      std::int32_t,
                                                      std::int32_t) override {
    return std::span<std::byte>(bytes_);
  }
  absl::Status GradientReady(std::int64_t, std::int32_t, std::int32_t,
                             bool) override {
    return absl::OkStatus();
  }

 private:
  std::vector<std::byte> bytes_;
};

// Remembers what its forward was given.
struct LayerImpl : torch::nn::Module {
  LayerImpl() { weight = register_parameter("weight", at::zeros({4, 4})); }
  at::Tensor forward(const at::Tensor& x, const at::Tensor& indices,
                     const at::Tensor& mask, int repeats) {
    seen = {x.scalar_type(), indices.scalar_type(), mask.scalar_type()};
    return (x.to(weight.scalar_type()) + weight.sum()) * repeats;
  }
  at::Tensor weight;
  std::vector<at::ScalarType> seen;
};

std::vector<at::ScalarType> TypesSeen(bool auto_cast, at::Tensor* gradient) {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kFp16;
  spec.groups = {{"all", false}};
  spec.units = {{"layer", {{"layer.weight", {4, 4}, 0}}}};
  const Layout layout = Layout::Create(spec).value();
  ZeroExchange exchange(layout);
  auto layer = std::make_shared<LayerImpl>();
  CoordinatorOptions options;
  options.auto_cast = auto_cast;
  const auto coordinator = std::make_unique<Coordinator>(
      options, &layout, &exchange,
      std::vector<Coordinator::Unit>{{"layer", {layer->weight}, {}}});
  UnitModule<LayerImpl> unit(&coordinator, 0, layer);
  const at::Tensor x = at::ones({2, 4}).requires_grad_(true);
  unit(x, at::zeros({2}, at::kLong), at::ones({2}), 3)
      .to(at::kFloat)
      .sum()
      .backward();
  *gradient = x.grad();
  coordinator->EndPass();
  return layer->seen;
}

TEST(AutoCast, CastsFloatingInputsOfAUnit) {
  at::Tensor gradient;
  EXPECT_EQ(TypesSeen(true, &gradient),
            (std::vector<at::ScalarType>{at::kHalf, at::kLong, at::kHalf}));
  // The cast is part of the graph.
  ASSERT_TRUE(gradient.defined());
  EXPECT_EQ(gradient.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::allclose(gradient, at::full({2, 4}, 3.0)));
}

TEST(AutoCast, OffLeavesInputsAlone) {
  at::Tensor gradient;
  EXPECT_EQ(TypesSeen(false, &gradient),
            (std::vector<at::ScalarType>{at::kFloat, at::kLong, at::kFloat}));
}

}  // namespace
}  // namespace stowage::engine
