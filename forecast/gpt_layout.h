// The layout of stow-train's GPT, without LibTorch: what `stowctl plan` plans
// for. tests/unit/forecast compares it with the model's own.

#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/layout.h"

namespace stowage::forecast {

struct GptShape {
  std::int64_t layers = 6;
  std::int64_t width = 384;
  std::int64_t heads = 6;  // divides width; the layout does not show it
  std::int64_t context = 128;
  std::int64_t vocabulary = 256;

  friend bool operator==(const GptShape&, const GptShape&) = default;
};

// Parameters of the whole model.
std::int64_t ParameterCount(const GptShape& shape);

// The usual shape of about `parameters`: width a multiple of 64 with heads of
// 64, about 64 of width to a layer. Requires: parameters >= 1.
GptShape ShapeOfSize(std::int64_t parameters, std::int64_t context,
                     std::int64_t vocabulary);

LayoutSpec GptLayout(const GptShape& shape, Dtype param_dtype);

}  // namespace stowage::forecast
