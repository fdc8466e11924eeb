// A whole training run over stowd: same bits as in process, re-attach, several
// ranks, ring slots, reading and writing state.

#include <cstring>
#include <thread>
#include <vector>

#include "tests/integration/client_server_fixture.h"

namespace stowage::testing {
namespace {

class ClientServerTrain : public ClientServerTest {
 protected:
  // Runs steps [begin, end) on all ranks at once, one thread each.
  static void Train(std::vector<std::unique_ptr<ClientRank>>& ranks,
                    std::int64_t begin, std::int64_t end,
                    std::vector<double>* sums) {
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      threads.emplace_back([&ranks, r, begin, end, sums] {
        for (std::int64_t step = begin; step < end; ++step) {
          const auto verdict = ranks[r]->Step(step);
          ASSERT_TRUE(verdict.ok()) << verdict.status();
          EXPECT_EQ(verdict->rank_scalars.size(), ranks.size());
          if (r == 0) sums->push_back(verdict->sum_of_squares);
        }
        for (std::int32_t u = 0; u < ranks[r]->session().layout().unit_count();
             ++u) {
          ASSERT_TRUE(ranks[r]->session().WaitVersion(u, end).ok());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  std::vector<std::unique_ptr<ClientRank>> AttachAll(const JobSpec& job,
                                                     const RunSpec& run) {
    std::vector<std::unique_ptr<ClientRank>> ranks;
    for (std::int32_t r = 0; r < run.local_ranks; ++r) {
      auto rank = ClientRank::Attach(server_->address(), job, run, r);
      EXPECT_TRUE(rank.ok()) << rank.status();
      if (!rank.ok()) return {};
      ranks.push_back(*std::move(rank));
    }
    return ranks;
  }

  static void InitializeAll(std::vector<std::unique_ptr<ClientRank>>& ranks) {
    std::vector<std::thread> threads;
    for (auto& rank : ranks) {
      threads.emplace_back([&rank] {
        const absl::Status status = rank->Initialize();
        EXPECT_TRUE(status.ok()) << status;
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  static void CloseAll(std::vector<std::unique_ptr<ClientRank>>& ranks,
                       bool close_job) {
    std::vector<std::thread> threads;
    for (auto& rank : ranks) {
      threads.emplace_back([&rank, close_job] {
        const absl::Status status = rank->session().Close(close_job);
        EXPECT_TRUE(status.ok()) << status;
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  // The same run against the core in this process.
  static void InProcess(const JobSpec& job, const RunSpec& run,
                        std::int64_t steps, std::vector<double>* sums,
                        std::vector<float>* state) {
    const ShmFolder shm;
    core::RegistryOptions options;
    options.memory_limit_bytes = 256 << 20;
    options.threads = 2;
    options.shm_dir = shm.path();
    options.server_id = "inprocess0000000";
    auto registry = core::JobRegistry::Create(options);
    ASSERT_TRUE(registry.ok()) << registry.status();
    auto started = FakeRun::Start(**registry, job, run);
    ASSERT_TRUE(started.ok()) << started.status();
    FakeRun& fake = **started;
    ASSERT_TRUE(fake.Initialize(InitialValue).ok());
    for (std::int64_t step = 0; step < steps; ++step) {
      auto verdict = fake.Prepare(step, BatchGradient);
      ASSERT_TRUE(verdict.ok()) << verdict.status();
      sums->push_back(verdict->sum_of_squares);
      for (std::int32_t r = 0; r < fake.ranks(); ++r) {
        ASSERT_TRUE(fake.rank(r).session().Apply(ApplyFor(step)).ok());
      }
      ASSERT_TRUE(fake.rank(0).WaitAllVersions(step + 1));
    }
    *state = fake.rank(0).ReadEverything();
    for (std::int32_t r = 0; r < fake.ranks(); ++r) fake.rank(r).Close(true);
  }
};

TEST_F(ClientServerTrain, GivesTheBitsOfTheSameRunInProcess) {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp32}) {
    for (const std::int32_t ranks : {1, 2}) {
      SCOPED_TRACE(absl::StrCat(ranks, " ranks"));
      StartServer();
      const JobSpec job = SmallJob("train", dtype);
      const RunSpec run = SmallRun(ranks, 4 / ranks);
      std::vector<double> expected_sums;
      std::vector<float> expected;
      InProcess(job, run, 6, &expected_sums, &expected);
      auto all = AttachAll(job, run);
      ASSERT_EQ(all.size(), static_cast<std::size_t>(ranks));
      EXPECT_FALSE(all[0]->session().info().initialized);
      InitializeAll(all);
      std::vector<double> sums;
      Train(all, 0, 6, &sums);
      EXPECT_EQ(sums, expected_sums);
      const std::vector<float> got = all[0]->ReadEverything();
      ASSERT_EQ(got.size(), expected.size());
      EXPECT_EQ(
          std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)),
          0);
      CloseAll(all, true);
      EXPECT_TRUE(all[0]->client().ListJobs()->empty());
    }
  }
}

TEST_F(ClientServerTrain, RingSlotsAndAnotherSplitGiveTheSameBits) {
  StartServer();
  std::vector<std::vector<float>> states;
  for (const std::int32_t ranks : {1, 3}) {
    const JobSpec job = SmallJob(absl::StrCat("ring", ranks));
    auto all = AttachAll(job, SmallRun(ranks, 12 / ranks));
    ASSERT_FALSE(all.empty());
    EXPECT_TRUE(all[0]->session().info().slots_are_ring);
    InitializeAll(all);
    std::vector<double> sums;
    Train(all, 0, 3, &sums);
    states.push_back(all[0]->ReadEverything());
    CloseAll(all, true);
  }
  ASSERT_EQ(states[0].size(), states[1].size());
  EXPECT_EQ(std::memcmp(states[0].data(), states[1].data(),
                        states[0].size() * sizeof(float)),
            0);
}

TEST_F(ClientServerTrain, AKeptJobGoesOnWhereItWas) {
  StartServer();
  const JobSpec job = SmallJob("kept");
  std::vector<double> through;
  std::vector<float> expected;
  InProcess(job, SmallRun(2, 1), 6, &through, &expected);
  std::vector<double> sums;
  {
    auto all = AttachAll(job, SmallRun(2, 1, 'a'));
    ASSERT_EQ(all.size(), 2U);
    InitializeAll(all);
    Train(all, 0, 3, &sums);
    CloseAll(all, false);
  }
  auto all = AttachAll(job, SmallRun(2, 1, 'b'));
  ASSERT_EQ(all.size(), 2U);
  const AttachInfo& info = all[1]->session().info();
  EXPECT_TRUE(info.initialized);
  EXPECT_EQ(info.step, 3);
  EXPECT_EQ(info.applied_steps, 3);
  EXPECT_EQ(info.client_state, "state after 3");
  Train(all, 3, 6, &sums);
  EXPECT_EQ(sums, through);
  EXPECT_EQ(all[0]->ReadEverything(), expected);
  CloseAll(all, true);
}

TEST_F(ClientServerTrain, ParametersAreReadOnlyAndGradientsStartAtZero) {
  StartServer();
  auto all = AttachAll(SmallJob("memory"), SmallRun(1, 2));
  ASSERT_EQ(all.size(), 1U);
  client::Session& session = all[0]->session();
  for (std::int32_t micro = 0; micro < 2; ++micro) {
    for (std::int32_t u = 0; u < session.layout().unit_count(); ++u) {
      for (const std::byte b : session.gradient_slot(micro, u)) {
        ASSERT_EQ(b, std::byte{0});
      }
    }
  }
  auto* params = const_cast<std::byte*>(session.unit_params(0).data());
  EXPECT_DEATH(*params = std::byte{1}, "");
  CloseAll(all, true);
}

TEST_F(ClientServerTrain, LargeStateGoesThroughInChunks) {
  StartServer();
  JobSpec job;
  job.name = "large";
  job.layout.param_dtype = Dtype::kFp32;
  job.layout.groups = {{"all", false}};
  job.layout.units = {{"unit", {{"weight", {1500, 1000}, 0}}}};
  auto all = AttachAll(job, SmallRun(1, 1));
  ASSERT_EQ(all.size(), 1U);
  InitializeAll(all);
  client::Session& session = all[0]->session();
  ASSERT_TRUE(session.WaitVersion(0, 0).ok());
  std::vector<float> master(1500000);
  ASSERT_TRUE(session.ReadState(0, StateKind::kMaster, 0, master).ok());
  const auto* params =
      reinterpret_cast<const float*>(session.unit_params(0).data());
  for (std::int64_t i = 0; i < 1500000; ++i) {
    ASSERT_EQ(master[static_cast<std::size_t>(i)], InitialValue(0, i)) << i;
    ASSERT_EQ(params[i], InitialValue(0, i)) << i;
  }
  CloseAll(all, true);
}

TEST_F(ClientServerTrain, ALargeLayoutIsNoProblem) {
  StartServer();
  JobSpec job;
  job.name = "many";
  job.layout.groups = {{"all", false}};
  for (int u = 0; u < 500; ++u) {
    UnitSpec unit;
    unit.name = absl::StrCat("transformer.layers.", u);
    for (int p = 0; p < 200; ++p) {
      unit.params.push_back(
          {absl::StrCat(unit.name, ".attention.projection.", p, ".weight"),
           {2, 4},
           0});
    }
    job.layout.units.push_back(unit);
  }
  auto all = AttachAll(job, SmallRun(1, 1));  // 100 000 parameters, 5 MB
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]->client().ListJobs()->at(0).parameters, 800000);
  CloseAll(all, true);
}

}  // namespace
}  // namespace stowage::testing
