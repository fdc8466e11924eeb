// From a checked and filled file to the typed Config.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "engine/config/auto_values.h"
#include "engine/config/config.h"
#include "engine/config/effects.h"
#include "engine/config/json_text.h"
#include "engine/config/settings.h"
#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

OffloadDevice DeviceOf(const std::string& name) {
  if (name == "cpu") return OffloadDevice::kCpu;
  return name == "nvme" ? OffloadDevice::kNvme : OffloadDevice::kNone;
}

std::optional<Dtype> DtypeOf(const std::string& name) {
  const absl::StatusOr<Dtype> dtype = ParseDtype(name);
  if (!dtype.ok()) return std::nullopt;
  return *dtype;
}

OptimizerType OptimizerOf(const std::string& name) {
  for (const OptimizerType type :
       {OptimizerType::kAdam, OptimizerType::kAdamW, OptimizerType::kLamb,
        OptimizerType::kOneBitAdam, OptimizerType::kOneBitLamb}) {
    if (name == OptimizerTypeName(type)) return type;
  }
  return OptimizerType::kNone;
}

void ReadZero(const Settings& s, ZeroOptimization& zero) {
  const auto path = [](std::string_view name) {
    return Cat("zero_optimization.", name);
  };
  zero.stage = static_cast<int>(s.Int(path("stage")));
  zero.overlap_comm =
      !s.At(path("overlap_comm")).has_value || s.Bool(path("overlap_comm"));
  zero.contiguous_gradients = s.Bool(path("contiguous_gradients"));
  zero.reduce_scatter = s.Bool(path("reduce_scatter"));
  zero.allgather_partitions = s.Bool(path("allgather_partitions"));
  zero.reduce_bucket_size = s.Int(path("reduce_bucket_size"));
  zero.allgather_bucket_size = s.Int(path("allgather_bucket_size"));
  zero.sub_group_size = s.Int(path("sub_group_size"));
  zero.stage3_prefetch_bucket_size = s.Int(path("stage3_prefetch_bucket_size"));
  zero.stage3_param_persistence_threshold =
      s.Int(path("stage3_param_persistence_threshold"));
  zero.stage3_model_persistence_threshold =
      s.Int(path("stage3_model_persistence_threshold"));
  zero.stage3_max_live_parameters = s.Int(path("stage3_max_live_parameters"));
  zero.stage3_max_reuse_distance = s.Int(path("stage3_max_reuse_distance"));
  zero.stage3_gather_16bit_weights_on_model_save =
      s.Bool(path("stage3_gather_16bit_weights_on_model_save"));
  zero.log_trace_cache_warnings = s.Bool(path("log_trace_cache_warnings"));

  OffloadParam& param = zero.offload_param;
  param.device = DeviceOf(s.Text(path("offload_param.device")));
  param.nvme_path = s.Text(path("offload_param.nvme_path"));
  param.buffer_count = s.Int(path("offload_param.buffer_count"));
  param.buffer_size = s.Int(path("offload_param.buffer_size"));
  param.max_in_cpu = s.Int(path("offload_param.max_in_cpu"));
  param.pin_memory = s.Bool(path("offload_param.pin_memory"));

  OffloadOptimizer& optimizer = zero.offload_optimizer;
  optimizer.device = DeviceOf(s.Text(path("offload_optimizer.device")));
  optimizer.nvme_path = s.Text(path("offload_optimizer.nvme_path"));
  optimizer.buffer_count = s.Int(path("offload_optimizer.buffer_count"));
  optimizer.pin_memory = s.Bool(path("offload_optimizer.pin_memory"));
  optimizer.pipeline_read = s.Bool(path("offload_optimizer.pipeline_read"));
  optimizer.pipeline_write = s.Bool(path("offload_optimizer.pipeline_write"));
  optimizer.fast_init = s.Bool(path("offload_optimizer.fast_init"));
  optimizer.ratio = s.Number(path("offload_optimizer.ratio"));
}

