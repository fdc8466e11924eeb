#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/config/config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/config/config_testing.h"

namespace stowage::engine::config {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Config Good(std::string_view text, const TrainerValues& trainer = {}) {
  const auto resolution = ResolveText(text, trainer);
  EXPECT_TRUE(resolution.ok()) << resolution.status().ToString();
  return resolution.ok() ? resolution->config : Config();
}

// Trap 1.
TEST(Resolve, AbsentClippingIsOneUnlessCompatSaysZero) {
  EXPECT_EQ(Good(R"({"train_batch_size": 1})").gradient_clipping, 1.0);
  EXPECT_EQ(Good(R"({"train_batch_size": 1, "stowage":
      {"compat": {"gradient_clipping_default": "0.0"}}})")
                .gradient_clipping,
            0.0);
  EXPECT_EQ(Good(R"({"train_batch_size": 1, "gradient_clipping": 0.25,
      "stowage": {"compat": {"gradient_clipping_default": "0.0"}}})")
                .gradient_clipping,
            0.25);
  // A number serves too; another one does not.
  EXPECT_EQ(Good(R"({"train_batch_size": 1, "stowage":
      {"compat": {"gradient_clipping_default": 0}}})")
                .gradient_clipping,
            0.0);
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "stowage":
      {"compat": {"gradient_clipping_default": 2}}})"),
              HasSubstr("expected \"1.0\" or \"0.0\""));
}

// Trap 2.
TEST(Resolve, TypeAdamDecaysDecoupled) {
  const auto adam = [](const std::string& type, const std::string& params) {
    return ResolveText(
        "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"" + type +
        "\", \"params\": {" + params + "}}}");
  };
  EXPECT_TRUE(adam("Adam", "")->config.optimizer.decoupled_weight_decay);
  EXPECT_FALSE(adam("Adam", "\"adam_w_mode\": false")
                   ->config.optimizer.decoupled_weight_decay);
  EXPECT_TRUE(adam("AdamW", "\"adam_w_mode\": false")
                  ->config.optimizer.decoupled_weight_decay);
  EXPECT_EQ(adam("adamw", "")->config.optimizer.type, OptimizerType::kAdamW);
  EXPECT_EQ(adam("Adam", "")->config.optimizer.weight_decay, 0.0);
  EXPECT_EQ(adam("AdamW", "")->config.optimizer.weight_decay, 0.0);
  EXPECT_THAT(WarningsOf(*adam("Adam", "\"weight_decay\": 0.1")),
              HasSubstr("type Adam decays its weights decoupled"));
  EXPECT_THAT(WarningsOf(*adam("AdamW", "\"adam_w_mode\": false")),
              HasSubstr("always decoupled"));
}

TEST(Resolve, TorchAdamChangesOneDefault) {
  const auto decay = [](const std::string& type, const std::string& more) {
    return Good("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"" +
                type + "\", \"params\": {\"torch_adam\": true" + more + "}}}")
        .optimizer.weight_decay;
  };
  EXPECT_EQ(decay("AdamW", ""), 0.01);
  EXPECT_EQ(decay("Adam", ""), 0.01);
  EXPECT_EQ(decay("Adam", ", \"adam_w_mode\": false"), 0.0);
  EXPECT_EQ(decay("AdamW", ", \"weight_decay\": 0.3"), 0.3);
}

TEST(Resolve, TorchAdamHasNoBiasCorrection) {
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "optimizer": {"type": "Adam",
      "params": {"torch_adam": true, "bias_correction": true}}})"),
              HasSubstr("has no such parameter"));
}

// Trap 3.
TEST(Resolve, AutoInATypedBlockIsTheDefaultWithAWarning) {
  const auto resolution = ResolveText(
      R"({"train_batch_size": 1, "zero_optimization": {"stage": "auto",
          "sub_group_size": "auto", "allgather_bucket_size": "auto"}})");
  ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
  EXPECT_EQ(resolution->config.zero_optimization.stage, 0);
  EXPECT_EQ(resolution->config.zero_optimization.sub_group_size, 1'000'000'000);
  EXPECT_THAT(WarningsOf(*resolution),
              HasSubstr("zero_optimization.stage: nothing fills \"auto\" here: "
                        "the default, 0, holds"));
}

TEST(Resolve, AutoAtTheTopLevelWithoutAMeaningIsRefused) {
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "steps_per_print": "auto"})"),
              HasSubstr("nothing fills it: expected an integer >= 1"));
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "optimizer": {"type": "Adam",
      "params": {"adam_w_mode": "auto"}}})"),
              HasSubstr("optimizer.params.adam_w_mode = \"auto\""));
}

