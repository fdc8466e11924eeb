// Plain arguments of the compute kernels, apart from kernels.h so that the
// files compiled for one instruction set each see them without any library
// code: an inline function instantiated there could be the copy that the linker
// keeps for the whole program, and would end it on an older processor.
//
// Who includes this: kernels.h (for everybody), optim's own sources, and those
// of engine/product that are compiled for an instruction set. Thread safety:
// plain values.

#pragma once

#include <cstdint>

namespace stowage {

enum class Dtype : std::uint8_t;  // common/dtype.h, whose headers are not for
                                  // here

namespace optim {

inline constexpr int kSumLanes = 16;

// Ranks whose signs one call of KernelSet::onebit_serve adds.
inline constexpr int kOneBitRanksMax = 1024;

namespace internal {

// Dtype's enumerators; kernels.cc asserts that they are the same.
inline constexpr Dtype kFp32{1};
inline constexpr Dtype kFp16{2};
inline constexpr Dtype kBf16{3};

}  // namespace internal

// Constants of one Adam step for one parameter group, prepared once per step in
// double and rounded to fp32.
//
// Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization",
//   Algorithm 1; Loshchilov and Hutter, "Decoupled Weight Decay
//   Regularization", Algorithm 2.
struct AdamConstants {
  float gradient_factor = 1;  // 1 / (loss scale * micro-batches) * clip factor
  float beta1 = 0;
  float one_minus_beta1 = 0;
  float beta2 = 0;
  float one_minus_beta2 = 0;
  float eps = 0;
  float step_size = 0;        // lr / (1 - beta1^t)
  float inv_sqrt_bias2 = 0;   // 1 / sqrt(1 - beta2^t)
  float l2_decay = 0;         // weight decay added to the gradient; Adam
  float decoupled_decay = 0;  // lr * weight decay; AdamW
};

// Constants of one Lamb step for one parameter group, as AdamConstants.
//
// Source: You et al., "Large Batch Optimization for Deep Learning: Training
//   BERT in 76 minutes", Algorithm 2, with the differences of DeepSpeed's
//   FusedLamb: no bias correction inside the update, but in the step's size.
struct LambConstants {
  float gradient_factor = 1;  // as AdamConstants
  float beta1 = 0;
  float one_minus_beta1 = 0;
  float beta2 = 0;
  float one_minus_beta2 = 0;
  float eps_inside = 0;   // eps, under the root; the other one is 0
  float eps_outside = 0;  // eps, added to the root
  float weight_decay = 0;
  double step_size = 0;  // lr * sqrt(1 - beta2^t) / (1 - beta1^t)
  double min_coeff = 0;  // bounds of the trust ratio
  double max_coeff = 0;
};

// Sums of squares of a range's parameters and of its update.
struct LambNorms {
  double weight = 0;
  double update = 0;
};

// The momentum that a 1-bit optimizer sends: m = (m * beta1 + g * (1 - beta1))
// * scaling, with g the gradient times its factor.
struct OneBitMomentum {
  float gradient_factor = 1;
  float beta1 = 0;
  float one_minus_beta1 = 0;
  float scaling = 1;
};

// What OneBitLamb keeps of a tensor's update with a frozen variance.
struct FrozenLambConstants {
  float beta1 = 0;
  float one_minus_beta1 = 0;
  float beta2 = 0;
  float one_minus_beta2 = 0;
  float eps = 0;
  float weight_decay = 0;
};
struct FrozenLambSums {
  double direction = 0;  // squares of m / denominator
  double update = 0;     // squares of that plus decay
  float factor_max = 0;  // largest frozen over fresh denominator
};

// The elements that one Adam or Lamb call updates; see KernelSet.
struct AdamRange {
  std::int64_t elems = 0;
  float* master = nullptr;
  float* moment1 = nullptr;
  float* moment2 = nullptr;
  void* copy = nullptr;  // may be null
  Dtype copy_dtype = internal::kFp32;
  // All of a pass fits into the last cache: ordinary stores keep the copy
  // there for whoever reads it next. Same bits either way.
  bool copy_stays_cached = false;
};

namespace internal {

// GradientSource without the span.
struct RawGradient {
  const void* const* slots;
  std::int64_t slot_count;
  Dtype dtype;
  const float* sum;
};

// One implementation; KernelSet's functions are thin wrappers of these.
struct RawKernels {
  double (*sum_of_squares)(const RawGradient& gradient, std::int64_t elems);
  void (*accumulate)(const RawGradient& slots, bool first, float* sum,
                     std::int64_t elems);
  void (*adam)(const AdamConstants& constants, const RawGradient& gradient,
               const AdamRange& range);
  void (*convert)(const float* source, Dtype dtype, void* target,
                  std::int64_t elems);
  LambNorms (*lamb_norms)(const LambConstants& constants,
                          const RawGradient& gradient, const AdamRange& range);
  void (*lamb)(const LambConstants& constants, float step,
               const RawGradient& gradient, const AdamRange& range);
  double (*onebit_compensate)(const OneBitMomentum& momentum,
                              const RawGradient& gradient, const float* moment1,
                              float* error, std::int64_t elems);
  void (*onebit_pack)(float scale, float* error, std::uint8_t* bits,
                      std::int64_t elems);
  double (*onebit_serve)(const std::uint8_t* const* bits, const float* scales,
                         std::int64_t count, float* error, std::int64_t elems);
  void (*onebit_unpack)(float scale, const std::uint8_t* bits, float* out,
                        std::int64_t elems);
  void (*frozen)(float eps, float weight_decay, float step,
                 const AdamRange& range);
  FrozenLambSums (*frozen_lamb)(const FrozenLambConstants& constants,
                                const float* last_moment1, float* fresh_moment2,
                                const AdamRange& range);
};

extern const RawKernels kPortableRawKernels;
extern const RawKernels kAvx2RawKernels;
extern const RawKernels kAvx512RawKernels;

}  // namespace internal
}  // namespace optim
}  // namespace stowage
