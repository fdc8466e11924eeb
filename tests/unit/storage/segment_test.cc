#include "storage/host/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <filesystem>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::storage {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class SegmentTest : public ::testing::Test {
 protected:
  SegmentTest() {
    char name[] = "/dev/shm/stowage-test-XXXXXX";
    EXPECT_NE(::mkdtemp(name), nullptr);
    base_ = name;
    auto folder = SegmentFolder::Create(base_, "one");
    EXPECT_TRUE(folder.ok());
    folder_ = *std::move(folder);
  }
  ~SegmentTest() override { fs::remove_all(base_); }

  absl::StatusOr<std::unique_ptr<Segment>> Make(std::int64_t bytes) {
    auto reservation = budget_.Reserve(bytes, "test");
    if (!reservation.ok()) return reservation.status();
    return Segment::Create(*folder_, {.kind = "grad", .bytes = bytes}, &budget_,
                           *std::move(reservation));
  }
  std::string PathOf(const Segment& segment) const {
    return base_ + "/" + segment.file_name();
  }

  std::string base_;
  std::unique_ptr<SegmentFolder> folder_;
  MemoryBudget budget_{std::int64_t{1} << 50};
};

TEST_F(SegmentTest, IsAPrivateZeroedFileThatGoesWithItsOwner) {
  std::string path;
  {
    auto segment = Make(5 << 20);
    ASSERT_TRUE(segment.ok()) << segment.status();
    path = PathOf(**segment);
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777U, 0600U);
    EXPECT_EQ(info.st_size, 5 << 20);
    EXPECT_GE(info.st_blocks * 512, 5 << 20);  // allocated, not sparse
    const std::byte* data = (*segment)->data();
    EXPECT_TRUE(std::all_of(data, data + (5 << 20),
                            [](std::byte b) { return b == std::byte{0}; }));
    EXPECT_EQ(budget_.in_use_bytes(), 5 << 20);
  }
  EXPECT_FALSE(fs::exists(path));
  EXPECT_EQ(budget_.in_use_bytes(), 0);
  EXPECT_EQ(budget_.locked_bytes(), 0);
}

TEST_F(SegmentTest, RefusesWhatTheFileSystemHasNot) {
  const auto segment = Make(std::int64_t{1} << 45);
  ASSERT_EQ(segment.status().code(), absl::StatusCode::kResourceExhausted)
      << segment.status();
  EXPECT_THAT(std::string(segment.status().message()),
              HasSubstr("35184372088832 bytes"));
  EXPECT_THAT(std::string(segment.status().message()), HasSubstr("shm"));
  EXPECT_EQ(budget_.in_use_bytes(), 0);
  int files = 0;
  for (const auto& entry : fs::directory_iterator(base_)) {
    (void)entry;
    ++files;
  }
  EXPECT_EQ(files, 1);  // the lock
}

TEST_F(SegmentTest, SurvivesTruncationByAPeer) {
  auto victim = Make(4 << 20);
  auto bystander = Make(1 << 20);
  ASSERT_TRUE(victim.ok() && bystander.ok());
  std::fill_n((*victim)->data(), 4 << 20, std::byte{1});
  ASSERT_EQ(::truncate(PathOf(**victim).c_str(), 4096), 0);
  int sum = 0;
  for (std::int64_t i = 0; i < 4 << 20; i += 512) {
    sum += std::to_integer<int>((*victim)->data()[i]);
  }
  EXPECT_EQ(sum, 8);  // the page that is left, then zeroes
  EXPECT_TRUE((*victim)->broken());
  EXPECT_FALSE((*bystander)->broken());
  (*victim)->data()[(4 << 20) - 1] = std::byte{9};  // writing works too
}

TEST_F(SegmentTest, ForgetsABrokenRangeWithItsSegment) {
  {
    auto victim = Make(1 << 20);
    ASSERT_TRUE(victim.ok());
    ASSERT_EQ(::truncate(PathOf(**victim).c_str(), 0), 0);
    (*victim)->data()[0] = std::byte{1};
    ASSERT_TRUE((*victim)->broken());
  }
  auto next = Make(1 << 20);
  ASSERT_TRUE(next.ok());
  EXPECT_FALSE((*next)->broken());
}

TEST_F(SegmentTest, PassesOtherSigbusToTheHandlerBefore) {
  auto segment = Make(1 << 20);  // installs the guard
  ASSERT_TRUE(segment.ok());
  // Without a handler before ours the process ends by SIGBUS as it would have.
  EXPECT_EXIT(
      {
        const std::string path = base_ + "/other";
        const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
        if (::ftruncate(fd, 4096) != 0) ::_exit(0);
        auto* data = static_cast<volatile char*>(
            ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        if (::ftruncate(fd, 0) != 0) ::_exit(0);
        data[0] = 1;
        ::_exit(0);
      },
      // The default action's signal, or a sanitizer's report and exit code.
      [](int status) {
        return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
      },
      "");
}

TEST_F(SegmentTest, LocksAndCountsWhereAllowed) {
  auto segment = Make(1 << 20);
  ASSERT_TRUE(segment.ok());
  EXPECT_TRUE(budget_.locked_bytes() == 0 || budget_.locked_bytes() == 1 << 20);
}

}  // namespace
}  // namespace stowage::storage
