#include <immintrin.h>

#include <cstddef>

#include "engine/product/tile_kernels.h"
#include "engine/product/vectors_avx2.h"

namespace stowage::engine::internal {
namespace {

void Transpose8(__m256 (&r)[8]) {
  __m256 pairs[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  __m256 quads[8];
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; ++k) {
      quads[i + 2 * k] =
          _mm256_shuffle_ps(pairs[i + k], pairs[i + k + 2], 0x44);
      quads[i + 2 * k + 1] =
          _mm256_shuffle_ps(pairs[i + k], pairs[i + k + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

// Eight lines (some may be missing) whose elements are neighbours, turned:
// to[k * to_stride] holds element k of all of them. Writes 8 floats each time.
template <Dtype kDtype>
void PackTurned(Part from, int lines, std::int64_t depth,
                std::int64_t to_stride, float* to) {
  for (std::int64_t k = 0; k < depth; k += 8) {
    const std::int64_t count = depth - k < 8 ? depth - k : 8;
    __m256 r[8];
    for (int i = 0; i < 8; ++i) {
      r[i] = i < lines ? LoadSome<kDtype>(
                             At<kDtype>(from.data, i * from.stride + k), count)
                       : _mm256_setzero_ps();
    }
    Transpose8(r);
    for (std::int64_t i = 0; i < count; ++i) {
      _mm256_storeu_ps(to + (k + i) * to_stride, r[i]);
    }
  }
}

// Stores of eight floats reach behind a panel's line of 4 or 6, and the next
// line overwrites that.
template <Dtype kDtype>
void PackLeftByRow(Part from, int rows, int height, std::int64_t depth,
                   float* to) {
  PackTurned<kDtype>(from, rows < height ? rows : height, depth, height, to);
}

template <Dtype kDtype>
void PackLeftByDepth(Part from, int rows, int height, std::int64_t depth,
                     float* to) {
  for (std::int64_t k = 0; k < depth; ++k) {
    _mm256_storeu_ps(
        to + k * height,
        LoadSome<kDtype>(At<kDtype>(from.data, k * from.stride), rows));
  }
}

// The next panel's lines, which are far apart, are asked for while this one is
// packed; where there are none, asking costs nothing.
template <Dtype kDtype>
void PackRightByColumn(Part from, int columns, std::int64_t depth, float* to) {
  for (int i = kTileColumns; i < 2 * kTileColumns; ++i) {
    for (std::int64_t k = 0; k < depth; k += 64 / kBytes<kDtype>) {
      _mm_prefetch(At<kDtype>(from.data, i * from.stride + k), _MM_HINT_T1);
    }
  }
  PackTurned<kDtype>(from, columns, depth, kTileColumns, to);
  from.data = At<kDtype>(from.data, 8 * from.stride);
  PackTurned<kDtype>(from, columns - 8, depth, kTileColumns, to + 8);
}

template <Dtype kDtype>
void PackRightByDepth(Part from, int columns, std::int64_t depth, float* to) {
  for (std::int64_t k = 0; k < depth; ++k, to += kTileColumns) {
    const unsigned char* line = At<kDtype>(from.data, k * from.stride);
    _mm_prefetch(line + 128, _MM_HINT_T1);
    _mm256_storeu_ps(to, LoadSome<kDtype>(line, columns));
    _mm256_storeu_ps(to + 8,
                     LoadSome<kDtype>(line + 8 * kBytes<kDtype>, columns - 8));
  }
}

// One of the depth's elements.
template <int kHeight>
[[gnu::always_inline]] inline void AddOuterProduct(
    const float* __restrict left, const float* __restrict right,
    __m256 (&sums)[kHeight][2]) {
  const __m256 low = _mm256_loadu_ps(right);
  const __m256 high = _mm256_loadu_ps(right + 8);
#pragma GCC unroll 6
  for (int r = 0; r < kHeight; ++r) {
    const __m256 each = _mm256_broadcast_ss(left + r);
    sums[r][0] = _mm256_fmadd_ps(each, low, sums[r][0]);
    sums[r][1] = _mm256_fmadd_ps(each, high, sums[r][1]);
  }
}

// Four elements of the depth in a loop's round: docs/design/0012 has what one
// and eight are like.
template <int kHeight, bool kAdd>
void MultiplyTile(const float* __restrict left, const float* __restrict right,
                  std::int64_t depth, float* __restrict tile) {
  __m256 sums[kHeight][2];
#pragma GCC unroll 6
  for (int r = 0; r < kHeight; ++r) {
    float* const row = tile + std::ptrdiff_t{r} * kTileColumns;
    sums[r][0] = kAdd ? _mm256_loadu_ps(row) : _mm256_setzero_ps();
    sums[r][1] = kAdd ? _mm256_loadu_ps(row + 8) : _mm256_setzero_ps();
  }
  for (; depth >= 4; depth -= 4) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      AddOuterProduct<kHeight>(left + std::ptrdiff_t{k} * kHeight,
                               right + std::ptrdiff_t{k} * kTileColumns, sums);
    }
    left += std::ptrdiff_t{4} * kHeight;
    right += std::ptrdiff_t{4} * kTileColumns;
  }
  for (; depth > 0; --depth) {
    AddOuterProduct<kHeight>(left, right, sums);
    left += kHeight;
    right += kTileColumns;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kHeight; ++r) {
    float* const row = tile + std::ptrdiff_t{r} * kTileColumns;
    _mm256_storeu_ps(row, sums[r][0]);
    _mm256_storeu_ps(row + 8, sums[r][1]);
  }
}

void Multiply(const float* left, const float* right, int height,
              std::int64_t depth, bool add, float* tile) {
  if (height == 6) {
    if (add) {
      MultiplyTile<6, true>(left, right, depth, tile);
    } else {
      MultiplyTile<6, false>(left, right, depth, tile);
    }
  } else if (add) {
    MultiplyTile<4, true>(left, right, depth, tile);
  } else {
    MultiplyTile<4, false>(left, right, depth, tile);
  }
}

// A row's panels one after the other: whole lines of the result at once.
template <Dtype kDtype>
void RoundRows(const Sums& sums, std::int64_t rows, std::int64_t columns,
               const Rows& to) {
  auto* line = static_cast<unsigned char*>(to.data);
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* from = sums.data + r * kTileColumns;
    const float* bias = sums.bias;
    for (std::int64_t column = 0; column < columns; column += kTileColumns) {
      const __m256 low =
          _mm256_add_ps(_mm256_loadu_ps(from), _mm256_loadu_ps(bias));
      const __m256 high =
          _mm256_add_ps(_mm256_loadu_ps(from + 8), _mm256_loadu_ps(bias + 8));
      StoreSome<kDtype>(low, high, columns - column,
                        line + column * kBytes<kDtype>);
      from += sums.panel_stride;
      bias += kTileColumns;
    }
    line += to.stride * kBytes<kDtype>;
  }
}

void Round(const Sums& sums, std::int64_t rows, std::int64_t columns,
           const Rows& to) {
  const auto round = to.dtype == kBf16   ? RoundRows<kBf16>
                     : to.dtype == kFp16 ? RoundRows<kFp16>
                                         : RoundRows<kFp32>;
  round(sums, rows, columns, to);
}

template <Dtype kDtype>
constexpr TileKernels::Packs kPacks = {
    PackLeftByRow<kDtype>, PackLeftByDepth<kDtype>, PackRightByColumn<kDtype>,
    PackRightByDepth<kDtype>};

}  // namespace

constinit const TileKernels kAvx2TileKernels = {kPacks<kFp32>, kPacks<kFp16>,
                                                kPacks<kBf16>, Multiply, Round};

}  // namespace stowage::engine::internal
