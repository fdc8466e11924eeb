// Brings the jobs of several nodes to one step before a run attaches.
//
// A step is applied node by node: a crash can leave some nodes one step behind.
// Prepare is a vote, so a node that has given its verdict on the step ends it
// with what the others ended it with; where state is on NVMe and older steps
// are kept, the nodes ahead go back instead. Anything else is refused with the
// steps of all nodes: a mixture is never trained on.
//
// Pure. Who calls it: Engine, on every rank with the same input.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace stowage::engine {

// Where a node's job stands, as its server lists it.
struct NodeStanding {
  std::string server;
  bool initialized = false;  // false: there is no job, or one without values
  std::int64_t step = 0;     // committed steps
  bool prepared = false;     // the next step can be ended
  std::vector<std::int64_t> kept_steps;  // that it can go back to

  std::string Serialize() const;
  static absl::StatusOr<NodeStanding> Parse(const std::string& text);
};

struct NodePlan {
  enum class Action : std::uint8_t { kNone, kRollForward, kRewind };
  std::vector<Action> actions;  // by node
  std::int64_t step = 0;        // where all nodes stand afterwards
  std::int32_t source = -1;     // a node that knows how the step was ended
};

// Errors: kFailedPrecondition with every node's step, and what to do.
absl::StatusOr<NodePlan> PlanAlignment(const std::vector<NodeStanding>& nodes);

}  // namespace stowage::engine
