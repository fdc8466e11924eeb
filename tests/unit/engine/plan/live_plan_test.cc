// LivePlan by exhaustion: every trace of up to six uses over three units, every
// limit, reuse distance and bucket of a small set, three passes each.

#include "engine/plan/live_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace stowage::plan {
namespace {

// Carries actions out on a set and checks what must always hold.
class Mirror {
 public:
  explicit Mirror(const std::vector<LivePlan::Unit>& units) : units_(units) {}

  void Carry(const LivePlan::Actions& actions) {
    for (const std::int32_t unit : actions.release) {
      ASSERT_TRUE(live_.erase(unit) == 1) << "released what was not there";
    }
    for (const std::int32_t unit : actions.fetch) {
      ASSERT_TRUE(live_.insert(unit).second) << "fetched twice";
    }
    for (const std::int32_t unit : actions.prefetch) {
      ASSERT_TRUE(live_.insert(unit).second) << "prefetched what was there";
    }
  }
  std::int64_t elems() const {
    std::int64_t sum = 0;
    for (const std::int32_t unit : live_) {
      sum += units_[static_cast<std::size_t>(unit)].elems;
    }
    return sum;
  }
  bool Has(std::int32_t unit) const { return live_.count(unit) == 1; }
  std::size_t count() const { return live_.size(); }

