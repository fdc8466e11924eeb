// The reducer over a group that stands for all ranks: every rank sends the same
// values here, so a sum is ranks x value; what travels is recorded.

#include "engine/exchange/gradient_reducer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "optim/kernels.h"

namespace stowage::engine {
namespace {

class Instant final : public Pending {
 public:
  explicit Instant(bool* early) : early_(early) {}
  bool Done() override { return *early_; }
  absl::Status Wait() override { return absl::OkStatus(); }

 private:
  bool* early_;
};

class SameEverywhere final : public Collectives {
 public:
  SameEverywhere(int rank, int ranks) : rank_(rank), ranks_(ranks) {}
  int rank() const override { return rank_; }
  int ranks() const override { return ranks_; }
  std::string_view backend() const override { return backend_name; }
  absl::StatusOr<std::unique_ptr<Pending>> AllGather(
      std::span<std::byte>, std::span<const std::byte>) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::unique_ptr<Pending>> Broadcast(std::span<std::byte>,
                                                     int) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::unique_ptr<Pending>> ExchangeParts(
      Dtype dtype, const void* send, std::span<const std::int64_t> send_elems,
      void* receive, std::int64_t recv_elems) override {
    const std::int64_t width = DtypeBytes(dtype);
    std::int64_t before = 0;
    std::int64_t total = 0;
    for (int r = 0; r < ranks_; ++r) {
      if (r < rank_) before += send_elems[static_cast<std::size_t>(r)];
      total += send_elems[static_cast<std::size_t>(r)];
    }
    Record(dtype, send, total);
    EXPECT_EQ(recv_elems, send_elems[static_cast<std::size_t>(rank_)]);
    for (int r = 0; r < ranks_; ++r) {
      std::memcpy(static_cast<std::byte*>(receive) + r * recv_elems * width,
                  static_cast<const std::byte*>(send) + before * width,
                  static_cast<std::size_t>(recv_elems * width));
    }
    return std::make_unique<Instant>(&early);
  }
  absl::StatusOr<std::unique_ptr<Pending>> AllReduce(
      Dtype dtype, void* values, std::int64_t elems) override {
    Record(dtype, values, elems);
    ++all_reduces;
    EXPECT_EQ(dtype, Dtype::kFp32);
    for (std::int64_t i = 0; i < elems; ++i) {
      static_cast<float*>(values)[i] *= static_cast<float>(ranks_);
    }
    return std::make_unique<Instant>(&early);
  }
  absl::StatusOr<std::unique_ptr<Pending>> ReduceScatter(
      Dtype dtype, const void* parts, void* mine,
      std::int64_t part_elems) override {
    Record(dtype, parts, ranks_ * part_elems);
    EXPECT_EQ(dtype, Dtype::kFp32);
    const auto* from = static_cast<const float*>(parts) + rank_ * part_elems;
    for (std::int64_t i = 0; i < part_elems; ++i) {
      static_cast<float*>(mine)[i] = from[i] * static_cast<float>(ranks_);
    }
    return std::make_unique<Instant>(&early);
  }
  absl::StatusOr<std::vector<std::vector<double>>> GatherValues(
      std::span<const double>) override {
    return absl::UnimplementedError("");
  }

  std::string_view backend_name = "gloo";
  bool early = true;
  std::vector<std::int64_t> sizes;  // elements, by message
  std::vector<Dtype> dtypes;
  float largest = 0;
  int all_reduces = 0;

