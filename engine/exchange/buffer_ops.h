// What the exchange itself does to the elements in its buffers: in the host's
// memory by the optimizer's kernels, on a device by LibTorch on the current
// stream. Both round at the same places, so the bits are the same.
//
// No LibTorch here. Thread safety: one thread at a time.
// Errors: of a device: kInternal with LibTorch's words.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "common/dtype.h"
#include "engine/device/device.h"

namespace stowage::engine {

class BufferOps {
 public:
  BufferOps() = default;
  BufferOps(const BufferOps&) = delete;
  BufferOps& operator=(const BufferOps&) = delete;
  virtual ~BufferOps() = default;

  virtual absl::Status Copy(std::byte* to, const std::byte* from,
                            std::int64_t bytes) = 0;
  virtual absl::Status Clear(std::byte* memory, std::int64_t bytes) = 0;
  // to[i] = round(fp32(from[i]) * factor).
  virtual absl::Status Convert(std::byte* to, Dtype to_dtype,
                               const std::byte* from, Dtype from_dtype,
                               float factor, std::int64_t elems) = 0;
  // sum[i] = sum[i] + fp32(part[i]); `first`: fp32(part[i]).
  virtual absl::Status Accumulate(const std::byte* part, Dtype dtype,
                                  bool first, float* sum,
                                  std::int64_t elems) = 0;
  // to[i] = round((fp32(p0[i]) + fp32(p1[i])) + ...).
  virtual absl::Status Sum(std::byte* to, Dtype to_dtype,
                           std::span<const void* const> parts, Dtype dtype,
                           std::int64_t elems) = 0;

  // `device`: where buffers are, null for the host; it must outlive the result.
  static std::unique_ptr<BufferOps> Make(Device* device);
};

// By Make().
std::unique_ptr<BufferOps> MakeHostBufferOps();
std::unique_ptr<BufferOps> MakeDeviceBufferOps(Device* device);

}  // namespace stowage::engine
