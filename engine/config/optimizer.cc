// The optimizer of a configuration as common/job_spec.h says it.

#include "engine/config/config.h"

namespace stowage::engine::config {

bool IsOneBit(OptimizerType type) {
  return type == OptimizerType::kOneBitAdam ||
         type == OptimizerType::kOneBitLamb;
}

OptimizerSpec ToOptimizerSpec(const Optimizer& optimizer) {
  OptimizerSpec spec;
  spec.decoupled_weight_decay = optimizer.decoupled_weight_decay;
  spec.bias_correction = optimizer.bias_correction;
  switch (optimizer.type) {
    case OptimizerType::kNone:
    case OptimizerType::kAdam:
    case OptimizerType::kAdamW:
      return spec;
    case OptimizerType::kLamb:
      spec.kind = OptimizerKind::kLamb;
      break;
    case OptimizerType::kOneBitAdam:
      spec.kind = OptimizerKind::kOneBitAdam;
      break;
    case OptimizerType::kOneBitLamb:
      spec.kind = OptimizerKind::kOneBitLamb;
      break;
  }
  if (spec.one_bit()) spec.freeze_step = optimizer.freeze_step;
  // What a kind has no use for keeps its default, so that it never differs.
  if (spec.kind != OptimizerKind::kOneBitAdam) {
    spec.max_coeff = optimizer.max_coeff;
    spec.min_coeff = optimizer.min_coeff;
  }
  if (spec.kind == OptimizerKind::kLamb) {
    spec.eps_inside_sqrt = optimizer.eps_inside_sqrt;
  }
  if (spec.kind == OptimizerKind::kOneBitLamb) {
    spec.coeff_beta = optimizer.coeff_beta;
    spec.factor_max = optimizer.factor_max;
    spec.factor_min = optimizer.factor_min;
    spec.factor_threshold = optimizer.factor_threshold;
  }
  return spec;
}

}  // namespace stowage::engine::config
