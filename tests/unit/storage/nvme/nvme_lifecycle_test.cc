// The life of a store beyond its passes: opening, listing, rewinding, closing,
// gradient sums, and what durability `memory` keeps. On the simulated disk.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/nvme/fsck.h"
#include "storage/nvme/nvme_store.h"
#include "tests/support/nvme_job.h"
#include "tests/support/nvme_testing.h"
#include "tests/support/simulated_disk.h"

namespace stowage::testing {
namespace {

using storage::NvmeStore;
using storage::NvmeStoreOptions;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class NvmeLifecycle : public ::testing::Test {
 protected:
  NvmeLifecycle() : disk_({.seed = 5}) {
    options_ = SmallNvmeOptions();
    options_.disk = &disk_;
    options_.durability = Durability::kPower;
    options_.kept_versions = 3;
    options_.params = true;
    options_.gradient_spill = true;
    options_.window_elems = 1;
    options_.slots = 3;
    options_.prewrite = false;
    options_.job_record = "spec";
  }

  std::unique_ptr<NvmeStore> Create(std::int64_t steps) {
    auto store = CreateNvmeStore(job_.layout(), options_);
    EXPECT_TRUE(store.ok()) << store.status();
    EXPECT_TRUE(job_.Initialize(**store).ok());
    Run(**store, steps);
    return *std::move(store);
  }

  void Run(NvmeStore& store, std::int64_t steps) {
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < steps; ++i) {
      const absl::Status status = job_.Step(store, &wrong);
      EXPECT_TRUE(status.ok()) << status;
    }
    EXPECT_EQ(wrong, 0);
  }

  std::unique_ptr<NvmeStore> Open() {
    auto store = OpenNvmeStore(job_.layout(), options_);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }

  const NvmeJob job_;
  SimulatedDisk disk_;
  NvmeStoreOptions options_;
};

TEST_F(NvmeLifecycle, OpensWhereItWasWithItsRecord) {
  auto store = Create(4);
  EXPECT_EQ(store->pinned_bytes(),
            storage::NvmePinnedBytes(job_.layout(), options_));
  ASSERT_TRUE(store->SetJobRecord("spec and trace").ok());
  // A server that dies closes nothing.
  store.reset();
  const auto info = NvmeStore::Peek("/disk0", "job", &disk_);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->job_record, "spec and trace");
  EXPECT_EQ(info->job_id, 7U);
  EXPECT_EQ(info->paths, options_.paths);
  EXPECT_EQ(info->commits.size(), 3U);
  EXPECT_EQ(info->commits.back(), NvmeJob::Record(4));
  EXPECT_EQ(info->layout_fingerprint, job_.layout().fingerprint());
  auto opened = Open();
  EXPECT_EQ(opened->job_record(), "spec and trace");
  job_.Expect(*opened, 4);
  Run(*opened, 2);
  job_.Expect(*opened, 6);
}

