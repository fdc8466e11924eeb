// Jobs whose state lies on NVMe, in a registry of the test's own on a real
// disk: the same bits as in memory under any budget, leases, restarts, rewinds,
// and faults of the files.
//
// Fault model: bytes of a file change or vanish under a running server, and
// come back; another job on the same disk is never touched by it.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/job_record_codec.h"
#include "server/core/memory_plan.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A folder on the disk that the test runs on, removed at the end.
class DiskFolder {
 public:
  DiskFolder() {
    std::string name = (fs::current_path() / "nvme-test-XXXXXX").string();
    STOWAGE_CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = fs::canonical(name).string();
  }
  DiskFolder(const DiskFolder&) = delete;
  DiskFolder& operator=(const DiskFolder&) = delete;
  ~DiskFolder() { fs::remove_all(path_); }
  const std::string& path() const { return path_; }
  // Regular files below it.
  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(path_)) {
      if (entry.is_regular_file()) files.push_back(entry.path().string());
    }
    return files;
  }

 private:
  std::string path_;
};

// Six units of which a few fit a small budget, with everything special in them.
LayoutSpec WideModel() {
  LayoutSpec spec = SmallModel();
  for (int i = 0; i < 5; ++i) {
    const std::string name = absl::StrCat("wide.", i);
    spec.units.push_back(
        {.name = name,
         .params = {
             {.name = name + ".w", .shape = {300, 401}, .group_index = 0},
             {.name = name + ".b", .shape = {401}, .group_index = 1}}});
  }
  return spec;
}

