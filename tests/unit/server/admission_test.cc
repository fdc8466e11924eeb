#include "server/core/admission.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::core {
namespace {

using ::testing::HasSubstr;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Layout TwoGroups() {
  LayoutSpec spec;
  spec.groups = {{.name = "decay"}, {.name = "ice", .frozen = true}};
  spec.units = {{.name = "u",
                 .params = {{.name = "w", .shape = {10}, .group_index = 0},
                            {.name = "f", .shape = {10}, .group_index = 1}}}};
  return *Layout::Create(spec);
}

TEST(CheckJobSpec, RefusesBadSpecs) {
  struct Case {
    const char* what;
    std::function<void(JobSpec&)> spoil;
    absl::StatusCode code;
  };
  const auto bad = absl::StatusCode::kInvalidArgument;
  for (const Case& c : {
           Case{"empty name", [](JobSpec& j) { j.name = ""; }, bad},
           Case{"long name", [](JobSpec& j) { j.name = std::string(129, 'a'); },
                bad},
           Case{"slash", [](JobSpec& j) { j.name = "a/b"; }, bad},
           Case{"blank", [](JobSpec& j) { j.name = "a b"; }, bad},
           Case{"nul", [](JobSpec& j) { j.name = std::string("a\0b", 3); },
                bad},
           Case{"not ascii", [](JobSpec& j) { j.name = "a\xc3\xa4"; }, bad},
           Case{"optimizer",
                [](JobSpec& j) {
                  j.optimizer.kind = static_cast<OptimizerKind>(9);
                },
                bad},
           Case{"durability",
                [](JobSpec& j) { j.durability = static_cast<Durability>(9); },
                bad},
           Case{"power", [](JobSpec& j) { j.durability = Durability::kPower; },
                absl::StatusCode::kInvalidArgument},
       }) {
    JobSpec job;
    job.name = "gpt";
    c.spoil(job);
    EXPECT_EQ(CheckJobSpec(job).code(), c.code) << c.what;
  }
  JobSpec job;
  job.name = std::string(126, 'a') + "-_";
  EXPECT_TRUE(CheckJobSpec(job).ok());
}

TEST(CheckRunSpec, RefusesBadNumbers) {
  struct Case {
    const char* what;
    std::function<void(RunSpec&, std::int32_t&)> spoil;
  };
  for (const Case& c : {
           Case{"short nonce", [](RunSpec&r, auto&) { r.nonce = "short"; }},
           Case{"long nonce",
                [](RunSpec&r, auto&) { r.nonce = std::string(65, 'n'); }},
           Case{"world 0", [](RunSpec&r, auto&) { r.world_size = 0; }},
           Case{"world negative", [](RunSpec&r, auto&) { r.world_size = -5; }},
           Case{"world huge",
                [](RunSpec&r, auto&) { r.world_size = kWorldSizeMax + 1; }},
           Case{"local 0", [](RunSpec&r, auto&) { r.local_ranks = 0; }},
           Case{"local above world",
                [](RunSpec&r, auto&) { r.local_ranks = 5; }},
           Case{"local huge",
                [](RunSpec&r, auto&) {
                  r.world_size = 1000;
                  r.local_ranks = 257;
                }},
           Case{"micro 0", [](RunSpec&r, auto&) { r.micro_steps = 0; }},
           Case{"micro huge",
                [](RunSpec&r, auto&) { r.micro_steps = kMicroStepsMax + 1; }},
           Case{"rank negative", [](RunSpec&, auto&rank) { rank = -1; }},
           Case{"rank high", [](RunSpec&, auto&rank) { rank = 2; }},
       }) {
    RunSpec run{.nonce = std::string(16, 'n'),
                .world_size = 4,
                .local_ranks = 2,
                .micro_steps = 3};
    std::int32_t rank = 1;
    ASSERT_TRUE(CheckRunSpec(run, rank).ok());
    c.spoil(run, rank);
    EXPECT_EQ(CheckRunSpec(run, rank).code(),
              absl::StatusCode::kInvalidArgument)
        << c.what;
  }
}

TEST(CheckApplyArgs, RefusesBadConstantsByName) {
  const Layout layout = TwoGroups();
  struct Case {
    const char* field;
    std::function<void(ApplyArgs&)> spoil;
  };
  for (const Case& c : {
           Case{"lr", [](ApplyArgs& a) { a.groups[0].lr = -1e-3; }},
           Case{"lr", [](ApplyArgs& a) { a.groups[0].lr = kNan; }},
           Case{"lr", [](ApplyArgs& a) { a.groups[0].lr = 1e300; }},
           Case{"beta1", [](ApplyArgs& a) { a.groups[0].beta1 = 1; }},
           Case{"beta1", [](ApplyArgs& a) { a.groups[0].beta1 = -0.1; }},
           Case{"beta1", [](ApplyArgs& a) { a.groups[0].beta1 = kNan; }},
           Case{"beta2", [](ApplyArgs& a) { a.groups[0].beta2 = 1.5; }},
           Case{"beta2", [](ApplyArgs& a) { a.groups[0].beta2 = kNan; }},
           Case{"eps", [](ApplyArgs& a) { a.groups[0].eps = 0; }},
           Case{"eps", [](ApplyArgs& a) { a.groups[0].eps = -1e-8; }},
           Case{"eps", [](ApplyArgs& a) { a.groups[0].eps = 1e-60; }},
           Case{"eps", [](ApplyArgs& a) { a.groups[0].eps = kInf; }},
           Case{"weight_decay",
                [](ApplyArgs& a) { a.groups[0].weight_decay = kInf; }},
           Case{"weight_decay",
                [](ApplyArgs& a) { a.groups[0].weight_decay = -1; }},
           Case{"gradient_factor",
                [](ApplyArgs& a) { a.gradient_factor = kNan; }},
           Case{"gradient_factor",
                [](ApplyArgs& a) { a.gradient_factor = 1e200; }},
           Case{"groups", [](ApplyArgs& a) { a.groups.resize(1); }},
           Case{"groups", [](ApplyArgs& a) { a.groups.resize(3); }},
           Case{"client state",
                [](ApplyArgs& a) {
                  a.client_state = std::string(64 * 1024 + 1, 'x');
                }},
       }) {
    ApplyArgs args;
    args.groups.resize(2);
    args.client_state = std::string(std::size_t{64} * 1024, 'x');
    ASSERT_TRUE(CheckApplyArgs(args, layout).ok());
    c.spoil(args);
    const absl::Status status = CheckApplyArgs(args, layout);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.field));
  }
}

