#include "forecast/rank_traffic.h"

#include <algorithm>
#include <vector>

#include "common/dtype.h"
#include "engine/plan/live_plan.h"
#include "engine/plan/shard_plan.h"

namespace stowage::forecast {
namespace {

namespace config = engine::config;

// Which units a rank gathers in a pass, as engine/zero/coordinator.h carries
// the plan out.
class Gathers {
 public:
  Gathers(const config::ZeroOptimization& zero, const Layout& layout,
          std::int64_t live_elems_max)
      : states_(layout.units().size()),
        plan_(LimitsOf(zero, live_elems_max),
              PlanUnits(zero, layout, live_elems_max > 0)) {}

  // Forward and backward of one micro step of `step`; adds to `count` by unit.
  void Pass(std::int64_t step, std::vector<std::int64_t>* count) {
    const auto units = static_cast<std::int32_t>(states_.size());
    for (std::int32_t u = 0; u < units; ++u) Use(u, step, count);
    for (std::int32_t u = units - 1; u >= 0; --u) Use(u, step, count);
    Release(plan_.EndPass());
  }

 private:
  struct State {
    bool all_persistent = true;
    bool gathered = false;
    std::int64_t version = -1;
  };

  static plan::LiveLimits LimitsOf(const config::ZeroOptimization& zero,
                                   std::int64_t live_elems_max) {
    plan::LiveLimits limits{zero.stage3_max_live_parameters,
                            zero.stage3_max_reuse_distance,
                            zero.stage3_prefetch_bucket_size};
    if (live_elems_max > 0) {
      limits.max_live_elems = std::min(limits.max_live_elems, live_elems_max);
    }
    return limits;
  }

  std::vector<plan::LivePlan::Unit> PlanUnits(
      const config::ZeroOptimization& zero, const Layout& layout, bool leased) {
    const std::int64_t threshold =
        leased ? 0 : zero.stage3_param_persistence_threshold;
    std::int64_t left = zero.stage3_model_persistence_threshold;
    std::vector<plan::LivePlan::Unit> units(layout.units().size());
    for (std::size_t u = 0; u < units.size(); ++u) {
      const std::vector<Layout::Param>& params = layout.units()[u].params;
      std::vector<std::int64_t> elems(params.size());
      for (const Layout::Param& param : params) {
        elems[static_cast<std::size_t>(param.declared_index)] = param.elems;
      }
      for (const std::int64_t size : elems) {
        if (size <= threshold && size <= left) {
          left -= size;
        } else {
          units[u].elems += size;
          states_[u].all_persistent = false;
        }
      }
    }
    return units;
  }

  State& At(std::int32_t unit) {
    return states_[static_cast<std::size_t>(unit)];
  }

  void Release(const plan::LivePlan::Actions& actions) {
    for (const std::int32_t unit : actions.release) At(unit).gathered = false;
  }

  void Gather(std::int32_t unit, std::int64_t step,
              std::vector<std::int64_t>* count) {
    State& state = At(unit);
    if (state.version == step && (state.gathered || state.all_persistent)) {
      return;
    }
    state.gathered = true;
    state.version = step;
    ++(*count)[static_cast<std::size_t>(unit)];
  }

  void Use(std::int32_t unit, std::int64_t step,
           std::vector<std::int64_t>* count) {
    const plan::LivePlan::Actions begin = plan_.BeginUse(unit);
    Release(begin);
    for (const std::int32_t u : begin.fetch) Gather(u, step, count);
    for (const std::int32_t u : begin.prefetch) Gather(u, step, count);
    Gather(unit, step, count);
    Release(plan_.EndUse(unit));
  }

  std::vector<State> states_;
  plan::LivePlan plan_;
};

}  // namespace

RankTraffic TrafficOf(const config::Config& config, const Layout& layout,
                      std::int32_t rank, std::int64_t live_elems_max) {
  const config::ZeroOptimization& zero = config.zero_optimization;
  const auto world = static_cast<std::int32_t>(config.world_size);
  RankTraffic traffic;
  if (world < 2) return traffic;
  const std::int64_t micros = config.gradient_accumulation_steps;
  const std::int64_t width = DtypeBytes(layout.param_dtype());
  const plan::ShardPlan shards(layout, zero.stage >= 1 ? world : 1);
  const auto gather_bytes = [&](std::int32_t unit) {
    // A broadcast sends what there is, an all-gather equal parts.
    const std::int64_t elems = zero.allgather_partitions
                                   ? shards.part_elems(unit)
                                   : shards.Shard(unit, rank).elems();
    return (world - 1) * elems * width;
  };
  if (zero.stage == 1 || zero.stage == 2) {
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      traffic.params += gather_bytes(u);
    }
    traffic.params_first = traffic.params;
  } else if (zero.stage >= 3) {
    Gathers gathers(zero, layout, live_elems_max);
    // The first step learns; what the second does all others do.
    for (const std::int64_t step : {0, 1}) {
      std::vector<std::int64_t> count(layout.units().size());
      for (std::int64_t micro = 0; micro < micros; ++micro) {
        gathers.Pass(step, &count);
      }
      std::int64_t& bytes = step == 0 ? traffic.params_first : traffic.params;
      for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
        bytes += count[static_cast<std::size_t>(u)] * gather_bytes(u);
      }
    }
  }
  const std::int64_t wire = DtypeBytes(config.communication_data_type);
  const std::int64_t reduces = zero.stage >= 2 ? micros : 1;
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    const std::int64_t all = shards.gradient_elems(u);
    // An all-reduce is a reduce-scatter and a gather of the sums.
    const std::int64_t sent = zero.stage == 0 || !zero.reduce_scatter
                                  ? 2 * all * (world - 1) / world
                                  : all - shards.GradientShard(u, rank).elems();
    traffic.gradients += reduces * sent * wire;
  }
  return traffic;
}

}  // namespace stowage::forecast
