// One RunSession stream from the client's side: ordered writes, one reader.
//
// Who waits for an answer reads it himself: a second thread in the middle costs
// half as many context switches again as the round trip itself (measured:
// client/README.md). But a rank that computes for minutes must learn that its
// peer died, so a watcher thread reads whenever nobody has read for a while,
// and keeps the deadlines of those who do (a synchronous Read has none).
//
// Private to client/: it shows gRPC types.

#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/mutex.h"
#include "proto/payload_codec.h"
#include "proto/round_codec.h"
#include "proto/session_codec.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage::client {

struct AttachedAnswer {
  AttachInfo info;
  std::uint64_t layout_fingerprint = 0;
};

// Thread safety: Send() and status() by any thread; the Wait functions by one
//   thread at a time.
// Errors: once the stream has failed, everything returns that first status.
// Shutdown: the destructor cancels a stream that was not closed, and joins.
// Blocks: Wait functions, until the answer or `timeout` (kept to 200 ms).
class SessionStream {
 public:
  SessionStream(v1::Stowage::StubInterface& stub, std::string address);
  SessionStream(const SessionStream&) = delete;
  SessionStream& operator=(const SessionStream&) = delete;
  ~SessionStream();

  // Blocks: on the transport's back-pressure only.
  absl::Status Send(const v1::ClientMessage& message);

  // All Wait functions. Errors: kDeadlineExceeded, after which the stream is
  // broken.
  absl::StatusOr<AttachedAnswer> WaitAttached(
      std::chrono::milliseconds timeout);
  absl::Status WaitInitialized(std::chrono::milliseconds timeout);
  absl::StatusOr<Verdict> WaitVerdict(std::chrono::milliseconds timeout);
  absl::Status WaitLeased(std::int32_t unit, std::int64_t step,
                          std::chrono::milliseconds timeout);
  absl::Status WaitLanded(std::int32_t unit, std::int64_t total,
                          std::chrono::milliseconds timeout);
  absl::Status WaitClosed(std::chrono::milliseconds timeout);

  // Announces where the chunks of a ReadState that is sent next go; then waits
  // for them.
  void ExpectState(const proto::ReadStateArgs& args, std::span<float> out);
  absl::Status WaitState(std::chrono::milliseconds timeout);

  // Announces a BeginRound that is sent next; then waits for its answer.
  void ExpectRound(std::int64_t step, std::int32_t round);
  absl::StatusOr<std::vector<std::byte>> WaitRound(
      std::chrono::milliseconds timeout);
  absl::Status WaitRoundHeld(std::int64_t step, std::int32_t round,
                             std::chrono::milliseconds timeout);

  // Announces where the chunks of FetchParams that are sent next go: bytes
  // [begin, begin + into.size()) of the unit; then waits for them.
  void ExpectParams(std::int32_t unit, std::int64_t step,
                    std::int64_t begin_bytes, std::span<std::byte> into);
  absl::Status WaitParams(std::chrono::milliseconds timeout);

  // Breaks the stream with `status` unless it is broken already.
  // Returns: what broke it first.
  absl::Status Break(const absl::Status& status);

  // OK while the stream works. Cost: one atomic load while it does.
  absl::Status status() const;

 private:
  using Stream =
      grpc::ClientReaderWriterInterface<v1::ClientMessage, v1::ServerMessage>;
  using Clock = std::chrono::steady_clock;

  // Where a ReadState's answer goes.
  struct PendingRead {
    proto::ReadStateArgs args;
    std::span<float> out;
    std::int64_t filled_elems = 0;
  };

  struct PendingParams {
    std::int32_t unit = 0;
    std::int64_t step = 0;
    std::int64_t begin_bytes = 0;
    std::span<std::byte> into;
    std::int64_t filled_bytes = 0;
  };

  struct PendingRound {
    std::int64_t step = 0;
    std::int32_t round = 0;
    std::int64_t total_bytes = -1;  // not told yet
    std::vector<std::byte> bytes;
  };

  // The caller that reads; the watcher enforces his deadline.
  struct Waiting {
    const char* what;
    std::chrono::milliseconds timeout;
    Clock::time_point deadline;
  };

  void Watch();
  void ReadOne() REQUIRES(mutex_);
  void End(const grpc::Status& finished) REQUIRES(mutex_);
  absl::Status Take(const v1::ServerMessage& message);
  absl::Status TakeChunk(const v1::StateChunk& message);
  absl::Status TakeParams(const v1::ParamChunk& message);
  absl::Status TakeRound(const v1::RoundChunk& message);
  void EndWrites();
  template <typename Done>
  absl::Status WaitUntil(std::chrono::milliseconds timeout, const char* what,
                         Done done) REQUIRES(mutex_);
  absl::Status TooLate(const Waiting& waiting) REQUIRES(mutex_);
  absl::Status BreakLocked(const absl::Status& status) REQUIRES(mutex_);

  const std::string address_;
  grpc::ClientContext context_;
  std::unique_ptr<Stream> stream_;
  Mutex write_mutex_;  // before mutex_
  bool writes_ended_ GUARDED_BY(write_mutex_) = false;
  std::atomic<bool> broken_{false};
  mutable Mutex mutex_;
  CondVar changed_;
  absl::Status status_ GUARDED_BY(mutex_);
  std::optional<AttachedAnswer> attached_ GUARDED_BY(mutex_);
  bool initialized_ GUARDED_BY(mutex_) = false;
  std::optional<Verdict> verdict_ GUARDED_BY(mutex_);
  std::optional<PendingRead> read_ GUARDED_BY(mutex_);
  std::optional<PendingParams> params_ GUARDED_BY(mutex_);
  std::optional<PendingRound> round_ GUARDED_BY(mutex_);
  std::optional<proto::RoundHeldArgs> round_held_ GUARDED_BY(mutex_);  // last
  std::optional<proto::LandedArgs> landed_ GUARDED_BY(mutex_);  // the last
  std::optional<proto::LeaseArgs> leased_ GUARDED_BY(mutex_);   // the last
  bool closed_ GUARDED_BY(mutex_) = false;  // the server said Closed
  bool ended_ GUARDED_BY(mutex_) = false;   // the call has ended
  // The right to read: one thread has it, outside the lock.
  bool reading_ GUARDED_BY(mutex_) = false;
  Clock::time_point last_read_ GUARDED_BY(mutex_) = Clock::now();
  std::optional<Waiting> waiting_ GUARDED_BY(mutex_);
  bool stop_ GUARDED_BY(mutex_) = false;
  v1::ServerMessage message_;    // of the thread with the right to read
  proto::StateChunkArgs chunk_;  // likewise
  CondVar stop_changed_;
  std::thread watcher_;
};

}  // namespace stowage::client
