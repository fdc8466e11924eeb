#include "server/heap.h"

#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace stowage {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kOtherAllocator = true;
#elif defined(__has_feature)
constexpr bool kOtherAllocator = __has_feature(address_sanitizer);
#else
constexpr bool kOtherAllocator = false;
#endif

constexpr std::size_t kMib = std::size_t{1} << 20;

std::size_t ResidentBytes() {
  std::size_t size = 0;
  std::size_t resident = 0;
  std::FILE* statm = std::fopen("/proc/self/statm", "r");
  if (statm == nullptr) return 0;
  const int got = std::fscanf(statm, "%zu %zu", &size, &resident);
  std::fclose(statm);
  return got == 2 ? resident * static_cast<std::size_t>(::getpagesize()) : 0;
}

// Chunks as a thread of gRPC holds them; the last one stays, so that the arena
// cannot shrink from its end.
std::unique_ptr<std::string> UseChunks(int count) {
  std::unique_ptr<std::string> last;
  std::thread([&] {
    std::vector<std::unique_ptr<std::string>> chunks;
    for (int i = 0; i < count; ++i) {
      chunks.push_back(std::make_unique<std::string>(kMib, 'x'));
    }
    last = std::move(chunks.back());
  }).join();
  return last;
}

class Heap : public testing::Test {
 protected:
  void SetUp() override {
    if (kOtherAllocator) {
      GTEST_SKIP() << "AddressSanitizer has an allocator of its own";
    }
    KeepSmallBlocks();
  }
};

TEST_F(Heap, ChunksThatCameAndWentGoBack) {
  FreeMemory free_memory(2 * kMib, 1);
  free_memory.GiveBack();
  const std::size_t before = ResidentBytes();
  const auto last = UseChunks(40);
  EXPECT_GT(ResidentBytes(), before + 30 * kMib);
  EXPECT_TRUE(free_memory.GiveBack());
  EXPECT_LT(ResidentBytes(), before + 4 * kMib);
  EXPECT_EQ(last->at(kMib - 1), 'x');
}

TEST_F(Heap, WhatHasGoneBackIsNotLookedForAgain) {
  FreeMemory free_memory(2 * kMib, 1);
  const auto last = UseChunks(40);
  EXPECT_TRUE(free_memory.GiveBack());
  EXPECT_FALSE(free_memory.GiveBack());
  const auto again = UseChunks(40);
  EXPECT_TRUE(free_memory.GiveBack());
}

TEST_F(Heap, WhatWasInUseTheLastTimeGoesBackWhenItIsFree) {
  FreeMemory(0, 1).GiveBack();
  const std::size_t before = ResidentBytes();
  FreeMemory free_memory(2 * kMib, 1);
  std::vector<std::unique_ptr<std::string>> chunks;
  for (int i = 0; i < 40; ++i) {
    chunks.push_back(std::make_unique<std::string>(kMib, 'x'));
  }
  const auto freed = UseChunks(10);
  EXPECT_TRUE(free_memory.GiveBack());
  EXPECT_GT(ResidentBytes(), before + 30 * kMib);
  chunks.erase(chunks.begin(), chunks.end() - 1);  // the heap cannot shrink
  EXPECT_TRUE(free_memory.GiveBack());
  EXPECT_LT(ResidentBytes(), before + 4 * kMib);
}

TEST_F(Heap, NothingGoesBackWhileChunksComeAndGo) {
  FreeMemory(0, 1).GiveBack();
  FreeMemory free_memory(2 * kMib, 3);
  const auto last = UseChunks(40);
  std::vector<std::unique_ptr<std::string>> chunks;
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(free_memory.GiveBack()) << i;
    EXPECT_FALSE(free_memory.GiveBack()) << i;
    chunks.push_back(std::make_unique<std::string>(kMib, 'x'));
  }
  EXPECT_FALSE(free_memory.GiveBack());
  EXPECT_FALSE(free_memory.GiveBack());
  EXPECT_TRUE(free_memory.GiveBack());
}

TEST_F(Heap, ButNotForEver) {
  FreeMemory(0, 1).GiveBack();
  FreeMemory free_memory(2 * kMib, 3);
  const auto last = UseChunks(40);
  std::vector<std::unique_ptr<std::string>> chunks;
  int refused = 0;
  while (refused < 100 && !free_memory.GiveBack()) {
    ++refused;
    chunks.push_back(std::make_unique<std::string>(kMib, 'x'));
    if (chunks.size() == 8) chunks.clear();
  }
  EXPECT_EQ(refused, 29);
}

TEST_F(Heap, AFewFreeBytesAreKept) {
  FreeMemory free_memory(64 * kMib, 1);
  free_memory.GiveBack();
  const auto last = UseChunks(30);
  const std::size_t before = ResidentBytes();
  EXPECT_FALSE(free_memory.GiveBack());
  EXPECT_NEAR(static_cast<double>(ResidentBytes()), static_cast<double>(before),
              1.0 * kMib);
}

TEST_F(Heap, ATrimmerGivesBackByItself) {
  FreeMemory(0, 1).GiveBack();
  const std::size_t before = ResidentBytes();
  const auto last = UseChunks(40);
  const HeapTrimmer trimmer(2 * kMib, 2, std::chrono::milliseconds(1));
  for (int i = 0; i < 5000 && ResidentBytes() > before + 4 * kMib; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_LT(ResidentBytes(), before + 4 * kMib);
}

}  // namespace
}  // namespace stowage
