// One suite for every device: the CPU twin always, CUDA where a device is.

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "engine/device/device.h"

namespace stowage::engine {
namespace {

class DeviceContract : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string(GetParam()) == "cpu") {
      device_ = Device::MakeCpu();
      return;
    }
    absl::StatusOr<std::unique_ptr<Device>> made = Device::MakeCuda(0);
    if (!made.ok()) {
      // A refusal has a reason; without a device there is nothing to test.
      EXPECT_TRUE(made.status().code() == absl::StatusCode::kUnimplemented ||
                  made.status().code() == absl::StatusCode::kUnavailable)
          << made.status();
      GTEST_SKIP() << made.status();
    }
    device_ = *std::move(made);
  }
  static std::vector<std::byte> Pattern(std::size_t bytes, int seed) {
    std::vector<std::byte> data(bytes);
    for (std::size_t i = 0; i < bytes; ++i) {
      data[i] = static_cast<std::byte>(
          (i * 131 + static_cast<std::size_t>(seed)) & 0xff);
    }
    return data;
  }
  std::unique_ptr<Device> device_;
};

TEST_P(DeviceContract, BytesComeBackAsTheyWent) {
  for (const std::size_t bytes : {1UL, 255UL, 1UL << 20, (3UL << 20) + 5}) {
    const auto memory = device_->Allocate(static_cast<std::int64_t>(bytes));
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(*memory) % 256, 0U);
    std::vector<std::byte> sent = Pattern(bytes, 3);
    std::vector<std::byte> got(bytes);
    const auto size = static_cast<std::int64_t>(bytes);
    ASSERT_TRUE(device_->Register(sent.data(), size, false).ok());
    ASSERT_TRUE(device_->Register(got.data(), size, false).ok());
    auto in = device_->CopyIn(*memory, sent.data(), size);
    ASSERT_TRUE(in.ok()) << in.status();
    ASSERT_TRUE((*in)->JoinCompute().ok());
    auto out = device_->CopyOut(got.data(), *memory, size);
    ASSERT_TRUE(out.ok()) << out.status();
    ASSERT_TRUE((*out)->Wait().ok());
    EXPECT_TRUE((*in)->Done());
    EXPECT_TRUE((*out)->Done());
    EXPECT_EQ(std::memcmp(sent.data(), got.data(), bytes), 0);
    device_->Unregister(sent.data());
    device_->Unregister(got.data());
    device_->Unregister(got.data());  // again: nothing happens
    device_->Free(*memory);
  }
}

TEST_P(DeviceContract, CopiesOfOneDirectionKeepTheirOrder) {
  constexpr std::int64_t kBytes = 1 << 16;
  const auto memory = device_->Allocate(kBytes);
  ASSERT_TRUE(memory.ok());
  std::vector<std::vector<std::byte>> sent;
  std::vector<std::unique_ptr<DeviceCopy>> copies;
  for (int i = 0; i < 8; ++i) {
    sent.push_back(Pattern(kBytes, i));
    copies.push_back(
        device_->CopyIn(*memory, sent.back().data(), kBytes).value());
  }
  ASSERT_TRUE(copies.back()->Wait().ok());
  std::vector<std::byte> got(kBytes);
  ASSERT_TRUE(
      device_->CopyOut(got.data(), *memory, kBytes).value()->Wait().ok());
  EXPECT_EQ(got, sent.back());
  device_->Free(*memory);
}

TEST_P(DeviceContract, RefusesWhatMakesNoSense) {
  EXPECT_FALSE(device_->Register(nullptr, 0, true).ok());
  EXPECT_FALSE(device_->Allocate(-1).ok());
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceContract,
                         testing::Values("cpu", "cuda"), [](const auto& entry) {
                           return std::string(entry.param);
                         });

}  // namespace
}  // namespace stowage::engine
