// One suite for every device: the twin always, CUDA where a device is.

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
    if (std::string(GetParam()) == "twin") {
      device_ = Device::MakeTwin();
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

TEST_P(DeviceContract, ACopyInWaitsForTheMarkItIsHeldBehind) {
  constexpr std::int64_t kBytes = 1 << 20;
  std::byte* const memory = device_->Allocate(kBytes).value();
  std::byte* const kept = device_->Allocate(kBytes).value();
  const std::vector<std::byte> first = Pattern(kBytes, 1);
  const std::vector<std::byte> second = Pattern(kBytes, 2);
  auto in = device_->CopyIn(memory, first.data(), kBytes).value();
  ASSERT_TRUE(in->JoinCompute().ok());
  ASSERT_TRUE(device_->Copy(kept, memory, kBytes).ok());
  const auto mark = device_->Mark();
  ASSERT_TRUE(mark.ok()) << mark.status();
  ASSERT_TRUE(device_->Hold(CopyDirection::kIn, **mark).ok());
  auto again = device_->CopyIn(memory, second.data(), kBytes).value();
  ASSERT_TRUE(again->Wait().ok());
  std::vector<std::byte> got(kBytes);
  ASSERT_TRUE(device_->CopyOut(got.data(), kept, kBytes).value()->Wait().ok());
  EXPECT_EQ(got, first);
  device_->Free(kept);
  device_->Free(memory);
}

TEST_P(DeviceContract, WhatIsGivenToACopyStreamComesAfterItsCopies) {
  constexpr std::int64_t kBytes = 1 << 20;
  std::byte* const memory = device_->Allocate(2 * kBytes).value();
  const std::vector<std::byte> sent = Pattern(kBytes, 5);
  const auto in = device_->CopyIn(memory, sent.data(), kBytes).value();
  {
    const auto scope = device_->Enter(CopyDirection::kIn);
    ASSERT_TRUE(device_->Copy(memory + kBytes, memory, kBytes).ok());
    ASSERT_TRUE(device_->Clear(memory, 100).ok());
    const auto mark = device_->Mark();
    ASSERT_TRUE(mark.ok()) << mark.status();
    ASSERT_TRUE(device_->Hold(CopyDirection::kOut, **mark).ok());
  }
  std::vector<std::byte> got(2 * kBytes);
  ASSERT_TRUE(
      device_->CopyOut(got.data(), memory, 2 * kBytes).value()->Wait().ok());
  EXPECT_EQ(std::memcmp(got.data() + kBytes, sent.data(), kBytes), 0);
  EXPECT_EQ(got[99], std::byte{0});
  EXPECT_EQ(got[100], sent[100]);
  device_->Free(memory);
}

TEST_P(DeviceContract, CountsWhatItIsGiven) {
  const DeviceCounters before = device_->counters();
  std::byte* const memory = device_->Allocate(5000).value();
  EXPECT_EQ(device_->counters().allocated_bytes - before.allocated_bytes, 5000);
  std::vector<std::byte> host(5000);
  ASSERT_TRUE(device_->Register(host.data(), 5000, false).ok());
  EXPECT_EQ(device_->counters().registered_bytes, 5000);
  ASSERT_TRUE(device_->CopyIn(memory, host.data(), 3000).value()->Wait().ok());
  ASSERT_TRUE(device_->CopyOut(host.data(), memory, 100).value()->Wait().ok());
  ASSERT_TRUE(device_->CopyOut(host.data(), memory, 50).value()->Wait().ok());
  const DeviceCounters after = device_->counters();
  EXPECT_EQ(after.copies_in - before.copies_in, 1);
  EXPECT_EQ(after.bytes_in - before.bytes_in, 3000);
  EXPECT_EQ(after.copies_out - before.copies_out, 2);
  EXPECT_EQ(after.bytes_out - before.bytes_out, 150);
  device_->Unregister(host.data());
  device_->Free(memory);
  EXPECT_EQ(device_->counters().allocated_bytes, before.allocated_bytes);
  EXPECT_EQ(device_->counters().registered_bytes, 0);
}

TEST_P(DeviceContract, RefusesWhatMakesNoSense) {
  EXPECT_FALSE(device_->Register(nullptr, 0, true).ok());
  EXPECT_FALSE(device_->Allocate(-1).ok());
}

// What makes the twin worth testing with: nobody sees a copy that nobody waited
// for.
TEST(TwinDevice, CopiesAsLateAsItMay) {
  const std::unique_ptr<Device> twin = Device::MakeTwin();
  std::byte* const memory = twin->Allocate(2).value();
  ASSERT_TRUE(twin->Clear(memory, 2).ok());
  std::byte from{1};
  const auto in = twin->CopyIn(memory, &from, 1).value();
  EXPECT_EQ(memory[0], std::byte{0});
  EXPECT_FALSE(in->Done());
  EXPECT_EQ(memory[0], std::byte{0});
  while (!in->Done()) {
  }  // questions move it on in the end
  EXPECT_EQ(memory[0], std::byte{1});
  std::byte to{7};
  const auto first = twin->CopyOut(&to, memory + 1, 1).value();
  const auto second = twin->CopyOut(&to, memory, 1).value();
  EXPECT_EQ(to, std::byte{7});
  ASSERT_TRUE(first->Wait().ok());
  EXPECT_EQ(to, std::byte{0});
  ASSERT_TRUE(second->JoinCompute().ok());
  EXPECT_EQ(to, std::byte{1});
  twin->Free(memory);
}

TEST(OpenDevice, NamesAndRefusals) {
  EXPECT_EQ(OpenDevice("cpu", 0).value(), nullptr);
  EXPECT_EQ(OpenDevice("twin", 3).value()->name(), "twin");
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"}) {
    const auto refused = OpenDevice(name, 0);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument)
        << name << ": " << refused.status();
  }
  // "auto" is never an error.
  EXPECT_TRUE(OpenDevice("auto", 0).ok());
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceContract,
                         testing::Values("twin", "cuda"),
                         [](const auto& entry) {
                           return std::string(entry.param);
                         });

}  // namespace
}  // namespace stowage::engine
