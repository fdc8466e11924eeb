// Admission, figures, and clients that break their segments.

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/segment_format.h"
#include "gmock/gmock.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

using testing::FakeRank;
using ::testing::HasSubstr;

class JobLimitsTest : public JobTest {
 protected:
  std::string Path(const std::string& file) const {
    return folder_.path() + "/" + file;
  }
};

TEST_F(JobLimitsTest, AJobThatCannotFitIsRefusedWithTheFigure) {
  RegistryOptions options;
  options.memory_limit_bytes = 3 << 20;
  auto registry = MakeRegistry(options);
  auto small = StartRun(*registry, SmallJob("small"), MakeRun(1, 1));
  ASSERT_NE(small, nullptr);
  const std::int64_t held = registry->Info().pinned_bytes;
  JobSpec big = SmallJob("big");
  big.layout.units[0].params[0].shape = {1000, 1000};
  const auto refused = FakeRank::Attach(*registry, big, MakeRun(2, 1), 0);
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  const std::string text(refused.status().message());
  EXPECT_THAT(text, HasSubstr("job \"big\" (optimizer state "));
  EXPECT_THAT(text, HasSubstr("3145728"));
  EXPECT_THAT(text, HasSubstr(std::to_string(held)));
  // Nothing is left of the refused one, and the other goes on.
  EXPECT_EQ(registry->List().size(), 1U);
  EXPECT_EQ(registry->Info().pinned_bytes, held);
  EXPECT_EQ(SegmentFiles(), 2);
  Train(*small, 0, 2);
  small->Close(true);
  EXPECT_EQ(registry->Info().pinned_bytes, 0);
}

// A few bytes of shape must not cost the server gigabytes of tables before it
// says no (found by manifest_fuzz), nor half a gigabyte of page faults that the
// steps of other jobs wait for (found by hostile_training_test).
TEST_F(JobLimitsTest, AShapeBeyondAnyMemoryIsRefusedBeforeItsTablesAreMade) {
  auto registry = MakeRegistry({});
  for (const int bits : {41, 40, 31}) {  // the registry's memory is 2^30 bytes
    JobSpec huge = SmallJob("huge");
    huge.layout.units[0].params[0].shape = {std::int64_t{1} << bits};
    const auto refused = FakeRank::Attach(*registry, huge, MakeRun(1, 1), 0);
    ASSERT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted)
        << refused.status();
    EXPECT_THAT(std::string(refused.status().message()),
                HasSubstr("the server's memory limit is 1073741824 bytes"));
    EXPECT_TRUE(registry->List().empty());
  }
}

TEST_F(JobLimitsTest, AReattachThatCannotFitLeavesTheState) {
  RegistryOptions options;
  options.memory_limit_bytes = 2 << 20;
  auto registry = MakeRegistry(options);
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1, 'a'));
  ASSERT_NE(run, nullptr);
  Train(*run, 0, 2);
  const std::vector<float> state = run->rank(0).ReadEverything();
  run->Close(false);
  const auto refused =
      FakeRank::Attach(*registry, SmallJob(), MakeRun(30, 1, 'b'), 0);
  EXPECT_STATUS(refused.status(), kResourceExhausted);
  auto again = StartRun(*registry, SmallJob(), MakeRun(1, 1, 'c'));
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(again->rank(0).info().step, 2);
  EXPECT_EQ(again->rank(0).ReadEverything(), state);
}

TEST_F(JobLimitsTest, PinnedBytesAreTheSumOfWhatTheJobSays) {
  for (const int kept_slots_max : {6, 0}) {
    RegistryOptions options;
    options.kept_slots_max = kept_slots_max;
    auto registry = MakeRegistry(options);
    auto run = StartRun(*registry, SmallJob(), MakeRun(2, 2));
    const Layout& layout = run->rank(0).layout();
    const JobInfo info = registry->List()[0];
    EXPECT_EQ(info.param_bytes, ParamSegmentBytes(layout));
    EXPECT_GE(info.state_bytes, 12 * layout.state_elems());
    EXPECT_GE(info.gradient_bytes,
              2 * GradientSegmentBytes(layout, kept_slots_max == 0 ? 1 : 2));
    const ServerInfo server = registry->Info();
    EXPECT_EQ(server.pinned_bytes,
              info.state_bytes + info.param_bytes + info.gradient_bytes);
    EXPECT_EQ(server.memory_limit_bytes, 1 << 30);
    EXPECT_GT(server.rss_bytes, 0);
    EXPECT_EQ(server.threads, 2);
    EXPECT_EQ(server.pid, ::getpid());
    EXPECT_FALSE(server.isa.empty());
    EXPECT_TRUE(server.locked_bytes == 0 ||
                server.locked_bytes == server.pinned_bytes);
    run->Close(true);
  }
}

