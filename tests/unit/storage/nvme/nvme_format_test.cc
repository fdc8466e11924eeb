// The bytes of a store: checksum, extent map, manifest, memory and space sums.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/bytes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/host/pinned_arena.h"
#include "storage/nvme/crc32c.h"
#include "storage/nvme/extent_map.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/memory_plan.h"
#include "storage/nvme/nvme_options.h"
#include "storage/nvme/place_book.h"

namespace stowage::storage {
namespace {

std::uint32_t SumOf(const std::string& text) {
  return Crc32c(std::as_bytes(std::span<const char>(text)));
}

TEST(Crc32c, HasTheValuesOfRfc3720) {
  EXPECT_EQ(SumOf("123456789"), 0xE3069283U);
  EXPECT_EQ(SumOf(std::string(32, '\0')), 0x8A9136AAU);
  EXPECT_EQ(SumOf(std::string(32, '\xff')), 0x62A8AB43U);
  EXPECT_EQ(SumOf(""), 0U);
}

TEST(Crc32c, ContinuesFromWhatCameBefore) {
  std::string text(100000, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) {
    text[i] = static_cast<char>(i * 7 + i / 256);
  }
  const auto bytes = std::as_bytes(std::span<const char>(text));
  for (const std::size_t cut : {0U, 1U, 63U, 4096U, 99999U}) {
    EXPECT_EQ(Crc32c(bytes.subspan(cut), Crc32c(bytes.first(cut))),
              Crc32c(bytes));
  }
}

Layout TestLayout() {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {{.name = "a"}, {.name = "b"}, {.name = "f", .frozen = true}};
  spec.units = {
      {.name = "big",
       .params = {{.name = "w", .shape = {1000, 1000}, .group_index = 0},
                  {.name = "b", .shape = {1000}, .group_index = 1}}},
      {.name = "cold",
       .params = {{.name = "c", .shape = {5000}, .group_index = 2}}},
      {.name = "small", .params = {{.name = "s", .shape = {3}}}}};
  return *Layout::Create(spec);
}

TEST(ExtentMap, CoversEveryElementOnceAndNoTwoExtentsOverlap) {
  const Layout layout = TestLayout();
  for (const std::int32_t files : {1, 3}) {
    const ExtentMap map = ExtentMap::OfState(
        layout, {.extent_bytes = kMiB, .files = files, .places = 3});
    std::int64_t elems = 0;
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      std::int64_t at = 0;
      for (std::int32_t e = map.unit_begin(u); e < map.unit_begin(u + 1); ++e) {
        EXPECT_EQ(map.extent(e).unit_index, u);
        std::int64_t bytes = 0;
        for (std::int64_t p = map.extent(e).begin; p < map.extent(e).end; ++p) {
          EXPECT_EQ(map.piece(p).extent, e);
          EXPECT_EQ(map.piece(p).begin_elems, at);
          EXPECT_EQ(map.piece(p).offset_bytes, bytes);
          EXPECT_EQ(map.piece(p).bytes, map.piece(p).elems * 12);
          at += map.piece(p).elems;
          bytes += map.piece(p).bytes;
        }
        EXPECT_EQ(map.extent(e).used_bytes, bytes);
        EXPECT_EQ(map.extent(e).bytes % 4096, 0);
      }
      EXPECT_EQ(at,
                layout.units()[static_cast<std::size_t>(u)].trainable_elems);
      elems += at;
    }
    EXPECT_EQ(elems, layout.state_elems());
    // Places of all extents, file by file.
    std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> ranges(
        static_cast<std::size_t>(files));
    for (std::size_t e = 0; e < map.extents().size(); ++e) {
      for (std::int32_t place = 0; place < 3; ++place) {
        const Extent& at = map.extents()[e];
        const std::int64_t offset =
            map.OffsetBytes(static_cast<std::int32_t>(e), place);
        EXPECT_EQ(offset % 4096, 0);
        ranges[static_cast<std::size_t>(at.file)].push_back(
            {offset, offset + at.bytes});
      }
    }
    for (std::size_t f = 0; f < ranges.size(); ++f) {
      std::sort(ranges[f].begin(), ranges[f].end());
      std::int64_t end = 0;
      for (const auto& [from, to] : ranges[f]) {
        EXPECT_GE(from, end);
        end = to;
      }
      EXPECT_EQ(end, map.file_bytes(static_cast<std::int32_t>(f)));
    }
  }
}

// The numbers of storage/nvme/FORMAT.md, "Worked example".
TEST(ExtentMap, IsWhatTheFormatPageSays) {
  LayoutSpec spec;
  spec.groups = {{.name = "g"}};
  spec.units = {{.name = "w", .params = {{.name = "p", .shape = {100, 1000}}}}};
  const Layout layout = *Layout::Create(spec);
  const ExtentMap map =
      ExtentMap::OfState(layout, {.extent_bytes = kMiB, .places = 2});
  std::vector<std::int64_t> bytes;
  for (const Piece& piece : map.pieces()) bytes.push_back(piece.bytes);
  EXPECT_EQ(bytes,
            (std::vector<std::int64_t>{393216, 393216, 393216, 20736, 3840}));
  ASSERT_EQ(map.extents().size(), 2U);
  EXPECT_EQ(map.extent(0).bytes, 786432);
  EXPECT_EQ(map.extent(1).bytes, 417792);
  EXPECT_EQ(map.file_bytes(0), 2408448);
  EXPECT_EQ(map.OffsetBytes(1, 0), 786432);
  EXPECT_EQ(map.OffsetBytes(1, 1), 1990656);
  const Piece& third = map.piece(map.chunk_piece(2));
  EXPECT_EQ(third.extent, 1);
  EXPECT_EQ(map.OffsetBytes(1, 1) + third.offset_bytes + 2 * third.elems * 4 +
                (70000 - third.begin_elems) * 4,
            2270656);
}

TEST(ExtentMap, FindsThePieceOfEveryChunk) {
  const Layout layout = TestLayout();
  const ExtentMap map = ExtentMap::OfState(layout, {.extent_bytes = kMiB});
  for (std::size_t c = 0; c < layout.chunks().size(); ++c) {
    const Layout::Chunk& chunk = layout.chunks()[c];
    const Piece& piece =
        map.piece(map.chunk_piece(static_cast<std::int32_t>(c)));
    EXPECT_EQ(map.extent(piece.extent).unit_index, chunk.unit_index);
    EXPECT_EQ(piece.begin_elems, chunk.begin_elems);
    EXPECT_EQ(piece.elems, chunk.elems);
  }
}

Manifest TestManifest(const Layout& layout, const NvmeStoreOptions& options) {
  Manifest manifest;
  manifest.sequence = 41;
  manifest.slot_bytes = 1 << 20;
  manifest.durability = Durability::kPower;
  manifest.shape = ShapeOf(layout, options);
  for (std::int64_t step : {6, 7}) {
    KeptCommit commit;
    commit.record = {.step = step,
                     .applied_steps = step - 1,
                     .client_state = std::string("\0\1\2", 3)};
    commit.state = PlaceTable(StateMap(layout, manifest.shape));
    commit.params = PlaceTable(ParamMap(layout, manifest.shape));
    for (std::size_t i = 0; i < commit.state.places.size(); ++i) {
      commit.state.places[i] =
          static_cast<std::uint8_t>((i + static_cast<std::size_t>(step)) % 3);
    }
    for (std::size_t i = 0; i < commit.state.checksums.size(); ++i) {
      commit.state.checksums[i] =
          static_cast<std::uint32_t>(i * 77 + static_cast<std::size_t>(step));
    }
    manifest.commits.push_back(commit);
  }
  return manifest;
}

NvmeStoreOptions TestOptions() {
  NvmeStoreOptions options;
  options.job_name = "gpt";
  options.job_id = 99;
  options.paths = {"/a", "/b"};
  options.kept_versions = 2;
  options.params = true;
  options.extent_bytes = kMiB;
  return options;
}

TEST(Manifest, ReadsBackWhatWasWritten) {
  const Layout layout = TestLayout();
  const Manifest manifest = TestManifest(layout, TestOptions());
  const std::string bytes = EncodeManifest(manifest);
  EXPECT_LE(static_cast<std::int64_t>(bytes.size()),
            ManifestSlotBytes(manifest.shape, StateMap(layout, manifest.shape),
                              ParamMap(layout, manifest.shape)));
  const auto read = DecodeManifest(bytes + std::string(5000, '\0'));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->sequence, manifest.sequence);
  EXPECT_EQ(read->durability, manifest.durability);
  EXPECT_EQ(read->shape, manifest.shape);
  ASSERT_EQ(read->commits.size(), 2U);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(read->commits[i].record, manifest.commits[i].record);
    EXPECT_EQ(read->commits[i].state, manifest.commits[i].state);
    EXPECT_EQ(read->commits[i].params, manifest.commits[i].params);
  }
}

