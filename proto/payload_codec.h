// The payload of ranks without shared memory <-> plain values: bounded chunks
// with a checksum, looked at before anything is copied anywhere.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/chunk_data.h"

#include "stowage/v1/session.pb.h"

namespace stowage::proto {

inline constexpr std::int64_t kFetchBytesMax = std::int64_t{16} << 20;

struct GradientChunkArgs {
  std::int32_t micro = 0;
  std::int32_t unit = 0;
  std::int32_t region = 0;
  std::int64_t begin_bytes = 0;     // in the unit's slot
  std::span<const std::byte> data;  // of the message
};

struct FetchParamsArgs {
  std::int32_t unit = 0;
  std::int64_t step = 0;
  std::int64_t begin_bytes = 0;  // in the unit's flat buffer
  std::int64_t bytes = 0;
};

struct ParamChunkArgs {
  std::int32_t unit = 0;
  std::int64_t step = 0;
  std::int64_t begin_bytes = 0;
  std::span<const std::byte> data;  // of the message
};

struct LandedArgs {
  std::int32_t unit = 0;
  std::int64_t total = 0;
};

// Errors: kInvalidArgument naming field and value; kDataLoss for a chunk whose
// bytes are not those that were sent.
absl::StatusOr<GradientChunkArgs> DecodeGradientChunk(
    const v1::GradientChunk& message);
absl::StatusOr<FetchParamsArgs> DecodeFetchParams(
    const v1::FetchParams& message);
absl::StatusOr<LandedArgs> DecodeAwaitLanded(const v1::AwaitLanded& message);
absl::StatusOr<ParamChunkArgs> DecodeParamChunk(const v1::ParamChunk& message);
absl::StatusOr<LandedArgs> DecodeLanded(const v1::Landed& message);

void EncodeGradientChunk(const GradientChunkArgs& args,
                         v1::GradientChunk* message);
void EncodeFetchParams(const FetchParamsArgs& args, v1::FetchParams* message);
void EncodeAwaitLanded(const LandedArgs& args, v1::AwaitLanded* message);
void EncodeParamChunk(const ParamChunkArgs& args, v1::ParamChunk* message);
void EncodeLanded(const LandedArgs& args, v1::Landed* message);

}  // namespace stowage::proto
