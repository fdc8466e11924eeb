#include "common/layout.h"

#include <gtest/gtest.h>

#include "common/segment_format.h"

namespace stowage {
namespace {

LayoutSpec Spec() {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {{"decay", false}, {"no_decay", false}, {"frozen", true}};
  spec.units = {{"a",
                 {{"a.bias", {100}, 1},
                  {"a.weight", {300, 300}, 0},
                  {"a.position", {10, 10}, 2},
                  {"a.gain", {100}, 1}}},
                {"b", {{"b.weight", {65}, 0}}}};
  return spec;
}

TEST(Layout, OrdersTrainableByGroupAndFrozenLast) {
  const Layout layout = Layout::Create(Spec()).value();
  const Layout::Unit& a = layout.units()[0];
  ASSERT_EQ(a.params.size(), 4U);
  EXPECT_EQ(a.params[0].name, "a.weight");
  EXPECT_EQ(a.params[1].name, "a.bias");
  EXPECT_EQ(a.params[2].name, "a.gain");
  EXPECT_EQ(a.params[3].name, "a.position");
  EXPECT_EQ(a.params[1].declared_index, 0);
  for (const Layout::Param& param : a.params) {
    EXPECT_EQ(param.begin_elems % kParamAlignElems, 0);
  }
  ASSERT_EQ(a.runs.size(), 2U);
  EXPECT_EQ(a.runs[0].group_index, 0);
  EXPECT_EQ(a.runs[1].begin_elems, a.runs[0].end_elems);
  EXPECT_EQ(layout.parameter_count(), 300 * 300 + 200 + 100 + 65);
  EXPECT_EQ(layout.trainable_count(), 300 * 300 + 200 + 65);
}

TEST(Layout, UnitsStartOnPagesInEveryTypeAndChunksStayInRuns) {
  const Layout layout = Layout::Create(Spec()).value();
  std::int64_t covered = 0;
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    const Layout::Unit& unit = layout.units()[static_cast<std::size_t>(u)];
    EXPECT_EQ(unit.begin_elems % kUnitAlignElems, 0);
    EXPECT_EQ(unit.state_begin_elems % kUnitAlignElems, 0);
    EXPECT_EQ(UnitParamOffsetBytes(layout, u) % kSegmentPageBytes, 0);
    EXPECT_EQ(UnitGradientOffsetBytes(layout, 3, u) % kSegmentPageBytes, 0);
    EXPECT_LE(unit.runs.back().end_elems, unit.trainable_elems);
    for (std::int64_t c = layout.chunk_begin(u); c < layout.chunk_begin(u + 1);
         ++c) {
      const Layout::Chunk& chunk = layout.chunks()[static_cast<std::size_t>(c)];
      EXPECT_EQ(chunk.unit_index, u);
      EXPECT_LE(chunk.elems, kChunkElems);
      covered += chunk.elems;
    }
  }
  std::int64_t runs = 0;
  for (const Layout::Unit& unit : layout.units()) {
    for (const Layout::Run& run : unit.runs) {
      runs += run.end_elems - run.begin_elems;
    }
  }
  EXPECT_EQ(covered, runs);
}

TEST(Layout, RefusesWhatCannotBeWithUnitAndParameter) {
  const auto message = [](const LayoutSpec& spec) {
    return std::string(Layout::Create(spec).status().message());
  };
  LayoutSpec spec = Spec();
  spec.units[1].params[0].name = "a.bias";
  EXPECT_NE(message(spec).find("\"a.bias\" appears twice"), std::string::npos);
  spec = Spec();
  spec.units[0].params[0].shape = {3, 0};
  EXPECT_NE(message(spec).find("unit \"a\", parameter 0"), std::string::npos);
  spec = Spec();
  spec.units[0].params[0].shape = {std::int64_t{1} << 40,
                                   std::int64_t{1} << 40};
  EXPECT_NE(message(spec).find("elements"), std::string::npos);
  spec = Spec();
  spec.units[0].params[0].group_index = 3;
  EXPECT_NE(message(spec).find("group 3 of 3"), std::string::npos);
  spec = Spec();
  spec.units[1].name = "a";
  EXPECT_NE(message(spec).find("unit \"a\" appears twice"), std::string::npos);
  spec = Spec();
  spec.units.clear();
  EXPECT_NE(message(spec).find("no units"), std::string::npos);
  spec = Spec();
  spec.units[0].params[0].name = "bad\nname";
  EXPECT_NE(message(spec).find("control character"), std::string::npos);
}

TEST(Layout, DifferenceNamesTheFirstThingThatDiffers) {
  LayoutSpec other = Spec();
  EXPECT_EQ(DescribeDifference(Spec(), other), "");
  EXPECT_EQ(Layout::Create(other)->fingerprint(),
            Layout::Create(Spec())->fingerprint());
  other.units[0].params[1].shape = {300, 200};
  EXPECT_EQ(DescribeDifference(Spec(), other),
            "unit \"a\": parameter \"a.weight\" has shape [300, 300], the job "
            "has [300, 200]");
  EXPECT_NE(Layout::Create(other)->fingerprint(),
            Layout::Create(Spec())->fingerprint());
}

}  // namespace
}  // namespace stowage
