// The bytes of a chunk on a stream: bounded, and checked with a CRC-32C before
// anything is copied anywhere. Used by the codecs of chunks only.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"

namespace stowage::proto {

// Larger gains nothing on a socket, and bounds what a session holds.
inline constexpr std::int64_t kPayloadBytesMax = std::int64_t{1} << 20;

// CRC-32C. Source: RFC 3720, appendix B.4.
std::uint32_t Checksum(std::span<const std::byte> data);

inline std::span<const std::byte> Bytes(const std::string& data) {
  return std::as_bytes(std::span<const char>(data));
}

// Calls visit(first byte, piece) for consecutive pieces of at most
// kPayloadBytesMax, as long as it returns true.
template <typename Byte, typename Visit>
void ForPieces(std::span<Byte> bytes, const Visit& visit) {
  constexpr auto kPiece = static_cast<std::size_t>(kPayloadBytesMax);
  for (std::size_t done = 0; done < bytes.size(); done += kPiece) {
    if (!visit(static_cast<std::int64_t>(done),
               bytes.subspan(done, std::min(kPiece, bytes.size() - done)))) {
      return;
    }
  }
}

// Errors: kInvalidArgument for a size out of range, kDataLoss for bytes that
// are not those that were sent. `what` begins the message.
absl::Status CheckData(const char* what, const std::string& data,
                       std::uint32_t checksum);

}  // namespace stowage::proto