TEST_F(JobLimitsTest, PinMemoryLocksTheJobsMemory) {
  RegistryOptions options;
  options.lock_memory = true;
  auto registry = MakeRegistry(options);
  std::int64_t locked[2] = {};
  for (const bool pin : {false, true}) {
    JobSpec job = SmallJob();
    job.storage.pin_memory = pin;
    auto run = StartRun(*registry, job, MakeRun(1, 1));
    ASSERT_NE(run, nullptr);
    locked[pin ? 1 : 0] = registry->Info().locked_bytes;
    run->Close(true);
  }
  EXPECT_EQ(locked[0], 0);
  if (locked[1] == 0) GTEST_SKIP() << "memory may not be locked here";
  EXPECT_GE(locked[1], 12 * Layout::Create(SmallModel())->state_elems());
}

TEST_F(JobLimitsTest, MoreJobsThanAllowedAreRefused) {
  RegistryOptions options;
  options.jobs_max = 2;
  auto registry = MakeRegistry(options);
  auto a = StartRun(*registry, SmallJob("a"), MakeRun(1, 1));
  auto b = StartRun(*registry, SmallJob("b"), MakeRun(1, 1));
  EXPECT_STATUS(
      FakeRank::Attach(*registry, SmallJob("c"), MakeRun(1, 1), 0).status(),
      kResourceExhausted);
  b->Close(true);
  EXPECT_TRUE(
      FakeRank::Attach(*registry, SmallJob("c"), MakeRun(1, 1), 0).ok());
}

TEST_F(JobLimitsTest, ATruncatedGradientSegmentFailsItsRunAlone) {
  for (const int kept_slots_max : {6, 0}) {
    RegistryOptions options;
    options.kept_slots_max = kept_slots_max;
    auto registry = MakeRegistry(options);
    auto victim = StartRun(*registry, SmallJob("victim"), MakeRun(2, 1));
    auto other = StartRun(*registry, SmallJob("other"), MakeRun(2, 1));
    Train(*victim, 0, 1);
    const std::vector<float> before = victim->rank(0).ReadEverything();
    for (std::int32_t r = 0; r < 2; ++r) {
      for (const std::int32_t u : {0, 2, 3}) {
        victim->rank(r).WriteGradient(0, u, [](auto, auto) { return 1.0F; });
      }
    }
    ASSERT_EQ(
        ::truncate(Path(victim->rank(1).info().gradient_segment).c_str(), 4096),
        0);
    for (std::int32_t r = 0; r < 2; ++r) {
      for (const std::int32_t u : {0, 2, 3}) {
        victim->rank(r).session().Notice(1, 0, u, false).IgnoreError();
      }
    }
    for (std::int32_t r = 0; r < 2; ++r) {
      const absl::Status status = victim->rank(r).WaitFailed();
      EXPECT_STATUS(status, kDataLoss);
      EXPECT_THAT(std::string(status.message()),
                  HasSubstr("job \"victim\": the gradient segment of rank 1"));
      EXPECT_THAT(std::string(status.message()), HasSubstr("truncated"));
    }
    Train(*other, 0, 3);
    other->Close(true);
    // Nothing had been applied: the state is that of the committed step.
    victim->rank(0).Lose("failed");
    victim->rank(1).Lose("failed");
    auto again = StartRun(*registry, SmallJob("victim"), MakeRun(2, 1, 'b'));
    ASSERT_NE(again, nullptr);
    EXPECT_EQ(again->rank(0).info().step, 1);
    EXPECT_EQ(again->rank(0).ReadEverything(), before);
    Train(*again, 1, 2);
    again->Close(true);
  }
}