TEST(Manifest, RefusesEveryFlippedBitAndEveryTruncation) {
  const Layout layout = TestLayout();
  const std::string bytes = EncodeManifest(TestManifest(layout, TestOptions()));
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::string bad = bytes;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    EXPECT_FALSE(DecodeManifest(bad).ok()) << i;
    EXPECT_FALSE(DecodeManifest(bytes.substr(0, i)).ok()) << i;
  }
}

TEST(JobFile, KeepsTheLayoutAndTheRecord) {
  const Layout layout = TestLayout();
  const std::string bytes = EncodeJobFile(
      {.layout = layout.spec(), .job_record = std::string("a\0b", 3)});
  const auto read = DecodeJobFile(bytes);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->job_record, std::string("a\0b", 3));
  EXPECT_EQ(Layout::Create(read->layout)->fingerprint(), layout.fingerprint());
}

TEST(PlaceBook, AlwaysFindsAPlaceThatNoKeptCommitUses) {
  PlaceBook book(2, 4);
  PlaceTable table;
  table.checksums = {};
  for (const int place : {2, 3, 0}) {
    table.places = {static_cast<std::uint8_t>(place), kPlaceZero};
    book.Keep(table);
  }
  EXPECT_EQ(book.Next(0, 0), 1);
  EXPECT_EQ(book.Next(0, kPlaceZero), 1);
  EXPECT_EQ(book.Next(1, kPlaceMemory), 0);
  EXPECT_EQ(book.Next(1, 0), 1);
  book.Clear();
  EXPECT_EQ(book.Next(0, 3), 0);
}

