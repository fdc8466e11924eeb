// The division of a job's memory budget, and the folders on NVMe.

#include "server/core/memory_plan.h"

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/nvme_roots.h"
#include "server/core/step_ledger.h"

namespace stowage::core {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

LayoutSpec Blocks(int blocks) {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {{.name = "g"}};
  for (int i = 0; i < blocks; ++i) {
    const std::string name = absl::StrCat("b", i);
    spec.units.push_back(
        {.name = name,
         .params = {{.name = name + ".w", .shape = {1024, 1024}}}});
  }
  return spec;
}

JobSpec Job(std::int64_t budget) {
  JobSpec job;
  job.name = "gpt";
  job.layout = Blocks(32);
  job.durability = Durability::kPower;
  job.storage.optimizer = Placement::kNvme;
  job.storage.params = Placement::kNvme;
  job.storage.nvme_paths = {"/disk"};
  job.storage.memory_budget_bytes = budget;
  return job;
}

RunSpec TwoRanks() {
  return {.nonce = std::string(16, 'n'),
          .world_size = 2,
          .local_ranks = 2,
          .micro_steps = 1};
}

// More memory is never used worse, and no plan needs more than it was given.
TEST(PlanMemory, FitsEveryBudgetItAccepts) {
  const Layout layout = *Layout::Create(Blocks(32));
  std::int64_t least = 0;
  std::int64_t state_before = 0;
  for (std::int64_t budget = std::int64_t{16} << 20;
       budget <= std::int64_t{1} << 30; budget += std::int64_t{1} << 20) {
    const auto plan = PlanMemory(layout, Job(budget), TwoRanks(), 6);
    if (!plan.ok()) {
      EXPECT_EQ(least, 0) << "refused " << budget << ", took less";
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
      continue;
    }
    if (least == 0) least = budget;
    EXPECT_LE(plan->need.job_bytes() + plan->need.run_bytes() + kServerOwnBytes,
              budget);
    if (plan->params_leased) {
      const std::int64_t unit = layout.unit_elems_max();
      EXPECT_GE(plan->leased_elems_max, unit);
      // Both ranks' leases and a unit that is updated.
      EXPECT_GE(plan->param_limit_bytes,
                2 * (2 * plan->leased_elems_max + unit));
    }
    state_before = plan->need.state_bytes;
  }
  EXPECT_GT(least, kServerOwnBytes);
  EXPECT_LT(least, kServerOwnBytes + (std::int64_t{40} << 20));
  EXPECT_GT(state_before, 0);
  // The figure of a refusal does.
  const auto refused = PlanMemory(layout, Job(1 << 20), TwoRanks(), 6);
  const std::string message(refused.status().message());
  const std::size_t at = message.find("at least ");
  ASSERT_NE(at, std::string::npos) << message;
  const std::size_t open = message.find('(', at);
  const std::int64_t figure = std::stoll(message.substr(open + 1));
  EXPECT_TRUE(PlanMemory(layout, Job(figure), TwoRanks(), 6).ok()) << message;
  EXPECT_FALSE(PlanMemory(layout, Job(figure - 1), TwoRanks(), 6).ok())
      << message;
}

TEST(PlanMemory, WithoutABudgetKeepsWhatTheFileSays) {
  const Layout layout = *Layout::Create(Blocks(32));
  JobSpec job = Job(0);
  auto plan = PlanMemory(layout, job, TwoRanks(), 6);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->params_leased) << "max_in_cpu is larger than the model";
  EXPECT_EQ(plan->slots.regions, 0);
  EXPECT_EQ(plan->store.cache_bytes, 0);
  job.storage.max_in_cpu_elems = 8 << 20;
  plan = PlanMemory(layout, job, TwoRanks(), 6);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->params_leased);
  EXPECT_EQ(plan->param_limit_bytes, 16 << 20);
  job.storage.params = Placement::kMemory;
  plan = PlanMemory(layout, job, TwoRanks(), 6);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->params_leased);
  job.storage.optimizer = Placement::kMemory;
  job.storage.params = Placement::kNvme;
  plan = PlanMemory(layout, job, TwoRanks(), 6);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->store.cache_bytes, 12 * layout.state_elems());
}