TEST_F(JobLimitsTest, ATruncatedParameterSegmentFailsTheJobForGood) {
  auto registry = MakeRegistry();
  auto victim = StartRun(*registry, SmallJob("victim"), MakeRun(1, 1));
  auto other = StartRun(*registry, SmallJob("other"), MakeRun(1, 1));
  Train(*victim, 0, 1);
  ASSERT_TRUE(victim->Prepare(1, BatchGradient).ok());
  ASSERT_EQ(::truncate(Path(victim->rank(0).info().param_segment).c_str(), 0),
            0);
  ASSERT_OK(victim->rank(0).session().Apply(MakeApply(1)));
  const absl::Status status = victim->rank(0).WaitFailed();
  EXPECT_STATUS(status, kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("parameter segment"));
  Train(*other, 0, 2);
  victim->rank(0).Lose("failed");
  EXPECT_NE(registry->Drop("nothing").code(), absl::StatusCode::kOk);
  bool listed = false;
  for (const JobInfo& info : registry->List()) {
    if (info.name != "victim") continue;
    listed = true;
    EXPECT_THAT(info.failed_because, HasSubstr("parameter segment"));
  }
  EXPECT_TRUE(listed);
  const auto again =
      FakeRank::Attach(*registry, SmallJob("victim"), MakeRun(1, 1, 'b'), 0);
  EXPECT_STATUS(again.status(), kDataLoss);
  EXPECT_THAT(std::string(again.status().message()), HasSubstr("drop it"));
  EXPECT_STATUS(registry->Drop("victim"), kOk);
}

TEST_F(JobLimitsTest, GarbageInAGradientSegmentHurtsNobodyElse) {
  auto registry = MakeRegistry();
  auto victim = StartRun(*registry, SmallJob("victim"), MakeRun(2, 1));
  auto other = StartRun(*registry, SmallJob("other"), MakeRun(1, 1));
  FakeRank& rank = victim->rank(1);
  // Header, waiters word and slots: all bits set (a NaN in every type).
  auto* begin = reinterpret_cast<std::byte*>(&rank.gradient_header());
  std::fill_n(begin, GradientSegmentBytes(rank.layout(), 1), std::byte{0xff});
  for (std::int32_t r = 0; r < 2; ++r) {
    for (const std::int32_t u : {0, 2, 3}) {
      ASSERT_OK(victim->rank(r).session().Notice(0, 0, u, false));
    }
    ASSERT_OK(victim->rank(r).session().Prepare(0, {}));
  }
  const auto verdict = victim->rank(0).WaitVerdict(0);
  ASSERT_TRUE(verdict.ok());
  EXPECT_FALSE(std::isfinite(verdict->sum_of_squares));
  EXPECT_EQ(verdict->first_nonfinite_param, "embed.w");
  ASSERT_OK(victim->Apply(MakeSkip(0)));
  Train(*other, 0, 3);
}

TEST_F(JobLimitsTest, CreateRefusesBadOptions) {
  const auto create = [&](auto spoil) {
    RegistryOptions options;
    options.shm_dir = folder_.path();
    spoil(options);
    return JobRegistry::Create(options).status();
  };
  EXPECT_STATUS(create([](auto& o) { o.shm_dir = "here"; }), kInvalidArgument);
  EXPECT_STATUS(create([](auto& o) { o.shm_dir = ""; }), kInvalidArgument);
  EXPECT_STATUS(create([](auto& o) { o.threads = -1; }), kInvalidArgument);
  EXPECT_STATUS(create([](auto& o) { o.threads = 100000; }), kInvalidArgument);
  EXPECT_STATUS(create([](auto& o) { o.memory_limit_bytes = -1; }),
                kInvalidArgument);
  EXPECT_STATUS(create([](auto& o) { o.kept_slots_max = 65; }),
                kInvalidArgument);
  EXPECT_STATUS(create([](auto& o) { o.jobs_max = 0; }), kInvalidArgument);
  EXPECT_STATUS(create([](auto& o) { o.isa = "avx9"; }), kInvalidArgument);
  EXPECT_STATUS(create([](auto& o) { o.server_id = "a/b"; }), kInvalidArgument);
  ASSERT_EQ(::chmod(folder_.path().c_str(), 0750), 0);
  const absl::Status open = create([](auto&) {});
  EXPECT_STATUS(open, kPermissionDenied);
  EXPECT_THAT(std::string(open.message()), HasSubstr(folder_.path()));
  ASSERT_EQ(::chmod(folder_.path().c_str(), 0700), 0);
}

}  // namespace
}  // namespace stowage::core
