// Lamb's constants and trust ratio, and 200 steps of its kernels against a
// model in float64 that is written from the words of DeepSpeed's FusedLamb, one
// line for each, and shares nothing with the kernels.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "optim/kernels.h"

namespace stowage::optim {
namespace {

// One tensor in float64.
struct Tensor64 {
  std::vector<double> p;
  std::vector<double> m;
  std::vector<double> v;
  double coefficient = 1;

  void Step(const LambHyperparameters& h, const std::vector<double>& gradient,
            int t) {
    std::vector<double> u(p.size());
    double weight = 0;
    double update = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      m[i] = h.beta1 * m[i] + (1 - h.beta1) * gradient[i];
      v[i] = h.beta2 * v[i] + (1 - h.beta2) * gradient[i] * gradient[i];
      const double denominator =
          h.eps_inside_sqrt ? std::sqrt(v[i] + h.eps) : std::sqrt(v[i]) + h.eps;
      u[i] = m[i] / denominator + h.weight_decay * p[i];
      weight += p[i] * p[i];
      update += u[i] * u[i];
    }
    coefficient = 1;
    if (weight != 0 && update != 0) {
      coefficient = std::sqrt(weight / update);
      coefficient = std::min(std::max(coefficient, h.min_coeff), h.max_coeff);
    }
    double step = h.lr;
    if (h.bias_correction) {
      step *= std::sqrt(1 - std::pow(h.beta2, t)) / (1 - std::pow(h.beta1, t));
    }
    for (std::size_t i = 0; i < p.size(); ++i)
      p[i] -= step * coefficient * u[i];
  }
};

// The same tensor as the kernels see it, its norms in pieces of 4096.
struct Tensor32 {
  std::vector<float> p;
  std::vector<float> m;
  std::vector<float> v;
  double coefficient = 1;

  AdamRange Range(std::size_t begin) {
    constexpr std::size_t kPiece = 4096;
    return {
        .elems = static_cast<std::int64_t>(std::min(kPiece, p.size() - begin)),
        .master = p.data() + begin,
        .moment1 = m.data() + begin,
        .moment2 = v.data() + begin};
  }

  void Step(const LambConstants& c, const std::vector<float>& gradient) {
    const KernelSet& kernels = BestKernels();
    LambNorms norms;
    for (std::size_t begin = 0; begin < p.size(); begin += 4096) {
      const LambNorms part = kernels.lamb_norms(
          c, {{}, Dtype::kFp32, gradient.data() + begin}, Range(begin));
      norms.weight += part.weight;
      norms.update += part.update;
    }
    coefficient = LambTrustRatio(c, norms);
    for (std::size_t begin = 0; begin < p.size(); begin += 4096) {
      kernels.lamb(c, static_cast<float>(c.step_size * coefficient),
                   {{}, Dtype::kFp32, gradient.data() + begin}, Range(begin));
    }
  }
};

struct Case {
  std::string name;
  LambHyperparameters h;
  double weight_scale = 0.3;
};

std::vector<Case> Cases() {
  std::vector<Case> cases(6);
  cases[0].name = "defaults";
  cases[1].name = "weight decay";
  cases[1].h.weight_decay = 0.05;
  cases[2].name = "eps inside the root";
  cases[2].h.eps_inside_sqrt = true;
  cases[2].h.eps = 1e-4;
  cases[3].name = "no bias correction";
  cases[3].h.bias_correction = false;
  cases[4].name = "lower bound";
  cases[4].h.min_coeff = 0.2;
  cases[4].weight_scale = 1e-3;
  cases[5].name = "upper bound";
  cases[5].h.max_coeff = 0.3;
  cases[5].weight_scale = 30;
  for (Case& c : cases) c.h.lr = 3e-3;
  return cases;
}

TEST(Lamb, StaysNearFloat64OverTwoHundredSteps) {
  constexpr std::size_t kElems = 9001;
  constexpr int kSteps = 200;
  bool met_lower = false;
  bool met_upper = false;
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    std::mt19937 random(11);
    std::normal_distribution<double> normal;
    Tensor32 ours{std::vector<float>(kElems), std::vector<float>(kElems),
                  std::vector<float>(kElems)};
    for (float& x : ours.p) {
      x = static_cast<float>(c.weight_scale * normal(random));
    }
    Tensor64 model{{ours.p.begin(), ours.p.end()},
                   std::vector<double>(kElems),
                   std::vector<double>(kElems)};
    std::vector<float> gradient(kElems);
    std::vector<double> gradient64(kElems);
    for (int t = 1; t <= kSteps; ++t) {
      for (std::size_t i = 0; i < kElems; ++i) {
        gradient[i] = static_cast<float>(normal(random));
        gradient64[i] = 0.5 * static_cast<double>(gradient[i]);
      }
      ours.Step(MakeLambConstants(c.h, t, 0.5), gradient);
      model.Step(c.h, gradient64, t);
      ASSERT_NEAR(ours.coefficient, model.coefficient, 2e-5 * model.coefficient)
          << "step " << t;
      met_lower = met_lower || model.coefficient == c.h.min_coeff;
      met_upper = met_upper || model.coefficient == c.h.max_coeff;
    }
    // fp32 rounds each of 200 steps by the size of what it adds to.
    double squares = 0;
    for (const double x : model.p) squares += x * x;
    const double rms = std::sqrt(squares / kElems);
    for (std::size_t i = 0; i < kElems; ++i) {
      ASSERT_NEAR(ours.p[i], model.p[i],
                  2e-5 * std::abs(model.p[i]) + 5e-6 * rms)
          << "element " << i;
    }
  }
  EXPECT_TRUE(met_lower && met_upper);
}

