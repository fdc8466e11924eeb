// The border between the programs and what is linked with CUDA.
//
// LibTorch's CUDA half is half a gigabyte and wants eleven libraries of the
// toolkit: a program that is linked with it takes a second longer to start and
// does not start at all where one is missing. So it is not linked: device/cuda
// is a module (libstowage_cuda.so) that is loaded when a GPU is asked for, from
// STOWAGE_CUDA_MODULE, the program's folder, or ../bin or ../lib/stowage beside
// it. It takes nothing from the program but headers; both are of one build.

#pragma once

#include <chrono>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/device/cuda/nccl_group.h"
#include "engine/device/device.h"

namespace stowage::engine {

// Changed with Device or with what stands below.
inline constexpr int kCudaModuleInterface = 1;
inline constexpr char kCudaModuleFile[] = "libstowage_cuda.so";
inline constexpr char kCudaModuleEntry[] = "StowageCudaModule";

struct CudaModule {
  int interface = 0;
  absl::StatusOr<std::unique_ptr<Device>> (*make_device)(int index) = nullptr;
  absl::StatusOr<NcclGroup> (*make_nccl_group)(
      const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks,
      std::chrono::milliseconds timeout) = nullptr;
};

// Loads the module, once a process.
// Errors: kUnimplemented if there is none, with the places; kFailedPrecondition
//   with the loader's words, or for a module of another build. make_device():
//   kUnavailable without such a device; kFailedPrecondition if LibTorch was
//   used before, because it looks for its CUDA half once.
absl::StatusOr<const CudaModule*> LoadCudaModule();

}  // namespace stowage::engine

// The module's only symbol.
extern "C" const stowage::engine::CudaModule* StowageCudaModule();
