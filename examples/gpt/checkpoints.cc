#include "examples/gpt/checkpoints.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/absolute_path.h"
#include "common/bytes.h"
#include "common/status_macros.h"

namespace stowage::gpt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLookEvery{500};
constexpr std::chrono::hours kWaitMax{24};

}  // namespace

absl::StatusOr<CheckpointPlan> PlanCheckpoints(const Options& options) {
  CheckpointPlan plan;
  if (!options.save.empty()) plan.folder = AbsolutePath(options.save);
  if (options.save_every > 0 && options.save.empty()) {
    return absl::InvalidArgumentError(
        "--save-every needs --save, the folder of the checkpoints");
  }
  if (options.resume.empty()) return plan;
  std::int64_t step = -1;
  if (options.resume == "latest" || absl::SimpleAtoi(options.resume, &step)) {
    if (plan.folder.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--resume ", options.resume,
          " needs --save, the folder of the checkpoints; or give the path of "
          "one"));
    }
    plan.load.folder = plan.folder;
    plan.load.step = step;
    plan.load.if_any = options.resume == "latest";
    return plan;
  }
  plan.load.folder = AbsolutePath(options.resume);
  return plan;
}

std::vector<std::string> CheckpointPlan::roots() const {
  std::vector<std::string> roots;
  if (!folder.empty()) roots.push_back(folder);
  std::error_code ignored;  // what is not there is the server's to report
  if (load.folder != folder &&
      std::filesystem::is_directory(load.folder, ignored)) {
    roots.push_back(load.folder);
  }
  return roots;
}

Checkpoints::Checkpoints(const Options& options, std::string folder,
                         engine::Engine& engine)
    : options_(options), folder_(std::move(folder)), engine_(engine) {
  // A run that begins from a checkpoint of its own folder has it already.
  if (!engine.loaded_from().empty()) last_saved_ = engine.step();
}

absl::Status Checkpoints::Begin() {
  const auto begin = Clock::now();
  const absl::Status asked =
      engine_.Save(folder_, static_cast<std::int32_t>(options_.save_keep));
  request_ms_ =
      std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
  if (absl::IsUnavailable(asked) && engine_.session().status().ok()) {
    std::fprintf(stderr, "stow-train: step %ld is not saved: %s\n",
                 static_cast<long>(engine_.step()),
                 std::string(asked.message()).c_str());
    return absl::OkStatus();
  }
  STOWAGE_RETURN_IF_ERROR(asked);
  running_ = true;
  last_saved_ = engine_.step();
  last_look_ = begin;
  return absl::OkStatus();
}

void Checkpoints::Tell(const SaveInfo& save) {
  running_ = false;
  failed_ = save.phase == SavePhase::kFailed ? save.error : "";
  if (save.phase == SavePhase::kFailed) {
    std::fprintf(stderr, "stow-train: the save of step %ld failed: %s\n",
                 static_cast<long>(save.step), save.error.c_str());
    return;
  }
  // The request, and what the job's own thread did between two steps.
  const double pause_ms = request_ms_ + save.begin_ms;
  if (pause_ms > request_ms_max_) request_ms_max_ = pause_ms;
  std::fprintf(
      stderr,
      "stow-train: step %ld saved to %s: %s in %.2f s, %s/s; training stood "
      "still for %.2f ms; updates copied %s and waited %.3f s for it\n",
      static_cast<long>(save.step), save.path.c_str(),
      HumanBytes(save.bytes_total).c_str(), save.seconds,
      HumanBytes(
          static_cast<std::int64_t>(static_cast<double>(save.bytes_total) /
                                    std::max(save.seconds, 1e-3)))
          .c_str(),
      pause_ms, HumanBytes(save.copied_bytes).c_str(), save.wait_seconds);
}

absl::StatusOr<std::string> Checkpoints::Look() {
  if (!running_ || Clock::now() - last_look_ < kLookEvery) return std::string();
  last_look_ = Clock::now();
  STOWAGE_ASSIGN_OR_RETURN(const SaveInfo save, engine_.SaveStatus());
  if (!save.running()) {
    Tell(save);
    return std::string();
  }
  const double rate = save.seconds > 0
                          ? static_cast<double>(save.bytes_done) / save.seconds
                          : 0;
  return absl::StrFormat(
      "  saving step %d: %s of %s, %s/s, left %.0f s", save.step,
      HumanBytes(save.bytes_done), HumanBytes(save.bytes_total),
      HumanBytes(static_cast<std::int64_t>(rate)),
      rate > 0 ? static_cast<double>(save.bytes_total - save.bytes_done) / rate
               : 0.0);
}

absl::StatusOr<std::string> Checkpoints::AfterStep() {
  if (folder_.empty()) return std::string();
  STOWAGE_ASSIGN_OR_RETURN(std::string shown, Look());
  if (options_.save_every > 0 && engine_.step() % options_.save_every == 0) {
    if (running_) {
      // It may have ended since the last look.
      last_look_ = {};
      STOWAGE_ASSIGN_OR_RETURN(shown, Look());
    }
    STOWAGE_RETURN_IF_ERROR(Begin());
  }
  return shown;
}

absl::Status Checkpoints::Finish() {
  if (folder_.empty()) return absl::OkStatus();
  if (running_) {
    STOWAGE_ASSIGN_OR_RETURN(const SaveInfo save,
                             engine_.WaitForSave(kWaitMax));
    Tell(save);
  }
  if (last_saved_ != engine_.step()) {
    STOWAGE_RETURN_IF_ERROR(Begin());
    STOWAGE_ASSIGN_OR_RETURN(const SaveInfo save,
                             engine_.WaitForSave(kWaitMax));
    Tell(save);
  }
  if (failed_.empty()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the last step could not be saved: ", failed_));
}

}  // namespace stowage::gpt
