// Leased parameters: where units lie, and what their pages take.

#include "server/core/param_segment.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "storage/host/memory_budget.h"
#include "storage/host/segment_folder.h"
#include "tests/support/fake_rank.h"

namespace stowage::core {
namespace {

constexpr std::int64_t kPage = kSegmentPageBytes;

class LeasedParams : public ::testing::Test {
 protected:
  // Units of so many pages, `pages` of them in memory at once.
  void Make(const std::vector<std::int64_t>& units, std::int64_t pages) {
    LayoutSpec spec;
    spec.groups = {{.name = "g"}};
    for (std::size_t u = 0; u < units.size(); ++u) {
      spec.units.push_back({.name = absl::StrCat("u", u),
                            .params = {{.name = absl::StrCat("u", u, ".w"),
                                        .shape = {units[u] * kPage / 4}}}});
    }
    layout_ = *Layout::Create(spec);
    folder_ = *storage::SegmentFolder::Create(shm_.path(), "cafe");
    auto made = ParamSegment::Create(
        layout_, *folder_, {.job_id = 1, .leased_bytes = pages * kPage},
        &budget_,
        *budget_.Reserve(ParamDataOffsetBytes(layout_) + pages * kPage,
                         "test"));
    ASSERT_TRUE(made.ok()) << made.status();
    params_ = *std::move(made);
    pages_ = pages;
    placed_.assign(units.size(), false);
  }
  std::int64_t PagesOf(std::int32_t unit) const {
    return params_->unit_bytes(unit) / kPage;
  }
  void Place(std::int32_t unit) {
    ASSERT_TRUE(params_->PlaceUnit(unit).ok());
    std::memset(params_->param(unit, 0), unit + 1,
                static_cast<std::size_t>(params_->unit_bytes(unit)));
    placed_[static_cast<std::size_t>(unit)] = true;
  }
  void Free(std::int32_t unit) {
    params_->FreeUnit(unit);
    placed_[static_cast<std::size_t>(unit)] = false;
  }
  bool AtItsOwnPlace(std::int32_t unit) const {
    return params_->unit_words(unit).page.load() == 0;
  }
  // Nobody wrote into another's pages, and the file has no page too many.
  void Check() {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      if (!placed_[static_cast<std::size_t>(u)]) continue;
      const std::byte* const at = params_->param(u, 0);
      ASSERT_EQ(
          at - reinterpret_cast<const std::byte*>(&params_->unit_words(0)),
          UnitParamOffsetBytes(layout_, u, params_->unit_words(u)) -
              ParamWordsOffsetBytes());
      for (std::int64_t i = 0; i < params_->unit_bytes(u); i += 512) {
        ASSERT_EQ(at[i], std::byte(u + 1)) << "unit " << u << " byte " << i;
      }
    }
    struct stat info {};
    ASSERT_EQ(
        ::stat(absl::StrCat(folder_->path(), "/", params_->file_name()).c_str(),
               &info),
        0);
    ASSERT_LE(info.st_blocks * 512,
              ParamDataOffsetBytes(layout_) + pages_ * kPage);
  }

  testing::ShmFolder shm_;
  storage::MemoryBudget budget_{1 << 26};
  Layout layout_;
  std::unique_ptr<storage::SegmentFolder> folder_;
  std::unique_ptr<ParamSegment> params_;
  std::int64_t pages_ = 0;
  std::vector<bool> placed_;
};

TEST_F(LeasedParams, BlocksNeverLeaveTheSharedPages) {
  Make({1, 8, 8, 8, 8, 8, 2}, 24);
  for (int step = 0; step < 20; ++step) {
    std::vector<std::int32_t> in;
    std::int64_t pages = 0;
    for (std::int32_t u = 0; u < 7; ++u) {
      while (pages + PagesOf(u) > 24) {
        pages -= PagesOf(in.front());
        Free(in.front());
        in.erase(in.begin());
      }
      Place(u);
      in.push_back(u);
      pages += PagesOf(u);
      EXPECT_FALSE(AtItsOwnPlace(u)) << "step " << step << " unit " << u;
      Check();
    }
    for (const std::int32_t u : in) Free(u);
  }
}

TEST_F(LeasedParams, AUnitWithoutAFreePlaceHasItsOwn) {
  Make({4, 4, 4, 6}, 12);
  for (const std::int32_t u : {0, 1, 2}) Place(u);
  // 4 free pages at both ends, 4 in use between them.
  Free(0);
  Free(2);
  Place(3);
  EXPECT_TRUE(AtItsOwnPlace(3));
  Check();
  Free(3);
  // The pages that went for it are there again.
  for (const std::int32_t u : {0, 2}) {
    Place(u);
    EXPECT_FALSE(AtItsOwnPlace(u));
  }
  Check();
}

TEST_F(LeasedParams, PaddingIsZeroWhateverWasThereBefore) {
  LayoutSpec spec;
  spec.groups = {{.name = "g"}, {.name = "frozen", .frozen = true}};
  spec.units.push_back(
      {.name = "full", .params = {{.name = "w", .shape = {2048}}}});
  spec.units.push_back(
      {.name = "ragged",
       .params = {{.name = "a", .shape = {5}},
                  {.name = "f", .shape = {3}, .group_index = 1},
                  {.name = "b", .shape = {67}}}});
  layout_ = *Layout::Create(spec);
  folder_ = *storage::SegmentFolder::Create(shm_.path(), "cafe");
  params_ = *ParamSegment::Create(
      layout_, *folder_, {.job_id = 1, .leased_bytes = 2 * kPage}, &budget_,
      *budget_.Reserve(ParamDataOffsetBytes(layout_) + 2 * kPage, "test"));
  pages_ = 2;
  placed_.assign(2, false);
  Place(0);
  Free(0);
  ASSERT_TRUE(params_->PlaceUnit(1).ok());
  params_->ClearPadding(1);
  const auto& ragged = layout_.units()[1];
  std::vector<bool> of_a_param(static_cast<std::size_t>(ragged.elems));
  for (const Layout::Param& param : ragged.params) {
    for (std::int64_t i = 0; i < param.elems; ++i) {
      of_a_param[static_cast<std::size_t>(param.begin_elems + i)] = true;
    }
  }
  for (std::int64_t i = 0; i < ragged.elems; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, params_->param(1, i), sizeof(bits));
    ASSERT_EQ(bits, of_a_param[static_cast<std::size_t>(i)] ? 0x01010101U : 0U)
        << "element " << i;
  }
}

TEST_F(LeasedParams, AnyOrderOfAnySizes) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  std::vector<std::int64_t> units;
  for (int u = 0; u < 12; ++u) {
    units.push_back(std::uniform_int_distribution<std::int64_t>(1, 9)(random));
  }
  Make(units, 24);
  std::int64_t pages = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::int32_t u = std::uniform_int_distribution<>(0, 11)(random);
    if (placed_[static_cast<std::size_t>(u)]) {
      Free(u);
      pages -= PagesOf(u);
    } else if (pages + PagesOf(u) <= 24) {
      Place(u);
      pages += PagesOf(u);
    }
    if (i % 16 == 0) Check();
  }
}

}  // namespace
}  // namespace stowage::core
