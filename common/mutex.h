// std::mutex with Clang's thread-safety annotations.
//
// Why not absl::Mutex: Debian's Abseil is not instrumented, so ThreadSanitizer
// reports races in correct code that uses it; std::mutex it understands.
//
// Source: Clang documentation, "Thread Safety Analysis".

#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

// Abseil defines three of these names too (for its own locks); included first,
// so that the definitions below stand whatever the order of includes.
#include "absl/base/thread_annotations.h"

#undef GUARDED_BY
#undef PT_GUARDED_BY
#undef NO_THREAD_SAFETY_ANALYSIS

#if defined(__clang__)
#define STOWAGE_TSA_(x) __attribute__((x))
#else
#define STOWAGE_TSA_(x)
#endif

#define GUARDED_BY(x) STOWAGE_TSA_(guarded_by(x))
#define PT_GUARDED_BY(x) STOWAGE_TSA_(pt_guarded_by(x))
#define REQUIRES(...) STOWAGE_TSA_(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) STOWAGE_TSA_(locks_excluded(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS STOWAGE_TSA_(no_thread_safety_analysis)

namespace stowage {

class STOWAGE_TSA_(capability("mutex")) Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  ~Mutex() = default;

  void Lock() STOWAGE_TSA_(acquire_capability()) { mutex_.lock(); }
  void Unlock() STOWAGE_TSA_(release_capability()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class STOWAGE_TSA_(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) STOWAGE_TSA_(acquire_capability(mutex))
      : mutex_(mutex) {
    mutex_.Lock();
  }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;
  ~MutexLock() STOWAGE_TSA_(release_capability()) { mutex_.Unlock(); }

 private:
  Mutex& mutex_;
};

// Condition variable for Mutex. Every wait takes the mutex it needs held.
class CondVar {
 public:
  CondVar() = default;
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;
  ~CondVar() = default;

  // Blocks until notified (or woken without cause); `mutex` is released while
  // waiting and held again on return.
  void Wait(Mutex& mutex) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }

  // As Wait(), at most for `timeout`. Returns: false if it ran out.
  bool WaitFor(Mutex& mutex, std::chrono::nanoseconds timeout) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool notified =
        condition_.wait_for(lock, timeout) == std::cv_status::no_timeout;
    lock.release();
    return notified;
  }

  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace stowage
