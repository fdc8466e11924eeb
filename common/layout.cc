#include "common/layout.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/bytes.h"
#include "common/status_macros.h"

namespace stowage {
namespace {

// FNV-1a: a digest that is stable across processes and releases.
class Digest {
 public:
  void Add(std::uint64_t value) {
    for (int i = 0; i < 8; ++i) {
      state_ = (state_ ^ ((value >> (8 * i)) & 0xffU)) * 0x100000001b3ULL;
    }
  }
  void Add(const std::string& text) {
    Add(text.size());
    for (const char c : text) {
      state_ = (state_ ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
    }
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325ULL;
};

std::uint64_t Fingerprint(const LayoutSpec& spec) {
  Digest digest;
  digest.Add(static_cast<std::uint64_t>(spec.param_dtype));
  digest.Add(spec.groups.size());
  for (const GroupSpec& group : spec.groups) {
    digest.Add(group.name);
    digest.Add(group.frozen ? 1 : 0);
  }
  digest.Add(spec.units.size());
  for (const UnitSpec& unit : spec.units) {
    digest.Add(unit.name);
    digest.Add(unit.params.size());
    for (const ParamSpec& param : unit.params) {
      digest.Add(param.name);
      digest.Add(static_cast<std::uint64_t>(param.group_index));
      digest.Add(param.shape.size());
      for (const std::int64_t extent : param.shape) {
        digest.Add(static_cast<std::uint64_t>(extent));
      }
    }
  }
  return digest.value();
}

absl::Status CheckName(const std::string& what, const std::string& name,
                       const LayoutLimits& limits) {
  if (name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": empty name"));
  }
  if (static_cast<std::int64_t>(name.size()) > limits.name_bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": name of ", name.size(), " bytes, at most ",
                     limits.name_bytes_max, " are allowed"));
  }
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": name holds a control character"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::int64_t> CountElems(const std::string& what,
                                        const std::vector<std::int64_t>& shape,
                                        const LayoutLimits& limits) {
  if (static_cast<std::int64_t>(shape.size()) > limits.rank_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, ": ", shape.size(), " dimensions, at most ", limits.rank_max));
  }
  std::int64_t elems = 1;
  for (const std::int64_t extent : shape) {
    if (extent <= 0 || extent > limits.elems_max / elems) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": shape [", absl::StrJoin(shape, ", "),
                       "] has an extent below 1 or more than ",
                       limits.elems_max, " elements"));
    }
    elems *= extent;
  }
  return elems;
}

