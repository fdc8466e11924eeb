#include "engine/schedule/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace stowage::engine::schedule {
namespace {

struct NamedType {
  ScheduleType type;
  const char* name;
};
constexpr NamedType kTypes[] = {
    {ScheduleType::kWarmupLr, "WarmupLR"},
    {ScheduleType::kWarmupDecayLr, "WarmupDecayLR"},
    {ScheduleType::kWarmupCosineLr, "WarmupCosineLR"},
    {ScheduleType::kLrRangeTest, "LRRangeTest"},
    {ScheduleType::kOneCycle, "OneCycle"},
};

// OneCycle's second beta, whatever the optimizer was given.
constexpr double kOneCycleBeta2 = 0.99;
// WarmupDecayLR's warmup_max_lr where none is given.
constexpr double kWarmupDecayMaxLr = 0.001;

absl::Status CheckFinite(std::string_view key, double value) {
  if (std::isfinite(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("scheduler.params.",
                                                 std::string(key), " = ", value,
                                                 ": expected a finite number"));
}

// A list of lrs: none (if `optional`), one, or one per group.
absl::Status CheckList(std::string_view key, const std::vector<double>& list,
                       std::size_t groups, bool optional) {
  if (list.empty() && !optional) {
    return absl::InvalidArgumentError(
        absl::StrCat("scheduler.params.", std::string(key), " is required"));
  }
  if (list.size() > 1 && list.size() != groups) {
    return absl::InvalidArgumentError(absl::StrCat(
        "scheduler.params.", std::string(key), " has ", list.size(),
        " values: expected one, or one for each of the ", groups,
        " parameter groups"));
  }
  for (const double value : list) {
    STOWAGE_RETURN_IF_ERROR(CheckFinite(key, value));
  }
  return absl::OkStatus();
}

absl::Status CheckAtLeast(std::string_view key, std::int64_t value,
                          std::int64_t min) {
  if (value >= min) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("scheduler.params.", std::string(key), " = ", value,
                   ": expected an integer >= ", min));
}

absl::Status CheckWarmup(const ScheduleSpec& spec, std::size_t groups) {
  STOWAGE_RETURN_IF_ERROR(
      CheckAtLeast("warmup_num_steps", spec.warmup_num_steps, 1));
  if (spec.type == ScheduleType::kWarmupCosineLr) {
    STOWAGE_RETURN_IF_ERROR(
        CheckFinite("warmup_min_ratio", spec.warmup_min_ratio));
    STOWAGE_RETURN_IF_ERROR(CheckFinite("cos_min_ratio", spec.cos_min_ratio));
  } else {
    STOWAGE_RETURN_IF_ERROR(
        CheckList("warmup_min_lr", spec.warmup_min_lr, groups, false));
    STOWAGE_RETURN_IF_ERROR(
        CheckList("warmup_max_lr", spec.warmup_max_lr, groups, true));
  }
  if (spec.type != ScheduleType::kWarmupLr) {
    STOWAGE_RETURN_IF_ERROR(
        CheckAtLeast("total_num_steps", spec.total_num_steps, 1));
  }
  return absl::OkStatus();
}

absl::Status CheckOneCycle(const ScheduleSpec& spec, std::size_t groups) {
  STOWAGE_RETURN_IF_ERROR(
      CheckList("cycle_min_lr", spec.cycle_min_lr, groups, false));
  STOWAGE_RETURN_IF_ERROR(
      CheckList("cycle_max_lr", spec.cycle_max_lr, groups, false));
  STOWAGE_RETURN_IF_ERROR(
      CheckAtLeast("cycle_first_step_size", spec.cycle_first_step_size, 1));
  STOWAGE_RETURN_IF_ERROR(CheckAtLeast(
      "cycle_second_step_size", spec.cycle_second_step_size.value_or(0), 0));
  STOWAGE_RETURN_IF_ERROR(
      CheckAtLeast("cycle_first_stair_count", spec.cycle_first_stair_count, 0));
  STOWAGE_RETURN_IF_ERROR(
      CheckAtLeast("cycle_second_stair_count",
                   spec.cycle_second_stair_count.value_or(0), 0));
  STOWAGE_RETURN_IF_ERROR(
      CheckAtLeast("decay_step_size", spec.decay_step_size, 0));
  STOWAGE_RETURN_IF_ERROR(CheckFinite("decay_lr_rate", spec.decay_lr_rate));
  STOWAGE_RETURN_IF_ERROR(CheckFinite("cycle_min_mom", spec.cycle_min_mom));
  STOWAGE_RETURN_IF_ERROR(CheckFinite("cycle_max_mom", spec.cycle_max_mom));
  return CheckFinite("decay_mom_rate", spec.decay_mom_rate);
}

double ForGroup(const std::vector<double>& list, int group) {
  return list.size() == 1 ? list[0] : list[static_cast<std::size_t>(group)];
}

}  // namespace

