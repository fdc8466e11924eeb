// Power loss at every write and flush of a small job on NVMe.
//
// Fault model: tests/support/simulated_disk.h. What was not flushed may be
// there, missing or torn (512 B or 4 KiB), each write by itself. After each
// loss the store must open at some committed step, not before the last one
// whose Commit() returned OK and at most one after it, and state, parameters
// and record must be exactly that step's; then it goes on.
//
// STOWAGE_TEST_SEED sets the seed; STOWAGE_TEST_LONG=1 runs more of them.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/nvme_job.h"
#include "tests/support/nvme_testing.h"
#include "tests/support/simulated_disk.h"

namespace stowage::testing {
namespace {

using storage::NvmeStoreOptions;

std::uint64_t Seed() {
  const char* text = std::getenv("STOWAGE_TEST_SEED");  // NOLINT: one thread
  return text == nullptr ? 20261124 : std::strtoull(text, nullptr, 10);
}

bool Long() {
  const char* text = std::getenv("STOWAGE_TEST_LONG");  // NOLINT: one thread
  return text != nullptr && std::string(text) == "1";
}

NvmeStoreOptions PowerOptions(SimulatedDisk* disk) {
  NvmeStoreOptions options = SmallNvmeOptions();
  options.disk = disk;
  options.durability = Durability::kPower;
  options.kept_versions = 2;
  options.params = true;
  options.window_elems = 1;
  options.slots = 3;
  options.block_size = 512 << 10;
  options.prewrite = false;
  return options;
}

// Runs until the power goes or `steps` are committed. Returns: the last step
// whose commit was confirmed, -1 if not even the initial one was.
std::int64_t RunUntilCut(const NvmeJob& job, const NvmeStoreOptions& options,
                         std::int64_t steps) {
  auto store = CreateNvmeStore(job.layout(), options);
  if (!store.ok() || !job.Initialize(**store).ok()) return -1;
  std::int64_t wrong = 0;
  for (std::int64_t step = 0; step < steps; ++step) {
    if (!job.Step(**store, &wrong).ok()) return step;
  }
  EXPECT_EQ(wrong, 0);
  return steps;
}

// After a power loss. Returns: the step that was found.
std::int64_t CheckAfter(const NvmeJob& job, const NvmeStoreOptions& options,
                        std::int64_t confirmed) {
  auto store = OpenNvmeStore(job.layout(), options);
  if (confirmed < 0 && !store.ok()) return -1;  // nothing was promised
  EXPECT_TRUE(store.ok()) << store.status();
  if (!store.ok()) return -1;
  const std::int64_t found = (*store)->committed().step;
  EXPECT_GE(found, confirmed);
  EXPECT_LE(found, confirmed + 1);
  job.Expect(**store, found);
  // Both kept steps are whole, and the older one can be returned to.
  const std::vector<std::int64_t> kept = (*store)->KeptSteps();
  if (kept.size() > 1) {
    EXPECT_TRUE((*store)->Rewind(kept.front()).ok());
    job.Expect(**store, kept.front());
  }
  std::int64_t wrong = 0;
  const std::int64_t from = (*store)->committed().step;
  const absl::Status went_on = job.Step(**store, &wrong);
  EXPECT_TRUE(went_on.ok()) << went_on;
  EXPECT_EQ(wrong, 0);
  job.Expect(**store, from + 1);
  return found;
}

TEST(NvmeCrash, ShowsACommittedStepAfterPowerLossAtEveryWrite) {
  const NvmeJob job;
  const std::int64_t steps = 3;
  std::int64_t events = 0;
  {
    SimulatedDisk disk({.seed = Seed()});
    ASSERT_EQ(RunUntilCut(job, PowerOptions(&disk), steps), steps);
    events = disk.events();
  }
  ASSERT_GT(events, 40);
  const int rounds = Long() ? 20 : 1;
  std::vector<std::int64_t> found_at(static_cast<std::size_t>(steps) + 2);
  for (int round = 0; round < rounds; ++round) {
    for (std::int64_t cut = 0; cut < events; ++cut) {
      const std::uint64_t seed = Seed() +
                                 static_cast<std::uint64_t>(round) * 100000 +
                                 static_cast<std::uint64_t>(cut);
      SCOPED_TRACE(absl::StrCat("power cut at event ", cut, ", seed ", seed));
      SimulatedDisk disk({.seed = seed});
      disk.CutPowerAt(cut);
      const NvmeStoreOptions options = PowerOptions(&disk);
      const std::int64_t confirmed = RunUntilCut(job, options, steps);
      ASSERT_FALSE(disk.powered());
      ASSERT_LT(confirmed, steps);
      disk.Restart();
      const std::int64_t found = CheckAfter(job, options, confirmed);
      ++found_at[static_cast<std::size_t>(found + 1)];
      if (::testing::Test::HasFailure()) return;
    }
  }
  // Every step was found at some time: the cuts hit every phase.
  for (std::size_t i = 0; i < found_at.size() - 1; ++i) {
    EXPECT_GT(found_at[i], 0) << "step " << static_cast<std::int64_t>(i) - 1;
  }
  std::printf("%lld events x %d rounds, seed %llu\n",
              static_cast<long long>(events), rounds,
              static_cast<unsigned long long>(Seed()));
}

// A second loss while the first one's step is done again, and so on.
TEST(NvmeCrash, SurvivesLossesOneAfterTheOther) {
  const NvmeJob job;
  std::mt19937_64 random(Seed());
  const int rounds = Long() ? 2000 : 40;
  SimulatedDisk disk({.seed = Seed()});
  const NvmeStoreOptions options = PowerOptions(&disk);
  {
    auto store = CreateNvmeStore(job.layout(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE(job.Initialize(**store).ok());
  }
  std::int64_t confirmed = 0;
  for (int round = 0; round < rounds; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round, ", seed ", Seed()));
    {
      auto store = OpenNvmeStore(job.layout(), options);
      ASSERT_TRUE(store.ok()) << store.status();
      const std::int64_t found = (*store)->committed().step;
      ASSERT_GE(found, confirmed);
      ASSERT_LE(found, confirmed + 1);
      job.Expect(**store, found);
      confirmed = found;
      disk.CutPowerAt(disk.events() + static_cast<std::int64_t>(random() % 60));
      std::int64_t wrong = 0;
      while (job.Step(**store, &wrong).ok()) ++confirmed;
      ASSERT_EQ(wrong, 0);
    }
    disk.Restart();
  }
}

// A cached store in `power` writes through: the same promise.
TEST(NvmeCrash, KeepsThePromiseWithACache) {
  const NvmeJob job;
  for (std::int64_t cut = 60; cut < 160; cut += 6) {
    SCOPED_TRACE(absl::StrCat("cut ", cut, ", seed ", Seed()));
    SimulatedDisk disk({.seed = Seed() + static_cast<std::uint64_t>(cut)});
    NvmeStoreOptions options = PowerOptions(&disk);
    options.cache_bytes = 3 << 20;
    disk.CutPowerAt(cut);
    const std::int64_t confirmed = RunUntilCut(job, options, 6);
    disk.Restart();
    CheckAfter(job, options, confirmed);
    if (::testing::Test::HasFailure()) return;
  }
}

// Durability `memory` does not promise a step after power loss; it promises
// never to show a wrong one as right.
TEST(NvmeCrash, NamesWhatPowerLossCostWithoutFlushes) {
  const NvmeJob job;
  int whole = 0;
  int named = 0;
  for (std::uint64_t seed = Seed(); seed < Seed() + 12; ++seed) {
    SimulatedDisk disk({.seed = seed});
    NvmeStoreOptions options = PowerOptions(&disk);
    options.durability = Durability::kMemory;
    options.params = false;
    disk.CutPowerAt(80 + static_cast<std::int64_t>(seed % 20));
    RunUntilCut(job, options, 8);
    disk.Restart();
    auto store = OpenNvmeStore(job.layout(), options);
    if (!store.ok()) {
      ++named;
      continue;
    }
    const std::int64_t step = (*store)->committed().step;
    std::vector<float> got(
        static_cast<std::size_t>(job.layout().chunks()[0].elems));
    bool fault = false;
    for (std::size_t c = 0; c < job.layout().chunks().size(); ++c) {
      const Layout::Chunk& chunk = job.layout().chunks()[c];
      got.resize(static_cast<std::size_t>(chunk.elems));
      const absl::Status read = (*store)->Read(
          chunk.unit_index, StateKind::kMaster, chunk.begin_elems, got);
      if (!read.ok()) {
        EXPECT_EQ(read.code(), absl::StatusCode::kDataLoss) << read;
        fault = true;
        continue;
      }
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i], NvmeJob::Value(step, 0, static_cast<std::int64_t>(c),
                                         static_cast<std::int64_t>(i)));
      }
    }
    ++(fault ? named : whole);
  }
  // Both happen, or the disk was not lossy and this proves nothing.
  EXPECT_GT(named, 0);
  std::printf("whole %d, damage named %d, seed %llu\n", whole, named,
              static_cast<unsigned long long>(Seed()));
}

}  // namespace
}  // namespace stowage::testing
