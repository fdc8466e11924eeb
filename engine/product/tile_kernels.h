// The inner parts of a packed product, in plain arguments: what is compiled for
// one instruction set sees no library code (optim/kernel_arguments.h says why).
//
// A tile of the result is up to 6 rows x 16 columns and stays in registers
// while it is summed over a block of the depth: 12 vectors of 8, as many as
// hide the multiplier's latency. The left operand is packed in panels of a
// tile's rows, the right one in panels of its columns, both fp32 and in the
// order in which the tile reads them.
//
// Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix
//   Multiplication" (2008); Van Zee and van de Geijn, "BLIS" (2015).
//
// Thread safety: plain functions.

#pragma once

#include <cstdint>

namespace stowage {

enum class Dtype : std::uint8_t;

namespace engine::internal {

inline constexpr int kTileColumns = 16;
// What a tile is summed over before its sums go to memory: a panel of the right
// operand is then 16 KiB, half of a level 1 cache.
inline constexpr std::int64_t kDepthBlock = 256;
// Floats that packing may write behind a panel.
inline constexpr std::int64_t kPackSlack = 8;

// A part of an operand: `data` is its first element; the other one of its two
// strides is 1. What is behind the part is not read.
struct Part {
  const void* data;
  std::int64_t stride;  // elements
};

// Sums of neighbouring columns, [panel][row][kTileColumns], and what is added
// to each row of them: `bias` is as long as all the panels.
struct Sums {
  const float* data;
  std::int64_t panel_stride;  // floats from one panel to the next
  const float* bias;
};

// Rows of a result whose elements are neighbours.
struct Rows {
  void* data;
  std::int64_t stride;  // elements
  Dtype dtype;
};

// All `depth` at most kDepthBlock; `height` 6 or 4.
struct TileKernels {
  // Rows of the left operand -> [depth][height]. `rows`, up to 8, are there to
  // be read; where that is less than `height`, zeros or garbage come behind.
  // ByRow: a row's elements are neighbours; ByDepth: a column's.
  using PackLeft = void (*)(Part from, int rows, int height, std::int64_t depth,
                            float* to);
  // Columns of the right operand -> [depth][kTileColumns], with zeros behind
  // `columns`. ByColumn: a column's elements are neighbours.
  using PackRight = void (*)(Part from, int columns, std::int64_t depth,
                             float* to);
  struct Packs {
    PackLeft left_by_row;
    PackLeft left_by_depth;
    PackRight right_by_column;
    PackRight right_by_depth;
  };
  Packs fp32;
  Packs fp16;
  Packs bf16;

  // tile [height][kTileColumns] = left x right, or += with `add`.
  void (*multiply)(const float* left, const float* right, int height,
                   std::int64_t depth, bool add, float* tile);
  // Sums and bias -> `columns` elements of each of `rows`, rounded once.
  void (*round)(const Sums& sums, std::int64_t rows, std::int64_t columns,
                const Rows& to);
};

#if defined(__x86_64__)
extern const TileKernels kAvx2TileKernels;
#endif

}  // namespace engine::internal
}  // namespace stowage