TEST_F(NvmeLifecycle, ListsAndRemovesJobs) {
  Create(0).reset();
  options_.job_name = "another";
  Create(0).reset();
  EXPECT_THAT(*NvmeStore::List("/disk0", &disk_),
              ElementsAre("another", "job"));
  ASSERT_TRUE(NvmeStore::Remove(options_.paths, "job", &disk_).ok());
  EXPECT_THAT(*NvmeStore::List("/disk0", &disk_), ElementsAre("another"));
  EXPECT_EQ(NvmeStore::Peek("/disk0", "job", &disk_).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(NvmeStore::Remove(options_.paths, "job", &disk_).ok());
}

TEST_F(NvmeLifecycle, RefusesAnotherLayoutAndOtherFolders) {
  Create(1).reset();
  const NvmeJob other(2);
  EXPECT_EQ(OpenNvmeStore(other.layout(), options_).status().code(),
            absl::StatusCode::kInvalidArgument);
  options_.paths = {"/disk0"};
  EXPECT_EQ(OpenNvmeStore(job_.layout(), options_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(NvmeLifecycle, RefusesAJobWhoseInitializationNeverEnded) {
  auto store = CreateNvmeStore(job_.layout(), options_);
  ASSERT_TRUE(store.ok());
  store->reset();
  EXPECT_EQ(OpenNvmeStore(job_.layout(), options_).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(NvmeLifecycle, RewindsToAnyKeptStepAndGoesOn) {
  auto store = Create(5);
  EXPECT_THAT(store->KeptSteps(), ElementsAre(3, 4, 5));
  EXPECT_EQ(store->Rewind(2).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(store->Rewind(9).message()), HasSubstr("3, 4, 5"));
  const std::int64_t before = store->stats().bytes_written;
  ASSERT_TRUE(store->Rewind(3).ok());
  // The manifest and nothing else.
  EXPECT_LT(store->stats().bytes_written - before, 64 << 10);
  EXPECT_THAT(store->KeptSteps(), ElementsAre(3));
  job_.Expect(*store, 3);
  Run(*store, 3);
  job_.Expect(*store, 6);
  ASSERT_TRUE(store->Rewind(5).ok());
  store.reset();
  auto opened = Open();
  job_.Expect(*opened, 5);
}

TEST_F(NvmeLifecycle, RewindsAClosedStore) {
  ASSERT_TRUE(Create(5)->Close().ok());
  EXPECT_EQ(storage::RewindClosed("/disk0", "job", 1, &disk_).code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(storage::RewindClosed("/disk0", "job", 4, &disk_).ok());
  auto store = Open();
  EXPECT_EQ(storage::RewindClosed("/disk0", "job", 3, &disk_).code(),
            absl::StatusCode::kFailedPrecondition);
  job_.Expect(*store, 4);
  Run(*store, 1);
  job_.Expect(*store, 5);
}

TEST_F(NvmeLifecycle, ASkippedStepCommitsWithoutWritingState) {
  auto store = Create(2);
  const std::int64_t before = store->stats().bytes_written;
  storage::CommitRecord skipped = NvmeJob::Record(3);
  skipped.applied_steps = 2;
  ASSERT_TRUE(store->Commit(skipped).ok());
  EXPECT_LT(store->stats().bytes_written - before, 64 << 10);
  ASSERT_TRUE(store->Rewind(2).ok());
  job_.Expect(*store, 2);
  Run(*store, 4);
  job_.Expect(*store, 6);
}

TEST_F(NvmeLifecycle, NothingFollowsClose) {
  auto store = Create(1);
  ASSERT_TRUE(store->Close().ok());
  EXPECT_TRUE(store->Close().ok());
  std::vector<float> values(8);
  EXPECT_EQ(store->Read(0, StateKind::kMaster, 0, values).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store->BeginUpdate(job_.order()).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store->Commit({}).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(NvmeLifecycle, ACacheInMemoryDurabilityIsWrittenByCloseOnly) {
  options_.durability = Durability::kMemory;
  options_.cache_bytes = 2 << 20;
  auto store = Create(2);
  const storage::NvmeStoreStats before = store->stats();
  Run(*store, 1);
  const storage::NvmeStoreStats after = store->stats();
  EXPECT_GT(after.cache_hits, before.cache_hits);
  const std::int64_t state = 12 * job_.layout().state_elems();
  EXPECT_LT(after.bytes_written - before.bytes_written, state - (1 << 20));
  EXPECT_LT(after.bytes_read - before.bytes_read, state - (1 << 20));
  job_.Expect(*store, 3);
  EXPECT_THAT(store->KeptSteps(), ElementsAre(3));
  ASSERT_TRUE(store->Close().ok());
  store.reset();
  auto opened = Open();
  job_.Expect(*opened, 3);
  Run(*opened, 1);
  // This time the server dies: said, not guessed.
  opened.reset();
  const absl::Status lost = OpenNvmeStore(job_.layout(), options_).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(lost.message()), HasSubstr("memory"));
}

TEST_F(NvmeLifecycle, ACacheInPowerDurabilitySavesReadsAndIsWritten) {
  options_.cache_bytes = 2 << 20;
  auto store = Create(2);
  const storage::NvmeStoreStats before = store->stats();
  Run(*store, 1);
  const storage::NvmeStoreStats after = store->stats();
  const std::int64_t state = 12 * job_.layout().state_elems();
  EXPECT_LT(after.bytes_read - before.bytes_read, state - (1 << 20));
  EXPECT_GE(after.bytes_written - before.bytes_written, state);
  store.reset();
  job_.Expect(*Open(), 3);
}

// Belady's rule keeps a fixed set: what fits is hit in every step.
TEST_F(NvmeLifecycle, ReadsNothingWhenAllOfItFits) {
  options_.cache_bytes = std::int64_t{1} << 30;
  auto store = Create(1);
  const std::int64_t before = store->stats().bytes_read;
  Run(*store, 3);
  EXPECT_EQ(store->stats().bytes_read, before);
}

TEST_F(NvmeLifecycle, SpillsGradientSums) {
  auto store = Create(0);
  storage::UnitStore& sums = *store->spill();
  const auto bytes = static_cast<std::size_t>(sums.payload_bytes(1));
  EXPECT_EQ(static_cast<std::int64_t>(bytes),
            job_.layout().units()[1].trainable_elems * 4);
  EXPECT_EQ(sums.payload_bytes(2), 0);  // frozen
  const std::unique_ptr<void, void (*)(void*)> memory(
      std::aligned_alloc(4096, bytes), std::free);
  const std::span<std::byte> payload(static_cast<std::byte*>(memory.get()),
                                     bytes);
  EXPECT_EQ(sums.StartRead(1, payload).code(),
            absl::StatusCode::kFailedPrecondition);
  for (int round = 1; round <= 3; ++round) {
    std::memset(payload.data(), round, bytes);
    ASSERT_TRUE(sums.StartWrite(1, payload).ok());
    ASSERT_TRUE(sums.Await(1).ok());
    std::memset(payload.data(), 0, bytes);
    ASSERT_TRUE(sums.StartRead(1, payload).ok());
    ASSERT_TRUE(sums.Await(1).ok());
    EXPECT_EQ(payload[bytes / 2], static_cast<std::byte>(round));
    EXPECT_EQ(payload[bytes - 1], static_cast<std::byte>(round));
  }
  EXPECT_EQ(sums.StartWrite(1, payload.first(4096)).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace stowage::testing