std::string ShapeText(const std::vector<std::int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Names, groups and counts of the whole spec; what is inside the units is
// looked at as each is laid out.
absl::Status CheckOutline(const LayoutSpec& spec, const LayoutLimits& limits) {
  if (spec.units.empty()) {
    return absl::InvalidArgumentError("layout: no units");
  }
  if (static_cast<std::int64_t>(spec.units.size()) > limits.units_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layout: ", spec.units.size(), " units, at most ", limits.units_max));
  }
  if (spec.groups.empty() ||
      static_cast<std::int64_t>(spec.groups.size()) > limits.groups_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: ", spec.groups.size(),
                     " parameter groups, expected 1 to ", limits.groups_max));
  }
  if (spec.param_dtype != Dtype::kFp32 && spec.param_dtype != Dtype::kFp16 &&
      spec.param_dtype != Dtype::kBf16) {
    return absl::InvalidArgumentError("layout: unknown parameter type");
  }
  std::set<std::string> group_names;
  for (const GroupSpec& group : spec.groups) {
    STOWAGE_RETURN_IF_ERROR(CheckName("parameter group", group.name, limits));
    if (!group_names.insert(group.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("parameter group \"", group.name, "\" appears twice"));
    }
  }
  std::set<std::string> unit_names;
  std::int64_t param_total = 0;
  for (std::size_t u = 0; u < spec.units.size(); ++u) {
    const UnitSpec& unit = spec.units[u];
    STOWAGE_RETURN_IF_ERROR(
        CheckName(absl::StrCat("unit ", u), unit.name, limits));
    if (!unit_names.insert(unit.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("unit \"", unit.name, "\" appears twice"));
    }
    param_total += static_cast<std::int64_t>(unit.params.size());
    if (unit.params.empty() || param_total > limits.params_max) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unit \"", unit.name, "\": ", unit.params.size(),
          " parameters; a unit needs at least 1, a job has at most ",
          limits.params_max));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Layout::Param> MakeParam(const LayoutSpec& spec, std::size_t u,
                                        std::size_t p,
                                        const LayoutLimits& limits,
                                        std::set<std::string>& param_names) {
  const ParamSpec& param_spec = spec.units[u].params[p];
  const std::string what =
      absl::StrCat("unit \"", spec.units[u].name, "\", parameter ", p);
  STOWAGE_RETURN_IF_ERROR(CheckName(what, param_spec.name, limits));
  if (!param_names.insert(param_spec.name).second) {
    return absl::InvalidArgumentError(
        absl::StrCat("parameter \"", param_spec.name,
                     "\" appears twice; a tied parameter belongs to one unit"));
  }
  if (param_spec.group_index < 0 ||
      param_spec.group_index >= static_cast<std::int32_t>(spec.groups.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " (\"", param_spec.name, "\"): group ",
                     param_spec.group_index, " of ", spec.groups.size()));
  }
  Layout::Param param;
  param.name = param_spec.name;
  param.shape = param_spec.shape;
  param.group_index = param_spec.group_index;
  param.unit_index = static_cast<std::int32_t>(u);
  param.declared_index = static_cast<std::int32_t>(p);
  param.frozen =
      spec.groups[static_cast<std::size_t>(param.group_index)].frozen;
  STOWAGE_ASSIGN_OR_RETURN(param.elems,
                           CountElems(what, param_spec.shape, limits));
  return param;
}

// Gives the unit's parameters their places and the unit its runs and sizes.
absl::Status PlaceParams(const LayoutLimits& limits, Layout::Unit& unit) {
  std::stable_sort(unit.params.begin(), unit.params.end(),
                   [](const Layout::Param& a, const Layout::Param& b) {
                     if (a.frozen != b.frozen) return b.frozen;
                     return a.group_index < b.group_index;
                   });
  std::int64_t cursor = 0;
  std::int64_t trainable_end = 0;
  for (Layout::Param& param : unit.params) {
    param.begin_elems = cursor;
    cursor += RoundUp(param.elems, kParamAlignElems);
    if (cursor > limits.elems_max) {
      return absl::InvalidArgumentError(
          absl::StrCat("unit \"", unit.name, "\": more than ", limits.elems_max,
                       " elements"));
    }
    if (param.frozen) continue;
    if (unit.runs.empty() ||
        unit.runs.back().group_index != param.group_index) {
      unit.runs.push_back({param.group_index, param.begin_elems, cursor});
    } else {
      unit.runs.back().end_elems = cursor;
    }
    trainable_end = cursor;
  }
  unit.elems = RoundUp(cursor, kUnitAlignElems);
  unit.trainable_elems = RoundUp(trainable_end, kUnitAlignElems);
  return absl::OkStatus();
}

}  // namespace

void Layout::AddUnit(Unit unit) {
  const auto unit_index = static_cast<std::int32_t>(units_.size());
  for (const Param& param : unit.params) {
    parameter_count_ += param.elems;
    if (!param.frozen) trainable_count_ += param.elems;
  }
  unit.begin_elems = total_elems_;
  unit.state_begin_elems = state_elems_;
  total_elems_ += unit.elems;
  state_elems_ += unit.trainable_elems;
  unit_elems_max_ = std::max(unit_elems_max_, unit.elems);
  chunk_begin_.push_back(static_cast<std::int64_t>(chunks_.size()));
  for (const Run& run : unit.runs) {
    for (std::int64_t begin = run.begin_elems; begin < run.end_elems;
         begin += kChunkElems) {
      chunks_.push_back({unit_index, run.group_index, begin,
                         std::min(kChunkElems, run.end_elems - begin)});
    }
  }
  units_.push_back(std::move(unit));
}

