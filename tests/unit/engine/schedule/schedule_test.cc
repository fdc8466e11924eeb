#include "engine/schedule/schedule.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::engine::schedule {
namespace {

using ::testing::HasSubstr;

// Values at k = last_batch_iteration; applied steps are k + 1.
struct Golden {
  std::int64_t k;
  double lr;
};

Schedule Make(const ScheduleSpec& spec, double lr = 1e-3) {
  auto schedule = Schedule::Create(spec, {{lr, {}}});
  EXPECT_TRUE(schedule.ok()) << schedule.status().ToString();
  return *std::move(schedule);
}

void ExpectGolden(const Schedule& schedule, const std::vector<Golden>& golden,
                  double relative = 1e-12) {
  for (const Golden& g : golden) {
    EXPECT_LE(std::fabs(schedule.Lr(g.k + 1, 0) - g.lr),
              relative * std::fabs(g.lr))
        << "k = " << g.k << ": got " << schedule.Lr(g.k + 1, 0) << ", want "
        << g.lr;
  }
}

ScheduleSpec Warmup(ScheduleType type) {
  ScheduleSpec spec;
  spec.type = type;
  spec.warmup_max_lr = {0.001};
  spec.warmup_num_steps = 10;
  spec.total_num_steps = 20;
  return spec;
}

ScheduleSpec OneCycle() {
  ScheduleSpec spec;
  spec.type = ScheduleType::kOneCycle;
  spec.cycle_min_lr = {0.001};
  spec.cycle_max_lr = {0.01};
  spec.cycle_first_step_size = 4;
  spec.cycle_second_step_size = 6;
  spec.decay_step_size = 2;
  spec.decay_lr_rate = 0.5;
  spec.decay_mom_rate = 0.1;
  return spec;
}

// Section 13.1 of the reference.
TEST(Schedule, GoldenVectors) {
  ScheduleSpec spec = Warmup(ScheduleType::kWarmupLr);
  ExpectGolden(Make(spec), {{-1, 0},
                            {0, 0},
                            {1, 0.00030102999566398113},
                            {2, 0.0004771212547196624},
                            {5, 0.0007781512503836435},
                            {8, 0.0009542425094393248},
                            {9, 0.0009999999999999998},
                            {10, 0.001},
                            {1000, 0.001}});
  spec.warmup_linear = true;
  ExpectGolden(
      Make(spec),
      {{-1, 0}, {0, 0}, {1, 1e-4}, {9, 0.0009000000000000001}, {10, 0.001}});

  ExpectGolden(Make(Warmup(ScheduleType::kWarmupDecayLr)),
               {{9, 0.0009999999999999998},
                {10, 0.001},
                {11, 0.0009000000000000001},
                {15, 0.0005},
                {19, 0.0001},
                {20, 0},
                {500, 0}});

  ExpectGolden(Make(Warmup(ScheduleType::kWarmupCosineLr), 0.01),
               {{-1, 0},
                {0, 0},
                {1, 0.0030102999566398113},
                {9, 0.009999999999999998},
                {10, 0.00975530705321762},
                {11, 0.00904518046337755},
                {15, 0.003455569536622451},
                {18, 0.0002456929467823799},
                {19, 1.0000000000000002e-06},
                {20, 1.0000000000000002e-06},
                {21, 1.0000000000000002e-06}});

  ScheduleSpec range;
  range.type = ScheduleType::kLrRangeTest;
  range.lr_range_test_step_size = 5;
  ExpectGolden(Make(range),
               {{-1, 0.001}, {0, 0.0012}, {4, 0.002}, {5, 0.0022}, {9, 0.003}});
  range.lr_range_test_staircase = true;
  ExpectGolden(Make(range),
               {{0, 0.001}, {3, 0.001}, {4, 0.002}, {8, 0.002}, {9, 0.003}});

  ExpectGolden(Make(OneCycle()), {{-1, .001},
                                  {0, .00325},
                                  {1, .0055},
                                  {2, .00775},
                                  {3, .01},
                                  {4, .0085},
                                  {5, .007},
                                  {6, .0055},
                                  {7, .004},
                                  {8, .0025},
                                  {9, .001},
                                  {10, .0008},
                                  {13, .0005},
                                  {15, .0004}});
}

TEST(Schedule, OneCycleOverwritesBothBetas) {
  const Schedule schedule = Make(OneCycle());
  EXPECT_TRUE(schedule.schedules_momentum());
  const std::vector<std::pair<std::int64_t, double>> golden = {
      {0, .875}, {1, .85}, {2, .825}, {3, .8}, {6, .85}, {9, .9}, {10, .945}};
  for (const auto& [k, beta1] : golden) {
    EXPECT_NEAR(schedule.BetasAt(k + 1, 0).beta1, beta1, 1e-12) << "k = " << k;
    EXPECT_EQ(schedule.BetasAt(k + 1, 0).beta2, 0.99);
  }
  EXPECT_EQ(schedule.BetasAt(0, 0), (Betas{0.8, 0.99}));

  ScheduleSpec off = OneCycle();
  off.cycle_momentum = false;
  EXPECT_EQ(Make(off).BetasAt(5, 0), (Betas{0.9, 0.999}));
  EXPECT_FALSE(Make(off).schedules_momentum());
}

TEST(Schedule, MomentumCanPassOne) {
  const Schedule schedule = Make(OneCycle());
  EXPECT_NEAR(schedule.BetasAt(13, 0).beta1, 1.035, 1e-12);
  EXPECT_NEAR(schedule.BetasAt(16, 0).beta1, 1.17, 1e-12);
}

TEST(Schedule, OneCycleStairs) {
  ScheduleSpec spec = OneCycle();
  spec.cycle_first_stair_count = 2;
  spec.cycle_second_stair_count = 3;
  const Schedule schedule = Make(spec);
  // Up: floor(b * 2 / 4) / 2 for b = 1..4; the top is a position on the way up
  // still. Down: floor((10 - b) * 3 / 6) / 3 for b = 5..9, 0 at the end.
  const std::vector<double> factors = {0,      0.5,    0.5,    1, 2. / 3,
                                       2. / 3, 1. / 3, 1. / 3, 0};
  for (std::size_t k = 0; k < factors.size(); ++k) {
    EXPECT_NEAR(schedule.Lr(static_cast<std::int64_t>(k) + 1, 0),
                0.001 + 0.009 * factors[k], 1e-12)
        << "k = " << k;
  }
}

// Trap 19: the construction value and k = 0 are both the minimum.
TEST(Schedule, TwoStepsAtTheMinimum) {
  ScheduleSpec spec = Warmup(ScheduleType::kWarmupLr);
  spec.warmup_min_lr = {1e-5};
  for (const bool linear : {false, true}) {
    spec.warmup_linear = linear;
    const Schedule schedule = Make(spec);
    EXPECT_EQ(schedule.Lr(0, 0), 1e-5);
    EXPECT_EQ(schedule.Lr(1, 0), 1e-5);
    EXPECT_GT(schedule.Lr(2, 0), 1e-5);
  }
}

TEST(Schedule, OneWarmupStepCountsAsTwo) {
  ScheduleSpec spec = Warmup(ScheduleType::kWarmupLr);
  spec.warmup_num_steps = 1;
  ExpectGolden(Make(spec), {{-1, 0}, {0, 0}, {1, 0.001}, {2, 0.001}});
}

TEST(Schedule, AbsentMaximumDependsOnTheType) {
  ScheduleSpec spec = Warmup(ScheduleType::kWarmupLr);
  spec.warmup_max_lr.clear();
  EXPECT_EQ(Make(spec, 0.5).Lr(100, 0), 0.5);
  spec.type = ScheduleType::kWarmupDecayLr;
  EXPECT_DOUBLE_EQ(Make(spec, 0.5).Lr(11, 0), 0.001);
}

TEST(Schedule, DecaysToTheMinimumNotToZero) {
  ScheduleSpec spec = Warmup(ScheduleType::kWarmupDecayLr);
  spec.warmup_min_lr = {1e-4};
  EXPECT_EQ(Make(spec).Lr(100, 0), 1e-4);
}

TEST(Schedule, ConstantWithoutAScheduler) {
  const auto schedule = Schedule::Create({}, {{0.1, {}}, {0.2, {0.8, 0.95}}});
  ASSERT_TRUE(schedule.ok());
  EXPECT_EQ(schedule->Lr(0, 0), 0.1);
  EXPECT_EQ(schedule->Lr(1'000'000, 1), 0.2);
  EXPECT_EQ(schedule->BetasAt(3, 1), (Betas{0.8, 0.95}));
  EXPECT_EQ(Schedule().Lr(5, 0), 1e-3);
}

TEST(Schedule, ListsPerGroup) {
  ScheduleSpec spec = Warmup(ScheduleType::kWarmupLr);
  spec.warmup_min_lr = {1e-5, 2e-5};
  spec.warmup_max_lr = {1e-3, 2e-3};
  const auto schedule = Schedule::Create(spec, {{}, {}});
  ASSERT_TRUE(schedule.ok()) << schedule.status().ToString();
  EXPECT_EQ(schedule->Lr(0, 1), 2e-5);
  EXPECT_DOUBLE_EQ(schedule->Lr(50, 0), 1e-3);
  EXPECT_DOUBLE_EQ(schedule->Lr(50, 1), 2e-3);

  const auto refused = Schedule::Create(spec, {{}, {}, {}});
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("warmup_min_lr has 2 values: expected one, or one for "
                        "each of the 3 parameter groups"));
}

