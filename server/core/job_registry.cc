#include "server/core/job_registry.h"

namespace stowage::core {

absl::StatusOr<std::unique_ptr<JobRegistry>> JobRegistry::Create(
    const RegistryOptions& /*options*/) {
  return absl::UnimplementedError("server core: not built yet");
}

}  // namespace stowage::core
