#include "server/core/compute_team.h"

#include <algorithm>
#include <climits>

#include "common/check.h"
#include "server/core/futex.h"

namespace stowage::core {
namespace {

// About 10 us at 40-50 ns a pause: longer than two loops of one job are apart,
// shorter than what a rank would miss of its core.
constexpr int kSpins = 200;

}  // namespace

ComputeTeam::ComputeTeam(int threads) : threads_(threads) {
  STOWAGE_CHECK(threads >= 1);
  for (int i = 1; i < threads; ++i) {
    helpers_.emplace_back([this] { HelperMain(); });
  }
}

ComputeTeam::~ComputeTeam() {
  stop_.store(true);
  news_.fetch_add(1);
  FutexWake(news_, INT_MAX);
  for (std::thread& helper : helpers_) helper.join();
}

ComputeTeam::Task* ComputeTeam::TakeTask() {
  for (Task& task : tasks_) {
    if (!task.taken.load(std::memory_order_relaxed) &&
        !task.taken.exchange(true, std::memory_order_acquire)) {
      return &task;
    }
  }
  return nullptr;
}

void ComputeTeam::Run(std::int64_t count, Function function, void* context) {
  STOWAGE_CHECK(count >= 0 && count < INT_MAX);
  Task* task = (helpers_.empty() || count <= 1) ? nullptr : TakeTask();
  if (task == nullptr) {
    for (std::int64_t i = 0; i < count; ++i) function(context, i);
    return;
  }
  const std::uint64_t generation = (task->claim.load() >> 32) + 1;
  // Closed first (next index past any count), so that a helper that still looks
  // at the previous loop cannot claim with a mix of old and new fields.
  task->claim.store((generation << 32) | 0xffffffffU);
  const auto total = static_cast<std::uint32_t>(count);
  task->count.store(total, std::memory_order_release);
  task->function.store(function, std::memory_order_release);
  task->context.store(context, std::memory_order_release);
  task->done.store(0, std::memory_order_release);
  task->claim.store(generation << 32);
  news_.fetch_add(1);
  if (sleepers_.load() > 0) {
    FutexWake(news_, static_cast<int>(std::min<std::int64_t>(
                         count - 1, static_cast<int>(helpers_.size()))));
  }
  Work(*task);
  WaitDone(*task, total);
  task->taken.store(false, std::memory_order_release);
}

bool ComputeTeam::Work(Task& task) {
  bool worked = false;
  for (;;) {
    std::uint64_t claim = task.claim.load(std::memory_order_acquire);
    const std::uint32_t count = task.count.load(std::memory_order_acquire);
    const Function function = task.function.load(std::memory_order_acquire);
    void* const context = task.context.load(std::memory_order_acquire);
    const auto next = static_cast<std::uint32_t>(claim);
    if (next >= count) return worked;
    if (!task.claim.compare_exchange_strong(claim, claim + 1)) continue;
    function(context, next);
    worked = true;
    if (task.done.fetch_add(1) + 1 == count && task.caller_sleeps.load() != 0) {
      FutexWake(task.done, 1);
    }
  }
}

void ComputeTeam::WaitDone(Task& task, std::uint32_t count) {
  for (int i = 0; i < kSpins; ++i) {
    if (task.done.load(std::memory_order_acquire) == count) return;
    SpinPause();
  }
  task.caller_sleeps.store(1);
  for (;;) {
    const std::uint32_t done = task.done.load();
    if (done == count) break;
    FutexWait(task.done, done);
  }
  task.caller_sleeps.store(0, std::memory_order_relaxed);
}

void ComputeTeam::HelperMain() {
  for (;;) {
    const std::uint32_t news = news_.load();
    if (stop_.load()) return;
    bool worked = false;
    for (Task& task : tasks_) worked = Work(task) || worked;
    if (worked) continue;
    bool fresh = false;
    for (int i = 0; i < kSpins && !fresh; ++i) {
      fresh = news_.load(std::memory_order_acquire) != news;
      SpinPause();
    }
    if (fresh) continue;
    sleepers_.fetch_add(1);
    FutexWait(news_, news);
    sleepers_.fetch_sub(1);
  }
}

}  // namespace stowage::core
