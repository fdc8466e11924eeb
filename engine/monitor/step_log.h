// The lines that steps_per_print and wall_clock_breakdown print, as text.
//
// Pure: the engine decides when, on which rank and where to print.
//
// Source: DeepSpeed 0.19.8, deepspeed/runtime/engine.py and utils/timer.py: the
// lines' wording only.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/schedule/schedule.h"

namespace stowage::engine::monitor {

// "step=10, skipped=0, lr=[0.001], mom=[(0.9, 0.999)]": one lr and one pair per
// parameter group; the lr is the one after the schedule's step.
std::string StepLine(std::int64_t step, std::int64_t skipped,
                     std::span<const double> lrs,
                     std::span<const schedule::Betas> betas);

// Whether the step line is due: never for steps_per_print 0 (= never).
bool StepLineDue(std::int64_t step, std::int64_t steps_per_print);

struct NamedTime {
  std::string_view name;  // "fwd_microstep", "bwd", ...
  double ms = 0;
};

// "[Rank 0] time (ms) | fwd: 1.23 | bwd: 4.56".
std::string TimeLine(int rank, std::span<const NamedTime> times);

// Names of the five timers, per micro batch and summed at a boundary.
inline constexpr std::string_view kMicroTimerNames[] = {
    "fwd_microstep", "bwd_microstep", "bwd_inner_microstep",
    "bwd_allreduce_microstep", "step_microstep"};
inline constexpr std::string_view kBoundaryTimerNames[] = {
    "fwd", "bwd", "bwd_inner", "bwd_allreduce", "step"};
// Ours, appended at a boundary: where the time went.
inline constexpr std::string_view kWaitTimerNames[] = {
    "wait_params", "wait_server", "wait_disk", "wait_ranks"};

// "epoch=0/micro_step=4/global_step=2, RunningAvgSamplesPerSec=1.5,
// CurrSamplesPerSec=1.4, MemAllocated=0.5GB, MaxMemAllocated=0.75GB".
struct Throughput {
  std::int64_t epoch = 0;
  std::int64_t micro_step = 0;
  std::int64_t global_step = 0;
  double average_samples_per_second = 0;
  double current_samples_per_second = 0;
  std::int64_t allocated_bytes = 0;
  std::int64_t allocated_bytes_max = 0;
};
std::string ThroughputLine(const Throughput& throughput);

// memory_breakdown: "MA 0.50 GB  Max_MA 0.75 GB  CA 1.00 GB  Max_CA 1 GB" and
// "CPU Virtual Memory:  used = 3.20 GB, percent = 41.0%".
struct MemoryUse {
  std::int64_t allocated_bytes = 0;
  std::int64_t allocated_bytes_max = 0;
  std::int64_t reserved_bytes = 0;
  std::int64_t reserved_bytes_max = 0;
  std::int64_t host_used_bytes = 0;
  std::int64_t host_total_bytes = 0;
  std::int64_t private_bytes = 0;  // of allocated: no file's, no segment's
};
std::string MemoryLines(std::string_view where, const MemoryUse& use);

}  // namespace stowage::engine::monitor
