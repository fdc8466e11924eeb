// What every exchange between ranks promises (engine/exchange/exchange.h): one
// suite, run with ranks as threads over segments of a server, over process
// groups (Gloo) with shards in a server, and over process groups with shards on
// the ranks, whole or partitioned. Over process groups also with units and
// gradients on a device: the twin.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/offload_client.h"
#include "common/layout.h"
#include "engine/exchange/c10d_exchange.h"
#include "engine/exchange/rank_shards.h"
#include "engine/exchange/rendezvous.h"
#include "engine/exchange/segment_exchange.h"
#include "engine/exchange/server_shards.h"
#include "proto/job_record_codec.h"
#include "server/core/job_registry.h"
#include "server/rpc/rpc_server.h"
#include "tests/support/fake_rank.h"

namespace stowage::engine {
namespace {

constexpr std::chrono::milliseconds kTimeout{60000};
constexpr double kLr = 0.01;

enum class Way : std::uint8_t {
  kSegments,
  kServerShards,
  kServerKept,  // parameters are not offloaded: a shard is kept
  kRankShards,
  kReplicated,
};

std::string NameOf(Way way) {
  switch (way) {
    case Way::kSegments:
      return "Segments";
    case Way::kServerShards:
      return "GlooServerShards";
    case Way::kServerKept:
      return "GlooServerKept";
    case Way::kRankShards:
      return "GlooRankShards";
    case Way::kReplicated:
      return "GlooReplicated";
  }
  return "";
}

struct Case {
  Way way;
  int ranks;
  std::int32_t micro_steps;
  const char* device = "cpu";
};

// A unit that no part divides evenly, one with a frozen parameter, a tiny one.
LayoutSpec Model() {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kFp32;
  spec.groups = {{"all", false}, {"ice", true}};
  spec.units = {{"a", {{"a.w", {37, 11}, 0}}},
                {"b", {{"b.w", {300}, 0}, {"b.ice", {50}, 1}}},
                {"c", {{"c.w", {3}, 0}}}};
  return spec;
}

float Initial(std::int32_t unit, std::int64_t elem) {
  return 0.1F * static_cast<float>(unit + 1) +
         0.001F * static_cast<float>(elem % 97);
}

float Gradient(int rank, std::int64_t micro, std::int32_t unit,
               std::int64_t elem) {
  return 0.01F * static_cast<float>(rank + 1) *
         static_cast<float>(elem % 13 - 6) *
         static_cast<float>(unit + 1 + micro);
}

class ExchangeContract : public ::testing::TestWithParam<Case> {
 protected:
  struct Rank {
    std::unique_ptr<Rendezvous> rendezvous;
    std::unique_ptr<Device> device;
    std::unique_ptr<client::Session> session;
    std::unique_ptr<Exchange> exchange;
    // By the test itself, to see and to write what is on the device.
    std::int64_t test_copied_in = 0;
    std::int64_t test_copied_out = 0;
  };

  int ranks() const { return GetParam().ranks; }
  std::int32_t micros() const { return GetParam().micro_steps; }
  static bool OverGroups() { return GetParam().way != Way::kSegments; }
  static bool InServer() {
    return GetParam().way == Way::kSegments ||
           GetParam().way == Way::kServerShards ||
           GetParam().way == Way::kServerKept;
  }

  void SetUp() override {
    layout_ = Layout::Create(Model()).value();
    plan_ = plan::ShardPlan(
        layout_, GetParam().way == Way::kReplicated ? 1 : GetParam().ranks);
    if (InServer()) StartServer();
    const std::string file = folder_.path() + "/rendezvous";
    ::setenv("STOWAGE_RENDEZVOUS_FILE", file.c_str(), 1);
    ranks_.resize(static_cast<std::size_t>(ranks()));
    ForEachRank([this](int r) { Join(r); });
  }

