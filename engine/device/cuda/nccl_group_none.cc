#include "absl/status/status.h"
#include "engine/device/cuda/nccl_group.h"

namespace stowage::engine {

absl::StatusOr<NcclGroup> MakeNcclGroup(
    const c10::intrusive_ptr<c10d::Store>& /*store*/, int /*rank*/,
    int /*ranks*/, std::chrono::milliseconds /*timeout*/) {
  return absl::UnimplementedError(
      "NCCL: this build has no CUDA; configure with STOWAGE_WITH_CUDA, or use "
      "Gloo");
}

}  // namespace stowage::engine
