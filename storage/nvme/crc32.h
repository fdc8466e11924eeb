// CRC-32 (the polynomial of IEEE 802.3), the checksum of checkpoints: every
// language's standard library has it (zlib's crc32), so that other programs
// can read and write them.
//
// ISA-L computes it with carry-less multiplication, as fast as CRC-32C.
//
// Source: RFC 1952, "Gzip", section "CRC-32"; check value of "123456789":
//   0xCBF43926.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace stowage::storage {

// Of `bytes`, continuing from the CRC of what came before them (0: nothing).
std::uint32_t Crc32(std::span<const std::byte> bytes,
                    std::uint32_t previous = 0);

}  // namespace stowage::storage
