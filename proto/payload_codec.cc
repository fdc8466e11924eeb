#include "proto/payload_codec.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/chunk_data.h"
namespace stowage::proto {
namespace {

absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(what);
}

absl::Status CheckPlace(const char* what, std::int32_t unit,
                        std::int64_t begin_bytes) {
  if (unit < 0 || begin_bytes < 0) {
    return Bad(absl::StrCat(what, ": unit ", unit, ", first byte ", begin_bytes,
                            ", expected at least 0"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GradientChunkArgs> DecodeGradientChunk(
    const v1::GradientChunk& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckPlace("gradient chunk", message.unit(), message.begin_bytes()));
  if (message.micro() < 0 || message.region() < 0) {
    return Bad(absl::StrCat("gradient chunk: micro step ", message.micro(),
                            ", region ", message.region(),
                            ", expected at least 0"));
  }
  STOWAGE_RETURN_IF_ERROR(
      CheckData("gradient chunk", message.data(), message.crc32c()));
  return GradientChunkArgs{message.micro(), message.unit(), message.region(),
                           message.begin_bytes(), Bytes(message.data())};
}

absl::StatusOr<FetchParamsArgs> DecodeFetchParams(
    const v1::FetchParams& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckPlace("fetch params", message.unit(), message.begin_bytes()));
  if (message.step() < 0 || message.bytes() < 1 ||
      message.bytes() > kFetchBytesMax) {
    return Bad(absl::StrCat("fetch params: step ", message.step(), ", ",
                            message.bytes(), " bytes, expected 1 to ",
                            kFetchBytesMax));
  }
  return FetchParamsArgs{message.unit(), message.step(), message.begin_bytes(),
                         message.bytes()};
}

absl::StatusOr<LandedArgs> DecodeAwaitLanded(const v1::AwaitLanded& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckPlace("await landed", message.unit(), message.total()));
  return LandedArgs{message.unit(), message.total()};
}

absl::StatusOr<ParamChunkArgs> DecodeParamChunk(const v1::ParamChunk& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckPlace("param chunk", message.unit(), message.begin_bytes()));
  STOWAGE_RETURN_IF_ERROR(
      CheckData("param chunk", message.data(), message.crc32c()));
  return ParamChunkArgs{message.unit(), message.step(), message.begin_bytes(),
                        Bytes(message.data())};
}

absl::StatusOr<LandedArgs> DecodeLanded(const v1::Landed& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckPlace("landed", message.unit(), message.total()));
  return LandedArgs{message.unit(), message.total()};
}

void EncodeGradientChunk(const GradientChunkArgs& args,
                         v1::GradientChunk* message) {
  message->set_micro(args.micro);
  message->set_unit(args.unit);
  message->set_region(args.region);
  message->set_begin_bytes(args.begin_bytes);
  message->set_data(args.data.data(), args.data.size());
  message->set_crc32c(Checksum(args.data));
}

void EncodeFetchParams(const FetchParamsArgs& args, v1::FetchParams* message) {
  message->set_unit(args.unit);
  message->set_step(args.step);
  message->set_begin_bytes(args.begin_bytes);
  message->set_bytes(args.bytes);
}

void EncodeAwaitLanded(const LandedArgs& args, v1::AwaitLanded* message) {
  message->set_unit(args.unit);
  message->set_total(args.total);
}

void EncodeParamChunk(const ParamChunkArgs& args, v1::ParamChunk* message) {
  message->set_unit(args.unit);
  message->set_step(args.step);
  message->set_begin_bytes(args.begin_bytes);
  message->set_data(args.data.data(), args.data.size());
  message->set_crc32c(Checksum(args.data));
}

void EncodeLanded(const LandedArgs& args, v1::Landed* message) {
  message->set_unit(args.unit);
  message->set_total(args.total);
}

}  // namespace stowage::proto