  void TearDown() override {
    if (!HasFatalFailure()) {
      ForEachRank([this](int r) {
        if (At(r).exchange == nullptr) return;
        EXPECT_TRUE(At(r).exchange->Close(true).ok());
        if (At(r).device != nullptr) {
          EXPECT_EQ(At(r).device->counters().registered_bytes, 0);
          At(r).exchange.reset();
          EXPECT_EQ(At(r).device->counters().allocated_bytes, 0);
        }
      });
    }
    ranks_.clear();
    ::unsetenv("STOWAGE_RENDEZVOUS_FILE");
    if (server_) server_->Stop();
  }

  Rank& At(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }
  Exchange& ExchangeOf(int rank) { return *At(rank).exchange; }

  template <typename Work>
  void ForEachRank(const Work& work) {
    std::vector<std::jthread> threads;
    for (int r = 1; r < ranks(); ++r) threads.emplace_back(work, r);
    work(0);
  }

  void StartServer() {
    core::RegistryOptions options;
    options.shm_dir = shm_.path();
    options.memory_limit_bytes = std::int64_t{1} << 28;
    options.threads = 2;
    options.lock_memory = false;
    options.encode_record = proto::EncodeJobRecord;
    options.decode_record = proto::DecodeJobRecord;
    registry_ = core::JobRegistry::Create(options).value();
    server_ = rpc::RpcServer::Start(
                  {.listen = absl::StrCat("unix:", folder_.path(), "/s/s"),
                   .version = "test"},
                  *registry_)
                  .value();
    client_ = client::OffloadClient::Connect(server_->address(), {}).value();
  }

  void Join(int r) {
    Rank& rank = At(r);
    const LaunchInfo launch{r, ranks(), r, ranks()};
    rank.rendezvous = Rendezvous::Create(launch, kTimeout).value();
    const bool server = client_ != nullptr;
    if (server) {
      JobSpec job;
      job.name = "contract";
      job.layout = Model();
      RunSpec run;
      run.nonce = "contract-0123456789";
      run.world_size = ranks();
      run.local_ranks = ranks();
      run.micro_steps = micros();
      run.shards = OverGroups();
      auto session = client_->Attach(job, run, r, {});
      ASSERT_TRUE(session.ok()) << session.status();
      rank.session = *std::move(session);
    }
    if (GetParam().way == Way::kSegments) {
      rank.exchange = std::make_unique<SegmentExchange>(rank.session.get(),
                                                        micros(), ranks());
      return;
    }
    C10dParts parts;
    for (auto [group, name] : {std::pair{&parts.gathers, "gathers"},
                               std::pair{&parts.reduces, "reduces"}}) {
      auto made =
          Collectives::Create(Collectives::Backend::kGloo, *rank.rendezvous,
                              name, r, ranks(), kTimeout);
      ASSERT_TRUE(made.ok()) << made.status();
      *group = *std::move(made);
    }
    const bool replicated = GetParam().way == Way::kReplicated;
    rank.device = OpenDevice(GetParam().device, r).value();
    const bool keep = GetParam().way == Way::kServerKept;
    if (server) {
      parts.store = std::make_unique<ServerShards>(
          rank.session.get(), &plan_,
          plan::MakeNodePart(layout_, plan_, 0, ranks()), r, micros(),
          keep && rank.device == nullptr);
    } else {
      parts.store = std::make_unique<RankShards>(
          &layout_, &plan_, replicated ? 0 : r, OptimizerSpec{});
    }
    C10dOptions options;
    options.reduce.micro_steps = micros();
    options.reduce.at_boundary = replicated;
    options.reduce.scatter = !replicated;
    options.verdict_ranks = server ? ranks() : 1;
    options.replicated = replicated;
    if (server) options.initial_share = {r, ranks()};
    options.device = rank.device.get();
    options.keep_shards = keep && rank.device != nullptr;
    rank.exchange = std::make_unique<C10dExchange>(options, &layout_, &plan_,
                                                   std::move(parts));
  }

  const Layout::Unit& Unit(std::int32_t u) const {
    return layout_.units()[static_cast<std::size_t>(u)];
  }

