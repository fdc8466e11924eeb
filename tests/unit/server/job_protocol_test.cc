// What a session may say and when: table tests of bad arguments, repeats that
// change nothing, calls out of turn.

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

using testing::FakeRank;
using testing::FakeRun;
using ::testing::HasSubstr;

class JobProtocolTest : public JobTest {};

TEST_F(JobProtocolTest, AttachRefusesWhatIsNoJobOrNoRun) {
  auto registry = MakeRegistry();
  struct Case {
    const char* what;
    std::function<void(JobSpec&, RunSpec&, std::int32_t&)> spoil;
  };
  for (const Case& c : {
           Case{"name", [](auto&j, auto&, auto&) { j.name = "../etc"; }},
           Case{"nonce", [](auto&, auto&r, auto&) { r.nonce = "n"; }},
           Case{"rank", [](auto&, auto&, auto&rank) { rank = 2; }},
           Case{"micro", [](auto&, auto&r, auto&) { r.micro_steps = 0; }},
           Case{"no units", [](auto&j, auto&, auto&) { j.layout.units = {}; }},
           Case{"no groups",
                [](auto&j, auto&, auto&) { j.layout.groups = {}; }},
           Case{"dtype",
                [](auto&j, auto&, auto&) {
                  j.layout.param_dtype = static_cast<Dtype>(77);
                }},
           Case{"group index",
                [](auto&j, auto&, auto&) {
                  j.layout.units[0].params[0].group_index = 3;
                }},
           Case{"negative extent",
                [](auto&j, auto&, auto&) {
                  j.layout.units[0].params[0].shape = {-1};
                }},
           Case{"overflow",
                [](auto&j, auto&, auto&) {
                  j.layout.units[0].params[0].shape = {1LL << 40, 1LL << 40};
                }},
       }) {
    JobSpec job = SmallJob();
    RunSpec run = MakeRun(2, 1);
    std::int32_t rank = 0;
    c.spoil(job, run, rank);
    EXPECT_STATUS(FakeRank::Attach(*registry, job, run, rank).status(),
                  kInvalidArgument)
        << c.what;
  }
  EXPECT_TRUE(registry->List().empty());
  EXPECT_EQ(registry->Info().pinned_bytes, 0);
}

TEST_F(JobProtocolTest, PutStateRefusesBadRangesAndValues) {
  auto registry = MakeRegistry();
  auto started =
      FakeRun::Start(*registry, SmallJob("gpt", Dtype::kFp16), MakeRun(1, 1));
  ASSERT_TRUE(started.ok());
  JobSession& session = (*started)->rank(0).session();
  const std::vector<float> two = {1, 2};
  const std::int64_t elems = session.layout().units()[0].elems;
  struct Case {
    std::int32_t unit;
    std::int64_t begin;
  };
  for (const Case& c : {Case{-1, 0}, Case{4, 0}, Case{INT32_MIN, 0},
                        Case{0, -1}, Case{0, elems - 1}, Case{0, elems + 1},
                        Case{0, INT64_MAX}, Case{0, INT64_MIN}}) {
    EXPECT_STATUS(session.PutState(c.unit, c.begin, two), kInvalidArgument);
  }
  for (const float value : {NAN, INFINITY, -INFINITY, 65520.0F, -1e30F}) {
    const absl::Status status =
        session.PutState(2, 70 * 65 - 1, std::vector<float>{0, value});
    // Element 70*65 is padding: what is there does not matter.
    EXPECT_TRUE(status.ok()) << status;
    const absl::Status refused =
        session.PutState(2, 70 * 65 - 2, std::vector<float>{0, value});
    EXPECT_STATUS(refused, kInvalidArgument);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("\"block.w\""));
  }
  EXPECT_STATUS(session.PutState(0, 0, std::vector<float>{65519.0F}), kOk);
}

