// The compute kernels of the optimizer chain, over plain spans of memory.
//
// A leaf: no I/O, no threads, no allocation. The server's compute team and the
// engine (for state that is not offloaded) call them chunk by chunk; who calls
// decides on threads. Three implementations (AVX-512, AVX2, portable) are
// chosen at run time and give identical bits:
//   - every operation is one correctly rounded IEEE-754 operation in the order
//     written here; nothing is contracted to FMA where that would change a bit;
//   - sums over elements run in kSumLanes interleaved lanes (element i goes to
//     lane i mod kSumLanes), which are added lane 0 first at the end;
//   - 16-bit results round to nearest even as torch rounds them;
//   - a result that is NaN is written as 0x7fc00000 (in fp32), because which
//     payload survives an operation on two NaNs is the compiler's choice.
// Requires: the thread's default floating-point mode (denormals are kept).
//
// Gradients come as `slots`: one array per micro-batch, in the job's parameter
// type, all of the same length. Their sum is ((s0 + s1) + s2) + ... in fp32.
//
// Thread safety: pure functions; ranges written must not overlap others.

#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/dtype.h"
#include "optim/kernel_arguments.h"

namespace stowage::optim {

enum class Isa : std::uint8_t { kPortable, kAvx2, kAvx512 };
std::string_view IsaName(Isa isa);  // "portable", "avx2", "avx512"

// The gradient of a range: the sum of `slots`, or, when `sum` is set, an fp32
// array that already holds it (then slots is empty). With neither the gradient
// is zero. Every pointer is to the first element of the range, aligned to 64
// bytes for the full-speed path (any alignment is right).
struct GradientSource {
  std::span<const void* const> slots = {};
  Dtype slot_dtype = Dtype::kFp32;
  const float* sum = nullptr;
};

struct AdamHyperparameters {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool decoupled_weight_decay = true;
  bool bias_correction = true;
};

// `step` is t = 1, 2, ...; counts applied steps only (skipped ones do not).
// Requires: step >= 1.
AdamConstants MakeAdamConstants(const AdamHyperparameters& hyperparameters,
                                std::int64_t step, double gradient_factor);

struct LambHyperparameters {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double max_coeff = 10;
  double min_coeff = 0.01;
  bool eps_inside_sqrt = false;
  bool bias_correction = true;
};

// As MakeAdamConstants().
LambConstants MakeLambConstants(const LambHyperparameters& hyperparameters,
                                std::int64_t step, double gradient_factor);

// The trust ratio of a tensor from the sums of squares over all of it:
// |p| / |u|, kept within [min_coeff, max_coeff], or 1 if either norm is zero.
double LambTrustRatio(const LambConstants& constants, const LambNorms& norms);

// One implementation of all kernels.
struct KernelSet {
  Isa isa = Isa::kPortable;

  // Sum of squares in fp64 of the gradient's fp32 sum; not finite exactly when
  // an element of the sum is not finite (squares of fp32 cannot overflow fp64).
  double (*sum_of_squares)(const GradientSource& gradient,
                           std::int64_t elems) = nullptr;

  // sum[i] = ((start + s0[i]) + s1[i]) + ...; start is sum[i], or 0 if `first`
  // (then the first slot is copied, not added to zero).
  void (*accumulate)(std::span<const void* const> slots, Dtype slot_dtype,
                     bool first, float* sum, std::int64_t elems) = nullptr;

  // One Adam or AdamW update of range.elems elements in place, with the copy
  // for the ranks, in one pass:
  //   g = (sum of gradient) * gradient_factor; if l2_decay != 0:
  //       g = g + l2_decay * p
  //   m = m * beta1 + g * one_minus_beta1
  //   v = v * beta2 + (g * g) * one_minus_beta2
  //   u = step_size * (m / (sqrt(v) * inv_sqrt_bias2 + eps))
  //   p = p - (decoupled_decay * p + u)
  //   copy = round(p)
  // Decay joins the update before p is rounded, once: as a factor 1 - lr *
  // decay in fp32 it would vanish below 6e-8 and cost a second rounding of p.
  // Large ranges with a copy aligned to 64 bytes write it with streaming stores
  // and end with a store fence, unless range.copy_stays_cached.
  void (*adam)(const AdamConstants& constants, const GradientSource& gradient,
               const AdamRange& range) = nullptr;

