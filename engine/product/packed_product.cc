#include "engine/product/packed_product.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#include "common/check.h"
#include "engine/product/tile_kernels.h"
#include "optim/kernels.h"

namespace stowage::engine {
namespace {

using internal::kDepthBlock;
using internal::kPackSlack;
using internal::kTileColumns;
using internal::Sums;
using internal::TileKernels;

// Rows that are packed at a time: a depth block of them is 252 KiB, half of a
// level 2 cache. A multiple of both heights of a tile.
constexpr std::int64_t kRowBlock = 252;
constexpr std::int64_t kColumnPanels = kPackedColumns / kTileColumns;

const TileKernels& Kernels() {
#if defined(__x86_64__)
  return internal::kAvx2TileKernels;
#else
  STOWAGE_CHECK(false);
#endif
}

// Floats, aligned to a cache line; contents are lost when they grow.
class Scratch {
 public:
  float* AtLeast(std::int64_t floats) {
    if (floats > floats_) {
      memory_.reset();  // first, so that both are never held
      memory_.reset(static_cast<float*>(::operator new[](
          static_cast<std::size_t>(floats) * sizeof(float), kAlign)));
      floats_ = floats;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* memory) const {
      ::operator delete[](memory, kAlign);
    }
  };
  std::unique_ptr<float, Free> memory_;
  std::int64_t floats_ = 0;
};

const void* At(const Matrix& matrix, std::int64_t row, std::int64_t column) {
  return static_cast<const char*>(matrix.data) +
         (row * matrix.row_stride + column * matrix.column_stride) *
             DtypeBytes(matrix.dtype);
}

const TileKernels::Packs& PacksOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFp16:
      return Kernels().fp16;
    case Dtype::kBf16:
      return Kernels().bf16;
    case Dtype::kFp32:
      break;
  }
  return Kernels().fp32;
}

// Tiles of six rows, and then of four: two of four hold what six leave over
// better than one of six that is mostly empty. Zeros fill what is left.
class RowTiles {
 public:
  explicit RowTiles(std::int64_t rows) : sixes_(rows / 6) {
    const std::int64_t rest = rows % 6;
    if (rest == 5) {
      ++sixes_;
    } else if (rest > 2 || (rest > 0 && sixes_ == 0)) {
      fours_ = 1;
    } else if (rest > 0) {
      --sixes_;
      fours_ = 2;
    }
  }
  std::int64_t rows() const { return 6 * sixes_ + 4 * fours_; }

  // Calls tile(first row, height) from the first to the last.
  template <typename Tile>
  void ForEach(const Tile& tile) const {
    for (std::int64_t i = 0; i < sixes_; ++i) tile(6 * i, 6);
    for (std::int64_t i = 0; i < fours_; ++i) tile(6 * sixes_ + 4 * i, 4);
  }

 private:
  std::int64_t sixes_;
  std::int64_t fours_ = 0;
};

// The left operand's rows from `first_row`, all of their depth, as
// [depth block][tile][depth][height].
void PackLeft(const PackedProduct& product, std::int64_t first_row,
              const RowTiles& tiles, float* to) {
  const TileKernels::Packs& packs = PacksOf(product.left.dtype);
  const bool by_row = product.left.column_stride == 1;
  const TileKernels::PackLeft pack =
      by_row ? packs.left_by_row : packs.left_by_depth;
  const std::int64_t stride =
      by_row ? product.left.row_stride : product.left.column_stride;
  for (std::int64_t k = 0; k < product.depth; k += kDepthBlock) {
    const std::int64_t depth = std::min(kDepthBlock, product.depth - k);
    tiles.ForEach([&](std::int64_t row, int height) {
      const auto present = static_cast<int>(
          std::min<std::int64_t>(8, product.rows - first_row - row));
      pack({At(product.left, first_row + row, k), stride}, present, height,
           depth, to);
      to += height * depth;
    });
  }
}

void PackRight(const PackedProduct& product, std::int64_t k, std::int64_t depth,
               std::int64_t column, int columns, float* to) {
  const TileKernels::Packs& packs = PacksOf(product.right.dtype);
  const bool by_column = product.right.row_stride == 1;
  const TileKernels::PackRight pack =
      by_column ? packs.right_by_column : packs.right_by_depth;
  pack({At(product.right, k, column),
        by_column ? product.right.column_stride : product.right.row_stride},
       columns, depth, to);
}

