// What the nodes of a run tell each other between verdict and apply
// (session.proto, "Rounds") <-> plain values: chunks as in payload_codec.h.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "proto/chunk_data.h"

#include "stowage/v1/session.pb.h"

namespace stowage::proto {

inline constexpr std::int32_t kRoundsMax = 8;
// Signs of the largest model that fits a server, and scales.
inline constexpr std::int64_t kRoundBytesMax = std::int64_t{1} << 40;

struct BeginRoundArgs {
  ApplyArgs apply;
  std::int32_t round = 0;
};

// A chunk in either direction.
struct RoundPiece {
  std::int64_t step = 0;
  std::int32_t round = 0;
  std::int64_t begin_bytes = 0;
  std::int64_t total_bytes = 0;     // to the client only
  std::span<const std::byte> data;  // of the message
};

struct RoundHeldArgs {
  std::int64_t step = 0;
  std::int32_t round = 0;
};

// Errors: kInvalidArgument naming field and value; kDataLoss for a chunk whose
// bytes are not those that were sent.
absl::StatusOr<BeginRoundArgs> DecodeBeginRound(const v1::BeginRound& message);
absl::StatusOr<RoundPiece> DecodeRoundResult(const v1::RoundResult& message);
absl::StatusOr<RoundPiece> DecodeRoundChunk(const v1::RoundChunk& message);
absl::StatusOr<RoundHeldArgs> DecodeRoundHeld(const v1::RoundHeld& message);

void EncodeBeginRound(const ApplyArgs& apply, std::int32_t round,
                      v1::BeginRound* message);
void EncodeRoundResult(const RoundPiece& piece, v1::RoundResult* message);
void EncodeRoundChunk(const RoundPiece& piece, v1::RoundChunk* message);
void EncodeRoundHeld(const RoundHeldArgs& args, v1::RoundHeld* message);

}  // namespace stowage::proto
