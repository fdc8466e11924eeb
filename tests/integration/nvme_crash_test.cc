// A server with its jobs on NVMe is killed, and what is there afterwards is a
// committed step, bit for bit.
//
// Fault model: SIGKILL of stowd at any instant, or at one of the points that
// are compiled in (common/crash_point.h); the kernel and the disk live. Seeded;
// STOWAGE_TEST_SEED and STOWAGE_NVME_KILLS (300; 30 with sanitizers) change
// seed and number.

#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/integration/client_server_fixture.h"

namespace stowage::testing {
namespace {

namespace fs = std::filesystem;

#if defined(__SANITIZE_ADDRESS__)
constexpr std::int64_t kKills = 30;
#else
constexpr std::int64_t kKills = 300;
#endif

std::int64_t FromEnvironment(const char* name, std::int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

std::uint64_t HashOf(const std::vector<float>& values) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const float value : values) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    hash = (hash ^ bits) * 0x100000001b3ULL;
  }
  return hash;
}

// Units of several extents and a few windows; bf16.
JobSpec CrashJob(const std::string& name) {
  JobSpec job = SmallJob(name);
  for (int i = 0; i < 3; ++i) {
    const std::string unit = absl::StrCat("block.", i + 1);
    job.layout.units.push_back(
        {unit, {{unit + ".w", {256, 300}, 0}, {unit + ".b", {300}, 1}}});
  }
  return job;
}

class NvmeCrashTest : public ClientServerTest {
 protected:
  NvmeCrashTest() {
    std::string name = (fs::current_path() / "nvme-crash-XXXXXX").string();
    STOWAGE_CHECK(::mkdtemp(name.data()) != nullptr);
    disk_ = fs::canonical(name).string();
  }
  ~NvmeCrashTest() override {
    server_.reset();
    fs::remove_all(disk_);
  }

  void Start() {
    StartServer({"--nvme-root", disk_, "--no-mlock", "--log-level", "error"});
  }
  void Kill() {
    ::kill(server_->pid(), SIGKILL);
    server_->Stop();
  }

  JobSpec Job(bool leased) const {
    JobSpec job = CrashJob("crash");
    job.durability = Durability::kPower;
    job.storage.optimizer = Placement::kNvme;
    job.storage.nvme_paths = {disk_};
    job.storage.kept_steps = 2;
    job.storage.pipeline_read = true;
    job.storage.pipeline_write = true;
    job.storage.sub_group_elems = 1;  // windows of one extent
    if (leased) {
      job.storage.params = Placement::kNvme;
      job.storage.max_in_cpu_elems = 0;
    }
    return job;
  }

  // The state after each step of a run that nobody stops, in memory.
  std::uint64_t Reference(std::int64_t step) {
    if (reference_ == nullptr) {
      core::RegistryOptions options;
      options.shm_dir = shm_.path();
      options.memory_limit_bytes = std::int64_t{256} << 20;
      options.threads = 1;
      registry_ = *core::JobRegistry::Create(options);
      const RunSpec run = SmallRun(1, 1);
      reference_ = *FakeRun::Start(*registry_, CrashJob("reference"), run);
      EXPECT_TRUE(reference_->Initialize(InitialValue).ok());
      hashes_[0] = HashOf(reference_->rank(0).ReadEverything());
    }
    while (hashes_.rbegin()->first < step) {
      const std::int64_t next = hashes_.rbegin()->first;
      EXPECT_TRUE(reference_->Prepare(next, BatchGradient).ok());
      EXPECT_TRUE(reference_->Apply(ApplyFor(next)).ok());
      hashes_[next + 1] = HashOf(reference_->rank(0).ReadEverything());
    }
    return hashes_.at(step);
  }

  // Attaches to whatever is there and compares. Returns: null if the job is
  // not there at all, which is right only before its first commit.
  std::unique_ptr<ClientRank> AttachAndCompare(const JobSpec& job,
                                               std::int64_t at_least) {
    static char nonce = 'a';
    nonce = nonce == 'z' ? 'a' : static_cast<char>(nonce + 1);
    auto rank =
        ClientRank::Attach(server_->address(), job, SmallRun(1, 1, nonce), 0);
    EXPECT_TRUE(rank.ok()) << rank.status();
    if (!rank.ok()) return nullptr;
    const AttachInfo& info = (*rank)->session().info();
    if (!info.initialized) {
      EXPECT_EQ(at_least, 0) << "a committed job is gone";
      const absl::Status made = (*rank)->Initialize();
      EXPECT_TRUE(made.ok()) << made;
      return made.ok() ? *std::move(rank) : nullptr;
    }
    EXPECT_GE(info.step, at_least) << "more than the step in flight is lost";
    EXPECT_EQ(info.client_state,
              info.step == 0 ? "" : absl::StrCat("state after ", info.step));
    EXPECT_EQ(HashOf((*rank)->ReadEverything()), Reference(info.step))
        << "not the state of step " << info.step;
    return *std::move(rank);
  }