  void Initialize(int r) {
    Exchange& exchange = ExchangeOf(r);
    const Exchange::InitialShare share = exchange.initial_share();
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      if (u % share.count != share.index) continue;
      for (const Layout::Param& param : Unit(u).params) {
        std::vector<float> values;
        for (std::int64_t i = 0; i < param.elems; ++i) {
          values.push_back(Initial(u, param.begin_elems + i));
        }
        ASSERT_TRUE(exchange.PutState(u, param.begin_elems, values).ok());
      }
    }
    ASSERT_TRUE(exchange.FinishInitialization().ok());
  }

  // By unit; what lies between parameters is left out.
  std::vector<float> Values(int r, std::int32_t unit, std::int64_t step) {
    const auto bytes = ExchangeOf(r).Fetch(unit, step);
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    std::vector<float> values;
    if (!bytes.ok()) return values;
    std::vector<std::byte> host(bytes->size());
    if (Device* const device = ExchangeOf(r).device(); device != nullptr) {
      auto copy = device->CopyOut(host.data(), bytes->data(),
                                  static_cast<std::int64_t>(host.size()));
      EXPECT_TRUE(copy.ok() && (*copy)->Wait().ok());
      At(r).test_copied_out += static_cast<std::int64_t>(host.size());
    } else {
      std::memcpy(host.data(), bytes->data(), host.size());
    }
    const auto* at = reinterpret_cast<const float*>(host.data());
    for (const Layout::Param& param : Unit(unit).params) {
      values.insert(values.end(), at + param.begin_elems,
                    at + param.begin_elems + param.elems);
    }
    ExchangeOf(r).Release(unit);
    return values;
  }

  // Parameter by parameter: what lies between them is the exchange's.
  void WriteGradient(int r, std::int32_t unit, std::span<std::byte> target,
                     const std::vector<float>& values) {
    Device* const device = ExchangeOf(r).device();
    for (const Layout::Param& param : Unit(unit).params) {
      if (param.frozen) continue;
      std::byte* const to =
          target.data() + param.begin_elems * std::int64_t{sizeof(float)};
      const auto* const from =
          reinterpret_cast<const std::byte*>(values.data() + param.begin_elems);
      const auto bytes = param.elems * static_cast<std::int64_t>(sizeof(float));
      if (device == nullptr) {
        std::memcpy(to, from, static_cast<std::size_t>(bytes));
        continue;
      }
      auto copy = device->CopyIn(to, from, bytes);
      ASSERT_TRUE(copy.ok()) << copy.status();
      ASSERT_TRUE((*copy)->JoinCompute().ok());
      ASSERT_TRUE((*copy)->Wait().ok());  // `values` ends with the caller
      At(r).test_copied_in += bytes;
    }
  }

  // Backwards through the units, as autograd does. `poison`: a rank whose first
  // element of "b.w" is not finite; `lazy`: one without a gradient of "c".
  void WriteGradients(int r, std::int64_t step, int poison = -1,
                      int lazy = -1) {
    Exchange& exchange = ExchangeOf(r);
    for (std::int32_t micro = 0; micro < micros(); ++micro) {
      for (std::int32_t u = layout_.unit_count() - 1; u >= 0; --u) {
        const bool empty = r == lazy && u == 2;
        if (!empty) {
          const auto target = exchange.GradientTarget(step, micro, u);
          ASSERT_TRUE(target.ok()) << target.status();
          std::vector<float> values(target->size() / sizeof(float));
          for (const Layout::Param& param : Unit(u).params) {
            for (std::int64_t i = param.begin_elems;
                 !param.frozen && i < param.begin_elems + param.elems; ++i) {
              values[static_cast<std::size_t>(i)] = Gradient(r, micro, u, i);
            }
          }
          if (r == poison && u == 1) {
            values[0] = std::numeric_limits<float>::infinity();
          }
          WriteGradient(r, u, *target, values);
        }
        ASSERT_TRUE(exchange.GradientReady(step, micro, u, empty).ok());
      }
    }
  }

  double Summed(std::int32_t unit, std::int64_t elem, int lazy = -1) const {
    double sum = 0;
    for (int r = 0; r < ranks(); ++r) {
      for (std::int32_t m = 0; m < micros(); ++m) {
        if (r == lazy && unit == 2) continue;
        sum += Gradient(r, m, unit, elem);
      }
    }
    return sum;
  }

