#include "proto/round_codec.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/session_codec.h"

namespace stowage::proto {
namespace {

absl::Status CheckPlace(const char* what, std::int64_t step, std::int32_t round,
                        std::int64_t begin_bytes) {
  if (step < 0 || round < 0 || round >= kRoundsMax || begin_bytes < 0 ||
      begin_bytes > kRoundBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": step ", step, ", round ", round, ", first byte ",
                     begin_bytes, ", expected at least 0, a round below ",
                     kRoundsMax, " and a byte of at most ", kRoundBytesMax));
  }
  return absl::OkStatus();
}

template <typename Message>
void SetData(std::span<const std::byte> data, Message* message) {
  message->set_data(data.data(), data.size());
  message->set_crc32c(Checksum(data));
}

}  // namespace

absl::StatusOr<BeginRoundArgs> DecodeBeginRound(const v1::BeginRound& message) {
  BeginRoundArgs args;
  STOWAGE_ASSIGN_OR_RETURN(args.apply, DecodeApply(message.apply()));
  args.round = message.round();
  STOWAGE_RETURN_IF_ERROR(
      CheckPlace("begin round", args.apply.step, args.round, 0));
  return args;
}

absl::StatusOr<RoundPiece> DecodeRoundResult(const v1::RoundResult& message) {
  STOWAGE_RETURN_IF_ERROR(CheckPlace("round result", message.step(),
                                     message.round(), message.begin_bytes()));
  STOWAGE_RETURN_IF_ERROR(
      CheckData("round result", message.data(), message.crc32c()));
  return RoundPiece{message.step(), message.round(), message.begin_bytes(), 0,
                    Bytes(message.data())};
}

absl::StatusOr<RoundPiece> DecodeRoundChunk(const v1::RoundChunk& message) {
  STOWAGE_RETURN_IF_ERROR(CheckPlace("round chunk", message.step(),
                                     message.round(), message.begin_bytes()));
  STOWAGE_RETURN_IF_ERROR(
      CheckData("round chunk", message.data(), message.crc32c()));
  const auto bytes = static_cast<std::int64_t>(message.data().size());
  if (message.total_bytes() > kRoundBytesMax ||
      message.total_bytes() < message.begin_bytes() + bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "round chunk: ", bytes, " bytes from ", message.begin_bytes(), " of ",
        message.total_bytes(), " in all, at most ", kRoundBytesMax));
  }
  return RoundPiece{message.step(), message.round(), message.begin_bytes(),
                    message.total_bytes(), Bytes(message.data())};
}

absl::StatusOr<RoundHeldArgs> DecodeRoundHeld(const v1::RoundHeld& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckPlace("round held", message.step(), message.round(), 0));
  return RoundHeldArgs{message.step(), message.round()};
}

void EncodeBeginRound(const ApplyArgs& apply, std::int32_t round,
                      v1::BeginRound* message) {
  EncodeApply(apply, message->mutable_apply());
  message->set_round(round);
}

void EncodeRoundResult(const RoundPiece& piece, v1::RoundResult* message) {
  message->set_step(piece.step);
  message->set_round(piece.round);
  message->set_begin_bytes(piece.begin_bytes);
  SetData(piece.data, message);
}

void EncodeRoundChunk(const RoundPiece& piece, v1::RoundChunk* message) {
  message->set_step(piece.step);
  message->set_round(piece.round);
  message->set_begin_bytes(piece.begin_bytes);
  message->set_total_bytes(piece.total_bytes);
  SetData(piece.data, message);
}

void EncodeRoundHeld(const RoundHeldArgs& args, v1::RoundHeld* message) {
  message->set_step(args.step);
  message->set_round(args.round);
}

}  // namespace stowage::proto
