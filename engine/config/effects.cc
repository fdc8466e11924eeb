#include "engine/config/effects.h"

#include <string_view>

#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

std::string Stage(const Config& config) {
  return Cat("zero_optimization.stage is ", config.zero_optimization.stage);
}

std::string Device(std::string_view block, OffloadDevice device,
                   bool wants_nvme) {
  return Cat("zero_optimization.", block, ".device is \"",
             OffloadDeviceName(device), "\"",
             wants_nvme ? ", only \"nvme\" uses it" : "");
}

void WarnOfOptimizer(const Config& config, Settings& settings) {
  const Optimizer& optimizer = config.optimizer;
  if (optimizer.type == OptimizerType::kAdam && optimizer.adam_w_mode &&
      optimizer.weight_decay > 0 &&
      !settings.InFile("optimizer.params.adam_w_mode")) {
    settings.Warn("optimizer.type",
                  "type Adam decays its weights decoupled, as AdamW does, "
                  "unless adam_w_mode is false");
  }
  if (optimizer.type == OptimizerType::kLamb &&
      config.zero_optimization.stage > 0 &&
      !config.zero_allow_untested_optimizer) {
    settings.Warn("zero_allow_untested_optimizer",
                  "DeepSpeed refuses Lamb with ZeRO unless this is true; here "
                  "it runs");
  }
  if (optimizer.type == OptimizerType::kAdamW && !optimizer.adam_w_mode) {
    settings.Warn("optimizer.params.adam_w_mode",
                  "false has no effect: type AdamW is always decoupled; type "
                  "Adam with adam_w_mode false is not");
  }
}

void WarnOfSchedule(const Config& config, Settings& settings) {
  const schedule::ScheduleSpec& spec = config.scheduler;
  using schedule::ScheduleType;
  if ((spec.type == ScheduleType::kWarmupDecayLr ||
       spec.type == ScheduleType::kWarmupCosineLr) &&
      spec.total_num_steps < spec.warmup_num_steps) {
    settings.Warn("scheduler.params.total_num_steps",
                  Cat(spec.total_num_steps, " is less than warmup_num_steps, ",
                      spec.warmup_num_steps));
  }
  if (spec.type == ScheduleType::kOneCycle) {
    if (spec.cycle_momentum && config.optimizer.betas.beta2 != 0.99) {
      settings.Warn("scheduler.type",
                    "OneCycle overwrites the betas: beta1 follows the cycle, "
                    "beta2 is 0.99; cycle_momentum false leaves them alone");
    }
    if (spec.cycle_momentum && spec.decay_mom_rate > 0 &&
        spec.decay_step_size > 0) {
      settings.Warn("scheduler.params.decay_mom_rate",
                    "beta1 grows without bound after the cycle, past 1 in the "
                    "end");
    }
  }
}

}  // namespace

bool OffloadsOptimizer(const Config& config) {
  const ZeroOptimization& zero = config.zero_optimization;
  return zero.offload_optimizer.device != OffloadDevice::kNone &&
         (zero.stage > 0 || IsOneBit(config.optimizer.type));
}

std::string WhyNotSegments(const Config& config) {
  const ZeroOptimization& zero = config.zero_optimization;
  if (!OffloadsOptimizer(config)) {
    return zero.stage == 0 ? "stage 0 keeps all state on the ranks"
                           : "the optimizer's state is not offloaded";
  }
  if (zero.stage == 3 && zero.offload_param.device == OffloadDevice::kNone) {
    return "parameters are not offloaded";
  }
  return "";
}

namespace {

// As far as the file says: ranks on several hosts use it, too.
bool UsesC10d(const Config& config) {
  if (config.stowage.exchange != ExchangeKind::kAuto) {
    return config.stowage.exchange == ExchangeKind::kC10d;
  }
  return !WhyNotSegments(config).empty();
}

std::string WhyNotOffloaded(Needs needs, const Config& config) {
  const ZeroOptimization& zero = config.zero_optimization;
  const OffloadDevice device = zero.offload_optimizer.device;
  if (needs == Needs::kOptimizerOffload) {
    return device != OffloadDevice::kNone
               ? ""
               : Device("offload_optimizer", device, false);
  }
  if (needs == Needs::kOptimizerNvme) {
    return device == OffloadDevice::kNvme
               ? ""
               : Device("offload_optimizer", device, true);
  }
  return device == OffloadDevice::kNvme ||
                 zero.offload_param.device == OffloadDevice::kNvme
             ? ""
             : "nothing is offloaded to nvme";
}

}  // namespace

