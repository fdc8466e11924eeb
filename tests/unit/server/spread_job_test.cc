// Jobs of several nodes whose optimizer needs all of them between verdict and
// apply: the test's ranks carry what the servers have to tell each other.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/server/onebit_job.h"

namespace stowage::core {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

// A server and the one rank of its node.
struct Node {
  testing::ShmFolder folder;
  std::unique_ptr<JobRegistry> registry;
  std::unique_ptr<testing::FakeRun> run;

  testing::FakeRank& rank() { return run->rank(0); }
  JobSession& session() { return rank().session(); }
};

class SpreadJobTest : public JobTest {
 protected:
  SpreadJobTest() {
    for (auto& node : nodes_) {
      node = std::make_unique<Node>();
      RegistryOptions options;
      options.shm_dir = node->folder.path();
      options.threads = 2;
      options.memory_limit_bytes = std::int64_t{1} << 30;
      node->registry = *JobRegistry::Create(options);
    }
  }

  static RunSpec RunOf(std::int32_t node, char nonce, std::int32_t micros) {
    RunSpec run = MakeRun(1, micros, nonce);
    run.world_size = kRanks;
    run.first_rank = node;
    return run;
  }
  Node& node(std::int32_t n) { return *nodes_[static_cast<std::size_t>(n)]; }

  // Brings `result` back in pieces; true once the server holds it.
  static absl::StatusOr<bool> Give(Node& node, std::int64_t step,
                                   std::int32_t round, const Bytes& result) {
    bool held = false;
    for (std::size_t done = 0; done < result.size(); done += 1000) {
      auto taken = node.session().TakeRound(
          step, round, static_cast<std::int64_t>(done),
          std::span(result).subspan(
              done, std::min<std::size_t>(1000, result.size() - done)));
      if (!taken.ok()) return taken.status();
      held = *taken;
    }
    return held;
  }

