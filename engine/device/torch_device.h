// A Device as LibTorch names it.

#pragma once

#include "engine/device/device.h"
#include <c10/core/Device.h>

namespace stowage::engine {

// Where tensors over the device's memory are; null: the host.
inline c10::Device TorchDevice(const Device* device) {
  if (device == nullptr || device->cuda_index() < 0) {
    return c10::Device(c10::kCPU);
  }
  return c10::Device(c10::kCUDA,
                     static_cast<c10::DeviceIndex>(device->cuda_index()));
}

}  // namespace stowage::engine
