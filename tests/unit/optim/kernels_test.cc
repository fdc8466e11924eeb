// Selection of kernels, the constants of a step, Adam's accuracy against
// float64, and the search for the first non-finite element.

#include "optim/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace stowage::optim {
namespace {

TEST(Kernels, SupportedSetsAreFastestFirstAndEndWithPortable) {
  const std::vector<const KernelSet*> sets = SupportedKernels();
  ASSERT_FALSE(sets.empty());
  EXPECT_EQ(sets.back()->isa, Isa::kPortable);
  for (std::size_t i = 1; i < sets.size(); ++i) {
    EXPECT_GT(sets[i - 1]->isa, sets[i]->isa);
  }
  for (const KernelSet* set : sets) {
    const auto found = KernelsFor(set->isa);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, set);
  }
}

TEST(Kernels, Avx512RunsOrIsRefusedByName) {
  const auto set = KernelsFor(Isa::kAvx512);
  if (set.ok()) {
    EXPECT_EQ((*set)->isa, Isa::kAvx512);
    return;
  }
  EXPECT_EQ(set.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(set.status().message().find("lacks avx512"), std::string::npos)
      << set.status();
  GTEST_SKIP() << "AVX-512 instructions not run, only their emulation: "
               << set.status().message();
}

// BestKernels() reads the environment once, so each value gets a process.
TEST(KernelsDeathTest, EnvironmentSelectsAKnownSetAndIgnoresOthers) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto run = [](const char* value) {
    setenv("STOWAGE_ISA", value, 1);
    std::fprintf(stderr, "best=%s\n",
                 std::string(IsaName(BestKernels().isa)).c_str());
    std::exit(0);
  };
  const std::string fastest(IsaName(SupportedKernels().front()->isa));
  EXPECT_EXIT(run("portable"), testing::ExitedWithCode(0), "best=portable");
  EXPECT_EXIT(run(""), testing::ExitedWithCode(0), "best=" + fastest);
  EXPECT_EXIT(run("mmx"), testing::ExitedWithCode(0),
              "STOWAGE_ISA ignored.*mmx(.|\n)*best=" + fastest);
  if (!KernelsFor(Isa::kAvx512).ok()) {
    EXPECT_EXIT(run("avx512"), testing::ExitedWithCode(0),
                "STOWAGE_ISA ignored.*avx512(.|\n)*best=" + fastest);
  }
}

TEST(AdamConstants, FollowThePaper) {
  AdamHyperparameters h;
  h.lr = 0.01;
  h.beta1 = 0.9;
  h.beta2 = 0.99;
  h.eps = 1e-6;
  h.weight_decay = 0.1;
  const AdamConstants c = MakeAdamConstants(h, 3, 0.25);
  EXPECT_FLOAT_EQ(c.gradient_factor, 0.25F);
  EXPECT_FLOAT_EQ(c.one_minus_beta1, 0.1F);
  EXPECT_FLOAT_EQ(c.step_size, 0.01F / (1 - 0.729F));
  EXPECT_FLOAT_EQ(c.inv_sqrt_bias2, 1 / std::sqrt(1 - 0.970299F));
  EXPECT_FLOAT_EQ(c.decoupled_decay, 0.001F);
  EXPECT_EQ(c.l2_decay, 0.0F);

  h.decoupled_weight_decay = false;
  h.bias_correction = false;
  const AdamConstants l2 = MakeAdamConstants(h, 3, 1);
  EXPECT_FLOAT_EQ(l2.l2_decay, 0.1F);
  EXPECT_EQ(l2.decoupled_decay, 0.0F);
  EXPECT_FLOAT_EQ(l2.step_size, 0.01F);
  EXPECT_EQ(l2.inv_sqrt_bias2, 1.0F);
}