TEST(Resolve, AutoWithoutAValueNamesTheFlag) {
  struct Case {
    const char* text;
    const char* flag;
  };
  for (const Case& c : std::vector<Case>{
           {R"({"train_micro_batch_size_per_gpu": "auto"})", "--micro-batch"},
           {R"({"train_batch_size": "auto"})", "--train-batch"},
           {R"({"train_batch_size": 8, "gradient_accumulation_steps": "auto"})",
            "--accumulation"},
           {R"({"train_batch_size": 8, "gradient_clipping": "auto"})",
            "--max-grad-norm"},
           {R"({"train_batch_size": 8, "fp16": {"enabled": "auto"}})",
            "--precision"},
           {R"({"train_batch_size": 8, "bf16": {"enabled": "auto"}})",
            "--precision"},
           {R"({"train_batch_size": 8, "optimizer": {"type": "AdamW",
                "params": {"lr": "auto"}}})",
            "--lr"},
           {R"({"train_batch_size": 8, "optimizer": {"type": "AdamW",
                "params": {"betas": "auto"}}})",
            "--betas"},
           {R"({"train_batch_size": 8, "scheduler": {"type": "WarmupLR",
                "params": {"warmup_num_steps": "auto"}}})",
            "--warmup-steps"},
           {R"({"train_batch_size": 8, "scheduler": {"type": "WarmupDecayLR",
                "params": {"total_num_steps": "auto"}}})",
            "--steps"},
           {R"({"train_batch_size": 8, "zero_optimization":
                {"reduce_bucket_size": "auto"}})",
            "--width"}}) {
    const std::string error = ErrorOf(c.text);
    EXPECT_THAT(error, HasSubstr("but the trainer has no value for it: set "))
        << c.text;
    EXPECT_THAT(error, HasSubstr(c.flag)) << c.text;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(Resolve, AutoBucketsFollowTheWidth) {
  TrainerValues trainer;
  trainer.hidden_size = 768;
  const std::string text = R"({"train_batch_size": 1, "zero_optimization": {
      "stage": STAGE, "reduce_bucket_size": "auto",
      "stage3_prefetch_bucket_size": "auto",
      "stage3_param_persistence_threshold": "auto"}})";
  const auto at = [&](const char* stage) {
    std::string copy = text;
    copy.replace(copy.find("STAGE"), 5, stage);
    return Good(copy, trainer).zero_optimization;
  };
  EXPECT_EQ(at("3").reduce_bucket_size, 589'824);
  EXPECT_EQ(at("3").stage3_prefetch_bucket_size, 530'841);
  EXPECT_EQ(at("3").stage3_param_persistence_threshold, 7680);
  // The last two only in stage 3.
  EXPECT_EQ(at("2").reduce_bucket_size, 589'824);
  EXPECT_EQ(at("2").stage3_prefetch_bucket_size, 50'000'000);
  EXPECT_EQ(at("2").stage3_param_persistence_threshold, 100'000);
}

TEST(Resolve, AutoWarmupIsAtLeastOne) {
  TrainerValues trainer;
  trainer.warmup_num_steps = 0;
  trainer.lr = 0.5;
  const Config c = Good(R"({"train_batch_size": 1, "scheduler": {"type":
      "WarmupLR", "params": {"warmup_num_steps": "auto", "warmup_min_lr":
      "auto", "warmup_max_lr": "auto"}}})",
                        trainer);
  EXPECT_EQ(c.scheduler.warmup_num_steps, 1);
  EXPECT_EQ(c.scheduler.warmup_min_lr, std::vector<double>{0.0});
  EXPECT_EQ(c.scheduler.warmup_max_lr, std::vector<double>{0.5});
}

TEST(Resolve, TheFileWinsOverTheTrainersDefaults) {
  const Config c = Good(
      R"({"train_micro_batch_size_per_gpu": 7, "gradient_clipping": 9,
          "optimizer": {"type": "AdamW", "params": {"lr": 0.125}}})",
      FullTrainer());
  EXPECT_EQ(c.train_micro_batch_size_per_gpu, 7);
  EXPECT_EQ(c.gradient_accumulation_steps, 1);
  EXPECT_EQ(c.gradient_clipping, 9);
  EXPECT_EQ(c.optimizer.lr, 0.125);
  EXPECT_EQ(c.optimizer.weight_decay, 0.0);
}

