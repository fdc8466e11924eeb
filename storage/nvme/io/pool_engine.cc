#include "storage/nvme/io/pool_engine.h"

#include <algorithm>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"

namespace stowage::storage {
namespace {

class PoolEngine final : public IoEngine {
 public:
  PoolEngine(const IoEngineOptions& options, std::span<DiskFile* const> files)
      : depth_(options.queue_depth), files_(files.begin(), files.end()) {
    const std::int32_t threads = std::max(1, options.threads);
    for (std::int32_t i = 0; i < threads; ++i) {
      threads_.emplace_back([this] { Work(); });
    }
  }

  PoolEngine(const PoolEngine&) = delete;
  PoolEngine& operator=(const PoolEngine&) = delete;
  ~PoolEngine() override {
    {
      MutexLock lock(mutex_);
      stop_ = true;
    }
    work_.NotifyAll();
    for (std::thread& thread : threads_) thread.join();
  }

  std::int32_t capacity() const override { return depth_; }

  std::int32_t Submit(std::span<const IoRequest> requests) override {
    std::int32_t taken = 0;
    {
      MutexLock lock(mutex_);
      for (const IoRequest& request : requests) {
        if (in_flight_ >= depth_) break;
        queue_.push_back(request);
        ++in_flight_;
        ++taken;
      }
    }
    work_.NotifyAll();
    return taken;
  }

  std::int32_t Poll(std::int32_t min,
                    std::vector<IoCompletion>* completions) override {
    MutexLock lock(mutex_);
    while (static_cast<std::int32_t>(done_.size()) < min) done_cv_.Wait(mutex_);
    const auto got = static_cast<std::int32_t>(done_.size());
    completions->insert(completions->end(), done_.begin(), done_.end());
    done_.clear();
    in_flight_ -= got;
    return got;
  }

  std::string Describe() const override {
    return absl::StrCat("pread/pwrite, ", threads_.size(), " threads");
  }

 private:
  void Work() {
    for (;;) {
      IoRequest request;
      {
        MutexLock lock(mutex_);
        while (queue_.empty() && !stop_) work_.Wait(mutex_);
        if (queue_.empty()) return;  // stopped, and nothing is left
        request = queue_.front();
        queue_.pop_front();
      }
      DiskFile& file = *files_[static_cast<std::size_t>(request.file)];
      const auto bytes = static_cast<std::size_t>(request.bytes);
      const std::int64_t result =
          request.write
              ? file.WriteAt(request.offset_bytes, {request.data, bytes})
              : file.ReadAt(request.offset_bytes, {request.data, bytes});
      {
        MutexLock lock(mutex_);
        done_.push_back({request.tag, result});
      }
      done_cv_.NotifyOne();
    }
  }

  const std::int32_t depth_;
  const std::vector<DiskFile*> files_;

  Mutex mutex_;
  CondVar work_;
  CondVar done_cv_;
  std::deque<IoRequest> queue_ GUARDED_BY(mutex_);
  std::vector<IoCompletion> done_ GUARDED_BY(mutex_);
  std::int32_t in_flight_ GUARDED_BY(mutex_) = 0;
  bool stop_ GUARDED_BY(mutex_) = false;

  std::vector<std::thread> threads_;  // last: the rest is ready when they start
};

}  // namespace

std::unique_ptr<IoEngine> NewPoolEngine(const IoEngineOptions& options,
                                        std::span<DiskFile* const> files) {
  return std::make_unique<PoolEngine>(options, files);
}

}  // namespace stowage::storage
