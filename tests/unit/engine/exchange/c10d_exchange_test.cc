// Gathers of the c10d exchange over groups that stand for all ranks: every rank
// holds the same values here; what is asked of the group is recorded.

#include "engine/exchange/c10d_exchange.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "engine/exchange/rank_shards.h"

namespace stowage::engine {
namespace {

// Broadcasts bring nothing: what other ranks hold stays as it is.
class Recorded final : public Collectives {
 public:
  explicit Recorded(int ranks) : ranks_(ranks) {}
  int rank() const override { return 0; }
  int ranks() const override { return ranks_; }
  std::string_view backend() const override { return "gloo"; }
  absl::StatusOr<std::unique_ptr<Pending>> AllGather(
      std::span<std::byte> gathered, std::span<const std::byte> mine) override {
    if (std::exchange(fails_next, false)) {
      return absl::UnavailableError("the link is down");
    }
    EXPECT_EQ(gathered.size(), mine.size() * static_cast<std::size_t>(ranks_));
    gathers.push_back(gathered.size());
    for (std::size_t r = 0; r < static_cast<std::size_t>(ranks_); ++r) {
      std::memcpy(gathered.data() + r * mine.size(), mine.data(), mine.size());
    }
    return std::make_unique<Instant>();
  }
  absl::StatusOr<std::unique_ptr<Pending>> Broadcast(std::span<std::byte> bytes,
                                                     int root) override {
    broadcasts.emplace_back(root, bytes.size());
    return std::make_unique<Instant>();
  }
  absl::StatusOr<std::unique_ptr<Pending>> ExchangeParts(
      Dtype, const void*, std::span<const std::int64_t>, void*,
      std::int64_t) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::unique_ptr<Pending>> AllReduce(Dtype, void*,
                                                     std::int64_t) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::unique_ptr<Pending>> ReduceScatter(
      Dtype, const void*, void*, std::int64_t) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::vector<std::vector<double>>> GatherValues(
      std::span<const double> mine) override {
    return std::vector<std::vector<double>>(static_cast<std::size_t>(ranks_),
                                            {mine.begin(), mine.end()});
  }

  bool fails_next = false;
  std::vector<std::size_t> gathers;
  std::vector<std::pair<int, std::size_t>> broadcasts;

 private:
  class Instant final : public Pending {
   public:
    bool Done() override { return true; }
    absl::Status Wait() override { return absl::OkStatus(); }
  };
  int ranks_;
};

struct Rig {
  Rig(int ranks, C10dOptions options, const char* on = "cpu")
      : device(OpenDevice(on, 0).value()), plan(layout, ranks) {
    options.device = device.get();
    auto store =
        std::make_unique<RankShards>(&layout, &plan, 0, OptimizerSpec{});
    std::vector<float> values(5000);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(i + 1);
    }
    EXPECT_TRUE(store->PutState(0, 0, values).ok());
    auto gathers = std::make_unique<Recorded>(ranks);
    group = gathers.get();
    exchange = std::make_unique<C10dExchange>(
        options, &layout, &plan,
        C10dParts{std::move(gathers), std::make_unique<Recorded>(ranks),
                  std::move(store)});
  }
  static Layout Model() {
    LayoutSpec spec;
    spec.groups = {{"g", false}};
    spec.units = {{"u", {{"u.w", {5000}, 0}}}};
    return Layout::Create(spec).value();
  }
  // Rank 0's part of the gathered unit is what its store holds.
  void CheckOwnPart() {
    const auto data = exchange->Fetch(0, 0);
    ASSERT_TRUE(data.ok()) << data.status();
    const auto* values = reinterpret_cast<const float*>(data->data());
    for (std::int64_t i = 0; i < plan.Shard(0, 0).end; ++i) {
      ASSERT_EQ(values[i], i < 5000 ? static_cast<float>(i + 1) : 0.0F) << i;
    }
    exchange->Release(0);
  }

