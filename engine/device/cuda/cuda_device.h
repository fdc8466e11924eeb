// The CUDA device, inside the CUDA module; programs call Device::MakeCuda().

#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/device/device.h"

namespace stowage::engine {

// Makes the GPU the calling thread's current one.
// Errors: kUnavailable without such a device; kFailedPrecondition if LibTorch
//   does not know its CUDA half (see cuda_module.h).
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int index);

}  // namespace stowage::engine
