#include "engine/monitor/monitor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/monitor/wandb_monitor.h"

namespace stowage::engine::monitor {
namespace {

MonitorDirectory DirectoryOf(const config::MonitorBlock& block,
                             const std::string& output_root) {
  const bool absolute =
      !block.output_path.empty() && block.output_path[0] == '/';
  if (absolute || output_root.empty()) {
    return {block.output_path, block.job_name};
  }
  if (block.output_path.empty()) return {output_root, block.job_name};
  return {absl::StrCat(output_root, "/", block.output_path), block.job_name};
}

}  // namespace

std::string MonitorDirectory::Path() const {
  // As os.path.join(): an absolute job_name stands alone.
  if (!job_name.empty() && job_name[0] == '/') return job_name;
  if (output_path.empty()) return job_name.empty() ? "." : job_name;
  if (job_name.empty()) return output_path;
  return absl::StrCat(output_path, output_path.back() == '/' ? "" : "/",
                      job_name);
}

absl::StatusOr<MultiMonitor> MultiMonitor::Create(
    const config::Config& config, int rank, const std::string& output_root,
    const std::string& config_json) {
  MultiMonitor out;
  if (rank != 0) return out;
  const auto add = [&](const config::MonitorBlock& block,
                       auto create) -> absl::Status {
    if (!block.enabled) return absl::OkStatus();
    STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<Monitor> monitor,
                             create(DirectoryOf(block, output_root)));
    out.monitors_.push_back(std::move(monitor));
    return absl::OkStatus();
  };
  STOWAGE_RETURN_IF_ERROR(add(config.tensorboard, CreateTensorboardMonitor));
  STOWAGE_RETURN_IF_ERROR(add(config.csv_monitor, CreateCsvMonitor));
  STOWAGE_RETURN_IF_ERROR(
      add(config.stowage.jsonl_monitor, CreateJsonlMonitor));
  if (config.wandb.enabled) {
    WandbOptions options;
    options.python = config.stowage.wandb_python;
    options.project = config.wandb.project;
    options.group = config.wandb.group;
    options.team = config.wandb.team;
    options.directory = output_root.empty() ? "." : output_root;
    options.config_json = config_json;
    STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<Monitor> wandb,
                             CreateWandbMonitor(options));
    out.monitors_.push_back(std::move(wandb));
  }
  return out;
}

absl::Status MultiMonitor::WriteEvents(std::span<const Event> events) {
  absl::Status first;
  for (const std::unique_ptr<Monitor>& monitor : monitors_) {
    first.Update(monitor->WriteEvents(events));
  }
  return first;
}

absl::Status MultiMonitor::Flush() {
  absl::Status first;
  for (const std::unique_ptr<Monitor>& monitor : monitors_) {
    first.Update(monitor->Flush());
  }
  return first;
}

}  // namespace stowage::engine::monitor