void ReadPrecision(const Settings& s, Config& config) {
  Fp16& fp16 = config.fp16;
  fp16.enabled = s.Bool("fp16.enabled");
  fp16.auto_cast = s.Bool("fp16.auto_cast");
  fp16.loss_scale = s.Number("fp16.loss_scale");
  fp16.initial_scale_power = s.Int("fp16.initial_scale_power");
  fp16.loss_scale_window = s.Int("fp16.loss_scale_window");
  fp16.hysteresis = s.Int("fp16.hysteresis");
  fp16.consecutive_hysteresis = s.Bool("fp16.consecutive_hysteresis");
  fp16.min_loss_scale = s.Number("fp16.min_loss_scale");
  config.bf16.enabled = s.Bool("bf16.enabled");
  config.precision = fp16.enabled          ? Dtype::kFp16
                     : config.bf16.enabled ? Dtype::kBf16
                                           : Dtype::kFp32;
}

void ReadOptimizer(Settings& s, Optimizer& optimizer) {
  const auto path = [](std::string_view name) {
    return Cat("optimizer.params.", name);
  };
  optimizer.type = OptimizerOf(s.Text("optimizer.type"));
  optimizer.lr = s.Number(path("lr"));
  const std::vector<double> betas = s.Numbers(path("betas"));
  STOWAGE_CHECK(betas.size() == 2);
  optimizer.betas = {betas[0], betas[1]};
  optimizer.eps = s.Number(path("eps"));
  optimizer.bias_correction = s.Bool(path("bias_correction"));
  optimizer.torch_adam = s.Bool(path("torch_adam"));
  optimizer.adam_w_mode = s.Bool(path("adam_w_mode"));
  optimizer.decoupled_weight_decay =
      optimizer.type != OptimizerType::kAdam || optimizer.adam_w_mode;
  if (optimizer.torch_adam && optimizer.decoupled_weight_decay &&
      s.At(path("weight_decay")).origin == Origin::kDefault) {
    s.Put(path("weight_decay"), MakeNumber(0.01), Origin::kDefault,
          "of torch.optim.AdamW");
  }
  optimizer.weight_decay = s.Number(path("weight_decay"));
  optimizer.max_coeff = s.Number(path("max_coeff"));
  optimizer.min_coeff = s.Number(path("min_coeff"));
  optimizer.eps_inside_sqrt = s.Bool(path("eps_inside_sqrt"));
  optimizer.freeze_step = s.Int(path("freeze_step"));
  optimizer.coeff_beta = s.Number(path("coeff_beta"));
  optimizer.factor_max = s.Number(path("factor_max"));
  optimizer.factor_min = s.Number(path("factor_min"));
  optimizer.factor_threshold = s.Number(path("factor_threshold"));
}

void ReadScheduler(Settings& s, schedule::ScheduleSpec& spec) {
  const auto path = [](std::string_view name) {
    return Cat("scheduler.params.", name);
  };
  const std::string type = s.Text("scheduler.type");
  if (!type.empty()) spec.type = *schedule::ParseScheduleType(type);
  spec.warmup_min_lr = s.Numbers(path("warmup_min_lr"));
  spec.warmup_max_lr = s.Numbers(path("warmup_max_lr"));
  spec.warmup_num_steps = s.Int(path("warmup_num_steps"));
  if (spec.warmup_num_steps < 1 &&
      s.Text("stowage.compat.warmup_num_steps_below_one") == "2") {
    spec.warmup_num_steps = 2;
    s.Put(path("warmup_num_steps"), MakeInt(2), Origin::kDerived,
          "stowage.compat.warmup_num_steps_below_one");
  }
  spec.cosine_oscillates =
      s.Text("stowage.compat.cosine_past_total") == "oscillate";
  spec.ignore_stairs = s.Text("stowage.compat.one_cycle_stairs") == "ignore";
  spec.warmup_linear = s.Text(path("warmup_type")) == "linear";
  spec.total_num_steps = s.MaybeInt(path("total_num_steps")).value_or(0);
  spec.warmup_min_ratio = s.Number(path("warmup_min_ratio"));
  spec.cos_min_ratio = s.Number(path("cos_min_ratio"));
  spec.lr_range_test_min_lr = s.Numbers(path("lr_range_test_min_lr"));
  spec.lr_range_test_step_size = s.Int(path("lr_range_test_step_size"));
  spec.lr_range_test_step_rate = s.Number(path("lr_range_test_step_rate"));
  spec.lr_range_test_staircase = s.Bool(path("lr_range_test_staircase"));
  spec.cycle_min_lr = s.Numbers(path("cycle_min_lr"));
  spec.cycle_max_lr = s.Numbers(path("cycle_max_lr"));
  spec.decay_lr_rate = s.Number(path("decay_lr_rate"));
  spec.cycle_first_step_size = s.Int(path("cycle_first_step_size"));
  spec.cycle_second_step_size = s.MaybeInt(path("cycle_second_step_size"));
  spec.cycle_first_stair_count = s.Int(path("cycle_first_stair_count"));
  spec.cycle_second_stair_count = s.MaybeInt(path("cycle_second_stair_count"));
  spec.decay_step_size = s.Int(path("decay_step_size"));
  spec.cycle_momentum = s.Bool(path("cycle_momentum"));
  spec.cycle_min_mom = s.Number(path("cycle_min_mom"));
  spec.cycle_max_mom = s.Number(path("cycle_max_mom"));
  spec.decay_mom_rate = s.Number(path("decay_mom_rate"));
}

