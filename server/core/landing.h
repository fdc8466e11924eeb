// Landing: taking a unit's gradients in while the ranks' backward still runs.
//
// Kept slots: one pass over all slots of the unit that takes the norm of their
// sum; apply reads the slots again. Ring: each micro step is added to the fp32
// sum in rank order, and the pass of the last one takes the norm. Both add the
// same numbers in the same order (micro x ranks + rank, fp32), so both give the
// same bits. A chunk's sum of squares is one fp64 number; the verdict adds them
// in chunk order, whatever thread or time they came from.

#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/layout.h"
#include "optim/kernels.h"
#include "server/core/compute_team.h"
#include "server/core/run_gradients.h"
#include "server/core/step_ledger.h"

namespace stowage::core {

struct LandingContext {
  const Layout& layout;
  const optim::KernelSet& kernels;
  const RunGradients& run;
  StepGradients& gradients;
  std::span<double> partials;  // one per chunk of the layout
};

// Lands what `landing` says. Blocks: for the work.
void LandUnit(const LandingContext& context, const StepLedger::Landing& landing,
              ComputeTeam& team);

// Sums the partials of the whole layout in chunk order.
double SumOfSquares(std::span<const double> partials);

// The parameter that holds the first non-finite element among chunks [begin,
// end), in layout order; empty if their partials are finite. Sums on NVMe:
// only for a unit that is acquired.
std::string FirstNonFiniteParam(const LandingContext& context,
                                std::int64_t chunk_begin,
                                std::int64_t chunk_end);

}  // namespace stowage::core