TEST(Resolve, ContradictionsOfTheUserAreAllListed) {
  TrainerValues trainer = FullTrainer();
  trainer.lr = {0.25, true};
  trainer.max_grad_norm = {0.5, true};
  trainer.micro_batch = {3, true};
  trainer.warmup_num_steps = {10, true};
  trainer.precision = {Dtype::kFp32, true};
  const std::string error = ErrorOf(
      R"({"train_micro_batch_size_per_gpu": 4, "gradient_clipping": 1.0,
          "fp16": {"enabled": true},
          "optimizer": {"type": "AdamW", "params": {"lr": 0.125}},
          "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10,
          "warmup_max_lr": 0.125}}})",
      trainer);
  EXPECT_THAT(error, HasSubstr("c.json:1:60: gradient_clipping = 1.0, but "
                               "--max-grad-norm is 0.5: change one of them, or "
                               "write \"auto\" in the file"));
  EXPECT_THAT(error,
              HasSubstr("optimizer.params.lr = 0.125, but --lr is 0.25"));
  EXPECT_THAT(error, HasSubstr("scheduler.params.warmup_max_lr"));
  EXPECT_THAT(error, HasSubstr("fp16.enabled = true, but --precision is fp32"));
  EXPECT_THAT(error, Not(HasSubstr("warmup_num_steps =")));
}

TEST(Resolve, WhatTheUserAskedForFillsWhatTheFileLeavesOut) {
  TrainerValues trainer;
  trainer.lr = {0.25, true};
  trainer.micro_batch = {3, true};
  trainer.gradient_accumulation_steps = {2, true};
  trainer.max_grad_norm = {0.5, true};
  const auto resolution =
      ResolveText(R"({"optimizer": {"type": "AdamW"}})", trainer);
  ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
  EXPECT_EQ(resolution->config.optimizer.lr, 0.25);
  EXPECT_EQ(resolution->config.train_batch_size, 6);
  EXPECT_EQ(resolution->config.gradient_clipping, 0.5);
  EXPECT_EQ(FindResolved(*resolution, "optimizer.params.lr")->origin,
            Origin::kTrainer);
}

TEST(Resolve, WithoutAnOptimizerTheTrainersValuesHold) {
  const Config c = Good(R"({"train_batch_size": 24})", FullTrainer());
  EXPECT_EQ(c.optimizer.type, OptimizerType::kNone);
  EXPECT_EQ(c.optimizer.lr, 3e-4);
  EXPECT_EQ(c.optimizer.weight_decay, 0.05);
  EXPECT_EQ(c.optimizer.betas.beta1, 0.85);
  EXPECT_TRUE(c.optimizer.decoupled_weight_decay);
}

TEST(Resolve, TheTrainersValuesHaveTheFilesBounds) {
  TrainerValues trainer = FullTrainer();
  trainer.lr = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(ErrorOf(R"({"optimizer": {"type": "Adam", "params":
      {"lr": "auto"}}})",
                      trainer),
              HasSubstr("--lr \"NaN\": expected a number >= 0"));
  trainer = FullTrainer();
  trainer.betas = schedule::Betas{0.9, 1.0};
  EXPECT_THAT(ErrorOf("{}", trainer), HasSubstr("--betas [0.9,1]"));
  trainer = FullTrainer();
  trainer.micro_batch = 0;
  EXPECT_THAT(ErrorOf("{}", trainer), HasSubstr("--micro-batch 0"));
  trainer = FullTrainer();
  trainer.hidden_size = std::int64_t{1} << 40;
  EXPECT_THAT(ErrorOf(R"({"zero_optimization": {"reduce_bucket_size":
      "auto"}})",
                      trainer),
              HasSubstr("the hidden size is 1099511627776"));
}

TEST(Resolve, ABatchThatDoesNotFactorShowsItsNumbers) {
  TrainerValues trainer;
  trainer.world_size = 4;
  EXPECT_EQ(ErrorOf(R"({"train_batch_size": 10,
 "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1})",
                    trainer),
            "c.json:1:22: train_batch_size does not factor: 10 != 2 "
            "(train_micro_batch_size_per_gpu) * 1 "
            "(gradient_accumulation_steps) * 4 (world size) = 8");
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("c.json: train_batch_size or"));
  trainer.train_batch_size = {16, true};
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": "auto",
      "train_micro_batch_size_per_gpu": 2,
      "gradient_accumulation_steps": 1})",
                      trainer),
              HasSubstr("16 != 2"));
}

