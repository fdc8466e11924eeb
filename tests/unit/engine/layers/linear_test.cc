// The wide layers against torch's own in double precision: values and gradients
// up to one rounding to 16 bits, also where a weight takes several panels.

#include "engine/layers/linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#include <vector>

#include "engine/layers/half_products.h"
#include "engine/product/packed_product.h"

namespace stowage::engine {
namespace {

class WideLayers : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  static void SetUpTestSuite() {
    ::setenv("STOWAGE_WIDE_PRODUCTS", "1", 1);
    ASSERT_TRUE(UseWideProducts());
    at::manual_seed(7);
  }

  static at::Tensor Leaf(at::IntArrayRef sizes) {
    return at::randn(sizes).to(GetParam()).requires_grad_(true);
  }
  static at::Tensor InDouble(const at::Tensor& tensor) {
    return tensor.detach().to(at::kDouble).requires_grad_(true);
  }
  // One rounding to the type, and what fp32 sums lose.
  static void ExpectNear(const at::Tensor& got, const at::Tensor& want,
                         const char* what) {
    ASSERT_EQ(got.sizes(), want.sizes()) << what;
    const double unit = GetParam() == at::kHalf ? 0x1p-11 : 0x1p-8;
    const double scale = want.abs().max().item<double>();
    const double worst =
        (got.to(at::kDouble) - want).abs().max().item<double>();
    EXPECT_LE(worst, 2 * unit * scale) << what;
  }
  // Gradients of sum(output * weights) for fixed weights.
  static void Backward(const at::Tensor& output, const at::Tensor& weights) {
    torch::autograd::backward(
        {(output * weights.to(output.scalar_type())).sum()}, {});
  }
};

TEST_P(WideLayers, LinearIsTorchsInOneOrManyPanels) {
  // 1000 x 768: four panels of a mebibyte; the last is short.
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{7, 5, 3}, {4, 768, 1000}, {3, 8, 1}}) {
    for (const bool with_bias : {true, false}) {
      const at::Tensor x = Leaf({2, shape[0], shape[1]});
      const at::Tensor w = Leaf({shape[2], shape[1]});
      const at::Tensor b = with_bias ? Leaf({shape[2]}) : at::Tensor();
      const at::Tensor xd = InDouble(x);
      const at::Tensor wd = InDouble(w);
      const at::Tensor bd = with_bias ? InDouble(b) : at::Tensor();
      const at::Tensor y = Linear(x, w, b);
      const at::Tensor yd =
          with_bias ? at::linear(xd, wd, bd) : at::linear(xd, wd);
      ExpectNear(y, yd, "output");
      const at::Tensor weights = at::randn(y.sizes()).to(GetParam());
      Backward(y, weights);
      Backward(yd, weights);
      ExpectNear(x.grad(), xd.grad(), "input gradient");
      ExpectNear(w.grad(), wd.grad(), "weight gradient");
      if (with_bias) ExpectNear(b.grad(), bd.grad(), "bias gradient");
    }
  }
}

// The activation is rounded between the two, in forward and in backward.
TEST_P(WideLayers, GeluLinearIsTheTwoLayersBitForBit) {
  const at::Tensor x = Leaf({6, 96});
  const at::Tensor w = Leaf({40, 96});
  const at::Tensor b = Leaf({40});
  const at::Tensor active = HalfGelu(x.detach());
  const at::Tensor y = GeluLinear(x, w, b);
  EXPECT_TRUE(at::equal(y, HalfProduct(active, w.detach(), b.detach())));
  const at::Tensor weights = at::randn(y.sizes()).to(GetParam());
  Backward(y, weights);
  EXPECT_TRUE(at::equal(w.grad(), HalfWeightGradient(weights, active)));
  EXPECT_TRUE(at::equal(
      x.grad(),
      HalfGeluBackward(HalfInputGradient(weights, w.detach()), x.detach())));
}