// Masters, moments and parameters, bit for bit; says where they differ first.
::testing::AssertionResult Same(const std::vector<float>& got,
                                const std::vector<float>& want) {
  if (got.size() != want.size()) {
    return ::testing::AssertionFailure()
           << got.size() << " values, expected " << want.size();
  }
  std::size_t different = 0;
  std::size_t first = 0;
  for (std::size_t i = got.size(); i-- > 0;) {
    if (std::bit_cast<std::uint32_t>(got[i]) ==
        std::bit_cast<std::uint32_t>(want[i])) {
      continue;
    }
    ++different;
    first = i;
  }
  if (different == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << different << " of " << got.size() << " values differ, first "
         << first << ": " << got[first] << ", expected " << want[first];
}

class NvmeJobTest : public JobTest {
 protected:
  std::unique_ptr<JobRegistry> MakeNvmeRegistry() {
    RegistryOptions options;
    options.nvme_roots = {disk_.path()};
    options.encode_record = proto::EncodeJobRecord;
    options.decode_record = proto::DecodeJobRecord;
    options.lock_memory = false;
    return MakeRegistry(options);
  }

  JobSpec NvmeJob(const std::string& name = "gpt") const {
    JobSpec job;
    job.name = name;
    job.layout = WideModel();
    job.durability = Durability::kPower;
    job.storage.optimizer = Placement::kNvme;
    job.storage.nvme_paths = {disk_.path() + "/state"};
    job.storage.pipeline_read = true;
    job.storage.pipeline_write = true;
    job.storage.kept_steps = 3;
    return job;
  }

  // The least budget with which the job fits.
  static std::int64_t LeastBudget(JobSpec job, const RunSpec& run) {
    const Layout layout = *Layout::Create(job.layout);
    std::int64_t low = 1;
    std::int64_t high = std::int64_t{1} << 30;
    while (low < high) {
      job.storage.memory_budget_bytes = (low + high) / 2;
      if (PlanMemory(layout, job, run, 6).ok()) {
        high = job.storage.memory_budget_bytes;
      } else {
        low = job.storage.memory_budget_bytes + 1;
      }
    }
    return low;
  }

  std::vector<float> StateInMemory(const RunSpec& run, std::int64_t steps,
                                   const OptimizerSpec& optimizer = {}) {
    auto registry = MakeRegistry();
    JobSpec job;
    job.name = "reference";
    job.layout = WideModel();
    job.optimizer = optimizer;
    auto started = StartRun(*registry, job, run);
    if (started == nullptr) return {};
    Train(*started, 0, steps);
    std::vector<float> state = started->rank(0).ReadEverything();
    started->Close(true);
    return state;
  }

  DiskFolder disk_;
};

struct PlacementCase {
  const char* name;
  std::function<void(JobSpec&)> place;
  bool least_budget = false;
  bool leased = false;
  bool regions = false;
};

TEST_F(NvmeJobTest, GivesTheBitsOfAJobInMemory) {
  for (const auto& [ranks, micro_steps] :
       std::vector<std::pair<int, int>>{{1, 1}, {2, 2}, {2, 5}}) {
    const RunSpec run = MakeRun(ranks, micro_steps);
    const std::vector<float> want = StateInMemory(run, 4);
    for (const PlacementCase& c : std::vector<PlacementCase>{
             {"slots only", [](JobSpec&) {}},
             {"no overlap, memory durability",
              [](JobSpec& j) {
                j.durability = Durability::kMemory;
                j.storage.pipeline_read = false;
                j.storage.pipeline_write = false;
              }},
             {"parameters leased",
              [](JobSpec& j) {
                j.storage.params = Placement::kNvme;
                j.storage.max_in_cpu_elems = 0;
              },
              false, true},
             {"parameters on disk, state in memory",
              [](JobSpec& j) {
                j.storage.optimizer = Placement::kMemory;
                j.storage.params = Placement::kNvme;
                j.storage.max_in_cpu_elems = 0;
              },
              false, true},
             {"all under the least budget",
              [](JobSpec& j) { j.storage.params = Placement::kNvme; }, true,
              true, true},
         }) {
      SCOPED_TRACE(absl::StrCat(c.name, ", ", ranks, " ranks, ", micro_steps,
                                " micro steps"));
      JobSpec job = NvmeJob();
      c.place(job);
      if (c.least_budget) {
        job.storage.memory_budget_bytes = LeastBudget(job, run);
      }
      auto registry = MakeNvmeRegistry();
      auto started = StartRun(*registry, job, run);
      ASSERT_NE(started, nullptr);
      EXPECT_EQ(started->rank(0).info().params_leased, c.leased);
      EXPECT_EQ(started->rank(0).info().gradient_regions > 0, c.regions);
      Train(*started, 0, 4);
      EXPECT_TRUE(Same(started->rank(0).ReadEverything(), want));
      started->Close(true);
      EXPECT_TRUE(disk_.Files().empty()) << "a closed job leaves files";
    }
  }
}

// Lamb scans the state before each update.
TEST_F(NvmeJobTest, GivesTheBitsOfALambJobInMemory) {
  const OptimizerSpec lamb = {.kind = OptimizerKind::kLamb};
  const RunSpec run = MakeRun(2, 5);
  const std::vector<float> want = StateInMemory(run, 4, lamb);
  ASSERT_FALSE(Same(want, StateInMemory(run, 4)));
  for (const bool power : {true, false}) {
    for (const bool least : {false, true}) {
      SCOPED_TRACE(absl::StrCat(power ? "power" : "memory",
                                least ? ", least budget" : ""));
      JobSpec job = NvmeJob();
      job.optimizer = lamb;
      if (!power) job.durability = Durability::kMemory;
      job.storage.sub_group_elems = 50000;
      job.storage.params = Placement::kNvme;
      if (least) job.storage.memory_budget_bytes = LeastBudget(job, run);
      {
        auto registry = MakeNvmeRegistry();
        auto started = StartRun(*registry, job, run);
        ASSERT_NE(started, nullptr);
        Train(*started, 0, 2);
        started->Close(false);
        if (!power) {
          auto again = StartRun(*registry, job, MakeRun(2, 5, 'x'));
          ASSERT_NE(again, nullptr);
          Train(*again, 2, 4);
          EXPECT_TRUE(Same(again->rank(0).ReadEverything(), want));
          again->Close(true);
          continue;
        }
      }
      auto registry = MakeNvmeRegistry();
      auto started = StartRun(*registry, job, MakeRun(2, 5, 'x'));
      ASSERT_NE(started, nullptr);
      EXPECT_EQ(started->rank(0).info().applied_steps, 2);
      Train(*started, 2, 4);
      EXPECT_TRUE(Same(started->rank(0).ReadEverything(), want));
      started->Close(true);
      EXPECT_TRUE(disk_.Files().empty());
    }
  }
}

TEST_F(NvmeJobTest, ALeasedUnitIsWhatItsVersionSays) {
  const RunSpec run = MakeRun(2, 1);
  JobSpec job = NvmeJob();
  job.storage.params = Placement::kNvme;
  job.storage.memory_budget_bytes = LeastBudget(job, run);
  auto registry = MakeNvmeRegistry();
  auto started = StartRun(*registry, job, run);
  ASSERT_NE(started, nullptr);
  const std::int32_t units = started->rank(0).layout().unit_count();
  std::vector<std::int32_t> order;
  std::vector<std::int32_t> uses;
  for (std::int32_t u = 0; u < units; ++u) order.push_back(u);
  uses = order;
  uses.insert(uses.end(), order.rbegin(), order.rend());
  ASSERT_OK(started->rank(0).session().SetForwardOrder(order, uses));
  for (std::int64_t step = 0; step < 3; ++step) {
    for (const std::int32_t u : uses) {
      for (std::int32_t r = 0; r < 2; ++r) {
        testing::FakeRank& rank = started->rank(r);
        ASSERT_OK(rank.Lease(u, step));
        std::vector<float> want(static_cast<std::size_t>(
            rank.layout().units()[static_cast<std::size_t>(u)].elems));
        ASSERT_OK(rank.session().ReadState(u, StateKind::kParam, 0, want));
        const auto* got =
            reinterpret_cast<const std::uint16_t*>(rank.params(u));
        for (std::size_t i = 0; i < want.size(); ++i) {
          ASSERT_EQ(Bf16ToFloat(got[i]), want[i])
              << "step " << step << " unit " << u << " element " << i;
        }
      }
      for (std::int32_t r = 0; r < 2; ++r) {
        ASSERT_OK(started->rank(r).session().Unlease(u));
      }
    }
    Train(*started, step, step + 1);
  }
  EXPECT_STATUS(started->rank(0).session().Lease(0, 9), kFailedPrecondition);
}

TEST_F(NvmeJobTest, GoesOnAfterTheServerAsIfItHadNeverStopped) {
  for (const bool leased : {false, true}) {
    const RunSpec run = MakeRun(2, 1);
    const std::vector<float> want = StateInMemory(run, 5);
    JobSpec job = NvmeJob();
    if (leased) {
      job.storage.params = Placement::kNvme;
      job.storage.max_in_cpu_elems = 0;
    }
    std::vector<float> at_three;
    {
      auto registry = MakeNvmeRegistry();
      auto started = StartRun(*registry, job, run);
      ASSERT_NE(started, nullptr);
      Train(*started, 0, 3);
      at_three = started->rank(0).ReadEverything();
      started->Close(false);
    }
    auto registry = MakeNvmeRegistry();
    const std::vector<JobInfo> jobs = registry->List();
    ASSERT_EQ(jobs.size(), 1U);
    EXPECT_EQ(jobs[0].name, "gpt");
    EXPECT_EQ(jobs[0].step, 3);
    EXPECT_TRUE(jobs[0].initialized);
    EXPECT_THAT(jobs[0].kept_steps, ElementsAre(1, 2, 3));
    auto resumed = StartRun(*registry, job, MakeRun(2, 1, 'x'));
    ASSERT_NE(resumed, nullptr);
    EXPECT_EQ(resumed->rank(0).info().step, 3);
    EXPECT_EQ(resumed->rank(0).info().client_state, "after 2");
    EXPECT_TRUE(Same(resumed->rank(0).ReadEverything(), at_three));
    Train(*resumed, 3, 5);
    EXPECT_TRUE(Same(resumed->rank(0).ReadEverything(), want));
    resumed->Close(true);
    EXPECT_TRUE(disk_.Files().empty());
  }
}

// The trace is kept with the job: after a restart the first units of a step are
// read before any rank asks for them.
TEST_F(NvmeJobTest, AfterARestartTheFirstUnitsAreReadAtOnce) {
  const RunSpec run = MakeRun(1, 1);
  JobSpec job = NvmeJob();
  job.storage.params = Placement::kNvme;
  job.storage.max_in_cpu_elems = 0;
  for (const bool told : {false, true}) {
    SCOPED_TRACE(told ? "with a trace" : "without");
    std::int32_t units = 0;
    {
      auto registry = MakeNvmeRegistry();
      auto started = StartRun(*registry, job, run);
      ASSERT_NE(started, nullptr);
      units = started->rank(0).layout().unit_count();
      std::vector<std::int32_t> order;
      for (std::int32_t u = units; u-- > 0;) order.push_back(u);
      if (told) {
        ASSERT_OK(started->rank(0).session().SetForwardOrder(order, order));
      }
      Train(*started, 0, 2);
      started->Close(false);
    }
    auto registry = MakeNvmeRegistry();
    auto resumed = StartRun(*registry, job, MakeRun(1, 1, 'x'));
    ASSERT_NE(resumed, nullptr);
    // Nobody leases anything. The last unit is the first of the order.
    const testing::FakeRank& rank = resumed->rank(0);
    const auto in_memory = [&](std::int32_t unit) {
      return rank.words(unit).page.load() * kSegmentPageBytes >=
             LeasedParamOffsetBytes(rank.layout());
    };
    for (int i = 0; i < 200 && !in_memory(units - 1); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(told ? 10 : 1));
    }
    EXPECT_EQ(in_memory(units - 1), told);
    EXPECT_FALSE(in_memory(0)) << "the last of the order, or nothing is known";
    resumed->Close(false);
    ASSERT_OK(registry->Drop("gpt"));
  }
}