  ApplyArgs Apply(std::int64_t step, bool skip) const {
    ApplyArgs args;
    args.step = step;
    args.skip = skip;
    args.gradient_factor = 1.0 / (ranks() * micros());
    args.groups = {{kLr, 0.9, 0.999, 1e-8, 0.0}, {kLr, 0.9, 0.999, 1e-8, 0.0}};
    return args;
  }

  // One step on all ranks; returns rank 0's verdict.
  Verdict Step(std::int64_t step, bool skip = false, int poison = -1,
               int lazy = -1) {
    std::vector<Verdict> verdicts(static_cast<std::size_t>(ranks()));
    ForEachRank([&](int r) {
      WriteGradients(r, step, poison, lazy);
      const double loss = 1.5 + r;
      auto verdict = ExchangeOf(r).Prepare(step, {&loss, 1});
      ASSERT_TRUE(verdict.ok()) << verdict.status();
      verdicts[static_cast<std::size_t>(r)] = *verdict;
      const absl::Status applied = ExchangeOf(r).Apply(Apply(step, skip));
      ASSERT_TRUE(applied.ok()) << applied;
    });
    for (const Verdict& verdict : verdicts) {
      EXPECT_EQ(verdict.step, step);
      if (poison < 0) {
        EXPECT_EQ(verdict.sum_of_squares, verdicts[0].sum_of_squares);
      }
      EXPECT_EQ(verdict.first_nonfinite_param,
                verdicts[0].first_nonfinite_param);
      EXPECT_EQ(verdict.rank_scalars, verdicts[0].rank_scalars);
    }
    return verdicts[0];
  }

  Layout layout_;
  plan::ShardPlan plan_;
  testing::ShmFolder folder_;
  testing::ShmFolder shm_;
  std::unique_ptr<core::JobRegistry> registry_;
  std::unique_ptr<rpc::RpcServer> server_;
  std::unique_ptr<client::OffloadClient> client_;
  std::vector<Rank> ranks_;
};

TEST_P(ExchangeContract, BringsInitialValuesToAllRanks) {
  ForEachRank([this](int r) {
    Initialize(r);
    EXPECT_EQ(ExchangeOf(r).info().step, 0);
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      const std::vector<float> values = Values(r, u, 0);
      std::size_t at = 0;
      for (const Layout::Param& param : Unit(u).params) {
        for (std::int64_t i = 0; i < param.elems; ++i) {
          ASSERT_EQ(values[at++], Initial(u, param.begin_elems + i));
        }
      }
    }
  });
}

TEST_P(ExchangeContract, SumsGradientsAndStepsAsAdamDoes) {
  ForEachRank([this](int r) { Initialize(r); });
  const Verdict verdict = Step(0);
  double squares = 0;
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    for (const Layout::Param& param : Unit(u).params) {
      for (std::int64_t i = 0; !param.frozen && i < param.elems; ++i) {
        const double sum = Summed(u, param.begin_elems + i);
        squares += sum * sum;
      }
    }
  }
  EXPECT_NEAR(verdict.sum_of_squares / squares, 1, 1e-6);
  EXPECT_TRUE(verdict.first_nonfinite_param.empty());
  ASSERT_EQ(verdict.rank_scalars.size(), static_cast<std::size_t>(ranks()));
  for (int r = 0; r < ranks(); ++r) {
    EXPECT_EQ(verdict.rank_scalars[static_cast<std::size_t>(r)],
              std::vector<double>{1.5 + r});
  }
  std::vector<std::map<std::int32_t, std::vector<float>>> seen(
      static_cast<std::size_t>(ranks()));
  ForEachRank([&](int r) {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      seen[static_cast<std::size_t>(r)][u] = Values(r, u, 1);
    }
  });
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    std::size_t at = 0;
    for (const Layout::Param& param : Unit(u).params) {
      for (std::int64_t i = 0; i < param.elems; ++i, ++at) {
        const std::int64_t elem = param.begin_elems + i;
        // The first step of Adam: the sign of the gradient, lr long.
        const double g = Summed(u, elem) / (ranks() * micros());
        const double step = param.frozen ? 0 : kLr * g / (std::abs(g) + 1e-8);
        ASSERT_NEAR(seen[0][u][at], Initial(u, elem) - step, 1e-6)
            << param.name << " " << i;
      }
    }
    for (const auto& of_rank : seen) EXPECT_EQ(of_rank.at(u), seen[0][u]);
  }
}