TEST_P(WideLayers, GeluLinearIsTorchsTwoLayers) {
  const at::Tensor x = Leaf({6, 96});
  const at::Tensor w = Leaf({40, 96});
  const at::Tensor b = Leaf({40});
  const at::Tensor xd = InDouble(x);
  const at::Tensor wd = InDouble(w);
  const at::Tensor bd = InDouble(b);
  const at::Tensor y = GeluLinear(x, w, b);
  const at::Tensor yd = at::linear(at::gelu(xd, "tanh"), wd, bd);
  ExpectNear(y, yd, "output");
  const at::Tensor weights = at::randn(y.sizes()).to(GetParam());
  Backward(y, weights);
  Backward(yd, weights);
  ExpectNear(x.grad(), xd.grad(), "input gradient");
  ExpectNear(w.grad(), wd.grad(), "weight gradient");
  ExpectNear(b.grad(), bd.grad(), "bias gradient");
}

// Each way by itself, also where rows or weights are views.
TEST_P(WideLayers, BothWaysAreTheProductsInDouble) {
  for (const ProductWay how : {ProductWay::kPanels, ProductWay::kPacked}) {
    if (how == ProductWay::kPacked && !HavePackedProducts()) continue;
    const at::Tensor x = at::randn({300, 5, 7}).to(GetParam()).transpose(1, 2);
    const at::Tensor w = at::randn({10, 33}).to(GetParam()).t().narrow(1, 2, 5);
    const at::Tensor b = at::randn({33}).to(GetParam());
    const at::Tensor gradient = at::randn({300, 7, 33}).to(GetParam());
    const at::Tensor rows = x.to(at::kDouble).reshape({-1, 5});
    const at::Tensor slopes = gradient.to(at::kDouble).reshape({-1, 33});
    const at::Tensor wd = w.to(at::kDouble);
    ExpectNear(HalfProduct(x, w, b, how), rows.mm(wd.t()) + b.to(at::kDouble),
               "product");
    ExpectNear(HalfProduct(x, w, {}, how), rows.mm(wd.t()), "without bias");
    ExpectNear(HalfInputGradient(gradient, w, how), slopes.mm(wd), "input");
    ExpectNear(HalfWeightGradient(gradient, x, how), slopes.t().mm(rows),
               "weight");
    ExpectNear(HalfGelu(x, how), at::gelu(x.to(at::kDouble), "tanh"), "gelu");
    ExpectNear(HalfGeluBackward(x, x, how),
               at::gelu_backward(x.to(at::kDouble), x.to(at::kDouble), "tanh"),
               "gelu's gradient");
  }
}

TEST_P(WideLayers, ThreadsDoNotChangeABit) {
  if (!HavePackedProducts()) GTEST_SKIP() << "this processor has no AVX2";
  constexpr ProductWay kWay = ProductWay::kPacked;
  const int threads = at::get_num_threads();
  // Fewer groups of columns than threads, and more.
  for (const std::int64_t out : {100, 700}) {
    const at::Tensor x = at::randn({530, 300}).to(GetParam());
    const at::Tensor w = at::randn({out, 300}).to(GetParam());
    at::set_num_threads(1);
    const at::Tensor alone = HalfProduct(x, w, {}, kWay);
    const at::Tensor turned = HalfWeightGradient(x, alone, kWay);
    const at::Tensor gelu = HalfGelu(alone, kWay);
    at::set_num_threads(3);
    EXPECT_TRUE(at::equal(alone, HalfProduct(x, w, {}, kWay))) << out;
    EXPECT_TRUE(at::equal(turned, HalfWeightGradient(x, alone, kWay))) << out;
    EXPECT_TRUE(at::equal(gelu, HalfGelu(alone, kWay))) << out;
  }
  at::set_num_threads(threads);
}

TEST_P(WideLayers, NoRowsMakeNoRowsAndAGradientOfZeros) {
  const at::Tensor x = Leaf({0, 8});
  const at::Tensor w = Leaf({5, 8});
  const at::Tensor y = Linear(x, w, {});
  EXPECT_EQ(y.sizes(), (std::vector<std::int64_t>{0, 5}));
  torch::autograd::backward({y.sum()}, {});
  EXPECT_TRUE(at::equal(w.grad(), at::zeros_like(w)));
}