  std::unique_ptr<Node> nodes_[kRanks];
};

class OneBitSpreadTest : public SpreadJobTest,
                         public ::testing::WithParamInterface<OptimizerKind> {
 protected:
  void StartAll(char nonce) {
    for (std::int32_t n = 0; n < kRanks; ++n) {
      node(n).run = StartRun(*node(n).registry, OneBitJob(GetParam()),
                             RunOf(n, nonce, kMicros));
      ASSERT_NE(node(n).run, nullptr);
    }
  }

  // Gradients and verdict: until the freeze each node has the sum of all
  // ranks', afterwards its own rank's; all of a step in its last micro step.
  void PrepareAll(std::int64_t step) {
    const bool own = step >= kFreeze;
    for (std::int32_t n = 0; n < kRanks; ++n) {
      testing::FakeRank& rank = node(n).rank();
      const auto sum = [&](std::int32_t unit, std::int64_t element) {
        float total = 0;
        bool first = true;
        for (std::int32_t b = 0; b < kRanks * kMicros; ++b) {
          if (own && b % kRanks != n) continue;
          const float x = BatchGradient(step, b, unit, element);
          total = first ? x : total + x;
          first = false;
        }
        return total;
      };
      for (std::int32_t micro = 0; micro < kMicros; ++micro) {
        if (micro + 1 == kMicros) {
          ASSERT_OK(rank.Backward(step, micro, kMicros, sum));
          continue;
        }
        for (std::int32_t u = 0; u < rank.layout().unit_count(); ++u) {
          if (rank.layout()
                  .units()[static_cast<std::size_t>(u)]
                  .trainable_elems == 0) {
            continue;
          }
          ASSERT_OK(rank.session().Notice(step, micro, u, /*empty=*/true));
        }
      }
      ASSERT_OK(rank.session().Prepare(step, {}));
      ASSERT_OK(rank.WaitVerdict(step).status());
    }
  }

  // The round's swap between the nodes; each then holds its result.
  void SwapSigns(std::int64_t step) {
    std::vector<Bytes> out;
    for (std::int32_t n = 0; n < kRanks; ++n) {
      out.push_back(*node(n).session().BeginRound(MakeApply(step), 0));
    }
    const std::size_t part = out[0].size() / kRanks;
    for (std::int32_t n = 0; n < kRanks; ++n) {
      Bytes received;
      for (const Bytes& from : out) {
        const auto begin = from.begin() + n * static_cast<std::ptrdiff_t>(part);
        received.insert(received.end(), begin,
                        begin + static_cast<std::ptrdiff_t>(part));
      }
      ASSERT_EQ(*Give(node(n), step, 0, received), true);
    }
  }
  Bytes GatherSigns(std::int64_t step) {
    Bytes gathered;
    for (std::int32_t n = 0; n < kRanks; ++n) {
      const Bytes served = *node(n).session().BeginRound(MakeApply(step), 1);
      gathered.insert(gathered.end(), served.begin(), served.end());
    }
    return gathered;
  }
  void HoldAll(std::int64_t step) {
    SwapSigns(step);
    const Bytes gathered = GatherSigns(step);
    for (std::int32_t n = 0; n < kRanks; ++n) {
      ASSERT_EQ(*Give(node(n), step, 1, gathered), true);
    }
  }
  void ApplyOn(std::int32_t n, std::int64_t step) {
    ASSERT_OK(node(n).session().Apply(MakeApply(step)));
    ASSERT_TRUE(node(n).rank().WaitAllVersions(step + 1));
  }
  void Steps(std::int64_t begin, std::int64_t end) {
    for (std::int64_t step = begin; step < end; ++step) {
      PrepareAll(step);
      if (step >= kFreeze) HoldAll(step);
      for (std::int32_t n = 0; n < kRanks; ++n) ApplyOn(n, step);
    }
  }
  void ExpectBitsOfRanksApart() {
    for (std::int32_t n = 0; n < kRanks; ++n) {
      EXPECT_EQ(Masters(*node(n).run),
                MastersOfRanksApart(node(n).rank().layout(), GetParam()))
          << "node " << n;
    }
  }
};

TEST_P(OneBitSpreadTest, GivesTheBitsOfRanksThatSwapMessages) {
  StartAll('a');
  Steps(0, kSteps);
  ExpectBitsOfRanksApart();
  const JobInfo info = node(1).registry->List()[0];
  EXPECT_EQ(info.compression.rounds, kSteps - kFreeze);
  EXPECT_GT(info.compression.error, 0);
  EXPECT_LT(info.compression.error, 1);
}

TEST_P(OneBitSpreadTest, AStepCutOffBetweenRoundsIsDoneAgain) {
  StartAll('a');
  const std::int64_t cut = kFreeze + 1;
  Steps(0, cut);
  char nonce = 'b';
  for (const int reached : {0, 1, 2}) {
    PrepareAll(cut);
    if (reached == 0) {
      ASSERT_OK(node(0).session().BeginRound(MakeApply(cut), 0).status());
    } else {
      SwapSigns(cut);
    }
    if (reached == 2) {
      ASSERT_EQ(*Give(node(0), cut, 1, GatherSigns(cut)), true);
    }
    for (std::int32_t n = 0; n < kRanks; ++n) node(n).rank().Lose("killed");
    // The other node does not hold the last round: it has to wait for a run.
    EXPECT_STATUS(node(1).registry->RollForward("onebit", MakeApply(cut)),
                  kFailedPrecondition);
    StartAll(nonce++);
    EXPECT_EQ(node(0).rank().info().step, cut);
  }
  Steps(cut, kSteps);
  ExpectBitsOfRanksApart();
}

TEST_P(OneBitSpreadTest, ANodeThatHoldsTheRoundsEndsTheStepByItself) {
  StartAll('a');
  const std::int64_t cut = kFreeze + 1;
  Steps(0, cut);
  PrepareAll(cut);
  HoldAll(cut);
  ApplyOn(0, cut);
  for (std::int32_t n = 0; n < kRanks; ++n) node(n).rank().Lose("killed");
  ASSERT_OK(node(1).registry->RollForward("onebit", MakeApply(cut)));
  StartAll('b');
  for (std::int32_t n = 0; n < kRanks; ++n) {
    EXPECT_EQ(node(n).rank().info().step, cut + 1);
  }
  Steps(cut + 1, kSteps);
  ExpectBitsOfRanksApart();
}

// Two threads in one store, or a reader who is told that a step is running.
TEST_P(OneBitSpreadTest, AStateThatIsReadBesideARoundWaits) {
  StartAll('a');
  Steps(0, kFreeze);
  std::atomic<bool> stop{false};
  std::atomic<bool> ended{false};
  std::atomic<int> reads{0};
  absl::Status status;
  std::thread reader([&] {
    std::vector<float> values(200);
    while (!stop && status.ok()) {
      status = node(0).session().ReadState(0, StateKind::kMoment1, 0, values);
      ++reads;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    ended = true;
  });
  Steps(kFreeze, kSteps);
  while (reads < 10 && !ended) std::this_thread::yield();
  stop = true;
  reader.join();
  EXPECT_TRUE(status.ok()) << status;
  ExpectBitsOfRanksApart();
}

TEST_P(OneBitSpreadTest, RefusesWhatDoesNotFit) {
  StartAll('a');
  Steps(0, kFreeze);
  const auto begin = [&](std::int64_t step, std::int32_t round) {
    return node(0).session().BeginRound(MakeApply(step), round).status();
  };
  EXPECT_STATUS(begin(kFreeze, 0), kFailedPrecondition);  // no verdict
  PrepareAll(kFreeze);
  EXPECT_STATUS(begin(kFreeze + 1, 0), kFailedPrecondition);
  EXPECT_STATUS(begin(kFreeze - 1, 0), kAborted);
  for (const std::int32_t round : {-1, 2}) {
    EXPECT_STATUS(begin(kFreeze, round), kInvalidArgument);
  }
  EXPECT_STATUS(node(0).session().BeginRound(MakeSkip(kFreeze), 0).status(),
                kInvalidArgument);
  const Bytes piece(8);
  const auto take = [&](std::int64_t step, std::int32_t round,
                        std::int64_t at) {
    return node(0).session().TakeRound(step, round, at, piece).status();
  };
  EXPECT_STATUS(take(kFreeze, 0, 0), kFailedPrecondition);  // not begun
  ASSERT_OK(begin(kFreeze, 0));
  EXPECT_STATUS(begin(kFreeze, 1), kFailedPrecondition);
  EXPECT_STATUS(take(kFreeze, 7, 0), kInvalidArgument);
  EXPECT_STATUS(take(kFreeze, 0, 4), kInvalidArgument);
  EXPECT_STATUS(take(kFreeze, 0, std::numeric_limits<std::int64_t>::max()),
                kInvalidArgument);
  EXPECT_STATUS(take(kFreeze + 1, 0, 0), kFailedPrecondition);
  ApplyArgs other = MakeApply(kFreeze);
  other.groups[0].lr = 7;
  const absl::Status differs = node(0).session().BeginRound(other, 0).status();
  EXPECT_THAT(std::string(differs.message()), HasSubstr("groups[0].lr"));
  const absl::Status early = node(0).session().Apply(MakeApply(kFreeze));
  EXPECT_STATUS(early, kFailedPrecondition);
  EXPECT_THAT(std::string(early.message()), HasSubstr("round 0 of 2"));
  // A result with a scale that is no number.
  Bytes bad = *node(0).session().BeginRound(MakeApply(kFreeze), 0);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bad.data(), &nan, sizeof(nan));
  EXPECT_STATUS(Give(node(0), kFreeze, 0, bad).status(), kInvalidArgument);
  // A skipped step needs no round.
  ASSERT_OK(node(0).session().Apply(MakeSkip(kFreeze)));
}

INSTANTIATE_TEST_SUITE_P(Both, OneBitSpreadTest,
                         ::testing::Values(OptimizerKind::kOneBitAdam,
                                           OptimizerKind::kOneBitLamb),
                         [](const auto& param) {
                           return param.param == OptimizerKind::kOneBitAdam
                                      ? "Adam"
                                      : "Lamb";
                         });

// Two tensors, of which the nodes hold [0, cut) and the rest.
class LambSpreadTest : public SpreadJobTest {
 protected:
  static constexpr std::int64_t kElems[2] = {70000, 300};
  static constexpr std::int64_t kCut[2] = {40000, 100};

