#include "engine/monitor/step_log.h"

#include <vector>

#include "gtest/gtest.h"

namespace stowage::engine::monitor {
namespace {

TEST(StepLog, StepLineReadsAsDeepSpeeds) {
  const std::vector<double> lrs = {0.001};
  const std::vector<schedule::Betas> betas = {{0.9, 0.999}};
  EXPECT_EQ(StepLine(10, 0, lrs, betas),
            "step=10, skipped=0, lr=[0.001], mom=[(0.9, 0.999)]");
  const std::vector<double> two = {1e-5, 0.0};
  const std::vector<schedule::Betas> both = {{0.9, 0.999}, {0.8, 0.95}};
  EXPECT_EQ(StepLine(3, 2, two, both),
            "step=3, skipped=2, lr=[1e-05, 0.0], mom=[(0.9, 0.999), (0.8, "
            "0.95)]");
}

// Trap 21.
TEST(StepLog, StepLineIsDue) {
  EXPECT_TRUE(StepLineDue(100, 100));
  EXPECT_FALSE(StepLineDue(101, 100));
  EXPECT_TRUE(StepLineDue(0, 100));
  EXPECT_FALSE(StepLineDue(100, 0));
}

TEST(StepLog, TimeLine) {
  const std::vector<NamedTime> times = {{"fwd_microstep", 1.234},
                                        {"bwd_microstep", 22.0}};
  EXPECT_EQ(TimeLine(0, times),
            "[Rank 0] time (ms) | fwd_microstep: 1.23 | bwd_microstep: 22.00");
}

TEST(StepLog, ThroughputLine) {
  EXPECT_EQ(
      ThroughputLine({0, 4, 2, 1.5, 1.25, 1 << 29, 1 << 30}),
      "epoch=0/micro_step=4/global_step=2, RunningAvgSamplesPerSec=1.5, "
      "CurrSamplesPerSec=1.25, MemAllocated=0.5GB, MaxMemAllocated=1.0GB");
}

TEST(StepLog, MemoryLines) {
  EXPECT_EQ(MemoryLines("before forward",
                        {1 << 29, 1 << 30, 1 << 30, 1 << 30,
                         std::int64_t{3} << 30, std::int64_t{8} << 30}),
            "before forward\nMA 0.5 GB  Max_MA 1.0 GB  CA 1.0 GB  Max_CA 1.0 "
            "GB\nCPU Virtual Memory:  used = 3.0 GB, percent = 37.5%");
}

}  // namespace
}  // namespace stowage::engine::monitor