TEST_P(WideLayers, AFrozenWeightOrInputHasNoGradient) {
  const at::Tensor x = Leaf({4, 8});
  const at::Tensor w = at::randn({5, 8}).to(GetParam());
  // A gradient that is one number, expanded.
  torch::autograd::backward({Linear(x, w, {}).sum()}, {});
  ExpectNear(x.grad(), w.to(at::kDouble).sum(0).expand({4, 8}), "input");
  const at::Tensor fixed = at::randn({4, 8}).to(GetParam());
  const at::Tensor trained = Leaf({5, 8});
  torch::autograd::backward({Linear(fixed, trained, {}).sum()}, {});
  ExpectNear(trained.grad(), fixed.to(at::kDouble).sum(0).expand({5, 8}),
             "weight");
}

TEST_P(WideLayers, OperandsThatDoNotFitAreRefused) {
  if (!HavePackedProducts()) GTEST_SKIP() << "this processor has no AVX2";
  constexpr ProductWay kWay = ProductWay::kPacked;
  const at::Tensor x = at::randn({4, 8}).to(GetParam());
  const at::Tensor w = at::randn({5, 8}).to(GetParam());
  const at::Tensor gradient = at::randn({4, 5}).to(GetParam());
  EXPECT_THROW(HalfProduct(x, w.t(), {}, kWay), c10::Error);
  EXPECT_THROW(HalfProduct(x, w, at::zeros({1}).to(GetParam()), kWay),
               c10::Error);
  EXPECT_THROW(HalfProduct(x, w.to(at::kFloat), {}, kWay), c10::Error);
  EXPECT_THROW(HalfProduct(x.to(at::kFloat), w.to(at::kFloat), {}, kWay),
               c10::Error);
  EXPECT_THROW(HalfInputGradient(x, w, kWay), c10::Error);
  EXPECT_THROW(HalfWeightGradient(gradient, x.narrow(0, 0, 3), kWay),
               c10::Error);
  // A bias of another type is taken as one of the weight's.
  const at::Tensor bias = at::randn({5});
  EXPECT_TRUE(at::equal(HalfProduct(x, w, bias, kWay),
                        HalfProduct(x, w, bias.to(GetParam()), kWay)));
}

TEST_P(WideLayers, ASecondDerivativeIsRefused) {
  const at::Tensor x = Leaf({4, 8});
  const at::Tensor w = Leaf({5, 8});
  EXPECT_THROW(torch::autograd::grad({Linear(x, w, {}).sum()}, {x}, {},
                                     /*retain_graph=*/true,
                                     /*create_graph=*/true),
               c10::Error);
}

// Also on views of one product, as a model gives them.
TEST_P(WideLayers, AttentionIsTorchs) {
  const at::Tensor one = Leaf({2, 9, 3 * 48});
  const at::Tensor one_in_double = InDouble(one);
  const auto split = [](const at::Tensor& tensor) {
    const at::Tensor views =
        tensor.view({2, 9, 3, 3, 16}).permute({2, 0, 3, 1, 4});
    return std::vector<at::Tensor>{views[0], views[1], views[2]};
  };
  const std::vector<at::Tensor> in = split(one);
  const std::vector<at::Tensor> doubles = split(one_in_double);
  const at::Tensor y = CausalAttention(in[0], in[1], in[2]);
  const at::Tensor yd = at::scaled_dot_product_attention(
                            doubles[0], doubles[1], doubles[2], {}, 0.0, true)
                            .transpose(1, 2)
                            .reshape({2, 9, 48});
  ExpectNear(y, yd, "output");
  const at::Tensor weights = at::randn(y.sizes()).to(GetParam());
  Backward(y, weights);
  Backward(yd, weights);
  ExpectNear(one.grad(), one_in_double.grad(), "gradient");
}

INSTANTIATE_TEST_SUITE_P(Types, WideLayers,
                         ::testing::Values(at::kHalf, at::kBFloat16));

}  // namespace
}  // namespace stowage::engine
