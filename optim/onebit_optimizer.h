// OneBitAdam and OneBitLamb over a whole model: a warm-up of uncompressed
// steps, then steps whose momentum travels as signs.
//
// One object holds the model for one rank, whose signs travel by a
// ByteExchange, or for all ranks of a run at once (the server of one host),
// where nothing has to travel. The caller owns parameters, moments and copies,
// and brings gradients: in the warm-up of all ranks together, afterwards each
// rank's own. Who asks `compressed(t)` knows which. t counts applied steps from
// 1; steps 1 to freeze_step are the warm-up.
//
// Named differences from DeepSpeed 0.19.6, whose semantics these are: its first
// call, which only makes the state, is left out (step 1 is a real step), and
// what a checkpoint holds is all of the state, errors included. No bias
// correction, eps outside the root, as there.
//
// Source: Tang et al., "1-bit Adam", Algorithm 1; Li et al., "1-bit LAMB:
//   Communication Efficient Large-Scale Large-Batch Training with LAMB's
//   Convergence Speed", Algorithm 1; DeepSpeed 0.19.6, behaviour only.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/job_spec.h"
#include "optim/kernels.h"
#include "optim/onebit_reduce.h"

namespace stowage::optim {

struct OneBitSettings {
  bool lamb = false;
  std::int64_t freeze_step = 100'000;
  // OneBitLamb only.
  double max_coeff = 10;
  double min_coeff = 0.01;
  double coeff_beta = 0.9;
  double factor_max = 4;
  double factor_min = 0.5;
  double factor_threshold = 0.1;
};

// Requires: spec.one_bit().
OneBitSettings MakeOneBitSettings(const OptimizerSpec& spec);

// One parameter tensor; all arrays are `elems` long, padding left out.
struct OneBitTensor {
  std::int64_t elems = 0;
  std::int32_t group = 0;
  float* master = nullptr;
  float* moment1 = nullptr;
  float* moment2 = nullptr;
  void* copy = nullptr;  // may be null
};

// OneBitLamb's own numbers of a tensor.
struct OneBitLambState {
  double coeff_freeze = 0;
  double last_factor = 1;
  double scaling = 0;  // 0: not chosen yet

  friend bool operator==(const OneBitLambState&,
                         const OneBitLambState&) = default;
};

struct OneBitStepArgs {
  std::int64_t t = 1;
  double gradient_factor = 1;
  std::span<const GroupStep> groups;
  // Warm-up: by tensor. Compressed: by rank that the object holds, then tensor.
  std::span<const GradientSource> gradients;
  // May be empty: one after the other. Decides no bit.
  ParallelFor parallel = nullptr;
};

// Thread safety: externally synchronized.
class OneBitOptimizer {
 public:
  // Allocates all its state: 4 bytes an element for each rank's errors, as much
  // for the servers' errors of all ranks together; for Lamb a fresh variance
  // and a second momentum. For rank `rank` alone, or for all ranks with
  // kAllRanks. Arrays may be null until Bind().
  static constexpr int kAllRanks = -1;
  OneBitOptimizer(const OneBitSettings& settings,
                  std::vector<OneBitTensor> tensors, Dtype copy_dtype, int rank,
                  int ranks);

  // The same for ranks first to first + held - 1, whose messages somebody else
  // carries: for Compress(), Serve() and Finish() instead of compressed steps
  // by Step().
  struct CarriedRanks {
    int first = 0;
    int held = 1;
    int ranks = 1;
  };
  OneBitOptimizer(const OneBitSettings& settings,
                  std::vector<OneBitTensor> tensors, Dtype copy_dtype,
                  const CarriedRanks& carried);

  // What an object with so many sides allocates for tensors of these lengths.
  static std::int64_t StateBytes(const OneBitSettings& settings,
                                 std::span<const std::int64_t> tensor_elems,
                                 int ranks, int sides);
  // With room for what all ranks serve, which the caller has.
  static std::int64_t StateBytes(const OneBitSettings& settings,
                                 std::span<const std::int64_t> tensor_elems,
                                 const CarriedRanks& carried);