const char* ScheduleTypeName(ScheduleType type) {
  for (const NamedType& named : kTypes) {
    if (named.type == type) return named.name;
  }
  return "";
}

absl::StatusOr<ScheduleType> ParseScheduleType(const std::string& name) {
  for (const NamedType& named : kTypes) {
    if (name == named.name) return named.type;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown scheduler type \"", name,
                   "\": expected WarmupLR, WarmupDecayLR, WarmupCosineLR, "
                   "LRRangeTest or OneCycle"));
}

Schedule::Schedule() : groups_(1) {}

Schedule::Schedule(ScheduleSpec spec, std::vector<GroupBase> groups)
    : spec_(std::move(spec)), groups_(std::move(groups)) {}

absl::StatusOr<Schedule> Schedule::Create(const ScheduleSpec& spec,
                                          std::vector<GroupBase> groups) {
  if (groups.empty()) {
    return absl::InvalidArgumentError("a schedule needs a parameter group");
  }
  for (const GroupBase& group : groups) {
    if (!std::isfinite(group.lr)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the lr of a parameter group is ", group.lr,
                       ": expected a finite number"));
    }
  }
  switch (spec.type) {
    case ScheduleType::kConstant:
      break;
    case ScheduleType::kWarmupLr:
    case ScheduleType::kWarmupDecayLr:
    case ScheduleType::kWarmupCosineLr:
      STOWAGE_RETURN_IF_ERROR(CheckWarmup(spec, groups.size()));
      break;
    case ScheduleType::kLrRangeTest:
      STOWAGE_RETURN_IF_ERROR(CheckList("lr_range_test_min_lr",
                                        spec.lr_range_test_min_lr,
                                        groups.size(), false));
      STOWAGE_RETURN_IF_ERROR(CheckAtLeast("lr_range_test_step_size",
                                           spec.lr_range_test_step_size, 1));
      STOWAGE_RETURN_IF_ERROR(
          CheckFinite("lr_range_test_step_rate", spec.lr_range_test_step_rate));
      break;
    case ScheduleType::kOneCycle:
      STOWAGE_RETURN_IF_ERROR(CheckOneCycle(spec, groups.size()));
      break;
  }
  return Schedule(spec, std::move(groups));
}

bool Schedule::schedules_momentum() const {
  return spec_.type == ScheduleType::kOneCycle && spec_.cycle_momentum;
}

// The rise of every warm-up: from 0 to 1 while k < n; log reaches 1 at n - 1.
double Schedule::WarmupRatio(std::int64_t k) const {
  const auto n =
      static_cast<double>(std::max<std::int64_t>(2, spec_.warmup_num_steps));
  const auto step = static_cast<double>(k);
  if (spec_.warmup_linear) return step / n;
  // DeepSpeed multiplies by 1/ln(n), it does not divide.
  return (1.0 / std::log(n)) * std::log(step + 1.0);
}

// How far from the minimum (0) to the maximum (1) OneCycle's position is.
// Requires: k inside the cycle.
double Schedule::OneCycleFactor(std::int64_t k) const {
  const auto first = static_cast<double>(spec_.cycle_first_step_size);
  const auto second = static_cast<double>(
      spec_.cycle_second_step_size.value_or(spec_.cycle_first_step_size));
  const double total = first + second;
  const double batch = static_cast<double>(k) + 1.0;
  const double cycle = std::floor(1.0 + batch / total);
  const double x = 1.0 + batch / total - cycle;
  const double ratio = first / total;
  const bool rising = x <= ratio;
  const std::int64_t stairs = rising ? spec_.cycle_first_stair_count
                                     : spec_.cycle_second_stair_count.value_or(
                                           spec_.cycle_first_stair_count);
  if (stairs > 0 && !spec_.ignore_stairs) {
    const auto count = static_cast<double>(stairs);
    const double in_cycle = std::fmod(batch, total);
    const double position =
        rising ? in_cycle * count / first : (total - in_cycle) * count / second;
    return std::floor(position) / count;
  }
  return rising ? x / ratio : (x - 1.0) / (ratio - 1.0);
}

