#include "engine/device/cuda/nccl_process_group.h"

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/torch_status.h"
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace stowage::engine {

namespace {

// The size of c10d's classes depends on nccl.h: ours must be LibTorch's.
absl::Status CheckVersion() {
  const std::uint64_t torch = ::torch::cuda::nccl::version();
  const std::uint64_t major = torch >> 32;
  const std::uint64_t minor = (torch >> 16) & 0xffff;
  if (major == NCCL_MAJOR && minor == NCCL_MINOR) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "NCCL: this module was compiled with nccl.h ", NCCL_MAJOR, ".",
      NCCL_MINOR, ", LibTorch with ", major, ".", minor,
      "; install LibTorch's with tools/setup --cuda and build again"));
}

}  // namespace

absl::StatusOr<NcclGroup> MakeNcclProcessGroup(
    const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks,
    std::chrono::milliseconds timeout) {
  if (absl::Status checked = CheckVersion(); !checked.ok()) return checked;
  NcclGroup made;
  const absl::Status status = CatchStatus("NCCL group", [&] {
    // Its kernels are few and short, and everybody waits for them.
    const auto options = c10d::ProcessGroupNCCL::Options::create(
        /*is_high_priority_stream=*/true);
    options->timeout = timeout;
    made.device = at::Device(at::kCUDA, c10::cuda::current_device());
    made.backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank,
                                                               ranks, options);
  });
  if (!status.ok()) return status;
  return made;
}

}  // namespace stowage::engine
