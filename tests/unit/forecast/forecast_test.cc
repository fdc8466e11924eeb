#include "forecast/forecast.h"

#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>

#include "engine/plan/bucket_plan.h"
#include "forecast/gpt_layout.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/admission.h"

namespace stowage::forecast {
namespace {

namespace config = engine::config;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr GptShape kDemo = {
    .layers = 6, .width = 384, .heads = 6, .context = 128};

Workload Make(const std::string& more, const GptShape& shape = kDemo,
              Dtype dtype = Dtype::kBf16, int ranks = 2) {
  const auto document = config::ParseConfig(
      "{\"train_micro_batch_size_per_gpu\": 4, " + more + "}", "test.json");
  EXPECT_TRUE(document.ok()) << document.status().ToString();
  config::TrainerValues values;
  values.world_size = ranks;
  values.precision = {dtype, true};
  auto resolution = config::Resolve(*document, values);
  EXPECT_TRUE(resolution.ok()) << resolution.status().ToString();
  Workload workload;
  workload.config = std::move(resolution->config);
  workload.layout = Layout::Create(GptLayout(shape, dtype)).value();
  workload.local_ranks = ranks;
  return workload;
}

constexpr char kCpu3[] =
    "\"zero_optimization\": {\"stage\": 3, \"offload_optimizer\": {\"device\": "
    "\"cpu\"}, \"offload_param\": {\"device\": \"cpu\"}}";
constexpr char kNvme3[] =
    "\"zero_optimization\": {\"stage\": 3, \"offload_optimizer\": {\"device\": "
    "\"nvme\", \"nvme_path\": \"/d\"}, \"offload_param\": {\"device\": "
    "\"nvme\", \"nvme_path\": \"/d\", \"max_in_cpu\": 0}}";

Machine Measured() {
  Machine machine;
  machine.cores = 2;
  machine.kernels = KernelCeilings{2, "avx2", 40e9, 30e9, 20e9, 4e9};
  machine.compute = RankCompute{0.05, 0.1, std::int64_t{100} << 20};
  machine.disk = DiskCeilings{1e9, 1e9, 1e9};
  return machine;
}

TEST(GptLayout, HasAsManyParametersAsTheFormulaSays) {
  for (const GptShape& shape :
       {kDemo, GptShape{12, 768, 12, 128, 256}, GptShape{1, 64, 1, 2, 10}}) {
    const Layout layout =
        Layout::Create(GptLayout(shape, Dtype::kBf16)).value();
    EXPECT_EQ(layout.parameter_count(), ParameterCount(shape));
    EXPECT_EQ(layout.unit_count(), shape.layers + 2);
  }
}

TEST(GptLayout, AShapeOfEverySizeIsNear) {
  for (const double size : {1e6, 1e7, 8.5e7, 1.3e9, 7e9, 1.75e11}) {
    const auto wanted = static_cast<std::int64_t>(size);
    const GptShape shape = ShapeOfSize(wanted, 128, 256);
    EXPECT_EQ(shape.width % shape.heads, 0);
    EXPECT_NEAR(static_cast<double>(ParameterCount(shape)) / size, 1, 0.15)
        << size << ": " << shape.layers << " layers of " << shape.width;
  }
}

TEST(Forecast, ServersPartIsTheServersOwnArithmetic) {
  const Workload workload = Make(kCpu3);
  const auto forecast = Predict(workload, Machine{});
  ASSERT_TRUE(forecast.ok()) << forecast.status().ToString();
  RunSpec run;
  run.world_size = run.local_ranks = 2;
  const core::MemoryNeed need =
      core::NeedOf(workload.layout, run, core::PlanSlots(run, 6));
  EXPECT_EQ(forecast->server_state, need.state_bytes);
  EXPECT_EQ(forecast->server_params, need.param_bytes);
  EXPECT_EQ(forecast->server_gradients, need.run_bytes());
  EXPECT_GE(forecast->server_state, workload.layout.parameter_count() * 12);
  EXPECT_EQ(forecast->disk_space, 0);
  EXPECT_EQ(forecast->rank_params, 0);
  EXPECT_EQ(forecast->rank_gathered, workload.layout.total_elems() * 2);
  EXPECT_LT(forecast->step, 0) << "nothing was measured";
  EXPECT_THAT(forecast->does_not_fit, IsEmpty());
}

TEST(Forecast, StageTwoHoldsACopyOnEachRank) {
  const Workload workload = Make(
      "\"zero_optimization\": {\"stage\": 2, \"offload_optimizer\": "
      "{\"device\": \"cpu\"}}");
  const auto forecast = Predict(workload, Measured());
  ASSERT_TRUE(forecast.ok());
  EXPECT_EQ(forecast->rank_params, workload.layout.total_elems() * 2);
  EXPECT_EQ(forecast->rank_gathered, 0);
  EXPECT_GT(forecast->rank_private,
            forecast->rank_params + Measured().compute->process_bytes);
}

TEST(Forecast, LiveParametersBoundWhatIsGathered) {
  const auto forecast = Predict(
      Make("\"zero_optimization\": {\"stage\": 3, "
           "\"stage3_max_live_parameters\": 1, \"offload_optimizer\": "
           "{\"device\": \"cpu\"}, \"offload_param\": {\"device\": \"cpu\"}}"),
      Machine{});
  ASSERT_TRUE(forecast.ok());
  const Layout layout = Layout::Create(GptLayout(kDemo, Dtype::kBf16)).value();
  EXPECT_EQ(forecast->rank_gathered, layout.unit_elems_max() * 2);
}

TEST(Forecast, ProcessGroupsCostARankItsOwnCopies) {
  const std::string zero =
      "\"zero_optimization\": {\"stage\": 3, \"reduce_bucket_size\": 1000, "
      "\"offload_optimizer\": {\"device\": \"cpu\"}, \"offload_param\": "
      "{\"device\": \"cpu\"}}";
  const auto segments = Predict(Make(zero), Measured());
  const auto c10d = Predict(
      Make(zero + ", \"stowage\": {\"exchange\": \"c10d\"}"), Measured());
  ASSERT_TRUE(segments.ok() && c10d.ok()) << c10d.status();
  const Layout layout = Layout::Create(GptLayout(kDemo, Dtype::kBf16)).value();
  EXPECT_EQ(segments->rank_exchange, 0);
  // All that is gathered; a unit's gradients; what is under way, both ways.
  EXPECT_EQ(c10d->rank_exchange,
            2 * (layout.total_elems() + layout.unit_elems_max()) +
                2 * plan::kReduceUnderWayBytes);
  EXPECT_EQ(c10d->rank_private - segments->rank_private, c10d->rank_exchange);
  // Both ranks' gradients reach the server as one sum.
  EXPECT_EQ(2 * c10d->server_gradients, segments->server_gradients);
}

TEST(Forecast, StagesThatReduceOnceKeepSumsUntilThen) {
  const auto exchange_of = [](int stage, int accumulation) {
    const auto forecast = Predict(
        Make(absl::StrCat("\"gradient_accumulation_steps\": ", accumulation,
                          ", \"zero_optimization\": {\"stage\": ", stage,
                          "}, \"stowage\": {\"exchange\": \"c10d\"}")),
        Measured());
    EXPECT_TRUE(forecast.ok()) << forecast.status();
    return forecast->rank_exchange;
  };
  const Layout layout = Layout::Create(GptLayout(kDemo, Dtype::kBf16)).value();
  for (const int stage : {0, 1, 2}) {
    EXPECT_EQ(exchange_of(stage, 4) - exchange_of(stage, 1),
              stage < 2 ? 4 * layout.state_elems() : 0)
        << stage;
  }
}

std::int64_t Moved(const Forecast& forecast, const std::string& what) {
  for (const Amount& amount : forecast.moved) {
    if (what == amount.what) return amount.bytes;
  }
  return 0;
}

TEST(Forecast, SignsAreASixteenthOfWhatGradientsSend) {
  const auto forecast = Predict(
      Make("\"optimizer\": {\"type\": \"OneBitAdam\", \"params\": {\"lr\": "
           "0.001, "
           "\"freeze_step\": 200}}, \"zero_optimization\": {\"stage\": 0}, "
           "\"communication_data_type\": \"bf16\""),
      Measured());
  ASSERT_TRUE(forecast.ok()) << forecast.status();
  const auto gradients = static_cast<double>(
      Moved(*forecast, "sent by a rank: gradients, to step 200"));
  const auto signs = static_cast<double>(
      Moved(*forecast, "sent by a rank: signs, from step 201"));
  EXPECT_GT(signs, 0);
  EXPECT_NEAR(gradients / signs, 16, 0.5);
  // Nothing is sent where the ranks of one host share segments.
  const auto segments = Predict(Make(kCpu3), Measured());
  ASSERT_TRUE(segments.ok());
  EXPECT_EQ(Moved(*segments, "sent by a rank: gradients"), 0);
}

TEST(Forecast, AStepIsComputePlusWhatIsExposed) {
  const auto once = Predict(Make(kCpu3), Measured());
  ASSERT_TRUE(once.ok());
  EXPECT_DOUBLE_EQ(once->forward, 0.05);
  EXPECT_DOUBLE_EQ(once->backward, 0.1);
  EXPECT_GT(once->optimizer_exposed, 0);
  EXPECT_DOUBLE_EQ(once->step,
                   once->forward + once->backward + once->optimizer_exposed);
  const auto twice =
      Predict(Make(std::string("\"gradient_accumulation_steps\": 2, ") + kCpu3),
              Measured());
  ASSERT_TRUE(twice.ok());
  EXPECT_DOUBLE_EQ(twice->forward, 0.1);
  EXPECT_GT(twice->optimizer_exposed, once->optimizer_exposed);
  EXPECT_LT(twice->optimizer_exposed, 2 * once->optimizer_exposed);
}

TEST(Forecast, IdleCoresHideTheServer) {
  Machine wide = Measured();
  wide.cores = 64;
  const auto busy = Predict(Make(kCpu3), Measured());
  const auto idle = Predict(Make(kCpu3), wide);
  ASSERT_TRUE(busy.ok() && idle.ok());
  EXPECT_LT(idle->optimizer_exposed, busy->optimizer_exposed);
}

TEST(Forecast, DiskSaysSpaceTrafficAndWear) {
  const Workload workload = Make(kNvme3);
  const auto forecast = Predict(workload, Measured());
  ASSERT_TRUE(forecast.ok()) << forecast.status().ToString();
  const std::int64_t state = workload.layout.state_elems() * 12;
  EXPECT_GE(forecast->disk_space, 2 * state);
  EXPECT_GE(forecast->disk_read, state);
  EXPECT_GE(forecast->disk_written, state);
  EXPECT_NEAR(
      forecast->wear_bytes_per_day,
      static_cast<double>(forecast->disk_written) * 86400 / forecast->step, 1);
  // A slower disk, a slower step and less wear.
  Machine slow = Measured();
  slow.disk->mixed_bytes_per_second = 1e8;
  const auto slower = Predict(workload, slow);
  ASSERT_TRUE(slower.ok());
  EXPECT_GT(slower->step, forecast->step);
  EXPECT_LT(slower->wear_bytes_per_day, forecast->wear_bytes_per_day);
}

TEST(Forecast, ABudgetBecomesCacheAndSparesTheDisk) {
  const auto none = Predict(Make(kNvme3), Measured());
  const auto some =
      Predict(Make(std::string(kNvme3) +
                   ", \"stowage\": {\"memory_budget\": \"250MiB\"}"),
              Measured());
  ASSERT_TRUE(none.ok());
  ASSERT_TRUE(some.ok()) << some.status().ToString();
  EXPECT_LT(some->disk_written, none->disk_written);
  const auto least =
      Predict(Make(std::string(kNvme3) +
                   ", \"stowage\": {\"memory_budget\": \"1MiB\"}"),
              Measured());
  EXPECT_EQ(least.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Forecast, WhatDoesNotFitSaysWhatToChange) {
  Machine small;
  small.memory_bytes = 1 << 20;
  small.segment_bytes = 1 << 20;
  small.disk_free_bytes = 1 << 20;
  const auto cpu = Predict(Make(kCpu3), small);
  ASSERT_TRUE(cpu.ok());
  EXPECT_THAT(cpu->does_not_fit,
              Contains(HasSubstr("offload_optimizer.device \"nvme\"")));
  EXPECT_THAT(cpu->does_not_fit, Contains(HasSubstr("stowage.shm_dir")));
  const auto nvme = Predict(Make(kNvme3), small);
  ASSERT_TRUE(nvme.ok());
  EXPECT_THAT(nvme->does_not_fit, Contains(HasSubstr("stowage.kept_steps")));
}

TEST(Ceilings, KernelsAreMeasured) {
  const KernelCeilings ceilings = MeasureKernels(1, 0.01);
  EXPECT_EQ(ceilings.threads, 1);
  EXPECT_GT(ceilings.adam_bytes_per_second, 1e8);
  EXPECT_GT(ceilings.norm_bytes_per_second, 1e8);
  EXPECT_GT(ceilings.copy_bytes_per_second, 1e8);
  EXPECT_GT(ceilings.fresh_bytes_per_second, 1e7);
}

TEST(Ceilings, AFolderThatIsNotThereIsAnError) {
  EXPECT_THAT(std::string(MeasureDisk("/nowhere", 0.01).status().message()),
              HasSubstr("/nowhere"));
}

}  // namespace
}  // namespace stowage::forecast