  // Steps until the session breaks or `steps` are done. A verdict of step k
  // means that step k - 1 is committed, since one thread does both. Returns the
  // steps known to be committed.
  static std::int64_t TrainUntilBroken(ClientRank& rank, std::int64_t steps) {
    std::int64_t step = rank.session().info().step;
    std::int64_t committed = step;
    for (std::int64_t i = 0; i < steps; ++i, ++step) {
      if (!rank.Step(step).ok()) break;
      committed = step;
    }
    return committed;
  }

  std::string disk_;
  std::unique_ptr<core::JobRegistry> registry_;
  std::unique_ptr<FakeRun> reference_;
  std::map<std::int64_t, std::uint64_t> hashes_;
};

TEST_F(NvmeCrashTest, KilledAtAnyInstantItIsAtACommittedStep) {
  const std::int64_t kills = FromEnvironment("STOWAGE_NVME_KILLS", kKills);
  const std::int64_t seed = FromEnvironment("STOWAGE_TEST_SEED", 20261124);
  std::printf("seed %ld (STOWAGE_TEST_SEED), %ld kills (STOWAGE_NVME_KILLS)\n",
              static_cast<long>(seed), static_cast<long>(kills));
  std::mt19937_64 random(static_cast<std::uint64_t>(seed));
  for (const bool leased : {false, true}) {
    const JobSpec job = Job(leased);
    std::int64_t at_least = 0;
    std::int64_t first = -1;
    for (std::int64_t kill = 0; kill < (kills + 1) / 2; ++kill) {
      SCOPED_TRACE(absl::StrCat("kill ", kill, leased ? ", leased" : ""));
      Start();
      std::unique_ptr<ClientRank> rank = AttachAndCompare(job, at_least);
      ASSERT_NE(rank, nullptr);
      if (first < 0) first = rank->session().info().step;
      const auto delay =
          std::chrono::microseconds(random() % 60000 + random() % 3000);
      std::thread killer([&] {
        std::this_thread::sleep_for(delay);
        ::kill(server_->pid(), SIGKILL);
      });
      at_least = TrainUntilBroken(*rank, 1000);
      killer.join();
      rank.reset();
      server_->Stop();
      if (HasFailure()) return;
    }
    EXPECT_GT(at_least, first) << "no kill left a step behind";
    Start();
    std::unique_ptr<ClientRank> rank = AttachAndCompare(job, at_least);
    ASSERT_NE(rank, nullptr);
    TrainUntilBroken(*rank, 3);
    ASSERT_TRUE(rank->session().Close(/*close_job=*/true).ok());
    Kill();
  }
}

TEST_F(NvmeCrashTest, KilledAtEveryPointItIsAtACommittedStep) {
  for (const bool leased : {false, true}) {
    const JobSpec job = Job(leased);
    for (const char* point :
         {"job-created", "initial-state-written", "apply-begun", "unit-updated",
          "update-done", "step-committed"}) {
      SCOPED_TRACE(absl::StrCat(point, leased ? ", leased" : ""));
      fs::remove_all(disk_);
      fs::create_directory(disk_);
      ::setenv("STOWAGE_CRASH_AT", absl::StrCat(point, ":2").c_str(), 1);
      const bool once = std::string_view(point) == "job-created" ||
                        std::string_view(point) == "initial-state-written";
      if (once) ::setenv("STOWAGE_CRASH_AT", point, 1);
      Start();
      ::unsetenv("STOWAGE_CRASH_AT");
      std::int64_t at_least = 0;
      auto rank =
          ClientRank::Attach(server_->address(), job, SmallRun(1, 1), 0);
      if (rank.ok() && (*rank)->Initialize().ok()) {
        at_least = TrainUntilBroken(**rank, 6);
      }
      if (rank.ok()) rank->reset();
      int status = 0;
      ASSERT_EQ(::waitpid(server_->pid(), &status, 0), server_->pid());
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
          << "the point was not reached";
      server_->Stop();
      Start();
      std::unique_ptr<ClientRank> again = AttachAndCompare(job, at_least);
      ASSERT_NE(again, nullptr);
      const std::int64_t before = again->session().info().step;
      TrainUntilBroken(*again, 2);
      again.reset();
      Kill();
      Start();
      again = AttachAndCompare(job, before + 1);
      ASSERT_NE(again, nullptr);
      again.reset();
      Kill();
    }
  }
}

}  // namespace
}  // namespace stowage::testing
