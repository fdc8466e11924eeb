#include "engine/exchange/node_alignment.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace stowage::engine {

std::string NodeStanding::Serialize() const {
  return absl::StrCat(server, "\n", initialized ? 1 : 0, "\n", step, "\n",
                      prepared ? 1 : 0, "\n", absl::StrJoin(kept_steps, ","));
}

absl::StatusOr<NodeStanding> NodeStanding::Parse(const std::string& text) {
  const std::vector<std::string> fields = absl::StrSplit(text, '\n');
  NodeStanding standing;
  int initialized = 0;
  int prepared = 0;
  if (fields.size() != 5 || !absl::SimpleAtoi(fields[1], &initialized) ||
      !absl::SimpleAtoi(fields[2], &standing.step) ||
      !absl::SimpleAtoi(fields[3], &prepared)) {
    return absl::InternalError(
        absl::StrCat("a node's standing is not readable: \"", text, "\""));
  }
  standing.server = fields[0];
  standing.initialized = initialized != 0;
  standing.prepared = prepared != 0;
  for (const auto& kept : absl::StrSplit(fields[4], ',', absl::SkipEmpty())) {
    std::int64_t step = 0;
    if (absl::SimpleAtoi(kept, &step)) standing.kept_steps.push_back(step);
  }
  return standing;
}

absl::StatusOr<NodePlan> PlanAlignment(const std::vector<NodeStanding>& nodes) {
  NodePlan plan;
  plan.actions.assign(nodes.size(), NodePlan::Action::kNone);
  std::string standings;
  std::int64_t low = nodes.front().step;
  std::int64_t high = nodes.front().step;
  bool any = false;
  bool all = true;
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    const NodeStanding& node = nodes[n];
    absl::StrAppend(&standings, n == 0 ? "" : ", ", node.server, " ",
                    node.initialized ? absl::StrCat("is at step ", node.step)
                                     : std::string("has no state of it"));
    any = any || node.initialized;
    all = all && node.initialized;
    low = std::min(low, node.step);
    high = std::max(high, node.step);
  }
  if (!any) return plan;  // a new job
  if (!all) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the job's nodes do not fit together: ", standings,
        "; state in memory ends with its server. Drop the job on all of them "
        "(stowctl drop) to begin anew, or load a checkpoint"));
  }
  plan.step = high;
  if (low == high) return plan;
  bool forward = high - low == 1;
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    if (nodes[n].step == high) {
      plan.source = static_cast<std::int32_t>(n);
      continue;
    }
    forward = forward && nodes[n].prepared;
    plan.actions[n] = NodePlan::Action::kRollForward;
  }
  if (forward) return plan;
  plan.step = low;
  plan.source = -1;
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    const NodeStanding& node = nodes[n];
    plan.actions[n] = NodePlan::Action::kNone;
    if (node.step == low) continue;
    plan.actions[n] = NodePlan::Action::kRewind;
    if (std::find(node.kept_steps.begin(), node.kept_steps.end(), low) ==
        node.kept_steps.end()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the job's nodes do not fit together: ", standings,
          "; the gradients of step ", low + 1, " are gone and ", node.server,
          " does not keep step ", low,
          ". Keep two steps on NVMe (stowage.kept_steps) to be able to go "
          "back; now drop the job on all of them, or load a checkpoint"));
    }
  }
  return plan;
}

}  // namespace stowage::engine
