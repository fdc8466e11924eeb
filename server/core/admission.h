// Checks on everything that a client says about a job, a run and a step, and
// the bytes that a job needs.
//
// Pure: no state, no threads. What is past these checks may be used as a size,
// an index or a constant of a kernel without another look.

#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/job_spec.h"
#include "common/layout.h"

namespace stowage::core {

// How a run's gradient slots are used (AttachInfo).
struct SlotPlan {
  bool ring = false;
  std::int32_t slots_per_rank = 1;
  // Above zero: the slots of a rank are so many regions, each for one unit at a
  // time (AttachInfo); `ring` holds.
  std::int32_t regions = 0;
};

// Slots are kept until apply while ranks x micro steps stay within
// `kept_slots_max`, because reading them twice then moves fewer bytes than an
// fp32 sum; else they are a ring of one.
SlotPlan PlanSlots(const RunSpec& run, std::int32_t kept_slots_max);

// Upper bound of RegistryOptions::kept_slots_max.
inline constexpr std::int32_t kKeptSlotsLimit = 64;

// What a job pins, by part; all as mapped, page padding included.
struct MemoryNeed {
  std::int64_t state_bytes = 0;     // master and moments
  std::int64_t param_bytes = 0;     // parameter segment
  std::int64_t gradient_bytes = 0;  // gradient segments of all local ranks
  std::int64_t sum_bytes = 0;       // fp32 sums; ring slots only
  std::int64_t one_bit_bytes = 0;   // errors and more of 1-bit optimizers
  std::int64_t job_bytes() const {
    return state_bytes + param_bytes + one_bit_bytes;
  }
  std::int64_t run_bytes() const { return gradient_bytes + sum_bytes; }
};
MemoryNeed NeedOf(const Layout& layout, const RunSpec& run,
                  const SlotPlan& plan);

// "optimizer state 1.0 GiB, parameters 170.0 MiB, gradient slots ...".
std::string DescribeNeed(const MemoryNeed& need, bool job_part, bool run_part);

// Errors: kInvalidArgument.
// The layout is checked by Layout::Create().
absl::Status CheckJobSpec(const JobSpec& job);

// Errors: kInvalidArgument.
absl::Status CheckRunSpec(const RunSpec& run, std::int32_t local_rank);

// Errors: kInvalidArgument naming the field. A skipped step's hyper-parameters
// are not looked at: after an overflow the factor is often not finite.
absl::Status CheckApplyArgs(const ApplyArgs& args, const Layout& layout);

// The name of the first field in which a repeated apply differs, empty if the
// two mean the same.
std::string FirstDifference(const ApplyArgs& repeat, const ApplyArgs& first);

}  // namespace stowage::core
