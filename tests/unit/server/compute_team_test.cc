#include "server/core/compute_team.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace stowage::core {
namespace {

TEST(ComputeTeam, RunsEveryIndexOnce) {
  for (const int threads : {1, 2, 4}) {
    ComputeTeam team(threads);
    for (const std::int64_t count : {0, 1, 2, 3, 17, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<std::size_t>(count));
      team.ParallelFor(count, [&](std::int64_t i) {
        hits[static_cast<std::size_t>(i)].fetch_add(1);
      });
      for (const auto& hit : hits) ASSERT_EQ(hit.load(), 1);
    }
  }
}

TEST(ComputeTeam, ReturnsAfterTheWorkIsVisible) {
  ComputeTeam team(3);
  std::vector<std::int64_t> values(64);
  for (std::int64_t round = 1; round < 2000; ++round) {
    team.ParallelFor(
        64, [&](std::int64_t i) { values[static_cast<std::size_t>(i)] += i; });
    for (std::int64_t i = 0; i < 64; ++i) {
      ASSERT_EQ(values[static_cast<std::size_t>(i)], i * round);
    }
  }
}

TEST(ComputeTeam, UsesItsHelpers) {
  ComputeTeam team(2);
  std::atomic<int> inside{0};
  std::atomic<bool> together{false};
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  team.ParallelFor(2, [&](std::int64_t) {
    inside.fetch_add(1);
    while (!together.load() && std::chrono::steady_clock::now() < end) {
      if (inside.load() == 2) together.store(true);
      std::this_thread::yield();
    }
  });
  EXPECT_TRUE(together.load());
}

TEST(ComputeTeam, ServesManyCallersAtOnce) {
  ComputeTeam team(2);
  std::atomic<std::int64_t> sum{0};
  std::vector<std::thread> callers;
  constexpr int kCallers = 20;  // more than the team's table holds
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        team.ParallelFor(10, [&](std::int64_t i) { sum.fetch_add(i); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum.load(), kCallers * 100 * 45);
}

TEST(ComputeTeam, EndsWhileHelpersSleepOrSpin) {
  for (int round = 0; round < 50; ++round) {
    auto team = std::make_unique<ComputeTeam>(4);
    std::atomic<int> done{0};
    if (round % 2 == 0) {
      team->ParallelFor(8, [&](std::int64_t) { done.fetch_add(1); });
    }
    team.reset();
  }
}

}  // namespace
}  // namespace stowage::core
