#include "engine/device/cuda/nccl_group.h"

#include "absl/status/status.h"
#include "engine/torch_status.h"
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace stowage::engine {

absl::StatusOr<NcclGroup> MakeNcclGroup(
    const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks,
    std::chrono::milliseconds timeout) {
  NcclGroup made;
  const absl::Status status = CatchStatus("NCCL group", [&] {
    const auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = timeout;
    made.device = at::Device(at::kCUDA, c10::cuda::current_device());
    made.backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank,
                                                               ranks, options);
  });
  if (!status.ok()) return status;
  return made;
}

}  // namespace stowage::engine
