// The listening side of stowd: gRPC over a Unix socket or TCP.
//
// Synchronous API: one thread per session, plus gRPC's pollers (see
// server/README.md for the threads). Health and reflection are on.

#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/core/job_registry.h"

namespace stowage::rpc {

struct RpcOptions {
  std::string listen;         // unix:/path or host:port
  bool insecure_tcp = false;  // listen beyond loopback all the same
  std::string version;        // of the program
  int sessions_max = 512;     // more are refused at once
};

// Thread safety: externally synchronized.
// Shutdown: Stop(), at the latest by the destructor: refuse (new sessions,
//   health says not serving), drain and cancel (the registry fails the live
//   sessions), join (2 s for clients to hang up, then their calls are
//   cancelled), close (socket and folder removed).
class RpcServer {
 public:
  // Errors: kInvalidArgument, which also TCP beyond loopback is, those of
  //   SocketFolder::Prepare, kUnavailable if the port cannot be had.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const RpcOptions& options, core::JobRegistry& registry);

  RpcServer() = default;
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;
  virtual ~RpcServer() = default;

  // Where it listens, with the port that it got.
  virtual const std::string& address() const = 0;
  virtual void Stop() = 0;  // idempotent; blocks until all calls have ended
};

}  // namespace stowage::rpc
