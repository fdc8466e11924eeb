// A burst is free, then turns come at the stated rate; whoever is too many is
// refused at once; a stop lets everybody go.

#include "server/rpc/pace.h"

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::rpc {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

TEST(Pace, ABurstIsFreeAndThenTurnsComeAtTheRate) {
  Pace pace({.what = "calls", .per_second = 20, .burst = 20});
  const auto begin = Clock::now();
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(pace.Take().ok());
  const auto burst = Clock::now() - begin;
  EXPECT_LT(burst, milliseconds(800));  // at the rate it would take a second
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(pace.Take().ok());
  // Ten turns of 50 ms, less what the burst took.
  EXPECT_GT(Clock::now() - begin, milliseconds(450));
}

TEST(Pace, TurnsThatNobodyTookComeBack) {
  Pace pace({.what = "calls", .per_second = 10, .burst = 5});
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(pace.Take().ok());
  std::this_thread::sleep_for(milliseconds(600));
  const auto begin = Clock::now();
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(pace.Take().ok());
  EXPECT_LT(Clock::now() - begin, milliseconds(400));
}

TEST(Pace, RefusesWhatWouldWaitLongWithTheRate) {
  Pace pace({.what = "new sessions",
             .per_second = 1,
             .burst = 2,
             .wait_max = milliseconds(100)});
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(pace.Take().ok());
  const auto begin = Clock::now();
  const absl::Status refused = pace.Take();
  EXPECT_LT(Clock::now() - begin, milliseconds(50));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              ::testing::HasSubstr("1 new sessions a second"));
}

TEST(Pace, RefusesBeyondThoseThatMayWaitAndStopLetsThemGo) {
  Pace pace({.what = "calls",
             .per_second = 0.1,
             .burst = 1,
             .waiting_max = 3,
             .wait_max = std::chrono::hours(1)});
  ASSERT_TRUE(pace.Take().ok());
  std::vector<std::thread> waiting;
  std::vector<absl::Status> results(3, absl::UnknownError("still waiting"));
  for (absl::Status& result : results) {
    waiting.emplace_back([&pace, &result] { result = pace.Take(); });
  }
  // By then the three wait; if they did not, this one would, for hours.
  std::this_thread::sleep_for(milliseconds(300));
  const absl::Status refused = pace.Take();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  pace.Stop();
  for (std::thread& thread : waiting) thread.join();
  for (const absl::Status& result : results) EXPECT_TRUE(result.ok());
  EXPECT_TRUE(pace.Take().ok());
}

}  // namespace
}  // namespace stowage::rpc
