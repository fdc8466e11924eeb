#include "proto/chunk_data.h"

#include "absl/strings/str_cat.h"
#include <isa-l/crc.h>

namespace stowage::proto {

std::uint32_t Checksum(std::span<const std::byte> data) {
  // The library takes a pointer to non-const that it only reads, and leaves the
  // inversions to the caller; a chunk is far below its int length.
  return ~crc32_iscsi(const_cast<unsigned char*>(
                          reinterpret_cast<const unsigned char*>(data.data())),
                      static_cast<int>(data.size()), ~std::uint32_t{0});
}

absl::Status CheckData(const char* what, const std::string& data,
                       std::uint32_t checksum) {
  if (data.empty() ||
      static_cast<std::int64_t>(data.size()) > kPayloadBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, ": ", data.size(), " bytes, expected 1 to ", kPayloadBytesMax));
  }
  if (const std::uint32_t found = Checksum(Bytes(data)); found != checksum) {
    return absl::DataLossError(absl::StrCat(
        what, ": ", data.size(), " bytes with checksum ", found, ", sent with ",
        checksum, ": they were damaged on the way"));
  }
  return absl::OkStatus();
}

}  // namespace stowage::proto
