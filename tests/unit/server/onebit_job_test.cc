// Jobs with OneBitAdam and OneBitLamb: the bits of ranks that swap messages,
// through both phases; state that outlives its run; what is refused.

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "optim/onebit_optimizer.h"
#include "tests/support/local_byte_exchange.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

constexpr std::int64_t kFreeze = 3;
constexpr std::int64_t kSteps = 7;
constexpr std::int32_t kRanks = 2;
constexpr std::int32_t kMicros = 2;

JobSpec OneBitJob(OptimizerKind kind) {
  JobSpec job = SmallJob("onebit", Dtype::kFp32);
  job.optimizer.kind = kind;
  job.optimizer.freeze_step = kFreeze;
  return job;
}

class OneBitJobTest : public JobTest,
                      public ::testing::WithParamInterface<OptimizerKind> {};

// Masters of all trainable tensors, tensor by tensor.
std::vector<std::vector<float>> Masters(testing::FakeRun& run) {
  std::vector<std::vector<float>> masters;
  for (const Layout::Unit& unit : run.rank(0).layout().units()) {
    for (const Layout::Param& param : unit.params) {
      if (param.frozen) continue;
      std::vector<float>& values =
          masters.emplace_back(static_cast<std::size_t>(param.elems));
      EXPECT_TRUE(run.rank(0)
                      .session()
                      .ReadState(param.unit_index, StateKind::kMaster,
                                 param.begin_elems, values)
                      .ok());
    }
  }
  return masters;
}

// What each rank would have with its state of its own and messages between.
std::vector<std::vector<float>> MastersOfRanksApart(const Layout& layout,
                                                    OptimizerKind kind) {
  std::vector<const Layout::Param*> params;
  for (const Layout::Unit& unit : layout.units()) {
    for (const Layout::Param& param : unit.params) {
      if (!param.frozen) params.push_back(&param);
    }
  }
  testing::LocalRanks ranks(kRanks);
  std::vector<std::vector<float>> result;
  ranks.ForEachRank([&](int rank) {
    std::vector<std::vector<float>> p;
    std::vector<std::vector<float>> m;
    std::vector<std::vector<float>> v;
    std::vector<optim::OneBitTensor> tensors;
    for (const Layout::Param* param : params) {
      std::vector<float>& values = p.emplace_back();
      for (std::int64_t i = 0; i < param->elems; ++i) {
        values.push_back(
            InitialValue(param->unit_index, param->begin_elems + i));
      }
      m.emplace_back(values.size());
      v.emplace_back(values.size());
    }
    for (std::size_t k = 0; k < p.size(); ++k) {
      tensors.push_back({.elems = params[k]->elems,
                         .group = params[k]->group_index,
                         .master = p[k].data(),
                         .moment1 = m[k].data(),
                         .moment2 = v[k].data()});
    }
    optim::OneBitOptimizer optimizer(
        {.lamb = kind == OptimizerKind::kOneBitLamb, .freeze_step = kFreeze},
        tensors, Dtype::kFp32, rank, kRanks);
    for (std::int64_t step = 0; step < kSteps; ++step) {
      const ApplyArgs args = MakeApply(step);
      const bool local = optimizer.compressed(step + 1);
      std::vector<std::vector<float>> gradients;
      std::vector<optim::GradientSource> sources;
      for (const Layout::Param* param : params) {
        std::vector<float>& g = gradients.emplace_back();
        for (std::int64_t i = 0; i < param->elems; ++i) {
          float sum = 0;
          bool first = true;
          for (std::int32_t b = 0; b < kRanks * kMicros; ++b) {
            if (local && b % kRanks != rank) continue;
            const float x = BatchGradient(step, b, param->unit_index,
                                          param->begin_elems + i);
            sum = first ? x : sum + x;
            first = false;
          }
          g.push_back(sum);
        }
      }
      for (const auto& g : gradients) sources.push_back({.sum = g.data()});
      ASSERT_TRUE(optimizer
                      .Step(optim::BestKernels(),
                            {.t = step + 1,
                             .gradient_factor =
                                 args.gradient_factor * (local ? kRanks : 1),
                             .groups = args.groups,
                             .gradients = sources},
                            &ranks.exchange(rank))
                      .ok());
    }
    if (rank == 0) result = p;
  });
  return result;
}

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
  RunSpec half = MakeRun(2, 1);
  half.world_size = 4;
  EXPECT_NE(message(job, half).find("2 of 4 ranks"), std::string::npos);
  auto run = StartRun(*registry, job, MakeRun(2, 1));
  ASSERT_NE(run, nullptr);
  Train(*run, 0, 1);
  run->Close(false);
  EXPECT_NE(message(job, MakeRun(3, 1, 'x')).find("the errors of 2 ranks"),
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