double Schedule::Lr(std::int64_t applied_steps, int group) const {
  STOWAGE_CHECK(applied_steps >= 0 && group >= 0 && group < group_count());
  const double base = groups_[static_cast<std::size_t>(group)].lr;
  const std::int64_t k = applied_steps - 1;
  const std::int64_t n = std::max<std::int64_t>(2, spec_.warmup_num_steps);
  switch (spec_.type) {
    case ScheduleType::kConstant:
      return base;

    case ScheduleType::kWarmupLr:
    case ScheduleType::kWarmupDecayLr: {
      const bool decays = spec_.type == ScheduleType::kWarmupDecayLr;
      const double min = ForGroup(spec_.warmup_min_lr, group);
      if (k < 0) return min;
      const double max = !spec_.warmup_max_lr.empty()
                             ? ForGroup(spec_.warmup_max_lr, group)
                             : (decays ? kWarmupDecayMaxLr : base);
      double gamma = 1.0;
      if (k < n) {
        gamma = WarmupRatio(k);
      } else if (decays) {
        gamma = std::max(
            0.0,
            static_cast<double>(spec_.total_num_steps - k) /
                std::max(1.0, static_cast<double>(spec_.total_num_steps - n)));
      }
      return min + (max - min) * gamma;
    }

    case ScheduleType::kWarmupCosineLr: {
      if (k < 0) return 0.0;
      if (k < n) {
        return base * (spec_.warmup_min_ratio +
                       (1.0 - spec_.warmup_min_ratio) * WarmupRatio(k));
      }
      const auto j = static_cast<double>(k - n + 1);
      const double span =
          std::max(1.0, static_cast<double>(spec_.total_num_steps - n));
      const double progress =
          spec_.cosine_oscillates ? j / span : std::min(1.0, j / span);
      const double cosine = (1.0 + std::cos(std::numbers::pi * progress)) / 2.0;
      return base * std::max(0.0, spec_.cos_min_ratio +
                                      (1.0 - spec_.cos_min_ratio) * cosine);
    }

    case ScheduleType::kLrRangeTest: {
      const double min = ForGroup(spec_.lr_range_test_min_lr, group);
      if (k < 0) return min;
      double interval = static_cast<double>(k + 1) /
                        static_cast<double>(spec_.lr_range_test_step_size);
      if (spec_.lr_range_test_staircase) interval = std::floor(interval);
      return min * (1.0 + spec_.lr_range_test_step_rate * interval);
    }

    case ScheduleType::kOneCycle: {
      const double min = ForGroup(spec_.cycle_min_lr, group);
      const double max = ForGroup(spec_.cycle_max_lr, group);
      if (k < 0) return min;
      const std::int64_t length =
          spec_.cycle_first_step_size +
          spec_.cycle_second_step_size.value_or(spec_.cycle_first_step_size);
      if (k < length) return min + (max - min) * OneCycleFactor(k);
      if (spec_.decay_step_size == 0 || spec_.decay_lr_rate == 0) return min;
      const double decayed = static_cast<double>(k - length + 1) /
                             static_cast<double>(spec_.decay_step_size);
      return min / (1.0 + spec_.decay_lr_rate * decayed);
    }
  }
  return base;
}

Betas Schedule::BetasAt(std::int64_t applied_steps, int group) const {
  STOWAGE_CHECK(applied_steps >= 0 && group >= 0 && group < group_count());
  if (!schedules_momentum()) {
    return groups_[static_cast<std::size_t>(group)].betas;
  }
  const std::int64_t k = applied_steps - 1;
  const double min = spec_.cycle_min_mom;
  const double max = spec_.cycle_max_mom;
  if (k < 0) return {min, kOneCycleBeta2};
  const std::int64_t length =
      spec_.cycle_first_step_size +
      spec_.cycle_second_step_size.value_or(spec_.cycle_first_step_size);
  if (k < length) {
    return {max - (max - min) * OneCycleFactor(k), kOneCycleBeta2};
  }
  if (spec_.decay_step_size == 0 || spec_.decay_mom_rate == 0) {
    return {max, kOneCycleBeta2};
  }
  const double decayed = static_cast<double>(k - length + 1) /
                         static_cast<double>(spec_.decay_step_size);
  return {max * (1.0 + spec_.decay_mom_rate * decayed), kOneCycleBeta2};
}

}  // namespace stowage::engine::schedule
