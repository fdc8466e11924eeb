// Runs over several nodes: a node that gave its verdict and was cut off before
// the apply ends that step later; ranks that share a gradient segment.

#include <chrono>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

using ::testing::HasSubstr;

class RollForwardTest : public JobTest {
 protected:
  static RunSpec TwoNodes(char nonce) {
    RunSpec run = MakeRun(2, 1, nonce);
    run.world_size = 4;
    return run;
  }
  static void WaitFreed(JobRegistry& registry) {
    for (int i = 0; i < 1000 && registry.List()[0].gradient_bytes > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EXPECT_EQ(registry.List()[0].gradient_bytes, 0);
  }
};

TEST_F(RollForwardTest, EndsThePreparedStepWithTheSameBits) {
  auto registry = MakeRegistry();
  auto whole = StartRun(*registry, SmallJob("whole"), TwoNodes('w'));
  Train(*whole, 0, 3);
  const std::vector<float> expected = whole->rank(0).ReadEverything();

  auto cut = StartRun(*registry, SmallJob("cut"), TwoNodes('c'));
  Train(*cut, 0, 2);
  ASSERT_OK(cut->Prepare(2, BatchGradient).status());
  EXPECT_STATUS(registry->RollForward("cut", MakeApply(2)),
                kFailedPrecondition);  // its ranks are still there
  for (const std::int32_t r : {0, 1}) cut->rank(r).Lose("killed");
  ASSERT_TRUE(registry->List()[0].name == "cut");
  EXPECT_TRUE(registry->List()[0].prepared);
  const absl::Status other = registry->RollForward("cut", MakeApply(3));
  EXPECT_STATUS(other, kFailedPrecondition);
  EXPECT_THAT(std::string(other.message()), HasSubstr("step 2 is prepared"));
  ASSERT_OK(registry->RollForward("cut", MakeApply(2)));
  ASSERT_OK(registry->RollForward("cut", MakeApply(2)));  // a repeat
  EXPECT_FALSE(registry->List()[0].prepared);
  WaitFreed(*registry);
  auto next = StartRun(*registry, SmallJob("cut"), TwoNodes('d'));
  EXPECT_EQ(next->rank(0).info().step, 3);
  EXPECT_EQ(next->rank(0).info().client_state, "after 2");
  EXPECT_EQ(next->rank(0).ReadEverything(), expected);
}

TEST_F(RollForwardTest, ANewRunThatDoesNotFollowBeginsAtTheCommittedStep) {
  auto registry = MakeRegistry();
  auto cut = StartRun(*registry, SmallJob(), TwoNodes('c'));
  Train(*cut, 0, 1);
  ASSERT_OK(cut->Prepare(1, BatchGradient).status());
  for (const std::int32_t r : {0, 1}) cut->rank(r).Lose("killed");
  auto next = StartRun(*registry, SmallJob(), TwoNodes('d'));
  EXPECT_EQ(next->rank(0).info().step, 1);
  Train(*next, 1, 2);
}

TEST_F(RollForwardTest, NothingIsKeptOfOneNodesRunOrBeforeTheVerdict) {
  auto registry = MakeRegistry();
  auto alone = StartRun(*registry, SmallJob(), MakeRun(2, 1, 'a'));
  ASSERT_OK(alone->Prepare(0, BatchGradient).status());
  for (const std::int32_t r : {0, 1}) alone->rank(r).Lose("killed");
  EXPECT_FALSE(registry->List()[0].prepared);
  WaitFreed(*registry);
  auto early = StartRun(*registry, SmallJob(), TwoNodes('b'));
  ASSERT_OK(early->rank(0).Backward(
      0, 0, 1, [](std::int32_t, std::int64_t) { return 1.0F; }));
  for (const std::int32_t r : {0, 1}) early->rank(r).Lose("killed");
  EXPECT_FALSE(registry->List()[0].prepared);
  const absl::Status none = registry->RollForward("gpt", MakeApply(0));
  EXPECT_STATUS(none, kFailedPrecondition);
  EXPECT_THAT(std::string(none.message()), HasSubstr("no step is prepared"));
  EXPECT_STATUS(registry->RollForward("nobody", MakeApply(0)), kNotFound);
  WaitFreed(*registry);
}

// Ranks that share a segment write parts of one gradient. Here all write all of
// it, equally: the state is that of one rank.
TEST_F(RollForwardTest, RanksThatShareASegmentAreOneRankToTheState) {
  auto registry = MakeRegistry();
  const auto train = [&](const std::string& name, const RunSpec& run_spec) {
    auto run = StartRun(*registry, SmallJob(name), run_spec);
    for (std::int64_t step = 0; step < 3; ++step) {
      for (std::int32_t micro = 0; micro < run_spec.micro_steps; ++micro) {
        for (std::int32_t r = 0; r < run_spec.local_ranks; ++r) {
          EXPECT_TRUE(
              run->rank(r)
                  .Backward(step, micro, run_spec.micro_steps,
                            [&](std::int32_t unit, std::int64_t element) {
                              return BatchGradient(step, micro, unit, element);
                            })
                  .ok());
        }
      }
      for (std::int32_t r = 0; r < run_spec.local_ranks; ++r) {
        EXPECT_TRUE(run->rank(r).session().Prepare(step, {}).ok());
      }
      EXPECT_TRUE(run->rank(0).WaitVerdict(step).ok());
      EXPECT_TRUE(run->Apply(MakeApply(step)).ok());
    }
    return run->rank(0).ReadEverything();
  };
  for (const std::int32_t micro_steps : {1, 2, 8}) {
    RunSpec shards = MakeRun(3, micro_steps, 's');
    shards.shards = true;
    EXPECT_EQ(train("shared" + std::to_string(micro_steps), shards),
              train("one" + std::to_string(micro_steps),
                    MakeRun(1, micro_steps, 'o')));
  }
}

}  // namespace
}  // namespace stowage::core
