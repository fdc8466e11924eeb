// Our element types as LibTorch's.

#pragma once

#include "common/dtype.h"
#include <c10/core/ScalarType.h>

namespace stowage::engine {

inline at::ScalarType ToScalarType(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFp32:
      return at::kFloat;
    case Dtype::kFp16:
      return at::kHalf;
    case Dtype::kBf16:
      return at::kBFloat16;
  }
  return at::kFloat;
}

}  // namespace stowage::engine