TEST(Resolve, PrecisionOfTheTrainerFillsAuto) {
  TrainerValues trainer;
  trainer.precision = Dtype::kBf16;
  const Config c = Good(R"({"train_batch_size": 1, "fp16": {"enabled": "auto"},
      "bf16": {"enabled": "auto"}})",
                        trainer);
  EXPECT_FALSE(c.fp16.enabled);
  EXPECT_TRUE(c.bf16.enabled);
  EXPECT_EQ(c.communication_data_type, Dtype::kBf16);
}

TEST(Resolve, AskedPrecisionAddsItsBlock) {
  TrainerValues trainer;
  trainer.precision = {Dtype::kFp16, true};
  const Config c = Good(R"({"train_batch_size": 1})", trainer);
  EXPECT_TRUE(c.fp16.enabled);
  // A default of the trainer does not decide for a file that says nothing.
  trainer.precision.set_by_user = false;
  const auto resolution = ResolveText(R"({"train_batch_size": 1})", trainer);
  ASSERT_TRUE(resolution.ok());
  EXPECT_EQ(resolution->config.precision, Dtype::kFp32);
  EXPECT_THAT(WarningsOf(*resolution), HasSubstr("training runs in fp32"));
}

TEST(Resolve, BothPrecisionsAreRefused) {
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "fp16": {"enabled": true},
      "bf16": {"enabled": true}})"),
              HasSubstr("only one of them can be enabled"));
}

TEST(Resolve, OffloadParamBelowStage3IsRefused) {
  EXPECT_EQ(ErrorOf(R"({"train_batch_size": 1, "zero_optimization":
 {"stage": 2, "offload_param": {"device": "cpu"}}})"),
            "c.json:2:43: zero_optimization.offload_param.device = \"cpu\" "
            "needs zero_optimization.stage 3, which is 2: below it every rank "
            "holds all parameters");
  EXPECT_EQ(ErrorOf(R"({"train_batch_size": 1, "zero_optimization":
      {"stage": 2, "offload_param": {"device": "none"}}})"),
            "");
  EXPECT_EQ(ErrorOf(R"({"train_batch_size": 1, "zero_optimization":
      {"stage": 2, "offload_param": null}})"),
            "");
}

TEST(Resolve, NvmeNeedsAPath) {
  for (const char* block : {"offload_param", "offload_optimizer"}) {
    const std::string text =
        std::string(
            R"({"train_batch_size": 1, "zero_optimization": {"stage": 3, ")") +
        block + R"(": {"device": "nvme")";
    EXPECT_THAT(ErrorOf(text + "}}}"), HasSubstr(".nvme_path, a folder"));
    EXPECT_EQ(ErrorOf(text + ", \"nvme_path\": \"/disk\"}}}"), "");
    EXPECT_THAT(ErrorOf(text + ", \"nvme_path\": null}}}"),
                HasSubstr(".nvme_path, a folder"));
  }
}

// Trap 14.
TEST(Resolve, RatioBelowOneNeedsStage3) {
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "zero_optimization":
      {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}})"),
              HasSubstr("below 1 needs zero_optimization.stage 3"));
}

TEST(Resolve, ParamDtypeMustAgree) {
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "data_types":
      {"param_dtype": "bf16"}})"),
              HasSubstr("make it fp32"));
  EXPECT_EQ(ErrorOf(R"({"train_batch_size": 1, "bf16": {"enabled": true},
      "data_types": {"param_dtype": "BF16"}})"),
            "");
}

// Trap 9.
TEST(Resolve, GradientsAccumulateInFp32) {
  const auto resolution = ResolveText(R"({"train_batch_size": 1, "data_types":
      {"grad_accum_dtype": "bf16"}})");
  ASSERT_TRUE(resolution.ok());
  EXPECT_THAT(WarningsOf(*resolution),
              HasSubstr("gradients accumulate in fp32"));
  EXPECT_EQ(WarningsOf(*ResolveText(R"({"train_batch_size": 1, "data_types":
      {"grad_accum_dtype": "fp32"}})")),
            "");
}

TEST(Resolve, ZeroAsABooleanIsAStage) {
  const auto resolution =
      ResolveText(R"({"train_batch_size": 1, "zero_optimization": true})");
  ASSERT_TRUE(resolution.ok());
  EXPECT_EQ(resolution->config.zero_optimization.stage, 1);
  EXPECT_THAT(WarningsOf(*resolution), HasSubstr("taken as stage 1"));
}