  // First pass of a Lamb update: sums of squares of p and u, which changes
  // nothing. Lanes as sum_of_squares.
  //   g, m and v as adam's (without l2_decay)
  //   u = m / (sqrt(v + eps_inside) + eps_outside) + weight_decay * p
  LambNorms (*lamb_norms)(const LambConstants& constants,
                          const GradientSource& gradient,
                          const AdamRange& range) = nullptr;

  // Second pass: m, v and u as lamb_norms, then
  //   p = p - step * u
  //   copy = round(p)
  // with step = fp32(step_size * trust ratio of the tensor). Streams as adam.
  void (*lamb)(const LambConstants& constants, float step,
               const GradientSource& gradient,
               const AdamRange& range) = nullptr;

  // The 1-bit optimizers (optim/onebit.h puts them together). Signs lie 8 a
  // byte, the first element in the most significant bit; 1 is "at least zero"
  // and decodes to +scale, 0 to -scale. Sums of squares as sum_of_squares.
  //
  // error = (m * beta1 + g * one_minus_beta1) * scaling + error, with g as
  // adam's. Returns: the sum of squares of what error is then.
  double (*onebit_compensate)(const OneBitMomentum& momentum,
                              const GradientSource& gradient,
                              const float* moment1, float* error,
                              std::int64_t elems) = nullptr;
  // bits = signs of error; error = error - decoded.
  void (*onebit_pack)(float scale, float* error, std::uint8_t* bits,
                      std::int64_t elems) = nullptr;
  // error = ((decoded_0 + decoded_1) + ...) + error, in the order given.
  // Returns: the sum of squares of what error is then.
  // Requires: 1 to kOneBitRanksMax `bits`, a scale for each.
  double (*onebit_serve)(std::span<const std::uint8_t* const> bits,
                         std::span<const float> scales, float* error,
                         std::int64_t elems) = nullptr;
  // out = decoded.
  void (*onebit_unpack)(float scale, const std::uint8_t* bits, float* out,
                        std::int64_t elems) = nullptr;
  // p = p - step * (m / (sqrt(v) + eps) + weight_decay * p); copy = round(p).
  // m and v stay. Streams as adam.
  void (*frozen)(float eps, float weight_decay, float step,
                 const AdamRange& range) = nullptr;
  // OneBitLamb's fresh variance and what its factor needs:
  //   g = (m - beta1 * last) / one_minus_beta1
  //   fresh = fresh * beta2 + (g * g) * one_minus_beta2
  // Returns: sums over u = m / (sqrt(v) + eps) and u + weight_decay * p, and
  //   the largest (sqrt(v) + eps) / (sqrt(fresh) + eps), NaNs left out.
  FrozenLambSums (*frozen_lamb)(const FrozenLambConstants& constants,
                                const float* last_moment1, float* fresh_moment2,
                                const AdamRange& range) = nullptr;

  // target[i] = round(source[i]) in `dtype`; fp32 is a plain copy.
  void (*convert)(const float* source, Dtype dtype, void* target,
                  std::int64_t elems) = nullptr;
};

// The fastest set this processor runs; STOWAGE_ISA=portable|avx2|avx512 in the
// environment asks for a slower one (an unknown or unsupported value is
// ignored with a warning).
const KernelSet& BestKernels();

// Errors: kUnimplemented if this processor lacks the instructions, naming them.
absl::StatusOr<const KernelSet*> KernelsFor(Isa isa);

// All sets this processor runs, fastest first.
std::vector<const KernelSet*> SupportedKernels();

// Index of the first element of the gradient's sum that is not finite, or -1.
std::int64_t FirstNonFinite(const GradientSource& gradient, std::int64_t elems);

}  // namespace stowage::optim