 private:
  const std::vector<LivePlan::Unit>& units_;
  std::set<std::int32_t> live_;
};

void RunPass(LivePlan& plan, Mirror& mirror,
             const std::vector<LivePlan::Unit>& units,
             const std::vector<std::int32_t>& uses, std::int64_t bucket) {
  std::int64_t largest = 0;  // need of a use
  for (const LivePlan::Unit& u : units) {
    std::int64_t need = u.elems;
    for (const std::int32_t other : u.borrows) {
      need += units[static_cast<std::size_t>(other)].elems;
    }
    largest = std::max(largest, need);
  }
  for (const std::int32_t unit : uses) {
    const LivePlan::Actions begin = plan.BeginUse(unit);
    mirror.Carry(begin);
    ASSERT_TRUE(mirror.Has(unit)) << "a used unit must be live";
    for (const std::int32_t other :
         units[static_cast<std::size_t>(unit)].borrows) {
      ASSERT_TRUE(mirror.Has(other)) << "a borrowed unit must be live";
    }
    ASSERT_LE(mirror.elems(), plan.limit_elems());
    ASSERT_EQ(mirror.elems(), plan.live_elems());
    // Before its last use, what was prefetched was below the bucket.
    std::int64_t ahead = 0;
    for (const std::int32_t other : begin.prefetch) {
      ahead += units[static_cast<std::size_t>(other)].elems;
    }
    if (bucket == 0) {
      ASSERT_EQ(ahead, 0);
    } else {
      ASSERT_LT(ahead, bucket + largest);
    }
    const LivePlan::Actions end = plan.EndUse(unit);
    ASSERT_TRUE(end.fetch.empty() && end.prefetch.empty());
    mirror.Carry(end);
  }
  mirror.Carry(plan.EndPass());
  ASSERT_EQ(mirror.count(), 0U) << "nothing stays over a pass";
  ASSERT_EQ(plan.live_elems(), 0);
}

TEST(LivePlan, HoldsItsRulesForEverySmallTrace) {
  const std::vector<std::vector<LivePlan::Unit>> models = {
      {{4, {}}, {2, {}}, {1, {}}},
      {{1, {}}, {5, {}}, {2, {0}}},  // the last borrows the first (tied)
  };
  std::int64_t traces = 0;
  for (const auto& units : models) {
    for (const std::int64_t live : {0, 3, 6, 100}) {
      for (const std::int64_t reuse : {0, 3, 100}) {
        for (const std::int64_t bucket : {0, 2, 100}) {
          for (int length = 1; length <= 6; ++length) {
            int combinations = 1;
            for (int i = 0; i < length; ++i) combinations *= 3;
            for (int code = 0; code < combinations; ++code) {
              std::vector<std::int32_t> uses;
              for (int i = 0, rest = code; i < length; ++i, rest /= 3) {
                uses.push_back(rest % 3);
              }
              LivePlan plan({live, reuse, bucket}, units);
              Mirror mirror(units);
              // Recording, following, a departure, and following again.
              std::vector<std::int32_t> other = uses;
              other.back() = (other.back() + 1) % 3;
              for (const auto* pass : {&uses, &uses, &other, &uses, &uses}) {
                RunPass(plan, mirror, units, *pass, bucket);
                if (testing::Test::HasFatalFailure()) {
                  FAIL() << "live " << live << " reuse " << reuse << " bucket "
                         << bucket << " code " << code << " length " << length;
                }
              }
              ++traces;
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(traces, 2 * 4 * 3 * 3 * (3 + 9 + 27 + 81 + 243 + 729));
}

std::vector<std::int32_t> ForwardBackward() { return {0, 1, 2, 2, 1, 0}; }

TEST(LivePlan, RecordsFirstThenPrefetchesInOrder) {
  const std::vector<LivePlan::Unit> units = {{4, {}}, {4, {}}, {4, {}}};
  LivePlan plan({100, 0, 8}, units);
  EXPECT_TRUE(plan.BeginUse(0).prefetch.empty()) << "the first pass records";
  plan.EndUse(0);
  for (const std::int32_t unit : {1, 2, 2, 1, 0}) {
    plan.BeginUse(unit);
    plan.EndUse(unit);
  }
  plan.EndPass();
  EXPECT_EQ(plan.trace().state(), UseTrace::State::kFollowing);
  EXPECT_EQ(plan.BeginUse(0).prefetch, (std::vector<std::int32_t>{1, 2}));
}

TEST(LivePlan, PrefetchesAUnitLargerThanTheBucket) {
  const std::vector<LivePlan::Unit> units = {{4, {}}, {4, {}}, {4, {}}};
  struct Case {
    std::int64_t live;
    std::int64_t bucket;
    std::vector<std::int32_t> want;
  };
  for (const Case& c : {Case{100, 0, {}}, Case{100, 1, {1}}, Case{100, 4, {1}},
                        Case{100, 5, {1, 2}}, Case{7, 5, {}}}) {
    LivePlan plan({c.live, 0, c.bucket}, units);
    for (const std::int32_t unit : ForwardBackward()) {
      plan.BeginUse(unit);
      plan.EndUse(unit);
    }
    plan.EndPass();
    EXPECT_EQ(plan.BeginUse(0).prefetch, c.want) << c.bucket;
  }
}

TEST(LivePlan, ReuseDistanceDecidesWhetherAUnitIsKept) {
  const std::vector<LivePlan::Unit> units = {{4, {}}, {4, {}}, {4, {}}};
  for (const std::int64_t reuse : {0, 1, 9, 100}) {
    LivePlan plan({100, reuse, 0}, units);
    for (int pass = 0; pass < 2; ++pass) {
      for (const std::int32_t unit : ForwardBackward()) {
        plan.BeginUse(unit);
        plan.EndUse(unit);
      }
      plan.EndPass();
    }
    std::vector<bool> kept;
    for (const std::int32_t unit : {0, 1, 2}) {
      plan.BeginUse(unit);
      plan.EndUse(unit);
      kept.push_back(plan.IsLive(unit));
    }
    // Between the uses lie 16, 8 and 0 elements.
    EXPECT_EQ(kept[0], 16 < reuse) << reuse;
    EXPECT_EQ(kept[1], 8 < reuse) << reuse;
    EXPECT_EQ(kept[2], 0 < reuse) << reuse;
  }
}

TEST(LivePlan, MakesRoomByTheFarthestNextUse) {
  const std::vector<LivePlan::Unit> units = {{4, {}}, {4, {}}, {4, {}}};
  LivePlan plan({8, 100, 0}, units);
  for (const std::int32_t unit : ForwardBackward()) {
    plan.BeginUse(unit);
    plan.EndUse(unit);
  }
  plan.EndPass();
  plan.BeginUse(0);
  plan.EndUse(0);
  plan.BeginUse(1);
  plan.EndUse(1);
  EXPECT_TRUE(plan.IsLive(0));
  EXPECT_TRUE(plan.IsLive(1));
  EXPECT_EQ(plan.BeginUse(2).release, (std::vector<std::int32_t>{0}))
      << "unit 0 is needed last";
}

TEST(LivePlan, UntracedUsesLeaveTheTraceAlone) {
  const std::vector<LivePlan::Unit> units = {{4, {}}, {4, {}}, {4, {}}};
  LivePlan plan({100, 0, 8}, units);
  for (const std::int32_t unit : ForwardBackward()) {
    plan.BeginUse(unit);
    plan.EndUse(unit);
  }
  plan.EndPass();
  for (const std::int32_t unit : {2, 0, 1}) {
    EXPECT_EQ(plan.BeginUntracedUse(unit).fetch.size(), 1U);
    EXPECT_EQ(plan.EndUntracedUse(unit).release.size(), 1U);
  }
  EXPECT_EQ(plan.trace().state(), UseTrace::State::kFollowing);
  EXPECT_EQ(plan.trace().position(), 0);
}

TEST(LivePlan, LimitIsTheLargerOfMaxLiveAndTheLargestNeed) {
  const std::vector<LivePlan::Unit> units = {{4, {}}, {10, {}}, {3, {1}}};
  EXPECT_EQ(LivePlan({0, 0, 0}, units).limit_elems(), 13);
  EXPECT_EQ(LivePlan({50, 0, 0}, units).limit_elems(), 50);
}

TEST(UseTrace, AShorterPassIsNoDeparture) {
  UseTrace trace;
  for (const std::int32_t unit : {0, 1, 2}) trace.Use(unit);
  trace.EndPass();
  EXPECT_EQ(trace.Use(0), 0);
  trace.EndPass();
  EXPECT_EQ(trace.state(), UseTrace::State::kFollowing);
  EXPECT_EQ(trace.Use(0), 0);
  EXPECT_EQ(trace.Use(2), -1);
  EXPECT_EQ(trace.state(), UseTrace::State::kDeparted);
  trace.EndPass();
  EXPECT_EQ(trace.state(), UseTrace::State::kRecording);
}

}  // namespace
}  // namespace stowage::plan