TEST_F(NvmeJobTest, RewindTakesMilliseconds) {
  auto registry = MakeNvmeRegistry();
  auto started = StartRun(*registry, NvmeJob(), MakeRun(1, 1));
  ASSERT_NE(started, nullptr);
  Train(*started, 0, 3);
  started->Close(false);
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_OK(registry->Rewind("gpt", 2));
  const auto took = std::chrono::steady_clock::now() - begin;
  std::printf("%.2f ms\n",
              std::chrono::duration<double, std::milli>(took).count());
  // A flush on a busy disk may take a while; reading or writing state takes
  // longer than this on any disk where it is larger than a test's.
  EXPECT_LT(took, std::chrono::milliseconds(200));
}

TEST_F(NvmeJobTest, RewindReturnsToAKeptStepAndTrainsOnFromThere) {
  const RunSpec run = MakeRun(1, 1);
  const std::vector<float> want = StateInMemory(run, 5);
  const JobSpec job = NvmeJob();
  for (const bool open : {true, false}) {
    auto registry = MakeNvmeRegistry();
    auto started = StartRun(*registry, job, run);
    ASSERT_NE(started, nullptr);
    Train(*started, 0, 5);
    EXPECT_STATUS(registry->Rewind("gpt", 4), kFailedPrecondition);  // live
    started->Close(false);
    if (!open) {
      started.reset();
      registry = MakeNvmeRegistry();
    }
    EXPECT_STATUS(registry->Rewind("gpt", 1), kNotFound);
    EXPECT_STATUS(registry->Rewind("other", 1), kNotFound);
    ASSERT_OK(registry->Rewind("gpt", 3));
    EXPECT_EQ(registry->List()[0].step, 3);
    auto resumed = StartRun(*registry, job, MakeRun(1, 1, 'y'));
    ASSERT_NE(resumed, nullptr);
    EXPECT_EQ(resumed->rank(0).info().step, 3);
    EXPECT_EQ(resumed->rank(0).info().client_state, "after 2");
    EXPECT_TRUE(resumed->rank(0).WaitAllVersions(3));
    Train(*resumed, 3, 5);
    EXPECT_TRUE(Same(resumed->rank(0).ReadEverything(), want));
    resumed->Close(false);
    ASSERT_OK(registry->Drop("gpt"));
    EXPECT_TRUE(disk_.Files().empty());
  }
}

