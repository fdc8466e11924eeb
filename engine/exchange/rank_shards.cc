#include "engine/exchange/rank_shards.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/dtype.h"
#include "common/status_macros.h"
#include "optim/step_constants.h"

namespace stowage::engine {

RankShards::RankShards(const Layout* layout, const plan::ShardPlan* plan,
                       std::int32_t part, const OptimizerSpec& optimizer)
    : layout_(layout), optimizer_(optimizer), kernels_(optim::BestKernels()) {
  const std::int64_t width = DtypeBytes(layout->param_dtype());
  for (std::int32_t u = 0; u < layout->unit_count(); ++u) {
    Unit& unit = units_.emplace_back();
    unit.shard = plan->Shard(u, part);
    unit.gradient = plan->GradientShard(u, part);
    unit.params.resize(static_cast<std::size_t>(unit.shard.elems() * width));
    const auto elems = static_cast<std::size_t>(unit.gradient.elems());
    unit.master.resize(elems);
    unit.moment1.resize(elems);
    unit.moment2.resize(elems);
    unit.sum.resize(elems);
    for (const Layout::Run& run :
         layout->units()[static_cast<std::size_t>(u)].runs) {
      const plan::ElemRange own =
          plan::Intersect({run.begin_elems, run.end_elems}, unit.gradient);
      for (std::int64_t begin = own.begin; begin < own.end;
           begin += kChunkElems) {
        unit.chunks.push_back({run.group_index, begin - unit.shard.begin,
                               std::min(kChunkElems, own.end - begin)});
      }
    }
  }
}

absl::StatusOr<std::span<const std::byte>> RankShards::AcquireShard(
    std::int32_t unit, std::int64_t /*step*/) {
  return std::span<const std::byte>(At(unit).params);
}

absl::Status RankShards::AddGradient(std::int64_t /*step*/,
                                     std::int32_t /*micro*/, std::int32_t unit,
                                     std::int64_t begin_elems,
                                     std::span<const void* const> parts,
                                     Dtype dtype, std::int64_t elems) {
  Unit& u = At(unit);
  kernels_.accumulate(parts, dtype, /*first=*/!u.summed,
                      u.sum.data() + begin_elems, elems);
  return absl::OkStatus();
}

absl::Status RankShards::GradientDone(std::int64_t /*step*/,
                                      std::int32_t /*micro*/, std::int32_t unit,
                                      bool empty) {
  if (!empty) At(unit).summed = true;
  return absl::OkStatus();
}

std::string RankShards::NameOf(std::int32_t unit, std::int64_t elem) const {
  const Layout::Unit& shape = layout_->units()[static_cast<std::size_t>(unit)];
  const std::string* name = &shape.params.front().name;
  for (const Layout::Param& param : shape.params) {
    if (param.begin_elems > elem) break;
    name = &param.name;
  }
  return *name;
}

absl::StatusOr<Verdict> RankShards::Prepare(std::int64_t step,
                                            std::span<const double> scalars) {
  Verdict verdict;
  verdict.step = step;
  verdict.rank_scalars.emplace_back(scalars.begin(), scalars.end());
  for (std::int32_t u = 0; u < layout_->unit_count(); ++u) {
    const Unit& unit = At(u);
    if (!unit.summed) continue;
    for (const Chunk& chunk : unit.chunks) {
      const optim::GradientSource source = GradientFrom(unit, chunk.begin);
      const double partial = kernels_.sum_of_squares(source, chunk.elems);
      verdict.sum_of_squares += partial;
      if (std::isfinite(partial) || !verdict.first_nonfinite_param.empty()) {
        continue;
      }
      const std::int64_t at = optim::FirstNonFinite(source, chunk.elems);
      verdict.first_nonfinite_param = NameOf(
          u, unit.shard.begin + chunk.begin + std::max<std::int64_t>(at, 0));
    }
  }
  return verdict;
}

absl::Status RankShards::BeginApply(const ApplyArgs& args) {
  if (args.groups.size() != static_cast<std::size_t>(layout_->group_count())) {
    return absl::InvalidArgumentError(
        absl::StrCat("apply: ", args.groups.size(), " parameter groups, ",
                     layout_->group_count(), " in the layout"));
  }
  info_.step = args.step + 1;
  info_.client_state = args.client_state;
  if (!args.skip) ++info_.applied_steps;
  return absl::OkStatus();
}

optim::GradientSource RankShards::GradientFrom(const Unit& unit,
                                               std::int64_t begin) {
  return {.slots = {},
          .slot_dtype = Dtype::kFp32,
          .sum = unit.summed ? unit.sum.data() + begin : nullptr};
}

void RankShards::EndApply() {
  for (Unit& unit : units_) unit.summed = false;
}

absl::Status RankShards::Apply(const ApplyArgs& args) {
  STOWAGE_RETURN_IF_ERROR(BeginApply(args));
  if (!args.skip) {
    std::vector<optim::AdamConstants> constants;
    for (const GroupStep& group : args.groups) {
      constants.push_back(optim::AdamStepConstants(
          optimizer_, group, info_.applied_steps, args.gradient_factor));
    }
    const std::int64_t width = DtypeBytes(layout_->param_dtype());
    for (Unit& unit : units_) {
      for (const Chunk& chunk : unit.chunks) {
        kernels_.adam(constants[static_cast<std::size_t>(chunk.group)],
                      GradientFrom(unit, chunk.begin),
                      {.elems = chunk.elems,
                       .master = unit.master.data() + chunk.begin,
                       .moment1 = unit.moment1.data() + chunk.begin,
                       .moment2 = unit.moment2.data() + chunk.begin,
                       .copy = unit.params.data() + chunk.begin * width,
                       .copy_dtype = layout_->param_dtype()});
      }
    }
  }
  EndApply();
  return absl::OkStatus();
}

absl::Status RankShards::PutState(std::int32_t unit, std::int64_t begin_elems,
                                  std::span<const float> values) {
  Unit& u = At(unit);
  const plan::ElemRange put{
      begin_elems, begin_elems + static_cast<std::int64_t>(values.size())};
  const auto from = [&](std::int64_t elem) {
    return values.data() + (elem - begin_elems);
  };
  if (const plan::ElemRange own = plan::Intersect(put, u.shard); !own.empty()) {
    kernels_.convert(from(own.begin), layout_->param_dtype(),
                     u.params.data() + (own.begin - u.shard.begin) *
                                           DtypeBytes(layout_->param_dtype()),
                     own.elems());
  }
  if (const plan::ElemRange own = plan::Intersect(put, u.gradient);
      !own.empty()) {
    std::copy_n(from(own.begin), own.elems(),
                u.master.data() + (own.begin - u.gradient.begin));
  }
  return absl::OkStatus();
}

absl::Status RankShards::ReadState(std::int32_t unit, StateKind kind,
                                   std::int64_t begin_elems,
                                   std::span<float> out) {
  Unit& u = At(unit);
  const plan::ElemRange held = kind == StateKind::kParam ? u.shard : u.gradient;
  const auto elems = static_cast<std::int64_t>(out.size());
  if (begin_elems < held.begin || begin_elems + elems > held.end) {
    return absl::InvalidArgumentError(
        absl::StrCat("read state of unit \"",
                     layout_->units()[static_cast<std::size_t>(unit)].name,
                     "\": elements ", begin_elems, " to ", begin_elems + elems,
                     ", this rank holds ", held.begin, " to ", held.end));
  }
  const std::int64_t begin = begin_elems - held.begin;
  if (kind == StateKind::kParam) {
    const void* const part =
        u.params.data() + begin * DtypeBytes(layout_->param_dtype());
    kernels_.accumulate({&part, 1}, layout_->param_dtype(), /*first=*/true,
                        out.data(), elems);
    return absl::OkStatus();
  }
  const std::vector<float>& from = kind == StateKind::kMaster    ? u.master
                                   : kind == StateKind::kMoment1 ? u.moment1
                                                                 : u.moment2;
  std::copy_n(from.data() + begin, elems, out.data());
  return absl::OkStatus();
}

std::int64_t RankShards::held_bytes() const {
  std::int64_t bytes = 0;
  for (const Unit& unit : units_) {
    bytes += static_cast<std::int64_t>(unit.params.size() +
                                       4 * unit.master.size() * sizeof(float));
  }
  return bytes;
}

}  // namespace stowage::engine
