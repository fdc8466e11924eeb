#include "absl/status/status.h"
#include "engine/device/device.h"

namespace stowage::engine {

absl::StatusOr<std::unique_ptr<Device>> Device::MakeCuda(int /*index*/) {
  return absl::UnimplementedError(
      "cuda: this build has no CUDA; configure with STOWAGE_WITH_CUDA");
}

}  // namespace stowage::engine
