// Where a rank's tensors live, as the exchange sees it: memory on the device,
// registration of the server's segments, and asynchronous copies between the
// two on streams of their own.
//
// Two implementations of one contract: CUDA (device/cuda), and a CPU twin whose
// copies are done when they return, so that what is written against this
// interface runs, and is tested, without a GPU.
//
// Thread safety: one thread at a time.
// Errors: kInternal with what the driver said and the operation;
//   kResourceExhausted for memory.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace stowage::engine {

// An asynchronous copy under way.
class DeviceCopy {
 public:
  DeviceCopy() = default;
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;
  virtual ~DeviceCopy() = default;

  virtual bool Done() = 0;
  // Blocks the host until it is done.
  virtual absl::Status Wait() = 0;
  // Makes the device's compute stream wait for it; the host goes on.
  virtual absl::Status JoinCompute() = 0;
};

class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  virtual std::string_view name() const = 0;  // "cpu", "cuda:0"

  // Memory on the device, aligned to 256; freed with Free().
  virtual absl::StatusOr<std::byte*> Allocate(std::int64_t bytes) = 0;
  virtual void Free(std::byte* memory) = 0;

  // Makes host memory (a mapping of a segment) fit for asynchronous copies.
  // `read_only`: this process may not write it; where the device cannot
  // register such memory, copies from it still work, and are slower.
  // Returns: true if copies are asynchronous.
  virtual absl::StatusOr<bool> Register(const void* memory, std::int64_t bytes,
                                        bool read_only) = 0;
  virtual void Unregister(const void* memory) = 0;

  // Starts a copy on the stream of its direction, behind earlier ones of that
  // direction and, from the device, behind what the compute stream has been
  // given. Both memories must live until it is done.
  virtual absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyIn(
      std::byte* to_device, const std::byte* from_host, std::int64_t bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyOut(
      std::byte* to_host, const std::byte* from_device, std::int64_t bytes) = 0;

  static std::unique_ptr<Device> MakeCpu();
  // Errors: kUnimplemented in a build without CUDA; kUnavailable without such a
  //   device.
  static absl::StatusOr<std::unique_ptr<Device>> MakeCuda(int index);
};

}  // namespace stowage::engine
