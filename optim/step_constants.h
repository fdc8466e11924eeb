// A step's constants of one parameter group, from what fixes the optimizer and
// what may change every step. The server and ranks that keep their own state
// make them here, so that both mean the same.

#pragma once

#include <cstdint>

#include "common/job_spec.h"
#include "optim/kernels.h"

namespace stowage::optim {

// `step` as MakeAdamConstants(): applied steps, from 1.
inline AdamConstants AdamStepConstants(const OptimizerSpec& optimizer,
                                       const GroupStep& group,
                                       std::int64_t step,
                                       double gradient_factor) {
  return MakeAdamConstants(
      {.lr = group.lr,
       .beta1 = group.beta1,
       .beta2 = group.beta2,
       .eps = group.eps,
       .weight_decay = group.weight_decay,
       .decoupled_weight_decay = optimizer.decoupled_weight_decay,
       .bias_correction = optimizer.bias_correction},
      step, gradient_factor);
}

inline LambConstants LambStepConstants(const OptimizerSpec& optimizer,
                                       const GroupStep& group,
                                       std::int64_t step,
                                       double gradient_factor) {
  return MakeLambConstants({.lr = group.lr,
                            .beta1 = group.beta1,
                            .beta2 = group.beta2,
                            .eps = group.eps,
                            .weight_decay = group.weight_decay,
                            .max_coeff = optimizer.max_coeff,
                            .min_coeff = optimizer.min_coeff,
                            .eps_inside_sqrt = optimizer.eps_inside_sqrt,
                            .bias_correction = optimizer.bias_correction},
                           step, gradient_factor);
}

}  // namespace stowage::optim
