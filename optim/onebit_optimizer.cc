#include "optim/onebit_optimizer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"

namespace stowage::optim {
namespace {

std::vector<std::int64_t> BufferElems(const OneBitSettings& settings,
                                      std::span<const std::int64_t> tensors) {
  if (!settings.lamb) return {tensors.begin(), tensors.end()};
  return {std::accumulate(tensors.begin(), tensors.end(), std::int64_t{0})};
}

std::vector<std::int64_t> ElemsOf(std::span<const OneBitTensor> tensors) {
  std::vector<std::int64_t> elems;
  for (const OneBitTensor& tensor : tensors) elems.push_back(tensor.elems);
  return elems;
}

const GroupStep& GroupOf(const OneBitStepArgs& args,
                         const OneBitTensor& tensor) {
  return args.groups[static_cast<std::size_t>(tensor.group)];
}

template <typename Work>
void ForEach(const OneBitStepArgs& args, std::size_t count, const Work& work) {
  if (!args.parallel) {
    for (std::size_t i = 0; i < count; ++i) work(i);
    return;
  }
  args.parallel(static_cast<std::int64_t>(count),
                [&](std::int64_t i) { work(static_cast<std::size_t>(i)); });
}

// Warm-up's constants: Lamb's update without bias correction.
LambConstants WarmUpConstants(const OneBitSettings& settings,
                              const GroupStep& group, double gradient_factor) {
  return MakeLambConstants({.lr = group.lr,
                            .beta1 = group.beta1,
                            .beta2 = group.beta2,
                            .eps = group.eps,
                            .weight_decay = group.weight_decay,
                            .max_coeff = settings.max_coeff,
                            .min_coeff = settings.min_coeff,
                            .bias_correction = false},
                           1, gradient_factor);
}

}  // namespace

OneBitSettings MakeOneBitSettings(const OptimizerSpec& spec) {
  STOWAGE_CHECK(spec.one_bit());
  return {.lamb = spec.kind == OptimizerKind::kOneBitLamb,
          .freeze_step = spec.freeze_step,
          .max_coeff = spec.max_coeff,
          .min_coeff = spec.min_coeff,
          .coeff_beta = spec.coeff_beta,
          .factor_max = spec.factor_max,
          .factor_min = spec.factor_min,
          .factor_threshold = spec.factor_threshold};
}

OneBitOptimizer::OneBitOptimizer(const OneBitSettings& settings,
                                 std::vector<OneBitTensor> tensors,
                                 Dtype copy_dtype, int rank, int ranks)
    : settings_(settings),
      tensors_(std::move(tensors)),
      copy_dtype_(copy_dtype),
      buffer_elems_(BufferElems(settings_, ElemsOf(tensors_))) {
  MakeSides(rank == kAllRanks ? 0 : rank, rank == kAllRanks ? ranks : rank + 1,
            ranks);
}

OneBitOptimizer::OneBitOptimizer(const OneBitSettings& settings,
                                 std::vector<OneBitTensor> tensors,
                                 Dtype copy_dtype, const CarriedRanks& carried)
    : settings_(settings),
      tensors_(std::move(tensors)),
      copy_dtype_(copy_dtype),
      buffer_elems_(BufferElems(settings_, ElemsOf(tensors_))) {
  MakeSides(carried.first, carried.first + carried.held, carried.ranks);
}

void OneBitOptimizer::MakeSides(int first, int end, int ranks) {
  for (int r = first; r < end; ++r) {
    sides_.push_back(std::make_unique<OneBitReduce>(buffer_elems_, r, ranks));
  }
  if (!settings_.lamb) return;
  std::int64_t begin = 0;
  for (const OneBitTensor& tensor : tensors_) {
    begins_.push_back(begin);
    begin += tensor.elems;
  }
  received_.resize(static_cast<std::size_t>(begin));
  fresh_.resize(static_cast<std::size_t>(begin));
  lamb_.resize(tensors_.size());
}

void OneBitOptimizer::Bind(std::vector<OneBitTensor> tensors) {
  STOWAGE_CHECK(tensors.size() == tensors_.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    STOWAGE_CHECK(tensors[i].elems == tensors_[i].elems &&
                  tensors[i].group == tensors_[i].group);
  }
  tensors_ = std::move(tensors);
}

std::int64_t OneBitOptimizer::StateBytes(
    const OneBitSettings& settings, std::span<const std::int64_t> tensor_elems,
    int ranks, int sides) {
  std::int64_t bytes =
      sides * OneBitReduce::StateBytes(BufferElems(settings, tensor_elems),
                                       ranks, /*exchanges=*/sides == 1);
  if (settings.lamb) {
    bytes += 2 * static_cast<std::int64_t>(sizeof(float)) *
             BufferElems(settings, tensor_elems).front();
  }
  return bytes;
}

std::int64_t OneBitOptimizer::StateBytes(
    const OneBitSettings& settings, std::span<const std::int64_t> tensor_elems,
    const CarriedRanks& carried) {
  const std::vector<std::int64_t> buffers = BufferElems(settings, tensor_elems);
  std::int64_t bytes =
      carried.held *
      (OneBitReduce::StateBytes(buffers, carried.ranks, /*exchanges=*/false) +
       OneBitReduce::CarriedBytes(buffers, carried.ranks));
  bytes += OneBitReduce::GatheredBytes(buffers, carried.ranks);
  if (settings.lamb) {
    bytes += 2 * static_cast<std::int64_t>(sizeof(float)) * buffers.front();
  }
  return bytes;
}

AdamRange OneBitOptimizer::RangeOf(const OneBitTensor& tensor) const {
  return {.elems = tensor.elems,
          .master = tensor.master,
          .moment1 = tensor.moment1,
          .moment2 = tensor.moment2,
          .copy = tensor.copy,
          .copy_dtype = copy_dtype_};
}

std::span<float> OneBitOptimizer::fresh_variance(std::size_t tensor) {
  if (!settings_.lamb) return {};
  return std::span(fresh_).subspan(
      static_cast<std::size_t>(begins_[tensor]),
      static_cast<std::size_t>(tensors_[tensor].elems));
}

absl::Status OneBitOptimizer::Step(const KernelSet& kernels,
                                   const OneBitStepArgs& args,
                                   ByteExchange* exchange) {
  STOWAGE_CHECK(args.t >= 1 &&
                args.gradients.size() ==
                    tensors_.size() * (compressed(args.t) ? sides_.size() : 1));
  if (!compressed(args.t)) {
    WarmUp(kernels, args);
    return absl::OkStatus();
  }
  if (settings_.lamb) ChooseScaling(kernels);
  STOWAGE_RETURN_IF_ERROR(ReduceMomenta(kernels, args, exchange));
  Frozen(kernels, args);
  return absl::OkStatus();
}

void OneBitOptimizer::Frozen(const KernelSet& kernels,
                             const OneBitStepArgs& args) {
  if (settings_.lamb) {
    FrozenLamb(kernels, args);
  } else {
    FrozenAdam(kernels, args);
  }
}

void OneBitOptimizer::Compress(const KernelSet& kernels,
                               const OneBitStepArgs& args) {
  STOWAGE_CHECK(compressed(args.t) &&
                args.gradients.size() == tensors_.size() * sides_.size());
  if (settings_.lamb) ChooseScaling(kernels);
  ForEach(args, sides_.size(), [&](std::size_t s) { sides_[s]->Keep(); });
  const std::vector<double> squares = CompensateAll(kernels, args);
  const std::size_t buffers = buffer_elems_.size();
  ForEach(args, sides_.size(), [&](std::size_t s) {
    sides_[s]->Pack(kernels, std::span(squares).subspan(s * buffers, buffers));
  });
}

void OneBitOptimizer::Finish(const KernelSet& kernels,
                             const OneBitStepArgs& args,
                             std::span<const std::byte> gathered) {
  const std::vector<float*> results = Results();
  for (std::size_t s = 0; s < sides_.size(); ++s) {
    sides_[s]->Finish(
        kernels, gathered,
        s == 0 ? std::span<float* const>(results) : std::span<float* const>());
  }
  Frozen(kernels, args);
}

// Adam without bias correction is Lamb with a trust ratio of one.
void OneBitOptimizer::WarmUp(const KernelSet& kernels,
                             const OneBitStepArgs& args) {
  std::vector<double> ratios(settings_.lamb ? tensors_.size() : 0);
  ForEach(args, tensors_.size(), [&](std::size_t i) {
    const OneBitTensor& tensor = tensors_[i];
    const LambConstants c =
        WarmUpConstants(settings_, GroupOf(args, tensor), args.gradient_factor);
    const AdamRange range = RangeOf(tensor);
    double ratio = 1;
    if (settings_.lamb) {
      ratio =
          LambTrustRatio(c, kernels.lamb_norms(c, args.gradients[i], range));
      ratios[i] = ratio;
      if (ratio != 1) {
        lamb_[i].coeff_freeze = settings_.coeff_beta * lamb_[i].coeff_freeze +
                                (1 - settings_.coeff_beta) * ratio;
      }
    }
    kernels.lamb(c, static_cast<float>(c.step_size * ratio), args.gradients[i],
                 range);
    if (settings_.lamb && args.t == settings_.freeze_step) {
      std::copy_n(tensor.moment2, tensor.elems, fresh_variance(i).begin());
    }
  });
  Summarize(ratios);
}

// Tensors are brought to one size, so that one scale serves them all.
void OneBitOptimizer::ChooseScaling(const KernelSet& kernels) {
  if (lamb_.empty() || lamb_.front().scaling != 0) return;
  std::vector<double> roots;
  for (const OneBitTensor& tensor : tensors_) {
    const double squares =
        kernels.sum_of_squares({.sum = tensor.moment1}, tensor.elems);
    roots.push_back(std::sqrt(squares / static_cast<double>(tensor.elems)));
  }
  const double united = std::accumulate(roots.begin(), roots.end(), 0.0) /
                        static_cast<double>(roots.size());
  for (std::size_t i = 0; i < roots.size(); ++i) {
    // A momentum of zeros stays as it is (the reference divides by zero).
    lamb_[i].scaling = roots[i] == 0 ? 1 : united / roots[i];
  }
}

// One rank's momentum of one tensor joins what its signs lost before.
double OneBitOptimizer::Compensate(const KernelSet& kernels,
                                   const OneBitStepArgs& args, std::size_t side,
                                   std::size_t tensor) {
  const OneBitTensor& x = tensors_[tensor];
  const GroupStep& group = GroupOf(args, x);
  const std::size_t buffer = settings_.lamb ? 0 : tensor;
  float* const error = sides_[side]->worker_error(buffer).data() +
                       (settings_.lamb ? begins_[tensor] : 0);
  return kernels.onebit_compensate(
      {.gradient_factor = static_cast<float>(args.gradient_factor),
       .beta1 = static_cast<float>(group.beta1),
       .one_minus_beta1 = static_cast<float>(1 - group.beta1),
       .scaling =
           settings_.lamb ? static_cast<float>(lamb_[tensor].scaling) : 1},
      args.gradients[side * tensors_.size() + tensor], x.moment1, error,
      x.elems);
}

std::vector<double> OneBitOptimizer::CompensateAll(const KernelSet& kernels,
                                                   const OneBitStepArgs& args) {
  const std::size_t count = tensors_.size();
  std::vector<double> by_tensor(sides_.size() * count);
  ForEach(args, by_tensor.size(), [&](std::size_t i) {
    by_tensor[i] = Compensate(kernels, args, i / count, i % count);
  });
  if (!settings_.lamb) return by_tensor;
  std::vector<double> squares(sides_.size());
  for (std::size_t i = 0; i < by_tensor.size(); ++i) {
    squares[i / count] += by_tensor[i];
  }
  return squares;
}

// By buffer, where the mean of the momenta goes.
std::vector<float*> OneBitOptimizer::Results() {
  if (settings_.lamb) return {received_.data()};
  std::vector<float*> results;
  for (const OneBitTensor& tensor : tensors_) {
    results.push_back(tensor.moment1);
  }
  return results;
}

absl::Status OneBitOptimizer::ReduceMomenta(const KernelSet& kernels,
                                            const OneBitStepArgs& args,
                                            ByteExchange* exchange) {
  const std::vector<double> squares = CompensateAll(kernels, args);
  const std::vector<float*> results = Results();
  if (exchange != nullptr) {
    return sides_[0]->Run(kernels, squares, results, *exchange);
  }
  OneBitReduce::RunTogether(
      kernels, sides_, squares, results,
      [&](std::int64_t n, const std::function<void(std::int64_t)>& work) {
        ForEach(args, static_cast<std::size_t>(n),
                [&](std::size_t i) { work(static_cast<std::int64_t>(i)); });
      });
  return absl::OkStatus();
}

void OneBitOptimizer::FrozenAdam(const KernelSet& kernels,
                                 const OneBitStepArgs& args) {
  ForEach(args, tensors_.size(), [&](std::size_t i) {
    const GroupStep& group = GroupOf(args, tensors_[i]);
    kernels.frozen(static_cast<float>(group.eps),
                   static_cast<float>(group.weight_decay),
                   static_cast<float>(group.lr), RangeOf(tensors_[i]));
  });
}

double OneBitOptimizer::NextFactor(OneBitLambState* state,
                                   const FrozenLambSums& sums,
                                   double weight_decay) const {
  auto factor = static_cast<double>(sums.factor_max);
  if (weight_decay > 0) {
    const double q =
        std::min(1.0, std::sqrt(sums.direction) / std::sqrt(sums.update));
    factor = factor * q + (1 - q);
  }
  factor = std::clamp(factor, settings_.factor_min, settings_.factor_max);
  factor =
      std::clamp(factor, state->last_factor * (1 - settings_.factor_threshold),
                 state->last_factor * (1 + settings_.factor_threshold));
  state->last_factor = factor;
  return factor;
}

void OneBitOptimizer::FrozenLamb(const KernelSet& kernels,
                                 const OneBitStepArgs& args) {
  std::vector<double> ratios(tensors_.size());
  ForEach(args, tensors_.size(), [&](std::size_t i) {
    FrozenLambTensor(kernels, args, i, &ratios[i]);
  });
  Summarize(ratios);
}

void OneBitOptimizer::FrozenLambTensor(const KernelSet& kernels,
                                       const OneBitStepArgs& args,
                                       std::size_t tensor, double* ratio) {
  const OneBitTensor& x = tensors_[tensor];
  const GroupStep& group = GroupOf(args, x);
  float* const received = received_.data() + begins_[tensor];
  const auto scaling = static_cast<float>(lamb_[tensor].scaling);
  for (std::int64_t k = 0; k < x.elems; ++k) received[k] /= scaling;
  AdamRange range = RangeOf(x);
  range.moment1 = received;
  const FrozenLambSums sums = kernels.frozen_lamb(
      {.beta1 = static_cast<float>(group.beta1),
       .one_minus_beta1 = static_cast<float>(1 - group.beta1),
       .beta2 = static_cast<float>(group.beta2),
       .one_minus_beta2 = static_cast<float>(1 - group.beta2),
       .eps = static_cast<float>(group.eps),
       .weight_decay = static_cast<float>(group.weight_decay)},
      x.moment1, fresh_variance(tensor).data(), range);
  *ratio = lamb_[tensor].coeff_freeze *
           NextFactor(&lamb_[tensor], sums, group.weight_decay);
  std::copy_n(received, x.elems, x.moment1);
  kernels.frozen(static_cast<float>(group.eps),
                 static_cast<float>(group.weight_decay),
                 static_cast<float>(group.lr * *ratio), RangeOf(x));
}

void OneBitOptimizer::Summarize(const std::vector<double>& ratios) {
  if (ratios.empty()) return;
  const auto [min, max] = std::minmax_element(ratios.begin(), ratios.end());
  ratios_ = {.tensors = static_cast<std::int64_t>(ratios.size()),
             .min = *min,
             .mean = std::accumulate(ratios.begin(), ratios.end(), 0.0) /
                     static_cast<double>(ratios.size()),
             .max = *max};
}

}  // namespace stowage::optim