TEST_P(ExchangeContract, ASkippedStepChangesNothing) {
  ForEachRank([this](int r) { Initialize(r); });
  Step(0, /*skip=*/true);
  ForEachRank([this](int r) {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      EXPECT_EQ(Values(r, u, 1).front(), Initial(u, 0));
    }
  });
}

TEST_P(ExchangeContract, NamesTheParameterThatIsNotFinite) {
  ForEachRank([this](int r) { Initialize(r); });
  const Verdict verdict = Step(0, /*skip=*/true, /*poison=*/ranks() - 1);
  EXPECT_FALSE(std::isfinite(verdict.sum_of_squares));
  EXPECT_TRUE(verdict.first_nonfinite_param.starts_with("b.w"))
      << verdict.first_nonfinite_param;
  // And a finite step after it is as any other.
  EXPECT_TRUE(std::isfinite(Step(1).sum_of_squares));
}

TEST_P(ExchangeContract, AUnitWithoutAGradientOnOneRankCountsAsZeroThere) {
  ForEachRank([this](int r) { Initialize(r); });
  const int lazy = ranks() - 1;
  const Verdict verdict = Step(0, false, -1, lazy);
  double squares = 0;
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    for (const Layout::Param& param : Unit(u).params) {
      for (std::int64_t i = 0; !param.frozen && i < param.elems; ++i) {
        const double sum = Summed(u, param.begin_elems + i, lazy);
        squares += sum * sum;
      }
    }
  }
  EXPECT_NEAR(verdict.sum_of_squares / squares, 1, 1e-6);
}

TEST_P(ExchangeContract, AStartedFetchMayBeGivenUpOrUsed) {
  ForEachRank([this](int r) {
    Initialize(r);
    Exchange& exchange = ExchangeOf(r);
    exchange.StartFetch(0, 0);
    exchange.StartFetch(1, 0);
    exchange.Release(0);
    EXPECT_EQ(Values(r, 1, 0).front(), Initial(1, 0));
    EXPECT_EQ(Values(r, 0, 0).front(), Initial(0, 0));
  });
}

TEST_P(ExchangeContract, StateIsReadWhereItIsHeld) {
  ForEachRank([this](int r) { Initialize(r); });
  Step(0);
  ForEachRank([this](int r) {
    const std::vector<float> values = Values(r, 0, 1);
    const bool whole = GetParam().way != Way::kRankShards;
    const plan::ElemRange held =
        whole ? plan::ElemRange{0, Unit(0).params[0].elems}
              : plan_.GradientShard(0, r);
    std::vector<float> masters(static_cast<std::size_t>(held.elems()));
    const absl::Status read =
        ExchangeOf(r).ReadState(0, StateKind::kMaster, held.begin, masters);
    ASSERT_TRUE(read.ok()) << read;
    for (std::size_t i = 0; i < masters.size(); ++i) {
      const auto at = static_cast<std::size_t>(held.begin) + i;
      if (at >= values.size()) break;
      EXPECT_EQ(masters[i], values[at]) << at;
    }
  });
}

