#include "engine/exchange/node_alignment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace stowage::engine {
namespace {

using Action = NodePlan::Action;
using ::testing::HasSubstr;

NodeStanding Nothing(const std::string& server) {
  NodeStanding standing;
  standing.server = server;
  return standing;
}

NodeStanding At(std::int64_t step, bool prepared = false,
                std::vector<std::int64_t> kept = {}) {
  return {"unix:/s" + std::to_string(step), true, step, prepared,
          std::move(kept)};
}

TEST(NodeAlignment, NothingIsToBeDoneForANewJobOrEqualSteps) {
  NodePlan plan = PlanAlignment({Nothing("a"), Nothing("b")}).value();
  EXPECT_EQ(plan.actions, (std::vector<Action>{Action::kNone, Action::kNone}));
  plan = PlanAlignment({At(7, true), At(7)}).value();
  EXPECT_EQ(plan.actions, (std::vector<Action>{Action::kNone, Action::kNone}));
  EXPECT_EQ(plan.step, 7);
}

TEST(NodeAlignment, PreparedNodesFollowThoseThatApplied) {
  const NodePlan plan =
      PlanAlignment({At(4, true), At(5), At(4, true)}).value();
  EXPECT_EQ(plan.actions,
            (std::vector<Action>{Action::kRollForward, Action::kNone,
                                 Action::kRollForward}));
  EXPECT_EQ(plan.source, 1);
  EXPECT_EQ(plan.step, 5);
}

TEST(NodeAlignment, NodesThatKeepTheStepGoBackWhereGradientsAreGone) {
  const NodePlan plan =
      PlanAlignment({At(4), At(5, false, {4, 5}), At(5, true, {3, 4, 5})})
          .value();
  EXPECT_EQ(plan.actions, (std::vector<Action>{Action::kNone, Action::kRewind,
                                               Action::kRewind}));
  EXPECT_EQ(plan.step, 4);
}

TEST(NodeAlignment, AnythingElseIsRefusedWithAllSteps) {
  for (const std::vector<NodeStanding>& nodes :
       std::vector<std::vector<NodeStanding>>{{At(4), At(5)},
                                              {At(3, true), At(5)},
                                              {At(4, true), At(5), At(4)},
                                              {At(4), At(5, false, {5})}}) {
    const auto plan = PlanAlignment(nodes);
    ASSERT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
    for (const NodeStanding& node : nodes) {
      EXPECT_THAT(std::string(plan.status().message()),
                  HasSubstr("is at step " + std::to_string(node.step)));
    }
  }
  const auto gone = PlanAlignment({At(4), Nothing("unix:/gone")});
  EXPECT_THAT(std::string(gone.status().message()),
              HasSubstr("unix:/gone has no state of it"));
}

TEST(NodeAlignment, AStandingTravelsAsText) {
  const NodeStanding standing = At(12, true, {10, 11, 12});
  const NodeStanding read = NodeStanding::Parse(standing.Serialize()).value();
  EXPECT_EQ(read.server, standing.server);
  EXPECT_EQ(read.step, 12);
  EXPECT_TRUE(read.initialized && read.prepared);
  EXPECT_EQ(read.kept_steps, standing.kept_steps);
  EXPECT_FALSE(NodeStanding::Parse("x").ok());
}

}  // namespace
}  // namespace stowage::engine
