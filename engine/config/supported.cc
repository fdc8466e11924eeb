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
  if (IsOneBit(config.optimizer.type) &&
      zero.offload_optimizer.device == OffloadDevice::kNvme) {
    refuse("zero_optimization.offload_optimizer.device",
           Cat("\"nvme\" with optimizer.type \"",
               OptimizerTypeName(config.optimizer.type), "\""),
           "the errors of its signs are kept in memory; take \"cpu\", or "
           "\"none\"");
  }
  if (IsOneBit(config.optimizer.type) && OffloadsOptimizer(config) &&
      config.stowage.exchange == ExchangeKind::kC10d) {
    refuse("stowage.exchange",
           Cat("\"c10d\" with optimizer.type \"",
               OptimizerTypeName(config.optimizer.type), "\" in the server"),
           "the server takes each rank's own gradient from segments; take "
           "\"auto\", or offload_optimizer.device \"none\"");
  }
  if (zero.offload_optimizer.ratio < 1) {
    refuse("zero_optimization.offload_optimizer.ratio",
           Cat(zero.offload_optimizer.ratio),
           "the whole optimizer runs in the server; take 1.0");
  }
  const bool on_nvme = OffloadsOptimizer(config) &&
                       (zero.offload_optimizer.device == OffloadDevice::kNvme ||
                        zero.offload_param.device == OffloadDevice::kNvme);
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
