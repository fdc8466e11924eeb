#include "engine/monitor/step_reporter.h"

#include <cstdio>
#include <limits>
#include <utility>

#include "common/log.h"
#include "common/status_macros.h"
#include "engine/monitor/process_memory.h"

namespace stowage::engine::monitor {
namespace {

// Throughput is averaged from the third step on, as DeepSpeed's timer does: the
// first ones warm up.
constexpr std::int64_t kWarmUpSteps = 2;

double Bytes(std::int64_t bytes) { return static_cast<double>(bytes); }

}  // namespace

absl::StatusOr<StepReporter> StepReporter::Create(const config::Config& config,
                                                  Options options) {
  StepReporter made;
  if (options.rank != 0) return made;
  made.active_ = true;
  made.config_ = config;
  STOWAGE_ASSIGN_OR_RETURN(
      made.monitors_,
      MultiMonitor::Create(config, options.rank, options.output_root,
                           options.config_json));
  made.options_ = std::move(options);
  return made;
}

void StepReporter::Print(const std::string& line) const {
  if (options_.print) {
    options_.print(line);
    return;
  }
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void StepReporter::MicroBatch(const PhaseTimes& times) {
  if (!active_ || !config_.wall_clock_breakdown) return;
  const NamedTime line[] = {
      {kMicroTimerNames[0], times.forward},
      {kMicroTimerNames[1], times.backward},
      {kMicroTimerNames[2], times.backward - times.backward_allreduce},
      {kMicroTimerNames[3], times.backward_allreduce},
      {kMicroTimerNames[4], times.step}};
  Print(TimeLine(options_.rank, line));
}

void StepReporter::Memory(std::string_view where) {
  if (!wants_memory()) return;
  Print(MemoryLines(where, ReadMemoryUse()));
  ResetPeakMemory();
}

void StepReporter::AddTiers(std::int64_t x, std::vector<Event>& events) {
  if (!options_.tiers) return;
  const std::optional<TierBytes> tiers = options_.tiers();
  if (!tiers) return;
  const auto add = [&](const char* name, std::int64_t bytes) {
    events.push_back({name, Bytes(bytes), x, /*integral=*/true});
  };
  add(kEventRankGatheredBytes, tiers->rank_gathered_peak);
  add(kEventServerParamBytes, tiers->server_params);
  add(kEventServerGradientBytes, tiers->server_gradients);
  add(kEventServerStateBytes, tiers->server_state);
  if (!tiers->on_disk) return;
  add(kEventDiskBytes, tiers->disk);
  add(kEventDiskReadBytes, tiers->disk_read);
  add(kEventDiskWrittenBytes, tiers->disk_written);
}

std::vector<Event> StepReporter::EventsOf(const StepFacts& facts,
                                          double seconds) {
  const std::int64_t x = facts.global_samples;
  const PhaseTimes& times = facts.times;
  std::vector<Event> events = {
      {kEventTrainLoss, facts.loss, x},
      {kEventLr, facts.lrs.front(), x},
      {kEventGradNorm, facts.gradient_norm, x},
      {kEventSkippedSteps, static_cast<double>(facts.skipped_steps), x, true},
      {kEventSamples, static_cast<double>(x), x, true},
      {kEventOptimizerExposedMs, times.step + facts.waits.params, x}};
  // The verdict on this step knows these of the step before.
  const std::int64_t before = x - config_.train_batch_size;
  if (facts.compression.rounds > 0) {
    events.push_back({kEventCompressionError, facts.compression.error, before});
  }
  if (const TrustRatios& ratios = facts.trust_ratios; ratios.tensors > 0) {
    events.push_back({kEventTrustRatioMin, ratios.min, before});
    events.push_back({kEventTrustRatioMean, ratios.mean, before});
    events.push_back({kEventTrustRatioMax, ratios.max, before});
  }
  if (config_.precision == Dtype::kFp16) {
    events.push_back(
        {kEventLossScale, facts.loss_scale, x, facts.loss_scale_integral});
  }
  if (seconds > 0) {
    const double rate = static_cast<double>(config_.train_batch_size) / seconds;
    events.push_back({kEventSamplesPerSecond, rate, x});
    if (options_.tokens_per_sample > 0) {
      events.push_back({kEventTokensPerSecond,
                        rate * static_cast<double>(options_.tokens_per_sample),
                        x});
    }
  }
  if (config_.wall_clock_breakdown) {
    events.push_back({kEventForwardMs, times.forward, x});
    events.push_back({kEventBackwardMs, times.backward, x});
    events.push_back(
        {kEventBackwardInnerMs, times.backward - times.backward_allreduce, x});
    events.push_back({kEventBackwardAllreduceMs, times.backward_allreduce, x});
    events.push_back({kEventStepMs, times.step, x});
  }
  until_tiers_seconds_ -= seconds;
  if (until_tiers_seconds_ <= 0) {
    until_tiers_seconds_ = options_.tier_interval_seconds;
    AddTiers(x, events);
  }
  return events;
}

void StepReporter::Step(const StepFacts& facts, double seconds) {
  if (!active_) return;
  ++steps_seen_;
  if (steps_seen_ > kWarmUpSteps) averaged_seconds_ += seconds;
  if (!monitors_.empty()) {
    if (const absl::Status written =
            monitors_.WriteEvents(EventsOf(facts, seconds));
        !written.ok() && !failed_) {
      failed_ = true;  // once: a full disk must not flood the log
      log::Warning("monitor failed, training goes on",
                   {{"cause", written.ToString()}});
    }
  }
  if (StepLineDue(facts.step, config_.steps_per_print)) {
    log::Info(
        StepLine(facts.step, facts.skipped_steps, facts.lrs, facts.betas));
    if (steps_seen_ > kWarmUpSteps) {
      const MemoryUse memory = ReadMemoryUse();
      const double batch = static_cast<double>(config_.train_batch_size);
      const auto averaged = static_cast<double>(steps_seen_ - kWarmUpSteps);
      log::Info(ThroughputLine(
          {.epoch = 0,
           .micro_step = facts.step * config_.gradient_accumulation_steps,
           .global_step = facts.step,
           .average_samples_per_second = batch * averaged / averaged_seconds_,
           .current_samples_per_second = batch / seconds,
           .allocated_bytes = memory.allocated_bytes,
           .allocated_bytes_max = memory.allocated_bytes_max}));
    }
  }
  if (config_.wall_clock_breakdown) {
    const PhaseTimes& times = facts.times;
    const NamedTime line[] = {
        {kBoundaryTimerNames[0], times.forward},
        {kBoundaryTimerNames[1], times.backward},
        {kBoundaryTimerNames[2], times.backward - times.backward_allreduce},
        {kBoundaryTimerNames[3], times.backward_allreduce},
        {kBoundaryTimerNames[4], times.step},
        {kWaitTimerNames[0], facts.waits.params},
        {kWaitTimerNames[1], facts.waits.server},
        {kWaitTimerNames[2], facts.waits.disk},
        {kWaitTimerNames[3], facts.waits.ranks}};
    Print(TimeLine(options_.rank, line));
  }
}

void StepReporter::Flush() { monitors_.Flush().IgnoreError(); }

}  // namespace stowage::engine::monitor