TEST(NvmeOptions, SpaceIsKeptVersionsPlusOneTimesTwelveBytes) {
  const Layout layout = TestLayout();
  NvmeStoreOptions options = TestOptions();
  options.params = false;
  for (const std::int32_t kept : {1, 2, 5}) {
    options.kept_versions = kept;
    std::vector<std::int64_t> by_path;
    const std::int64_t bytes = NvmeSpaceBytes(layout, options, &by_path);
    EXPECT_EQ(by_path.size(), 2U);
    EXPECT_EQ(by_path[0] + by_path[1], bytes);
    const std::int64_t state =
        std::int64_t{kept + 1} * 12 * layout.state_elems();
    EXPECT_GE(bytes, state);
    EXPECT_LT(bytes, state + std::int64_t{kept + 1} * 100 * kKiB + 2 * kMiB);
  }
}

TEST(NvmeOptions, FitsAnyBudgetExactlyOrSaysWhatItNeeds) {
  const Layout layout = TestLayout();
  NvmeStoreOptions options = TestOptions();
  const std::int64_t least = NvmePinnedBytesMin(layout, options);
  EXPECT_FALSE(FitNvmeOptions(layout, options, least - 1).ok());
  for (std::int64_t budget = least; budget < 64 * kMiB; budget += 777777) {
    const auto fitted = FitNvmeOptions(layout, options, budget);
    if (!fitted.ok()) {
      EXPECT_LT(budget, RoundUp(least, kHugePageBytes) + kHugePageBytes);
      continue;
    }
    EXPECT_TRUE(CheckNvmeOptions(*fitted).ok());
    EXPECT_LE(NvmePinnedBytes(layout, *fitted), budget);
    EXPECT_GE(fitted->slots, 3);
  }
}

TEST(NvmeOptions, NamesTheOptionThatIsWrong) {
  const auto message = [](auto change) {
    NvmeStoreOptions options = TestOptions();
    change(options);
    return std::string(CheckNvmeOptions(options).message());
  };
  EXPECT_EQ(message([](NvmeStoreOptions&) {}), "");
  EXPECT_THAT(message([](auto& o) { o.queue_depth = 0; }),
              ::testing::HasSubstr("queue_depth"));
  EXPECT_THAT(message([](auto& o) { o.block_size = 1000; }),
              ::testing::HasSubstr("block_size"));
  EXPECT_THAT(message([](auto& o) { o.slots = 2; }),
              ::testing::HasSubstr("buffer_count"));
  EXPECT_THAT(message([](auto& o) { o.paths = {"a"}; }),
              ::testing::HasSubstr("not absolute"));
  EXPECT_THAT(message([](auto& o) {
                o.paths = {"/a", "/a"};
              }),
              ::testing::HasSubstr("twice"));
  EXPECT_THAT(message([](auto& o) { o.job_name = "../x"; }),
              ::testing::HasSubstr("job name"));
  EXPECT_THAT(message([](auto& o) { o.kept_versions = 64; }),
              ::testing::HasSubstr("kept_versions"));
}

}  // namespace
}  // namespace stowage::storage
