// Engine: a run on several nodes finds all their jobs at one step.

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/checkpoint/client_state.h"
#include "engine/engine.h"

namespace stowage::engine {
namespace {

std::string StandingKey(int group) { return absl::StrCat("standing/", group); }
std::string AlignedKey(int group) { return absl::StrCat("aligned/", group); }
constexpr char kEndedKey[] = "how the step was ended";

}  // namespace

// The first rank of each group of ranks that share a server asks it and says
// so; all ranks come to the same plan.
absl::Status Engine::AlignNodes() {
  const int groups = options_.launch.world_size / group_ranks_;
  if (groups == 1) return absl::OkStatus();
  const int group = group_first_ / group_ranks_;
  const bool leads = options_.launch.rank == group_first_;
  if (leads) {
    NodeStanding own;
    own.server = server_address_;
    STOWAGE_ASSIGN_OR_RETURN(const std::vector<JobInfo> jobs,
                             client_->ListJobs());
    for (const JobInfo& job : jobs) {
      if (job.name != job_name_) continue;
      own.initialized = job.initialized;
      own.step = job.step;
      own.prepared = job.prepared;
      own.kept_steps = job.kept_steps;
    }
    STOWAGE_RETURN_IF_ERROR(
        rendezvous_->Set(StandingKey(group), own.Serialize()));
  }
  std::vector<NodeStanding> nodes;
  for (int g = 0; g < groups; ++g) {
    STOWAGE_ASSIGN_OR_RETURN(const std::string text,
                             rendezvous_->Get(StandingKey(g)));
    STOWAGE_ASSIGN_OR_RETURN(nodes.emplace_back(), NodeStanding::Parse(text));
  }
  STOWAGE_ASSIGN_OR_RETURN(const NodePlan plan, PlanAlignment(nodes));
  aligned_source_ = plan.source == group;
  if (leads) {
    const absl::Status followed = FollowOtherNodes(plan);
    STOWAGE_RETURN_IF_ERROR(
        rendezvous_->Set(AlignedKey(group),
                         followed.ok() ? "" : std::string(followed.message())));
    STOWAGE_RETURN_IF_ERROR(followed);
  }
  STOWAGE_ASSIGN_OR_RETURN(const std::string failed,
                           rendezvous_->Get(AlignedKey(group)));
  if (failed.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(failed);
}

absl::Status Engine::FollowOtherNodes(const NodePlan& plan) {
  const auto group = static_cast<std::size_t>(group_first_ / group_ranks_);
  switch (plan.actions[group]) {
    case NodePlan::Action::kNone:
      return absl::OkStatus();
    case NodePlan::Action::kRewind:
      log::Warning("this node goes back to the step of the others",
                   {{"job", job_name_}, {"step", plan.step}});
      return client_->RewindJob(job_name_, plan.step).status();
    case NodePlan::Action::kRollForward:
      break;
  }
  STOWAGE_ASSIGN_OR_RETURN(const std::string state,
                           rendezvous_->Get(kEndedKey));
  STOWAGE_ASSIGN_OR_RETURN(const ClientState ended, ClientState::Parse(state));
  ApplyArgs args = ended.last_apply;
  if (args.step + 1 != plan.step || args.groups.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the node ahead is at step ", plan.step,
                     ", its client state tells of step ", args.step + 1));
  }
  args.client_state = state;
  log::Warning("this node ends the step that the others have ended",
               {{"job", job_name_}, {"step", plan.step}});
  return client_->RollForward(job_name_, args);
}

// After the attach of the node that is ahead.
absl::Status Engine::TellHowStepEnded() {
  if (!aligned_source_ || options_.launch.rank != group_first_) {
    return absl::OkStatus();
  }
  return rendezvous_->Set(kEndedKey, session_->info().client_state);
}

}  // namespace stowage::engine
