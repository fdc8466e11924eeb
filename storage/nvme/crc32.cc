#include "storage/nvme/crc32.h"

#include <isa-l/crc.h>

namespace stowage::storage {

std::uint32_t Crc32(std::span<const std::byte> bytes, std::uint32_t previous) {
  return crc32_gzip_refl(previous,
                         reinterpret_cast<const unsigned char*>(bytes.data()),
                         bytes.size());
}

}  // namespace stowage::storage