TEST_F(JobProtocolTest, InitializationNamesTheFirstGapAndEndsTheRun) {
  auto registry = MakeRegistry();
  auto started = FakeRun::Start(*registry, SmallJob(), MakeRun(2, 1));
  ASSERT_TRUE(started.ok());
  FakeRun& run = **started;
  // Everything but one element of block.norm, by two ranks.
  for (std::int32_t u = 0; u < 4; ++u) {
    const Layout::Unit& unit =
        run.rank(0).layout().units()[static_cast<std::size_t>(u)];
    for (const Layout::Param& param : unit.params) {
      std::vector<float> values(static_cast<std::size_t>(param.elems), 0.5F);
      if (param.name == "block.norm") {
        ASSERT_OK(run.rank(1).session().PutState(
            u, param.begin_elems, std::span<const float>(values).first(7)));
        ASSERT_OK(run.rank(0).session().PutState(
            u, param.begin_elems + 8,
            std::span<const float>(values).subspan(8)));
        continue;
      }
      ASSERT_OK(run.rank(0).session().PutState(u, param.begin_elems, values));
    }
  }
  ASSERT_OK(run.rank(0).session().FinishInitialization());
  const absl::Status gap = run.rank(1).session().FinishInitialization();
  EXPECT_STATUS(gap, kFailedPrecondition);
  EXPECT_THAT(std::string(gap.message()),
              HasSubstr("unit \"block\": parameter \"block.norm\" has no value "
                        "from element 7 on"));
  EXPECT_STATUS(run.rank(0).WaitFailed(), kFailedPrecondition);
}

TEST_F(JobProtocolTest, NothingButInitializationGoesBeforeInitialization) {
  auto registry = MakeRegistry();
  auto started = FakeRun::Start(*registry, SmallJob(), MakeRun(1, 1));
  ASSERT_TRUE(started.ok());
  JobSession& session = (*started)->rank(0).session();
  std::vector<float> out(4);
  EXPECT_STATUS(session.Notice(0, 0, 0, false), kFailedPrecondition);
  EXPECT_STATUS(session.Prepare(0, {}), kFailedPrecondition);
  EXPECT_STATUS(session.Apply(MakeApply(0)), kFailedPrecondition);
  EXPECT_STATUS(session.ReadState(0, StateKind::kMaster, 0, out),
                kFailedPrecondition);
  ASSERT_OK((*started)->Initialize(InitialValue));
  EXPECT_STATUS(session.PutState(0, 0, std::vector<float>{1}),
                kFailedPrecondition);
  EXPECT_STATUS(session.FinishInitialization(), kOk);  // a repeat
}

TEST_F(JobProtocolTest, NoticeRefusesNumbersOutsideTheJob) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 2));
  JobSession& session = run->rank(0).session();
  EXPECT_STATUS(session.Notice(0, 0, -1, false), kInvalidArgument);
  EXPECT_STATUS(session.Notice(0, 0, 4, false), kInvalidArgument);
  EXPECT_STATUS(session.Notice(0, 0, INT32_MAX, false), kInvalidArgument);
  EXPECT_STATUS(session.Notice(0, -1, 0, false), kInvalidArgument);
  EXPECT_STATUS(session.Notice(0, 2, 0, false), kInvalidArgument);
  EXPECT_STATUS(session.Notice(0, 1, 0, false), kFailedPrecondition);
  EXPECT_STATUS(session.Notice(1, 0, 0, false), kFailedPrecondition);
  EXPECT_STATUS(session.Notice(-1, 0, 0, false), kAborted);
  EXPECT_STATUS(session.Notice(INT64_MIN, 0, 0, false), kAborted);
  EXPECT_STATUS(session.Notice(INT64_MAX, 0, 0, false), kFailedPrecondition);
  EXPECT_STATUS(session.Notice(0, 0, 1, false), kOk);  // frozen: no effect
}

TEST_F(JobProtocolTest, PrepareRefusesWhatIsNotComplete) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 2));
  JobSession& session = run->rank(0).session();
  EXPECT_STATUS(session.Prepare(1, {}), kFailedPrecondition);
  EXPECT_STATUS(session.Prepare(-1, {}), kAborted);
  EXPECT_STATUS(session.Prepare(0, std::vector<double>(65537)),
                kInvalidArgument);
  for (const std::int32_t u : {0, 3}) {
    ASSERT_OK(session.Notice(0, 0, u, true));
    ASSERT_OK(session.Notice(0, 1, u, true));
  }
  ASSERT_OK(session.Notice(0, 0, 2, true));
  const absl::Status status = session.Prepare(0, {});
  EXPECT_STATUS(status, kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("unit \"block\", micro step 1"));
}

