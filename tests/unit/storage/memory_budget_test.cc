#include "storage/host/memory_budget.h"

#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::storage {
namespace {

using ::testing::HasSubstr;

TEST(MemoryBudget, CountsWhatIsReservedAndGivesItBack) {
  MemoryBudget budget(1000);
  {
    auto a = budget.Reserve(600, "a");
    ASSERT_TRUE(a.ok());
    auto b = budget.Reserve(400, "b");
    ASSERT_TRUE(b.ok());
    EXPECT_EQ(budget.in_use_bytes(), 1000);
    a->Release();
    EXPECT_EQ(budget.in_use_bytes(), 400);
    MemoryReservation moved = *std::move(b);
    EXPECT_EQ(budget.in_use_bytes(), 400);
  }
  EXPECT_EQ(budget.in_use_bytes(), 0);
}

TEST(MemoryBudget, RefusesWithNeedLimitAndUse) {
  MemoryBudget budget(1 << 20);
  auto held = budget.Reserve(1 << 19, "other");
  ASSERT_TRUE(held.ok());
  const auto refused = budget.Reserve((1 << 19) + 1, "job \"gpt\"");
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  const std::string text(refused.status().message());
  EXPECT_THAT(text, HasSubstr("job \"gpt\": needs 512.0 KiB (524289 bytes)"));
  EXPECT_THAT(text, HasSubstr("limit is 1.0 MiB (1048576)"));
  EXPECT_THAT(text, HasSubstr("512.0 KiB (524288) are in use"));
  EXPECT_EQ(budget.in_use_bytes(), 1 << 19);
}

TEST(MemoryBudget, DoesNotOverflowOnHugeRequests) {
  MemoryBudget budget(1000);
  auto held = budget.Reserve(999, "a");
  ASSERT_TRUE(held.ok());
  EXPECT_FALSE(
      budget.Reserve(std::numeric_limits<std::int64_t>::max(), "b").ok());
}

TEST(MemoryBudget, SplitsWithoutChangingTheSum) {
  MemoryBudget budget(1000);
  auto whole = budget.Reserve(700, "a");
  ASSERT_TRUE(whole.ok());
  MemoryReservation part = whole->Split(200);
  EXPECT_EQ(whole->bytes(), 500);
  EXPECT_EQ(part.bytes(), 200);
  EXPECT_EQ(budget.in_use_bytes(), 700);
  whole->Release();
  EXPECT_EQ(budget.in_use_bytes(), 200);
}

TEST(MemoryBudget, StaysExactUnderManyThreads) {
  MemoryBudget budget(64);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&budget] {
      for (int i = 0; i < 1000; ++i) {
        auto got = budget.Reserve(1 + i % 32, "t");
        EXPECT_LE(budget.in_use_bytes(), 64);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(budget.in_use_bytes(), 0);
}

}  // namespace
}  // namespace stowage::storage
