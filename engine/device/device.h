// Where a rank's tensors live, as the exchange sees it: memory on the device,
// registration of the server's segments, and asynchronous copies between the
// two on streams of their own.
//
// Three streams: the compute stream (LibTorch's current one), and one for each
// direction of copies. Work of different streams is ordered by marks and copies
// only; the host waits for nothing but what it asks to wait for.
//
// Two implementations of one contract: CUDA (device/cuda), and a twin on the
// CPU with memory of its own, whose copies happen as late as the contract
// allows. What is written against this interface runs, and is tested, without
// a GPU: who forgets to wait reads what was there before.
//
// Thread safety: one thread at a time.
// Errors: kInternal with what the driver said and the operation;
//   kResourceExhausted for memory.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace stowage::engine {

// An asynchronous copy. Both memories must live until it is done.
class DeviceCopy {
 public:
  DeviceCopy() = default;
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;
  virtual ~DeviceCopy() = default;

  virtual bool Done() = 0;
  // Blocks the host until it is done.
  virtual absl::Status Wait() = 0;
  // Makes the current stream wait for it; the host goes on.
  virtual absl::Status JoinCompute() = 0;
};

// A point in the compute stream.
class DeviceMark {
 public:
  DeviceMark() = default;
  DeviceMark(const DeviceMark&) = delete;
  DeviceMark& operator=(const DeviceMark&) = delete;
  virtual ~DeviceMark() = default;
};

// While it lives, what LibTorch and c10d are given goes to a copy stream.
class DeviceScope {
 public:
  DeviceScope() = default;
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  virtual ~DeviceScope() = default;
};

enum class CopyDirection : std::uint8_t { kIn, kOut };

// Since the device was opened; `allocated` and `registered` are those of now.
struct DeviceCounters {
  std::int64_t copies_in = 0;
  std::int64_t bytes_in = 0;
  std::int64_t copies_out = 0;
  std::int64_t bytes_out = 0;
  std::int64_t allocated_bytes = 0;
  std::int64_t registered_bytes = 0;
};

class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  virtual std::string_view name() const = 0;  // "twin", "cuda:0"
  // Of the GPU; -1: memory of the host (the twin).
  virtual int cuda_index() const = 0;
  const DeviceCounters& counters() const { return counters_; }

  // Memory on the device, aligned to 256; freed with Free(), once the compute
  // stream has been given all that uses it.
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
  // direction. One from the device goes behind what the current stream has been
  // given; one to it does not: Hold() first, if the memory was used before.
  virtual absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyIn(
      std::byte* to_device, const std::byte* from_host, std::int64_t bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyOut(
      std::byte* to_host, const std::byte* from_device, std::int64_t bytes) = 0;

  // All that the current stream has been given so far.
  virtual absl::StatusOr<std::unique_ptr<DeviceMark>> Mark() = 0;
  // What the stream of that direction is given from now on waits for `mark`.
  virtual absl::Status Hold(CopyDirection direction,
                            const DeviceMark& mark) = 0;
  // Makes the stream of that direction the current one.
  virtual std::unique_ptr<DeviceScope> Enter(CopyDirection direction) = 0;

  // Within the device, on the current stream.
  virtual absl::Status Copy(std::byte* to, const std::byte* from,
                            std::int64_t bytes) = 0;
  virtual absl::Status Clear(std::byte* memory, std::int64_t bytes) = 0;

  static std::unique_ptr<Device> MakeTwin();
  // Errors: kUnimplemented where no CUDA module was built; kUnavailable without
  //   such a device; see device/cuda/cuda_module.h.
  static absl::StatusOr<std::unique_ptr<Device>> MakeCuda(int index);

 protected:
  DeviceCounters counters_;
};

// What `--device` names: "cpu" (null: tensors are the host's and nothing is
// copied), "twin", "cuda" or "cuda:N" (the GPU of the host's first rank; local
// rank r takes N + r), "auto" (cuda where a GPU and the module are, else cpu).
// Call it before LibTorch is used: the CUDA half is loaded by it.
// Errors: kInvalidArgument for another name; MakeCuda()'s.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(std::string_view name,
                                                   int local_rank);

}  // namespace stowage::engine
