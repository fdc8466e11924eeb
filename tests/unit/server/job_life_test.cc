// How sessions, runs and jobs begin and end.

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

using testing::FakeRank;
using testing::FakeRun;
using ::testing::HasSubstr;

class JobLifeTest : public JobTest {};

TEST_F(JobLifeTest, AReattachedRunGoesOnBitForBit) {
  auto registry = MakeRegistry();
  auto whole = StartRun(*registry, SmallJob("whole"), MakeRun(2, 2));
  Train(*whole, 0, 6);
  const std::vector<float> expected = whole->rank(0).ReadEverything();

  auto first = StartRun(*registry, SmallJob("broken"), MakeRun(2, 2, 'a'));
  Train(*first, 0, 3);
  // Lost in the middle of step 3: some gradients have landed.
  ASSERT_OK(first->rank(0).Backward(
      3, 0, 2, [](std::int32_t, std::int64_t) { return 7.0F; }));
  const std::uint64_t epoch = first->rank(0).info().epoch;
  first->rank(0).Lose("connection reset");
  first->rank(1).Lose("connection reset");

  // The same micro-batches, dealt to another number of ranks.
  auto second = StartRun(*registry, SmallJob("broken"), MakeRun(1, 4, 'b'));
  const AttachInfo& info = second->rank(0).info();
  EXPECT_TRUE(info.initialized);
  EXPECT_GT(info.epoch, epoch);
  EXPECT_EQ(info.step, 3);
  EXPECT_EQ(info.applied_steps, 3);
  EXPECT_EQ(info.client_state, "after 2");
  Train(*second, 3, 6);
  EXPECT_EQ(second->rank(0).ReadEverything(), expected);
}

TEST_F(JobLifeTest, AttachWaitsForTheApplyOfTheRunBefore) {
  auto registry = MakeRegistry();
  for (std::int64_t step = 0; step < 20; ++step) {
    auto run = StartRun(*registry, SmallJob(),
                        MakeRun(1, 1, static_cast<char>('a' + step)));
    ASSERT_EQ(run->rank(0).info().step, step);
    ASSERT_TRUE(run->Prepare(step, BatchGradient).ok());
    ASSERT_OK(run->rank(0).session().Apply(MakeApply(step)));
    run->rank(0).Lose("killed right after apply");
  }
  // The last one was lost too; its apply goes on all the same.
  for (int i = 0; i < 2000 && registry->List()[0].applied_steps < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(registry->List()[0].applied_steps, 20);
}

TEST_F(JobLifeTest, ALostRankEndsTheRunAndOthersHearWhoAndWhy) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(3, 1));
  Train(*run, 0, 1);
  run->rank(1).Lose("the stream was closed");
  for (const std::int32_t r : {0, 2}) {
    const absl::Status status = run->rank(r).WaitFailed();
    EXPECT_STATUS(status, kUnavailable);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("rank 1 (pid 4701) was lost: the stream was closed"));
    EXPECT_EQ(run->rank(r).session().Notice(1, 0, 0, false), status);
    EXPECT_EQ(run->rank(r).session().Prepare(1, {}), status);
    EXPECT_EQ(run->rank(r).session().Apply(MakeApply(1)), status);
  }
  EXPECT_FALSE(run->rank(1).failed());  // it is gone; nobody calls it
  const JobInfo info = registry->List()[0];
  EXPECT_EQ(info.live_sessions, 0);
  EXPECT_EQ(info.step, 1);
  EXPECT_EQ(info.failed_because, "");
}

TEST_F(JobLifeTest, ANewRunMayAttachBeforeTheDeadRunsRanksAreGone) {
  auto registry = MakeRegistry();
  auto old = StartRun(*registry, SmallJob(), MakeRun(2, 1, 'a'));
  Train(*old, 0, 1);
  old->rank(1).Lose("killed");
  auto fresh = StartRun(*registry, SmallJob(), MakeRun(2, 1, 'b'));
  ASSERT_NE(fresh, nullptr);
  EXPECT_FALSE(old->rank(0).session().Notice(1, 0, 0, false).ok());
  old->rank(0).Close(true);  // has no say any more
  Train(*fresh, 1, 2);
  EXPECT_EQ(registry->List()[0].live_sessions, 2);
}

