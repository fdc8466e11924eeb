#include "proto/grpc_status.h"

namespace stowage::proto {
namespace {

constexpr int kCodeMax = static_cast<int>(absl::StatusCode::kUnauthenticated);

std::string CutMessage(absl::string_view message) {
  if (static_cast<std::int64_t>(message.size()) <= kStatusMessageBytesMax) {
    return std::string(message);
  }
  // Not inside a UTF-8 sequence: back to a byte that begins one.
  auto end = static_cast<std::size_t>(kStatusMessageBytesMax);
  while (end > 0 &&
         (static_cast<unsigned char>(message[end]) & 0xc0U) == 0x80U) {
    --end;
  }
  return std::string(message.substr(0, end)) + " ...";
}

}  // namespace

std::string WireMessage(const absl::Status& status) {
  return CutMessage(status.message());
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), WireMessage(status),
          std::string(kStatusOrigin)};
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const int code = static_cast<int>(status.error_code());
  return {code > 0 && code <= kCodeMax ? static_cast<absl::StatusCode>(code)
                                       : absl::StatusCode::kUnknown,
          status.error_message()};
}

bool IsFromServer(const grpc::Status& status) {
  return status.error_details() == kStatusOrigin;
}

absl::Status StatusFromWire(std::int32_t code, const std::string& message) {
  if (code <= 0 || code > kCodeMax) return absl::InternalError(message);
  return {static_cast<absl::StatusCode>(code), message};
}

}  // namespace stowage::proto
