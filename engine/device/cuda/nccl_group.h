// A process group over NCCL for the c10d exchange, made by the CUDA module.

#pragma once

#include <chrono>

#include "absl/status/statusor.h"
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace stowage::engine {

struct NcclGroup {
  c10::intrusive_ptr<c10d::Backend> backend;
  at::Device device = at::Device(at::kCPU);  // of this rank
};

// Requires: Device::MakeCuda() first; the group is of that GPU.
// Errors: LoadCudaModule()'s.
absl::StatusOr<NcclGroup> MakeNcclGroup(
    const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks,
    std::chrono::milliseconds timeout);

}  // namespace stowage::engine