TEST_F(JobLifeTest, ALiveJobRefusesAnotherRunAndTheSameRankTwice) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1, 'a'));
  const auto other =
      FakeRank::Attach(*registry, SmallJob(), MakeRun(2, 1, 'b'), 0);
  EXPECT_STATUS(other.status(), kAlreadyExists);
  EXPECT_THAT(std::string(other.status().message()),
              HasSubstr("in use by another run (rank 0 (pid 4700))"));
  EXPECT_STATUS(
      FakeRank::Attach(*registry, SmallJob(), MakeRun(2, 1, 'a'), 1).status(),
      kAlreadyExists);
  RunSpec differs = MakeRun(2, 3, 'a');
  EXPECT_STATUS(FakeRank::Attach(*registry, SmallJob(), differs, 1).status(),
                kInvalidArgument);
  run->rank(1).Close(false);
  EXPECT_STATUS(
      FakeRank::Attach(*registry, SmallJob(), MakeRun(2, 1, 'a'), 1).status(),
      kFailedPrecondition);
}

TEST_F(JobLifeTest, AnotherLayoutOrOptimizerIsRefusedWithTheDifference) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1, 'a'));
  run->Close(false);
  JobSpec job = SmallJob();
  job.layout.units[2].params[1].shape = {71, 65};
  auto refused = FakeRank::Attach(*registry, job, MakeRun(1, 1, 'b'), 0);
  EXPECT_STATUS(refused.status(), kInvalidArgument);
  EXPECT_THAT(
      std::string(refused.status().message()),
      HasSubstr("\"block.w\" has shape [71, 65], the job has [70, 65]"));
  job = SmallJob();
  job.optimizer.decoupled_weight_decay = false;
  refused = FakeRank::Attach(*registry, job, MakeRun(1, 1, 'b'), 0);
  EXPECT_STATUS(refused.status(), kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("Adam, the job has AdamW"));
  EXPECT_EQ(registry->List().size(), 1U);
}

TEST_F(JobLifeTest, ACleanCloseByAllRanksEndsTheJobAndFreesEverything) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
  EXPECT_EQ(SegmentFiles(), 3);
  ASSERT_TRUE(run->Prepare(0, BatchGradient).ok());
  ASSERT_OK(run->rank(0).session().Apply(MakeApply(0)));
  ASSERT_OK(run->rank(1).session().Apply(MakeApply(0)));
  run->rank(0).Close(true);
  EXPECT_EQ(registry->List().size(), 1U);
  // The other may still read.
  EXPECT_FALSE(run->rank(1).ReadAll(StateKind::kMaster).empty());
  run->rank(1).Close(true);
  EXPECT_TRUE(registry->List().empty());
  EXPECT_EQ(SegmentFiles(), 0);
  EXPECT_EQ(registry->Info().pinned_bytes, 0);
  EXPECT_EQ(registry->Info().locked_bytes, 0);
}

TEST_F(JobLifeTest, ACleanCloseThatKeepsLeavesStateButNoGradients) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
  Train(*run, 0, 2);
  run->rank(0).Close(false);
  run->rank(1).Close(true);
  JobInfo info;
  for (int i = 0; i < 2000 && SegmentFiles() != 1; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(SegmentFiles(), 1);  // the parameters
  info = registry->List()[0];
  EXPECT_EQ(info.gradient_bytes, 0);
  EXPECT_EQ(info.step, 2);
  EXPECT_EQ(registry->Info().pinned_bytes, info.state_bytes + info.param_bytes);
  // Reading a parameter segment of a job is possible after attaching again.
  auto again = StartRun(*registry, SmallJob(), MakeRun(1, 2, 'b'));
  EXPECT_EQ(again->rank(0).info().step, 2);
  Train(*again, 2, 3);
}

TEST_F(JobLifeTest, ARankThatLeavesWhileOthersWaitForItFailsThem) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
  FakeRank& waiting = run->rank(0);
  ASSERT_OK(waiting.Backward(0, 0, 1, [](auto, auto) { return 1.0F; }));
  ASSERT_OK(waiting.session().Prepare(0, {}));
  run->rank(1).Close(false);
  EXPECT_STATUS(waiting.WaitFailed(), kUnavailable);
}

TEST_F(JobLifeTest, PrepareAfterARankHasLeftSaysSo) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
  run->rank(1).Close(false);
  FakeRank& rank = run->rank(0);
  ASSERT_OK(rank.Backward(0, 0, 1, [](auto, auto) { return 1.0F; }));
  const absl::Status status = rank.session().Prepare(0, {});
  EXPECT_STATUS(status, kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 (pid 4701)"));
}