// What crosses between host and device in a step, in bytes a rank: its shard
// for every gather (once a step where it is kept), its reduced shard for every
// reduction. A store on the rank adds the ranks' parts up itself, in the order
// that fixes the bits, and gets all of them.
TEST_P(ExchangeContract, BytesToAndFromTheDeviceAreTheFormulas) {
  constexpr std::int64_t kWidth = sizeof(float);
  constexpr int kFetches = 2;  // of every unit: forward and backward
  const Way way = GetParam().way;
  ForEachRank([this](int r) { Initialize(r); });
  for (const std::int64_t step : {0, 1}) {
    std::vector<ExchangeTraffic> before;
    for (int r = 0; r < ranks(); ++r) {
      before.push_back(ExchangeOf(r).traffic());
      At(r).test_copied_in = At(r).test_copied_out = 0;
    }
    ForEachRank([&](int r) {
      for (int i = 0; i < kFetches; ++i) {
        for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
          Values(r, u, step);
        }
      }
    });
    Step(step);
    for (int r = 0; r < ranks(); ++r) {
      const int part = way == Way::kReplicated ? 0 : r;
      std::int64_t shard = 0;
      std::int64_t gradient = 0;
      for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
        shard += plan_.Shard(u, part).elems() * kWidth;
        gradient += plan_.GradientShard(u, part).elems() * kWidth;
      }
      const std::int64_t in =
          way == Way::kServerKept ? shard : kFetches * shard;
      const std::int64_t out =
          way == Way::kReplicated   ? gradient  // at the boundary
          : way == Way::kRankShards ? micros() * ranks() * gradient
                                    : micros() * gradient;
      const ExchangeTraffic traffic = ExchangeOf(r).traffic();
      const auto at = static_cast<std::size_t>(r);
      const bool device = ExchangeOf(r).device() != nullptr;
      EXPECT_EQ(traffic.copied_in_bytes - before[at].copied_in_bytes -
                    At(r).test_copied_in,
                device ? in : 0)
          << "rank " << r << " step " << step;
      EXPECT_EQ(traffic.copied_out_bytes - before[at].copied_out_bytes -
                    At(r).test_copied_out,
                device ? out : 0)
          << "rank " << r << " step " << step;
    }
  }
}

// Parameters that a rank reads and gradients that it writes in the server's
// segments are registered; nothing twice, which the twin would refuse.
TEST_P(ExchangeContract, RegistersTheSegmentsOfItsShard) {
  ForEachRank([this](int r) {
    Initialize(r);
    if (At(r).device == nullptr) return;
    const std::int64_t registered = At(r).device->counters().registered_bytes;
    if (!InServer()) {
      EXPECT_EQ(registered, 0);
      return;
    }
    std::int64_t least = 0;
    std::int64_t most = 0;
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      for (const auto& [range, times] :
           {std::pair{plan_.Shard(u, r), 1},
            std::pair{plan_.GradientShard(u, r), micros()}}) {
        if (range.empty()) continue;
        const auto bytes =
            range.elems() * static_cast<std::int64_t>(sizeof(float));
        least += times * bytes;
        most += times * (bytes + 2 * 4096);
      }
    }
    EXPECT_GE(registered, least);
    EXPECT_LE(registered, most);
  });
}

std::vector<Case> Cases() {
  // One rank on a real GPU, where there is one and the CUDA module.
  const bool gpu = OpenDevice("auto", 0).value() != nullptr;
  std::vector<Case> cases;
  for (const Way way : {Way::kSegments, Way::kServerShards, Way::kServerKept,
                        Way::kRankShards, Way::kReplicated}) {
    for (const int ranks : {1, 2, 3}) {
      for (const std::int32_t micros : {1, 2}) {
        cases.push_back({way, ranks, micros});
        if (way == Way::kSegments) continue;
        cases.push_back({way, ranks, micros, "twin"});
        if (gpu && ranks == 1) cases.push_back({way, ranks, micros, "cuda"});
      }
    }
  }
  return cases;
}

std::string NameOfDevice(std::string_view device) {
  return device == "cpu" ? "" : device == "twin" ? "Twin" : "Cuda";
}

INSTANTIATE_TEST_SUITE_P(All, ExchangeContract, ::testing::ValuesIn(Cases()),
                         [](const ::testing::TestParamInfo<Case>& tested) {
                           return absl::StrCat(
                               NameOf(tested.param.way), "Ranks",
                               tested.param.ranks, "Micros",
                               tested.param.micro_steps,
                               NameOfDevice(tested.param.device));
                         });

}  // namespace
}  // namespace stowage::engine
