// Where training numbers go: CSV files, TensorBoard event files, JSON lines.
//
// The engine of rank 0 makes one MultiMonitor from the configuration and calls
// WriteEvents() once per optimizer step; other ranks get an empty one. A
// monitor never stops training: the engine logs its error once and goes on.
//
// Source: DeepSpeed 0.19.8, deepspeed/monitor/*.py, behaviour only.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/config/config.h"
#include "engine/config/json_text.h"

namespace stowage::engine::monitor {

// One number. `name` has parts separated by '/', e.g. "Train/Samples/lr".
struct Event {
  std::string name;
  double value = 0;
  std::int64_t x = 0;     // global samples after this step (skipped included)
  bool integral = false;  // Python would hold an int: "65536", not "65536.0"
};

// DeepSpeed's names (10.2 of the reference), then ours.
inline constexpr char kEventLr[] = "Train/Samples/lr";
inline constexpr char kEventLossScale[] = "Train/Samples/loss_scale";
inline constexpr char kEventForwardMs[] =
    "Train/Samples/elapsed_time_ms_forward";
inline constexpr char kEventBackwardMs[] =
    "Train/Samples/elapsed_time_ms_backward";
inline constexpr char kEventBackwardInnerMs[] =
    "Train/Samples/elapsed_time_ms_backward_inner";
inline constexpr char kEventBackwardAllreduceMs[] =
    "Train/Samples/elapsed_time_ms_backward_allreduce";
inline constexpr char kEventStepMs[] = "Train/Samples/elapsed_time_ms_step";
// DeepSpeed wrote this one up to 0.18.2; we write it, x as for the others.
inline constexpr char kEventTrainLoss[] = "Train/Samples/train_loss";
inline constexpr char kEventGradNorm[] = "Train/Samples/grad_norm";
// Lamb: over all tensors.
inline constexpr char kEventTrustRatioMin[] = "Train/Samples/trust_ratio_min";
inline constexpr char kEventTrustRatioMean[] = "Train/Samples/trust_ratio_mean";
inline constexpr char kEventTrustRatioMax[] = "Train/Samples/trust_ratio_max";
// 1-bit optimizers: what the last signs lost, as a share of norms.
inline constexpr char kEventCompressionError[] =
    "Train/Samples/compression_error";
inline constexpr char kEventSkippedSteps[] = "Train/Samples/skipped_steps";
inline constexpr char kEventSamples[] = "Train/Samples/samples";
inline constexpr char kEventSamplesPerSecond[] =
    "Train/Samples/samples_per_second";
inline constexpr char kEventTokensPerSecond[] =
    "Train/Samples/tokens_per_second";
// What the optimizer costs this rank: the whole of step(), and waiting for new
// parameters in the next forward.
inline constexpr char kEventOptimizerExposedMs[] =
    "Train/Samples/elapsed_time_ms_optimizer_exposed";
// Bytes by tier. The rank's own are rank 0's.
inline constexpr char kEventRankGatheredBytes[] =
    "Train/Samples/bytes_rank_gathered_peak";
inline constexpr char kEventServerParamBytes[] =
    "Train/Samples/bytes_server_params";
inline constexpr char kEventServerGradientBytes[] =
    "Train/Samples/bytes_server_gradients";
inline constexpr char kEventServerStateBytes[] =
    "Train/Samples/bytes_server_state";
inline constexpr char kEventDiskBytes[] = "Train/Samples/bytes_disk";
inline constexpr char kEventDiskReadBytes[] = "Train/Samples/bytes_disk_read";
inline constexpr char kEventDiskWrittenBytes[] =
    "Train/Samples/bytes_disk_written";

// Ownership: events are copied or written before WriteEvents() returns.
// Thread safety: externally synchronized.
class Monitor {
 public:
  Monitor() = default;
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;
  virtual ~Monitor() = default;

  // "csv_monitor", "tensorboard", "jsonl_monitor": the block's key.
  virtual const char* name() const = 0;

  // Writes the events in order. Blocks: for the file system.
  // Errors: that of the file operation, with path and errno. Later calls try
  //   again.
  virtual absl::Status WriteEvents(std::span<const Event> events) = 0;

  // Pushes what is buffered to the file system.
  virtual absl::Status Flush() = 0;
};

// `output_path`/`job_name`, relative to the working directory if output_path
// is empty.
struct MonitorDirectory {
  std::string output_path;
  std::string job_name;
  std::string Path() const;
};

// Each creates its directory. Errors: that of the file operation.
absl::StatusOr<std::unique_ptr<Monitor>> CreateCsvMonitor(
    const MonitorDirectory& directory);
absl::StatusOr<std::unique_ptr<Monitor>> CreateTensorboardMonitor(
    const MonitorDirectory& directory);
absl::StatusOr<std::unique_ptr<Monitor>> CreateJsonlMonitor(
    const MonitorDirectory& directory);

// All monitors a configuration asks for.
class MultiMonitor {
 public:
  MultiMonitor() = default;

  // Empty for every rank but 0. `output_root`, if not empty, is where a
  // relative (or absent) output_path starts, in place of the working directory.
  // `config_json` is shown with the run where a monitor shows such a thing.
  // Errors: the first monitor's that cannot be made.
  static absl::StatusOr<MultiMonitor> Create(
      const config::Config& config, int rank, const std::string& output_root,
      const std::string& config_json = "{}");

  bool empty() const { return monitors_.empty(); }
  const std::vector<std::unique_ptr<Monitor>>& monitors() const {
    return monitors_;
  }

  // Writes to all, also after one failed; returns the first error.
  absl::Status WriteEvents(std::span<const Event> events);
  absl::Status Flush();

 private:
  std::vector<std::unique_ptr<Monitor>> monitors_;
};

using config::PythonRepr;

}  // namespace stowage::engine::monitor
