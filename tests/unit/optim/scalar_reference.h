// The kernels once more, element by element as optim/kernels.h words them: the
// oracle that every implementation must equal bit for bit.

#pragma once

#include <cstdint>
#include <span>
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

LambNorms ReferenceLambNorms(const LambConstants& constants,
                             const GradientSource& gradient,
                             const AdamRange& range);

void ReferenceLamb(const LambConstants& constants, float step,
                   const GradientSource& gradient, const AdamRange& range);

double ReferenceCompensate(const OneBitMomentum& momentum,
                           const GradientSource& gradient, const float* moment1,
                           float* error, std::int64_t elems);

void ReferencePack(float scale, float* error, std::uint8_t* bits,
                   std::int64_t elems);

double ReferenceServe(std::span<const std::uint8_t* const> bits,
                      std::span<const float> scales, float* error,
                      std::int64_t elems);

void ReferenceFrozen(float eps, float weight_decay, float step,
                     const AdamRange& range);

FrozenLambSums ReferenceFrozenLamb(const FrozenLambConstants& constants,
                                   const float* last_moment1,
                                   float* fresh_moment2,
                                   const AdamRange& range);

void ReferenceConvert(const float* source, Dtype dtype, void* target,
                      std::int64_t elems);

}  // namespace stowage::optim