  Layout layout = Model();
  std::unique_ptr<Device> device;
  plan::ShardPlan plan;
  Recorded* group = nullptr;
  std::unique_ptr<C10dExchange> exchange;
};

TEST(C10dKeys, AllgatherPartitionsOrBroadcasts) {
  Rig gather(3, {});
  gather.CheckOwnPart();
  EXPECT_EQ(gather.group->gathers.size(), 1U);
  EXPECT_TRUE(gather.group->broadcasts.empty());
  C10dOptions options;
  options.all_gather = false;
  Rig broadcast(3, options);
  broadcast.CheckOwnPart();
  EXPECT_TRUE(broadcast.group->gathers.empty());
  ASSERT_EQ(broadcast.group->broadcasts.size(), 3U);
  std::size_t bytes = 0;
  for (int root = 0; root < 3; ++root) {
    EXPECT_EQ(broadcast.group->broadcasts[static_cast<std::size_t>(root)].first,
              root);
    bytes += broadcast.group->broadcasts[static_cast<std::size_t>(root)].second;
  }
  EXPECT_EQ(bytes, 6144U * 4);  // the unit, padded
}

TEST(C10dKeys, AllgatherBucketSizeCutsGathers) {
  C10dOptions options;
  options.gather_bucket_elems = 2048;
  Rig cut(2, options);
  cut.CheckOwnPart();
  EXPECT_EQ(cut.group->gathers, (std::vector<std::size_t>{8192, 8192, 8192}));
}

TEST(C10dExchange, APrefetchedUnitIsGatheredOnce) {
  Rig rig(2, {});
  EXPECT_EQ(rig.exchange->StartFetch(0, 0), FetchStart::kStarted);
  EXPECT_EQ(rig.exchange->StartFetch(0, 0), FetchStart::kStarted);
  rig.CheckOwnPart();
  EXPECT_EQ(rig.group->gathers.size(), 1U);
  // Given up before its use: taken part in all the same.
  EXPECT_EQ(rig.exchange->StartFetch(0, 0), FetchStart::kStarted);
  rig.exchange->Release(0);
  EXPECT_EQ(rig.group->gathers.size(), 2U);
  EXPECT_GT(rig.exchange->traffic().gathered_bytes_peak, 0);
}

// Else the unit's use would read what the buffer held before.
TEST(C10dExchange, AGatherThatCouldNotStartIsAnErrorOfTheFetch) {
  for (const bool prefetched : {true, false}) {
    Rig rig(2, {});
    rig.group->fails_next = true;
    if (prefetched) rig.exchange->StartFetch(0, 0);
    const auto data = rig.exchange->Fetch(0, 0);
    ASSERT_FALSE(data.ok());
    EXPECT_EQ(data.status().message(), "the link is down");
    EXPECT_FALSE(rig.exchange->Fetch(0, 0).ok())
        << "not the second time either";
    EXPECT_FALSE(rig.exchange->Prepare(0, {}).ok());
  }
}

TEST(C10dExchange, ALeaseOfAnotherNodeBoundsThisRank) {
  C10dOptions options;
  EXPECT_FALSE(Rig(2, options).exchange->info().params_leased);
  options.leased_elems_max = 6144;
  Rig rig(2, options);
  EXPECT_TRUE(rig.exchange->info().params_leased);
  EXPECT_EQ(rig.exchange->info().leased_elems_max, 6144);
}

TEST(C10dExchangeOnADevice, GathersWhatWasCopiedThere) {
  for (const std::int64_t bucket : {2048L, 1'000'000L}) {
    for (const bool all_gather : {true, false}) {
      for (const bool keep : {true, false}) {
        for (const int ranks : {1, 2, 3}) {
          C10dOptions options;
          options.gather_bucket_elems = bucket;
          options.all_gather = all_gather;
          options.keep_shards = keep;
          Rig rig(ranks, options, "twin");
          rig.CheckOwnPart();
          rig.exchange->StartFetch(0, 0);
          rig.exchange->Release(0);
          rig.CheckOwnPart();
          const std::int64_t shard = rig.plan.Shard(0, 0).elems() * 4;
          EXPECT_EQ(rig.exchange->traffic().copied_in_bytes,
                    keep ? shard : 3 * shard)
              << ranks;
          ASSERT_TRUE(rig.exchange->Close(true).ok());
        }
      }
    }
  }
}

TEST(C10dExchangeOnADevice, AStepWaitsForWhatIsBeingCopied) {
  Rig rig(1, {}, "twin");
  EXPECT_EQ(rig.exchange->StartFetch(0, 0), FetchStart::kStarted);
  ASSERT_TRUE(rig.exchange->Prepare(0, {}).ok());
  // What a step does to the store's parameters comes after it.
  const std::vector<float> later(5000, -1.0F);
  ASSERT_TRUE(rig.exchange->PutState(0, 0, later).ok());
  rig.CheckOwnPart();
}

}  // namespace
}  // namespace stowage::engine
