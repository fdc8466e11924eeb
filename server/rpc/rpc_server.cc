#include "server/rpc/rpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "proto/address.h"
#include "proto/grpc_lifetime.h"
#include "proto/job_codec.h"
#include "server/rpc/health_service.h"
#include "server/rpc/socket_folder.h"
#include "server/rpc/stowage_service.h"

namespace stowage::rpc {
namespace {

// Sessions hold a thread each; the rest is pollers and unary calls.
constexpr int kSpareThreads = 32;
constexpr int kHandshakeMs = 10000;
// One stream's receive window: lets puts and reads of state run at copy speed
// without the extra frames of gRPC's bandwidth probe, which cost latency.
constexpr int kWindowBytes = 4 * 1024 * 1024;
// The longest frame that the other side may send: a chunk of payload in one
// instead of in 64, each with a header and buffers of its own.
constexpr int kFrameBytes = 1024 * 1024;
constexpr std::chrono::seconds kHangUpLimit{2};

// gRPC's own lines, in our format; errors only (GRPC_VERBOSITY for more).
void LogFromGrpc(gpr_log_func_args* args) {
  log::Warning("grpc", {{"message", args->message}});
}

// What bind(2) says, which gRPC does not tell.
absl::Status ProbePort(const proto::Address& address) {
  if (address.port == 0) return absl::OkStatus();
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error =
          ::getaddrinfo(address.host.c_str(),
                        absl::StrCat(address.port).c_str(), &hints, &found);
      error != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "listen on ", address.ToString(), ": ", ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(
      found, &::freeaddrinfo);
  // All of the name's addresses: one that is taken would be reached instead.
  absl::Status failed = absl::OkStatus();
  bool bound = false;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    const UniqueFd fd(::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd.valid()) continue;  // a family that this host does not have
    const int on = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (::bind(fd.get(), each->ai_addr, each->ai_addrlen) == 0) {
      bound = true;
      continue;
    }
    const int error = errno;
    failed = ErrnoStatus(absl::StrCat("listen on ", address.ToString()));
    if (error == EADDRINUSE) return failed;
  }
  if (bound) return absl::OkStatus();
  return failed.ok() ? absl::UnavailableError(absl::StrCat(
                           "listen on ", address.ToString(), ": no socket"))
                     : failed;
}

class RpcServerImpl final : public RpcServer {
 public:
  RpcServerImpl(const RpcOptions& options, core::JobRegistry& registry)
      : registry_(registry),
        service_(registry, options.version, options.sessions_max) {}
  RpcServerImpl(const RpcServerImpl&) = delete;
  RpcServerImpl& operator=(const RpcServerImpl&) = delete;
  ~RpcServerImpl() override { Stop(); }

  absl::Status Listen(const RpcOptions& options) {
    STOWAGE_ASSIGN_OR_RETURN(proto::Address address,
                             proto::ParseAddress(options.listen));
    if (!address.IsLoopback()) {
      if (!options.insecure_tcp) {
        return absl::InvalidArgumentError(absl::StrCat(
            "listen on ", address.ToString(),
            ": connections are neither encrypted nor authenticated, so that "
            "TCP works on loopback only (127.0.0.1, [::1], localhost); where "
            "every host of the network is trusted, give --insecure-tcp"));
      }
      log::Warning(
          "insecure_tcp",
          {{"address", address.ToString()},
           {"effect",
            "whoever reaches this port may read and change all jobs"}});
    }
    if (address.is_unix) {
      STOWAGE_ASSIGN_OR_RETURN(folder_, SocketFolder::Prepare(address.path));
    } else {
      STOWAGE_RETURN_IF_ERROR(ProbePort(address));
    }
    int port = 0;
    Build(options, address.ToString(), &port);
    if (server_ == nullptr || (!address.is_unix && port == 0)) {
      return absl::UnavailableError(
          absl::StrCat("listen on ", address.ToString(), ": refused"));
    }
    if (folder_ != nullptr) STOWAGE_RETURN_IF_ERROR(folder_->Listening());
    if (!address.is_unix) address.port = port;
    address_ = address.ToString();
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void Stop() override {
    if (stopped_) return;
    stopped_ = true;
    service_.Refuse();
    health_.SetServing(false);
    registry_.Stop();
    if (server_ != nullptr) {
      // Not Shutdown(deadline): that waits for connections to be closed, which
      // an idle client does not do before its next call.
      service_.WaitIdle(kHangUpLimit);
      server_->Shutdown(std::chrono::system_clock::now());
      server_->Wait();
      server_.reset();
    }
    folder_.reset();
  }

 private:
  void Build(const RpcOptions& options, const std::string& address, int* port) {
    proto::KeepGrpcRunning();
    gpr_set_log_function(&LogFromGrpc);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ResourceQuota quota("stowd");
    quota.SetMaxThreads(options.sessions_max + kSpareThreads);
    grpc::ServerBuilder builder;
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(proto::kMessageBytesMax);
    builder.SetMaxSendMessageSize(proto::kMessageBytesMax);
    // One queue with one to two pollers: sessions poll for themselves.
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                               kHandshakeMs);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES,
                               kWindowBytes);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytes);
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), port);
    builder.RegisterService(&service_);
    builder.RegisterService(&health_);
    server_ = builder.BuildAndStart();
  }

  core::JobRegistry& registry_;
  StowageService service_;
  HealthService health_;
  std::unique_ptr<SocketFolder> folder_ = nullptr;
  std::unique_ptr<grpc::Server> server_ = nullptr;
  std::string address_;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const RpcOptions& options, core::JobRegistry& registry) {
  auto server = std::make_unique<RpcServerImpl>(options, registry);
  STOWAGE_RETURN_IF_ERROR(server->Listen(options));
  return std::unique_ptr<RpcServer>(std::move(server));
}

}  // namespace stowage::rpc
