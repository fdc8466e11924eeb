// ProcessGroupNCCL, inside the CUDA module; programs call MakeNcclGroup().

#pragma once

#include "engine/device/cuda/nccl_group.h"

namespace stowage::engine {

// The group is of the calling thread's current GPU.
absl::StatusOr<NcclGroup> MakeNcclProcessGroup(
    const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks,
    std::chrono::milliseconds timeout);

}  // namespace stowage::engine
