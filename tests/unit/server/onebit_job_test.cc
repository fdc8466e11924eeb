// Jobs with OneBitAdam and OneBitLamb: the bits of ranks that swap messages,
// through both phases; state that outlives its run; what is refused.

#include "tests/unit/server/onebit_job.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace stowage::core {
namespace {

class OneBitJobTest : public JobTest,
                      public ::testing::WithParamInterface<OptimizerKind> {};

TEST_P(OneBitJobTest, GivesTheBitsOfRanksThatSwapMessages) {
  for (const int threads : {1, 3}) {
    RegistryOptions options;
    options.threads = threads;
    auto registry = MakeRegistry(options);
    auto run =
        StartRun(*registry, OneBitJob(GetParam()), MakeRun(kRanks, kMicros));
    ASSERT_NE(run, nullptr);
    const Verdict last = Train(*run, 0, kSteps);
    EXPECT_EQ(Masters(*run),
              MastersOfRanksApart(run->rank(0).layout(), GetParam()));
    EXPECT_EQ(last.compression.rounds, kSteps - kFreeze - 1);
    EXPECT_GT(last.compression.error, 0);
    EXPECT_LT(last.compression.error, 1);
    EXPECT_EQ(last.trust_ratios.tensors > 0,
              GetParam() == OptimizerKind::kOneBitLamb);
    EXPECT_EQ(registry->List()[0].compression.rounds, kSteps - kFreeze);
    run->Close(true);
  }
}

TEST_P(OneBitJobTest, GoesOnInANewRunAsIfNeverStopped) {
  auto registry = MakeRegistry();
  const JobSpec job = OneBitJob(GetParam());
  auto whole = StartRun(*registry, job, MakeRun(kRanks, kMicros));
  ASSERT_NE(whole, nullptr);
  Train(*whole, 0, kSteps);
  const std::vector<float> want = whole->rank(0).ReadEverything();
  whole->Close(true);
  for (const std::int64_t stop : {std::int64_t{2}, kFreeze, kFreeze + 2}) {
    auto first = StartRun(*registry, job, MakeRun(kRanks, kMicros));
    ASSERT_NE(first, nullptr);
    Train(*first, 0, stop);
    first->Close(false);
    auto second = StartRun(*registry, job, MakeRun(kRanks, kMicros, 'x'));
    ASSERT_NE(second, nullptr);
    EXPECT_EQ(second->rank(0).info().step, stop);
    Train(*second, stop, kSteps);
    const std::vector<float> got = second->rank(0).ReadEverything();
    EXPECT_TRUE(
        got.size() == want.size() &&
        std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0)
        << "stopped after " << stop;
    second->Close(true);
  }
}

TEST_P(OneBitJobTest, RefusesWhatItCannotKeepApart) {
  auto registry = MakeRegistry();
  const JobSpec job = OneBitJob(GetParam());
  const auto message = [&](const JobSpec& spec, const RunSpec& run) {
    return std::string(
        testing::FakeRun::Start(*registry, spec, run).status().message());
  };
  EXPECT_NE(message(job, MakeRun(5, 13)).find("at most 64"), std::string::npos);
  auto run = StartRun(*registry, job, MakeRun(2, 1));
  ASSERT_NE(run, nullptr);
  Train(*run, 0, 1);
  run->Close(false);
  EXPECT_NE(message(job, MakeRun(3, 1, 'x')).find("the errors of 2 ranks"),
            std::string::npos);
  // As many ranks as no signs can be added of, whatever a client says.
  RunSpec crowd = MakeRun(1, 1, 'y');
  crowd.world_size = optim::kOneBitRanksMax + 1;
  EXPECT_NE(message(OneBitJob(GetParam(), "crowd"), crowd).find("at most 1024"),
            std::string::npos);
  RunSpec half = MakeRun(2, 1, 'x');
  half.world_size = 4;
  EXPECT_NE(message(job, half).find("ranks 0 to 1 of 4; its 1-bit optimizer"),
            std::string::npos);
  JobSpec other = job;
  other.optimizer.freeze_step = 9;
  EXPECT_NE(message(other, MakeRun(2, 1, 'x')).find("the job's is 3"),
            std::string::npos);
}

TEST_P(OneBitJobTest, MemoryOfTheErrorsIsCounted) {
  const JobSpec job = OneBitJob(GetParam());
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, job, MakeRun(2, 1));
  ASSERT_NE(run, nullptr);
  const std::int64_t with = registry->Info().pinned_bytes;
  const std::int64_t elems = run->rank(0).layout().trainable_count();
  run->Close(true);
  run.reset();
  JobSpec plain = job;
  plain.optimizer = {};
  auto other = StartRun(*registry, plain, MakeRun(2, 1));
  ASSERT_NE(other, nullptr);
  const std::int64_t errors = with - registry->Info().pinned_bytes;
  // Two ranks' errors and a server's for each element, at least.
  EXPECT_GE(errors, 3 * 4 * elems);
  other->Close(true);
}

INSTANTIATE_TEST_SUITE_P(Both, OneBitJobTest,
                         ::testing::Values(OptimizerKind::kOneBitAdam,
                                           OptimizerKind::kOneBitLamb),
                         [](const auto& param) {
                           return param.param == OptimizerKind::kOneBitAdam
                                      ? "Adam"
                                      : "Lamb";
                         });

}  // namespace
}  // namespace stowage::core
