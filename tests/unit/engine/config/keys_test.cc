// Every key of the schema has its effect, its warning or its refusal.
//
// A key that is honoured has a row here: a value, what else the file needs, and
// what of the Config must then hold. A key without a row fails. The other rules
// (no effect, fixed, only, refused) say by themselves what must happen.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/config/config.h"
#include "engine/config/json_reader.h"
#include "engine/config/json_text.h"
#include "engine/config/schema.h"
#include "engine/config/settings.h"
#include "engine/config/text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/config/config_testing.h"

namespace stowage::engine::config {
namespace {

using ::testing::HasSubstr;

std::string Str(bool value) { return value ? "true" : "false"; }
std::string Str(int value) { return absl::StrCat(value); }
std::string Str(std::int64_t value) { return absl::StrCat(value); }
std::string Str(double value) { return JsonNumber(value); }
std::string Str(const std::string& value) { return value; }
std::string Str(Dtype value) { return std::string(DtypeName(value)); }
std::string Str(OffloadDevice value) { return OffloadDeviceName(value); }
std::string Str(const std::optional<std::int64_t>& value) {
  return value ? absl::StrCat(*value) : "none";
}
std::string Str(const std::vector<double>& values) {
  std::string out;
  for (const double value : values) {
    absl::StrAppend(&out, out.empty() ? "" : ",", JsonNumber(value));
  }
  return out;
}

struct Row {
  const char* path;
  const char* json;  // the key's value
  const char* want;  // what the probe then says
  std::function<std::string(const Config&)> probe;
  std::vector<JsonLeaf> with;  // other keys of the file
};

#define PROBE(field) [](const Config& c) { return Str(c.field); }
#define ZERO "zero_optimization."
#define OPTIMIZER "optimizer.params."
#define SCHEDULER "scheduler.params."

std::vector<JsonLeaf> Type(const char* type) {
  return {{"optimizer.type", absl::StrCat("\"", type, "\"")}};
}
std::vector<JsonLeaf> Schedule(const char* type) {
  std::vector<JsonLeaf> out = {
      {"scheduler.type", absl::StrCat("\"", type, "\"")}};
  const std::string_view name = type;
  if (name == "OneCycle") {
    out.push_back({SCHEDULER "cycle_min_lr", "0.1"});
    out.push_back({SCHEDULER "cycle_max_lr", "0.2"});
  } else if (name == "WarmupDecayLR" || name == "WarmupCosineLR") {
    out.push_back({SCHEDULER "total_num_steps", "2000"});
  }
  return out;
}
std::vector<JsonLeaf> Decaying() {
  std::vector<JsonLeaf> out = Schedule("OneCycle");
  out.push_back({SCHEDULER "decay_step_size", "10"});
  return out;
}
const std::vector<JsonLeaf> kStage3 = {{ZERO "stage", "3"}};
const std::vector<JsonLeaf> kParamNvme = {
    {ZERO "stage", "3"},
    {ZERO "offload_param.device", "\"nvme\""},
    {ZERO "offload_param.nvme_path", "\"/disk\""}};
const std::vector<JsonLeaf> kOptimizerNvme = {
    {ZERO "stage", "3"},
    {ZERO "offload_optimizer.device", "\"nvme\""},
    {ZERO "offload_optimizer.nvme_path", "\"/disk\""}};
const std::vector<JsonLeaf> kWandb = {{"wandb.enabled", "true"}};
const std::vector<JsonLeaf> kFp16 = {{"fp16.enabled", "true"}};

std::vector<Row> Rows() {
  return {
      {"train_batch_size", "8", "8", PROBE(train_batch_size), {}},
      {"train_micro_batch_size_per_gpu",
       "4",
       "4",
       PROBE(train_micro_batch_size_per_gpu),
       {}},
      {"gradient_accumulation_steps",
       "2",
       "2",
       PROBE(gradient_accumulation_steps),
       {}},
      {"gradient_clipping", "0.5", "0.5", PROBE(gradient_clipping), {}},
      {"steps_per_print", "7", "7", PROBE(steps_per_print), {}},
      {"wall_clock_breakdown", "true", "true", PROBE(wall_clock_breakdown), {}},
      {"memory_breakdown", "true", "true", PROBE(memory_breakdown), {}},
      {"dump_state", "true", "true", PROBE(dump_state), {}},
      {"log_level", "\"warning\"", "warning", PROBE(log_level), {}},
      {"zero_allow_untested_optimizer", "true", "true",
       PROBE(zero_allow_untested_optimizer), Type("Lamb")},
      {"communication_data_type",
       "\"FP16\"",
       "fp16",
       PROBE(communication_data_type),
       {{"stowage.exchange", "\"c10d\""}}},
      {"prescale_gradients",
       "true",
       "true",
       PROBE(prescale_gradients),
       {{"stowage.exchange", "\"c10d\""}}},
      {"gradient_predivide_factor",
       "4",
       "4",
       PROBE(gradient_predivide_factor),
       {{"stowage.exchange", "\"c10d\""}}},
      {"data_types.param_dtype", "\"fp16\"", "fp16", PROBE(precision), kFp16},

      {"fp16.enabled", "true", "true", PROBE(fp16.enabled), {}},
      {"fp16.auto_cast", "true", "true", PROBE(fp16.auto_cast), kFp16},
      {"fp16.loss_scale", "128", "128", PROBE(fp16.loss_scale), kFp16},
      {"fp16.initial_scale_power", "8", "8", PROBE(fp16.initial_scale_power),
       kFp16},
      {"fp16.loss_scale_window", "1e2", "100", PROBE(fp16.loss_scale_window),
       kFp16},
      {"fp16.hysteresis",
       "3",
       "3",
       PROBE(fp16.hysteresis),
       {{"fp16.enabled", "true"}, {ZERO "stage", "2"}}},
      {"fp16.consecutive_hysteresis", "true", "true",
       PROBE(fp16.consecutive_hysteresis), kFp16},
      {"fp16.min_loss_scale", "4", "4", PROBE(fp16.min_loss_scale), kFp16},
      {"bf16.enabled", "true", "bf16", PROBE(precision), {}},
      {"bfloat16.enabled", "true", "bf16", PROBE(precision), {}},

      {"optimizer.type",
       "\"adam\"",
       "Adam",
       [](const Config& c) { return OptimizerTypeName(c.optimizer.type); },
       {}},
      {OPTIMIZER "lr", "0.25", "0.25", PROBE(optimizer.lr), Type("AdamW")},
      {OPTIMIZER "betas", "[0.8, 0.9]", "0.8", PROBE(optimizer.betas.beta1),
       Type("AdamW")},
      {OPTIMIZER "eps", "1e-4", "0.0001", PROBE(optimizer.eps), Type("AdamW")},
      {OPTIMIZER "weight_decay", "0.1", "0.1", PROBE(optimizer.weight_decay),
       Type("AdamW")},
      {OPTIMIZER "bias_correction", "false", "false",
       PROBE(optimizer.bias_correction), Type("AdamW")},
      {OPTIMIZER "adam_w_mode", "false", "false",
       PROBE(optimizer.decoupled_weight_decay), Type("Adam")},
      {OPTIMIZER "torch_adam", "true", "0.01", PROBE(optimizer.weight_decay),
       Type("AdamW")},
      {OPTIMIZER "max_coeff", "5", "5", PROBE(optimizer.max_coeff),
       Type("Lamb")},
      {OPTIMIZER "min_coeff", "0.5", "0.5", PROBE(optimizer.min_coeff),
       Type("Lamb")},
      {OPTIMIZER "eps_inside_sqrt", "true", "true",
       PROBE(optimizer.eps_inside_sqrt), Type("Lamb")},
      {OPTIMIZER "freeze_step", "50", "50", PROBE(optimizer.freeze_step),
       Type("OneBitAdam")},
      {OPTIMIZER "coeff_beta", "0.5", "0.5", PROBE(optimizer.coeff_beta),
       Type("OneBitLamb")},
      {OPTIMIZER "factor_max", "5", "5", PROBE(optimizer.factor_max),
       Type("OneBitLamb")},
      {OPTIMIZER "factor_min", "0.25", "0.25", PROBE(optimizer.factor_min),
       Type("OneBitLamb")},
      {OPTIMIZER "factor_threshold", "0.2", "0.2",
       PROBE(optimizer.factor_threshold), Type("OneBitLamb")},

      {"scheduler.type",
       "\"WarmupLR\"",
       "WarmupLR",
       [](const Config& c) {
         return schedule::ScheduleTypeName(c.scheduler.type);
       },
       {}},
      {SCHEDULER "warmup_min_lr", "0.1", "0.1", PROBE(scheduler.warmup_min_lr),
       Schedule("WarmupLR")},
      {SCHEDULER "warmup_max_lr", "[0.1, 0.2]", "0.1,0.2",
       PROBE(scheduler.warmup_max_lr), Schedule("WarmupLR")},
      {SCHEDULER "warmup_num_steps", "20", "20",
       PROBE(scheduler.warmup_num_steps), Schedule("WarmupLR")},
      {SCHEDULER "warmup_type", "\"linear\"", "true",
       PROBE(scheduler.warmup_linear), Schedule("WarmupLR")},
      {SCHEDULER "total_num_steps",
       "5000",
       "5000",
       PROBE(scheduler.total_num_steps),
       {{"scheduler.type", "\"WarmupDecayLR\""}}},
      {SCHEDULER "warmup_min_ratio", "0.1", "0.1",
       PROBE(scheduler.warmup_min_ratio), Schedule("WarmupCosineLR")},
      {SCHEDULER "cos_min_ratio", "0.1", "0.1", PROBE(scheduler.cos_min_ratio),
       Schedule("WarmupCosineLR")},
      {SCHEDULER "lr_range_test_min_lr", "0.1", "0.1",
       PROBE(scheduler.lr_range_test_min_lr), Schedule("LRRangeTest")},
      {SCHEDULER "lr_range_test_step_size", "20", "20",
       PROBE(scheduler.lr_range_test_step_size), Schedule("LRRangeTest")},
      {SCHEDULER "lr_range_test_step_rate", "2", "2",
       PROBE(scheduler.lr_range_test_step_rate), Schedule("LRRangeTest")},
      {SCHEDULER "lr_range_test_staircase", "true", "true",
       PROBE(scheduler.lr_range_test_staircase), Schedule("LRRangeTest")},
      {SCHEDULER "cycle_min_lr",
       "0.01",
       "0.01",
       PROBE(scheduler.cycle_min_lr),
       {{"scheduler.type", "\"OneCycle\""}, {SCHEDULER "cycle_max_lr", "1"}}},
      {SCHEDULER "cycle_max_lr",
       "0.3",
       "0.3",
       PROBE(scheduler.cycle_max_lr),
       {{"scheduler.type", "\"OneCycle\""}, {SCHEDULER "cycle_min_lr", "0"}}},
      {SCHEDULER "decay_lr_rate", "0.5", "0.5", PROBE(scheduler.decay_lr_rate),
       Decaying()},
      {SCHEDULER "cycle_first_step_size", "20", "20",
       PROBE(scheduler.cycle_first_step_size), Schedule("OneCycle")},
      {SCHEDULER "cycle_second_step_size", "30", "30",
       PROBE(scheduler.cycle_second_step_size), Schedule("OneCycle")},
      {SCHEDULER "cycle_first_stair_count", "2", "2",
       PROBE(scheduler.cycle_first_stair_count), Schedule("OneCycle")},
      {SCHEDULER "cycle_second_stair_count", "3", "3",
       PROBE(scheduler.cycle_second_stair_count), Schedule("OneCycle")},
      {SCHEDULER "decay_step_size", "10", "10",
       PROBE(scheduler.decay_step_size), Schedule("OneCycle")},
      {SCHEDULER "cycle_momentum", "false", "false",
       PROBE(scheduler.cycle_momentum), Schedule("OneCycle")},
      {SCHEDULER "cycle_min_mom", "0.5", "0.5", PROBE(scheduler.cycle_min_mom),
       Schedule("OneCycle")},
      {SCHEDULER "cycle_max_mom", "0.95", "0.95",
       PROBE(scheduler.cycle_max_mom), Schedule("OneCycle")},
      {SCHEDULER "decay_mom_rate", "0.1", "0.1",
       PROBE(scheduler.decay_mom_rate), Decaying()},

      {ZERO "stage", "2", "2", PROBE(zero_optimization.stage), {}},
      {ZERO "reduce_bucket_size",
       "5e6",
       "5000000",
       PROBE(zero_optimization.reduce_bucket_size),
       {{"stowage.exchange", "\"c10d\""}}},
      {ZERO "allgather_bucket_size",
       "5e6",
       "5000000",
       PROBE(zero_optimization.allgather_bucket_size),
       {{"stowage.exchange", "\"c10d\""}}},
      {ZERO "allgather_partitions",
       "false",
       "false",
       PROBE(zero_optimization.allgather_partitions),
       {{"stowage.exchange", "\"c10d\""}}},
      {ZERO "reduce_scatter",
       "false",
       "false",
       PROBE(zero_optimization.reduce_scatter),
       {{"stowage.exchange", "\"c10d\""}}},
      {ZERO "contiguous_gradients",
       "false",
       "false",
       PROBE(zero_optimization.contiguous_gradients),
       {{"stowage.exchange", "\"c10d\""}}},
      {ZERO "overlap_comm",
       "false",
       "false",
       PROBE(zero_optimization.overlap_comm),
       {{"stowage.exchange", "\"c10d\""}}},
      {ZERO "sub_group_size", "1e6", "1000000",
       PROBE(zero_optimization.sub_group_size), kOptimizerNvme},
      {ZERO "stage3_prefetch_bucket_size", "0", "0",
       PROBE(zero_optimization.stage3_prefetch_bucket_size), kStage3},
      {ZERO "prefetch_bucket_size", "9", "9",
       PROBE(zero_optimization.stage3_prefetch_bucket_size), kStage3},
      {ZERO "stage3_param_persistence_threshold", "9", "9",
       PROBE(zero_optimization.stage3_param_persistence_threshold), kStage3},
      {ZERO "param_persistence_threshold", "9", "9",
       PROBE(zero_optimization.stage3_param_persistence_threshold), kStage3},
      {ZERO "stage3_model_persistence_threshold", "1e6", "1000000",
       PROBE(zero_optimization.stage3_model_persistence_threshold), kStage3},
      {ZERO "model_persistence_threshold", "9", "9",
       PROBE(zero_optimization.stage3_model_persistence_threshold), kStage3},
      {ZERO "stage3_max_live_parameters", "9", "9",
       PROBE(zero_optimization.stage3_max_live_parameters), kStage3},
      {ZERO "max_live_parameters", "9", "9",
       PROBE(zero_optimization.stage3_max_live_parameters), kStage3},
      {ZERO "stage3_gather_16bit_weights_on_model_save", "true", "true",
       PROBE(zero_optimization.stage3_gather_16bit_weights_on_model_save),
       kStage3},
      {ZERO "gather_16bit_weights_on_model_save", "true", "true",
       PROBE(zero_optimization.stage3_gather_16bit_weights_on_model_save),
       kStage3},
      {ZERO "stage3_gather_fp16_weights_on_model_save", "true", "true",
       PROBE(zero_optimization.stage3_gather_16bit_weights_on_model_save),
       kStage3},
      {ZERO "stage3_max_reuse_distance", "9", "9",
       PROBE(zero_optimization.stage3_max_reuse_distance), kStage3},
      {ZERO "max_reuse_distance", "9", "9",
       PROBE(zero_optimization.stage3_max_reuse_distance), kStage3},
      {ZERO "log_trace_cache_warnings", "true", "true",
       PROBE(zero_optimization.log_trace_cache_warnings), kStage3},
      {ZERO "cpu_offload", "true", "cpu",
       PROBE(zero_optimization.offload_optimizer.device), kStage3},
      {ZERO "cpu_offload_param", "true", "cpu",
       PROBE(zero_optimization.offload_param.device), kStage3},

      {ZERO "offload_param.device", "\"cpu\"", "cpu",
       PROBE(zero_optimization.offload_param.device), kStage3},
      {ZERO "offload_param.nvme_path",
       "\"/mnt\"",
       "/mnt",
       PROBE(zero_optimization.offload_param.nvme_path),
       {{ZERO "stage", "3"}, {ZERO "offload_param.device", "\"nvme\""}}},
      {ZERO "offload_param.buffer_count", "9", "9",
       PROBE(zero_optimization.offload_param.buffer_count), kParamNvme},
      {ZERO "offload_param.buffer_size", "1e7", "10000000",
       PROBE(zero_optimization.offload_param.buffer_size), kParamNvme},
      {ZERO "offload_param.max_in_cpu", "0", "0",
       PROBE(zero_optimization.offload_param.max_in_cpu), kParamNvme},
      {ZERO "offload_optimizer.device",
       "\"cpu\"",
       "cpu",
       PROBE(zero_optimization.offload_optimizer.device),
       {{ZERO "stage", "1"}}},
      {ZERO "offload_optimizer.nvme_path",
       "\"/mnt\"",
       "/mnt",
       PROBE(zero_optimization.offload_optimizer.nvme_path),
       {{ZERO "offload_optimizer.device", "\"nvme\""}, {ZERO "stage", "1"}}},
      {ZERO "offload_optimizer.buffer_count", "9", "9",
       PROBE(zero_optimization.offload_optimizer.buffer_count), kOptimizerNvme},
      {ZERO "offload_param.pin_memory", "false", "false",
       PROBE(zero_optimization.offload_param.pin_memory), kParamNvme},
      {ZERO "offload_optimizer.pin_memory", "false", "false",
       PROBE(zero_optimization.offload_optimizer.pin_memory), kOptimizerNvme},
      {ZERO "offload_optimizer.pipeline_read", "true", "true",
       PROBE(zero_optimization.offload_optimizer.pipeline_read),
       kOptimizerNvme},
      {ZERO "offload_optimizer.pipeline_write", "true", "true",
       PROBE(zero_optimization.offload_optimizer.pipeline_write),
       kOptimizerNvme},
      {ZERO "offload_optimizer.fast_init", "true", "true",
       PROBE(zero_optimization.offload_optimizer.fast_init), kOptimizerNvme},
      {ZERO "offload_optimizer.ratio", "0.5", "0.5",
       PROBE(zero_optimization.offload_optimizer.ratio), kOptimizerNvme},

      {"csv_monitor.enabled", "true", "true", PROBE(csv_monitor.enabled), {}},
      {"csv_monitor.output_path",
       "\"o\"",
       "o",
       PROBE(csv_monitor.output_path),
       {{"csv_monitor.enabled", "true"}}},
      {"csv_monitor.job_name",
       "\"j\"",
       "j",
       PROBE(csv_monitor.job_name),
       {{"csv_monitor.enabled", "true"}}},
      {"wandb.enabled", "true", "true", PROBE(wandb.enabled), {}},
      {"wandb.group", "\"g\"", "g", PROBE(wandb.group), kWandb},
      {"wandb.team", "\"t\"", "t", PROBE(wandb.team), kWandb},
      {"wandb.project", "\"p\"", "p", PROBE(wandb.project), kWandb},
      {"stowage.wandb_python", "\"/py\"", "/py", PROBE(stowage.wandb_python),
       kWandb},
      {"stowage.compat.steps_per_print_default",
       "\"10\"",
       "10",
       PROBE(steps_per_print),
       {}},
      {"stowage.compat.warmup_num_steps_below_one",
       "\"2\"",
       "true",
       PROBE(stowage.compat.warmup_below_one_is_two),
       {}},
      {"stowage.compat.cosine_past_total",
       "\"oscillate\"",
       "true",
       PROBE(scheduler.cosine_oscillates),
       {}},
      {"stowage.compat.one_cycle_stairs",
       "\"ignore\"",
       "true",
       PROBE(scheduler.ignore_stairs),
       {}},
      {"tensorboard.enabled", "true", "true", PROBE(tensorboard.enabled), {}},
      {"tensorboard.output_path",
       "\"o\"",
       "o",
       PROBE(tensorboard.output_path),
       {{"tensorboard.enabled", "true"}}},
      {"tensorboard.job_name",
       "\"j\"",
       "j",
       PROBE(tensorboard.job_name),
       {{"tensorboard.enabled", "true"}}},

      {"aio.block_size", "8192", "8192", PROBE(aio.block_size), kOptimizerNvme},
      {"aio.queue_depth", "32", "32", PROBE(aio.queue_depth), kOptimizerNvme},
      {"aio.intra_op_parallelism", "2", "2", PROBE(aio.intra_op_parallelism),
       kOptimizerNvme},
      {"aio.single_submit", "true", "true", PROBE(aio.single_submit),
       kOptimizerNvme},
      {"aio.overlap_events", "false", "false", PROBE(aio.overlap_events),
       kOptimizerNvme},

      {"stowage.server", "\"unix:/s\"", "unix:/s", PROBE(stowage.server), {}},
      {"stowage.job", "\"demo\"", "demo", PROBE(stowage.job), {}},
      {"stowage.durability",
       "\"power\"",
       "power",
       [](const Config& c) { return DurabilityName(c.stowage.durability); },
       {}},
      {"stowage.memory_budget",
       "\"2GiB\"",
       "2147483648",
       PROBE(stowage.memory_budget_bytes),
       {}},
      {"stowage.nvme_budget", "1e12", "1000000000000",
       PROBE(stowage.nvme_budget_bytes), kOptimizerNvme},
      {"stowage.kept_steps", "3", "3", PROBE(stowage.kept_steps),
       kOptimizerNvme},
      {"stowage.nvme_paths", "[\"/d\"]", "/d",
       [](const Config& c) {
         return c.stowage.nvme_paths.empty() ? "" : c.stowage.nvme_paths[0];
       },
       kOptimizerNvme},
      {"stowage.exchange",
       "\"segments\"",
       "segments",
       [](const Config& c) { return ExchangeKindName(c.stowage.exchange); },
       {}},
      {"stowage.server_threads", "2", "2", PROBE(stowage.server_threads), {}},
      {"stowage.shm_dir",
       "\"/dev/shm/x\"",
       "/dev/shm/x",
       PROBE(stowage.shm_dir),
       {}},
      {"stowage.jsonl_monitor.enabled",
       "true",
       "true",
       PROBE(stowage.jsonl_monitor.enabled),
       {}},
      {"stowage.jsonl_monitor.output_path",
       "\"o\"",
       "o",
       PROBE(stowage.jsonl_monitor.output_path),
       {{"stowage.jsonl_monitor.enabled", "true"}}},
      {"stowage.jsonl_monitor.job_name",
       "\"j\"",
       "j",
       PROBE(stowage.jsonl_monitor.job_name),
       {{"stowage.jsonl_monitor.enabled", "true"}}},
      {"stowage.compat.gradient_clipping_default",
       "\"0.0\"",
       "0",
       PROBE(gradient_clipping),
       {}},
  };
}

const Row* FindRow(std::string_view path) {
  static const std::vector<Row>* const rows = new std::vector<Row>(Rows());
  for (const Row& row : *rows) {
    if (row.path == path) return &row;
  }
  return nullptr;
}

std::string FileOf(const Key& key, std::string_view json,
                   const std::vector<JsonLeaf>& with) {
  std::vector<JsonLeaf> leaves = with;
  const std::string_view path = key.path;
  const std::string_view owners = key.owners;
  for (const std::string_view block : {"optimizer", "scheduler"}) {
    const std::string type = Cat(block, ".type");
    if (!with.empty() || path == type || path.find('.') != block.size() ||
        path.substr(0, block.size()) != block) {
      continue;
    }
    const std::string_view any = block == "optimizer" ? "AdamW" : "WarmupLR";
    leaves.push_back(
        {type,
         Cat("\"", owners.empty() ? any : Split(owners, '|').front(), "\"")});
  }
  // A micro batch of 2 goes with accumulation 2 or a batch of 8.
  if (path != "train_micro_batch_size_per_gpu" && path != "train_batch_size") {
    leaves.push_back({"train_micro_batch_size_per_gpu", "2"});
  }
  leaves.push_back({std::string(path), std::string(json)});
  return NestedJson(leaves);
}

// A value of the right type that is not `only`.
std::string Other(const Key& key) {
  const std::string_view only = key.only;
  switch (key.type) {
    case KeyType::kBool:
      return only == "true" ? "false" : "true";
    case KeyType::kInt:
      return "3";
    case KeyType::kNumber:
      return "0.5";
    case KeyType::kString:
      return "\"x\"";
    case KeyType::kStrings:
      return "[\"x\"]";
    case KeyType::kEnum:
      for (const std::string_view choice : Split(key.choices, '|')) {
        if (Cat("\"", choice, "\"") != only) return Cat("\"", choice, "\"");
      }
      return "";
    default:
      return "{\"enabled\": true}";
  }
}

std::vector<std::string> Paths() {
  std::vector<std::string> out;
  for (const Key& key : Schema()) out.emplace_back(key.path);
  return out;
}

std::string TestName(const testing::TestParamInfo<std::string>& info) {
  std::string out = info.param;
  for (char& c : out) {
    if (c == '.') c = '_';
  }
  return out;
}

class ConfigKey : public testing::TestWithParam<std::string> {};

TEST_P(ConfigKey, HasItsEffectItsWarningOrItsRefusal) {
  const Key& key = *FindKey(GetParam());
  if (key.type == KeyType::kBlock) {
    // An empty block changes nothing; optimizer and scheduler need a type.
    const std::string text = FileOf(key, "{}", {});
    const bool typed = GetParam() == "optimizer" || GetParam() == "scheduler";
    EXPECT_EQ(ErrorOf(text).empty(), !typed) << ErrorOf(text);
    return;
  }
  const Key& target = *key.same_as == '\0' ? key : *FindKey(key.same_as);
  if (target.rule == Rule::kHonoured) {
    const Row* row = FindRow(GetParam());
    ASSERT_NE(row, nullptr) << "no row in Rows()";
    const std::string text = FileOf(key, row->json, row->with);
    const auto with = ResolveText(text);
    ASSERT_TRUE(with.ok()) << text << with.status().ToString();
    EXPECT_EQ(row->probe(with->config), row->want) << text;
    EXPECT_NE(FindResolved(*with, target.path), nullptr);
    for (const Warning& warning : with->warnings) {
      EXPECT_EQ(warning.message.find("no effect"), std::string::npos)
          << warning.ToString();
    }
    // The row proves something only if the default differs. The batch keys
    // have none.
    const std::string plain =
        FileOf(*FindKey("wall_clock_breakdown"), "false", row->with);
    const auto without = ResolveText(plain);
    if (without.ok() && GetParam() != "data_types.param_dtype") {
      EXPECT_NE(row->probe(without->config), row->want) << plain;
    }
    return;
  }
  const std::string text = FileOf(key, Other(target), {});
  const auto resolution = ResolveText(text);
  if (target.rule == Rule::kRefused || target.rule == Rule::kOnly) {
    EXPECT_EQ(resolution.status().code(), absl::StatusCode::kUnimplemented)
        << text;
    EXPECT_THAT(std::string(resolution.status().message()),
                HasSubstr(target.path));
  } else {
    ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
    EXPECT_THAT(WarningsOf(*resolution),
                HasSubstr(absl::StrCat(target.path, ": ")));
    EXPECT_THAT(WarningsOf(*resolution), HasSubstr(target.effect));
  }
  if (*target.only != '\0') {
    const auto quiet = ResolveText(FileOf(key, target.only, {}));
    ASSERT_TRUE(quiet.ok()) << quiet.status().ToString();
    if (*key.same_as == '\0') {
      EXPECT_EQ(WarningsOf(*quiet), "");
    }
  }
}

TEST_P(ConfigKey, RefusesAnotherTypeInOneLine) {
  const Key& key = *FindKey(GetParam());
  if (key.type == KeyType::kAny) return;
  const Row* row = FindRow(GetParam());
  for (const std::string_view json :
       {"{\"x\": 1}", "[[]]", "\"no such value\"", "true", "-1.5", "null",
        "1e300", "-Infinity", "NaN"}) {
    auto value = ParseJson(json, "v");
    ASSERT_TRUE(value.ok());
    const std::string text =
        FileOf(key, json, row == nullptr ? std::vector<JsonLeaf>() : row->with);
    const std::string error = ErrorOf(text);
    EXPECT_EQ(error.find('\n'), std::string::npos) << text << error;
    if (value->kind == Value::Kind::kObject && key.type != KeyType::kBlock) {
      EXPECT_THAT(error,
                  HasSubstr(absl::StrCat(key.path, " = {\"x\":1}: expected ")));
      EXPECT_THAT(error, HasSubstr(", found an object"));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Schema, ConfigKey, testing::ValuesIn(Paths()),
                         TestName);

}  // namespace
}  // namespace stowage::engine::config
