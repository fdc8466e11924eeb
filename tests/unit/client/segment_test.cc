#include "client/segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::client {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr SegmentIdentity kIdentity{kParamSegmentMagic, 7, 99};

class Segment : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = "/dev/shm/stowage-segment-test-" + std::to_string(::getpid());
    SegmentHeader header;
    header.magic = kIdentity.magic;
    header.format_version = kProtocolVersion;
    header.job_id = kIdentity.job_id;
    header.layout_fingerprint = kIdentity.layout_fingerprint;
    Write(header, 8192);
  }
  void TearDown() override { ::unlink(path_.c_str()); }

  void Write(const SegmentHeader& header, std::int64_t size_bytes) {
    const int fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(::ftruncate(fd, size_bytes), 0);
    ASSERT_EQ(::write(fd, static_cast<const void*>(&header), sizeof(header)),
              static_cast<ssize_t>(sizeof(header)));
    ::close(fd);
  }

  // The error of mapping after `spoil` changed the header.
  template <typename Spoil>
  std::string ErrorAfter(Spoil spoil) {
    SegmentHeader header;
    header.magic = kIdentity.magic;
    header.format_version = kProtocolVersion;
    header.job_id = kIdentity.job_id;
    header.layout_fingerprint = kIdentity.layout_fingerprint;
    spoil(header);
    Write(header, 8192);
    const auto mapped = MappedSegment::Map(path_, {.bytes = 8192}, kIdentity);
    EXPECT_EQ(mapped.status().code(), absl::StatusCode::kFailedPrecondition);
    return std::string(mapped.status().message());
  }

  std::string path_;
};

TEST_F(Segment, MapsWhatFits) {
  auto mapped =
      MappedSegment::Map(path_, {.bytes = 8192, .writable = true}, kIdentity);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_EQ(mapped->size_bytes(), 8192);
  mapped->data()[8191] = std::byte{1};
  const MappedSegment moved = *std::move(mapped);
  EXPECT_EQ(moved.data()[8191], std::byte{1});
}

TEST_F(Segment, RefusesWhatDoesNot) {
  EXPECT_THAT(ErrorAfter([](SegmentHeader& h) { h.magic = 1; }),
              HasSubstr("not a segment of this kind"));
  EXPECT_THAT(ErrorAfter([](SegmentHeader& h) { h.format_version = 9; }),
              HasSubstr("format version 9"));
  EXPECT_THAT(ErrorAfter([](SegmentHeader& h) { h.job_id = 8; }),
              HasSubstr("another job"));
  EXPECT_THAT(ErrorAfter([](SegmentHeader& h) { h.layout_fingerprint = 1; }),
              HasSubstr("another layout"));
  ErrorAfter([](SegmentHeader& h) { h.magic = 0; });
  auto mapped = MappedSegment::Map(path_, {.bytes = 4096}, kIdentity);
  EXPECT_THAT(std::string(mapped.status().message()),
              HasSubstr("has 8192 bytes, the layout needs 4096"));
  mapped =
      MappedSegment::Map(path_, {.bytes = 12288, .or_longer = true}, kIdentity);
  EXPECT_THAT(std::string(mapped.status().message()),
              HasSubstr("has 8192 bytes, the layout needs 12288"));
  mapped = MappedSegment::Map(path_ + "-no", {.bytes = 8192}, kIdentity);
  EXPECT_THAT(std::string(mapped.status().message()),
              HasSubstr("STOWAGE_SHM_DIR"));
}

TEST_F(Segment, MayBeLongerWhereThatIsSaid) {
  const auto mapped =
      MappedSegment::Map(path_, {.bytes = 4096, .or_longer = true}, kIdentity);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_EQ(mapped->size_bytes(), 8192);
}

TEST_F(Segment, DoesNotFollowLinks) {
  const std::string link = path_ + "-link";
  ASSERT_EQ(::symlink(path_.c_str(), link.c_str()), 0);
  EXPECT_FALSE(MappedSegment::Map(link, {.bytes = 8192}, kIdentity).ok());
  ::unlink(link.c_str());
}

TEST(WaitForWord, ReturnsWhenTheWordIsThere) {
  const std::atomic<std::uint32_t> word{5};
  std::atomic<std::uint32_t> waiters{0};
  const auto ok = [] { return absl::OkStatus(); };
  EXPECT_TRUE(WaitForWord(word, 5, waiters, std::chrono::seconds(1), ok).ok());
  EXPECT_TRUE(WaitForWord(word, 4, waiters, std::chrono::seconds(1), ok).ok());
  EXPECT_EQ(waiters.load(), 0U);
}

TEST(WaitForWord, IsWokenByTheHintAndTheFutex) {
  std::atomic<std::uint32_t> word{0xffffffffU};
  std::atomic<std::uint32_t> waiters{0};
  std::thread writer([&] {
    while (waiters.load() == 0) std::this_thread::yield();
    word.store(2);  // past the wrap
    ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  });
  EXPECT_TRUE(WaitForWord(word, 1, waiters, std::chrono::seconds(20), [] {
                return absl::OkStatus();
              }).ok());
  writer.join();
  EXPECT_EQ(waiters.load(), 0U);
}

TEST(WaitForWord, NoticesAWordThatNobodyWokeItFor) {
  std::atomic<std::uint32_t> word{0};
  std::atomic<std::uint32_t> waiters{0};
  std::thread writer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    word.store(1);
  });
  const auto start = Clock::now();
  EXPECT_TRUE(WaitForWord(word, 1, waiters, std::chrono::seconds(20), [] {
                return absl::OkStatus();
              }).ok());
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  writer.join();
}

TEST(WaitForWord, AsksTheCheckAndKeepsTheDeadline) {
  const std::atomic<std::uint32_t> word{0};
  std::atomic<std::uint32_t> waiters{0};
  const absl::Status lost = absl::UnavailableError("lost");
  EXPECT_EQ(WaitForWord(word, 1, waiters, std::chrono::seconds(20),
                        [&lost] { return lost; }),
            lost);
  EXPECT_EQ(WaitForWord(word, 1, waiters, std::chrono::milliseconds(120),
                        [] { return absl::OkStatus(); })
                .code(),
            absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace stowage::client
