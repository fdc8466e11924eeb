// Training with stow-train equals one process of plain LibTorch AdamW.
//
// Ranks run as real processes against a real stowd; the reference is computed
// here: the same model without ZeRO, the same global batches, torch's AdamW and
// clip_grad_norm_. Compared are loss and global gradient norm of every step:
// loss alone, without a binding clip, is blind to a wrong gradient scale.

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "engine/schedule/schedule.h"
#include "examples/gpt/model.h"
#include "examples/gpt/plain_builder.h"
#include "examples/gpt/text_data.h"

namespace stowage {
namespace {

struct Point {
  double loss = 0;
  double norm = 0;
};

struct Case {
  const char* name;
  int stage = 3;
  int ranks = 2;
  int accumulation = 1;
  int micro_batch = 2;
  const char* precision = "fp32";
  bool tied = false;
  bool frozen = false;
  double tolerance = 2e-6;
  int steps = 50;
  const char* extra_zero = "";  // more keys of zero_optimization
  const char* extra_fp16 = "";  // more keys of fp16
  const char* exchange = "";    // --exchange
  // "as_stage": everything that the stage allows; "none", "optimizer", "both".
  const char* offload = "as_stage";
};

bool OffloadsOptimizer(const Case& c) {
  return std::string(c.offload) != "none";
}

bool OffloadsParams(const Case& c) {
  return std::string(c.offload) == "both" ||
         (std::string(c.offload) == "as_stage" && c.stage == 3);
}

std::string Variable(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  return value == nullptr ? "" : value;
}

constexpr std::int64_t kContext = 32;
constexpr double kClip = 0.5;
// Small enough that fp32's own noise is not amplified past the tolerance within
// 50 steps (at 2e-3 two fp32 runs part by 2e-6 after 33 steps).
constexpr double kLr = 5e-4;
constexpr double kWeightDecay = 0.1;
constexpr int kWarmup = 10;
constexpr std::uint64_t kSeed = 7;

gpt::ModelOptions ModelOf(const Case& c) {
  gpt::ModelOptions model;
  model.layers = 2;
  model.width = 64;
  model.heads = 4;
  model.context = kContext;
  model.tied = c.tied;
  model.freeze_positions = c.frozen;
  return model;
}

class TrainingParity : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/stowage-parity-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    std::ofstream text(folder_ + "/text");
    std::uint64_t state = 88172645463325252ULL;
    for (int i = 0; i < 20000; ++i) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      text << "etaoin shrdlu\n"[state % 14];
    }
  }
  void TearDown() override {
    const std::string command = "rm -rf " + folder_;
    ASSERT_EQ(std::system(command.c_str()), 0);  // NOLINT
  }

  void WriteConfig(const Case& c) const {
    std::ofstream file(folder_ + "/config.json");
    file << "{\"train_micro_batch_size_per_gpu\": " << c.micro_batch
         << ", \"gradient_accumulation_steps\": " << c.accumulation
         << ", \"gradient_clipping\": " << kClip << ", \"fp16\": {\"enabled\": "
         << (std::string(c.precision) == "fp16" ? "true" : "false")
         << ", \"initial_scale_power\": 10" << c.extra_fp16
         << "}, \"bf16\": {\"enabled\": "
         << (std::string(c.precision) == "bf16" ? "true" : "false")
         << "}, \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": "
         << kLr << ", \"weight_decay\": " << kWeightDecay
         << "}}, \"scheduler\": {\"type\": \"WarmupLR\", \"params\": "
            "{\"warmup_max_lr\": "
         << kLr << ", \"warmup_num_steps\": " << kWarmup
         << "}}, \"zero_optimization\": {\"stage\": " << c.stage
         << (OffloadsOptimizer(c)
                 ? ", \"offload_optimizer\": {\"device\": \"cpu\"}"
                 : "")
         << c.extra_zero
         << (OffloadsParams(c) ? ", \"offload_param\": {\"device\": \"cpu\"}"
                               : "")
         << "}}";
  }

  std::vector<Point> RunRanks(const Case& c) const {
    WriteConfig(c);
    const std::string trace = folder_ + "/trace.jsonl";
    std::string command =
        Variable("STOWAGE_BIN_DIR") + "/stow-train --config " + folder_ +
        "/config.json --data " + folder_ +
        "/text --layers 2 --width 64 --heads 4 --context " +
        std::to_string(kContext) + " --seed " + std::to_string(kSeed) +
        " --steps " + std::to_string(c.steps) + " --ranks " +
        std::to_string(c.ranks) + " --sample-bytes 0 --trace " + trace +
        (*c.exchange == 0 ? "" : std::string(" --exchange ") + c.exchange) +
        (c.tied ? " --tied" : "") + (c.frozen ? " --freeze-positions" : "") +
        " > " + folder_ + "/log 2>&1";
    const int code = std::system(command.c_str());  // NOLINT
    if (code != 0) {
      std::ifstream log(folder_ + "/log");
      ADD_FAILURE() << command << "\nended with " << code << "\n"
                    << std::string(std::istreambuf_iterator<char>(log), {});
      return {};
    }
    std::vector<Point> points;
    std::ifstream lines(trace);
    for (std::string line; std::getline(lines, line);) {
      Point point;
      const auto number = [&](const char* key) {
        const std::size_t at = line.find(key);
        return at == std::string::npos
                   ? std::nan("")
                   : std::strtod(line.c_str() + at + std::string(key).size(),
                                 nullptr);
      };
      point.loss = number("\"loss\": ");
      point.norm = number("\"norm\": ");
      points.push_back(point);
    }
    return points;
  }

  // Masters in fp32; the model computes with copies rounded to `precision`.
  std::vector<Point> RunReference(const Case& c) const {
    const at::ScalarType dtype = std::string(c.precision) == "fp32" ? at::kFloat
                                 : std::string(c.precision) == "bf16"
                                     ? at::kBFloat16
                                     : at::kHalf;
    const double scale = dtype == at::kHalf ? 1024.0 : 1.0;
    at::set_num_threads(1);
    gpt::PlainBuilder builder(kSeed);
    gpt::Model<gpt::PlainBuilder> model(builder, ModelOf(c));
    std::vector<at::Tensor> masters;
    std::vector<at::Tensor> copies;
    std::vector<at::Tensor> decay;
    std::vector<at::Tensor> plain;
    std::vector<const void*> seen;
    for (const auto& [name, module] : builder.modules()) {
      for (at::Tensor& parameter : module->parameters()) {
        const void* identity = parameter.unsafeGetTensorImpl();
        if (std::find(seen.begin(), seen.end(), identity) != seen.end()) {
          continue;
        }
        seen.push_back(identity);
        at::Tensor master = parameter.detach().clone();
        parameter.set_data(parameter.detach().to(dtype));
        if (!parameter.requires_grad()) continue;
        master.requires_grad_(true);
        (master.dim() >= 2 ? decay : plain).push_back(master);
        masters.push_back(master);
        copies.push_back(parameter);
      }
    }
    using torch::optim::AdamWOptions;
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(decay,
                        std::make_unique<AdamWOptions>(
                            AdamWOptions(kLr).weight_decay(kWeightDecay)));
    groups.emplace_back(plain, std::make_unique<AdamWOptions>(
                                   AdamWOptions(kLr).weight_decay(0)));
    torch::optim::AdamW optimizer(groups);
    engine::schedule::ScheduleSpec spec;
    spec.type = engine::schedule::ScheduleType::kWarmupLr;
    spec.warmup_max_lr = {kLr};
    spec.warmup_num_steps = kWarmup;
    const auto schedule =
        engine::schedule::Schedule::Create(spec, {{kLr, {}}}).value();
    const auto data =
        gpt::TextData::Load(folder_ + "/text", kContext, kSeed).value();
    std::vector<Point> points;
    const int micros = c.ranks * c.accumulation;
    std::int64_t sample = 0;
    for (int step = 0; step < c.steps; ++step) {
      double loss_sum = 0;
      for (at::Tensor& master : masters) {
        master.mutable_grad() = at::zeros_like(master);
      }
      for (int j = 0; j < micros; ++j) {
        at::Tensor tokens = at::empty({c.micro_batch, kContext}, at::kLong);
        at::Tensor targets = at::empty({c.micro_batch, kContext}, at::kLong);
        for (int b = 0; b < c.micro_batch; ++b, ++sample) {
          const unsigned char* window = data.Sample(sample);
          for (std::int64_t t = 0; t < kContext; ++t) {
            tokens[b][t] = static_cast<std::int64_t>(window[t]);
            targets[b][t] = static_cast<std::int64_t>(window[t + 1]);
          }
        }
        const at::Tensor loss = gpt::Loss(model(tokens), targets);
        loss.backward(at::full_like(loss, scale));
        loss_sum += loss.item<double>();
        for (std::size_t p = 0; p < copies.size(); ++p) {
          masters[p].mutable_grad() += copies[p].grad().to(at::kFloat);
          copies[p].mutable_grad().reset();
        }
      }
      for (at::Tensor& master : masters) {
        master.mutable_grad().div_(scale * micros);
      }
      Point point;
      point.loss = loss_sum / micros;
      point.norm = torch::nn::utils::clip_grad_norm_(masters, kClip);
      points.push_back(point);
      for (auto& group : optimizer.param_groups()) {
        static_cast<AdamWOptions&>(group.options()).lr(schedule.Lr(step, 0));
      }
      optimizer.step();
      for (std::size_t p = 0; p < copies.size(); ++p) {
        copies[p].set_data(masters[p].detach().to(dtype));
      }
    }
    return points;
  }

  std::string folder_;
};

