#include "server/rpc/outbox.h"

#include <utility>

namespace stowage::rpc {

bool Outbox::Push(v1::ServerMessage message) {
  const MutexLock lock(mutex_);
  if (!Enqueue(std::move(message))) return false;
  if (!writing_) Drain();
  return !broken_;
}

bool Outbox::PushAndWait(v1::ServerMessage message) {
  const MutexLock lock(mutex_);
  if (!Enqueue(std::move(message))) return false;
  if (!writing_) Drain();
  while (writing_) idle_.Wait(mutex_);
  return !broken_;
}

void Outbox::Close() {
  const MutexLock lock(mutex_);
  closed_ = true;
  while (writing_) idle_.Wait(mutex_);
}

bool Outbox::Enqueue(v1::ServerMessage message) {
  if (closed_ || broken_) return false;
  queued_bytes_ += static_cast<std::int64_t>(message.ByteSizeLong());
  if (queued_bytes_ > kQueuedBytesMax && !queue_.empty()) {
    broken_ = true;
    queue_.clear();
    call_.Cancel();
    return false;
  }
  queue_.push_back(std::move(message));
  return true;
}

// The lock is released around each write; `writing_` keeps others out.
void Outbox::Drain() {
  writing_ = true;
  while (!queue_.empty()) {
    const v1::ServerMessage message = std::move(queue_.front());
    queue_.pop_front();
    queued_bytes_ -= static_cast<std::int64_t>(message.ByteSizeLong());
    mutex_.Unlock();
    call_.WriteBegins(kWriteLimit);
    const bool written = stream_.Write(message);
    call_.WriteEnded();
    mutex_.Lock();
    if (!written) {
      broken_ = true;
      queue_.clear();
      queued_bytes_ = 0;
    }
  }
  writing_ = false;
  idle_.NotifyAll();
}

}  // namespace stowage::rpc
