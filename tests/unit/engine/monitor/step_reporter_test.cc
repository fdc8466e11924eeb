#include "engine/monitor/step_reporter.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "engine/monitor/process_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::engine::monitor {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class StepReporterTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "stowage-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    config_.csv_monitor = {true, "", "csv"};
    config_.train_batch_size = 8;
    options_.output_root = folder_;
    options_.print = [this](const std::string& line) {
      printed_.push_back(line);
    };
  }
  void TearDown() override { fs::remove_all(folder_); }

  StepReporter Make() {
    auto made = StepReporter::Create(config_, options_);
    EXPECT_TRUE(made.ok()) << made.status().ToString();
    return *std::move(made);
  }
  std::string Csv(const std::string& name) const {
    std::ifstream file(folder_ + "/csv/Train_Samples_" + name + ".csv");
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  static StepFacts Facts() {
    StepFacts facts;
    facts.step = 1;
    facts.skipped_steps = 2;
    facts.global_samples = 8;
    facts.loss = 1.5;
    facts.gradient_norm = 0.25;
    facts.lrs = {0.001, 0.002};
    facts.betas = {{0.9, 0.999}, {0.9, 0.999}};
    facts.loss_scale = 65536;
    facts.times = {
        .forward = 1, .backward = 5, .backward_allreduce = 2, .step = 3};
    facts.waits = {.params = 0.5, .server = 0.4, .disk = 0.3, .ranks = 0.2};
    return facts;
  }

  std::string folder_;
  config::Config config_;
  StepReporter::Options options_;
  std::vector<std::string> printed_;
};

TEST_F(StepReporterTest, WritesEveryEventOfAStep) {
  config_.precision = Dtype::kFp16;
  options_.tokens_per_sample = 16;
  options_.tiers = [] {
    return TierBytes{.rank_gathered_peak = 1,
                     .server_params = 2,
                     .server_gradients = 3,
                     .server_state = 4,
                     .on_disk = true,
                     .disk = 5,
                     .disk_read = 6,
                     .disk_written = 7};
  };
  StepReporter reporter = Make();
  reporter.Step(Facts(), 0.5);
  const std::pair<const char*, const char*> want[] = {
      {"train_loss", "1.5"},
      {"lr", "0.001"},
      {"grad_norm", "0.25"},
      {"loss_scale", "65536"},
      {"skipped_steps", "2"},
      {"samples", "8"},
      {"samples_per_second", "16.0"},
      {"tokens_per_second", "256.0"},
      {"elapsed_time_ms_optimizer_exposed", "3.5"},
      {"bytes_rank_gathered_peak", "1"},
      {"bytes_server_params", "2"},
      {"bytes_server_gradients", "3"},
      {"bytes_server_state", "4"},
      {"bytes_disk", "5"},
      {"bytes_disk_read", "6"},
      {"bytes_disk_written", "7"}};
  for (const auto& [name, value] : want) {
    EXPECT_EQ(Csv(name),
              std::string("step,") + name + "\r\n8," + value + "\r\n");
  }
  EXPECT_EQ(Csv("elapsed_time_ms_forward"), "");
  EXPECT_THAT(printed_, ElementsAre());
}

TEST_F(StepReporterTest, BytesAreAskedForOnceASecond) {
  int asked = 0;
  options_.tiers = [&asked]() -> std::optional<TierBytes> {
    ++asked;
    return std::nullopt;
  };
  StepReporter reporter = Make();
  for (int step = 0; step < 25; ++step) reporter.Step(Facts(), 0.1);
  EXPECT_EQ(asked, 3);
}

TEST_F(StepReporterTest, BreakdownSaysWhereTheTimeWent) {
  config_.wall_clock_breakdown = true;
  StepReporter reporter = Make();
  reporter.MicroBatch({.forward = 1, .backward = 5});
  reporter.Step(Facts(), 0.5);
  EXPECT_THAT(
      printed_,
      ElementsAre("[Rank 0] time (ms) | fwd_microstep: 1.00 | bwd_microstep: "
                  "5.00 | bwd_inner_microstep: 5.00 | bwd_allreduce_microstep: "
                  "0.00 | step_microstep: 0.00",
                  "[Rank 0] time (ms) | fwd: 1.00 | bwd: 5.00 | bwd_inner: "
                  "3.00 | bwd_allreduce: 2.00 | step: 3.00 | wait_params: 0.50 "
                  "| wait_server: 0.40 | wait_disk: 0.30 | wait_ranks: 0.20"));
  EXPECT_EQ(Csv("elapsed_time_ms_backward_inner"),
            "step,elapsed_time_ms_backward_inner\r\n8,3.0\r\n");
  EXPECT_EQ(Csv("elapsed_time_ms_step"),
            "step,elapsed_time_ms_step\r\n8,3.0\r\n");
}

TEST_F(StepReporterTest, MemoryLinesComeOnlyWhenAsked) {
  StepReporter silent = Make();
  silent.Memory("before forward");
  EXPECT_THAT(printed_, ElementsAre());
  config_.memory_breakdown = true;
  StepReporter reporter = Make();
  EXPECT_TRUE(reporter.wants_memory());
  reporter.Memory("before forward");
  ASSERT_EQ(printed_.size(), 1U);
  EXPECT_THAT(printed_[0], StartsWith("before forward\nMA "));
  EXPECT_THAT(printed_[0], HasSubstr("CPU Virtual Memory:  used = "));
}

TEST_F(StepReporterTest, OtherRanksSayNothing) {
  config_.wall_clock_breakdown = true;
  config_.memory_breakdown = true;
  options_.rank = 1;
  StepReporter reporter = Make();
  reporter.MicroBatch({});
  reporter.Memory("x");
  reporter.Step(Facts(), 0.5);
  EXPECT_THAT(printed_, ElementsAre());
  EXPECT_FALSE(fs::exists(folder_ + "/csv"));
}

TEST(ProcessMemory, IsThatOfThisProcess) {
  const MemoryUse before = ReadMemoryUse();
  EXPECT_GT(before.allocated_bytes, 1 << 20);
  EXPECT_GE(before.allocated_bytes_max, before.allocated_bytes);
  EXPECT_GT(before.host_total_bytes, before.host_used_bytes);
  constexpr std::size_t kBytes = std::size_t{64} << 20;
  std::vector<char> block(kBytes, 1);
  EXPECT_GE(ReadMemoryUse().allocated_bytes,
            before.allocated_bytes + static_cast<std::int64_t>(kBytes) / 2);
}

}  // namespace
}  // namespace stowage::engine::monitor
