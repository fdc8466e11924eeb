#include "server/rpc/session_handler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "proto/grpc_status.h"
#include "proto/job_codec.h"

namespace stowage::rpc {
namespace {

constexpr std::chrono::seconds kOpenLimit{10};
// For the client to end its side after Failed.
constexpr std::chrono::seconds kGoodbyeLimit{10};

}  // namespace

SessionHandler::SessionHandler(core::JobRegistry& registry, Watchdog& watchdog,
                               grpc::ServerContext& context,
                               Outbox::Stream& stream)
    : registry_(registry),
      context_(context),
      stream_(stream),
      call_(watchdog, context),
      outbox_(stream, call_) {}

absl::Status SessionHandler::Run() {
  absl::Status status;
  {
    proto::OpenArgs args;
    STOWAGE_RETURN_IF_ERROR(ReadOpen(&args));
    status = Attach(args);
  }  // a layout may be large: not kept for the session's life
  if (status.ok()) status = Serve();
  if (session_ != nullptr) {
    if (!status.ok() && !said_goodbye_) {
      session_->Detach(/*clean=*/false, /*close_job=*/false,
                       std::string(status.message()));
    }
    // No callback runs after Detach; now the last write has to end.
    outbox_.Close();
    calls_.reset();
    session_.reset();
  }
  // What the core said first is the cause; what followed is a consequence.
  const absl::Status failed = failure();
  return failed.ok() ? status : failed;
}

absl::Status SessionHandler::ReadOpen(proto::OpenArgs* args) {
  call_.ExpectPeer(kOpenLimit);
  const bool got = stream_.Read(&message_);
  call_.PeerDidIt();
  if (!got) return absl::CancelledError("the stream ended before Open");
  if (message_.kind_case() != v1::ClientMessage::kOpen) {
    return absl::InvalidArgumentError("the first message is not Open");
  }
  STOWAGE_ASSIGN_OR_RETURN(*args, proto::DecodeOpen(message_.open()));
  message_.Clear();
  return absl::OkStatus();
}

absl::Status SessionHandler::Attach(const proto::OpenArgs& args) {
  client_ = absl::StrCat("pid ", args.pid);
  if (!args.host.empty()) absl::StrAppend(&client_, " on ", args.host);
  STOWAGE_ASSIGN_OR_RETURN(
      session_,
      registry_.Attach(args.job, args.run, args.local_rank, client_, this));
  calls_.emplace(
      *session_, args.run.local_ranks,
      [this](v1::ServerMessage answer) {
        return outbox_.PushAndWait(std::move(answer));
      },
      [this] { return !context_.IsCancelled(); });
  v1::ServerMessage answer;
  v1::Attached* attached = answer.mutable_attached();
  proto::EncodeAttachInfo(session_->info(), attached->mutable_info());
  attached->set_layout_fingerprint(session_->layout().fingerprint());
  outbox_.Push(std::move(answer));
  return absl::OkStatus();
}

absl::Status SessionHandler::Serve() {
  while (stream_.Read(&message_)) {
    // After a failure the client's messages in flight mean nothing.
    if (!failure().ok()) continue;
    if (message_.kind_case() == v1::ClientMessage::kClose) {
      said_goodbye_ = true;
      session_->Detach(/*clean=*/true, message_.close().close_job(), "");
      STOWAGE_RETURN_IF_ERROR(failure());
      v1::ServerMessage answer;
      answer.mutable_closed();
      outbox_.Push(std::move(answer));
      return absl::OkStatus();
    }
    STOWAGE_RETURN_IF_ERROR(calls_->Handle(message_));
  }
  return absl::CancelledError("its connection ended without a goodbye");
}

void SessionHandler::OnInitialized() {
  v1::ServerMessage answer;
  answer.mutable_initialized();
  outbox_.Push(std::move(answer));
}

void SessionHandler::OnLeased(std::int32_t unit, std::int64_t step) {
  v1::ServerMessage answer;
  answer.mutable_leased()->set_unit(unit);
  answer.mutable_leased()->set_step(step);
  outbox_.Push(std::move(answer));
}

void SessionHandler::OnVerdict(const Verdict& verdict) {
  v1::ServerMessage answer;
  proto::EncodeVerdict(verdict, answer.mutable_verdict());
  outbox_.Push(std::move(answer));
}

void SessionHandler::OnFailed(const absl::Status& status) {
  const absl::Status cause =
      status.ok() ? absl::InternalError("failed with no status") : status;
  {
    const MutexLock lock(mutex_);
    if (!failure_.ok()) return;  // once
    failure_ = cause;
  }
  call_.ExpectPeer(kGoodbyeLimit);
  v1::ServerMessage answer;
  answer.mutable_failed()->set_code(static_cast<int>(cause.code()));
  answer.mutable_failed()->set_message(proto::WireMessage(cause));
  outbox_.Push(std::move(answer));
}

absl::Status SessionHandler::failure() const {
  const MutexLock lock(mutex_);
  return failure_;
}

}  // namespace stowage::rpc
