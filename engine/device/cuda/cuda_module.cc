#include "engine/device/cuda/cuda_module.h"

#include "engine/device/cuda/cuda_device.h"
#include "engine/device/cuda/nccl_process_group.h"

const stowage::engine::CudaModule* StowageCudaModule() {
  static const stowage::engine::CudaModule module = {
      .interface = stowage::engine::kCudaModuleInterface,
      .make_device = &stowage::engine::MakeCudaDevice,
      .make_nccl_group = &stowage::engine::MakeNcclProcessGroup};
  return &module;
}
