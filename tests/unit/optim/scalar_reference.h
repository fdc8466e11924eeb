// The kernels once more, element by element as optim/kernels.h words them: the
// oracle that every implementation must equal bit for bit.

#pragma once

#include <cstdint>
#include <vector>

#include "optim/kernels.h"

namespace stowage::optim {

// The gradient's fp32 sum, NaNs as they come.
std::vector<float> ReferenceGradient(const GradientSource& gradient,
                                     std::int64_t elems);

double ReferenceSumOfSquares(const GradientSource& gradient,
                             std::int64_t elems);

void ReferenceAccumulate(const GradientSource& slots, bool first, float* sum,
                         std::int64_t elems);

void ReferenceAdam(const AdamConstants& constants,
                   const GradientSource& gradient, const AdamRange& range);

void ReferenceConvert(const float* source, Dtype dtype, void* target,
                      std::int64_t elems);

}  // namespace stowage::optim
