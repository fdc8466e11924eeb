#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "engine/device/device.h"

namespace stowage::engine {
namespace {

constexpr std::int64_t kAlignBytes = 256;

class DoneCopy final : public DeviceCopy {
 public:
  bool Done() override { return true; }
  absl::Status Wait() override { return absl::OkStatus(); }
  absl::Status JoinCompute() override { return absl::OkStatus(); }
};

class CpuDevice final : public Device {
 public:
  std::string_view name() const override { return "cpu"; }

  absl::StatusOr<std::byte*> Allocate(std::int64_t bytes) override {
    if (bytes < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("allocate ", bytes, " bytes on the cpu"));
    }
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(
        kAlignBytes, static_cast<std::size_t>(RoundUp(bytes, kAlignBytes))));
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("allocate ", bytes, " bytes on the cpu"));
    }
    return memory;
  }
  void Free(std::byte* memory) override { std::free(memory); }

  absl::StatusOr<bool> Register(const void* /*memory*/, std::int64_t bytes,
                                bool /*read_only*/) override {
    if (bytes < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("register ", bytes, " bytes"));
    }
    return true;
  }
  void Unregister(const void* /*memory*/) override {}

  absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyIn(
      std::byte* to_device, const std::byte* from_host,
      std::int64_t bytes) override {
    std::memcpy(to_device, from_host, static_cast<std::size_t>(bytes));
    return std::make_unique<DoneCopy>();
  }
  absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyOut(
      std::byte* to_host, const std::byte* from_device,
      std::int64_t bytes) override {
    std::memcpy(to_host, from_device, static_cast<std::size_t>(bytes));
    return std::make_unique<DoneCopy>();
  }
};

}  // namespace

std::unique_ptr<Device> Device::MakeCpu() {
  return std::make_unique<CpuDevice>();
}

}  // namespace stowage::engine