 private:
  void Record(Dtype dtype, const void* values, std::int64_t elems) {
    sizes.push_back(elems);
    dtypes.push_back(dtype);
    if (dtype != Dtype::kFp32) return;
    for (std::int64_t i = 0; i < elems; ++i) {
      largest =
          std::max(largest, std::fabs(static_cast<const float*>(values)[i]));
    }
  }
  int rank_;
  int ranks_;
};

class Recorder : public ShardStore {
 public:
  const AttachInfo& info() const override { return info_; }
  absl::StatusOr<std::span<const std::byte>> AcquireShard(
      std::int32_t, std::int64_t) override {
    return absl::UnimplementedError("");
  }
  bool ShardReady(std::int32_t, std::int64_t) const override { return true; }
  void ReleaseShard(std::int32_t) override {}
  absl::Status AddGradient(std::int64_t, std::int32_t micro, std::int32_t unit,
                           std::int64_t begin,
                           std::span<const void* const> parts, Dtype dtype,
                           std::int64_t elems) override {
    if (elems == 0) return absl::OkStatus();
    std::vector<float> sum(static_cast<std::size_t>(elems));
    optim::BestKernels().accumulate(parts, dtype, true, sum.data(), elems);
    std::vector<float>& to = gradients[{unit, micro}];
    EXPECT_EQ(static_cast<std::int64_t>(to.size()), begin);
    to.insert(to.end(), sum.begin(), sum.end());
    return absl::OkStatus();
  }
  absl::Status GradientDone(std::int64_t, std::int32_t micro, std::int32_t unit,
                            bool empty) override {
    done.push_back({unit, micro, empty});
    // As the server does: what is there now counts.
    if (places && !empty && !slots[unit].empty()) {
      gradients[{unit, micro}] = slots[unit];
    }
    return absl::OkStatus();
  }
  bool has_gradient_places() const override { return places; }
  absl::StatusOr<std::byte*> GradientPlace(std::int64_t, std::int32_t,
                                           std::int32_t unit,
                                           std::int64_t begin) override {
    return reinterpret_cast<std::byte*>(slots[unit].data() + begin);
  }
  absl::StatusOr<Verdict> Prepare(std::int64_t,
                                  std::span<const double>) override {
    return absl::UnimplementedError("");
  }
  absl::Status Apply(const ApplyArgs&) override { return absl::OkStatus(); }
  absl::Status SetForwardOrder(std::span<const std::int32_t>,
                               std::span<const std::int32_t>) override {
    return absl::OkStatus();
  }
  absl::Status PutState(std::int32_t, std::int64_t,
                        std::span<const float>) override {
    return absl::OkStatus();
  }
  absl::Status FinishInitialization() override { return absl::OkStatus(); }
  absl::Status ReadState(std::int32_t, StateKind, std::int64_t,
                         std::span<float>) override {
    return absl::UnimplementedError("");
  }
  absl::Status Close(bool) override { return absl::OkStatus(); }
  StoreWaits waits() const override { return {}; }
  std::int64_t held_bytes() const override { return 0; }

  struct Done {
    std::int32_t unit;
    std::int32_t micro;
    bool empty;
    friend bool operator==(const Done&, const Done&) = default;
  };
  bool places = false;
  std::map<std::int32_t, std::vector<float>> slots;  // by unit; with places
  std::map<std::pair<std::int32_t, std::int32_t>, std::vector<float>> gradients;
  std::vector<Done> done;

 private:
  AttachInfo info_;
};

Layout Model() {
  LayoutSpec spec;
  spec.groups = {{"g", false}, {"frozen", true}};
  spec.units = {{"a", {{"a.w", {1000}, 0}, {"a.b", {10}, 0}}},
                {"ice", {{"ice.w", {500}, 1}}},
                {"b", {{"b.w", {5000}, 0}}},
                {"c", {{"c.w", {100}, 0}}}};
  return Layout::Create(spec).value();
}

// What rank `part` of `ranks` does in one micro step, units ready in `order`.
struct OneRank {
  OneRank(ReduceOptions options, int part, int ranks, int parts,
          const char* on = "cpu")
      : layout(Model()),
        plan(layout, parts),
        group(part, ranks),
        device(OpenDevice(on, 0).value()),
        reducer(options, &layout, &plan, parts == 1 ? 0 : part, &group, &store,
                device.get()) {
    for (const std::int32_t unit : {0, 2, 3}) {
      store.slots[unit].resize(static_cast<std::size_t>(
          plan.GradientShard(unit, parts == 1 ? 0 : part).elems()));
    }
  }