MonitorBlock ReadMonitor(const Settings& s, const std::string& block) {
  return {s.Bool(block + ".enabled"), s.Text(block + ".output_path"),
          s.Text(block + ".job_name")};
}

void ReadStowage(const Settings& s, Stowage& stowage) {
  stowage.server = s.Text("stowage.server");
  stowage.job = s.Text("stowage.job");
  const std::string durability = s.Text("stowage.durability");
  stowage.durability = durability == "power"     ? Durability::kPower
                       : durability == "process" ? Durability::kProcess
                                                 : Durability::kMemory;
  stowage.memory_budget_bytes = s.Int("stowage.memory_budget");
  stowage.nvme_budget_bytes = s.Int("stowage.nvme_budget");
  stowage.kept_steps = s.Int("stowage.kept_steps");
  for (const Value& path : s.At("stowage.nvme_paths").value.items) {
    stowage.nvme_paths.push_back(path.text);
  }
  const std::string exchange = s.Text("stowage.exchange");
  stowage.exchange = exchange == "segments" ? ExchangeKind::kSegments
                     : exchange == "c10d"   ? ExchangeKind::kC10d
                                            : ExchangeKind::kAuto;
  stowage.server_threads = s.Int("stowage.server_threads");
  stowage.shm_dir = s.Text("stowage.shm_dir");
  stowage.jsonl_monitor = ReadMonitor(s, "stowage.jsonl_monitor");
  stowage.wandb_python = s.Text("stowage.wandb_python");
  stowage.compat.gradient_clipping_default =
      s.Text("stowage.compat.gradient_clipping_default") == "0.0" ? 0.0 : 1.0;
  stowage.compat.steps_per_print_default =
      s.Text("stowage.compat.steps_per_print_default") == "10" ? 10 : 0;
  stowage.compat.warmup_below_one_is_two =
      s.Text("stowage.compat.warmup_num_steps_below_one") == "2";
}

void ReadTop(Settings& s, const TrainerValues& trainer, Config& config) {
  config.world_size = trainer.world_size;
  config.train_batch_size = s.Int("train_batch_size");
  config.train_micro_batch_size_per_gpu =
      s.Int("train_micro_batch_size_per_gpu");
  config.gradient_accumulation_steps = s.Int("gradient_accumulation_steps");
  if (!s.At("gradient_clipping").has_value) {
    s.Put("gradient_clipping",
          MakeNumber(config.stowage.compat.gradient_clipping_default),
          Origin::kDefault, "stowage.compat.gradient_clipping_default");
  }
  config.gradient_clipping = s.Number("gradient_clipping");
  if (config.stowage.compat.steps_per_print_default > 0 &&
      !s.InFile("steps_per_print")) {
    s.Put("steps_per_print",
          MakeInt(config.stowage.compat.steps_per_print_default),
          Origin::kDefault, "stowage.compat.steps_per_print_default");
  }
  const std::int64_t print = s.MaybeInt("steps_per_print").value_or(0);
  config.steps_per_print = print == INT64_MAX ? 0 : print;
  if (print == INT64_MAX) {
    s.Put("steps_per_print", Value(), Origin::kFile,
          s.At("steps_per_print").source);
  }
  config.wall_clock_breakdown = s.Bool("wall_clock_breakdown");
  config.memory_breakdown = s.Bool("memory_breakdown");
  config.dump_state = s.Bool("dump_state");
  const std::string level = s.Text("log_level");
  config.log_level = level == "critical" ? "error" : level;
  config.zero_allow_untested_optimizer =
      s.Bool("zero_allow_untested_optimizer");
  if (!s.At("communication_data_type").has_value) {
    s.Put("communication_data_type",
          MakeString(std::string(DtypeName(config.precision))),
          Origin::kDefault, "the parameters' type");
  }
  config.prescale_gradients = s.Bool("prescale_gradients");
  config.gradient_predivide_factor = s.Number("gradient_predivide_factor");
  config.communication_data_type =
      DtypeOf(s.Text("communication_data_type")).value_or(config.precision);

  config.aio = {s.Int("aio.block_size"), s.Int("aio.queue_depth"),
                s.Int("aio.intra_op_parallelism"), s.Bool("aio.single_submit"),
                s.Bool("aio.overlap_events")};
  config.checkpoint = {s.Text("checkpoint.tag_validation"), false,
                       s.Bool("checkpoint.use_node_local_storage")};
  config.csv_monitor = ReadMonitor(s, "csv_monitor");
  config.tensorboard = ReadMonitor(s, "tensorboard");
  config.wandb = {s.Bool("wandb.enabled"), s.Text("wandb.group"),
                  s.Text("wandb.team"), s.Text("wandb.project")};
}

