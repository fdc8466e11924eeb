// Plain arguments of the compute kernels, apart from kernels.h so that the
// files compiled for one instruction set each see them without any library
// code: an inline function instantiated there could be the copy that the linker
// keeps for the whole program, and would end it on an older processor.
//
// Who includes this: kernels.h (for everybody) and optim's own sources.
// Thread safety: plain values.

#pragma once

#include <cstdint>

namespace stowage {

enum class Dtype : std::uint8_t;  // common/dtype.h, whose headers are not for
                                  // here

namespace optim {

inline constexpr int kSumLanes = 16;

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

// The elements that one Adam call updates; see KernelSet::adam.
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
};

extern const RawKernels kPortableRawKernels;
extern const RawKernels kAvx2RawKernels;
extern const RawKernels kAvx512RawKernels;

}  // namespace internal
}  // namespace optim
}  // namespace stowage
