// One RunSession stream: decode, call the core, encode.
//
// Life: wait for Open -> attach -> read and act until Close, the end of the
// stream, an error, or news from the core. One thread reads (the one that gRPC
// gave the call); the core's threads write through the outbox. Whatever ends
// the stream without Close makes the rank a lost one.

#pragma once

#include <grpcpp/server_context.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/mutex.h"
#include "proto/session_codec.h"
#include "server/core/job_registry.h"
#include "server/rpc/outbox.h"
#include "server/rpc/session_calls.h"
#include "server/rpc/watchdog.h"

namespace stowage::rpc {

// Thread safety: Run() by one thread; the observer's methods by any.
class SessionHandler final : public core::SessionObserver {
 public:
  SessionHandler(core::JobRegistry& registry, Watchdog& watchdog,
                 grpc::ServerContext& context, Outbox::Stream& stream);
  ~SessionHandler() override = default;

  // Serves the stream to its end. Returns: what the call ends with.
  absl::Status Run();

  void OnInitialized() override;
  void OnVerdict(const Verdict& verdict) override;
  void OnLeased(std::int32_t unit, std::int64_t step) override;
  void OnFailed(const absl::Status& status) override;

 private:
  absl::Status ReadOpen(proto::OpenArgs* args);
  absl::Status Attach(const proto::OpenArgs& args);
  absl::Status Serve();
  absl::Status failure() const;  // OK while the core has not failed us

  core::JobRegistry& registry_;
  grpc::ServerContext& context_;
  Outbox::Stream& stream_;
  WatchedCall call_;
  Outbox outbox_;
  std::unique_ptr<core::JobSession> session_;
  std::optional<SessionCalls> calls_;  // of session_
  bool said_goodbye_ = false;
  std::string client_;         // "pid 4711", for logs
  v1::ClientMessage message_;  // reused: keeps its buffers
  mutable Mutex mutex_;
  absl::Status failure_ GUARDED_BY(mutex_);
};

}  // namespace stowage::rpc