TEST(Adam, StaysNearFloat64OverManySteps) {
  constexpr std::size_t kElems = 257;
  constexpr int kSteps = 100;
  for (const bool decoupled : {true, false}) {
    AdamHyperparameters h;
    h.lr = 3e-3;
    h.weight_decay = 0.05;
    h.decoupled_weight_decay = decoupled;
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    std::vector<float> p(kElems);
    for (float& x : p) x = static_cast<float>(0.3 * normal(random));
    std::vector<float> m(kElems);
    std::vector<float> v(kElems);
    std::vector<double> p64(p.begin(), p.end());
    std::vector<double> m64(kElems);
    std::vector<double> v64(kElems);
    for (int t = 1; t <= kSteps; ++t) {
      std::vector<float> g(kElems);
      for (float& x : g) x = static_cast<float>(normal(random));
      const void* const slots[] = {g.data()};
      BestKernels().adam(
          MakeAdamConstants(h, t, 0.5), {slots, Dtype::kFp32, nullptr},
          {kElems, p.data(), m.data(), v.data(), nullptr, Dtype::kFp32});
      for (std::size_t i = 0; i < kElems; ++i) {
        double gradient = 0.5 * static_cast<double>(g[i]);
        if (!decoupled) gradient += h.weight_decay * p64[i];
        if (decoupled) p64[i] -= h.lr * h.weight_decay * p64[i];
        m64[i] = h.beta1 * m64[i] + (1 - h.beta1) * gradient;
        v64[i] = h.beta2 * v64[i] + (1 - h.beta2) * gradient * gradient;
        const double m_hat = m64[i] / (1 - std::pow(h.beta1, t));
        const double v_hat = v64[i] / (1 - std::pow(h.beta2, t));
        p64[i] -= h.lr * m_hat / (std::sqrt(v_hat) + h.eps);
      }
    }
    for (std::size_t i = 0; i < kElems; ++i) {
      EXPECT_NEAR(p[i], p64[i], 1e-6 * std::abs(p64[i]) + 5e-7)
          << "element " << i << (decoupled ? " AdamW" : " Adam");
    }
  }
}

// As a factor 1 - lr * decay this one would be 1 in fp32, and nothing decay.
TEST(Adam, TinyDecoupledDecayIsNotLost) {
  AdamHyperparameters h;
  h.lr = 1e-4;
  h.weight_decay = 1e-4;
  ASSERT_EQ(static_cast<float>(1 - h.lr * h.weight_decay), 1.0F);
  std::vector<float> with_decay(64, 0.25F);
  std::vector<float> without = with_decay;
  for (std::vector<float>* p : {&with_decay, &without}) {
    std::vector<float> m(64);
    std::vector<float> v(64, 1.0F);
    std::vector<float> g(64, 1e-2F);
    h.weight_decay = p == &with_decay ? 1e-4 : 0;
    for (int t = 1; t <= 1000; ++t) {
      const AdamConstants c = MakeAdamConstants(h, t, 1);
      BestKernels().adam(
          c, {{}, Dtype::kFp32, g.data()},
          {64, p->data(), m.data(), v.data(), nullptr, Dtype::kFp32});
    }
  }
  // 1000 steps of 1e-8 * 0.25.
  EXPECT_NEAR(without[0] - with_decay[0], 2.5e-6, 1.5e-6);
}

TEST(FirstNonFinite, FindsTheFirstInAnySource) {
  constexpr std::int64_t kElems = 10000;
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> a(kElems, 1.0F);
  std::vector<float> b(kElems, 2.0F);
  const void* const slots[] = {a.data(), b.data()};
  const GradientSource two = {slots, Dtype::kFp32, nullptr};
  EXPECT_EQ(FirstNonFinite(two, kElems), -1);
  EXPECT_EQ(FirstNonFinite({}, kElems), -1);
  EXPECT_EQ(FirstNonFinite(two, 0), -1);
  for (const std::size_t at : {9999U, 8192U, 4096U, 4095U, 0U}) {
    b[at] = std::nanf("");
    EXPECT_EQ(FirstNonFinite(two, kElems), static_cast<std::int64_t>(at));
    EXPECT_EQ(FirstNonFinite({{}, Dtype::kFp32, b.data()}, kElems),
              static_cast<std::int64_t>(at));
  }
  // The sum counts, not the slots: finite slots may overflow.
  std::vector<float> c(kElems, 1.0F);
  std::vector<float> d(kElems, 1.0F);
  const void* const overflow[] = {c.data(), d.data()};
  c[4321] = d[4321] = 3e38F;
  EXPECT_EQ(FirstNonFinite({overflow, Dtype::kFp32, nullptr}, kElems), 4321);
  c[17] = -inf;
  EXPECT_EQ(FirstNonFinite({overflow, Dtype::kFp32, nullptr}, kElems), 17);
}

TEST(FirstNonFinite, ReadsSixteenBitSlots) {
  std::vector<std::uint16_t> half(5000, 0x3c00);
  const void* const slots[] = {half.data()};
  EXPECT_EQ(FirstNonFinite({slots, Dtype::kFp16, nullptr}, 5000), -1);
  half[4999] = 0x7c00;  // infinity in fp16, 1.2e36 in bf16
  EXPECT_EQ(FirstNonFinite({slots, Dtype::kFp16, nullptr}, 5000), 4999);
  EXPECT_EQ(FirstNonFinite({slots, Dtype::kBf16, nullptr}, 5000), -1);
  half[4500] = 0xff80;
  EXPECT_EQ(FirstNonFinite({slots, Dtype::kBf16, nullptr}, 5000), 4500);
}

}  // namespace
}  // namespace stowage::optim
