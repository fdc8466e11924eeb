// State on the ranks: the shards of all ranks together are one rank's state.

#include "engine/exchange/rank_shards.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

namespace stowage::engine {
namespace {

Layout Model() {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {{"decay", false}, {"plain", false}, {"frozen", true}};
  spec.units = {{"a", {{"a.w", {70000}, 0}, {"a.b", {10}, 1}}},
                {"b", {{"b.ice", {300}, 2}, {"b.w", {129}, 0}}}};
  return Layout::Create(spec).value();
}

float Hash(std::int64_t i) {
  return static_cast<float>((i * 2654435761 % 1000) - 500) / 1000;
}

ApplyArgs Args(std::int64_t step) {
  ApplyArgs args;
  args.step = step;
  args.gradient_factor = 0.5;
  args.groups.resize(3);
  args.groups[0] = {.lr = 1e-2, .weight_decay = 0.1};
  args.groups[1] = {.lr = 1e-2};
  return args;
}

// Trains `parts` stores for some steps; returns masters and copies, joined.
std::vector<float> Train(const Layout& layout, std::int32_t parts,
                         double* sum_of_squares) {
  const plan::ShardPlan plan(layout, parts);
  std::vector<float> state;
  std::vector<std::vector<float>> units(
      static_cast<std::size_t>(layout.unit_count()));
  *sum_of_squares = 0;
  for (std::int32_t part = 0; part < parts; ++part) {
    RankShards store(&layout, &plan, part, {});
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      for (const Layout::Param& param :
           layout.units()[static_cast<std::size_t>(u)].params) {
        std::vector<float> values(static_cast<std::size_t>(param.elems));
        for (std::int64_t i = 0; i < param.elems; ++i) {
          values[static_cast<std::size_t>(i)] = Hash(param.begin_elems + i);
        }
        EXPECT_TRUE(store.PutState(u, param.begin_elems, values).ok());
      }
    }
    for (std::int64_t step = 0; step < 3; ++step) {
      for (std::int32_t micro = 0; micro < 2; ++micro) {
        for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
          const plan::ElemRange shard = plan.GradientShard(u, part);
          std::vector<float> gradient(static_cast<std::size_t>(shard.elems()),
                                      0.0F);
          for (const Layout::Param& param :
               layout.units()[static_cast<std::size_t>(u)].params) {
            for (std::int64_t i = 0; i < param.elems; ++i) {
              const std::int64_t at = param.begin_elems + i;
              if (param.frozen || at < shard.begin || at >= shard.end) continue;
              gradient[static_cast<std::size_t>(at - shard.begin)] =
                  Hash(at * 7 + step + 5 * micro);
            }
          }
          const void* const data = gradient.data();
          const std::span<const void* const> one(&data, 1);
          EXPECT_TRUE(store
                          .AddGradient(step, micro, u, 0, one, Dtype::kFp32,
                                       shard.elems())
                          .ok());
          EXPECT_TRUE(store.GradientDone(step, micro, u, false).ok());
        }
      }
      const double losses[] = {1.5};
      const auto verdict = store.Prepare(step, losses);
      if (step == 0) *sum_of_squares += verdict->sum_of_squares;
      EXPECT_EQ(verdict->rank_scalars,
                (std::vector<std::vector<double>>{{1.5}}));
      EXPECT_TRUE(store.Apply(Args(step)).ok());
    }
    EXPECT_EQ(store.info().step, 3);
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      for (const StateKind kind : {StateKind::kMaster, StateKind::kMoment1,
                                   StateKind::kMoment2, StateKind::kParam}) {
        const plan::ElemRange held = kind == StateKind::kParam
                                         ? plan.Shard(u, part)
                                         : plan.GradientShard(u, part);
        std::vector<float> values(static_cast<std::size_t>(held.elems()));
        EXPECT_TRUE(store.ReadState(u, kind, held.begin, values).ok());
        if (kind == StateKind::kMaster || kind == StateKind::kParam) {
          auto& to = units[static_cast<std::size_t>(u)];
          to.insert(to.end(), values.begin(), values.end());
        }
      }
    }
  }
  // Order within a unit depends on the parts: compare as a multiset sum.
  for (std::vector<float>& unit : units) {
    std::sort(unit.begin(), unit.end());
    state.insert(state.end(), unit.begin(), unit.end());
  }
  return state;
}

TEST(RankShards, AllShardsTogetherAreTheWholeState) {
  const Layout layout = Model();
  double whole_squares = 0;
  const std::vector<float> whole = Train(layout, 1, &whole_squares);
  EXPECT_GT(whole_squares, 0);
  for (const std::int32_t parts : {2, 3, 7}) {
    double squares = 0;
    EXPECT_EQ(Train(layout, parts, &squares), whole);
    EXPECT_NEAR(squares, whole_squares, 1e-12 * whole_squares);
  }
}

TEST(RankShards, NamesTheFirstParameterThatIsNotFinite) {
  const Layout layout = Model();
  const plan::ShardPlan plan(layout, 1);
  RankShards store(&layout, &plan, 0, {});
  std::vector<float> gradient(static_cast<std::size_t>(plan.gradient_elems(1)),
                              0.0F);
  gradient[128] = INFINITY;
  const void* const data = gradient.data();
  const std::span<const void* const> one(&data, 1);
  ASSERT_TRUE(
      store.AddGradient(0, 0, 1, 0, one, Dtype::kFp32, plan.gradient_elems(1))
          .ok());
  ASSERT_TRUE(store.GradientDone(0, 0, 1, false).ok());
  const auto verdict = store.Prepare(0, {});
  EXPECT_FALSE(std::isfinite(verdict->sum_of_squares));
  EXPECT_EQ(verdict->first_nonfinite_param, "b.w");
}

TEST(RankShards, ASkippedStepMovesTheStepOnly) {
  const Layout layout = Model();
  const plan::ShardPlan plan(layout, 1);
  RankShards store(&layout, &plan, 0, {});
  ApplyArgs args = Args(0);
  args.skip = true;
  ASSERT_TRUE(store.Apply(args).ok());
  EXPECT_EQ(store.info().step, 1);
  EXPECT_EQ(store.info().applied_steps, 0);
  std::vector<float> masters(static_cast<std::size_t>(plan.gradient_elems(0)));
  ASSERT_TRUE(store.ReadState(0, StateKind::kMaster, 0, masters).ok());
  for (const float master : masters) ASSERT_EQ(master, 0);
}

}  // namespace
}  // namespace stowage::engine
