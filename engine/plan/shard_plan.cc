#include "engine/plan/shard_plan.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"

namespace stowage::plan {

ElemRange Intersect(ElemRange a, ElemRange b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  const std::int64_t end = std::min(a.end, b.end);
  return begin < end ? ElemRange{begin, end} : ElemRange{a.begin, a.begin};
}

ShardPlan::ShardPlan(const Layout& layout, std::int32_t parts) : parts_(parts) {
  for (const Layout::Unit& unit : layout.units()) {
    part_elems_.push_back(
        RoundUp((unit.elems + parts - 1) / parts, kParamAlignElems));
    unit_elems_.push_back(unit.elems);
    gradient_elems_.push_back(unit.runs.empty() ? 0
                                                : unit.runs.back().end_elems);
  }
}

ElemRange ShardPlan::Shard(std::int32_t unit, std::int32_t part) const {
  const std::int64_t elems = unit_elems_[static_cast<std::size_t>(unit)];
  const std::int64_t begin = std::min(part * part_elems(unit), elems);
  return {begin, std::min(begin + part_elems(unit), elems)};
}

ElemRange ShardPlan::GradientShard(std::int32_t unit, std::int32_t part) const {
  const ElemRange shard = Shard(unit, part);
  const std::int64_t end = gradient_elems(unit);
  return {std::min(shard.begin, end), std::min(shard.end, end)};
}

NodePart MakeNodePart(const Layout& layout, const ShardPlan& plan,
                      std::int32_t first_part, std::int32_t part_count) {
  NodePart node;
  if (part_count == plan.parts()) {
    node.spec = layout.spec();
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      node.unit.push_back(u);
      node.range.push_back(
          {0, layout.units()[static_cast<std::size_t>(u)].elems});
    }
    node.tensor.resize(layout.TrainableParams().size());
    std::iota(node.tensor.begin(), node.tensor.end(), 0);
    return node;
  }
  node.spec.param_dtype = layout.param_dtype();
  node.spec.groups = layout.spec().groups;
  std::int32_t tensor = 0;
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    const Layout::Unit& unit = layout.units()[static_cast<std::size_t>(u)];
    const ElemRange range{plan.Shard(u, first_part).begin,
                          plan.Shard(u, first_part + part_count - 1).end};
    UnitSpec spec;
    spec.name = unit.name;
    for (const Layout::Param& param : unit.params) {
      const std::int32_t index = param.frozen ? -1 : tensor++;
      const ElemRange held = Intersect(
          range, {param.begin_elems, param.begin_elems + param.elems});
      if (held.empty()) continue;
      if (index >= 0) node.tensor.push_back(index);
      spec.params.push_back(
          {absl::StrCat(param.name, "[", held.begin - param.begin_elems, ":",
                        held.end - param.begin_elems, "]"),
           {held.elems()},
           param.group_index});
    }
    node.range.push_back(range);
    if (spec.params.empty()) {
      node.unit.push_back(-1);
      continue;
    }
    node.unit.push_back(static_cast<std::int32_t>(node.spec.units.size()));
    node.spec.units.push_back(std::move(spec));
  }
  return node;
}

}  // namespace stowage::plan