TEST_F(NvmeJobTest, RefusesWhatItMayNotOrCannotHold) {
  auto registry = MakeNvmeRegistry();
  const RunSpec run = MakeRun(1, 1);
  JobSpec outside = NvmeJob();
  outside.storage.nvme_paths = {"/var/tmp/elsewhere"};
  absl::Status status =
      testing::FakeRun::Start(*registry, outside, run).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/var/tmp/elsewhere"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(disk_.path()));
  // Out through a link.
  fs::create_directory_symlink("/var/tmp", disk_.path() + "/link");
  outside.storage.nvme_paths = {disk_.path() + "/link/x"};
  EXPECT_STATUS(testing::FakeRun::Start(*registry, outside, run).status(),
                kPermissionDenied);

  JobSpec tight = NvmeJob();
  tight.storage.memory_budget_bytes = LeastBudget(tight, run) - 1;
  status = testing::FakeRun::Start(*registry, tight, run).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat(tight.storage.memory_budget_bytes + 1)));

  JobSpec disk = NvmeJob();
  disk.storage.nvme_budget_bytes = 1000;
  status = testing::FakeRun::Start(*registry, disk, run).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("nvme_budget"));
  EXPECT_TRUE(registry->List().empty());
  EXPECT_TRUE(disk_.Files().empty());

  auto started = StartRun(*registry, NvmeJob(), run);
  ASSERT_NE(started, nullptr);
  started->Close(false);
  JobSpec other = NvmeJob();
  other.storage.kept_steps = 2;
  EXPECT_STATUS(testing::FakeRun::Start(*registry, other, run).status(),
                kInvalidArgument);
  other = NvmeJob();
  other.storage.nvme_paths = {disk_.path() + "/other"};
  EXPECT_STATUS(testing::FakeRun::Start(*registry, other, run).status(),
                kInvalidArgument);
}

