// GELU and its derivative against the formula in double, for every element of
// 16 bits there is.

#include "engine/product/gelu.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "engine/product/packed_product.h"
#include "gtest/gtest.h"

namespace stowage::engine {
namespace {

double U(double x) {
  return std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
}
double Gelu(double x) { return x / (1 + std::exp(-2 * U(x))); }
double Slope(double x) {
  if (std::abs(x) > 1e3) return x > 0 ? 1 : 0;  // the formula's powers overflow
  const double s = 1 / (1 + std::exp(-2 * U(x)));
  const double rise =
      2 * std::sqrt(2 / std::numbers::pi) * (1 + 3 * 0.044715 * x * x);
  return s + x * s * (1 - s) * rise;
}

float Widen(Dtype dtype, std::uint16_t bits) {
  return dtype == Dtype::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
}

class Gelus : public testing::TestWithParam<Dtype> {
 protected:
  void SetUp() override {
    if (!HavePackedProducts()) GTEST_SKIP() << "this processor has no AVX2";
    for (int bits = 0; bits < 1 << 16; ++bits) {
      const float value = Widen(GetParam(), static_cast<std::uint16_t>(bits));
      if (std::isfinite(value)) {
        x_.push_back(static_cast<std::uint16_t>(bits));
      }
    }
  }
  // Within a rounding to the type and a half; below 1e-30 the result may be
  // zero.
  void Check(const std::vector<std::uint16_t>& got, double (*want)(double)) {
    const double unit = GetParam() == Dtype::kFp16 ? 0x1p-11 : 0x1p-8;
    const double least = GetParam() == Dtype::kFp16 ? 0x1p-24 : 1e-30;
    for (std::size_t i = 0; i < x_.size(); ++i) {
      const double exact = want(Widen(GetParam(), x_[i]));
      if (GetParam() == Dtype::kFp16 && std::abs(exact) > 65504) continue;
      ASSERT_NEAR(Widen(GetParam(), got[i]), exact,
                  1.01 * unit * std::abs(exact) + least)
          << Widen(GetParam(), x_[i]);
    }
  }

  static std::uint16_t One() {
    return GetParam() == Dtype::kBf16 ? FloatToBf16(1) : FloatToFp16(1);
  }

  std::vector<std::uint16_t> x_;
};

TEST_P(Gelus, AreTheFormulaForEveryElement) {
  std::vector<std::uint16_t> out(x_.size());
  TanhGelu(x_.data(), GetParam(), static_cast<std::int64_t>(x_.size()),
           out.data());
  Check(out, Gelu);
}

TEST_P(Gelus, DerivativesAreTheFormulaForEveryElement) {
  std::vector<std::uint16_t> one(
      x_.size(), GetParam() == Dtype::kBf16 ? FloatToBf16(1) : FloatToFp16(1));
  std::vector<std::uint16_t> out(x_.size());
  TanhGeluBackward(one.data(), x_.data(), GetParam(),
                   static_cast<std::int64_t>(x_.size()), out.data());
  Check(out, Slope);
}

TEST_P(Gelus, OfAnyCountWriteThatManyElements) {
  for (std::int64_t count = 0; count < 40; ++count) {
    const auto size = static_cast<std::size_t>(count);
    const std::vector<std::uint16_t> x(size, One());
    std::vector<std::uint16_t> out(size + 16, 7);
    TanhGelu(x.data(), GetParam(), count, out.data());
    for (std::size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(out[i] == 7, i >= size) << i << " of " << count;
    }
    std::vector<std::uint16_t> slopes(size + 16, 7);
    TanhGeluBackward(x.data(), x.data(), GetParam(), count, slopes.data());
    for (std::size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(slopes[i] == 7, i >= size) << i << " of " << count;
    }
  }
}

TEST_P(Gelus, MayTakeThePlaceOfAnOperand) {
  std::vector<std::uint16_t> apart(x_.size());
  const auto count = static_cast<std::int64_t>(x_.size());
  TanhGeluBackward(x_.data(), x_.data(), GetParam(), count, apart.data());
  std::vector<std::uint16_t> in_place = x_;
  TanhGeluBackward(in_place.data(), in_place.data(), GetParam(), count,
                   in_place.data());
  EXPECT_EQ(in_place, apart);
}

TEST(GelusInFp32, AreTheFormula) {
  if (!HavePackedProducts()) GTEST_SKIP() << "this processor has no AVX2";
  std::vector<float> x;
  for (float value = -12; value < 12; value += 0.01F) x.push_back(value);
  const std::vector<float> one(x.size(), 1);
  std::vector<float> out(x.size());
  std::vector<float> slopes(x.size());
  const auto count = static_cast<std::int64_t>(x.size());
  TanhGelu(x.data(), Dtype::kFp32, count, out.data());
  TanhGeluBackward(one.data(), x.data(), Dtype::kFp32, count, slopes.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(out[i], Gelu(x[i]), 1e-5 * std::abs(Gelu(x[i])) + 1e-30)
        << x[i];
    ASSERT_NEAR(slopes[i], Slope(x[i]), 2e-6) << x[i];
  }
}

TEST(GelusInFp32, OfNanAndInfinity) {
  if (!HavePackedProducts()) GTEST_SKIP() << "this processor has no AVX2";
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x = {inf, nan, 0, -0.0F, 50, -50, -inf};
  const std::vector<float> one(x.size(), 1);
  std::vector<float> out(x.size());
  TanhGelu(x.data(), Dtype::kFp32, 7, out.data());
  EXPECT_EQ(out[0], inf);
  EXPECT_TRUE(std::isnan(out[1]));
  EXPECT_EQ(out[2], 0);
  EXPECT_EQ(out[3], 0);
  EXPECT_EQ(out[4], 50);
  EXPECT_EQ(out[5], 0);
  EXPECT_TRUE(std::isnan(out[6]));
  TanhGeluBackward(one.data(), x.data(), Dtype::kFp32, 7, out.data());
  EXPECT_EQ(out[0], 1);
  EXPECT_TRUE(std::isnan(out[1]));
  EXPECT_EQ(out[2], 0.5F);
  EXPECT_EQ(out[6], 0);
}

INSTANTIATE_TEST_SUITE_P(Types, Gelus,
                         testing::Values(Dtype::kFp16, Dtype::kBf16));

}  // namespace
}  // namespace stowage::engine
