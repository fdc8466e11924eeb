#include "engine/exchange/one_bit_shards.h"

#include <utility>

#include "common/check.h"
#include "common/dtype.h"
#include "common/status_macros.h"
#include "engine/exchange/collective_bytes.h"

namespace stowage::engine {
OneBitShards::OneBitShards(const Layout* layout, const plan::ShardPlan* plan,
                           const OptimizerSpec& optimizer, Collectives* group)
    : RankShards(layout, plan, /*part=*/0, optimizer),
      exchange_(std::make_unique<CollectiveBytes>(group)),
      settings_(optim::MakeOneBitSettings(optimizer)),
      params_(layout->TrainableParams()) {
  STOWAGE_CHECK(plan->parts() == 1);
  update_ = std::make_unique<optim::OneBitOptimizer>(
      settings_, Tensors(), layout->param_dtype(), group->rank(),
      group->ranks());
}

OneBitShards::~OneBitShards() = default;

std::vector<optim::OneBitTensor> OneBitShards::Tensors() {
  const std::int64_t width = DtypeBytes(layout_->param_dtype());
  std::vector<optim::OneBitTensor> tensors;
  for (const Layout::Param* param : params_) {
    Unit& unit = At(param->unit_index);
    const std::int64_t begin = param->begin_elems;
    tensors.push_back({.elems = param->elems,
                       .group = param->group_index,
                       .master = unit.master.data() + begin,
                       .moment1 = unit.moment1.data() + begin,
                       .moment2 = unit.moment2.data() + begin,
                       .copy = unit.params.data() + begin * width});
  }
  return tensors;
}

bool OneBitShards::takes_own_gradients() const {
  return update_->compressed(info_.applied_steps + 1);
}

absl::StatusOr<Verdict> OneBitShards::Prepare(std::int64_t step,
                                              std::span<const double> scalars) {
  STOWAGE_ASSIGN_OR_RETURN(Verdict verdict, RankShards::Prepare(step, scalars));
  verdict.trust_ratios = update_->trust_ratios();
  const optim::OneBitCounters& counters = update_->counters();
  verdict.compression = {.rounds = counters.rounds,
                         .error = counters.compression_error};
  return verdict;
}

absl::Status OneBitShards::Apply(const ApplyArgs& args) {
  const bool own = takes_own_gradients();
  STOWAGE_RETURN_IF_ERROR(BeginApply(args));
  if (!args.skip) {
    std::vector<optim::GradientSource> sources;
    for (const Layout::Param* param : params_) {
      sources.push_back(
          GradientFrom(At(param->unit_index), param->begin_elems));
    }
    // The factor divides by all micro-batches; a rank's own are a share of
    // them.
    const double factor = args.gradient_factor * (own ? exchange_->ranks() : 1);
    STOWAGE_RETURN_IF_ERROR(update_->Step(kernels_,
                                          {.t = info_.applied_steps,
                                           .gradient_factor = factor,
                                           .groups = args.groups,
                                           .gradients = sources},
                                          exchange_.get()));
  }
  EndApply();
  return absl::OkStatus();
}

std::int64_t OneBitShards::held_bytes() const {
  std::vector<std::int64_t> elems;
  for (const Layout::Param* param : params_) elems.push_back(param->elems);
  return RankShards::held_bytes() +
         optim::OneBitOptimizer::StateBytes(settings_, elems,
                                            exchange_->ranks(), /*sides=*/1);
}

}  // namespace stowage::engine