TEST(CheckApplyArgs, LooksAtNoConstantOfFrozenGroupsOrSkippedSteps) {
  const Layout layout = TwoGroups();
  ApplyArgs args;
  args.groups.resize(2);
  args.groups[1].eps = kNan;
  EXPECT_TRUE(CheckApplyArgs(args, layout).ok());
  args.skip = true;
  args.gradient_factor = kNan;
  args.groups[0].lr = kInf;
  EXPECT_TRUE(CheckApplyArgs(args, layout).ok());
}

TEST(FirstDifference, NamesTheField) {
  ApplyArgs first;
  first.step = 3;
  first.groups.resize(2);
  ApplyArgs other = first;
  EXPECT_EQ(FirstDifference(other, first), "");
  other.groups[1].beta2 = 0.5;
  EXPECT_EQ(FirstDifference(other, first), "groups[1].beta2");
  other = first;
  other.gradient_factor = 2;
  EXPECT_EQ(FirstDifference(other, first), "gradient_factor");
  other = first;
  other.client_state = "x";
  EXPECT_EQ(FirstDifference(other, first), "client_state");
  other = first;
  other.skip = true;
  EXPECT_EQ(FirstDifference(other, first), "skip");
  first.skip = true;
  other.gradient_factor = kNan;  // means nothing in a skipped step
  EXPECT_EQ(FirstDifference(other, first), "");
}

TEST(PlanSlots, KeepsFewAndRecyclesMany) {
  RunSpec run{.nonce = "", .world_size = 8, .local_ranks = 2, .micro_steps = 3};
  EXPECT_FALSE(PlanSlots(run, 6).ring);
  EXPECT_EQ(PlanSlots(run, 6).slots_per_rank, 3);
  run.micro_steps = 4;
  EXPECT_TRUE(PlanSlots(run, 6).ring);
  EXPECT_EQ(PlanSlots(run, 6).slots_per_rank, 1);
  EXPECT_FALSE(PlanSlots(run, 1000).ring);
  run.local_ranks = 256;
  run.micro_steps = kMicroStepsMax;
  EXPECT_TRUE(PlanSlots(run, 1 << 30).ring);
}

}  // namespace
}  // namespace stowage::core
