#include "engine/precision/loss_scaler.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::engine::precision {
namespace {

using ::testing::HasSubstr;

LossScaler Make(const LossScalerOptions& options) {
  auto scaler = LossScaler::Create(options);
  EXPECT_TRUE(scaler.ok()) << scaler.status().ToString();
  return *scaler;
}

LossScalerOptions Dynamic(double init, std::int64_t window,
                          std::int64_t hysteresis, bool consecutive = false) {
  LossScalerOptions options;
  options.kind = LossScaleKind::kDynamic;
  options.init_scale = init;
  options.scale_window = window;
  options.hysteresis = hysteresis;
  options.consecutive_hysteresis = consecutive;
  return options;
}

std::vector<double> Scales(LossScaler scaler, const std::vector<int>& flags) {
  std::vector<double> out;
  for (const int flag : flags) {
    const auto update = scaler.Update(flag != 0);
    EXPECT_TRUE(update.ok()) << update.status().ToString();
    if (!update.ok()) break;
    EXPECT_EQ(update->skipped, flag != 0);
    out.push_back(update->scale_after);
  }
  return out;
}

// Section 13.2 of the reference.
TEST(LossScaler, GoldenVectors) {
  EXPECT_EQ(
      Scales(Make(Dynamic(256, 2, 2)), {1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0}),
      (std::vector<double>{256, 128, 64, 64, 32, 32, 32, 64, 64, 128, 128}));
  EXPECT_EQ(Scales(Make(Dynamic(256, 2, 2, true)), {1, 0, 1, 1, 0, 0, 0, 0}),
            (std::vector<double>{256, 256, 256, 128, 128, 128, 256, 256}));
  EXPECT_EQ(Scales(Make(Dynamic(4, 3, 2)), {0, 0, 0, 0, 0, 0, 0, 0}),
            (std::vector<double>{4, 4, 4, 8, 8, 8, 16, 16}));
}

TEST(LossScaler, GoldenHysteresis) {
  LossScaler scaler = Make(Dynamic(256, 2, 2));
  const std::vector<int> flags = {1, 1, 1, 0, 1, 0, 0, 0};
  const std::vector<std::int64_t> after = {1, 1, 1, 1, 1, 1, 1, 2};
  for (std::size_t i = 0; i < flags.size(); ++i) {
    ASSERT_TRUE(scaler.Update(flags[i] != 0).ok());
    EXPECT_EQ(scaler.hysteresis(), after[i]) << "step " << i;
  }
  LossScaler consecutive = Make(Dynamic(256, 2, 2, true));
  const std::vector<int> flags2 = {1, 0, 1, 1, 0};
  const std::vector<std::int64_t> after2 = {1, 2, 1, 1, 2};
  for (std::size_t i = 0; i < flags2.size(); ++i) {
    ASSERT_TRUE(consecutive.Update(flags2[i] != 0).ok());
    EXPECT_EQ(consecutive.hysteresis(), after2[i]) << "step " << i;
  }
}

TEST(LossScaler, OverflowAtTheMinimumIsAnError) {
  LossScaler scaler = Make(Dynamic(2, 1000, 1));
  const auto first = scaler.Update(true);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->scale_after, 1.0);
  const std::string before = scaler.Serialize();
  const auto second = scaler.Update(true, "block.3.fc.weight");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("\"block.3.fc.weight\""));
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("smallest loss scale, 1"));
  EXPECT_EQ(scaler.Serialize(), before);
}

// Trap 6.
TEST(LossScaler, ADecreaseDoesNotRefillHysteresis) {
  EXPECT_EQ(Scales(Make(Dynamic(1024, 1000, 3)), {1, 1, 1, 1, 0, 1}),
            (std::vector<double>{1024, 1024, 512, 256, 256, 128}));
}

// Trap 6.
TEST(LossScaler, GrowsOneStepAfterTheWindow) {
  EXPECT_EQ(Scales(Make(Dynamic(8, 2, 1)), {1, 0, 0, 0, 0, 0}),
            (std::vector<double>{4, 4, 4, 8, 8, 16}));
}

// Trap 7: the gradients of a growth step were made under the old scale.
TEST(LossScaler, SaysTheScaleTheGradientsWereMadeUnder) {
  LossScaler scaler = Make(Dynamic(4, 1, 1));
  ASSERT_TRUE(scaler.Update(false).ok());
  const auto growth = scaler.Update(false);
  ASSERT_TRUE(growth.ok());
  EXPECT_EQ(growth->scale_during, 4.0);
  EXPECT_EQ(growth->scale_after, 8.0);
  EXPECT_FALSE(growth->skipped);
  EXPECT_EQ(growth->Describe(), "loss scale grows from 4 to 8");
}

