// One rank of stow-train, from options to exit code.

#pragma once

#include "examples/gpt/options.h"

namespace stowage::gpt {

// Trains until options.steps steps are committed. Rank 0 prints and writes.
// Returns: the process's exit code; the reason of a failure is on stderr.
int TrainRank(const Options& options);

}  // namespace stowage::gpt
