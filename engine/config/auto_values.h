// Fills "auto", and what the file leaves out, from the trainer's values.
//
// Source: transformers 5.23, integrations/deepspeed.py, for what each "auto"
// stands for and which contradictions are errors; accelerate 1.15 for adding a
// missing precision block.

#pragma once

#include "absl/status/status.h"
#include "engine/config/config.h"
#include "engine/config/settings.h"

namespace stowage::engine::config {

// After it no setting is "auto", and the batch keys and fp16.enabled,
// bf16.enabled have their values.
// Errors: kInvalidArgument: an "auto" without a value (with the flag to set), a
//   value of the trainer's user that contradicts the file, a batch that does
//   not factor.
absl::Status FillFromTrainer(const TrainerValues& trainer, Settings& settings);

}  // namespace stowage::engine::config
