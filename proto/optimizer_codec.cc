#include "proto/optimizer_codec.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace stowage::proto {

namespace {

// Bounds of a range that must be finite and in order; written so that a NaN is
// refused.
absl::Status CheckBounds(const char* what, double min, double max,
                         double limit) {
  if (min >= 0 && min <= max && std::isfinite(max) && max <= limit) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("optimizer: ", what, " within [", min, ", ", max,
                   "], expected finite bounds of at least 0"));
}

constexpr double kAnyFactor = 1e300;

absl::StatusOr<OptimizerKind> DecodeKind(v1::OptimizerKind kind) {
  switch (kind) {
    case v1::OPTIMIZER_KIND_ADAM:
      return OptimizerKind::kAdam;
    case v1::OPTIMIZER_KIND_LAMB:
      return OptimizerKind::kLamb;
    case v1::OPTIMIZER_KIND_ONE_BIT_ADAM:
      return OptimizerKind::kOneBitAdam;
    case v1::OPTIMIZER_KIND_ONE_BIT_LAMB:
      return OptimizerKind::kOneBitLamb;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("optimizer: unknown kind ", static_cast<int>(kind)));
  }
}

}  // namespace

absl::StatusOr<OptimizerSpec> DecodeOptimizerSpec(
    const v1::OptimizerSpec& message) {
  OptimizerSpec spec;
  STOWAGE_ASSIGN_OR_RETURN(spec.kind, DecodeKind(message.kind()));
  spec.decoupled_weight_decay = message.decoupled_weight_decay();
  spec.bias_correction = message.bias_correction();
  if (spec.kind == OptimizerKind::kLamb ||
      spec.kind == OptimizerKind::kOneBitLamb) {
    STOWAGE_RETURN_IF_ERROR(CheckBounds("trust ratio", message.min_coeff(),
                                        message.max_coeff(), kAnyFactor));
    spec.max_coeff = message.max_coeff();
    spec.min_coeff = message.min_coeff();
    spec.eps_inside_sqrt = message.eps_inside_sqrt();
  }
  if (spec.one_bit()) {
    if (message.freeze_step() < 1) {
      return absl::InvalidArgumentError(absl::StrCat("optimizer: freeze step ",
                                                     message.freeze_step(),
                                                     ", expected at least 1"));
    }
    spec.freeze_step = message.freeze_step();
  }
  if (spec.kind == OptimizerKind::kOneBitLamb) {
    STOWAGE_RETURN_IF_ERROR(CheckBounds("factor", message.factor_min(),
                                        message.factor_max(), kAnyFactor));
    STOWAGE_RETURN_IF_ERROR(
        CheckBounds("coefficient's decay", 0, message.coeff_beta(), 1));
    STOWAGE_RETURN_IF_ERROR(
        CheckBounds("factor's threshold", 0, message.factor_threshold(), 1));
    spec.coeff_beta = message.coeff_beta();
    spec.factor_max = message.factor_max();
    spec.factor_min = message.factor_min();
    spec.factor_threshold = message.factor_threshold();
  }
  return spec;
}

void EncodeOptimizerSpec(const OptimizerSpec& spec,
                         v1::OptimizerSpec* message) {
  message->Clear();
  message->set_decoupled_weight_decay(spec.decoupled_weight_decay);
  message->set_bias_correction(spec.bias_correction);
  switch (spec.kind) {
    case OptimizerKind::kAdam:
      message->set_kind(v1::OPTIMIZER_KIND_ADAM);
      break;
    case OptimizerKind::kLamb:
      message->set_kind(v1::OPTIMIZER_KIND_LAMB);
      break;
    case OptimizerKind::kOneBitAdam:
      message->set_kind(v1::OPTIMIZER_KIND_ONE_BIT_ADAM);
      break;
    case OptimizerKind::kOneBitLamb:
      message->set_kind(v1::OPTIMIZER_KIND_ONE_BIT_LAMB);
      break;
  }
  if (spec.one_bit()) message->set_freeze_step(spec.freeze_step);
  if (spec.kind == OptimizerKind::kLamb ||
      spec.kind == OptimizerKind::kOneBitLamb) {
    message->set_max_coeff(spec.max_coeff);
    message->set_min_coeff(spec.min_coeff);
    message->set_eps_inside_sqrt(spec.eps_inside_sqrt);
  }
  if (spec.kind == OptimizerKind::kOneBitLamb) {
    message->set_coeff_beta(spec.coeff_beta);
    message->set_factor_max(spec.factor_max);
    message->set_factor_min(spec.factor_min);
    message->set_factor_threshold(spec.factor_threshold);
  }
}

absl::StatusOr<Compression> DecodeCompression(const v1::Compression& message) {
  if (message.rounds() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("compression: ", message.rounds(), " rounds"));
  }
  return Compression{.rounds = message.rounds(), .error = message.error()};
}

void EncodeCompression(const Compression& compression,
                       v1::Compression* message) {
  message->set_rounds(compression.rounds);
  message->set_error(compression.error);
}

absl::StatusOr<TrustRatios> DecodeTrustRatios(const v1::TrustRatios& message) {
  if (message.tensors() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("trust ratios: of ", message.tensors(), " tensors"));
  }
  return TrustRatios{.tensors = message.tensors(),
                     .min = message.min(),
                     .mean = message.mean(),
                     .max = message.max()};
}

void EncodeTrustRatios(const TrustRatios& ratios, v1::TrustRatios* message) {
  message->set_tensors(ratios.tensors);
  message->set_min(ratios.min);
  message->set_mean(ratios.mean);
  message->set_max(ratios.max);
}

}  // namespace stowage::proto
