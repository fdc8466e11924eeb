#include "engine/monitor/tf_record.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "engine/monitor/monitor.h"
#include "gtest/gtest.h"

namespace stowage::engine::monitor {
namespace {

// RFC 3720, appendix B.4, and the check value of the CRC catalogue.
TEST(Crc32c, KnownValues) {
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283U);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAU);
  EXPECT_EQ(Crc32c(std::string(32, '\xFF')), 0x62A8AB43U);
  EXPECT_EQ(Crc32c(""), 0U);
}

std::uint64_t ReadLittle(const std::string& bytes, std::size_t at,
                         std::size_t width) {
  std::uint64_t value = 0;
  for (std::size_t i = width; i-- > 0;) {
    value = (value << 8) | static_cast<unsigned char>(bytes[at + i]);
  }
  return value;
}

// Splits a file into payloads, checking both sums of every record.
std::vector<std::string> Payloads(const std::string& bytes) {
  std::vector<std::string> out;
  std::size_t at = 0;
  while (at + 12 <= bytes.size()) {
    const std::uint64_t length = ReadLittle(bytes, at, 8);
    EXPECT_EQ(ReadLittle(bytes, at + 8, 4), MaskedCrc32c(bytes.substr(at, 8)));
    const std::string payload = bytes.substr(at + 12, length);
    EXPECT_EQ(ReadLittle(bytes, at + 12 + length, 4), MaskedCrc32c(payload));
    out.push_back(payload);
    at += 16 + length;
  }
  EXPECT_EQ(at, bytes.size());
  return out;
}

// The bytes that protoc --encode gives for
//   wall_time: 1 step: 300 summary { value { tag: "a/b" simple_value: 0.5 } }
TEST(ScalarEvent, IsTheMessageByteForByte) {
  const std::string want(
      "\x09\x00\x00\x00\x00\x00\x00\xF0\x3F"  // 1: double 1
      "\x10\xAC\x02"                          // 2: varint 300
      "\x2A\x0C"                              // 5: 12 bytes
      "\x0A\x0A"                              // 5.1: 10 bytes
      "\x0A\x03"
      "a/b"                    // 5.1.1: tag
      "\x15\x00\x00\x00\x3F",  // 5.1.2: float 0.5
      9 + 3 + 2 + 2 + 5 + 5);
  EXPECT_EQ(ScalarEvent(1.0, 300, "a/b", 0.5F), want);
}

TEST(TensorboardMonitor, RecordsReadBack) {
  namespace fs = std::filesystem;
  std::string name = (fs::temp_directory_path() / "stowage-XXXXXX").string();
  const std::string folder = ::mkdtemp(name.data());
  auto monitor = CreateTensorboardMonitor({folder, "job"});
  ASSERT_TRUE(monitor.ok()) << monitor.status().ToString();
  const std::vector<Event> events = {{kEventLr, 0.5, 24, false},
                                     {kEventLossScale, 65536, 24, true}};
  ASSERT_TRUE((*monitor)->WriteEvents(events).ok());
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder + "/job")) {
    files.push_back(entry.path());
  }
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(files[0].filename().string().rfind("events.out.tfevents.", 0), 0U);
  std::ifstream file(files[0], std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  const std::vector<std::string> payloads = Payloads(text.str());
  ASSERT_EQ(payloads.size(), 3U);
  EXPECT_NE(payloads[0].find("brain.Event:2"), std::string::npos);
  EXPECT_EQ(payloads[1].substr(9),
            ScalarEvent(0, 24, kEventLr, 0.5F).substr(9));
  EXPECT_NE(payloads[2].find(kEventLossScale), std::string::npos);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace stowage::engine::monitor
