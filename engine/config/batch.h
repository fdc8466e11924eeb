// The batch triangle: train_batch_size = micro batch x accumulation x ranks.
//
// Pure. Source: DeepSpeed 0.19.8, deepspeed/runtime/config.py: which of the
// three may be absent, and the floor divisions that come before the comparison.

#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"

namespace stowage::engine::config {

struct BatchGiven {
  std::optional<std::int64_t> train = {};  // samples of a step, all ranks
  std::optional<std::int64_t> micro = {};  // samples of a pass, one rank
  std::optional<std::int64_t> accumulation = {};  // passes of a step
};

struct Batch {
  std::int64_t train = 0;
  std::int64_t micro = 0;
  std::int64_t accumulation = 0;
};

// Infers what is absent and checks the product.
// Errors: kInvalidArgument with the equation and its numbers.
absl::StatusOr<Batch> ResolveBatch(const BatchGiven& given,
                                   std::int64_t world_size);

}  // namespace stowage::engine::config
