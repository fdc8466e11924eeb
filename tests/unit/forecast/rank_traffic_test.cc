#include "forecast/rank_traffic.h"

#include <string>
#include <utility>

#include "forecast/gpt_layout.h"
#include "gtest/gtest.h"

namespace stowage::forecast {
namespace {

namespace config = engine::config;

constexpr GptShape kShape = {
    .layers = 4, .width = 128, .heads = 2, .context = 64};

config::Config Make(const std::string& zero, int ranks,
                    const std::string& more = "") {
  const auto document = config::ParseConfig(
      "{\"train_micro_batch_size_per_gpu\": 4, \"zero_optimization\": {" +
          zero + "}" + more + "}",
      "test.json");
  EXPECT_TRUE(document.ok()) << document.status().ToString();
  config::TrainerValues values;
  values.world_size = ranks;
  values.precision = {Dtype::kBf16, true};
  auto resolution = config::Resolve(*document, values);
  EXPECT_TRUE(resolution.ok()) << resolution.status().ToString();
  return std::move(resolution->config);
}

Layout MakeLayout() {
  return Layout::Create(GptLayout(kShape, Dtype::kBf16)).value();
}

// A unit's gradient ends with its last parameter; the padding to a page does
// not travel.
std::int64_t GradientElems(const Layout& layout) {
  std::int64_t elems = 0;
  for (const Layout::Unit& unit : layout.units()) {
    elems += unit.runs.back().end_elems;
  }
  return elems;
}

constexpr char kNothingKept[] =
    "\"stage\": 3, \"stage3_max_live_parameters\": 0, "
    "\"stage3_max_reuse_distance\": 0, \"stage3_prefetch_bucket_size\": 0, "
    "\"stage3_param_persistence_threshold\": 0";

constexpr char kAllKept[] =
    "\"stage\": 3, \"stage3_max_live_parameters\": 1e9, "
    "\"stage3_param_persistence_threshold\": 0";

TEST(RankTraffic, ZeroThreeSendsThreeTimesThePaddedParameters) {
  const Layout layout = MakeLayout();
  // Units are multiples of 2048, so that two and four ranks need no more.
  for (const int ranks : {2, 4}) {
    const config::Config config =
        Make(kNothingKept, ranks, ", \"communication_data_type\": \"bf16\"");
    const RankTraffic traffic = TrafficOf(config, layout, 0, 0);
    const std::int64_t all = layout.total_elems() * 2;
    EXPECT_EQ(traffic.params, 2 * all / ranks * (ranks - 1));
    EXPECT_EQ(traffic.params_first, traffic.params);
    std::int64_t gradients = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      gradients += TrafficOf(config, layout, rank, 0).gradients;
    }
    EXPECT_EQ(gradients, GradientElems(layout) * 2 * (ranks - 1));
  }
}

TEST(RankTraffic, WhatStaysGatheredIsSentOnce) {
  const Layout layout = MakeLayout();
  const RankTraffic traffic = TrafficOf(Make(kAllKept, 2), layout, 0, 0);
  EXPECT_EQ(traffic.params, layout.total_elems());
  EXPECT_EQ(traffic.params_first, 2 * traffic.params)
      << "the first pass does not know what comes next";
  EXPECT_EQ(traffic.params_of(0), 0);
  EXPECT_EQ(traffic.params_of(10), 11 * traffic.params);
  const RankTraffic leased =
      TrafficOf(Make(kAllKept, 2), layout, 0, layout.unit_elems_max());
  EXPECT_GT(leased.params, traffic.params) << "the server allows less";
}

TEST(RankTraffic, UnitsOfPersistentParametersComeOnceAStep) {
  const Layout layout = MakeLayout();
  const RankTraffic traffic = TrafficOf(
      Make("\"stage\": 3, \"stage3_param_persistence_threshold\": 1e9", 2,
           ", \"gradient_accumulation_steps\": 3"),
      layout, 0, 0);
  EXPECT_EQ(traffic.params_first, layout.total_elems());
  EXPECT_EQ(traffic.params, layout.total_elems());
}

TEST(RankTraffic, AccumulationMultipliesWhatTravelsEachMicroStep) {
  const Layout layout = MakeLayout();
  const auto of = [&](int stage, int micros) {
    return TrafficOf(
        Make("\"stage3_param_persistence_threshold\": 0, \"stage\": " +
                 std::to_string(stage),
             2, ", \"gradient_accumulation_steps\": " + std::to_string(micros)),
        layout, 0, 0);
  };
  EXPECT_EQ(of(1, 4).gradients, of(1, 1).gradients);
  EXPECT_EQ(of(2, 4).gradients, 4 * of(2, 1).gradients);
  EXPECT_EQ(of(2, 4).params, of(2, 1).params);
  EXPECT_EQ(of(3, 4).params, 4 * of(3, 1).params);
  EXPECT_EQ(of(0, 1).params, 0);
  EXPECT_EQ(of(0, 1).gradients,
            GradientElems(layout) *
                DtypeBytes(Make("\"stage\": 0", 2).communication_data_type))
      << "an all-reduce: twice, of which a half";
}

TEST(RankTraffic, UnequalPartsAreCountedAsTheyAre) {
  const Layout layout = MakeLayout();
  const config::Config config = Make(kNothingKept, 3);
  std::int64_t gradients = 0;
  for (const std::int32_t rank : {0, 1, 2}) {
    gradients += TrafficOf(config, layout, rank, 0).gradients;
  }
  // Every gradient goes to its owner from the two others.
  EXPECT_EQ(gradients, 2 * GradientElems(layout) *
                           DtypeBytes(config.communication_data_type));
  EXPECT_LT(TrafficOf(config, layout, 0, 0).gradients,
            TrafficOf(config, layout, 2, 0).gradients)
      << "the last part is the short one";
}

TEST(RankTraffic, ALoneRankSendsNothing) {
  const RankTraffic traffic =
      TrafficOf(Make("\"stage\": 3", 1), MakeLayout(), 0, 0);
  EXPECT_EQ(traffic.params_first + traffic.params + traffic.gradients, 0);
}

}  // namespace
}  // namespace stowage::forecast
