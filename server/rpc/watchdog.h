// Cancels calls that stay in one state for too long.
//
// The synchronous gRPC API has no time limit on a single Read or Write: a peer
// that opens a stream and says nothing, or that does not read what it is sent,
// would hold a thread (a core thread, in a write from a callback). One thread
// looks at all watched calls twice a second while there are any.

#pragma once

#include <grpcpp/server_context.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <set>
#include <thread>

#include "common/mutex.h"

namespace stowage::rpc {

class Watchdog;

// One call's limits; lives on the stack of its handler.
// Thread safety: thread-safe.
class WatchedCall {
 public:
  WatchedCall(Watchdog& watchdog, grpc::ServerContext& context);
  WatchedCall(const WatchedCall&) = delete;
  WatchedCall& operator=(const WatchedCall&) = delete;
  ~WatchedCall();

  // The peer has to do something (send Open, end its side) within `limit`.
  void ExpectPeer(std::chrono::milliseconds limit);
  void PeerDidIt() { peer_deadline_ns_.store(0); }
  // A write begins; it has to end within `limit`.
  void WriteBegins(std::chrono::milliseconds limit);
  void WriteEnded() { write_deadline_ns_.store(0); }

  // Ends the call with CANCELLED; reads and writes in progress return false.
  void Cancel() { context_.TryCancel(); }

 private:
  friend class Watchdog;
  void CancelIfLate(std::int64_t now_ns);

  Watchdog& watchdog_;
  grpc::ServerContext& context_;
  std::atomic<std::int64_t> peer_deadline_ns_{0};  // 0: none; steady clock
  std::atomic<std::int64_t> write_deadline_ns_{0};
};

// Thread safety: thread-safe. Requires: outlives every WatchedCall.
class Watchdog {
 public:
  Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog();

 private:
  friend class WatchedCall;
  void Add(WatchedCall* call);
  void Remove(WatchedCall* call);
  void Run();

  Mutex mutex_;
  CondVar changed_;
  std::set<WatchedCall*> calls_ GUARDED_BY(mutex_);
  bool stop_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace stowage::rpc
