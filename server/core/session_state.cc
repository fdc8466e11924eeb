#include "server/core/session_state.h"

#include "absl/strings/str_cat.h"

namespace stowage::core {

std::string SessionState::Who() const {
  return absl::StrCat("rank ", rank_, " (", client_, ")");
}

absl::Status SessionState::failure() const {
  MutexLock lock(mutex_);
  return failure_;
}

void SessionState::SetFailure(const absl::Status& status) {
  MutexLock lock(mutex_);
  if (failure_.ok()) failure_ = status;
}

bool SessionState::Enter() {
  MutexLock lock(mutex_);
  if (closed_) return false;
  ++calls_;
  return true;
}

void SessionState::Leave() {
  MutexLock lock(mutex_);
  if (--calls_ == 0) calls_over_.NotifyAll();
}

void SessionState::TellInitialized() {
  if (!Enter()) return;
  observer_->OnInitialized();
  Leave();
}

void SessionState::TellVerdict(const Verdict& verdict) {
  if (!Enter()) return;
  observer_->OnVerdict(verdict);
  Leave();
}

void SessionState::TellLeased(std::int32_t unit, std::int64_t step) {
  if (!Enter()) return;
  observer_->OnLeased(unit, step);
  Leave();
}

void SessionState::TellFailed() {
  absl::Status status;
  {
    MutexLock lock(mutex_);
    if (told_failed_ || closed_) return;
    told_failed_ = true;
    status = failure_;
    ++calls_;
  }
  observer_->OnFailed(status);
  Leave();
}

void SessionState::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
  while (calls_ > 0) calls_over_.Wait(mutex_);
}

}  // namespace stowage::core