  static JobSpec LambJob(std::int64_t first, std::int64_t second) {
    JobSpec job;
    job.name = "lamb";
    job.optimizer.kind = OptimizerKind::kLamb;
    job.layout.param_dtype = Dtype::kFp32;
    job.layout.groups = {{.name = "g"}};
    job.layout.units = {
        {.name = "a", .params = {{.name = "a.w", .shape = {first}}}},
        {.name = "b", .params = {{.name = "b.w", .shape = {second}}}}};
    return job;
  }
  static ApplyArgs Args(std::int64_t step) {
    ApplyArgs args = MakeApply(step);
    args.groups.resize(1);
    return args;
  }
  static testing::ElementFunction Moved(bool behind,
                                        testing::ElementFunction value) {
    return [behind, value](std::int32_t unit, std::int64_t element) {
      return value(unit, element + (behind ? kCut[unit] : 0));
    };
  }
  static void Prepare(testing::FakeRank& rank, std::int64_t step, bool behind) {
    ASSERT_OK(rank.Backward(step, 0, 1,
                            Moved(behind, [&](std::int32_t u, std::int64_t i) {
                              return BatchGradient(step, 0, u, i);
                            })));
    ASSERT_OK(rank.session().Prepare(step, {}));
    ASSERT_OK(rank.WaitVerdict(step).status());
  }
  static std::vector<float> MastersOf(testing::FakeRank& rank,
                                      std::int32_t unit, std::int64_t elems) {
    std::vector<float> values(static_cast<std::size_t>(elems));
    const absl::Status read =
        rank.session().ReadState(unit, StateKind::kMaster, 0, values);
    EXPECT_TRUE(read.ok()) << read;
    return values;
  }
};

TEST_F(LambSpreadTest, TrustRatiosAreOverAllNodes) {
  auto registry = MakeRegistry();
  auto whole =
      StartRun(*registry, LambJob(kElems[0], kElems[1]), MakeRun(1, 1));
  ASSERT_NE(whole, nullptr);
  for (const bool behind : {false, true}) {
    Node& n = node(behind ? 1 : 0);
    auto run = testing::FakeRun::Start(
        *n.registry,
        behind ? LambJob(kElems[0] - kCut[0], kElems[1] - kCut[1])
               : LambJob(kCut[0], kCut[1]),
        RunOf(behind ? 1 : 0, 'n', 1));
    ASSERT_OK(run.status());
    n.run = *std::move(run);
    ASSERT_OK(n.run->Initialize(Moved(behind, InitialValue)));
  }
  double worst = 0;
  for (std::int64_t step = 0; step < 6; ++step) {
    Prepare(whole->rank(0), step, false);
    ASSERT_OK(whole->rank(0).session().Apply(Args(step)));
    std::vector<double> sums;
    for (const bool behind : {false, true}) {
      Node& n = node(behind ? 1 : 0);
      Prepare(n.rank(), step, behind);
      // Without the other node's squares the step does not end.
      EXPECT_STATUS(n.session().Apply(Args(step)), kFailedPrecondition);
      const Bytes own = *n.session().BeginRound(Args(step), 0);
      ASSERT_EQ(own.size(), 2 * 2 * sizeof(double));
      ASSERT_EQ(own, *n.session().BeginRound(Args(step), 0));  // a repeat
      std::vector<double> pairs(4);
      std::memcpy(pairs.data(), own.data(), own.size());
      sums.resize(4);
      for (std::size_t i = 0; i < 4; ++i) sums[i] += pairs[i];
    }
    Bytes totals(sums.size() * sizeof(double));
    std::memcpy(totals.data(), sums.data(), totals.size());
    for (const bool behind : {false, true}) {
      Node& n = node(behind ? 1 : 0);
      ASSERT_EQ(*Give(n, step, 0, totals), true);
      ASSERT_OK(n.session().Apply(Args(step)));
    }
    for (std::int32_t u = 0; u < 2; ++u) {
      std::vector<float> got = MastersOf(node(0).rank(), u, kCut[u]);
      const std::vector<float> rest =
          MastersOf(node(1).rank(), u, kElems[u] - kCut[u]);
      got.insert(got.end(), rest.begin(), rest.end());
      const std::vector<float> want = MastersOf(whole->rank(0), u, kElems[u]);
      for (std::size_t i = 0; i < want.size(); ++i) {
        worst =
            std::max(worst, static_cast<double>(std::fabs(got[i] - want[i])));
      }
    }
  }
  // Squares are added in another order, in fp64.
  EXPECT_LT(worst, 1e-6);
  EXPECT_EQ(node(0).registry->List()[0].trust_ratios,
            node(1).registry->List()[0].trust_ratios);
}

TEST_F(LambSpreadTest, RefusesSumsThatAreNone) {
  Node& n = node(0);
  auto run =
      testing::FakeRun::Start(*n.registry, LambJob(100, 100), RunOf(0, 'n', 1));
  ASSERT_OK(run.status());
  n.run = *std::move(run);
  ASSERT_OK(n.run->Initialize(InitialValue));
  Prepare(n.rank(), 0, false);
  Bytes totals = *n.session().BeginRound(Args(0), 0);
  const double bad = -1;
  std::memcpy(totals.data(), &bad, sizeof(bad));
  EXPECT_STATUS(Give(n, 0, 0, totals).status(), kInvalidArgument);
}

}  // namespace
}  // namespace stowage::core
