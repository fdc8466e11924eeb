#include "engine/exchange/lamb_shards.h"

#include <utility>

#include "common/dtype.h"
#include "common/status_macros.h"
#include "optim/step_constants.h"

namespace stowage::engine {

LambShards::LambShards(const Layout* layout, const plan::ShardPlan* plan,
                       std::int32_t part, const OptimizerSpec& optimizer,
                       Collectives* group)
    : RankShards(layout, plan, part, optimizer),
      group_(group),
      replicated_(plan->parts() == 1),
      chunks_(Chunks()),
      update_(*layout, chunks_) {}

std::vector<Layout::Chunk> LambShards::Chunks() const {
  std::vector<Layout::Chunk> chunks;
  for (std::size_t u = 0; u < units_.size(); ++u) {
    for (const Chunk& chunk : units_[u].chunks) {
      chunks.push_back({.unit_index = static_cast<std::int32_t>(u),
                        .group_index = chunk.group,
                        .begin_elems = units_[u].shard.begin + chunk.begin,
                        .elems = chunk.elems});
    }
  }
  return chunks;
}

template <typename Work>
void LambShards::ForEachChunk(const Work& work) {
  const std::int64_t width = DtypeBytes(layout_->param_dtype());
  std::int64_t index = 0;
  for (Unit& unit : units_) {
    for (const Chunk& chunk : unit.chunks) {
      const optim::GradientSource gradient = GradientFrom(unit, chunk.begin);
      const optim::ChunkState state{unit.master.data() + chunk.begin,
                                    unit.moment1.data() + chunk.begin,
                                    unit.moment2.data() + chunk.begin};
      work(index++, gradient, state, unit.params.data() + chunk.begin * width);
    }
  }
}

absl::Status LambShards::AddUp(std::span<optim::LambNorms> norms) {
  std::vector<double> mine;
  for (const optim::LambNorms& pair : norms) {
    mine.push_back(pair.weight);
    mine.push_back(pair.update);
  }
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::vector<double>> all,
                           group_->GatherValues(mine));
  for (std::size_t i = 0; i < norms.size(); ++i) {
    norms[i] = {};
    for (const std::vector<double>& of_rank : all) {
      norms[i].weight += of_rank[2 * i];
      norms[i].update += of_rank[2 * i + 1];
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Verdict> LambShards::Prepare(std::int64_t step,
                                            std::span<const double> scalars) {
  STOWAGE_ASSIGN_OR_RETURN(Verdict verdict, RankShards::Prepare(step, scalars));
  verdict.trust_ratios = update_.summary();
  return verdict;
}

absl::Status LambShards::Apply(const ApplyArgs& args) {
  STOWAGE_RETURN_IF_ERROR(BeginApply(args));
  if (!args.skip) {
    std::vector<optim::LambConstants> constants;
    for (const GroupStep& group : args.groups) {
      constants.push_back(optim::LambStepConstants(
          optimizer_, group, info_.applied_steps, args.gradient_factor));
    }
    update_.BeginStep(constants);
    ForEachChunk([&](std::int64_t index, const optim::GradientSource& gradient,
                     const optim::ChunkState& state, void* /*copy*/) {
      update_.Measure(kernels_, index, gradient, state);
    });
    const auto add_up = [this](std::span<optim::LambNorms> norms) {
      return AddUp(norms);
    };
    STOWAGE_RETURN_IF_ERROR(update_.Combine(
        replicated_ ? optim::NormReduction() : optim::NormReduction(add_up)));
    ForEachChunk([&](std::int64_t index, const optim::GradientSource& gradient,
                     const optim::ChunkState& state, void* copy) {
      update_.Update(kernels_, index, gradient, state, copy);
    });
  }
  EndApply();
  return absl::OkStatus();
}

}  // namespace stowage::engine