TEST_P(TrainingParity, LossAndNormOfEveryStepEqualPlainAdamW) {
  const Case& c = GetParam();
  const std::vector<Point> got = RunRanks(c);
  const std::vector<Point> want = RunReference(c);
  ASSERT_EQ(got.size(), want.size());
  int binding = 0;
  double worst_loss = 0;
  double worst_norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (want[i].norm > kClip) ++binding;
    worst_loss = std::max(worst_loss,
                          std::fabs(got[i].loss - want[i].loss) / want[i].loss);
    worst_norm = std::max(worst_norm,
                          std::fabs(got[i].norm - want[i].norm) / want[i].norm);
  }
  std::printf(
      "%s: worst relative difference loss %.2e, norm %.2e; clip bound "
      "on %d of %d steps\n",
      testing::UnitTest::GetInstance()->current_test_info()->name(), worst_loss,
      worst_norm, binding, c.steps);
  EXPECT_LE(worst_loss, c.tolerance);
  // 16-bit gradients: the norm follows the loss's tolerance ten times over.
  EXPECT_LE(worst_norm, std::string(c.precision) == "fp32" ? c.tolerance
                                                           : 10 * c.tolerance);
  EXPECT_GT(binding, c.steps / 2) << "the clip must bind on most steps";
  EXPECT_LT(want.back().loss, want.front().loss);
}

