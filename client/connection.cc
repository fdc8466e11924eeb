#include "client/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "proto/address.h"
#include "proto/grpc_lifetime.h"
#include "proto/grpc_status.h"
#include "proto/job_codec.h"

namespace stowage::client {
namespace {

// As the server's: see server/rpc/rpc_server.cc.
constexpr int kWindowBytes = 4 * 1024 * 1024;
constexpr int kFrameBytes = 1024 * 1024;
constexpr int kReconnectFirstMs = 50;
constexpr int kReconnectMaxMs = 500;

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(
    const std::string& address) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::Address parsed,
                           proto::ParseAddress(address));
  proto::KeepGrpcRunning();
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(proto::kMessageBytesMax);
  args.SetMaxSendMessageSize(proto::kMessageBytesMax);
  // A connection of its own: sessions of one process do not share windows, and
  // a restarted server is not confused with the old one.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectFirstMs);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kReconnectFirstMs);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMaxMs);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kWindowBytes);
  args.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytes);
  return grpc::CreateCustomChannel(parsed.ToString(),
                                   grpc::InsecureChannelCredentials(), args);
}

std::string ProbeAddress(const std::string& address) {
  const absl::StatusOr<proto::Address> parsed = proto::ParseAddress(address);
  if (!parsed.ok()) return std::string(parsed.status().message());
  if (!parsed->is_unix) return "no process listens there";
  // Not blocking: connecting to a full backlog that nobody empties waits for
  // ever.
  const UniqueFd fd(
      ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un unix_address{};
  unix_address.sun_family = AF_UNIX;
  std::memcpy(unix_address.sun_path, parsed->path.c_str(),
              parsed->path.size() + 1);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&unix_address),
                sizeof(unix_address)) == 0) {
    return "";
  }
  switch (errno) {
    case EAGAIN:
      return "a process listens there but accepts no connection";
    case ENOENT:
      return "there is no such socket";
    case ECONNREFUSED:
      return "the socket is there, but no process listens on it";
    case EACCES:
      return "the socket belongs to another user";
    default:
      return std::strerror(errno);  // NOLINT(concurrency-mt-unsafe)
  }
}

absl::Status ToClientStatus(const grpc::Status& status,
                            const std::string& address) {
  if (status.ok() || proto::IsFromServer(status)) {
    return proto::FromGrpcStatus(status);
  }
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::CANCELLED:
      return absl::UnavailableError(absl::StrCat(
          "stowd at ", address, " went away (", status.error_message(), ")"));
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::DeadlineExceededError(
          absl::StrCat("stowd at ", address, " did not answer in time"));
    default:
      return {static_cast<absl::StatusCode>(status.error_code()),
              absl::StrCat("stowd at ", address, ": ", status.error_message())};
  }
}

}  // namespace stowage::client
