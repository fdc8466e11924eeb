// What rank 0 says of every step: the monitors' events, the step line, the
// throughput line, the lines of wall_clock_breakdown and memory_breakdown.
//
// The engine hands over facts; which of them are written, under which name and
// when, is decided here from the configuration. Writes go to the monitors (once
// a step) and to standard output (where the configuration asks for lines).
//
// Source: DeepSpeed 0.19.8, deepspeed/runtime/engine.py and utils/timer.py,
// behaviour only.

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "engine/config/config.h"
#include "engine/monitor/monitor.h"
#include "engine/monitor/step_log.h"
#include "engine/schedule/schedule.h"

namespace stowage::engine::monitor {

// Where the job's bytes are. Zero: nothing there.
struct TierBytes {
  std::int64_t rank_gathered_peak = 0;  // parameters that rank 0 held at most
  std::int64_t server_params = 0;
  std::int64_t server_gradients = 0;
  std::int64_t server_state = 0;  // in memory
  bool on_disk = false;
  std::int64_t disk = 0;
  std::int64_t disk_read = 0;     // since the server opened the job
  std::int64_t disk_written = 0;  // likewise
};

// Times of one micro batch or, summed, of one step; milliseconds.
struct PhaseTimes {
  double forward = 0;
  double backward = 0;
  // Of backward: handing gradients over and reducing them; the rest is inner.
  double backward_allreduce = 0;
  double step = 0;
};

// Where this rank waited in a step, milliseconds. Disk is part of the first
// two, at most their sum: what the server waited for its disks meanwhile.
struct WaitTimes {
  double params = 0;
  double server = 0;
  double disk = 0;
  double ranks = 0;
};

struct StepFacts {
  std::int64_t step = 0;            // committed steps after this one
  std::int64_t skipped_steps = 0;   // so far
  std::int64_t global_samples = 0;  // so far, skipped steps included
  double loss = 0;
  double gradient_norm = 0;
  TrustRatios trust_ratios;  // of the step before; none: not Lamb
  Compression compression;   // likewise; none: not a 1-bit optimizer
  // After the schedule's step, by parameter group; never empty.
  std::vector<double> lrs;
  std::vector<schedule::Betas> betas;
  double loss_scale = 1;  // for the next step
  bool loss_scale_integral = true;
  PhaseTimes times;
  WaitTimes waits;
};

// Thread safety: externally synchronized.
class StepReporter {
 public:
  struct Options {
    int rank = 0;
    // Where relative monitor paths start; empty: the working directory.
    std::string output_root;
    std::string config_json = "{}";      // shown with a wandb run
    std::int64_t tokens_per_sample = 0;  // 0: no tokens per second
    // Where the bytes are; asked for at the first step and then at most once in
    // `tier_interval_seconds`. May fail: then there are no such events.
    std::function<std::optional<TierBytes>()> tiers;
    double tier_interval_seconds = 1;
    // Where lines go; absent: standard output.
    std::function<void(const std::string&)> print;
  };

  // Says nothing.
  StepReporter() = default;

  // Says nothing on ranks other than 0. Errors: a monitor's that cannot be
  // made.
  static absl::StatusOr<StepReporter> Create(const config::Config& config,
                                             Options options);

  // With wall_clock_breakdown: the line of one micro batch.
  void MicroBatch(const PhaseTimes& times);
  // With memory_breakdown: two lines, and the peak starts anew. `where` is
  // "before forward", "after step", ...
  void Memory(std::string_view where);
  // Once per step. `seconds`: from the previous step's end to this one's.
  void Step(const StepFacts& facts, double seconds);
  // Pushes what is buffered out. Blocks: for the file system.
  void Flush();

  bool wants_memory() const { return active_ && config_.memory_breakdown; }

 private:
  std::vector<Event> EventsOf(const StepFacts& facts, double seconds);
  void AddTiers(std::int64_t x, std::vector<Event>& events);
  void Print(const std::string& line) const;

  bool active_ = false;
  config::Config config_;
  Options options_;
  MultiMonitor monitors_;
  bool failed_ = false;
  double until_tiers_seconds_ = 0;
  std::int64_t steps_seen_ = 0;
  double averaged_seconds_ = 0;
};

}  // namespace stowage::engine::monitor
