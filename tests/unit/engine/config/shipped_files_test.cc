// The files of configs/ resolve as their users expect.

#include <cstdlib>
#include <string>
#include <vector>

#include "engine/config/config.h"
#include "engine/config/json_reader.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/config/config_testing.h"

namespace stowage::engine::config {
namespace {

absl::StatusOr<Resolution> ResolveShipped(const std::string& name,
                                          const TrainerValues& trainer) {
  const char* source = std::getenv("STOWAGE_SOURCE_DIR");
  const auto document = ReadConfigFile(
      std::string(source == nullptr ? "." : source) + "/configs/" + name);
  if (!document.ok()) return document.status();
  return Resolve(*document, trainer);
}

std::vector<std::string> Warned(const Resolution& resolution) {
  std::vector<std::string> out;
  for (const Warning& warning : resolution.warnings) {
    out.push_back(warning.path);
  }
  return out;
}

TEST(ShippedFiles, Stage3ResolvesFromTheTrainer) {
  const auto resolution = ResolveShipped("stage3_test.json", FullTrainer());
  ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
  const Config& c = resolution->config;
  EXPECT_EQ(c.world_size, 2);
  EXPECT_EQ(c.train_micro_batch_size_per_gpu, 4);
  EXPECT_EQ(c.gradient_accumulation_steps, 3);
  EXPECT_EQ(c.train_batch_size, 24);
  EXPECT_EQ(c.precision, Dtype::kFp16);
  EXPECT_TRUE(c.fp16.enabled);
  EXPECT_FALSE(c.fp16.auto_cast);
  EXPECT_EQ(c.fp16.loss_scale, 0);
  EXPECT_EQ(c.fp16.initial_scale_power, 16);
  EXPECT_EQ(c.fp16.loss_scale_window, 1000);
  EXPECT_EQ(c.fp16.hysteresis, 2);
  EXPECT_EQ(c.fp16.min_loss_scale, 1);
  EXPECT_EQ(c.gradient_clipping, 0.5);
  EXPECT_EQ(c.optimizer.type, OptimizerType::kAdamW);
  EXPECT_EQ(c.optimizer.lr, 3e-4);
  EXPECT_EQ(c.optimizer.betas, (schedule::Betas{0.85, 0.995}));
  EXPECT_EQ(c.optimizer.eps, 1e-7);
  EXPECT_EQ(c.optimizer.weight_decay, 0.05);
  EXPECT_TRUE(c.optimizer.decoupled_weight_decay);
  EXPECT_EQ(c.scheduler.type, schedule::ScheduleType::kWarmupLr);
  EXPECT_EQ(c.scheduler.warmup_min_lr, std::vector<double>{0.0});
  EXPECT_EQ(c.scheduler.warmup_max_lr, std::vector<double>{3e-4});
  EXPECT_EQ(c.scheduler.warmup_num_steps, 10);
  EXPECT_FALSE(c.scheduler.warmup_linear);
  const ZeroOptimization& z = c.zero_optimization;
  EXPECT_EQ(z.stage, 3);
  EXPECT_EQ(z.offload_optimizer.device, OffloadDevice::kCpu);
  EXPECT_EQ(z.offload_param.device, OffloadDevice::kCpu);
  EXPECT_TRUE(z.offload_param.pin_memory);
  EXPECT_EQ(z.sub_group_size, 1'000'000'000);
  EXPECT_EQ(z.reduce_bucket_size, 512 * 512);
  EXPECT_EQ(z.stage3_prefetch_bucket_size, 235'929);  // int(0.9 * 512^2)
  EXPECT_EQ(z.stage3_param_persistence_threshold, 5120);
  EXPECT_EQ(z.stage3_max_live_parameters, 1'000'000'000);
  EXPECT_EQ(z.stage3_max_reuse_distance, 1'000'000'000);
  EXPECT_TRUE(z.stage3_gather_16bit_weights_on_model_save);
  EXPECT_TRUE(c.csv_monitor.enabled);
  EXPECT_EQ(c.csv_monitor.output_path, "");
  EXPECT_EQ(c.csv_monitor.job_name, "stage3_test");
  EXPECT_EQ(c.steps_per_print, 100);
  EXPECT_FALSE(c.wall_clock_breakdown);
  EXPECT_TRUE(CheckSupported(c).ok()) << CheckSupported(c).ToString();
  EXPECT_EQ(Warned(*resolution),
            (std::vector<std::string>{"zero_optimization.reduce_bucket_size",
                                      "zero_optimization.sub_group_size"}));
  EXPECT_EQ(FindResolved(*resolution, "optimizer.params.lr")->source, "--lr");
  EXPECT_EQ(FindResolved(*resolution, "train_batch_size")->origin,
            Origin::kAuto);
}

TEST(ShippedFiles, Stage2ResolvesFromTheTrainer) {
  TrainerValues trainer = FullTrainer();
  trainer.hidden_size = {};  // nothing in this file needs it
  const auto resolution = ResolveShipped("stage2_test.json", trainer);
  ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
  const Config& c = resolution->config;
  EXPECT_EQ(c.zero_optimization.stage, 2);
  EXPECT_EQ(c.zero_optimization.offload_optimizer.device, OffloadDevice::kCpu);
  EXPECT_EQ(c.zero_optimization.offload_param.device, OffloadDevice::kNone);
  EXPECT_EQ(c.zero_optimization.reduce_bucket_size, 200'000'000);
  EXPECT_EQ(c.zero_optimization.allgather_bucket_size, 200'000'000);
  EXPECT_EQ(c.csv_monitor.job_name, "stage2_test");
  EXPECT_TRUE(CheckSupported(c).ok()) << CheckSupported(c).ToString();
  EXPECT_EQ(
      Warned(*resolution),
      (std::vector<std::string>{"zero_optimization.reduce_bucket_size",
                                "zero_optimization.allgather_bucket_size"}));
}

TEST(ShippedFiles, Stage3NvmePutsStateAndParametersOnDisk) {
  const auto resolution = ResolveShipped("stage3_nvme.json", FullTrainer());
  ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
  EXPECT_TRUE(CheckSupported(resolution->config).ok());
  const StorageSpec storage = ToStorageSpec(resolution->config, 2);
  EXPECT_EQ(storage.optimizer, Placement::kNvme);
  EXPECT_EQ(storage.params, Placement::kNvme);
  EXPECT_EQ(storage.nvme_paths, std::vector<std::string>{"/var/tmp/stowage"});
  EXPECT_EQ(storage.max_in_cpu_elems, 0);
  EXPECT_EQ(storage.aio.queue_depth, 16);
  EXPECT_EQ(storage.kept_steps, 2);
  EXPECT_TRUE(storage.pipeline_read && storage.pipeline_write);
  EXPECT_EQ(resolution->config.stowage.durability, Durability::kPower);
  EXPECT_EQ(Warned(*resolution),
            std::vector<std::string>{"zero_optimization.reduce_bucket_size"});
}

TEST(ShippedFiles, RunInEveryPrecision) {
  for (const char* name : {"stage2_test.json", "stage3_test.json"}) {
    for (const Dtype dtype : {Dtype::kFp32, Dtype::kFp16, Dtype::kBf16}) {
      for (const bool by_user : {false, true}) {
        TrainerValues trainer = FullTrainer();
        trainer.precision = {dtype, by_user};
        const auto resolution = ResolveShipped(name, trainer);
        ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
        EXPECT_EQ(resolution->config.precision, dtype);
        EXPECT_EQ(resolution->config.fp16.enabled, dtype == Dtype::kFp16);
        EXPECT_EQ(resolution->config.bf16.enabled, dtype == Dtype::kBf16);
      }
    }
  }
}

TEST(ShippedFiles, ExplainAsTextAndJson) {
  const auto resolution = ResolveShipped("stage3_test.json", FullTrainer());
  ASSERT_TRUE(resolution.ok());
  const std::string text = ExplainText(*resolution);
  EXPECT_NE(text.find("\noptimizer.params\n  lr "), std::string::npos) << text;
  EXPECT_NE(text.find("auto: --lr"), std::string::npos);
  // Values that stand for something else say what.
  EXPECT_NE(text.find("default: a private server\n"), std::string::npos);
  EXPECT_NE(text.find("default: one a core\n"), std::string::npos);
  EXPECT_NE(text.find("  no limit "), std::string::npos);
  EXPECT_EQ(text.find(std::to_string(INT64_MAX)), std::string::npos);
  EXPECT_NE(text.find("\nwarnings\n  zero_optimization.reduce_bucket_size"),
            std::string::npos);
  const auto json = ParseJson(ExplainJson(*resolution), "explain");
  ASSERT_TRUE(json.ok()) << json.status().ToString();
  EXPECT_EQ(json->Find("keys")->value.items.size(), resolution->keys.size());
  const auto values = ParseJson(ResolvedJson(*resolution), "resolved");
  ASSERT_TRUE(values.ok()) << values.status().ToString();
  EXPECT_EQ(
      values->Find("zero_optimization")->value.Find("stage")->value.integer, 3);
}

}  // namespace
}  // namespace stowage::engine::config
