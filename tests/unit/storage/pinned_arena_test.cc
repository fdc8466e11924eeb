#include "storage/host/pinned_arena.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "gtest/gtest.h"
#include "storage/host/process_memory.h"

namespace stowage::storage {
namespace {

absl::StatusOr<PinnedArena> Make(MemoryBudget& budget, std::int64_t bytes) {
  auto reservation = budget.Reserve(PinnedArena::MappedBytes(bytes), "test");
  if (!reservation.ok()) return reservation.status();
  return PinnedArena::Create(bytes, /*lock_memory=*/true, &budget,
                             *std::move(reservation));
}

TEST(PinnedArena, IsZeroedAlignedAndCounted) {
  MemoryBudget budget(std::int64_t{1} << 30);
  {
    auto arena = Make(budget, (5 << 20) + 17);
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ(arena->mapped_bytes(), 6 << 20);
    EXPECT_EQ(budget.in_use_bytes(), 6 << 20);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(arena->data()) %
                  static_cast<std::uintptr_t>(kHugePageBytes),
              0U);
    EXPECT_TRUE(std::all_of(arena->data(), arena->data() + (5 << 20),
                            [](std::byte b) { return b == std::byte{0}; }));
    EXPECT_TRUE(budget.locked_bytes() == 0 ||
                budget.locked_bytes() == arena->mapped_bytes());
  }
  EXPECT_EQ(budget.in_use_bytes(), 0);
  EXPECT_EQ(budget.locked_bytes(), 0);
}

TEST(PinnedArena, CanBeEmpty) {
  MemoryBudget budget(1 << 20);
  auto arena = Make(budget, 0);
  ASSERT_TRUE(arena.ok());
  EXPECT_EQ(arena->mapped_bytes(), 0);
}

TEST(PinnedArena, RefusesWhatTheMachineHasNot) {
  MemoryBudget budget(std::int64_t{1} << 62);
  const auto arena = Make(budget, std::int64_t{1} << 60);
  EXPECT_EQ(arena.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(budget.in_use_bytes(), 0);
}

TEST(PinnedArena, MovesWithItsReservation) {
  MemoryBudget budget(std::int64_t{1} << 30);
  auto arena = Make(budget, 4096);
  ASSERT_TRUE(arena.ok());
  PinnedArena other = *std::move(arena);
  other.data()[100] = std::byte{7};
  PinnedArena third;
  third = std::move(other);
  EXPECT_EQ(third.data()[100], std::byte{7});
  EXPECT_EQ(budget.in_use_bytes(), 4096);
}

TEST(ProcessMemory, KnowsResidentAndMachineBytes) {
  EXPECT_GT(ResidentBytes(), 1 << 20);
  EXPECT_GT(MachineMemoryBytes(), ResidentBytes());
  EXPECT_GE(HugePageBytes(), 0);
}

}  // namespace
}  // namespace stowage::storage