INSTANTIATE_TEST_SUITE_P(
    Matrix, TrainingParity,
    testing::Values(
        Case{.name = "stage1", .stage = 1}, Case{.name = "stage2", .stage = 2},
        Case{.name = "stage3", .stage = 3},
        Case{.name = "stage3_one_rank", .ranks = 1},
        Case{.name = "stage1_accumulation4_tied_frozen",
             .stage = 1,
             .accumulation = 4,
             .tied = true,
             .frozen = true},
        Case{.name = "stage2_accumulation4_tied_frozen",
             .stage = 2,
             .accumulation = 4,
             .tied = true,
             .frozen = true},
        Case{.name = "stage3_accumulation4_tied_frozen",
             .stage = 3,
             .accumulation = 4,
             .tied = true,
             .frozen = true},
        Case{.name = "stage3_smallest_limits",
             .stage = 3,
             .extra_zero = ", \"stage3_max_live_parameters\": 0, "
                           "\"stage3_max_reuse_distance\": 0, "
                           "\"stage3_prefetch_bucket_size\": 0, "
                           "\"stage3_param_persistence_threshold\": 0"},
        Case{.name = "stage3_bf16", .precision = "bf16", .tolerance = 2e-3},
        Case{.name = "stage3_fp16", .precision = "fp16", .tolerance = 2e-3},
        Case{.name = "stage2_bf16",
             .stage = 2,
             .precision = "bf16",
             .tolerance = 2e-3},
        Case{.name = "stage1_bf16_accumulation4_tied_frozen",
             .stage = 1,
             .accumulation = 4,
             .precision = "bf16",
             .tied = true,
             .frozen = true,
             .tolerance = 2e-3},
        // 1024 either way: the reference's scale.
        Case{.name = "stage2_fp16_static_scale",
             .stage = 2,
             .precision = "fp16",
             .tolerance = 2e-3,
             .extra_fp16 = ", \"loss_scale\": 1024"},
        Case{.name = "stage3_fp16_accumulation4_tied_frozen",
             .stage = 3,
             .accumulation = 4,
             .precision = "fp16",
             .tied = true,
             .frozen = true,
             .tolerance = 2e-3}),
    [](const auto& entry) { return std::string(entry.param.name); });