TEST(Lamb, RatioIsOneWithoutANormAndIsNotBoundedThen) {
  LambHyperparameters h;
  h.min_coeff = 2;
  h.max_coeff = 3;
  const LambConstants c = MakeLambConstants(h, 1, 1);
  EXPECT_EQ(LambTrustRatio(c, {.weight = 0, .update = 4}), 1.0);
  EXPECT_EQ(LambTrustRatio(c, {.weight = 4, .update = 0}), 1.0);
  EXPECT_EQ(LambTrustRatio(c, {.weight = 25, .update = 4}), 2.5);
  EXPECT_EQ(LambTrustRatio(c, {.weight = 1, .update = 4}), 2.0);
  EXPECT_EQ(LambTrustRatio(c, {.weight = 100, .update = 4}), 3.0);
}

// A tensor of zeros moves by the plain update: Lamb starts biases this way.
TEST(Lamb, ATensorOfZerosMoves) {
  LambHyperparameters h;
  h.lr = 0.1;
  h.bias_correction = false;
  Tensor32 tensor{std::vector<float>(100), std::vector<float>(100),
                  std::vector<float>(100)};
  tensor.Step(MakeLambConstants(h, 1, 1), std::vector<float>(100, 2.0F));
  EXPECT_EQ(tensor.coefficient, 1.0);
  // m = 0.2, v = 0.004.
  EXPECT_NEAR(tensor.p[99], -0.1 * 0.2 / std::sqrt(0.004), 1e-5);
}

TEST(LambConstants, PutEpsWhereItBelongs) {
  LambHyperparameters h;
  h.eps = 1e-3;
  LambConstants c = MakeLambConstants(h, 2, 0.25);
  EXPECT_EQ(c.eps_outside, 1e-3F);
  EXPECT_EQ(c.eps_inside, 0.0F);
  EXPECT_EQ(c.gradient_factor, 0.25F);
  EXPECT_NEAR(c.step_size, 1e-3 * std::sqrt(1 - 0.998001) / (1 - 0.81), 1e-12);
  h.eps_inside_sqrt = true;
  c = MakeLambConstants(h, 2, 0.25);
  EXPECT_EQ(c.eps_outside, 0.0F);
  EXPECT_EQ(c.eps_inside, 1e-3F);
}

}  // namespace
}  // namespace stowage::optim
