#include "server/core/step_ledger.h"

#include <string>

#include "gtest/gtest.h"

namespace stowage::core {
namespace {

Layout ThreeUnits() {
  LayoutSpec spec;
  spec.groups = {{.name = "g"}, {.name = "ice", .frozen = true}};
  spec.units = {
      {.name = "a", .params = {{.name = "a", .shape = {4}, .group_index = 0}}},
      {.name = "f", .params = {{.name = "f", .shape = {4}, .group_index = 1}}},
      {.name = "c", .params = {{.name = "c", .shape = {4}, .group_index = 0}}}};
  return *Layout::Create(spec);
}

RunSpec Ranks(std::int32_t ranks, std::int32_t micro_steps) {
  return {.nonce = "",
          .world_size = ranks,
          .local_ranks = ranks,
          .micro_steps = micro_steps};
}

TEST(StepLedger, LandsAKeptUnitWhenAllRanksAndMicroStepsAreThere) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Ranks(2, 2), {.ring = false, .slots_per_rank = 2});
  EXPECT_FALSE(*ledger.Notice(0, 0, 2, false));
  EXPECT_FALSE(*ledger.Notice(0, 1, 2, false));
  EXPECT_FALSE(*ledger.Notice(1, 0, 2, true));
  EXPECT_FALSE(ledger.HasReady());
  EXPECT_TRUE(*ledger.Notice(1, 1, 2, false));
  ASSERT_TRUE(ledger.HasReady());
  const StepLedger::Landing landing = ledger.PopReady();
  EXPECT_EQ(landing.unit, 2);
  EXPECT_TRUE(landing.last);
  EXPECT_EQ(ledger.MarkLanded(landing), 2);
  EXPECT_FALSE(ledger.complete());
  const StepGradients& g = ledger.gradients();
  EXPECT_EQ(g.empty[g.EmptyIndex(2, 0, 1)], 1);
  EXPECT_EQ(g.empty[g.EmptyIndex(2, 1, 1)], 0);
}

TEST(StepLedger, LandsARingUnitMicroStepByMicroStep) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Ranks(2, 3), {.ring = true, .slots_per_rank = 1});
  for (std::int32_t micro = 0; micro < 3; ++micro) {
    EXPECT_FALSE(*ledger.Notice(0, micro, 0, false));
    // The next micro step of a rank must wait for the landing of this one.
    if (micro + 1 < 3) {
      EXPECT_EQ(ledger.Notice(0, micro + 1, 0, false).status().code(),
                absl::StatusCode::kFailedPrecondition);
    }
    EXPECT_TRUE(*ledger.Notice(1, micro, 0, false));
    const StepLedger::Landing landing = ledger.PopReady();
    EXPECT_EQ(landing.micro, micro);
    EXPECT_EQ(landing.last, micro == 2);
    EXPECT_EQ(ledger.MarkLanded(landing), micro + 1);
  }
}

TEST(StepLedger, IgnoresRepeatsAndFrozenUnits) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Ranks(1, 2), {.ring = false, .slots_per_rank = 2});
  EXPECT_FALSE(*ledger.Notice(0, 0, 1, false));  // frozen
  EXPECT_FALSE(*ledger.Notice(0, 0, 0, false));
  EXPECT_FALSE(*ledger.Notice(0, 0, 0, true));  // a repeat says nothing new
  const StepGradients& g = ledger.gradients();
  EXPECT_EQ(g.empty[g.EmptyIndex(0, 0, 0)], 0);
  EXPECT_TRUE(*ledger.Notice(0, 1, 0, false));
  EXPECT_FALSE(*ledger.Notice(0, 1, 0, false));
  ledger.MarkLanded(ledger.PopReady());
  EXPECT_FALSE(*ledger.Notice(0, 1, 0, false));
  EXPECT_FALSE(ledger.HasReady());
}

TEST(StepLedger, RefusesAMicroStepBeforeItsTurn) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Ranks(1, 3), {.ring = false, .slots_per_rank = 3});
  EXPECT_EQ(ledger.Notice(0, 1, 0, false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(StepLedger, NamesWhatIsMissing) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Ranks(2, 2), {.ring = false, .slots_per_rank = 2});
  ASSERT_TRUE(ledger.Notice(0, 0, 0, false).ok());
  ASSERT_TRUE(ledger.FirstMissing(0).has_value());
  EXPECT_EQ(ledger.FirstMissing(0)->unit, 0);
  EXPECT_EQ(ledger.FirstMissing(0)->micro, 1);
  ASSERT_TRUE(ledger.Notice(0, 1, 0, false).ok());
  EXPECT_EQ(ledger.FirstMissing(0)->unit, 2);
  ASSERT_TRUE(ledger.Notice(0, 0, 2, false).ok());
  ASSERT_TRUE(ledger.Notice(0, 1, 2, false).ok());
  EXPECT_FALSE(ledger.FirstMissing(0).has_value());
  EXPECT_EQ(ledger.FirstMissing(1)->micro, 0);
}