// What two or more keys together make wrong.
absl::Status CheckCombinations(const Settings& s, const Config& config) {
  ErrorList errors;
  const ZeroOptimization& zero = config.zero_optimization;
  if (config.fp16.enabled && config.bf16.enabled) {
    errors.Add(Cat(s.Show("bf16.enabled"), " and ", s.Show("fp16.enabled"),
                   ": only one of them can be enabled"));
  }
  if (zero.offload_param.device != OffloadDevice::kNone && zero.stage < 3) {
    errors.Add(Cat(s.Show("zero_optimization.offload_param.device"),
                   " needs zero_optimization.stage 3, which is ", zero.stage,
                   ": below it every rank holds all parameters"));
  }
  if (zero.offload_optimizer.ratio < 1 && zero.stage != 3) {
    errors.Add(Cat(s.Show("zero_optimization.offload_optimizer.ratio"),
                   " below 1 needs zero_optimization.stage 3, which is ",
                   zero.stage));
  }
  for (const auto& [block, device, path] :
       {std::tuple{"offload_param", zero.offload_param.device,
                   zero.offload_param.nvme_path},
        std::tuple{"offload_optimizer", zero.offload_optimizer.device,
                   zero.offload_optimizer.nvme_path}}) {
    if (device == OffloadDevice::kNvme && path.empty()) {
      const std::string prefix = Cat("zero_optimization.", block);
      errors.Add(Cat(s.Show(prefix + ".device"), " needs ", prefix,
                     ".nvme_path, a folder on the disk"));
    }
  }
  const std::optional<Dtype> wanted = DtypeOf(s.Text("data_types.param_dtype"));
  if (wanted && *wanted != config.precision) {
    errors.Add(Cat(s.Show("data_types.param_dtype"),
                   ", but fp16.enabled and bf16.enabled make it ",
                   DtypeName(config.precision)));
  }
  if (config.optimizer.torch_adam &&
      s.InFile("optimizer.params.bias_correction")) {
    errors.Add(Cat(s.Show("optimizer.params.bias_correction"),
                   ": torch's Adam (torch_adam is true) has no such "
                   "parameter, it always corrects"));
  }
  if (config.optimizer.min_coeff > config.optimizer.max_coeff) {
    errors.Add(Cat(s.Show("optimizer.params.min_coeff"),
                   " is above optimizer.params.max_coeff, ",
                   config.optimizer.max_coeff));
  }
  if (IsOneBit(config.optimizer.type) && zero.stage != 0) {
    errors.Add(Cat(s.Show("optimizer.type"),
                   " needs zero_optimization.stage 0, which is ", zero.stage,
                   ": after the freeze each rank compresses its own momentum "
                   "of the whole model, which no rank has with ZeRO"));
  }
  if (s.Int("aio.block_size") % 4096 != 0) {
    errors.Add(Cat(s.Show("aio.block_size"), ": expected a multiple of 4096"));
  }
  const schedule::ScheduleType type = config.scheduler.type;
  const auto require = [&](std::string_view path, std::string_view why) {
    if (s.At(path).has_value) return;
    errors.Add(Cat(s.Show("scheduler.type"), " needs ", path, why));
  };
  if (type == schedule::ScheduleType::kWarmupDecayLr ||
      type == schedule::ScheduleType::kWarmupCosineLr) {
    require("scheduler.params.total_num_steps",
            ": the number of steps, or \"auto\"");
  }
  if (config.scheduler.warmup_num_steps < 1) {
    errors.Add(
        Cat(s.Show("scheduler.params.warmup_num_steps"),
            ": expected an integer >= 1; releases of DeepSpeed before "
            "0.19.6 took 2, as stowage.compat.warmup_num_steps_below_one "
            "= \"2\" does"));
  }
  if (type == schedule::ScheduleType::kOneCycle) {
    require("scheduler.params.cycle_min_lr", ": a learning rate");
    require("scheduler.params.cycle_max_lr", ": a learning rate");
  }
  return errors.ToStatus();
}