// Between process groups: stages 0 to 3, what is offloaded, 1 to 4 ranks. The
// short list has each stage, each place of the state and each number of ranks;
// STOWAGE_TEST_LONG runs all combinations.
std::vector<Case> C10dCases() {
  constexpr const char* kSmallLimits =
      ", \"stage3_max_live_parameters\": 60000, "
      "\"stage3_max_reuse_distance\": 0, "
      "\"stage3_prefetch_bucket_size\": 30000, "
      "\"stage3_param_persistence_threshold\": 200, "
      "\"reduce_bucket_size\": 20000, \"allgather_bucket_size\": 20000";
  std::vector<Case> cases;
  const bool all = !Variable("STOWAGE_TEST_LONG").empty();
  const auto add = [&](const Case& c, bool in_short) {
    if (all || in_short) cases.push_back(c);
  };
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const char* offload : {"none", "optimizer", "both"}) {
        const std::string place = offload;
        if (stage == 0 && place != "none") continue;
        if (stage < 3 && place == "both") continue;
        Case c{.name = "", .stage = stage, .ranks = ranks};
        c.exchange = "c10d";
        c.offload = offload;
        c.micro_batch = 12 / ranks / (ranks == 3 ? 2 : 1);
        const bool in_short =
            (stage == 0 && ranks == 2) ||
            (stage == 1 && place == "none" && ranks == 3) ||
            (stage == 2 && place == "optimizer" && ranks == 2) ||
            (stage == 3 && place == "none" && ranks == 4) ||
            (stage == 3 && place == "optimizer" && ranks == 1) ||
            (stage == 3 && place == "both" && ranks == 3);
        add(c, in_short);
        if (ranks != 2) continue;
        c.accumulation = 3;
        c.tied = true;
        c.frozen = true;
        c.extra_zero = kSmallLimits;
        add(c, stage == 3 && place == "both");
        c.accumulation = 8;  // ring slots
        add(c, false);
      }
    }
  }
  return cases;
}

std::string C10dName(const testing::TestParamInfo<Case>& entry) {
  const Case& c = entry.param;
  return "stage" + std::to_string(c.stage) + "_" + c.offload + "_" +
         std::to_string(c.ranks) + "ranks" +
         (c.accumulation > 1
              ? "_accumulation" + std::to_string(c.accumulation) +
                    "_tied_frozen_small"
              : "");
}

INSTANTIATE_TEST_SUITE_P(C10d, TrainingParity, testing::ValuesIn(C10dCases()),
                         C10dName);

}  // namespace
}  // namespace stowage