TEST(StepLedger, HandsTheGradientsOverAndStartsClean) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Ranks(1, 1), {.ring = false, .slots_per_rank = 1});
  StepGradients finished;
  for (int step = 0; step < 3; ++step) {
    EXPECT_FALSE(ledger.complete());
    for (const std::int32_t unit : {2, 0}) {
      EXPECT_TRUE(*ledger.Notice(0, 0, unit, unit == 0));
      ledger.MarkLanded(ledger.PopReady());
    }
    EXPECT_TRUE(ledger.complete());
    ledger.NextStep(&finished);
    EXPECT_EQ(finished.empty[finished.EmptyIndex(0, 0, 0)], 1);
    EXPECT_EQ(finished.empty[finished.EmptyIndex(2, 0, 0)], 0);
    const StepGradients& g = ledger.gradients();
    EXPECT_EQ(g.empty[g.EmptyIndex(0, 0, 0)], 0);
  }
}

RunSpec Shards(std::int32_t ranks, std::int32_t micro_steps) {
  RunSpec run = Ranks(ranks, micro_steps);
  run.shards = true;
  return run;
}

TEST(StepLedger, RanksThatShareASlotCompleteItTogether) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Shards(3, 2), {.ring = false, .slots_per_rank = 2});
  for (const std::int32_t rank : {0, 2}) {
    EXPECT_FALSE(*ledger.Notice(rank, 0, 0, true));
    EXPECT_FALSE(*ledger.Notice(rank, 1, 0, false));
  }
  EXPECT_FALSE(*ledger.Notice(1, 0, 0, true));
  EXPECT_FALSE(*ledger.Notice(1, 0, 0, true)) << "a repeat";
  EXPECT_FALSE(ledger.HasReady());
  EXPECT_TRUE(*ledger.Notice(1, 1, 0, false));
  const StepGradients& g = ledger.gradients();
  EXPECT_EQ(g.ranks, 1U);
  EXPECT_EQ(g.empty[g.EmptyIndex(0, 0, 0)], 1);
  EXPECT_EQ(g.empty[g.EmptyIndex(0, 1, 0)], 0);
}

TEST(StepLedger, RanksThatShareASlotMustAgreeOnIt) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Shards(2, 1), {.ring = false, .slots_per_rank = 1});
  ASSERT_TRUE(ledger.Notice(0, 0, 0, false).ok());
  const absl::Status status = ledger.Notice(1, 0, 0, true).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("disagree on unit \"a\""), std::string::npos);
  StepLedger regions(layout, Shards(2, 1),
                     {.ring = true, .slots_per_rank = 1, .regions = 2});
  ASSERT_TRUE(regions.Notice(0, 0, 0, false, 1).ok());
  EXPECT_EQ(regions.Notice(1, 0, 0, false, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(StepLedger, ASharedRegionIsFreeOnceItsUnitHasLanded) {
  const Layout layout = ThreeUnits();
  StepLedger ledger(layout, Shards(2, 2),
                    {.ring = true, .slots_per_rank = 1, .regions = 1});
  for (std::int32_t micro = 0; micro < 2; ++micro) {
    EXPECT_FALSE(*ledger.Notice(0, micro, 0, false, 0));
    // Another unit cannot have the region meanwhile.
    EXPECT_EQ(ledger.Notice(0, micro, 2, false, 0).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(*ledger.Notice(1, micro, 0, false, 0));
    EXPECT_EQ(ledger.MarkLanded(ledger.PopReady()), micro + 1);
    EXPECT_FALSE(*ledger.Notice(0, micro, 2, false, 0));
    EXPECT_TRUE(*ledger.Notice(1, micro, 2, false, 0));
    EXPECT_EQ(ledger.MarkLanded(ledger.PopReady()), micro + 1);
  }
  EXPECT_TRUE(ledger.complete());
}

}  // namespace
}  // namespace stowage::core