absl::StatusOr<Layout> Layout::Create(const LayoutSpec& spec,
                                      const LayoutLimits& limits) {
  STOWAGE_RETURN_IF_ERROR(CheckOutline(spec, limits));
  Layout layout;
  layout.spec_ = spec;
  std::set<std::string> param_names;
  for (std::size_t u = 0; u < spec.units.size(); ++u) {
    Unit unit;
    unit.name = spec.units[u].name;
    for (std::size_t p = 0; p < spec.units[u].params.size(); ++p) {
      STOWAGE_ASSIGN_OR_RETURN(Param param,
                               MakeParam(spec, u, p, limits, param_names));
      unit.params.push_back(std::move(param));
    }
    STOWAGE_RETURN_IF_ERROR(PlaceParams(limits, unit));
    layout.AddUnit(std::move(unit));
    if (layout.total_elems_ > limits.elems_max) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layout: more than ", limits.elems_max, " elements in all"));
    }
  }
  layout.chunk_begin_.push_back(
      static_cast<std::int64_t>(layout.chunks_.size()));
  layout.fingerprint_ = Fingerprint(spec);
  return layout;
}

std::vector<const Layout::Param*> Layout::TrainableParams() const {
  std::vector<const Param*> params;
  for (const Unit& unit : units_) {
    for (const Param& param : unit.params) {
      if (!param.frozen) params.push_back(&param);
    }
  }
  return params;
}

std::string DescribeDifference(const LayoutSpec& ours,
                               const LayoutSpec& theirs) {
  if (ours.param_dtype != theirs.param_dtype) {
    return absl::StrCat(
        "parameters are ", std::string(DtypeName(ours.param_dtype)),
        ", the job has ", std::string(DtypeName(theirs.param_dtype)));
  }
  if (ours.groups.size() != theirs.groups.size()) {
    return absl::StrCat(ours.groups.size(), " parameter groups, the job has ",
                        theirs.groups.size());
  }
  for (std::size_t g = 0; g < ours.groups.size(); ++g) {
    if (ours.groups[g] != theirs.groups[g]) {
      return absl::StrCat("parameter group ", g, " is \"", ours.groups[g].name,
                          ours.groups[g].frozen ? "\" (frozen)" : "\"",
                          ", the job has \"", theirs.groups[g].name,
                          theirs.groups[g].frozen ? "\" (frozen)" : "\"");
    }
  }
  if (ours.units.size() != theirs.units.size()) {
    return absl::StrCat(ours.units.size(), " units, the job has ",
                        theirs.units.size());
  }
  for (std::size_t u = 0; u < ours.units.size(); ++u) {
    const UnitSpec& a = ours.units[u];
    const UnitSpec& b = theirs.units[u];
    if (a.name != b.name) {
      return absl::StrCat("unit ", u, " is \"", a.name, "\", the job has \"",
                          b.name, "\"");
    }
    if (a.params.size() != b.params.size()) {
      return absl::StrCat("unit \"", a.name, "\" has ", a.params.size(),
                          " parameters, the job has ", b.params.size());
    }
    for (std::size_t p = 0; p < a.params.size(); ++p) {
      if (a.params[p].name != b.params[p].name) {
        return absl::StrCat("unit \"", a.name, "\": parameter ", p, " is \"",
                            a.params[p].name, "\", the job has \"",
                            b.params[p].name, "\"");
      }
      if (a.params[p].shape != b.params[p].shape) {
        return absl::StrCat("unit \"", a.name, "\": parameter \"",
                            a.params[p].name, "\" has shape ",
                            ShapeText(a.params[p].shape), ", the job has ",
                            ShapeText(b.params[p].shape));
      }
      if (a.params[p].group_index != b.params[p].group_index) {
        return absl::StrCat("unit \"", a.name, "\": parameter \"",
                            a.params[p].name, "\" is in group ",
                            a.params[p].group_index, ", the job has it in ",
                            b.params[p].group_index);
      }
    }
  }
  return "";
}

}  // namespace stowage