  // Says where the arrays lie from now on; lengths and groups are those given
  // first.
  void Bind(std::vector<OneBitTensor> tensors);

  // Whether step `t` travels as signs.
  bool compressed(std::int64_t t) const { return t > settings_.freeze_step; }

  // One applied step. `exchange` is used by compressed steps only; null with
  // kAllRanks.
  // Requires: t >= 1.
  // Errors: the exchange's; then momenta and errors are of no step.
  absl::Status Step(const KernelSet& kernels, const OneBitStepArgs& args,
                    ByteExchange* exchange);

  // A compressed step in parts (optim/onebit_reduce.h). Compress() and Serve()
  // change nothing that is committed: the step can be begun anew.
  // `gathered`: what all ranks served, in rank order.
  void Compress(const KernelSet& kernels, const OneBitStepArgs& args);
  void Serve(const KernelSet& kernels, std::size_t side) {
    sides_[side]->Serve(kernels);
  }
  void Finish(const KernelSet& kernels, const OneBitStepArgs& args,
              std::span<const std::byte> gathered);

  // Ranks that this object holds.
  std::size_t sides() const { return sides_.size(); }
  const OneBitCounters& counters() const { return sides_[0]->counters(); }
  // Trust ratios of the last step; none for Adam.
  const TrustRatios& trust_ratios() const { return ratios_; }

  // What a checkpoint holds beside the caller's arrays, to be read and written
  // in place. By buffer of the exchange: one a tensor, OneBitLamb's one for
  // all.
  std::size_t buffers() const { return buffer_elems_.size(); }
  OneBitReduce& side(std::size_t index) { return *sides_[index]; }
  std::vector<OneBitLambState>& lamb_state() { return lamb_; }
  // By tensor; empty for Adam.
  std::span<float> fresh_variance(std::size_t tensor);

 private:
  AdamRange RangeOf(const OneBitTensor& tensor) const;
  void WarmUp(const KernelSet& kernels, const OneBitStepArgs& args);
  void ChooseScaling(const KernelSet& kernels);
  absl::Status ReduceMomenta(const KernelSet& kernels,
                             const OneBitStepArgs& args,
                             ByteExchange* exchange);
  // All sides' momenta; by side and buffer, their sums of squares.
  std::vector<double> CompensateAll(const KernelSet& kernels,
                                    const OneBitStepArgs& args);
  std::vector<float*> Results();
  void Frozen(const KernelSet& kernels, const OneBitStepArgs& args);
  void MakeSides(int first, int end, int ranks);
  double Compensate(const KernelSet& kernels, const OneBitStepArgs& args,
                    std::size_t side, std::size_t tensor);
  void FrozenLambTensor(const KernelSet& kernels, const OneBitStepArgs& args,
                        std::size_t tensor, double* ratio);
  void FrozenAdam(const KernelSet& kernels, const OneBitStepArgs& args);
  void FrozenLamb(const KernelSet& kernels, const OneBitStepArgs& args);
  double NextFactor(OneBitLambState* state, const FrozenLambSums& sums,
                    double weight_decay) const;
  void Summarize(const std::vector<double>& ratios);

  const OneBitSettings settings_;
  std::vector<OneBitTensor> tensors_;
  const Dtype copy_dtype_;
  const std::vector<std::int64_t> buffer_elems_;
  std::vector<std::unique_ptr<OneBitReduce>> sides_;
  // OneBitLamb: all tensors end to end.
  std::vector<std::int64_t> begins_;  // by tensor
  std::vector<float> received_;       // momenta as the last round gave them
  std::vector<float> fresh_;          // variance made of those
  std::vector<OneBitLambState> lamb_;
  TrustRatios ratios_;
};

}  // namespace stowage::optim
