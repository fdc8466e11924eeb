// The CUDA device: one stream for each direction beside LibTorch's compute
// stream, an event for each copy and each mark. Memory comes from LibTorch's
// caching allocator, so that what it caches can be given to the exchange.
//
// Source: CUDA runtime API, sections "Stream Management", "Event Management"
// and "Memory Management" (cudaHostRegister, cudaMemcpyAsync).

#include "engine/device/cuda/cuda_device.h"

#include <ATen/Context.h>
#include <cuda_runtime.h>

#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/torch_status.h"
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
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

// An event that has been recorded.
class Event {
 public:
  Event() = default;
  Event(Event&& other) noexcept
      : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  // Requires: the stream's GPU is the current one.
  static absl::StatusOr<Event> Record(cudaStream_t stream) {
    Event event;
    STOWAGE_RETURN_IF_ERROR(CudaStatus(
        cudaEventCreateWithFlags(&event.event_, cudaEventDisableTiming),
        "make an event"));
    STOWAGE_RETURN_IF_ERROR(
        CudaStatus(cudaEventRecord(event.event_, stream), "record an event"));
    return event;
  }
  bool Done() const { return cudaEventQuery(event_) != cudaErrorNotReady; }
  absl::Status Wait() const {
    return CudaStatus(cudaEventSynchronize(event_), "wait for an event");
  }
  absl::Status HoldStream(cudaStream_t stream) const {
    return CudaStatus(cudaStreamWaitEvent(stream, event_, 0),
                      "make a stream wait for an event");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaCopy final : public DeviceCopy {
 public:
  CudaCopy(Event event, c10::DeviceIndex index)
      : event_(std::move(event)), index_(index) {}

  bool Done() override { return event_.Done(); }
  absl::Status Wait() override { return event_.Wait(); }
  absl::Status JoinCompute() override {
    return event_.HoldStream(c10::cuda::getCurrentCUDAStream(index_).stream());
  }

 private:
  const Event event_;
  const c10::DeviceIndex index_;
};

class CudaMark final : public DeviceMark {
 public:
  explicit CudaMark(Event event) : event_(std::move(event)) {}
  const Event& event() const { return event_; }

 private:
  const Event event_;
};

class CudaScope final : public DeviceScope {
 public:
  explicit CudaScope(c10::cuda::CUDAStream stream) : guard_(stream) {}

 private:
  const c10::cuda::CUDAStreamGuard guard_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index)
      : index_(static_cast<c10::DeviceIndex>(index)),
        name_(absl::StrCat("cuda:", index)) {}
  ~CudaDevice() override {
    for (cudaStream_t stream : {in_, out_}) {
      if (stream == nullptr) continue;
      cudaStreamSynchronize(stream);
      cudaStreamDestroy(stream);
    }
  }

  absl::Status Open() {
    STOWAGE_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(index_), "set device"));
    STOWAGE_RETURN_IF_ERROR(CatchStatus("cuda: initialize LibTorch", [] {
      at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    }));
    for (cudaStream_t* stream : {&in_, &out_}) {
      STOWAGE_RETURN_IF_ERROR(
          CudaStatus(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking),
                     "make a stream"));
    }
    return CudaStatus(cudaDeviceGetAttribute(
                          &registers_read_only_,
                          cudaDevAttrHostRegisterReadOnlySupported, index_),
                      "ask what can be registered");
  }

  std::string_view name() const override { return name_; }
  int cuda_index() const override { return index_; }

  absl::StatusOr<std::byte*> Allocate(std::int64_t bytes) override {
    const std::string what =
        absl::StrCat("allocate ", bytes, " bytes on ", name_);
    if (bytes < 1) return absl::InvalidArgumentError(what);
    const c10::cuda::CUDAGuard guard(index_);
    void* memory = nullptr;
    const absl::Status made = CatchStatus(what.c_str(), [&] {
      try {
        memory = c10::cuda::CUDACachingAllocator::raw_alloc(
            static_cast<std::size_t>(bytes));
      } catch (const c10::OutOfMemoryError& error) {
        throw StatusError(absl::ResourceExhaustedError(
            absl::StrCat(what, ": ", error.what_without_backtrace())));
      }
    });
    if (!made.ok()) return made;
    allocated_[memory] = bytes;
    counters_.allocated_bytes += bytes;
    return static_cast<std::byte*>(memory);
  }
  void Free(std::byte* memory) override {
    const auto entry = allocated_.find(memory);
    if (entry == allocated_.end()) return;
    counters_.allocated_bytes -= entry->second;
    allocated_.erase(entry);
    const c10::cuda::CUDAGuard guard(index_);
    c10::cuda::CUDACachingAllocator::raw_delete(memory);
  }

  absl::StatusOr<bool> Register(const void* memory, std::int64_t bytes,
                                bool read_only) override {
    const std::string what =
        absl::StrCat("register ", bytes, " bytes with ", name_);
    if (memory == nullptr || bytes < 1) {
      return absl::InvalidArgumentError(what);
    }
    if (read_only && registers_read_only_ == 0) return false;
    const c10::cuda::CUDAGuard guard(index_);
    const unsigned flags =
        read_only ? cudaHostRegisterReadOnly : cudaHostRegisterDefault;
    if (const cudaError_t error = cudaHostRegister(
            const_cast<void*>(memory), static_cast<std::size_t>(bytes), flags);
        error != cudaSuccess) {
      cudaGetLastError();  // it would be found by the next kernel's launch
      return CudaStatus(error, what);
    }
    registered_[memory] = bytes;
    counters_.registered_bytes += bytes;
    return true;
  }
  void Unregister(const void* memory) override {
    const auto entry = registered_.find(memory);
    if (entry == registered_.end()) return;
    counters_.registered_bytes -= entry->second;
    registered_.erase(entry);
    const c10::cuda::CUDAGuard guard(index_);
    cudaHostUnregister(const_cast<void*>(memory));
  }

  absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyIn(
      std::byte* to_device, const std::byte* from_host,
      std::int64_t bytes) override {
    ++counters_.copies_in;
    counters_.bytes_in += bytes;
    const c10::cuda::CUDAGuard guard(index_);
    return Start(to_device, from_host, bytes, cudaMemcpyHostToDevice, in_);
  }
  absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyOut(
      std::byte* to_host, const std::byte* from_device,
      std::int64_t bytes) override {
    ++counters_.copies_out;
    counters_.bytes_out += bytes;
    const c10::cuda::CUDAGuard guard(index_);
    if (Current() != out_) {
      STOWAGE_ASSIGN_OR_RETURN(const Event computed, Event::Record(Current()));
      STOWAGE_RETURN_IF_ERROR(computed.HoldStream(out_));
    }
    return Start(to_host, from_device, bytes, cudaMemcpyDeviceToHost, out_);
  }

  absl::StatusOr<std::unique_ptr<DeviceMark>> Mark() override {
    const c10::cuda::CUDAGuard guard(index_);
    STOWAGE_ASSIGN_OR_RETURN(Event event, Event::Record(Current()));
    return std::make_unique<CudaMark>(std::move(event));
  }
  absl::Status Hold(CopyDirection direction, const DeviceMark& mark) override {
    return static_cast<const CudaMark&>(mark).event().HoldStream(
        direction == CopyDirection::kIn ? in_ : out_);
  }
  std::unique_ptr<DeviceScope> Enter(CopyDirection direction) override {
    return std::make_unique<CudaScope>(c10::cuda::getStreamFromExternal(
        direction == CopyDirection::kIn ? in_ : out_, index_));
  }

  absl::Status Copy(std::byte* to, const std::byte* from,
                    std::int64_t bytes) override {
    const c10::cuda::CUDAGuard guard(index_);
    return CudaStatus(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes),
                                      cudaMemcpyDeviceToDevice, Current()),
                      absl::StrCat("copy ", bytes, " bytes on ", name_));
  }
  absl::Status Clear(std::byte* memory, std::int64_t bytes) override {
    const c10::cuda::CUDAGuard guard(index_);
    return CudaStatus(
        cudaMemsetAsync(memory, 0, static_cast<std::size_t>(bytes), Current()),
        absl::StrCat("clear ", bytes, " bytes on ", name_));
  }

 private:
  cudaStream_t Current() const {
    return c10::cuda::getCurrentCUDAStream(index_).stream();
  }

  absl::StatusOr<std::unique_ptr<DeviceCopy>> Start(std::byte* to,
                                                    const std::byte* from,
                                                    std::int64_t bytes,
                                                    cudaMemcpyKind kind,
                                                    cudaStream_t stream) {
    STOWAGE_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind,
                        stream),
        absl::StrCat("copy ", bytes, " bytes ",
                     kind == cudaMemcpyHostToDevice ? "to " : "from ", name_)));
    STOWAGE_ASSIGN_OR_RETURN(Event event, Event::Record(stream));
    return std::make_unique<CudaCopy>(std::move(event), index_);
  }

  const c10::DeviceIndex index_;
  const std::string name_;
  cudaStream_t in_ = nullptr;
  cudaStream_t out_ = nullptr;
  int registers_read_only_ = 0;
  std::map<const void*, std::int64_t> allocated_;
  std::map<const void*, std::int64_t> registered_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || index < 0 || index >= count) {
    return absl::UnavailableError(absl::StrCat("cuda device ", index,
                                               ": there are ", count, " (",
                                               cudaGetErrorString(error), ")"));
  }
  if (!at::hasCUDA()) {
    return absl::FailedPreconditionError(
        "cuda: LibTorch was used before the device was opened, and has no CUDA "
        "in this process; open the device first");
  }
  auto device = std::make_unique<CudaDevice>(index);
  STOWAGE_RETURN_IF_ERROR(device->Open());
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace stowage::engine
