// This machine's ceilings for `stowctl plan`: measured once, at most 20 s, then
// read from ${XDG_CACHE_HOME:-~/.cache}/stowage/plan-calibration.json.

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "forecast/forecast.h"
#include "forecast/gpt_layout.h"

namespace stowage::cli {

struct CalibrationRequest {
  forecast::GptShape shape;
  std::int64_t micro_batch = 1;
  Dtype precision = Dtype::kFp32;
  int ranks = 1;
  int threads_per_rank = 1;
  int server_threads = 0;                 // 0: one a core
  std::vector<std::string> disk_folders;  // empty: no disk
  bool again = false;                     // measure although it is cached
};

// Fills kernels, compute and disk of `machine`. What cannot be measured stays
// absent, with a sentence in `notes`. Blocks: up to 20 s if not cached.
void Calibrate(const CalibrationRequest& request, forecast::Machine* machine,
               std::vector<std::string>* notes);

}  // namespace stowage::cli
