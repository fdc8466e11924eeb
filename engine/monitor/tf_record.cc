#include "engine/monitor/tf_record.h"

#include <array>
#include <bit>
#include <cstddef>

namespace stowage::engine::monitor {
namespace {

// Reflected polynomial of CRC32C.
constexpr std::uint32_t kPolynomial = 0x82F63B78U;

constexpr std::array<std::uint32_t, 256> MakeTable() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1U) != 0 ? kPolynomial : 0U);
    }
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<std::uint32_t, 256> kTable = MakeTable();

template <typename T>
void AppendLittle(T value, std::string& out) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  }
}

void AppendVarint(std::uint64_t value, std::string& out) {
  while (value >= 0x80) {
    out += static_cast<char>(static_cast<unsigned char>(value | 0x80U));
    value >>= 7;
  }
  out += static_cast<char>(static_cast<unsigned char>(value));
}

// Wire types of protobuf.
constexpr std::uint32_t kVarint = 0;
constexpr std::uint32_t kFixed64 = 1;
constexpr std::uint32_t kBytes = 2;
constexpr std::uint32_t kFixed32 = 5;

void AppendTag(std::uint32_t field, std::uint32_t wire, std::string& out) {
  AppendVarint((std::uint64_t{field} << 3) | wire, out);
}

void AppendBytes(std::uint32_t field, std::string_view bytes,
                 std::string& out) {
  AppendTag(field, kBytes, out);
  AppendVarint(bytes.size(), out);
  out += bytes;
}

void AppendWallTime(double wall_time, std::string& out) {
  AppendTag(1, kFixed64, out);
  AppendLittle(std::bit_cast<std::uint64_t>(wall_time), out);
}

}  // namespace

std::uint32_t Crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes) {
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFFU];
  }
  return ~crc;
}

std::uint32_t MaskedCrc32c(std::string_view bytes) {
  const std::uint32_t crc = Crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
}

std::string TfRecord(std::string_view payload) {
  std::string length;
  AppendLittle(static_cast<std::uint64_t>(payload.size()), length);
  std::string out = length;
  AppendLittle(MaskedCrc32c(length), out);
  out += payload;
  AppendLittle(MaskedCrc32c(payload), out);
  return out;
}

std::string VersionEvent(double wall_time) {
  std::string event;
  AppendWallTime(wall_time, event);
  AppendBytes(3, "brain.Event:2", event);
  return event;
}

std::string ScalarEvent(double wall_time, std::int64_t step,
                        std::string_view tag, float value) {
  std::string scalar;
  AppendBytes(1, tag, scalar);
  AppendTag(2, kFixed32, scalar);
  AppendLittle(std::bit_cast<std::uint32_t>(value), scalar);
  std::string summary;
  AppendBytes(1, scalar, summary);
  std::string event;
  AppendWallTime(wall_time, event);
  AppendTag(2, kVarint, event);
  AppendVarint(static_cast<std::uint64_t>(step), event);
  AppendBytes(5, summary, event);
  return event;
}

}  // namespace stowage::engine::monitor
