// What a rank sends to the others in a step of the c10d exchange: the numbers
// its counters will show, to the byte, from the plans that decide them.
//
// A gather of a unit sends this rank's part to each other rank; parts are equal
// and padded (engine/plan/shard_plan.h). How often a unit is gathered in a
// micro step, once or twice, is engine/plan/live_plan.h's decision, asked here
// with the uses of a model that runs its units in order, forward and then
// backward. The first micro step records that order and keeps nothing.
//
// Not counted: what control costs (a few doubles a step and rank), and the
// network's own headers. Pure.

#pragma once

#include <cstdint>

#include "common/layout.h"
#include "engine/config/config.h"

namespace stowage::forecast {

struct RankTraffic {
  std::int64_t params_first = 0;  // in the first step, bytes
  std::int64_t params = 0;        // in each later one
  std::int64_t gradients = 0;     // in each

  // Of `steps` steps from a job's first on.
  std::int64_t params_of(std::int64_t steps) const {
    return steps > 0 ? params_first + (steps - 1) * params : 0;
  }
};

// Requires: an optimizer that is not 1-bit. `rank`: of config.world_size.
// `live_elems_max`: what a server that leases parameters allows a rank; 0: as
// much as the file does.
RankTraffic TrafficOf(const engine::config::Config& config,
                      const Layout& layout, std::int32_t rank,
                      std::int64_t live_elems_max);

}  // namespace stowage::forecast