TEST(Schedule, RefusesWhatCannotBe) {
  const auto refused = [](ScheduleSpec spec) {
    const auto schedule = Schedule::Create(spec, {{}});
    return schedule.ok() ? std::string()
                         : std::string(schedule.status().message());
  };
  ScheduleSpec spec = Warmup(ScheduleType::kWarmupLr);
  spec.warmup_num_steps = 0;
  EXPECT_THAT(refused(spec), HasSubstr("warmup_num_steps = 0"));
  spec = Warmup(ScheduleType::kWarmupCosineLr);
  spec.total_num_steps = 0;
  EXPECT_THAT(refused(spec), HasSubstr("total_num_steps"));
  spec = OneCycle();
  spec.cycle_max_lr.clear();
  EXPECT_THAT(refused(spec), HasSubstr("cycle_max_lr is required"));
  spec = OneCycle();
  spec.cycle_first_step_size = 0;
  EXPECT_THAT(refused(spec), HasSubstr("cycle_first_step_size"));
  spec = OneCycle();
  spec.decay_lr_rate = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(refused(spec), HasSubstr("decay_lr_rate"));
  EXPECT_FALSE(Schedule::Create({}, {}).ok());
  EXPECT_FALSE(ParseScheduleType("warmuplr").ok());
}

TEST(Schedule, FarStepsStayFinite) {
  for (const ScheduleType type :
       {ScheduleType::kWarmupLr, ScheduleType::kWarmupDecayLr,
        ScheduleType::kWarmupCosineLr}) {
    const double lr = Make(Warmup(type)).Lr(std::int64_t{1} << 60, 0);
    EXPECT_TRUE(std::isfinite(lr) && lr >= 0);
  }
  EXPECT_TRUE(std::isfinite(Make(OneCycle()).Lr(std::int64_t{1} << 60, 0)));
}

