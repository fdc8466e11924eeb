#include "common/cache_size.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace stowage {
namespace {

class CacheSize : public testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/stowage-cache-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    root_ = folder;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Add(int index, const std::string& level, const std::string& type,
           const std::string& size) {
    const std::string folder = root_ + "/index" + std::to_string(index);
    std::filesystem::create_directory(folder);
    std::ofstream(folder + "/level") << level << "\n";
    std::ofstream(folder + "/type") << type << "\n";
    std::ofstream(folder + "/size") << size << "\n";
  }
  std::string root_;
};

TEST_F(CacheSize, IsThatOfTheHighestLevel) {
  Add(0, "1", "Data", "32K");
  Add(1, "1", "Instruction", "32K");
  Add(2, "2", "Unified", "512K");
  Add(3, "3", "Unified", "32768K");
  EXPECT_EQ(LastLevelCacheBytes(root_), 32 << 20);
}

TEST_F(CacheSize, IsZeroWhereTheKernelDoesNotSay) {
  EXPECT_EQ(LastLevelCacheBytes(root_), 0);
  EXPECT_EQ(LastLevelCacheBytes(root_ + "/nowhere"), 0);
  Add(0, "1", "Data", "much");
  EXPECT_EQ(LastLevelCacheBytes(root_), 0);
}

TEST_F(CacheSize, ALargePassNeverFits) {
  EXPECT_FALSE(FitsLastLevelCache(std::int64_t{1} << 50));
}

}  // namespace
}  // namespace stowage