TEST(Resolve, RequiredScheduleParams) {
  for (const char* type : {"WarmupDecayLR", "WarmupCosineLR"}) {
    EXPECT_THAT(ErrorOf(std::string(R"({"train_batch_size": 1, "scheduler":
        {"type": ")") + type +
                        "\"}}"),
                HasSubstr("needs scheduler.params.total_num_steps"));
  }
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "scheduler": {"type":
      "OneCycle", "params": {"cycle_min_lr": 0.1}}})"),
              HasSubstr("needs scheduler.params.cycle_max_lr"));
}

// DeepSpeed asserts a dynamic scale whenever the type is Lamb; nothing in the
// update needs it.
TEST(Resolve, LambTakesAnyLossScale) {
  const auto resolution = ResolveText(R"({"train_batch_size": 1,
      "optimizer": {"type": "lamb"}, "fp16": {"enabled": true, "loss_scale":
      128}})");
  ASSERT_TRUE(resolution.ok()) << resolution.status();
  EXPECT_EQ(resolution->config.optimizer.type, OptimizerType::kLamb);
  EXPECT_EQ(resolution->config.fp16.loss_scale, 128);
}

TEST(Resolve, TrustRatioBoundsMustBeInOrder) {
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "optimizer": {"type": "Lamb",
      "params": {"min_coeff": 2, "max_coeff": 1.5}}})"),
              HasSubstr("is above optimizer.params.max_coeff, 1.5"));
  EXPECT_TRUE(ResolveText(R"({"train_batch_size": 1, "optimizer": {"type":
      "Lamb", "params": {"min_coeff": 2, "max_coeff": 2}}})")
                  .ok());
}

TEST(Resolve, ParamsOfAnotherTypeAreRefusedByName) {
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "optimizer": {"type": "AdamW",
      "params": {"max_coeff": 5}}})"),
              HasSubstr("optimizer.params.max_coeff: AdamW has no such "
                        "parameter; it is one of Lamb, OneBitLamb"));
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "scheduler": {"type":
      "WarmupCosineLR", "params": {"warmup_max_lr": 1, "total_num_steps": 5}}})"),
              HasSubstr("WarmupCosineLR has no such parameter"));
}

// Traps 4 and 14 of the list, and ours: stricter at the top level too.
TEST(Resolve, UnknownKeysNameTheNearest) {
  EXPECT_EQ(ErrorOf("{\"train_batch_size\": 1,\n \"gradient_cliping\": 1}"),
            "c.json:2:2: unknown key \"gradient_cliping\" at the top level: "
            "did you mean \"gradient_clipping\"?");
  EXPECT_EQ(
      ErrorOf(R"({"train_batch_size": 1, "zero_optimization": {"aio": {}}})"),
      "c.json:1:47: unknown key \"aio\" in zero_optimization: did you "
      "mean \"aio\" at the top level?");
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "aio": {"blocksize": 1}})"),
              HasSubstr("did you mean \"aio.block_size\"?"));
  EXPECT_THAT(ErrorOf(R"({"zero_optimization.stage": 3})"),
              HasSubstr("unknown key \"zero_optimization.stage\""));
}

TEST(Resolve, TwoNamesOfOneKeyAreRefused) {
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "zero_optimization": {
      "stage": 2, "cpu_offload": true,
      "offload_optimizer": {"device": "cpu"}}})"),
              HasSubstr("are two names of one key"));
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 1, "bf16": {"enabled": true},
      "bfloat16": {"enabled": true}})"),
              HasSubstr("are two names of one key"));
}

TEST(Resolve, DeprecatedOffloadKeysStandForTheNewOnes) {
  const auto resolution = ResolveText(R"({"train_batch_size": 1,
      "zero_optimization": {"stage": 3, "cpu_offload": true,
      "cpu_offload_param": true}})");
  ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
  const ZeroOptimization& zero = resolution->config.zero_optimization;
  EXPECT_EQ(zero.offload_optimizer.device, OffloadDevice::kCpu);
  EXPECT_EQ(zero.offload_param.device, OffloadDevice::kCpu);
  EXPECT_THAT(WarningsOf(*resolution),
              HasSubstr("deprecated: write "
                        "zero_optimization.offload_optimizer.device: \"cpu\""));
}

