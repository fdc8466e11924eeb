// What a session sends to its client, from any thread, in order.
//
// The handler's own thread and threads of the core (observer callbacks) both
// send. gRPC allows one Write at a time and Write blocks when the client does
// not read, so: whoever finds no writer becomes the writer and sends what is
// queued; everybody else only queues. No extra thread, hence no extra hop for a
// verdict. A core thread is held for at most kWriteLimit, after which the
// watchdog cancels the call.

#pragma once

#include <grpcpp/support/sync_stream.h>

#include <chrono>
#include <cstdint>
#include <deque>

#include "common/mutex.h"
#include "server/rpc/watchdog.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage::rpc {

// Thread safety: thread-safe. Shutdown: Close() before the stream goes away.
class Outbox {
 public:
  using Stream = grpc::ServerReaderWriter<v1::ServerMessage, v1::ClientMessage>;

  static constexpr std::chrono::seconds kWriteLimit{10};
  // Twice the largest verdict; more in the queue means that the client does
  // not read, and ends the call.
  static constexpr std::int64_t kQueuedBytesMax = std::int64_t{32} << 20;

  Outbox(Stream& stream, WatchedCall& call) : stream_(stream), call_(call) {}
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;
  ~Outbox() { Close(); }

  // Queues the message and, if nobody is writing, writes.
  // Returns: false once the stream is broken or closed.
  // Blocks: at most kWriteLimit per queued message, on the client.
  bool Push(v1::ServerMessage message);

  // As Push, then waits until it has been written: the back-pressure of bulk
  // answers, which only the handler's thread sends.
  bool PushAndWait(v1::ServerMessage message);

  // Refuses further messages, then waits until no thread is writing.
  void Close();

 private:
  bool Enqueue(v1::ServerMessage message) REQUIRES(mutex_);
  void Drain() REQUIRES(mutex_);

  Stream& stream_;
  WatchedCall& call_;
  Mutex mutex_;
  CondVar idle_;
  std::deque<v1::ServerMessage> queue_ GUARDED_BY(mutex_);
  std::int64_t queued_bytes_ GUARDED_BY(mutex_) = 0;
  bool writing_ GUARDED_BY(mutex_) = false;
  bool closed_ GUARDED_BY(mutex_) = false;
  bool broken_ GUARDED_BY(mutex_) = false;
};

}  // namespace stowage::rpc
