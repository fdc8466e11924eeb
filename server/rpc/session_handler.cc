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
// A verdict returns every rank's scalars to every rank; 8 MiB of them keeps it
// far below the largest message and inside the outbox's queue.
constexpr std::int64_t kVerdictScalarsMax = std::int64_t{1024} * 1024;

}  // namespace

SessionHandler::SessionHandler(core::JobRegistry& registry, Watchdog& watchdog,
                               grpc::ServerContext& context,
                               Outbox::Stream& stream)
    : registry_(registry),
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
  local_ranks_ = args.run.local_ranks;
  STOWAGE_ASSIGN_OR_RETURN(
      session_,
      registry_.Attach(args.job, args.run, args.local_rank, client_, this));
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
    STOWAGE_RETURN_IF_ERROR(Handle(message_));
  }
  return absl::CancelledError("its connection ended without a goodbye");
}

absl::Status SessionHandler::Handle(const v1::ClientMessage& message) {
  switch (message.kind_case()) {
    case v1::ClientMessage::kNotice: {
      STOWAGE_ASSIGN_OR_RETURN(const proto::NoticeArgs args,
                               proto::DecodeNotice(message.notice()));
      return session_->Notice(args.step, args.micro, args.unit, args.empty,
                              args.region);
    }
    case v1::ClientMessage::kPrepare:
      return HandlePrepare(message.prepare());
    case v1::ClientMessage::kApply: {
      STOWAGE_ASSIGN_OR_RETURN(const ApplyArgs args,
                               proto::DecodeApply(message.apply()));
      return session_->Apply(args);
    }
    case v1::ClientMessage::kPutState:
      STOWAGE_RETURN_IF_ERROR(
          proto::DecodePutState(message.put_state(), &put_));
      return session_->PutState(put_.unit, put_.begin_elems, put_.values);
    case v1::ClientMessage::kFinishInitialization:
      return session_->FinishInitialization();
    case v1::ClientMessage::kSetForwardOrder: {
      STOWAGE_ASSIGN_OR_RETURN(
          const proto::ForwardOrderArgs order,
          proto::DecodeForwardOrder(message.set_forward_order()));
      return session_->SetForwardOrder(order.units, order.uses);
    }
    case v1::ClientMessage::kReadState:
      return HandleReadState(message.read_state());
    case v1::ClientMessage::kLease: {
      STOWAGE_ASSIGN_OR_RETURN(const proto::LeaseArgs args,
                               proto::DecodeLease(message.lease()));
      return session_->Lease(args.unit, args.step);
    }
    case v1::ClientMessage::kUnlease: {
      STOWAGE_ASSIGN_OR_RETURN(const std::int32_t unit,
                               proto::DecodeUnlease(message.unlease()));
      return session_->Unlease(unit);
    }
    case v1::ClientMessage::kOpen:
      return absl::InvalidArgumentError("a second Open on one stream");
    case v1::ClientMessage::kClose:  // handled by the caller
    case v1::ClientMessage::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a message of no known kind");
}

absl::Status SessionHandler::HandlePrepare(const v1::Prepare& message) {
  STOWAGE_ASSIGN_OR_RETURN(proto::PrepareArgs args,
                           proto::DecodePrepare(message));
  if (static_cast<std::int64_t>(args.scalars.size()) * local_ranks_ >
      kVerdictScalarsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prepare: ", args.scalars.size(), " scalars from each of ",
        local_ranks_, " ranks, at most ", kVerdictScalarsMax, " in all"));
  }
  return session_->Prepare(args.step, std::move(args.scalars));
}

absl::Status SessionHandler::HandleReadState(const v1::ReadState& message) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::ReadStateArgs args,
                           proto::DecodeReadState(message));
  for (std::int64_t done = 0; done < args.elems;) {
    const std::int64_t elems =
        std::min(args.elems - done, proto::kChunkValuesMax);
    const std::int64_t begin = args.begin_elems + done;
    read_.resize(static_cast<std::size_t>(elems));
    STOWAGE_RETURN_IF_ERROR(
        session_->ReadState(args.unit, args.kind, begin, read_));
    v1::ServerMessage answer;
    proto::EncodeStateChunk(args.unit, args.kind, begin, read_,
                            answer.mutable_state_chunk());
    if (!outbox_.PushAndWait(std::move(answer))) break;  // Read() will say why
    done += elems;
  }
  return absl::OkStatus();
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
