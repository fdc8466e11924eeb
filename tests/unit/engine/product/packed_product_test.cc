// Packed products against sums in double, over shapes around every edge of
// tiles and blocks, all element types and orders in memory.

#include "engine/product/packed_product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

namespace stowage::engine {
namespace {

// Elements of a type in a block of exactly their size, for AddressSanitizer.
class Values {
 public:
  Values(std::int64_t count, Dtype dtype)
      : dtype_(dtype),
        bytes_(static_cast<std::size_t>(count * DtypeBytes(dtype))) {}
  void Set(std::int64_t i, float value) {
    if (dtype_ == Dtype::kFp32) return Put(i, value);
    Put(i, dtype_ == Dtype::kBf16 ? FloatToBf16(value) : FloatToFp16(value));
  }
  float Get(std::int64_t i) const {
    if (dtype_ == Dtype::kFp32) return Take<float>(i);
    const auto bits = Take<std::uint16_t>(i);
    return dtype_ == Dtype::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
  }
  void* data() { return bytes_.data(); }
  const std::vector<unsigned char>& bytes() const { return bytes_; }
  Dtype dtype() const { return dtype_; }

 private:
  template <typename T>
  void Put(std::int64_t i, T value) {
    std::memcpy(bytes_.data() + static_cast<std::size_t>(i) * sizeof(T), &value,
                sizeof(T));
  }
  template <typename T>
  T Take(std::int64_t i) const {
    T value;
    std::memcpy(&value, bytes_.data() + static_cast<std::size_t>(i) * sizeof(T),
                sizeof(T));
    return value;
  }

  Dtype dtype_;
  std::vector<unsigned char> bytes_;
};

struct Shape {
  std::int64_t rows, columns, depth;
};

struct Types {
  Dtype in, out;
};

class Case {
 public:
  // `turned`: of the left and the right operand the first index, not the last,
  // is that of neighbours.
  Case(Shape shape, Types types, bool left_turned, bool right_turned, bool bias)
      : shape_(shape),
        left_(shape.rows * shape.depth, types.in),
        right_(shape.depth * shape.columns, types.in),
        bias_(bias ? shape.columns : 0, types.in),
        out_(shape.rows * stride(), types.out) {
    std::mt19937 random(17);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (std::int64_t i = 0; i < shape.rows * shape.depth; ++i) {
      left_.Set(i, uniform(random));
    }
    for (std::int64_t i = 0; i < shape.depth * shape.columns; ++i) {
      right_.Set(i, uniform(random));
    }
    for (std::int64_t i = 0; bias && i < shape.columns; ++i) {
      bias_.Set(i, uniform(random));
    }
    product_ = {.rows = shape.rows,
                .columns = shape.columns,
                .depth = shape.depth,
                .left = {.data = left_.data(),
                         .dtype = types.in,
                         .row_stride = left_turned ? 1 : shape.depth,
                         .column_stride = left_turned ? shape.rows : 1},
                .right = {.data = right_.data(),
                          .dtype = types.in,
                          .row_stride = right_turned ? 1 : shape.columns,
                          .column_stride = right_turned ? shape.depth : 1},
                .bias = bias ? bias_.data() : nullptr,
                .out = out_.data(),
                .out_stride = stride(),
                .out_dtype = types.out};
    for (std::int64_t i = 0; i < shape.rows * stride(); ++i) out_.Set(i, 7);
  }

  PackedProduct& product() { return product_; }
  Values& left() { return left_; }
  Values& out() { return out_; }
  // Room between the rows of the result.
  std::int64_t stride() const { return shape_.columns + 3; }

  void Check() const {
    const Matrix& l = product_.left;
    const Matrix& r = product_.right;
    const double unit = out_.dtype() == Dtype::kFp32   ? 0x1p-22
                        : out_.dtype() == Dtype::kBf16 ? 0x1p-8
                                                       : 0x1p-11;
    for (std::int64_t m = 0; m < shape_.rows; ++m) {
      for (std::int64_t n = 0; n < stride(); ++n) {
        const float got = out_.Get(m * stride() + n);
        if (n >= shape_.columns) {
          ASSERT_EQ(got, 7) << "between rows";
          continue;
        }
        double want = product_.bias != nullptr ? bias_.Get(n) : 0;
        double size = std::abs(want);
        for (std::int64_t k = 0; k < shape_.depth; ++k) {
          const double term =
              double{left_.Get(m * l.row_stride + k * l.column_stride)} *
              right_.Get(k * r.row_stride + n * r.column_stride);
          want += term;
          size += std::abs(term);
        }
        ASSERT_NEAR(got, want, unit * std::abs(want) + 0x1p-21 * size)
            << m << ", " << n << " of " << shape_.rows << " x "
            << shape_.columns << ", depth " << shape_.depth;
      }
    }
  }

