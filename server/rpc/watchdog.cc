#include "server/rpc/watchdog.h"

#include "common/log.h"

namespace stowage::rpc {
namespace {

constexpr std::chrono::milliseconds kPeriod{500};

std::int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

std::int64_t After(std::chrono::milliseconds limit) {
  return NowNs() + std::chrono::nanoseconds(limit).count();
}

}  // namespace

WatchedCall::WatchedCall(Watchdog& watchdog, grpc::ServerContext& context)
    : watchdog_(watchdog), context_(context) {
  watchdog_.Add(this);
}

WatchedCall::~WatchedCall() { watchdog_.Remove(this); }

void WatchedCall::ExpectPeer(std::chrono::milliseconds limit) {
  peer_deadline_ns_.store(After(limit));
}

void WatchedCall::WriteBegins(std::chrono::milliseconds limit) {
  write_deadline_ns_.store(After(limit));
}

void WatchedCall::CancelIfLate(std::int64_t now_ns) {
  const std::int64_t peer = peer_deadline_ns_.load();
  const std::int64_t write = write_deadline_ns_.load();
  const bool peer_late = peer != 0 && now_ns > peer;
  const bool write_late = write != 0 && now_ns > write;
  if (!peer_late && !write_late) return;
  peer_deadline_ns_.store(0);
  write_deadline_ns_.store(0);
  log::Warning("session_cancelled",
               {{"reason", write_late ? "the client does not read"
                                      : "the client does not answer"}});
  context_.TryCancel();
}

Watchdog::Watchdog() : thread_([this] { Run(); }) {}

Watchdog::~Watchdog() {
  {
    const MutexLock lock(mutex_);
    stop_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void Watchdog::Add(WatchedCall* call) {
  {
    const MutexLock lock(mutex_);
    calls_.insert(call);
  }
  changed_.NotifyAll();
}

void Watchdog::Remove(WatchedCall* call) {
  const MutexLock lock(mutex_);
  calls_.erase(call);
}

void Watchdog::Run() {
  const MutexLock lock(mutex_);
  while (!stop_) {
    if (calls_.empty()) {
      changed_.Wait(mutex_);
      continue;
    }
    changed_.WaitFor(mutex_, kPeriod);
    const std::int64_t now_ns = NowNs();
    for (WatchedCall* call : calls_) call->CancelIfLate(now_ns);
  }
}

}  // namespace stowage::rpc
