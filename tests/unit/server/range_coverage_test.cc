#include "server/core/range_coverage.h"

#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace stowage::core {
namespace {

TEST(RangeCoverage, MergesTouchingAndOverlappingRanges) {
  RangeCoverage coverage;
  EXPECT_EQ(coverage.FirstGap(0, 10), 0);
  coverage.Add(0, 4);
  coverage.Add(6, 10);
  EXPECT_EQ(coverage.FirstGap(0, 10), 4);
  EXPECT_EQ(coverage.FirstGap(7, 10), 10);
  coverage.Add(4, 6);
  EXPECT_EQ(coverage.FirstGap(0, 10), 10);
  EXPECT_EQ(coverage.range_count(), 1);
  coverage.Add(20, 20);
  EXPECT_EQ(coverage.range_count(), 1);
  EXPECT_EQ(coverage.FirstGap(5, 5), 5);
}

TEST(RangeCoverage, AgreesWithABitmap) {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    RangeCoverage coverage;
    std::vector<bool> bits(200);
    for (int i = 0; i < 30; ++i) {
      const auto begin = static_cast<std::int64_t>(random() % 200);
      const auto end =
          begin + static_cast<std::int64_t>(random() %
                                            static_cast<unsigned>(201 - begin));
      coverage.Add(begin, end);
      for (std::int64_t b = begin; b < end; ++b) {
        bits[static_cast<std::size_t>(b)] = true;
      }
      for (std::int64_t from = 0; from < 200; from += 13) {
        std::int64_t gap = from;
        while (gap < 200 && bits[static_cast<std::size_t>(gap)]) ++gap;
        ASSERT_EQ(coverage.FirstGap(from, 200), gap);
      }
    }
  }
}

}  // namespace
}  // namespace stowage::core