// The reference, section 13.1: release 0.18.9 at k = 20 and 21.
TEST(Schedule, OlderReleasesOscillateAndIgnoreStairs) {
  ScheduleSpec cosine;
  cosine.type = ScheduleType::kWarmupCosineLr;
  cosine.warmup_num_steps = 10;
  cosine.total_num_steps = 20;
  cosine.cosine_oscillates = true;
  const auto waves = Schedule::Create(cosine, {{0.01, {}}});
  ASSERT_TRUE(waves.ok());
  EXPECT_NEAR(waves->Lr(21, 0), 0.00024569294678237883, 1e-16);
  EXPECT_NEAR(waves->Lr(22, 0), 0.0009558195366224497, 1e-15);

  ScheduleSpec cycle;
  cycle.type = ScheduleType::kOneCycle;
  cycle.cycle_min_lr = {0.001};
  cycle.cycle_max_lr = {0.01};
  cycle.cycle_first_step_size = 4;
  cycle.cycle_first_stair_count = 2;
  const auto floors = Schedule::Create(cycle, {{0.01, {}}});
  ASSERT_TRUE(floors.ok());
  EXPECT_DOUBLE_EQ(floors->Lr(1, 0), 0.001);
  cycle.ignore_stairs = true;
  const auto slopes = Schedule::Create(cycle, {{0.01, {}}});
  ASSERT_TRUE(slopes.ok());
  EXPECT_DOUBLE_EQ(slopes->Lr(1, 0), 0.00325);
}

}  // namespace
}  // namespace stowage::engine::schedule