 private:
  Shape shape_;
  Values left_, right_, bias_, out_;
  PackedProduct product_;
};

class PackedProducts
    : public testing::TestWithParam<std::tuple<Dtype, bool, bool>> {
 protected:
  void SetUp() override {
    if (!HavePackedProducts()) GTEST_SKIP() << "this processor has no AVX2";
  }
};

TEST_P(PackedProducts, AreTheSumsOfEveryShape) {
  const auto [dtype, left_turned, right_turned] = GetParam();
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 9, 17, 64, 255, 505}) {
    for (const std::int64_t columns : {1, 7, 8, 15, 16, 17, 33, 130}) {
      for (const std::int64_t depth : {0, 1, 7, 8, 9, 100, 256, 259, 513}) {
        if (rows * columns * depth > 600'000) continue;
        Case test({rows, columns, depth}, {dtype, dtype}, left_turned,
                  right_turned, (rows + columns + depth) % 2 == 0);
        Multiply(test.product(), 0, columns);
        test.Check();
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Several blocks in each direction at once.
TEST_P(PackedProducts, OfSeveralBlocksEachWay) {
  const auto [dtype, left_turned, right_turned] = GetParam();
  Case test({257, 131, 261}, {dtype, dtype}, left_turned, right_turned, true);
  Multiply(test.product(), 0, 131);
  test.Check();
}

TEST_P(PackedProducts, RoundToAnotherType) {
  const auto [dtype, left_turned, right_turned] = GetParam();
  for (const Dtype out : {Dtype::kFp32, Dtype::kFp16, Dtype::kBf16}) {
    Case test({37, 50, 300}, {dtype, out}, left_turned, right_turned, true);
    Multiply(test.product(), 0, 50);
    test.Check();
  }
}

TEST_P(PackedProducts, AreTheSameBitsHoweverColumnsAreCut) {
  const auto [dtype, left_turned, right_turned] = GetParam();
  const Types types{dtype, dtype};
  Case whole({130, 290, 600}, types, left_turned, right_turned, true);
  Multiply(whole.product(), 0, 290);
  Case parts({130, 290, 600}, types, left_turned, right_turned, true);
  Multiply(parts.product(), 200, 290);
  Multiply(parts.product(), 0, 1);
  Multiply(parts.product(), 1, 1);
  Multiply(parts.product(), 1, 200);
  EXPECT_EQ(whole.out().bytes(), parts.out().bytes());
}

TEST_P(PackedProducts, AreTheSameBitsHoweverManyRowsThereAre) {
  const auto [dtype, left_turned, right_turned] = GetParam();
  const Types types{dtype, Dtype::kFp32};
  Case many({300, 40, 300}, types, left_turned, right_turned, false);
  Multiply(many.product(), 0, 40);
  // The same product, row by row.
  Case one({300, 40, 300}, types, left_turned, right_turned, false);
  for (std::int64_t row = 0; row < 300; ++row) {
    PackedProduct product = one.product();
    product.rows = 1;
    product.left.data = static_cast<const char*>(product.left.data) +
                        row * product.left.row_stride * DtypeBytes(dtype);
    product.out = static_cast<float*>(product.out) + row * one.stride();
    Multiply(product, 0, 40);
  }
  EXPECT_EQ(many.out().bytes(), one.out().bytes());
}

// What is not finite stays in its row, and stays what it is.
TEST_P(PackedProducts, KeepWhatIsNotFinite) {
  const auto [dtype, left_turned, right_turned] = GetParam();
  Case test({14, 20, 10}, {dtype, dtype}, left_turned, right_turned, false);
  const Matrix& left = test.product().left;
  test.left().Set(5 * left.row_stride, std::numeric_limits<float>::infinity());
  test.left().Set(9 * left.row_stride + 3 * left.column_stride,
                  std::numeric_limits<float>::quiet_NaN());
  Multiply(test.product(), 0, 20);
  for (std::int64_t row = 0; row < 14; ++row) {
    for (std::int64_t column = 0; column < 20; ++column) {
      const float got = test.out().Get(row * test.stride() + column);
      EXPECT_EQ(std::isinf(got), row == 5) << row << ", " << column;
      EXPECT_EQ(std::isnan(got), row == 9) << row << ", " << column;
    }
  }
}

TEST_P(PackedProducts, OfNoRowsOrColumnsWriteNothing) {
  const auto [dtype, left_turned, right_turned] = GetParam();
  Case test({4, 20, 10}, {dtype, dtype}, left_turned, right_turned, false);
  const auto before = test.out().bytes();
  Multiply(test.product(), 3, 3);
  test.product().rows = 0;
  Multiply(test.product(), 0, 20);
  EXPECT_EQ(test.out().bytes(), before);
}

INSTANTIATE_TEST_SUITE_P(
    TypesAndOrders, PackedProducts,
    testing::Combine(testing::Values(Dtype::kFp32, Dtype::kFp16, Dtype::kBf16),
                     testing::Bool(), testing::Bool()));

}  // namespace
}  // namespace stowage::engine