TEST(Resolve, RemovedBlocksAreRefusedEvenWhenDisabled) {
  for (const char* key : {"amp", "elasticity", "nebula", "compression_training",
                          "quantize_training", "sparse_gradients",
                          "sparse_attention", "eigenvalue", "graph_harvesting",
                          "curriculum_learning", "progressive_layer_drop"}) {
    const auto resolution =
        ResolveText(std::string(R"({"train_batch_size": 1, ")") + key +
                    R"(": {"enabled": false}})");
    EXPECT_EQ(resolution.status().code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(resolution.status().message()),
                HasSubstr(std::string(key) + " is refused: "));
  }
}

TEST(Resolve, KeysWithoutEffectInACombinationAreWarnedOf) {
  const auto resolution = ResolveText(R"({"train_batch_size": 1,
      "fp16": {"enabled": false, "hysteresis": 3},
      "zero_optimization": {"stage": 2, "stage3_max_live_parameters": 5,
        "offload_optimizer": {"device": "cpu", "nvme_path": "/disk"}},
      "aio": {"queue_depth": 16},
      "csv_monitor": {"enabled": false, "job_name": "x"},
      "wandb": {"project": "p"}})");
  ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
  const std::string warnings = WarningsOf(*resolution);
  for (const char* want :
       {"fp16.hysteresis: no effect: fp16.enabled is false",
        "stage3_max_live_parameters: no effect: zero_optimization.stage is 2, "
        "only 3 uses it",
        "nvme_path: no effect: zero_optimization.offload_optimizer.device is "
        "\"cpu\", only \"nvme\" uses it",
        "aio.queue_depth: no effect: nothing is offloaded to nvme",
        "csv_monitor.job_name: no effect: csv_monitor.enabled is false",
        "wandb.project: no effect: wandb.enabled is false"}) {
    EXPECT_THAT(warnings, HasSubstr(want));
  }
}

TEST(Resolve, LambWithZeroWarnsWithoutTheUntestedFlag) {
  const std::string file = R"({"train_batch_size": 1,
      "optimizer": {"type": "Lamb"}, "zero_optimization": {"stage": 1})";
  const auto without = ResolveText(file + "}");
  ASSERT_TRUE(without.ok()) << without.status().ToString();
  EXPECT_THAT(WarningsOf(*without),
              HasSubstr("zero_allow_untested_optimizer: DeepSpeed refuses"));
  const auto with =
      ResolveText(file + R"(, "zero_allow_untested_optimizer": true})");
  ASSERT_TRUE(with.ok()) << with.status().ToString();
  EXPECT_EQ(WarningsOf(*with), "");
}

TEST(Resolve, CompatChoosesTheOlderRelease) {
  EXPECT_EQ(Good(R"({"train_batch_size": 1})").steps_per_print, 0);
  EXPECT_EQ(Good(R"({"train_batch_size": 1, "steps_per_print": 3,
      "stowage": {"compat": {"steps_per_print_default": "10"}}})")
                .steps_per_print,
            3);
  for (const char* steps : {"0", "-4"}) {
    const std::string file = absl::StrCat(R"({"train_batch_size": 1,
      "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": )",
                                          steps, "}}");
    EXPECT_THAT(ErrorOf(file + "}"), HasSubstr("expected an integer >= 1"));
    EXPECT_EQ(Good(file + R"(, "stowage": {"compat": {
        "warmup_num_steps_below_one": "2"}}})")
                  .scheduler.warmup_num_steps,
              2);
  }
}