TEST_F(JobProtocolTest, ApplyRefusesWhatIsOutOfTurnOrBad) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
  JobSession& session = run->rank(0).session();
  EXPECT_STATUS(session.Apply(MakeApply(0)), kFailedPrecondition);
  ASSERT_TRUE(run->Prepare(0, BatchGradient).ok());
  EXPECT_STATUS(session.Apply(MakeApply(1)), kFailedPrecondition);
  EXPECT_STATUS(session.Apply(MakeApply(-1)), kAborted);
  ApplyArgs bad = MakeApply(0);
  bad.groups[0].lr = -1;
  EXPECT_STATUS(session.Apply(bad), kInvalidArgument);
  // Nothing was touched: the step can still be applied.
  EXPECT_EQ(registry->List()[0].step, 0);
  ASSERT_OK(run->Apply(MakeApply(0)));
  EXPECT_STATUS(session.Apply(MakeApply(-1)), kAborted);
}

TEST_F(JobProtocolTest, ReadStateRefusesBadRanges) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  JobSession& session = run->rank(0).session();
  const Layout::Unit& block = session.layout().units()[2];
  std::vector<float> two(2);
  struct Case {
    std::int32_t unit;
    StateKind kind;
    std::int64_t begin;
  };
  for (const Case& c :
       {Case{-1, StateKind::kMaster, 0}, Case{4, StateKind::kParam, 0},
        Case{2, StateKind::kMaster, -1},
        Case{2, StateKind::kMaster, block.trainable_elems - 1},
        Case{2, StateKind::kParam, block.elems - 1},
        Case{2, StateKind::kParam, INT64_MAX}, Case{1, StateKind::kMoment1, 0},
        Case{0, static_cast<StateKind>(9), 0}}) {
    EXPECT_STATUS(session.ReadState(c.unit, c.kind, c.begin, two),
                  kInvalidArgument);
  }
  EXPECT_STATUS(session.ReadState(1, StateKind::kParam, 0, two), kOk);
}

TEST_F(JobProtocolTest, ForwardOrderRefusesBadUnits) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  JobSession& session = run->rank(0).session();
  EXPECT_STATUS(session.SetForwardOrder(std::vector<std::int32_t>{0, 4}, {}),
                kInvalidArgument);
  EXPECT_STATUS(session.SetForwardOrder(std::vector<std::int32_t>{-1}, {}),
                kInvalidArgument);
  EXPECT_STATUS(session.SetForwardOrder(std::vector<std::int32_t>{2, 2}, {}),
                kInvalidArgument);
  // Part of the units is enough; the order changes no bits.
  EXPECT_STATUS(session.SetForwardOrder(std::vector<std::int32_t>{3, 0}, {}),
                kOk);
  Train(*run, 0, 2);
}

TEST_F(JobProtocolTest, RepeatsChangeNothingAndGetTheSameAnswer) {
  auto registry = MakeRegistry();
  auto plain = StartRun(*registry, SmallJob("plain"), MakeRun(2, 2));
  Train(*plain, 0, 3);
  const std::vector<float> expected = plain->rank(0).ReadEverything();

  auto run = StartRun(*registry, SmallJob("noisy"), MakeRun(2, 2));
  for (std::int64_t step = 0; step < 3; ++step) {
    for (std::int32_t micro = 0; micro < 2; ++micro) {
      for (std::int32_t r = 0; r < 2; ++r) {
        FakeRank& rank = run->rank(r);
        ASSERT_OK(rank.Backward(
            step, micro, 2, [&](std::int32_t unit, std::int64_t element) {
              return BatchGradient(step, micro * 2 + r, unit, element);
            }));
        for (std::int32_t u = 0; u < 4; ++u) {
          ASSERT_OK(rank.session().Notice(step, micro, u, true));
        }
      }
    }
    for (std::int32_t r = 0; r < 2; ++r) {
      ASSERT_OK(run->rank(r).session().Prepare(step, {1.0 * r}));
      ASSERT_OK(run->rank(r).session().Prepare(step, {9.0}));
    }
    const auto verdict = run->rank(0).WaitVerdict(step);
    ASSERT_TRUE(verdict.ok());
    EXPECT_EQ(verdict->rank_scalars,
              (std::vector<std::vector<double>>{{0}, {1}}));
    const int told = run->rank(0).verdicts();
    ASSERT_OK(run->rank(0).session().Prepare(step, {}));
    EXPECT_EQ(run->rank(0).verdicts(), told + 1);  // the same answer again
    EXPECT_EQ(run->rank(0).WaitVerdict(step)->sum_of_squares,
              verdict->sum_of_squares);
    ASSERT_OK(run->Apply(MakeApply(step)));
    ASSERT_OK(run->Apply(MakeApply(step)));
    // After the apply, too.
    ASSERT_OK(run->rank(1).session().Prepare(step, {}));
    ASSERT_OK(run->rank(1).session().Notice(step, 1, 0, false));
    EXPECT_EQ(run->rank(1).WaitVerdict(step)->sum_of_squares,
              verdict->sum_of_squares);
  }
  EXPECT_EQ(run->rank(0).ReadEverything(), expected);
  EXPECT_EQ(registry->List()[0].step, 3);
}

