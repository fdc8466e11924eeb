// A session as the job sees it: who it is, and a gate to its observer.
//
// Shared by the job (which calls the observer from its own thread or another
// session's) and the JobSession handle (which ends it). The gate makes sure
// that no call reaches the observer once Close() has returned.

#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "common/job_spec.h"
#include "common/mutex.h"
#include "server/core/job_registry.h"

namespace stowage::core {

// Thread safety: thread-safe.
class SessionState {
 public:
  SessionState(AttachInfo info, std::int32_t rank, std::string client,
               SessionObserver* observer)
      : info_(std::move(info)),
        rank_(rank),
        client_(std::move(client)),
        observer_(observer) {}
  SessionState(const SessionState&) = delete;
  SessionState& operator=(const SessionState&) = delete;
  ~SessionState() = default;

  const AttachInfo& info() const { return info_; }
  std::int32_t rank() const { return rank_; }
  // "rank 1 (pid 4711)".
  std::string Who() const;

  // What the session failed with, OK while it works.
  absl::Status failure() const;
  // Marks it failed; the first call wins. Tells nobody.
  void SetFailure(const absl::Status& status);

  // Call the observer unless the session is closed. No lock of core may be
  // held.
  void TellInitialized();
  void TellVerdict(const Verdict& verdict);
  void TellLeased(std::int32_t unit, std::int64_t step);
  void TellFailed();  // at most once, with failure()

  // From now on the observer is not called.
  // Blocks: until calls in progress are over; so not from inside one.
  void Close();

 private:
  bool Enter();
  void Leave();

  const AttachInfo info_;
  const std::int32_t rank_;
  const std::string client_;
  SessionObserver* const observer_;

  mutable Mutex mutex_;
  CondVar calls_over_;
  int calls_ GUARDED_BY(mutex_) = 0;
  bool closed_ GUARDED_BY(mutex_) = false;
  bool told_failed_ GUARDED_BY(mutex_) = false;
  absl::Status failure_ GUARDED_BY(mutex_);
};

}  // namespace stowage::core
