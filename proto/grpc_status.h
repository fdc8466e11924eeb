// absl::Status <-> grpc::Status; the one place.
//
// The codes are the same numbers. A status of ours carries kStatusOrigin as its
// details, so that a client can tell "the server says Unavailable" from "the
// server is gone".

#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace stowage::proto {

inline constexpr std::string_view kStatusOrigin = "stowage.v1";

// gRPC carries a message in a header block of 8 KiB in all, where each byte
// that is not plain text takes three; longer messages would turn into a
// transport error.
inline constexpr std::int64_t kStatusMessageBytesMax = 2048;

// Returns: the same code and message, cut.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The status's message, cut to kStatusMessageBytesMax.
std::string WireMessage(const absl::Status& status);

// Returns: the same code and message; a code out of range becomes kUnknown.
absl::Status FromGrpcStatus(const grpc::Status& status);

// True if the peer's stowd made this status, false if the transport did.
bool IsFromServer(const grpc::Status& status);

// As the Failed message carries it. Zero (OK) and unknown codes: kInternal.
absl::Status StatusFromWire(std::int32_t code, const std::string& message);

}  // namespace stowage::proto