// Whether a key that is not in the file is worth showing: it is honoured, and
// has an effect in this combination.
bool Applies(const Setting& setting, const Config& config, const Settings& s) {
  const Key& key = *setting.key;
  if (key.type == KeyType::kBlock || *key.same_as != '\0') return false;
  if (setting.in_file) return true;
  if (key.rule != Rule::kHonoured || !setting.has_value) return false;
  if (*key.owners != '\0') {
    const std::string type = s.Text(Cat(Split(key.path, '.').front(), ".type"));
    bool owned = false;
    for (const std::string_view owner : Split(key.owners, '|')) {
      owned = owned || owner == type;
    }
    if (!owned) return false;
  }
  return WhyNoEffect(key.needs, config).empty();
}

}  // namespace

const char* OffloadDeviceName(OffloadDevice device) {
  switch (device) {
    case OffloadDevice::kNone:
      return "none";
    case OffloadDevice::kCpu:
      return "cpu";
    case OffloadDevice::kNvme:
      return "nvme";
  }
  return "";
}

const char* OptimizerTypeName(OptimizerType type) {
  switch (type) {
    case OptimizerType::kNone:
      return "";
    case OptimizerType::kAdam:
      return "Adam";
    case OptimizerType::kAdamW:
      return "AdamW";
    case OptimizerType::kLamb:
      return "Lamb";
    case OptimizerType::kOneBitAdam:
      return "OneBitAdam";
    case OptimizerType::kOneBitLamb:
      return "OneBitLamb";
  }
  return "";
}

const char* DurabilityName(Durability durability) {
  switch (durability) {
    case Durability::kMemory:
      return "memory";
    case Durability::kProcess:
      return "process";
    case Durability::kPower:
      return "power";
  }
  return "";
}

const char* ExchangeKindName(ExchangeKind kind) {
  switch (kind) {
    case ExchangeKind::kAuto:
      return "auto";
    case ExchangeKind::kSegments:
      return "segments";
    case ExchangeKind::kC10d:
      return "c10d";
  }
  return "";
}

absl::StatusOr<Resolution> Resolve(const Document& document,
                                   const TrainerValues& trainer) {
  STOWAGE_ASSIGN_OR_RETURN(Settings settings, Settings::Read(document));
  STOWAGE_RETURN_IF_ERROR(FillFromTrainer(trainer, settings));
  Resolution resolution;
  Config& config = resolution.config;
  ReadPrecision(settings, config);
  ReadZero(settings, config.zero_optimization);
  ReadOptimizer(settings, config.optimizer);
  ReadScheduler(settings, config.scheduler);
  ReadStowage(settings, config.stowage);
  ReadTop(settings, trainer, config);
  STOWAGE_RETURN_IF_ERROR(CheckCombinations(settings, config));
  WarnOfCombinations(config, settings);
  for (const Setting& setting : settings.all()) {
    if (!Applies(setting, config, settings)) continue;
    std::string value = "null";
    if (setting.has_value) {
      value = JsonOf(Single(*setting.key, setting.value));
    }
    resolution.keys.push_back(
        {setting.key->path, std::move(value), setting.origin, setting.source});
  }
  resolution.warnings = std::move(settings.warnings());
  return resolution;
}

}  // namespace stowage::engine::config
