#include "storage/nvme/io/uring_engine.h"

#include <liburing.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/errno_status.h"
#include "common/log.h"

namespace stowage::storage {
namespace {

// The kernel takes at most 1 GiB in one registered buffer.
constexpr std::int64_t kRegisteredBytesMax = kGiB;

void WarnUnregistered(int error, std::int64_t bytes) {
  static std::atomic<bool> warned{false};
  if (warned.exchange(true)) return;
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  log::Warning(
      "io_buffers_not_registered",
      {{"reason", ErrnoStatus("io_uring_register", error).message()},
       {"limit", limit.rlim_cur == RLIM_INFINITY
                     ? std::string("unlimited")
                     : HumanBytes(static_cast<std::int64_t>(limit.rlim_cur))},
       {"wanted", HumanBytes(bytes)},
       {"effect", "each transfer pins its pages anew: more CPU, same bytes"},
       {"raise",
        "RLIMIT_MEMLOCK (ulimit -l unlimited, systemd LimitMEMLOCK=infinity, "
        "docker --ulimit memlock=-1)"}});
}

class UringEngine final : public IoEngine {
 public:
  explicit UringEngine(const IoEngineOptions& options)
      : depth_(options.queue_depth), single_submit_(options.single_submit) {}

  UringEngine(const UringEngine&) = delete;
  UringEngine& operator=(const UringEngine&) = delete;
  ~UringEngine() override {
    if (!ready_) return;
    std::vector<IoCompletion> rest;
    // A ring that refuses requests is torn down by the kernel.
    while (submit_error_ == 0 &&
           in_flight_.load(std::memory_order_acquire) > 0) {
      if (Poll(1, &rest) < 0) break;
    }
    io_uring_queue_exit(&ring_);
  }

  int Start(std::span<DiskFile* const> files,
            std::span<const std::span<std::byte>> buffers) {
    io_uring_params params{};
    const int error = io_uring_queue_init_params(static_cast<unsigned>(depth_),
                                                 &ring_, &params);
    if (error < 0) return -error;
    ready_ = true;
    for (const DiskFile* file : files) fds_.push_back(file->fd());
    files_registered_ =
        !fds_.empty() &&
        io_uring_register_files(&ring_, fds_.data(),
                                static_cast<unsigned>(fds_.size())) == 0;
    RegisterBuffers(buffers);
    return 0;
  }

  std::int32_t capacity() const override { return depth_; }

  std::int32_t Submit(std::span<const IoRequest> requests) override {
    const std::int32_t room =
        depth_ - in_flight_.load(std::memory_order_acquire);
    const auto take = static_cast<std::int32_t>(std::min<std::int64_t>(
        room, static_cast<std::int64_t>(requests.size())));
    std::int32_t taken = 0;
    for (; taken < take; ++taken) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (sqe == nullptr) break;
      Prepare(requests[static_cast<std::size_t>(taken)], sqe);
      in_flight_.fetch_add(1, std::memory_order_acq_rel);
      if (single_submit_) Enter();
    }
    if (!single_submit_ && taken > 0) Enter();
    return submit_error_ != 0 ? -submit_error_ : taken;
  }

  std::int32_t Poll(std::int32_t min,
                    std::vector<IoCompletion>* completions) override {
    std::int32_t got = Reap(completions);
    while (got < min) {
      io_uring_cqe* cqe = nullptr;
      const int error = io_uring_wait_cqe(&ring_, &cqe);
      if (error == -EINTR || error == -EAGAIN) continue;
      if (error < 0) return error;
      got += Reap(completions);
    }
    return got;
  }

  std::int64_t submit_calls() const override {
    return submit_calls_.load(std::memory_order_relaxed);
  }

  std::string Describe() const override {
    return absl::StrCat("io_uring, depth ", depth_, ", ",
                        files_registered_ ? "" : "un", "registered files, ",
                        buffers_registered_ ? "" : "un", "registered buffers",
                        single_submit_ ? ", single submit" : "");
  }

 private:
  void RegisterBuffers(std::span<const std::span<std::byte>> buffers) {
    std::vector<iovec> vectors;
    std::int64_t bytes = 0;
    for (const std::span<std::byte> buffer : buffers) {
      if (static_cast<std::int64_t>(buffer.size()) > kRegisteredBytesMax) {
        return;
      }
      vectors.push_back({buffer.data(), buffer.size()});
      bytes += static_cast<std::int64_t>(buffer.size());
    }
    if (vectors.empty()) return;
    const int error = io_uring_register_buffers(
        &ring_, vectors.data(), static_cast<unsigned>(vectors.size()));
    buffers_registered_ = error == 0;
    if (error < 0) WarnUnregistered(-error, bytes);
  }

  void Prepare(const IoRequest& request, io_uring_sqe* sqe) const {
    const int fd = files_registered_
                       ? request.file
                       : fds_[static_cast<std::size_t>(request.file)];
    const auto bytes = static_cast<unsigned>(request.bytes);
    const auto offset = static_cast<std::uint64_t>(request.offset_bytes);
    if (buffers_registered_ && request.buffer >= 0) {
      if (request.write) {
        io_uring_prep_write_fixed(sqe, fd, request.data, bytes, offset,
                                  request.buffer);
      } else {
        io_uring_prep_read_fixed(sqe, fd, request.data, bytes, offset,
                                 request.buffer);
      }
    } else if (request.write) {
      io_uring_prep_write(sqe, fd, request.data, bytes, offset);
    } else {
      io_uring_prep_read(sqe, fd, request.data, bytes, offset);
    }
    if (files_registered_) sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, request.tag);
  }

  // Tells the kernel of what was prepared. What it cannot take now (EAGAIN,
  // EBUSY) stays in the ring and is told again with the next request or poll.
  void Enter() {
    for (int tries = 0; tries < 1000; ++tries) {
      const int submitted = io_uring_submit(&ring_);
      submit_calls_.fetch_add(1, std::memory_order_relaxed);
      if (submitted >= 0 && io_uring_sq_ready(&ring_) == 0) return;
      if (submitted < 0 && submitted != -EINTR && submitted != -EAGAIN &&
          submitted != -EBUSY) {
        submit_error_ = -submitted;
        return;
      }
    }
    submit_error_ = EBUSY;
  }

  std::int32_t Reap(std::vector<IoCompletion>* completions) {
    std::int32_t got = 0;
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0 && cqe != nullptr) {
      completions->push_back({cqe->user_data, cqe->res});
      io_uring_cqe_seen(&ring_, cqe);
      in_flight_.fetch_sub(1, std::memory_order_acq_rel);
      ++got;
    }
    return got;
  }

  const std::int32_t depth_;
  const bool single_submit_;
  bool ready_ = false;
  bool files_registered_ = false;
  bool buffers_registered_ = false;
  int submit_error_ = 0;  // of the submitting thread
  std::vector<int> fds_;
  std::atomic<std::int32_t> in_flight_{0};
  std::atomic<std::int64_t> submit_calls_{0};
  io_uring ring_{};
};

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> NewUringEngine(
    const IoEngineOptions& options, std::span<DiskFile* const> files,
    std::span<const std::span<std::byte>> buffers) {
  auto engine = std::make_unique<UringEngine>(options);
  if (const int error = engine->Start(files, buffers); error != 0) {
    return absl::UnavailableError(
        ErrnoStatus("io_uring_setup", error).message());
  }
  return engine;
}

}  // namespace stowage::storage