// Overwrites the largest file with other bytes until Restore().
class Damage {
 public:
  explicit Damage(const DiskFolder& disk) {
    const std::vector<std::string> files = disk.Files();
    file_ = *std::max_element(files.begin(), files.end(),
                              [](const std::string& a, const std::string& b) {
                                return fs::file_size(a) < fs::file_size(b);
                              });
    std::ifstream in(file_, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(in), {});
    Write(std::string(bytes_.size(), '\x5a'));
  }
  void Restore() { Write(bytes_); }
  const std::string& file() const { return file_; }

 private:
  void Write(const std::string& bytes) {
    std::fstream out(file_, std::ios::binary | std::ios::in | std::ios::out);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.close();
    const UniqueFd fd(::open(file_.c_str(), O_RDONLY | O_CLOEXEC));
    ::fsync(fd.get());
  }
  std::string file_;
  std::string bytes_;
};

TEST_F(NvmeJobTest, AFaultOfTheDiskStopsOneJobUntilItIsMended) {
  const RunSpec run = MakeRun(1, 1);
  const std::vector<float> want = StateInMemory(run, 5);
  auto registry = MakeNvmeRegistry();
  auto broken = StartRun(*registry, NvmeJob("broken"), run);
  ASSERT_NE(broken, nullptr);
  Train(*broken, 0, 3);
  Damage damage(disk_);
  auto healthy = StartRun(*registry, NvmeJob("healthy"), run);
  ASSERT_NE(healthy, nullptr);

  ASSERT_TRUE(broken->Prepare(3, BatchGradient).ok());
  ASSERT_OK(broken->rank(0).session().Apply(MakeApply(3)));
  const absl::Status failure = broken->rank(0).WaitFailed();
  EXPECT_EQ(failure.code(), absl::StatusCode::kDataLoss) << failure;
  for (const char* part : {"\"broken\"", "apply of step 3", "unit", "extent"}) {
    EXPECT_THAT(std::string(failure.message()), HasSubstr(part));
  }
  EXPECT_THAT(std::string(failure.message()), HasSubstr(damage.file()));
  broken->Close(false);
  for (const JobInfo& info : registry->List()) {
    EXPECT_EQ(info.failed_because.empty(), info.name == "healthy");
  }
  // It does not go on while the cause is there.
  EXPECT_FALSE(testing::FakeRun::Start(*registry, NvmeJob("broken"), run).ok());

  Train(*healthy, 0, 5);
  EXPECT_TRUE(Same(healthy->rank(0).ReadEverything(), want));
  healthy->Close(true);

  damage.Restore();
  auto resumed = StartRun(*registry, NvmeJob("broken"), MakeRun(1, 1, 'z'));
  ASSERT_NE(resumed, nullptr);
  EXPECT_EQ(resumed->rank(0).info().step, 3);
  Train(*resumed, 3, 5);
  EXPECT_TRUE(Same(resumed->rank(0).ReadEverything(), want));
  resumed->Close(true);
}

}  // namespace
}  // namespace stowage::core
