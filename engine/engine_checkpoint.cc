// Engine: checkpoints, which the server writes and reads.

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/engine.h"

namespace stowage::engine {
namespace {

constexpr std::chrono::milliseconds kPollFirst{2};
constexpr std::chrono::milliseconds kPollLast{100};

}  // namespace

absl::Status Engine::CheckCheckpoints() const {
  if (!needs_server_) {
    return absl::UnimplementedError(
        "checkpoints are written by stowd, and the optimizer's state is on the "
        "ranks here: take stage 1 to 3 (or a 1-bit optimizer) with "
        "offload_optimizer.device \"cpu\"");
  }
  if (group_ranks_ != options_.launch.world_size) {
    return absl::UnimplementedError(absl::StrCat(
        "checkpoints of several nodes are not written yet: ", group_ranks_,
        " of ", options_.launch.world_size, " ranks are on this node"));
  }
  return absl::OkStatus();
}

absl::Status Engine::CheckLoaded(const AttachInfo& info) const {
  const LoadSpec& load = options_.load;
  if (!load.folder.empty() || !options_.export_roots.empty()) {
    STOWAGE_RETURN_IF_ERROR(CheckCheckpoints());
  }
  if (load.folder.empty() || load.if_any || !info.loaded_from.empty()) {
    return absl::OkStatus();
  }
  if (load.step >= 0 && info.step == load.step) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(
      "job \"", job_name_, "\" is in the server already, at step ", info.step,
      "; ", load.folder,
      " was not loaded. Drop the job (stowctl job drop), take another name, or "
      "go on with it (--resume latest)"));
}

absl::Status Engine::Save(const std::string& folder, std::int32_t keep) {
  STOWAGE_RETURN_IF_ERROR(CheckCheckpoints());
  if (options_.launch.rank != 0) return absl::OkStatus();
  SaveSpec spec;
  spec.job = job_name_;
  spec.folder = folder;
  spec.step = step_;
  spec.model =
      config().zero_optimization.stage3_gather_16bit_weights_on_model_save;
  spec.keep = keep;
  return client_->SaveJob(spec).status();
}

absl::StatusOr<SaveInfo> Engine::SaveStatus() {
  STOWAGE_RETURN_IF_ERROR(CheckCheckpoints());
  return client_->GetSave(job_name_);
}

absl::StatusOr<SaveInfo> Engine::WaitForSave(std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  for (std::chrono::milliseconds wait = kPollFirst;;
       wait = std::min(2 * wait, kPollLast)) {
    STOWAGE_ASSIGN_OR_RETURN(SaveInfo save, SaveStatus());
    if (!save.running()) return save;
    if (std::chrono::steady_clock::now() + wait > end) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the save of step ", save.step, " still runs: ", save.bytes_done,
          " of ", save.bytes_total, " bytes"));
    }
    std::this_thread::sleep_for(wait);
  }
}

}  // namespace stowage::engine
