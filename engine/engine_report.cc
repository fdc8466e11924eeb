// Engine: what rank 0 says of each step.

#include <chrono>
#include <cstdio>
#include <utility>

#include "common/status_macros.h"
#include "engine/engine.h"

namespace stowage::engine {

absl::Status Engine::MakeReporter() {
  const config::Config& config = this->config();
  if (options_.launch.rank == 0 && config.dump_state) {
    std::fputs(config::ExplainText(options_.resolution).c_str(), stdout);
    std::fflush(stdout);
  }
  monitor::StepReporter::Options options;
  options.rank = options_.launch.rank;
  options.output_root = options_.monitor_root;
  options.config_json = config_resolved_json();
  options.tokens_per_sample = options_.tokens_per_sample;
  options.tiers = [this] { return Tiers(); };
  STOWAGE_ASSIGN_OR_RETURN(
      reporter_, monitor::StepReporter::Create(config, std::move(options)));
  last_report_ = std::chrono::steady_clock::now();
  return absl::OkStatus();
}

std::optional<monitor::TierBytes> Engine::Tiers() {
  if (client_ == nullptr) return std::nullopt;  // nothing is offloaded
  const absl::StatusOr<std::vector<JobInfo>> jobs = client_->ListJobs();
  if (!jobs.ok()) return std::nullopt;
  for (const JobInfo& job : *jobs) {
    if (job.name != job_name_) continue;
    monitor::TierBytes tiers;
    tiers.rank_gathered_peak = coordinator_->held().gathered_peak;
    tiers.server_params = job.param_bytes;
    tiers.server_gradients = job.gradient_bytes;
    tiers.server_state = job.state_bytes;
    tiers.on_disk = !job.nvme_paths.empty();
    tiers.disk = job.disk_bytes;
    tiers.disk_read = job.disk_bytes_read;
    tiers.disk_written = job.disk_bytes_written;
    return tiers;
  }
  return std::nullopt;
}

void Engine::Report(const StepResult& result) {
  const auto now = std::chrono::steady_clock::now();
  const double seconds =
      std::chrono::duration<double>(now - std::exchange(last_report_, now))
          .count();
  monitor::StepFacts facts;
  facts.step = result.step;
  facts.skipped_steps = skipped_steps_;
  facts.global_samples = result.global_samples;
  facts.loss = result.loss;
  facts.gradient_norm = result.gradient_norm;
  facts.trust_ratios = result.trust_ratios;
  facts.compression = result.compression;
  for (int g = 0; g < static_cast<int>(options_.groups.size()); ++g) {
    facts.lrs.push_back(schedule_.Lr(applied_steps_, g));
    facts.betas.push_back(schedule_.BetasAt(applied_steps_, g));
  }
  facts.loss_scale = scaler_.scale();
  facts.loss_scale_integral = scaler_.scale_is_integer();
  facts.times = {.forward = result.forward_ms,
                 .backward = result.backward_ms,
                 .backward_allreduce = result.gradients_ms,
                 .step = result.step_ms};
  facts.waits = {.params = result.wait_params_ms,
                 .server = result.wait_prepare_ms,
                 .disk = result.wait_disk_ms,
                 .ranks = result.wait_ranks_ms};
  reporter_.Step(facts, seconds);
}

}  // namespace stowage::engine