TEST_F(JobProtocolTest, ARepeatedApplyWithOtherArgumentsIsRefusedByField) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
  ASSERT_TRUE(run->Prepare(0, BatchGradient).ok());
  ASSERT_OK(run->rank(0).session().Apply(MakeApply(0)));
  ApplyArgs other = MakeApply(0);
  other.groups[1].lr = 0.5;
  const absl::Status status = run->rank(1).session().Apply(other);
  EXPECT_STATUS(status, kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("groups[1].lr"));
}

TEST_F(JobProtocolTest, ASkippedStepMovesStepAndClientStateOnly) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  Train(*run, 0, 1);
  const std::vector<float> before = run->rank(0).ReadEverything();
  ASSERT_TRUE(run->Prepare(1, BatchGradient).ok());
  ASSERT_OK(run->Apply(MakeSkip(1)));
  EXPECT_EQ(run->rank(0).ReadEverything(), before);
  const JobInfo info = registry->List()[0];
  EXPECT_EQ(info.step, 2);
  EXPECT_EQ(info.applied_steps, 1);
  Train(*run, 2, 3);
  EXPECT_EQ(registry->List()[0].applied_steps, 2);
}

TEST_F(JobProtocolTest, AJobWithoutTrainableParametersSteps) {
  JobSpec job = SmallJob();
  for (GroupSpec& group : job.layout.groups) group.frozen = true;
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, job, MakeRun(1, 1));
  ASSERT_NE(run, nullptr);
  const Verdict verdict = Train(*run, 0, 20);
  EXPECT_EQ(verdict.sum_of_squares, 0);
  EXPECT_EQ(registry->List()[0].state_bytes, 0);
}

TEST_F(JobProtocolTest, VersionsAndLandedWordsMoveAsTheFormatSays) {
  RegistryOptions options;
  options.kept_slots_max = 0;
  auto registry = MakeRegistry(options);
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 3));
  FakeRank& rank = run->rank(0);
  EXPECT_TRUE(rank.info().slots_are_ring);
  EXPECT_EQ(rank.info().slots_per_rank, 1);
  for (std::int64_t step = 0; step < 2; ++step) {
    for (std::int32_t u = 0; u < 4; ++u) {
      EXPECT_EQ(rank.words(u).version.load(), step);
      EXPECT_EQ(rank.words(u).landed.load(), step * 3);
    }
    Train(*run, step, step + 1);
  }
}

TEST_F(JobProtocolTest, ThreadsOfRanksMayStepConcurrently) {
  auto registry = MakeRegistry();
  constexpr std::int32_t kRanks = 3;
  auto run = StartRun(*registry, SmallJob(), MakeRun(kRanks, 2));
  std::vector<std::thread> threads;
  for (std::int32_t r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] {
      FakeRank& rank = run->rank(r);
      for (std::int64_t step = 0; step < 8; ++step) {
        ASSERT_TRUE(rank.WaitAllVersions(step));
        for (std::int32_t micro = 0; micro < 2; ++micro) {
          ASSERT_OK(rank.Backward(
              step, micro, 2, [&](std::int32_t unit, std::int64_t element) {
                return BatchGradient(step, micro * kRanks + r, unit, element);
              }));
        }
        ASSERT_OK(rank.session().Prepare(step, {}));
        const auto verdict = rank.WaitVerdict(step);
        ASSERT_TRUE(verdict.ok()) << verdict.status();
        ASSERT_OK(
            rank.session().Apply(step == 5 ? MakeSkip(step) : MakeApply(step)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(run->rank(0).WaitAllVersions(8));
  std::vector<float> ignored(1);
  ASSERT_OK(run->rank(0).session().ReadState(0, StateKind::kMaster, 0,
                                             ignored));  // waits for the commit
  EXPECT_EQ(registry->List()[0].step, 8);
  EXPECT_EQ(registry->List()[0].applied_steps, 7);
}

}  // namespace
}  // namespace stowage::core
