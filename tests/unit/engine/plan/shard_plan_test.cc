#include "engine/plan/shard_plan.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace stowage::plan {
namespace {

Layout Model() {
  LayoutSpec spec;
  spec.groups = {{"decay", false}, {"plain", false}, {"frozen", true}};
  spec.units = {{"big", {{"big.w", {300, 70}, 0}, {"big.b", {70}, 1}}},
                {"tiny", {{"tiny.b", {3}, 1}}},
                {"half", {{"half.ice", {5000}, 2}, {"half.w", {4000}, 0}}},
                {"ice", {{"ice.w", {100}, 2}}}};
  return Layout::Create(spec).value();
}

TEST(ShardPlan, PartsAreEqualAlignedAndCoverEachUnitOnce) {
  const Layout layout = Model();
  for (std::int32_t parts = 1; parts <= 70; ++parts) {
    const ShardPlan plan(layout, parts);
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      const Layout::Unit& unit = layout.units()[static_cast<std::size_t>(u)];
      EXPECT_EQ(plan.part_elems(u) % kParamAlignElems, 0);
      EXPECT_GE(plan.gathered_elems(u), unit.elems);
      std::int64_t next = 0;
      std::int64_t next_gradient = 0;
      for (std::int32_t p = 0; p < parts; ++p) {
        const ElemRange shard = plan.Shard(u, p);
        EXPECT_EQ(shard.begin, next);
        EXPECT_LE(shard.elems(), plan.part_elems(u));
        next = shard.end;
        const ElemRange gradient = plan.GradientShard(u, p);
        EXPECT_EQ(gradient.begin, next_gradient);
        EXPECT_TRUE(gradient.empty() || gradient.begin == shard.begin);
        next_gradient = gradient.end;
      }
      EXPECT_EQ(next, unit.elems);
      EXPECT_EQ(next_gradient, plan.gradient_elems(u));
    }
  }
}

TEST(ShardPlan, OnlyTrainableElementsHaveAGradient) {
  const Layout layout = Model();
  const ShardPlan plan(layout, 2);
  EXPECT_EQ(plan.gradient_elems(2), 4032);  // half.w, padded
  EXPECT_EQ(plan.gradient_elems(3), 0);
}

TEST(NodePart, OneNodeHasTheModelsOwnLayout) {
  const Layout layout = Model();
  const ShardPlan plan(layout, 4);
  const NodePart node = MakeNodePart(layout, plan, 0, 4);
  EXPECT_EQ(node.spec, layout.spec());
  EXPECT_EQ(node.unit, (std::vector<std::int32_t>{0, 1, 2, 3}));
}

// Every element of every parameter is in exactly one node's job, at the place
// that `range` says, in the same group.
TEST(NodePart, NodesTogetherHoldEveryParameterOnce) {
  const Layout layout = Model();
  for (const std::int32_t nodes : {2, 3, 5}) {
    for (const std::int32_t ranks : {1, 2}) {
      const ShardPlan plan(layout, nodes * ranks);
      std::vector<std::vector<int>> seen;
      for (const Layout::Unit& unit : layout.units()) {
        seen.emplace_back(static_cast<std::size_t>(unit.elems), 0);
      }
      for (std::int32_t n = 0; n < nodes; ++n) {
        const NodePart part = MakeNodePart(layout, plan, n * ranks, ranks);
        if (part.spec.units.empty()) continue;
        const auto held = Layout::Create(part.spec);
        ASSERT_TRUE(held.ok()) << held.status().ToString();
        for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
          const std::int32_t at = part.unit[static_cast<std::size_t>(u)];
          if (at < 0) continue;
          const ElemRange range = part.range[static_cast<std::size_t>(u)];
          for (const Layout::Param& piece :
               held->units()[static_cast<std::size_t>(at)].params) {
            bool found = false;
            for (const Layout::Param& param :
                 layout.units()[static_cast<std::size_t>(u)].params) {
              if (!piece.name.starts_with(param.name + "[")) continue;
              found = true;
              EXPECT_EQ(piece.group_index, param.group_index);
              const std::int64_t begin = range.begin + piece.begin_elems;
              EXPECT_GE(begin, param.begin_elems);
              EXPECT_LE(begin + piece.elems, param.begin_elems + param.elems);
              EXPECT_EQ(
                  piece.name.substr(param.name.size()),
                  "[" + std::to_string(begin - param.begin_elems) + ":" +
                      std::to_string(begin - param.begin_elems + piece.elems) +
                      "]");
              for (std::int64_t i = 0; i < piece.elems; ++i) {
                ++seen[static_cast<std::size_t>(u)]
                      [static_cast<std::size_t>(begin + i)];
              }
            }
            EXPECT_TRUE(found) << piece.name;
          }
        }
      }
      for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
        for (const Layout::Param& param :
             layout.units()[static_cast<std::size_t>(u)].params) {
          for (std::int64_t i = 0; i < param.elems; ++i) {
            ASSERT_EQ(seen[static_cast<std::size_t>(u)]
                          [static_cast<std::size_t>(param.begin_elems + i)],
                      1)
                << param.name << " " << i << " " << nodes << "x" << ranks;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace stowage::plan
