#include "storage/nvme/crc32c.h"

#include <algorithm>

#include <isa-l/crc.h>

namespace stowage::storage {

std::uint32_t Crc32c(std::span<const std::byte> bytes, std::uint32_t previous) {
  // The library takes an int length, and a pointer to non-const that it only
  // reads; it leaves the inversions of the definition to the caller.
  constexpr std::size_t kPieceBytes = std::size_t{1} << 30;
  std::uint32_t state = ~previous;
  for (std::size_t at = 0; at < bytes.size(); at += kPieceBytes) {
    const std::size_t piece = std::min(kPieceBytes, bytes.size() - at);
    state = crc32_iscsi(
        const_cast<unsigned char*>(
            reinterpret_cast<const unsigned char*>(bytes.data() + at)),
        static_cast<int>(piece), state);
  }
  return ~state;
}

}  // namespace stowage::storage
