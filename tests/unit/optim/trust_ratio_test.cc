// Which elements count for a tensor's norms, however chunks cut it, and sums
// that lie with several owners.

#include "optim/trust_ratio.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace stowage::optim {
namespace {

// Constants with which every update is one of sqrt(1) = 1.
LambConstants UnitUpdates() {
  LambHyperparameters h;
  h.max_coeff = 1000;
  h.beta1 = 0;
  h.beta2 = 0;
  h.eps = 0;
  return MakeLambConstants(h, 1, 1);
}

Layout MakeLayout(std::vector<ParamSpec> params) {
  LayoutSpec spec;
  spec.groups = {{.name = "all"}, {.name = "ice", .frozen = true}};
  spec.units = {{.name = "u", .params = std::move(params)}};
  return *Layout::Create(spec);
}

struct Arrays {
  explicit Arrays(std::int64_t elems)
      : p(static_cast<std::size_t>(elems), 3.0F),
        m(p.size()),
        v(p.size()),
        g(p.size(), 2.0F),
        copy(p.size(), -7.0F) {}
  ChunkState At(std::int64_t begin) {
    return {p.data() + begin, m.data() + begin, v.data() + begin};
  }
  std::vector<float> p, m, v, g, copy;
};

void OneStep(const Layout& layout, std::span<const Layout::Chunk> chunks,
             const NormReduction& reduce, Arrays* arrays, TrustRatios* ratios) {
  TrustRatioUpdate update(layout, chunks);
  const std::vector<LambConstants> constants(2, UnitUpdates());
  update.BeginStep(constants);
  const auto source = [&](const Layout::Chunk& chunk) {
    return GradientSource{
        {}, Dtype::kFp32, arrays->g.data() + chunk.begin_elems};
  };
  std::int64_t index = 0;
  for (const Layout::Chunk& chunk : chunks) {
    update.Measure(BestKernels(), index++, source(chunk),
                   arrays->At(chunk.begin_elems));
  }
  ASSERT_TRUE(update.Combine(reduce).ok());
  *ratios = update.summary();
  index = 0;
  for (const Layout::Chunk& chunk : chunks) {
    update.Update(BestKernels(), index++, source(chunk),
                  arrays->At(chunk.begin_elems),
                  arrays->copy.data() + chunk.begin_elems);
  }
}

// Tensors of 100, 40000 and 3 elements: the second over two chunks, padding
// (which here holds rubbish) in no norm and not written.
TEST(TrustRatioUpdate, CountsEveryElementOfATensorOnceAndNoPadding) {
  const Layout layout =
      MakeLayout({{.name = "a", .shape = {100}},
                  {.name = "b", .shape = {40000}},
                  {.name = "c", .shape = {3}},
                  {.name = "f", .shape = {5}, .group_index = 1}});
  ASSERT_EQ(layout.chunks().size(), 2U);
  Arrays whole(layout.state_elems());
  TrustRatios ratios;
  OneStep(layout, layout.chunks(), nullptr, &whole, &ratios);
  // All weights 3, all updates 1: each tensor's ratio is 3.
  EXPECT_EQ(ratios.tensors, 3);
  EXPECT_DOUBLE_EQ(ratios.min, 3);
  EXPECT_DOUBLE_EQ(ratios.max, 3);
  EXPECT_DOUBLE_EQ(ratios.mean, 3);
  std::vector<bool> is_param(whole.p.size());
  for (const Layout::Param& param : layout.units()[0].params) {
    for (std::int64_t i = 0; i < param.elems && !param.frozen; ++i) {
      is_param[static_cast<std::size_t>(param.begin_elems + i)] = true;
    }
  }
  for (std::size_t i = 0; i < whole.p.size(); ++i) {
    ASSERT_EQ(whole.p[i] != 3.0F, is_param[i]) << i;
    ASSERT_EQ(whole.copy[i] == whole.p[i], is_param[i]) << i;
  }

  // Another cut of the same run: the same ratios.
  const std::int64_t end =
      layout.chunks()[1].begin_elems + layout.chunks()[1].elems;
  std::vector<Layout::Chunk> cut;
  for (std::int64_t begin = 0; begin < end; begin += 6400) {
    cut.push_back({.begin_elems = begin,
                   .elems = std::min<std::int64_t>(6400, end - begin)});
  }
  Arrays pieces(layout.state_elems());
  TrustRatios again;
  OneStep(layout, cut, nullptr, &pieces, &again);
  EXPECT_EQ(again.tensors, 3);
  EXPECT_NEAR(again.max, ratios.max, 1e-12);
  EXPECT_EQ(pieces.p, whole.p);
}

TEST(TrustRatioUpdate, AddsWhatOtherOwnersFound) {
  const Layout layout = MakeLayout({{.name = "w", .shape = {4}}});
  Arrays arrays(layout.state_elems());
  TrustRatios ratios;
  OneStep(
      layout, layout.chunks(),
      [](std::span<LambNorms> norms) {
        EXPECT_EQ(norms.size(), 1U);
        EXPECT_EQ(norms[0].weight, 36);  // 4 x 3^2
        norms[0].weight += 64;
        EXPECT_NEAR(norms[0].update, 4, 1e-12);
        norms[0].update = 25;
        return absl::OkStatus();
      },
      &arrays, &ratios);
  EXPECT_DOUBLE_EQ(ratios.max, 2);
  TrustRatioUpdate update(layout, layout.chunks());
  const std::vector<LambConstants> constants(2, UnitUpdates());
  update.BeginStep(constants);
  EXPECT_EQ(update
                .Combine([](std::span<LambNorms>) {
                  return absl::UnavailableError("a node is gone");
                })
                .code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace stowage::optim
