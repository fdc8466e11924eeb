#include "common/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "common/bytes.h"

namespace stowage {
namespace {

TEST(Dtype, EveryFp16SurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float wide = Fp16ToFloat(half);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(Fp16ToFloat(FloatToFp16(wide))));
    } else {
      EXPECT_EQ(FloatToFp16(wide), half) << bits;
    }
  }
}

TEST(Dtype, Fp16RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const double low = Fp16ToFloat(static_cast<std::uint16_t>(bits));
    const double high = Fp16ToFloat(static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    EXPECT_EQ(FloatToFp16(middle), (bits & 1U) != 0 ? bits + 1 : bits) << bits;
    EXPECT_EQ(FloatToFp16(std::nextafterf(middle, INFINITY)), bits + 1) << bits;
    EXPECT_EQ(FloatToFp16(std::nextafterf(middle, 0.0F)), bits) << bits;
  }
  EXPECT_EQ(FloatToFp16(65519.0F), 0x7bff);
  EXPECT_EQ(FloatToFp16(65520.0F), 0x7c00);
}

TEST(Dtype, Bf16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(FloatToBf16(1.0F), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000U)), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000U)), 0x3f82);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x00000001U)), 0x0000);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x00018000U)), 0x0002);
  EXPECT_EQ(FloatToBf16(std::nanf("")), 0x7fc0);
  EXPECT_EQ(FloatToBf16(3.4e38F), 0x7f80);
}

TEST(Bytes, ReadsAndWritesSizes) {
  EXPECT_EQ(ParseBytes("64MiB").value(), 64 * kMiB);
  EXPECT_EQ(ParseBytes(" 1.5 GB ").value(), 1'500'000'000);
  EXPECT_EQ(ParseBytes("512").value(), 512);
  for (const char* bad : {"", "MiB", "-1", "5 apples", "1e99", "1..2GiB"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
  EXPECT_EQ(HumanBytes(1536 * kKiB), "1.5 MiB");
}

}  // namespace
}  // namespace stowage
