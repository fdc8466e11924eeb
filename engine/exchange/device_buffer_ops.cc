#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "engine/device/torch_device.h"
#include "engine/exchange/buffer_ops.h"
#include "engine/scalar_type.h"
#include "engine/torch_status.h"

namespace stowage::engine {
namespace {

class DeviceBufferOps final : public BufferOps {
 public:
  explicit DeviceBufferOps(Device* device) : device_(device) {}

  absl::Status Copy(std::byte* to, const std::byte* from,
                    std::int64_t bytes) override {
    return device_->Copy(to, from, bytes);
  }

  absl::Status Clear(std::byte* memory, std::int64_t bytes) override {
    return device_->Clear(memory, bytes);
  }

  absl::Status Convert(std::byte* to, Dtype to_dtype, const std::byte* from,
                       Dtype from_dtype, float factor,
                       std::int64_t elems) override {
    if (from_dtype == to_dtype && factor == 1.0F) {
      return Copy(to, from, elems * DtypeBytes(to_dtype));
    }
    return CatchStatus("convert gradients", [&] {
      const at::NoGradGuard no_gradients;
      at::Tensor target = Over(to, to_dtype, elems);
      const at::Tensor source = Over(from, from_dtype, elems);
      if (factor == 1.0F) {
        target.copy_(source);
      } else {
        target.copy_(source.to(at::kFloat) * factor);
      }
    });
  }

  absl::Status Accumulate(const std::byte* part, Dtype dtype, bool first,
                          float* sum, std::int64_t elems) override {
    return CatchStatus("add gradients up", [&] {
      const at::NoGradGuard no_gradients;
      at::Tensor target = Over(sum, Dtype::kFp32, elems);
      const at::Tensor source = Over(part, dtype, elems);
      if (first) {
        target.copy_(source);
      } else {
        target.add_(source.to(at::kFloat));
      }
    });
  }

  absl::Status Sum(std::byte* to, Dtype to_dtype,
                   std::span<const void* const> parts, Dtype dtype,
                   std::int64_t elems) override {
    return CatchStatus("sum gradients", [&] {
      const at::NoGradGuard no_gradients;
      at::Tensor target = Over(to, to_dtype, elems);
      if (parts.size() == 1) {
        target.copy_(Over(parts.front(), dtype, elems));
        return;
      }
      at::Tensor sum =
          to_dtype == Dtype::kFp32
              ? target
              : at::empty({elems}, target.options().dtype(at::kFloat));
      sum.copy_(Over(parts.front(), dtype, elems));
      for (const void* const part : parts.subspan(1)) {
        sum.add_(Over(part, dtype, elems).to(at::kFloat));
      }
      if (to_dtype != Dtype::kFp32) target.copy_(sum);
    });
  }

 private:
  at::Tensor Over(const void* data, Dtype dtype, std::int64_t elems) const {
    return at::from_blob(const_cast<void*>(data), {elems},
                         at::TensorOptions()
                             .dtype(ToScalarType(dtype))
                             .device(TorchDevice(device_)));
  }

  Device* const device_;
};

}  // namespace

std::unique_ptr<BufferOps> MakeDeviceBufferOps(Device* device) {
  return std::make_unique<DeviceBufferOps>(device);
}

}  // namespace stowage::engine
