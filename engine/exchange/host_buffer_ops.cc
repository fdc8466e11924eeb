#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/exchange/buffer_ops.h"
#include "optim/kernels.h"

namespace stowage::engine {
namespace {

// Elements converted at a time; the fp32 values stay in a core's L2 cache.
constexpr std::int64_t kBlockElems = 32768;

class HostBufferOps final : public BufferOps {
 public:
  absl::Status Copy(std::byte* to, const std::byte* from,
                    std::int64_t bytes) override {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
    return absl::OkStatus();
  }

  absl::Status Clear(std::byte* memory, std::int64_t bytes) override {
    std::memset(memory, 0, static_cast<std::size_t>(bytes));
    return absl::OkStatus();
  }

  absl::Status Convert(std::byte* to, Dtype to_dtype, const std::byte* from,
                       Dtype from_dtype, float factor,
                       std::int64_t elems) override {
    const std::int64_t from_width = DtypeBytes(from_dtype);
    const std::int64_t to_width = DtypeBytes(to_dtype);
    if (from_dtype == to_dtype && factor == 1.0F) {
      return Copy(to, from, elems * to_width);
    }
    block_.resize(static_cast<std::size_t>(kBlockElems));
    for (std::int64_t at = 0; at < elems; at += kBlockElems) {
      const std::int64_t count = std::min(kBlockElems, elems - at);
      const void* const part = from + at * from_width;
      kernels_.accumulate({&part, 1}, from_dtype, /*first=*/true, block_.data(),
                          count);
      if (factor != 1.0F) {
        for (std::int64_t i = 0; i < count; ++i) {
          block_[static_cast<std::size_t>(i)] *= factor;
        }
      }
      kernels_.convert(block_.data(), to_dtype, to + at * to_width, count);
    }
    return absl::OkStatus();
  }

  absl::Status Accumulate(const std::byte* part, Dtype dtype, bool first,
                          float* sum, std::int64_t elems) override {
    const void* const parts = part;
    kernels_.accumulate({&parts, 1}, dtype, first, sum, elems);
    return absl::OkStatus();
  }

  absl::Status Sum(std::byte* to, Dtype to_dtype,
                   std::span<const void* const> parts, Dtype dtype,
                   std::int64_t elems) override {
    if (parts.size() == 1 && dtype == to_dtype) {
      return Copy(to, static_cast<const std::byte*>(parts.front()),
                  elems * DtypeBytes(dtype));
    }
    block_.resize(static_cast<std::size_t>(kBlockElems));
    std::vector<const void*> at(parts.begin(), parts.end());
    for (std::int64_t done = 0; done < elems; done += kBlockElems) {
      const std::int64_t count = std::min(kBlockElems, elems - done);
      if (to_dtype == Dtype::kFp32) {
        kernels_.accumulate(at, dtype, /*first=*/true,
                            reinterpret_cast<float*>(to) + done, count);
      } else {
        kernels_.accumulate(at, dtype, /*first=*/true, block_.data(), count);
        kernels_.convert(block_.data(), to_dtype,
                         to + done * DtypeBytes(to_dtype), count);
      }
      for (const void*& part : at) {
        part = static_cast<const std::byte*>(part) + count * DtypeBytes(dtype);
      }
    }
    return absl::OkStatus();
  }

 private:
  const optim::KernelSet& kernels_ = optim::BestKernels();
  std::vector<float> block_;
};

}  // namespace

std::unique_ptr<BufferOps> MakeHostBufferOps() {
  return std::make_unique<HostBufferOps>();
}

std::unique_ptr<BufferOps> BufferOps::Make(Device* device) {
  return device == nullptr ? MakeHostBufferOps() : MakeDeviceBufferOps(device);
}

}  // namespace stowage::engine