  static float Value(std::int32_t unit, std::int64_t element) {
    return static_cast<float>(unit * 10'000 + element + 1);
  }

  void Micro(std::int32_t micro, const std::vector<std::int32_t>& order) {
    for (const std::int32_t unit : order) {
      auto* to = reinterpret_cast<float*>(reducer.Target(unit)->data());
      for (const Layout::Param& param :
           layout.units()[static_cast<std::size_t>(unit)].params) {
        for (std::int64_t i = 0; i < param.elems; ++i) {
          to[param.begin_elems + i] = Value(unit, param.begin_elems + i);
        }
      }
      ASSERT_TRUE(reducer.Ready(0, micro, unit, false).ok());
    }
  }

  // Every element of this rank's shard is `factor` times what a rank had.
  void Check(std::int32_t micro, float factor) {
    for (const std::int32_t unit : {0, 2, 3}) {
      const plan::ElemRange shard =
          plan.GradientShard(unit, plan.parts() == 1 ? 0 : group.rank());
      const std::vector<float>& got = store.gradients[{unit, micro}];
      ASSERT_EQ(static_cast<std::int64_t>(got.size()), shard.elems());
      std::vector<float> want(got.size(), 0.0F);
      for (const Layout::Param& param :
           layout.units()[static_cast<std::size_t>(unit)].params) {
        for (std::int64_t i = 0; i < param.elems; ++i) {
          const std::int64_t at = param.begin_elems + i;
          if (at >= shard.begin && at < shard.end) {
            want[static_cast<std::size_t>(at - shard.begin)] =
                factor * Value(unit, at);
          }
        }
      }
      EXPECT_EQ(got, want) << "unit " << unit;
    }
  }

  Layout layout;
  plan::ShardPlan plan;
  SameEverywhere group;
  Recorder store;
  std::unique_ptr<Device> device;
  GradientReducer reducer;
};

TEST(GradientReducer, EveryRankGetsTheSumOfItsShard) {
  for (const int ranks : {1, 2, 3, 5}) {
    for (int part = 0; part < ranks; ++part) {
      for (const std::int64_t bucket : {64, 1000, 3000, 1'000'000}) {
        for (const bool scatter : {true, false}) {
          OneRank run({.bucket_elems = bucket, .scatter = scatter}, part, ranks,
                      ranks);
          run.Micro(0, {3, 2, 0});
          ASSERT_TRUE(run.reducer.Finish().ok());
          run.Check(0, static_cast<float>(ranks));
          EXPECT_EQ(run.reducer.buffers().used_bytes(), 0);
        }
      }
    }
  }
}

TEST(GradientReducer, StageZeroReducesWholeUnits) {
  OneRank run({.bucket_elems = 3000, .scatter = false, .at_boundary = true}, 1,
              3,
              /*parts=*/1);
  run.Micro(0, {3, 2, 0});
  ASSERT_TRUE(run.reducer.Finish().ok());
  run.Check(0, 3);
}

TEST(GradientReducer, TheOrderOfReductionIsTheSameHoweverUnitsBecomeReady) {
  std::vector<std::int64_t> sizes;
  for (const std::vector<std::int32_t>& order :
       std::vector<std::vector<std::int32_t>>{
           {3, 2, 0}, {0, 2, 3}, {2, 0, 3}}) {
    OneRank run({.bucket_elems = 64}, 0, 2, 2);
    run.Micro(0, order);
    ASSERT_TRUE(run.reducer.Finish().ok());
    if (sizes.empty()) sizes = run.group.sizes;
    EXPECT_EQ(run.group.sizes, sizes);
    EXPECT_EQ(run.store.done.front().unit, 3);
    EXPECT_EQ(run.store.done.back().unit, 0);
  }
}

TEST(GradientReducer, AtTheBoundaryMicroStepsTravelOnce) {
  OneRank run({.micro_steps = 3, .at_boundary = true}, 1, 2, 2);
  for (const std::int32_t micro : {0, 1, 2}) run.Micro(micro, {3, 2, 0});
  ASSERT_TRUE(run.reducer.Finish().ok());
  EXPECT_EQ(run.group.sizes.size(), 1U);
  run.Check(2, 3 * 2);
  // The server hears of every micro step.
  ASSERT_EQ(run.store.done.size(), 9U);
  EXPECT_EQ(run.store.done[0], (Recorder::Done{3, 0, true}));
  EXPECT_EQ(run.store.done[8], (Recorder::Done{0, 2, false}));
}

TEST(GradientReducer, ARankWithoutAGradientSendsZeros) {
  OneRank run({}, 0, 2, 2);
  run.Micro(0, {3, 2});
  ASSERT_TRUE(run.reducer.Ready(0, 0, 0, /*empty=*/true).ok());
  ASSERT_TRUE(run.reducer.Finish().ok());
  for (const float value : run.store.gradients[{0, 0}]) EXPECT_EQ(value, 0);
  EXPECT_FALSE(run.store.done.back().empty);
}

TEST(GradientReducerOnADevice, TheBitsAreThoseOfTheHost) {
  for (const std::string_view backend : {"gloo", "nccl"}) {
    for (const Dtype dtype : {Dtype::kFp32, Dtype::kBf16, Dtype::kFp16}) {
      for (const int ranks : {1, 2, 3}) {
        for (const std::int64_t bucket : {64, 3000, 1'000'000}) {
          for (const bool boundary : {false, true}) {
            if (dtype != Dtype::kFp32 && (ranks == 1 || backend == "nccl")) {
              continue;  // the group above adds in fp32 only
            }
            const ReduceOptions options{.bucket_elems = bucket,
                                        .wire_dtype = dtype,
                                        .divisor = 3,
                                        .micro_steps = 2,
                                        .at_boundary = boundary};
            std::map<std::pair<std::int32_t, std::int32_t>, std::vector<float>>
                want;
            for (const char* on : {"cpu", "twin", "twin, places"}) {
              const bool places = std::string_view(on).ends_with("places");
              OneRank run(options, ranks - 1, ranks, ranks,
                          places ? "twin" : on);
              run.group.backend_name = backend;
              run.store.places = places;
              run.Micro(0, {3, 2, 0});
              run.Micro(1, {3, 2, 0});
              ASSERT_TRUE(run.reducer.Finish().ok());
              EXPECT_EQ(run.reducer.buffers().used_bytes(), 0);
              if (want.empty()) want = run.store.gradients;
              EXPECT_EQ(run.store.gradients, want)
                  << on << " " << backend << " " << ranks << " " << bucket;
            }
            EXPECT_GE(want.size(), boundary ? 1U : 2U);
          }
        }
      }
    }
  }
}

TEST(GradientReducerOnADevice, TheStoreIsToldWhenTheCopyIsDone) {
  OneRank run({.bucket_elems = 64}, 0, 2, 2, "twin");
  run.store.places = true;
  run.group.early = false;
  run.Micro(0, {3});
  ASSERT_TRUE(run.reducer.Progress().ok());
  EXPECT_EQ(run.device->counters().copies_out, 0);  // not arrived
  run.group.early = true;
  ASSERT_TRUE(run.reducer.Progress().ok());
  EXPECT_GT(run.device->counters().copies_out, 0);  // started
  EXPECT_TRUE(run.store.done.empty());
  for (int i = 0; i < 10 && run.store.done.empty(); ++i) {
    ASSERT_TRUE(run.reducer.Progress().ok());
  }
  ASSERT_EQ(run.store.done.size(), 1U);
  EXPECT_EQ(run.store.done[0], (Recorder::Done{3, 0, false}));
  EXPECT_EQ(run.store.slots[3].front(), 2 * OneRank::Value(3, 0));
  run.Micro(0, {2, 0});
  ASSERT_TRUE(run.reducer.Finish().ok());
  run.Check(0, 2);
}

TEST(C10dKeys, ReduceBucketSizeJoinsAndCuts) {
  const auto messages = [](std::int64_t bucket) {
    OneRank run({.bucket_elems = bucket}, 0, 2, 2);
    run.Micro(0, {3, 2, 0});
    EXPECT_TRUE(run.reducer.Finish().ok());
    for (const std::int64_t elems : run.group.sizes) EXPECT_LE(elems, bucket);
    return run.group.sizes.size();
  };
  EXPECT_EQ(messages(100'000), 1U);
  EXPECT_EQ(messages(6000), 2U);
  EXPECT_EQ(messages(1280), 7U);  // 128; 5056 in five; 1088
}

TEST(C10dKeys, ReduceScatterOrAllReduce) {
  for (const bool scatter : {true, false}) {
    OneRank run({.scatter = scatter}, 1, 2, 2);
    run.Micro(0, {3, 2, 0});
    EXPECT_EQ(run.group.sizes.size(), 1U);
    EXPECT_EQ(run.group.all_reduces, scatter ? 0 : 1);
    run.Check(0, 2);
  }
}

TEST(C10dKeys, OverlapCommLetsMessagesTravel) {
  struct Case {
    bool overlap;
    std::int64_t bytes;
    std::int64_t most;
  };
  // Seven messages of 5 KiB at most.
  for (const Case& c : {Case{false, 1 << 20, 1}, Case{true, 0, 2},
                        Case{true, 3 * 5120, 5}, Case{true, 1 << 20, 7}}) {
    OneRank run({.bucket_elems = 1280,
                 .overlap = c.overlap,
                 .under_way_bytes = c.bytes},
                0, 2, 2);
    run.group.early = false;  // nothing is done before it is waited for
    run.Micro(0, {3, 2, 0});
    EXPECT_EQ(run.reducer.counters().under_way_max, c.most);
    ASSERT_TRUE(run.reducer.Finish().ok());
    run.Check(0, 2);
  }
}

TEST(C10dKeys, CommunicationDataTypeIsWhatTravels) {
  for (const Dtype dtype : {Dtype::kFp32, Dtype::kBf16, Dtype::kFp16}) {
    OneRank run({.wire_dtype = dtype}, 1, 2, 2);
    run.Micro(0, {3, 2, 0});
    ASSERT_TRUE(run.reducer.Finish().ok());
    for (const Dtype sent : run.group.dtypes) EXPECT_EQ(sent, dtype);
    const std::vector<float>& mine = run.store.gradients[{2, 0}];
    ASSERT_FALSE(mine.empty());
    const float got = mine.front();
    const float want = 2 * OneRank::Value(2, run.plan.Shard(2, 1).begin);
    EXPECT_NEAR(got, want, dtype == Dtype::kFp32 ? 0 : want / 128);
  }
}

TEST(C10dKeys, PrescaleDividesWhatTravels) {
  OneRank plain({}, 0, 2, 2);
  plain.Micro(0, {3, 2, 0});
  OneRank divided({.divisor = 4}, 0, 2, 2);
  divided.Micro(0, {3, 2, 0});
  ASSERT_TRUE(divided.reducer.Finish().ok());
  EXPECT_EQ(divided.group.largest, plain.group.largest / 4);
  divided.Check(0, 2.0F / 4);
}

}  // namespace
}  // namespace stowage::engine