std::string WhyNoEffect(Needs needs, const Config& config) {
  const ZeroOptimization& zero = config.zero_optimization;
  switch (needs) {
    case Needs::kNothing:
      return "";
    case Needs::kStage3:
      return zero.stage == 3 ? "" : Cat(Stage(config), ", only 3 uses it");
    case Needs::kParamNvme:
      return zero.offload_param.device == OffloadDevice::kNvme
                 ? ""
                 : Device("offload_param", zero.offload_param.device, true);
    case Needs::kOptimizerOffload:
    case Needs::kOptimizerNvme:
    case Needs::kAnyNvme:
      if (zero.offload_optimizer.device != OffloadDevice::kNone &&
          !OffloadsOptimizer(config)) {
        return "stage 0 keeps all state on the ranks";
      }
      return WhyNotOffloaded(needs, config);
    case Needs::kFp16:
      return config.fp16.enabled ? "" : "fp16.enabled is false";
    case Needs::kFp16Dynamic:
      if (!config.fp16.enabled) return "fp16.enabled is false";
      return config.fp16.loss_scale == 0
                 ? ""
                 : Cat("fp16.loss_scale is ", config.fp16.loss_scale,
                       ", a constant");
    case Needs::kCsv:
      return config.csv_monitor.enabled ? "" : "csv_monitor.enabled is false";
    case Needs::kWandb:
      return config.wandb.enabled ? "" : "wandb.enabled is false";
    case Needs::kTensorboard:
      return config.tensorboard.enabled ? "" : "tensorboard.enabled is false";
    case Needs::kJsonl:
      return config.stowage.jsonl_monitor.enabled
                 ? ""
                 : "stowage.jsonl_monitor.enabled is false";
    case Needs::kC10d:
      return UsesC10d(config)
                 ? ""
                 : Cat("ranks of one host exchange through segments "
                       "(stowage.exchange is \"",
                       ExchangeKindName(config.stowage.exchange), "\")");
    case Needs::kCycleMomentum:
      return config.scheduler.cycle_momentum ? "" : "cycle_momentum is false";
    case Needs::kCycleDecay:
      return config.scheduler.decay_step_size > 0 ? "" : "decay_step_size is 0";
  }
  return "";
}

namespace {

// A key of the exchange between ranks that says what segments do anyway.
bool IsAsInSegments(const Setting& setting) {
  if (setting.key->needs != Needs::kC10d || !setting.has_value) return false;
  if (setting.key->type == KeyType::kBool) {
    const bool wanted =
        std::string_view(setting.key->path) != "prescale_gradients";
    return setting.value.boolean == wanted;
  }
  return setting.key->type == KeyType::kNumber && setting.value.number == 1;
}

}  // namespace

void WarnOfCombinations(const Config& config, Settings& settings) {
  for (const Setting& setting : settings.all()) {
    if (!setting.in_file || *setting.key->same_as != '\0') continue;
    const std::string why = WhyNoEffect(setting.key->needs, config);
    if (!why.empty() && !IsAsInSegments(setting)) {
      settings.Warn(setting.key->path, Cat("no effect: ", why));
    }
  }
  if (config.zero_optimization.offload_optimizer.device !=
          OffloadDevice::kNone &&
      !OffloadsOptimizer(config)) {
    settings.Warn("zero_optimization.offload_optimizer.device",
                  "no effect: stage 0 keeps all state on the ranks");
  }
  WarnOfOptimizer(config, settings);
  WarnOfSchedule(config, settings);
  if (config.fp16.enabled && config.fp16.loss_scale == 0 &&
      config.fp16.hysteresis > 1 && config.zero_optimization.stage == 0 &&
      settings.InFile("fp16.hysteresis")) {
    settings.Warn("fp16.hysteresis", "no effect: stage 0 has no hysteresis");
  }
}

}  // namespace stowage::engine::config
