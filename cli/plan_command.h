// `stowctl plan` as text and JSON; the command itself is in plan_command.cc.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "forecast/forecast.h"
#include "forecast/gpt_layout.h"

namespace stowage::cli {

// What a finished run's summary.json says. Negative: it does not say.
struct RunReality {
  forecast::GptShape shape;
  std::int64_t ranks = 1;
  std::int64_t rank_threads = 0;
  std::int64_t micro_batch = 0;
  std::int64_t accumulation = 0;
  std::string precision;
  double step_ms = -1;  // median
  std::int64_t state_bytes = -1;
  std::int64_t param_bytes = -1;
  std::int64_t gradient_bytes = -1;
  std::int64_t rank_private_bytes = -1;
  std::int64_t disk_bytes = -1;
  std::int64_t disk_read_per_step = -1;
  std::int64_t disk_written_per_step = -1;
  std::int64_t server_bytes = -1;  // resident, segments included
  // The ranks are as large as rank 0.
  std::int64_t node_bytes() const {
    return server_bytes < 0 || rank_private_bytes < 0
               ? -1
               : server_bytes + ranks * rank_private_bytes;
  }
  // Of rank 0 in the whole run; negative: nothing was sent to other ranks.
  std::int64_t sent_params = -1;
  std::int64_t sent_gradients = -1;
  std::int64_t steps = 0;
};

// `path`: the file, or its folder. Errors: kInvalidArgument.
absl::StatusOr<RunReality> ReadRun(const std::string& path);

struct PlanScreen {
  std::string file;
  forecast::GptShape shape;
  forecast::Workload workload;
  forecast::Machine machine;
  forecast::Forecast forecast;
  std::vector<std::string> notes;
  std::optional<RunReality> reality;
};

std::string PlanText(const PlanScreen& screen);
std::string PlanJson(const PlanScreen& screen);

}  // namespace stowage::cli