TEST(PlanMemory, ABudgetBindsAJobInMemoryToo) {
  const Layout layout = *Layout::Create(Blocks(2));
  JobSpec job;
  job.name = "gpt";
  job.storage.memory_budget_bytes = 1 << 20;
  EXPECT_EQ(PlanMemory(layout, job, TwoRanks(), 6).status().code(),
            absl::StatusCode::kResourceExhausted);
  job.storage.memory_budget_bytes = 1 << 30;
  EXPECT_TRUE(PlanMemory(layout, job, TwoRanks(), 6).ok());
}

TEST(NvmeRoots, TakesFoldersBelowThemOnly) {
  std::string name = (fs::temp_directory_path() / "roots-XXXXXX").string();
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  const std::string top = fs::canonical(name).string();
  fs::create_directories(top + "/a/deep");
  fs::create_directories(top + "/outside");
  fs::create_directory_symlink(top + "/outside", top + "/a/link");
  const auto roots = NvmeRoots::Create({top + "/a", top + "/a/"});
  ASSERT_TRUE(roots.ok()) << roots.status();
  EXPECT_THAT(roots->roots(), ElementsAre(top + "/a"));
  EXPECT_THAT(*roots->Resolve({top + "/a/x/y", top + "/a//x/y/"}),
              ElementsAre(top + "/a/x/y"));
  EXPECT_TRUE(fs::is_directory(top + "/a/x/y"));
  EXPECT_EQ(fs::status(top + "/a/x").permissions(), fs::perms::owner_all);
  for (const std::string& bad :
       {top + "/outside", top + "/a/../outside", top + "/a/link",
        top + "/a/link/new", top + "/ab", std::string("/")}) {
    const auto resolved = roots->Resolve({bad});
    EXPECT_EQ(resolved.status().code(), absl::StatusCode::kPermissionDenied)
        << bad;
    EXPECT_THAT(std::string(resolved.status().message()), HasSubstr(bad));
    EXPECT_THAT(std::string(resolved.status().message()),
                HasSubstr(top + "/a"));
  }
  EXPECT_THAT(roots->Folders(),
              ::testing::UnorderedElementsAre(top + "/a", top + "/a/deep",
                                              top + "/a/x", top + "/a/x/y"));
  EXPECT_FALSE(NvmeRoots().Resolve({top}).ok());
  EXPECT_FALSE(NvmeRoots::Create({top + "/none"}).ok());
  fs::remove_all(top);
}

TEST(StepLedger, ARegionHoldsOneGradientUntilItHasLanded) {
  const Layout layout = *Layout::Create(Blocks(3));
  StepLedger ledger(layout, TwoRanks(),
                    {.ring = true, .slots_per_rank = 1, .regions = 2});
  EXPECT_EQ(ledger.Notice(0, 0, 2, false, 2).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ledger.Notice(0, 0, 2, false, -1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(*ledger.Notice(0, 0, 2, false, 1));
  EXPECT_FALSE(*ledger.Notice(0, 0, 2, false, 1)) << "a repeat";
  EXPECT_EQ(ledger.Notice(0, 0, 1, false, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(*ledger.Notice(0, 0, 1, false, 0));
  EXPECT_TRUE(*ledger.Notice(1, 0, 2, true, 0)) << "empty: no region";
  EXPECT_EQ(ledger.gradients().region[ledger.gradients().EmptyIndex(2, 0, 0)],
            1);
  ledger.MarkLanded(ledger.PopReady());
  EXPECT_FALSE(*ledger.Notice(0, 0, 0, false, 1)) << "free again";
}

}  // namespace
}  // namespace stowage::core
