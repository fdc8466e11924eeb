// The twin: a device in the host's memory. Copies are queued and happen when
// somebody waits for them, joins them or has asked often enough whether they
// are done, in the order of their direction.

#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "engine/device/device.h"

namespace stowage::engine {
namespace {

constexpr std::int64_t kAlignBytes = 256;
// Questions until a copy is done: whoever asks in passing, and does not wait
// where it must, has not been helped by it.
constexpr int kQuestions = 4;

// One direction's stream.
class CopyQueue {
 public:
  // Returns: the copy's number.
  std::int64_t Add(std::byte* to, const std::byte* from, std::int64_t bytes) {
    waiting_.push_back({to, from, bytes});
    return ++added_;
  }
  bool Done(std::int64_t number) const { return done_ >= number; }
  void RunOne() {
    if (waiting_.empty()) return;
    const Waiting& copy = waiting_.front();
    std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    waiting_.pop_front();
    ++done_;
  }
  void RunTo(std::int64_t number) {
    while (!Done(number)) RunOne();
  }
  void RunAll() { RunTo(added_); }

 private:
  struct Waiting {
    std::byte* to;
    const std::byte* from;
    std::int64_t bytes;
  };
  std::deque<Waiting> waiting_;
  std::int64_t added_ = 0;
  std::int64_t done_ = 0;
};

class TwinCopy final : public DeviceCopy {
 public:
  TwinCopy(std::shared_ptr<CopyQueue> queue, std::int64_t number)
      : queue_(std::move(queue)), number_(number) {}

  bool Done() override {
    if (queue_->Done(number_)) return true;
    if (++asked_ == kQuestions) queue_->RunTo(number_);
    return queue_->Done(number_);
  }
  absl::Status Wait() override {
    queue_->RunTo(number_);
    return absl::OkStatus();
  }
  absl::Status JoinCompute() override { return Wait(); }

 private:
  const std::shared_ptr<CopyQueue> queue_;
  const std::int64_t number_;
  int asked_ = 0;
};

class TwinMark final : public DeviceMark {};
class TwinScope final : public DeviceScope {};

class TwinDevice final : public Device {
 public:
  std::string_view name() const override { return "twin"; }
  int cuda_index() const override { return -1; }

  absl::StatusOr<std::byte*> Allocate(std::int64_t bytes) override {
    if (bytes < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("allocate ", bytes, " bytes on the twin"));
    }
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(
        kAlignBytes, static_cast<std::size_t>(RoundUp(bytes, kAlignBytes))));
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("allocate ", bytes, " bytes on the twin"));
    }
    allocated_[memory] = bytes;
    counters_.allocated_bytes += bytes;
    return memory;
  }
  void Free(std::byte* memory) override {
    const auto entry = allocated_.find(memory);
    STOWAGE_CHECK(entry != allocated_.end());
    counters_.allocated_bytes -= entry->second;
    allocated_.erase(entry);
    std::free(memory);
  }

  absl::StatusOr<bool> Register(const void* memory, std::int64_t bytes,
                                bool /*read_only*/) override {
    if (bytes < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("register ", bytes, " bytes with the twin"));
    }
    if (!registered_.emplace(memory, bytes).second) {
      return absl::InternalError("register memory that is registered already");
    }
    counters_.registered_bytes += bytes;
    return true;
  }
  void Unregister(const void* memory) override {
    const auto entry = registered_.find(memory);
    if (entry == registered_.end()) return;
    counters_.registered_bytes -= entry->second;
    registered_.erase(entry);
  }

  absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyIn(
      std::byte* to_device, const std::byte* from_host,
      std::int64_t bytes) override {
    ++counters_.copies_in;
    counters_.bytes_in += bytes;
    return std::make_unique<TwinCopy>(in_,
                                      in_->Add(to_device, from_host, bytes));
  }
  absl::StatusOr<std::unique_ptr<DeviceCopy>> CopyOut(
      std::byte* to_host, const std::byte* from_device,
      std::int64_t bytes) override {
    ++counters_.copies_out;
    counters_.bytes_out += bytes;
    return std::make_unique<TwinCopy>(out_,
                                      out_->Add(to_host, from_device, bytes));
  }

  // What the CPU is given to compute is done at once.
  absl::StatusOr<std::unique_ptr<DeviceMark>> Mark() override {
    return std::make_unique<TwinMark>();
  }
  absl::Status Hold(CopyDirection /*direction*/,
                    const DeviceMark& /*mark*/) override {
    return absl::OkStatus();
  }
  // What is given to a copy stream comes after its copies.
  std::unique_ptr<DeviceScope> Enter(CopyDirection direction) override {
    (direction == CopyDirection::kIn ? in_ : out_)->RunAll();
    return std::make_unique<TwinScope>();
  }
  absl::Status Copy(std::byte* to, const std::byte* from,
                    std::int64_t bytes) override {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
    return absl::OkStatus();
  }
  absl::Status Clear(std::byte* memory, std::int64_t bytes) override {
    std::memset(memory, 0, static_cast<std::size_t>(bytes));
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<CopyQueue> in_ = std::make_shared<CopyQueue>();
  const std::shared_ptr<CopyQueue> out_ = std::make_shared<CopyQueue>();
  std::map<const std::byte*, std::int64_t> allocated_;
  std::map<const void*, std::int64_t> registered_;
};

}  // namespace

std::unique_ptr<Device> Device::MakeTwin() {
  return std::make_unique<TwinDevice>();
}

}  // namespace stowage::engine