// Trap 6: stage 0 has a machine of its own.
TEST(LossScaler, StageZeroHasNeitherHysteresisNorError) {
  LossScalerOptions options = Dynamic(4, 2, 5);
  options.kind = LossScaleKind::kDynamicPlain;
  EXPECT_EQ(Scales(Make(options), {1, 1, 1, 1, 0, 0, 0, 0}),
            (std::vector<double>{2, 1, 1, 1, 1, 1, 2, 2}));
}

TEST(LossScaler, StaticStaysAndStillSkips) {
  LossScalerOptions options;
  options.init_scale = 128;
  LossScaler scaler = Make(options);
  for (const bool overflow : {true, false, true, true}) {
    const auto update = scaler.Update(overflow);
    ASSERT_TRUE(update.ok());
    EXPECT_EQ(update->skipped, overflow);
    EXPECT_EQ(update->scale_after, 128.0);
  }
  EXPECT_FALSE(scaler.dynamic());
  EXPECT_EQ(LossScaler().scale(), 1.0);
}

TEST(LossScaler, DescribesASkippedStepInOneLine) {
  LossScaler scaler = Make(Dynamic(65536, 1000, 2));
  EXPECT_EQ(scaler.Update(true)->Describe(),
            "OVERFLOW: step skipped, loss scale stays at 65536, hysteresis "
            "falls from 2 to 1");
  EXPECT_EQ(scaler.Update(true)->Describe(),
            "OVERFLOW: step skipped, loss scale falls from 65536 to 32768");
  EXPECT_EQ(scaler.Update(false)->Describe(), "");
}

TEST(LossScaler, StateSurvivesItsBytes) {
  LossScaler scaler = Make(Dynamic(256, 3, 2));
  for (const bool overflow : {true, false, true, true, false, false}) {
    ASSERT_TRUE(scaler.Update(overflow).ok());
  }
  LossScaler restored = Make(Dynamic(256, 3, 2));
  ASSERT_EQ(scaler.Serialize().size(), 48U);
  ASSERT_TRUE(restored.Restore(scaler.Serialize()).ok());
  for (int i = 0; i < 20; ++i) {
    const auto a = scaler.Update(i == 11);
    const auto b = restored.Update(i == 11);
    EXPECT_EQ(a->scale_after, b->scale_after);
    EXPECT_EQ(scaler.Serialize(), restored.Serialize());
  }
}

TEST(LossScaler, RefusesBytesThatNoScalerHas) {
  LossScaler scaler = Make(Dynamic(256, 3, 2));
  const std::string good = scaler.Serialize();
  EXPECT_EQ(scaler.Restore("").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(scaler.Restore(good.substr(1)).code(), absl::StatusCode::kDataLoss);
  // Version, kind, flag, scale's sign, hysteresis, iteration.
  for (const std::size_t offset : {0U, 1U, 2U, 15U, 23U, 31U}) {
    std::string bad = good;
    bad[offset] = static_cast<char>(0x80);
    EXPECT_EQ(scaler.Restore(bad).code(), absl::StatusCode::kDataLoss)
        << "byte " << offset;
    EXPECT_EQ(scaler.Serialize(), good);
  }
  LossScaler constant;
  EXPECT_EQ(constant.Restore(good).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(LossScaler, AConstantIsTheConfigurationsToSay) {
  LossScalerOptions options;
  options.init_scale = 128;
  const std::string bytes = Make(options).Serialize();
  options.init_scale = 256;
  LossScaler scaler = Make(options);
  ASSERT_TRUE(scaler.Restore(bytes).ok());
  EXPECT_EQ(scaler.scale(), 256.0);
}

TEST(LossScaler, RefusesOptionsOutOfRange) {
  const auto refused = [](LossScalerOptions options) {
    return !LossScaler::Create(options).ok();
  };
  EXPECT_TRUE(refused(Dynamic(0, 2, 2)));
  EXPECT_TRUE(refused(Dynamic(std::numeric_limits<double>::infinity(), 2, 2)));
  EXPECT_TRUE(refused(Dynamic(std::nan(""), 2, 2)));
  EXPECT_TRUE(refused(Dynamic(2, 0, 2)));
  EXPECT_TRUE(refused(Dynamic(2, 2, 0)));
  LossScalerOptions options = Dynamic(2, 2, 2);
  options.min_scale = 0;
  EXPECT_TRUE(refused(options));
}

TEST(LossScaler, GrowthStopsBeforeInfinity) {
  LossScaler scaler = Make(Dynamic(std::ldexp(1.0, 1022), 1, 1));
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(scaler.Update(false).ok());
    ASSERT_TRUE(std::isfinite(scaler.scale()));
  }
}

}  // namespace
}  // namespace stowage::engine::precision
