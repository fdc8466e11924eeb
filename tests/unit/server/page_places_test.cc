#include "server/core/page_places.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <vector>

namespace stowage::core {
namespace {

using End = PagePlaces::End;

TEST(PagePlaces, UnitsOfOneSizeAlwaysFit) {
  PagePlaces places(400);
  std::vector<std::int64_t> taken;
  for (int i = 0; i < 4; ++i) taken.push_back(*places.Take(100, End::kFront));
  EXPECT_EQ(places.free_bytes(), 0);
  EXPECT_EQ(places.Take(100, End::kFront), std::nullopt);
  for (int i = 0; i < 1000; ++i) {
    const std::size_t which = static_cast<std::size_t>(i * 7 % 4);
    places.Give({taken[which], 100});
    const std::optional<std::int64_t> again = places.Take(100, End::kFront);
    ASSERT_TRUE(again.has_value());
    taken[which] = *again;
  }
}

// What a GPT does: a small unit first, then blocks, then the small one goes.
// With small ones at the front the fourth block would not fit.
TEST(PagePlaces, SmallUnitsDoNotStandInTheWayOfLargeOnes) {
  PagePlaces places(400);
  for (int step = 0; step < 50; ++step) {
    const std::int64_t small = *places.Take(3, End::kBack);
    const std::int64_t other = *places.Take(5, End::kBack);
    std::vector<std::int64_t> blocks;
    for (int i = 0; i < 3; ++i) {
      const auto at = places.Take(100, End::kFront);
      ASSERT_TRUE(at.has_value()) << "step " << step << " block " << i;
      blocks.push_back(*at);
    }
    places.Give({small, 3});
    places.Give({other, 5});
    ASSERT_TRUE(places.Take(100, End::kFront).has_value()) << "step " << step;
    for (const std::int64_t at : {0, 100, 200, 300}) places.Give({at, 100});
  }
  EXPECT_EQ(places.free_bytes(), 400);
}

TEST(PagePlaces, TakesTheSmallestRunThatIsLargeEnough) {
  PagePlaces places(100);
  ASSERT_EQ(places.Take(100, End::kFront), 0);
  places.Give({0, 30});
  places.Give({40, 10});
  places.Give({60, 20});
  EXPECT_EQ(places.Take(15, End::kFront), 60);
  EXPECT_EQ(places.Take(8, End::kBack), 42);
  EXPECT_EQ(places.Take(30, End::kBack), 0);
  EXPECT_EQ(places.Take(6, End::kFront), std::nullopt);
}

TEST(PagePlaces, PiecesAreTheSmallestRuns) {
  PagePlaces places(100);
  ASSERT_EQ(places.Take(100, End::kFront), 0);
  places.Give({0, 30});
  places.Give({40, 10});
  places.Give({60, 20});
  const std::vector<PagePlaces::Run> pieces = places.TakePieces(25);
  ASSERT_EQ(pieces.size(), 2U);
  EXPECT_EQ(pieces[0].offset, 40);
  EXPECT_EQ(pieces[0].bytes, 10);
  EXPECT_EQ(pieces[1].offset, 60);
  EXPECT_EQ(pieces[1].bytes, 15);
  EXPECT_EQ(places.free_bytes(), 35);
  EXPECT_TRUE(places.TakePieces(0).empty());
}

// Against a map of single pages, with a printed seed.
TEST(PagePlaces, NeverGivesAPageTwice) {
  constexpr std::int64_t kPages = 64;
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto upto = [&](std::int64_t n) {
    return std::uniform_int_distribution<std::int64_t>(1, n)(random);
  };
  PagePlaces places(kPages);
  std::vector<bool> used(kPages);
  std::vector<PagePlaces::Run> runs;
  std::int64_t free_pages = kPages;
  const auto mark = [&](const PagePlaces::Run& run, bool value) {
    for (std::int64_t p = run.offset; p < run.offset + run.bytes; ++p) {
      ASSERT_NE(used.at(static_cast<std::size_t>(p)), value);
      used[static_cast<std::size_t>(p)] = value;
    }
    free_pages += value ? -run.bytes : run.bytes;
  };
  for (int i = 0; i < 20000; ++i) {
    if (upto(2) == 1 && free_pages > 0) {
      const std::int64_t pages = upto(12);
      if (const auto at =
              places.Take(pages, upto(2) == 1 ? End::kFront : End::kBack)) {
        runs.push_back({*at, pages});
        mark(runs.back(), true);
      } else if (pages <= free_pages) {
        for (const PagePlaces::Run& run : places.TakePieces(pages)) {
          runs.push_back(run);
          mark(run, true);
        }
      }
    } else if (!runs.empty()) {
      const auto which = static_cast<std::size_t>(
          upto(static_cast<std::int64_t>(runs.size())) - 1);
      places.Give(runs[which]);
      mark(runs[which], false);
      runs.erase(runs.begin() + static_cast<std::ptrdiff_t>(which));
    }
    ASSERT_EQ(places.free_bytes(), free_pages);
  }
  for (const PagePlaces::Run& run : runs) places.Give(run);
  EXPECT_EQ(places.Take(kPages, End::kBack), 0) << "it did not grow together";
}

}  // namespace
}  // namespace stowage::core
