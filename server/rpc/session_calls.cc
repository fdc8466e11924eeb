#include "server/rpc/session_calls.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/job_codec.h"
#include "proto/payload_codec.h"
#include "proto/round_codec.h"

namespace stowage::rpc {
namespace {

// A verdict returns every rank's scalars to every rank; 8 MiB of them keeps it
// far below the largest message and inside the outbox's queue.
constexpr std::int64_t kVerdictScalarsMax = std::int64_t{1024} * 1024;

}  // namespace

absl::Status SessionCalls::Handle(const v1::ClientMessage& message) {
  switch (message.kind_case()) {
    case v1::ClientMessage::kNotice: {
      STOWAGE_ASSIGN_OR_RETURN(const proto::NoticeArgs args,
                               proto::DecodeNotice(message.notice()));
      return session_.Notice(args.step, args.micro, args.unit, args.empty,
                             args.region);
    }
    case v1::ClientMessage::kPrepare:
      return HandlePrepare(message.prepare());
    case v1::ClientMessage::kApply: {
      STOWAGE_ASSIGN_OR_RETURN(const ApplyArgs args,
                               proto::DecodeApply(message.apply()));
      return session_.Apply(args);
    }
    case v1::ClientMessage::kBeginRound:
      return HandleBeginRound(message.begin_round());
    case v1::ClientMessage::kRoundResult:
      return HandleRoundResult(message.round_result());
    case v1::ClientMessage::kPutState:
      STOWAGE_RETURN_IF_ERROR(
          proto::DecodePutState(message.put_state(), &put_));
      return session_.PutState(put_.unit, put_.begin_elems, put_.values);
    case v1::ClientMessage::kFinishInitialization:
      return session_.FinishInitialization();
    case v1::ClientMessage::kSetForwardOrder: {
      STOWAGE_ASSIGN_OR_RETURN(
          const proto::ForwardOrderArgs order,
          proto::DecodeForwardOrder(message.set_forward_order()));
      return session_.SetForwardOrder(order.units, order.uses);
    }
    case v1::ClientMessage::kReadState:
      return HandleReadState(message.read_state());
    case v1::ClientMessage::kGradientChunk: {
      STOWAGE_ASSIGN_OR_RETURN(
          const proto::GradientChunkArgs args,
          proto::DecodeGradientChunk(message.gradient_chunk()));
      return session_.WriteGradient(args.micro, args.unit, args.region,
                                    args.begin_bytes, args.data);
    }
    case v1::ClientMessage::kFetchParams:
      return HandleFetchParams(message.fetch_params());
    case v1::ClientMessage::kAwaitLanded:
      return HandleAwaitLanded(message.await_landed());
    case v1::ClientMessage::kLease: {
      STOWAGE_ASSIGN_OR_RETURN(const proto::LeaseArgs args,
                               proto::DecodeLease(message.lease()));
      return session_.Lease(args.unit, args.step);
    }
    case v1::ClientMessage::kUnlease: {
      STOWAGE_ASSIGN_OR_RETURN(const std::int32_t unit,
                               proto::DecodeUnlease(message.unlease()));
      return session_.Unlease(unit);
    }
    case v1::ClientMessage::kOpen:
      return absl::InvalidArgumentError("a second Open on one stream");
    case v1::ClientMessage::kClose:  // handled by the caller
    case v1::ClientMessage::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a message of no known kind");
}

absl::Status SessionCalls::HandlePrepare(const v1::Prepare& message) {
  STOWAGE_ASSIGN_OR_RETURN(proto::PrepareArgs args,
                           proto::DecodePrepare(message));
  if (static_cast<std::int64_t>(args.scalars.size()) * local_ranks_ >
      kVerdictScalarsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prepare: ", args.scalars.size(), " scalars from each of ",
        local_ranks_, " ranks, at most ", kVerdictScalarsMax, " in all"));
  }
  return session_.Prepare(args.step, std::move(args.scalars));
}

absl::Status SessionCalls::HandleReadState(const v1::ReadState& message) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::ReadStateArgs args,
                           proto::DecodeReadState(message));
  for (std::int64_t done = 0; done < args.elems;) {
    const std::int64_t elems =
        std::min(args.elems - done, proto::kChunkValuesMax);
    const std::int64_t begin = args.begin_elems + done;
    read_.resize(static_cast<std::size_t>(elems));
    STOWAGE_RETURN_IF_ERROR(
        session_.ReadState(args.unit, args.kind, begin, read_));
    v1::ServerMessage answer;
    proto::EncodeStateChunk(args.unit, args.kind, begin, read_,
                            answer.mutable_state_chunk());
    if (!send_(std::move(answer))) break;  // Read() will say why
    done += elems;
  }
  return absl::OkStatus();
}

absl::Status SessionCalls::HandleBeginRound(const v1::BeginRound& message) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::BeginRoundArgs args,
                           proto::DecodeBeginRound(message));
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::byte> out,
                           session_.BeginRound(args.apply, args.round));
  proto::ForPieces(std::span(out), [&](std::int64_t begin,
                                       std::span<const std::byte> piece) {
    v1::ServerMessage answer;
    proto::EncodeRoundChunk({args.apply.step, args.round, begin,
                             static_cast<std::int64_t>(out.size()), piece},
                            answer.mutable_round_chunk());
    return send_(std::move(answer));  // if not, Read() will say why
  });
  return absl::OkStatus();
}

absl::Status SessionCalls::HandleRoundResult(const v1::RoundResult& message) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::RoundPiece piece,
                           proto::DecodeRoundResult(message));
  STOWAGE_ASSIGN_OR_RETURN(const bool held,
                           session_.TakeRound(piece.step, piece.round,
                                              piece.begin_bytes, piece.data));
  if (!held) return absl::OkStatus();
  v1::ServerMessage answer;
  proto::EncodeRoundHeld({piece.step, piece.round},
                         answer.mutable_round_held());
  (void)send_(std::move(answer));  // Read() will say why
  return absl::OkStatus();
}

absl::Status SessionCalls::HandleFetchParams(const v1::FetchParams& message) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::FetchParamsArgs args,
                           proto::DecodeFetchParams(message));
  return session_.ViewParams(
      args.unit, args.step, args.begin_bytes, args.bytes, connected_,
      [&](std::span<const std::byte> bytes) {
        proto::ForPieces(
            bytes, [&](std::int64_t begin, std::span<const std::byte> piece) {
              v1::ServerMessage answer;
              proto::EncodeParamChunk(
                  {args.unit, args.step, args.begin_bytes + begin, piece},
                  answer.mutable_param_chunk());
              // One chunk at a time: a client that reads slowly costs this one
              // thread and this one chunk.
              return send_(std::move(answer));
            });
      });
}

absl::Status SessionCalls::HandleAwaitLanded(const v1::AwaitLanded& message) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::LandedArgs args,
                           proto::DecodeAwaitLanded(message));
  STOWAGE_RETURN_IF_ERROR(
      session_.AwaitLanded(args.unit, args.total, connected_));
  v1::ServerMessage answer;
  proto::EncodeLanded(args, answer.mutable_landed());
  (void)send_(std::move(answer));  // Read() will say why
  return absl::OkStatus();
}

}  // namespace stowage::rpc