TEST_F(JobLifeTest, AJobThatWasNeverInitializedStartsAgain) {
  auto registry = MakeRegistry();
  {
    auto run = FakeRun::Start(*registry, SmallJob(), MakeRun(2, 1, 'a'));
    ASSERT_TRUE(run.ok());
    ASSERT_OK((*run)->rank(0).PutAll([](auto, auto) { return 9.0F; }));
    (*run)->rank(0).Lose("killed");
    (*run)->rank(1).Lose("killed");
  }
  EXPECT_TRUE(registry->List().empty());
  EXPECT_EQ(SegmentFiles(), 0);
  // Even with another layout: there was nothing to keep.
  JobSpec job = SmallJob("gpt", Dtype::kFp32);
  auto run = StartRun(*registry, job, MakeRun(1, 1, 'b'));
  ASSERT_NE(run, nullptr);
  EXPECT_FALSE(run->rank(0).info().initialized);
  Train(*run, 0, 1);
}

TEST_F(JobLifeTest, DropRefusesLiveJobsAndForgetsOthers) {
  auto registry = MakeRegistry();
  EXPECT_STATUS(registry->Drop("gpt"), kNotFound);
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  EXPECT_STATUS(registry->Drop("gpt"), kFailedPrecondition);
  run->Close(false);
  EXPECT_STATUS(registry->Drop("gpt"), kOk);
  EXPECT_EQ(SegmentFiles(), 0);
  EXPECT_EQ(registry->Info().pinned_bytes, 0);
}

TEST_F(JobLifeTest, StopFailsSessionsFinishesAppliesAndRemovesSegments) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  ASSERT_TRUE(run->Prepare(0, BatchGradient).ok());
  ASSERT_OK(run->rank(0).session().Apply(MakeApply(0)));
  registry->Stop();
  registry->Stop();
  const absl::Status status = run->rank(0).WaitFailed();
  EXPECT_STATUS(status, kUnavailable);
  EXPECT_EQ(status.message(), "server is stopping");
  EXPECT_EQ(run->rank(0).words(0).version.load(), 1U);
  EXPECT_EQ(SegmentFiles(), 0);
  EXPECT_STATUS(
      FakeRank::Attach(*registry, SmallJob("b"), MakeRun(1, 1), 0).status(),
      kUnavailable);
  std::vector<float> out(1);
  EXPECT_FALSE(
      run->rank(0).session().ReadState(0, StateKind::kMaster, 0, out).ok());
  EXPECT_FALSE(
      run->rank(0).session().PutState(0, 0, std::vector<float>{1}).ok());
}

TEST_F(JobLifeTest, ManyRanksAttachingAtOnceMakeOneRun) {
  auto registry = MakeRegistry();
  constexpr std::int32_t kRanks = 8;
  const RunSpec spec = MakeRun(kRanks, 1);
  std::vector<std::unique_ptr<FakeRank>> ranks(kRanks);
  std::vector<std::thread> threads;
  for (std::int32_t r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] {
      auto rank = FakeRank::Attach(*registry, SmallJob(), spec, r);
      ASSERT_TRUE(rank.ok()) << rank.status();
      ranks[static_cast<std::size_t>(r)] = *std::move(rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& rank : ranks) {
    EXPECT_EQ(rank->info().epoch, ranks[0]->info().epoch);
  }
  EXPECT_EQ(registry->List().size(), 1U);
}

TEST_F(JobLifeTest, RunsAndDropsOfOneNameMayRace) {
  auto registry = MakeRegistry();
  std::atomic<int> attached{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        RunSpec run = MakeRun(1, 1);
        run.nonce += std::to_string(t) + "." + std::to_string(i);
        auto rank = FakeRank::Attach(*registry, SmallJob(), run, 0);
        if (rank.ok()) {
          attached.fetch_add(1);
          if (i % 2 == 0) (*rank)->Lose("test");
          if (i % 2 == 1) (*rank)->Close(true);
        } else {
          EXPECT_EQ(rank.status().code(), absl::StatusCode::kAlreadyExists)
              << rank.status();
        }
        registry->Drop("gpt").IgnoreError();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(attached.load(), 0);
  EXPECT_TRUE(registry->List().empty());
  EXPECT_EQ(registry->Info().pinned_bytes, 0);
  EXPECT_EQ(SegmentFiles(), 0);
}

TEST_F(JobLifeTest, SessionsThatAreOnlyDestroyedCountAsLost) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
  {
    auto started = FakeRun::Start(*registry, SmallJob("other"), MakeRun(1, 1));
    ASSERT_TRUE(started.ok());
  }
  EXPECT_EQ(registry->List().size(), 1U);
  run.reset();
  EXPECT_EQ(registry->List()[0].live_sessions, 0);
}

}  // namespace

int JobTest::SegmentFiles() const {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(folder_.path())) {
    if (entry.path().extension() != ".lock") ++files;
  }
  return files;
}

}  // namespace stowage::core