TEST(Resolve, DefaultsAreThoseOfTheReference) {
  const Config c = Good(R"({"train_batch_size": 1})");
  const ZeroOptimization& z = c.zero_optimization;
  EXPECT_EQ(c.steps_per_print, 0);
  EXPECT_EQ(c.fp16.loss_scale, 0);
  EXPECT_EQ(c.fp16.initial_scale_power, 16);
  EXPECT_EQ(c.fp16.loss_scale_window, 1000);
  EXPECT_EQ(c.fp16.hysteresis, 2);
  EXPECT_EQ(c.optimizer.lr, 1e-3);
  EXPECT_EQ(c.optimizer.eps, 1e-8);
  EXPECT_EQ(c.optimizer.betas, (schedule::Betas{0.9, 0.999}));
  EXPECT_EQ(z.reduce_bucket_size, 500'000'000);
  EXPECT_EQ(z.stage3_prefetch_bucket_size, 50'000'000);
  EXPECT_EQ(z.stage3_param_persistence_threshold, 100'000);
  EXPECT_EQ(z.stage3_model_persistence_threshold, INT64_MAX);
  EXPECT_EQ(z.offload_param.max_in_cpu, 1'000'000'000);
  EXPECT_EQ(z.offload_param.buffer_count, 5);
  EXPECT_EQ(z.offload_optimizer.buffer_count, 4);
  EXPECT_TRUE(z.offload_param.pin_memory);  // trap 18
  EXPECT_TRUE(z.offload_optimizer.pin_memory);
  EXPECT_EQ(c.csv_monitor.job_name, "DeepSpeedJobName");
  EXPECT_EQ(c.aio.block_size, 1'048'576);
  EXPECT_EQ(c.aio.queue_depth, 8);
}

// Trap 21, and accelerate's Infinity.
TEST(Resolve, StepsPerPrintInfinityIsNever) {
  const auto resolution =
      ResolveText(R"({"train_batch_size": 1, "steps_per_print": Infinity})");
  ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
  EXPECT_EQ(resolution->config.steps_per_print, 0);
  EXPECT_EQ(FindResolved(*resolution, "steps_per_print")->value, "null");
}

TEST(CheckSupported, NamesWhatIsNotThereYet) {
  const auto refusal = [](void (*change)(Config&)) {
    Config config;
    config.zero_optimization.stage = 3;
    config.zero_optimization.offload_optimizer.device = OffloadDevice::kCpu;
    config.zero_optimization.offload_param.device = OffloadDevice::kCpu;
    change(config);
    const absl::Status status = CheckSupported(config);
    EXPECT_TRUE(status.ok() ||
                status.code() == absl::StatusCode::kUnimplemented);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal([](Config&) {}), "");
  EXPECT_EQ(refusal([](Config& c) { c.zero_optimization.stage = 0; }), "");
  EXPECT_EQ(refusal([](Config& c) {
              c.zero_optimization.offload_param.device = OffloadDevice::kNvme;
            }),
            "");
  EXPECT_THAT(refusal([](Config& c) {
                c.zero_optimization.offload_optimizer.device =
                    OffloadDevice::kNone;
              }),
              HasSubstr("offload_param.device = \"cpu\""));
  EXPECT_THAT(refusal([](Config& c) {
                c.zero_optimization.offload_optimizer.ratio = 0.5;
              }),
              HasSubstr("ratio = 0.5"));
  EXPECT_EQ(refusal([](Config& c) { c.optimizer.type = OptimizerType::kLamb; }),
            "");
  const auto one_bit = [](Config& c) {
    c.optimizer.type = OptimizerType::kOneBitAdam;
    c.zero_optimization.stage = 0;
    c.zero_optimization.offload_param.device = OffloadDevice::kNone;
  };
  Config config;
  one_bit(config);
  for (const OffloadDevice device :
       {OffloadDevice::kNone, OffloadDevice::kCpu}) {
    config.zero_optimization.offload_optimizer.device = device;
    EXPECT_TRUE(CheckSupported(config).ok());
    EXPECT_EQ(WhyNotSegments(config).empty(), device == OffloadDevice::kCpu);
  }
  config.stowage.exchange = ExchangeKind::kC10d;
  EXPECT_THAT(std::string(CheckSupported(config).message()),
              HasSubstr("stowage.exchange = \"c10d\""));
  config.zero_optimization.offload_optimizer.device = OffloadDevice::kNvme;
  EXPECT_THAT(std::string(CheckSupported(config).message()),
              HasSubstr("errors of its signs are kept in memory"));
  EXPECT_EQ(
      refusal([](Config& c) { c.stowage.exchange = ExchangeKind::kC10d; }), "");
  EXPECT_THAT(
      refusal([](Config& c) { c.stowage.durability = Durability::kPower; }),
      HasSubstr("stowage.durability = \"power\""));
  EXPECT_THAT(
      refusal([](Config& c) { c.stowage.durability = Durability::kProcess; }),
      HasSubstr("stowage.durability = \"process\""));
  EXPECT_EQ(refusal([](Config& c) {
              c.stowage.durability = Durability::kPower;
              c.zero_optimization.offload_optimizer.device =
                  OffloadDevice::kNvme;
            }),
            "");
}

// Every key of the NVMe tier changes the field of the spec that the server is
// sent, and nothing else does.
TEST(StorageOf, EachKeyReachesTheServer) {
  const auto spec = [](void (*change)(Config&)) {
    Config config;
    config.zero_optimization.stage = 3;
    OffloadOptimizer& optimizer = config.zero_optimization.offload_optimizer;
    optimizer.device = OffloadDevice::kNvme;
    optimizer.nvme_path = "/disk/a";
    OffloadParam& param = config.zero_optimization.offload_param;
    param.device = OffloadDevice::kNvme;
    param.nvme_path = "/disk/a/";
    change(config);
    return ToStorageSpec(config, 2);
  };
  const StorageSpec base = spec([](Config&) {});
  EXPECT_EQ(base.optimizer, Placement::kNvme);
  EXPECT_EQ(base.params, Placement::kNvme);
  EXPECT_EQ(base.nvme_paths, std::vector<std::string>{"/disk/a"});
  EXPECT_EQ(base.max_in_cpu_elems, 2'000'000'000);
  struct Case {
    void (*change)(Config&);
    void (*expect)(StorageSpec&);
  };
  for (const Case& c : std::vector<Case>{
           {[](Config& c) { c.aio.block_size = 8192; },
            [](StorageSpec& s) { s.aio.block_size_bytes = 8192; }},
           {[](Config& c) { c.aio.queue_depth = 3; },
            [](StorageSpec& s) { s.aio.queue_depth = 3; }},
           {[](Config& c) { c.aio.intra_op_parallelism = 5; },
            [](StorageSpec& s) { s.aio.intra_op_parallelism = 5; }},
           {[](Config& c) { c.aio.single_submit = true; },
            [](StorageSpec& s) { s.aio.single_submit = true; }},
           {[](Config& c) { c.aio.overlap_events = false; },
            [](StorageSpec& s) { s.aio.overlap_events = false; }},
           {[](Config& c) {
              c.zero_optimization.offload_optimizer.buffer_count = 7;
            },
            [](StorageSpec& s) { s.optimizer_buffers = 7; }},
           {[](Config& c) {
              c.zero_optimization.offload_optimizer.pipeline_read = true;
            },
            [](StorageSpec& s) { s.pipeline_read = true; }},
           {[](Config& c) {
              c.zero_optimization.offload_optimizer.pipeline_write = true;
            },
            [](StorageSpec& s) { s.pipeline_write = true; }},
           {[](Config& c) { c.zero_optimization.sub_group_size = 12345; },
            [](StorageSpec& s) { s.sub_group_elems = 12345; }},
           {[](Config& c) {
              c.zero_optimization.offload_param.buffer_count = 9;
            },
            [](StorageSpec& s) { s.param_buffers = 9; }},
           {[](Config& c) {
              c.zero_optimization.offload_param.buffer_size = 77;
            },
            [](StorageSpec& s) { s.param_buffer_elems = 77; }},
           {[](Config& c) { c.zero_optimization.offload_param.max_in_cpu = 5; },
            [](StorageSpec& s) { s.max_in_cpu_elems = 10; }},
           {[](Config& c) { c.stowage.memory_budget_bytes = 6; },
            [](StorageSpec& s) { s.memory_budget_bytes = 6; }},
           {[](Config& c) { c.stowage.nvme_budget_bytes = 6; },
            [](StorageSpec& s) { s.nvme_budget_bytes = 6; }},
           {[](Config& c) {
              c.zero_optimization.offload_param.pin_memory = false;
            },
            [](StorageSpec& s) { s.pin_memory = false; }},
           {[](Config& c) { c.stowage.kept_steps = 4; },
            [](StorageSpec& s) { s.kept_steps = 4; }},
           {[](Config& c) {
              c.stowage.nvme_paths = {"/b", "/disk/a"};
            },
            [](StorageSpec& s) {
              s.nvme_paths = {"/disk/a", "/b"};
            }},
           {[](Config& c) {
              c.zero_optimization.offload_param.device = OffloadDevice::kCpu;
            },
            [](StorageSpec& s) { s.params = Placement::kMemory; }},
           {[](Config& c) {
              c.zero_optimization.offload_optimizer.device =
                  OffloadDevice::kCpu;
            },
            [](StorageSpec& s) { s.optimizer = Placement::kMemory; }},
       }) {
    StorageSpec want = base;
    c.expect(want);
    EXPECT_NE(want, base);
    EXPECT_EQ(spec(c.change), want);
  }
  const StorageSpec memory = spec([](Config& c) {
    c.zero_optimization.offload_param.device = OffloadDevice::kCpu;
    c.zero_optimization.offload_optimizer.device = OffloadDevice::kCpu;
    c.stowage.memory_budget_bytes = 9;
  });
  EXPECT_TRUE(memory.nvme_paths.empty());
  EXPECT_FALSE(memory.on_nvme());
  EXPECT_EQ(memory.memory_budget_bytes, 9);
}

}  // namespace
}  // namespace stowage::engine::config
