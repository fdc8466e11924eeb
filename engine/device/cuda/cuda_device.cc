// The CUDA device: one stream for each direction beside LibTorch's compute
// stream, an event for each copy.
//
// Source: CUDA runtime API, sections "Stream Management", "Event Management"
// and "Memory Management" (cudaHostRegister, cudaMemcpyAsync).

#include <cuda_runtime.h>

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/device/device.h"
#include <c10/cuda/CUDAStream.h>

namespace stowage::engine {
namespace {

absl::Status CudaStatus(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text =
      absl::StrCat("cuda: ", what, ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

class CudaCopy final : public DeviceCopy {
 public:
  CudaCopy(cudaEvent_t event, int index) : event_(event), index_(index) {}
  ~CudaCopy() override { cudaEventDestroy(event_); }

  bool Done() override { return cudaEventQuery(event_) != cudaErrorNotReady; }
  absl::Status Wait() override {
    return CudaStatus(cudaEventSynchronize(event_), "wait for a copy");
  }
  absl::Status JoinCompute() override {
    return CudaStatus(
        cudaStreamWaitEvent(c10::cuda::getCurrentCUDAStream(
                                static_cast<c10::DeviceIndex>(index_))
                                .stream(),
                            event_, 0),
        "make the compute stream wait for a copy");
  }

 private:
  cudaEvent_t event_;
  int index_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index)
      : index_(index), name_(absl::StrCat("cuda:", index)) {}
  ~CudaDevice() override {
    if (in_ != nullptr) cudaStreamDestroy(in_);
    if (out_ != nullptr) cudaStreamDestroy(out_);
  }

  absl::Status Open() {
    STOWAGE_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(index_), "set device"));
    STOWAGE_RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithFlags(&in_, cudaStreamNonBlocking),
                   "make a stream"));
    return CudaStatus(cudaStreamCreateWithFlags(&out_, cudaStreamNonBlocking),
                      "make a stream");
  }

  std::string_view name() const override { return name_; }

  absl::StatusOr<std::byte*> Allocate(std::int64_t bytes) override {
    void* memory = nullptr;
    STOWAGE_RETURN_IF_ERROR(
        CudaStatus(cudaMalloc(&memory, static_cast<std::size_t>(bytes)),
                   absl::StrCat("allocate ", bytes, " bytes on ", name_)));
    return static_cast<std::byte*>(memory);
  }
  void Free(std::byte* memory) override { cudaFree(memory); }

  absl::StatusOr<bool> Register(const void* memory, std::int64_t bytes,
                                bool read_only) override {
    int can_read_only = 0;
    cudaDeviceGetAttribute(&can_read_only,
                           cudaDevAttrHostRegisterReadOnlySupported, index_);
    if (read_only && can_read_only == 0) {
      if (!warned_) {
        log::Warning(
            "device cannot register read-only memory, copies from "
            "segments are staged by the driver",
            {{"device", name_}});
        warned_ = true;
      }
      return false;
    }
    const unsigned flags =
        read_only ? cudaHostRegisterReadOnly : cudaHostRegisterDefault;
    STOWAGE_RETURN_IF_ERROR(
        CudaStatus(cudaHostRegister(const_cast<void*>(memory),
                                    static_cast<std::size_t>(bytes), flags),
                   absl::StrCat("register ", bytes, " bytes with ", name_)));
    registered_.insert(memory);
    return true;
  }
  void Unregister(const void* memory) override {
    if (registered_.erase(memory) == 0) return;
    cudaHostUnregister(const_cast<void*>(memory));
  }

  absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyIn(
      std::byte* to_device, const std::byte* from_host,
      std::int64_t bytes) override {
    return Copy(to_device, from_host, bytes, cudaMemcpyHostToDevice, in_);
  }

  absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyOut(
      std::byte* to_host, const std::byte* from_device,
      std::int64_t bytes) override {
    // What is copied out has been computed by then.
    STOWAGE_ASSIGN_OR_RETURN(const cudaEvent_t computed, MakeEvent());
    const cudaStream_t compute =
        c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(index_))
            .stream();
    const absl::Status ordered = CudaStatus(
        [&] {
          const cudaError_t recorded = cudaEventRecord(computed, compute);
          return recorded == cudaSuccess
                     ? cudaStreamWaitEvent(out_, computed, 0)
                     : recorded;
        }(),
        "order a copy behind the compute stream");
    cudaEventDestroy(computed);
    STOWAGE_RETURN_IF_ERROR(ordered);
    return Copy(to_host, from_device, bytes, cudaMemcpyDeviceToHost, out_);
  }

 private:
  static absl::StatusOr<cudaEvent_t> MakeEvent() {
    cudaEvent_t event = nullptr;
    STOWAGE_RETURN_IF_ERROR(
        CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                   "make an event"));
    return event;
  }

  absl::StatusOr<std::unique_ptr<DeviceCopy>> Copy(std::byte* to,
                                                   const std::byte* from,
                                                   std::int64_t bytes,
                                                   cudaMemcpyKind kind,
                                                   cudaStream_t stream) {
    STOWAGE_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes),
                                   kind, stream),
                   absl::StrCat("copy ", bytes, " bytes")));
    STOWAGE_ASSIGN_OR_RETURN(const cudaEvent_t event, MakeEvent());
    auto copy = std::make_unique<CudaCopy>(event, index_);
    STOWAGE_RETURN_IF_ERROR(
        CudaStatus(cudaEventRecord(event, stream), "record an event"));
    return std::unique_ptr<DeviceCopy>(std::move(copy));
  }

  const int index_;
  const std::string name_;
  cudaStream_t in_ = nullptr;
  cudaStream_t out_ = nullptr;
  std::set<const void*> registered_;
  bool warned_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> Device::MakeCuda(int index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || index < 0 || index >= count) {
    return absl::UnavailableError(absl::StrCat("cuda device ", index,
                                               ": there are ", count, " (",
                                               cudaGetErrorString(error), ")"));
  }
  auto device = std::make_unique<CudaDevice>(index);
  STOWAGE_RETURN_IF_ERROR(device->Open());
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace stowage::engine
