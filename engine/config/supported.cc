// What this build recognises but cannot do yet, with the reason.

#include "absl/status/status.h"
#include "engine/config/config.h"
#include "engine/config/settings.h"
#include "engine/config/text.h"

namespace stowage::engine::config {

absl::Status CheckSupported(const Config& config) {
  ErrorList errors;
  const auto refuse = [&](std::string_view key, std::string_view value,
                          std::string_view why) {
    errors.Add(Cat(key, " = ", value, " is not available yet: ", why), true);
  };
  const ZeroOptimization& zero = config.zero_optimization;
  if (zero.offload_optimizer.device == OffloadDevice::kNone &&
      zero.offload_param.device != OffloadDevice::kNone) {
    refuse("zero_optimization.offload_param.device",
           Cat("\"", OffloadDeviceName(zero.offload_param.device), "\""),
           "parameters live in the server with the optimizer's state; set "
           "offload_optimizer.device too");
  }
  if (IsOneBit(config.optimizer.type)) {
    refuse("optimizer.type",
           Cat("\"", OptimizerTypeName(config.optimizer.type), "\""),
           "its kernels are in the server and tested, but ranks do not hand "
           "their own unreduced gradients to it yet");
  }
  if (config.optimizer.type == OptimizerType::kLamb &&
      zero.offload_optimizer.device == OffloadDevice::kNone) {
    refuse("optimizer.type", "\"Lamb\" with offload_optimizer.device \"none\"",
           "trust ratios are made in the server; take \"cpu\" or \"nvme\"");
  }
  if (zero.offload_optimizer.ratio < 1) {
    refuse("zero_optimization.offload_optimizer.ratio",
           Cat(zero.offload_optimizer.ratio),
           "the whole optimizer runs in the server; take 1.0");
  }
  const bool on_nvme = zero.offload_optimizer.device == OffloadDevice::kNvme ||
                       zero.offload_param.device == OffloadDevice::kNvme;
  if (config.stowage.durability == Durability::kProcess) {
    refuse("stowage.durability", "\"process\"",
           "there is no state in files of tmpfs; take \"memory\", or "
           "\"power\" with nvme");
  }
  if (config.stowage.durability == Durability::kPower && !on_nvme) {
    refuse("stowage.durability", "\"power\"",
           "nothing is on disk; take \"memory\", or set "
           "offload_optimizer.device to \"nvme\"");
  }
  return errors.ToStatus();
}

}  // namespace stowage::engine::config
