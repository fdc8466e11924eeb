// Learning-rate schedules as pure functions of the number of applied steps.
//
// A schedule holds no state: asking for a step that was asked for before gives
// the same bits, so a restarted trainer needs nothing but its step counter, and
// `stowctl config schedule` can print the whole curve. Skipped steps (overflow)
// do not count: DeepSpeed does not step its scheduler on them.
//
// DeepSpeed's counter is k = last_batch_iteration, -1 at construction; the lr
// in force for the first step is the construction value (k = -1), for the
// second the one of k = 0. Here `applied_steps` = k + 1: 0 for the first step.
//
// Source: DeepSpeed 0.19.8, deepspeed/runtime/lr_schedules.py, formulas only.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace stowage::engine::schedule {

// Adam's two decay rates; `beta1` is what OneCycle calls momentum.
struct Betas {
  double beta1 = 0.9;
  double beta2 = 0.999;
  friend bool operator==(const Betas&, const Betas&) = default;
};

enum class ScheduleType {
  kConstant,  // no scheduler: each group's own lr
  kWarmupLr,
  kWarmupDecayLr,
  kWarmupCosineLr,
  kLrRangeTest,
  kOneCycle,
};

// "" for kConstant, else DeepSpeed's exact name ("WarmupLR", ...).
const char* ScheduleTypeName(ScheduleType type);
// Exact, case-sensitive. Errors: kInvalidArgument listing the known names.
absl::StatusOr<ScheduleType> ParseScheduleType(const std::string& name);

// `scheduler.params` with DeepSpeed's names and defaults. Fields of other types
// than `type` are ignored. A list has one value (all groups) or one per group.
struct ScheduleSpec {
  ScheduleType type = ScheduleType::kConstant;

  // WarmupLR, WarmupDecayLR. Empty max: each group's own lr (WarmupLR) or 0.001
  // (WarmupDecayLR).
  std::vector<double> warmup_min_lr = {0.0};
  std::vector<double> warmup_max_lr;
  // WarmupLR, WarmupDecayLR, WarmupCosineLR. Steps; at least 1, used as
  // max(2, n).
  std::int64_t warmup_num_steps = 1000;
  bool warmup_linear = false;  // warmup_type: "log" (default) or "linear"
  // WarmupDecayLR, WarmupCosineLR: required there. Steps.
  std::int64_t total_num_steps = 0;
  // WarmupCosineLR: shares of the group's lr.
  double warmup_min_ratio = 0.0;
  double cos_min_ratio = 0.0001;
  // Past total_num_steps the cosine goes up again, as it did before DeepSpeed
  // 0.19; false: it stays at cos_min_ratio.
  bool cosine_oscillates = false;

  // LRRangeTest.
  std::vector<double> lr_range_test_min_lr = {1e-3};
  std::int64_t lr_range_test_step_size = 2000;  // steps
  double lr_range_test_step_rate = 1.0;
  bool lr_range_test_staircase = false;

  // OneCycle. Both lrs are required.
  std::vector<double> cycle_min_lr;
  std::vector<double> cycle_max_lr;
  double decay_lr_rate = 0.0;
  std::int64_t cycle_first_step_size = 2000;             // steps
  std::optional<std::int64_t> cycle_second_step_size;    // absent: as first
  std::int64_t cycle_first_stair_count = 0;              // 0: continuous
  std::optional<std::int64_t> cycle_second_stair_count;  // absent: as first
  bool ignore_stairs = false;        // as DeepSpeed did before 0.19
  std::int64_t decay_step_size = 0;  // steps; 0: no decay
  bool cycle_momentum = true;
  double cycle_min_mom = 0.8;
  double cycle_max_mom = 0.9;
  double decay_mom_rate = 0.0;
};

// What each optimizer parameter group starts with.
struct GroupBase {
  double lr = 1e-3;
  Betas betas;
};

// Thread safety: immutable after Create().
class Schedule {
 public:
  // One constant group of lr 1e-3.
  Schedule();

  // Requires nothing of the spec: everything is checked here.
  // Errors: kInvalidArgument naming the key (a step count out of range, a list
  //   that is neither 1 nor `groups` long, a required key missing, a value that
  //   is not finite); no groups.
  static absl::StatusOr<Schedule> Create(const ScheduleSpec& spec,
                                         std::vector<GroupBase> groups);

  int group_count() const { return static_cast<int>(groups_.size()); }
  const ScheduleSpec& spec() const { return spec_; }

  // The lr in force for the optimizer step that follows `applied_steps` applied
  // ones (0: the first). Requires: applied_steps >= 0, group in range.
  double Lr(std::int64_t applied_steps, int group) const;

  // The betas in force, likewise. OneCycle with cycle_momentum overwrites both
  // (beta2 becomes 0.99 for the whole run, and decay_mom_rate can lift beta1
  // past 1, as DeepSpeed does); every other type returns the group's own.
  Betas BetasAt(std::int64_t applied_steps, int group) const;

  // True if BetasAt() can differ from the group's own.
  bool schedules_momentum() const;

 private:
  Schedule(ScheduleSpec spec, std::vector<GroupBase> groups);

  double WarmupRatio(std::int64_t k) const;  // gamma for k >= 0
  double OneCycleFactor(std::int64_t k) const;

  ScheduleSpec spec_;
  std::vector<GroupBase> groups_;
};

}  // namespace stowage::engine::schedule