// Columns [begin, end) of the rows, at most kPackedColumns; the bias is the
// product's.
void RoundGroup(const PackedProduct& product, std::int64_t first_row,
                std::int64_t rows, std::int64_t begin, std::int64_t end,
                Sums sums) {
  alignas(64) float bias[kPackedColumns] = {};
  const TileKernels::PackRight widen =
      PacksOf(product.right.dtype).right_by_depth;
  for (std::int64_t column = begin; product.bias != nullptr && column < end;
       column += kTileColumns) {
    const auto* const from = static_cast<const char*>(product.bias) +
                             column * DtypeBytes(product.right.dtype);
    widen({from, 0},
          static_cast<int>(std::min<std::int64_t>(kTileColumns, end - column)),
          1, bias + (column - begin));
  }
  auto* const to =
      static_cast<char*>(product.out) +
      (first_row * product.out_stride + begin) * DtypeBytes(product.out_dtype);
  sums.bias = bias;
  Kernels().round(sums, rows, end - begin,
                  {to, product.out_stride, product.out_dtype});
}

// Rows [first_row, first_row + rows) of columns [begin, end), a group of panels
// at a time: for each depth block the left operand's part of it stays in the
// level 2 cache, and a panel of the right one in level 1.
void MultiplyRows(const PackedProduct& product, std::int64_t first_row,
                  std::int64_t rows, std::int64_t begin, std::int64_t end) {
  thread_local Scratch left_scratch;
  thread_local Scratch right_scratch;
  thread_local Scratch sums_scratch;
  const RowTiles tiles(rows);
  const std::int64_t panel_sums = tiles.rows() * kTileColumns;
  float* const left =
      left_scratch.AtLeast(tiles.rows() * product.depth + kPackSlack);
  float* const right = right_scratch.AtLeast(kDepthBlock * kTileColumns);
  float* const sums = sums_scratch.AtLeast(kColumnPanels * panel_sums);
  PackLeft(product, first_row, tiles, left);
  if (product.depth == 0) std::fill_n(sums, kColumnPanels * panel_sums, 0.0F);
  const auto columns_of = [&](std::int64_t column) {
    return static_cast<int>(std::min<std::int64_t>(kTileColumns, end - column));
  };
  for (std::int64_t group = begin; group < end; group += kPackedColumns) {
    const std::int64_t group_end = std::min(group + kPackedColumns, end);
    for (std::int64_t k = 0; k < product.depth; k += kDepthBlock) {
      const std::int64_t depth = std::min(kDepthBlock, product.depth - k);
      float* panel = sums;
      for (std::int64_t column = group; column < group_end;
           column += kTileColumns, panel += panel_sums) {
        PackRight(product, k, depth, column, columns_of(column), right);
        const float* tile_left = left + tiles.rows() * k;
        tiles.ForEach([&](std::int64_t row, int height) {
          Kernels().multiply(tile_left, right, height, depth, k > 0,
                             panel + row * kTileColumns);
          tile_left += height * depth;
        });
      }
    }
    RoundGroup(product, first_row, rows, group, group_end,
               {sums, panel_sums, nullptr});
  }
}

bool HasUnitStride(const Matrix& matrix) {
  return matrix.row_stride == 1 || matrix.column_stride == 1;
}

}  // namespace

bool HavePackedProducts() {
  static const bool have = optim::KernelsFor(optim::Isa::kAvx2).ok();
  return have;
}

void Multiply(const PackedProduct& product, std::int64_t begin,
              std::int64_t end) {
  STOWAGE_CHECK(HavePackedProducts());
  STOWAGE_CHECK(0 <= begin && begin <= end && end <= product.columns);
  STOWAGE_CHECK(HasUnitStride(product.left) && HasUnitStride(product.right));
  if (begin == end || product.rows == 0) return;
  // Blocks of about equal size.
  const std::int64_t blocks = (product.rows + kRowBlock - 1) / kRowBlock;
  const std::int64_t step =
      ((product.rows + blocks - 1) / blocks + 11) / 12 * 12;
  for (std::int64_t row = 0; row < product.rows; row += step) {
    MultiplyRows(product, row, std::min(step, product.rows - row), begin, end);
  }
}

}  // namespace stowage::engine
