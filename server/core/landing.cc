#include "server/core/landing.h"

#include <cmath>

namespace stowage::core {

void LandUnit(const LandingContext& context, const StepLedger::Landing& landing,
              ComputeTeam& team) {
  const std::int64_t begin = context.layout.chunk_begin(landing.unit);
  const std::int64_t end = context.layout.chunk_begin(landing.unit + 1);
  std::uint8_t& sum_started =
      context.gradients.sum_started[static_cast<std::size_t>(landing.unit)];
  const bool first = sum_started == 0;
  bool any_slot = false;
  if (context.run.ring()) {
    RunGradients::SlotPointers pointers;
    const Layout::Chunk& chunk =
        context.layout.chunks()[static_cast<std::size_t>(begin)];
    any_slot =
        !context.run.MicroSlots(context.gradients, chunk, pointers).empty();
    if (any_slot) sum_started = 1;
    if (!any_slot && !landing.last) return;
  }
  team.ParallelFor(end - begin, [&](std::int64_t index) {
    const auto c = static_cast<std::size_t>(begin + index);
    const Layout::Chunk& chunk = context.layout.chunks()[c];
    RunGradients::SlotPointers pointers;
    if (any_slot) {
      context.kernels.accumulate(
          context.run.MicroSlots(context.gradients, chunk, pointers),
          context.layout.param_dtype(), first, context.run.sum(chunk),
          chunk.elems);
    }
    if (landing.last) {
      context.partials[c] = context.kernels.sum_of_squares(
          context.run.StepSource(context.gradients, chunk, pointers),
          chunk.elems);
    }
  });
}

double SumOfSquares(std::span<const double> partials) {
  double sum = 0;
  for (const double partial : partials) sum += partial;
  return sum;
}

std::string FirstNonFiniteParam(const LandingContext& context,
                                std::int64_t chunk_begin,
                                std::int64_t chunk_end) {
  for (auto c = static_cast<std::size_t>(chunk_begin);
       c < static_cast<std::size_t>(chunk_end); ++c) {
    if (std::isfinite(context.partials[c])) continue;
    const Layout::Chunk& chunk = context.layout.chunks()[c];
    RunGradients::SlotPointers pointers;
    const std::int64_t index = optim::FirstNonFinite(
        context.run.StepSource(context.gradients, chunk, pointers),
        chunk.elems);
    // A rank may have overwritten its slot since; then the chunk's first
    // parameter is the best there is to name.
    const std::int64_t element = chunk.begin_elems + (index < 0 ? 0 : index);
    const Layout::Unit& unit =
        context.layout.units()[static_cast<std::size_t>(chunk.unit_index)];
    const std::string* name = &unit.params.front().name;
    for (const Layout::Param& param : unit.params) {
      if (param.begin_elems > element) break;
      name = &param.name;
    }
    return *name;
  }
  return "";
}

}  // namespace stowage::core
