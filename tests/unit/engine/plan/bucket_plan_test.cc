#include "engine/plan/bucket_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace stowage::plan {
namespace {

Layout Units(const std::vector<std::int64_t>& sizes) {
  LayoutSpec spec;
  spec.groups = {{"g", false}};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::string name = "u" + std::to_string(i);
    spec.units.push_back({name, {{name + ".w", {sizes[i]}, 0}}});
  }
  return Layout::Create(spec).value();
}

struct Sent {
  std::vector<std::vector<std::int32_t>> units;  // by message
  std::int64_t largest = 0;                      // elements of all parts
};

// Runs all units in order; checks that each one's parts are covered once, in
// order, and complete with the last piece.
Sent RunAll(const Layout& layout, std::int32_t parts, std::int64_t bucket) {
  const ShardPlan plan(layout, parts);
  BucketPlan buckets(&plan, bucket);
  std::vector<BucketMessage> messages;
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    for (BucketMessage& m : buckets.Add(u)) messages.push_back(std::move(m));
  }
  for (BucketMessage& m : buckets.Flush()) messages.push_back(std::move(m));
  EXPECT_EQ(buckets.pending_elems(), 0);
  Sent sent;
  std::vector<std::int64_t> done(static_cast<std::size_t>(layout.unit_count()),
                                 0);
  std::vector<int> completed(done.size(), 0);
  for (const BucketMessage& message : messages) {
    std::vector<std::int32_t> units;
    std::int64_t elems = 0;
    for (const BucketPiece& piece : message.pieces) {
      const auto u = static_cast<std::size_t>(piece.unit);
      EXPECT_EQ(piece.in_part.begin, done[u]);
      EXPECT_FALSE(piece.in_part.empty());
      done[u] = piece.in_part.end;
      completed[u] += piece.last ? 1 : 0;
      units.push_back(piece.unit);
      elems += std::min(piece.in_part.elems() * parts,
                        plan.gradient_elems(piece.unit));
    }
    sent.units.push_back(units);
    sent.largest = std::max(sent.largest, elems);
  }
  for (std::size_t u = 0; u < done.size(); ++u) {
    const auto unit = static_cast<std::int32_t>(u);
    EXPECT_EQ(done[u],
              std::min(plan.part_elems(unit), plan.gradient_elems(unit)));
    EXPECT_EQ(completed[u], 1);
  }
  return sent;
}

TEST(BucketPlan, JoinsSmallUnitsUpToTheBucket) {
  const Layout layout = Units({1000, 1000, 1000, 1000, 1000});
  // 1000 elements are 1024 with their padding.
  EXPECT_EQ(RunAll(layout, 2, 3072).units,
            (std::vector<std::vector<std::int32_t>>{{0, 1, 2}, {3, 4}}));
  EXPECT_EQ(RunAll(layout, 2, 3071).units,
            (std::vector<std::vector<std::int32_t>>{{0, 1}, {2, 3}, {4}}));
  EXPECT_EQ(RunAll(layout, 2, 1'000'000).units.size(), 1U);
}

TEST(BucketPlan, FlushesBeforeTheUnitThatWouldOverflow) {
  const Layout layout = Units({500, 4000, 500});
  EXPECT_EQ(RunAll(layout, 2, 4096).units,
            (std::vector<std::vector<std::int32_t>>{{0}, {1}, {2}}));
}

TEST(BucketPlan, CutsAUnitLargerThanTheBucket) {
  const Layout layout = Units({8192});
  const Sent sent = RunAll(layout, 2, 2048);
  EXPECT_EQ(sent.units.size(), 4U);
  EXPECT_LE(sent.largest, 2048);
}

TEST(BucketPlan, CoversEveryPartForAllSizes) {
  for (const std::int64_t size : {1, 63, 64, 65, 2047, 2048, 2049, 10000}) {
    for (std::int32_t parts = 1; parts <= 9; ++parts) {
      for (const std::int64_t bucket : {1, 64, 128, 1000, 4096, 100000}) {
        const Layout layout = Units({size, 777, size});
        const Sent sent = RunAll(layout, parts, bucket);
        // A piece is never below one alignment of each part.
        EXPECT_LE(sent.largest,
                  std::max<std::int64_t>(bucket, kParamAlignElems * parts));
      }
    }
  }
}

TEST(CutPieces, AreWithinTheBoundAndAligned) {
  EXPECT_EQ(CutPieces(0, 64).size(), 0U);
  EXPECT_EQ(CutPieces(300, 128),
            (std::vector<ElemRange>{{0, 128}, {128, 256}, {256, 300}}));
  EXPECT_EQ(CutPieces(100, 1), (std::vector<ElemRange>{{0, 64}, {64, 100}}));
}

}  // namespace
}  // namespace stowage::plan
