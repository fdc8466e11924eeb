// Each key of DeepSpeed's `aio` and `offload_optimizer` sections changes what
// the store does: seen from below, at the simulated disk or the kernel.
//
// The way of a key from the file to these options: StorageOf in
// tests/unit/engine/config/resolve_test.cc, and PlanMemory's tests.

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/nvme/nvme_store.h"
#include "tests/support/nvme_job.h"
#include "tests/support/nvme_testing.h"
#include "tests/support/simulated_disk.h"

namespace stowage::testing {
namespace {

using storage::IoBackend;
using storage::NvmeStore;
using storage::NvmeStoreOptions;

NvmeStoreOptions Options(SimulatedDisk* disk) {
  NvmeStoreOptions options = SmallNvmeOptions();
  options.disk = disk;
  options.window_elems = 1;  // of one extent
  options.slots = 3;
  options.prewrite = false;
  return options;
}

// What the disk was asked in one step.
SimulatedDisk::Counts CountsOfAStep(const NvmeJob& job, SimulatedDisk* disk,
                                    const NvmeStoreOptions& options) {
  auto store = CreateNvmeStore(job.layout(), options);
  EXPECT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(job.Initialize(**store).ok());
  std::int64_t wrong = 0;
  EXPECT_TRUE(job.Step(**store, &wrong).ok());
  disk->TakeCounts();
  EXPECT_TRUE(job.Step(**store, &wrong).ok());
  EXPECT_EQ(wrong, 0);
  return disk->TakeCounts();
}

TEST(NvmeKeys, BlockSizeIsTheLongestRequest) {
  const NvmeJob job;
  std::int64_t requests_before = 0;
  for (const std::int64_t block : {1 << 20, 128 << 10, 16 << 10}) {
    SimulatedDisk disk({.seed = 1});
    NvmeStoreOptions options = Options(&disk);
    options.block_size = block;
    const SimulatedDisk::Counts counts = CountsOfAStep(job, &disk, options);
    EXPECT_LE(counts.request_bytes_max, block);
    EXPECT_GT(counts.request_bytes_max, block / 2);
    EXPECT_GT(counts.requests, requests_before);
    requests_before = counts.requests;
  }
}

TEST(NvmeKeys, QueueDepthTimesParallelismAreInFlightPerFolder) {
  const NvmeJob job(3);
  for (const std::int32_t depth : {1, 2, 5}) {
    for (const std::int32_t parallelism : {1, 3}) {
      SimulatedDisk disk({.seed = 2});
      NvmeStoreOptions options = Options(&disk);
      options.queue_depth = depth;
      options.threads = parallelism;
      options.block_size = 16 << 10;
      const SimulatedDisk::Counts counts = CountsOfAStep(job, &disk, options);
      const auto folders = static_cast<std::int64_t>(options.paths.size());
      EXPECT_EQ(counts.in_flight_max,
                std::int64_t{depth} * parallelism * folders);
    }
  }
}

TEST(NvmeKeys, WithoutOverlapABatchEndsBeforeTheNextBegins) {
  const NvmeJob job;
  for (const bool overlap : {true, false}) {
    SimulatedDisk disk({.seed = 3});
    NvmeStoreOptions options = Options(&disk);
    options.overlap_events = overlap;
    const SimulatedDisk::Counts counts = CountsOfAStep(job, &disk, options);
    EXPECT_EQ(counts.overlapped_submits > 0, overlap)
        << counts.overlapped_submits << " of " << counts.submits;
  }
}

// Of a real ring: the system calls of a step.
TEST(NvmeKeys, SingleSubmitIsASystemCallForEachRequest) {
  const NvmeJob job(2);
  std::int64_t calls[2] = {};
  std::int64_t requests = 0;
  for (const bool single : {false, true}) {
    NvmeStoreOptions options = Options(nullptr);
    options.paths = {ScratchFolder("single")};
    options.job_name = absl::StrCat("single-", single);
    options.backend = IoBackend::kUring;
    options.single_submit = single;
    options.block_size = 16 << 10;
    auto store = CreateNvmeStore(job.layout(), options);
    if (absl::IsUnavailable(store.status())) {
      GTEST_SKIP() << "io_uring is refused here: " << store.status();
    }
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE(job.Initialize(**store).ok());
    std::int64_t wrong = 0;
    // Counted when nothing is queued: a look at the state ends what is read
    // early.
    std::vector<float> value(1);
    const auto counted = [&] {
      EXPECT_TRUE((*store)->Read(0, StateKind::kMaster, 0, value).ok());
      return (*store)->stats();
    };
    ASSERT_TRUE(job.Step(**store, &wrong).ok());
    const storage::NvmeStoreStats before = counted();
    ASSERT_TRUE(job.Step(**store, &wrong).ok());
    const storage::NvmeStoreStats after = counted();
    calls[single ? 1 : 0] = after.submit_calls - before.submit_calls;
    requests = (after.bytes_read - before.bytes_read + after.bytes_written -
                before.bytes_written) /
               options.block_size;
  }
  EXPECT_GE(calls[1], requests) << "reads and writes, one call each";
  EXPECT_LT(calls[0], calls[1] / 2) << "a batch is one call";
}

// Threads that this process has.
std::int64_t Threads() {
  std::int64_t threads = 0;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/self/task")) {
    threads += task.is_directory() ? 1 : 0;
  }
  return threads;
}

TEST(NvmeKeys, ParallelismIsThePoolsThreads) {
  const NvmeJob job;
  for (const std::int32_t parallelism : {1, 4}) {
    NvmeStoreOptions options = Options(nullptr);
    options.paths = {ScratchFolder("pool")};
    options.job_name = absl::StrCat("pool-", parallelism);
    options.backend = IoBackend::kPool;
    options.threads = parallelism;
    const std::int64_t before = Threads();
    auto store = CreateNvmeStore(job.layout(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ(Threads() - before, parallelism);
  }
}

TEST(NvmeKeys, BufferCountIsTheWindowsInMemoryAtOnce) {
  const NvmeJob job(4);
  for (const std::int32_t slots : {3, 5}) {
    SimulatedDisk disk({.seed = 4});
    NvmeStoreOptions options = Options(&disk);
    options.slots = slots;
    auto store = CreateNvmeStore(job.layout(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ(storage::NvmePinnedBytes(job.layout(), options),
              (*store)->pinned_bytes());
    ASSERT_TRUE(job.Initialize(**store).ok());
    ASSERT_TRUE((*store)->BeginUpdate(job.order()).ok());
    for (std::int32_t i = 0; i < slots; ++i) {
      const auto window = (*store)->AcquireNext();
      ASSERT_TRUE(window.ok()) << window.status();
      ASSERT_FALSE(window->empty());
    }
    EXPECT_EQ((*store)->AcquireNext().status().code(),
              absl::StatusCode::kFailedPrecondition);
    ASSERT_TRUE((*store)->Abandon().ok());
  }
}

TEST(NvmeKeys, SubGroupSizeIsAWindowsElements) {
  const NvmeJob job(4);
  std::int64_t windows_before = INT64_MAX;
  for (const std::int64_t elems : {1, 1 << 18, 1 << 30}) {
    SimulatedDisk disk({.seed = 5});
    NvmeStoreOptions options = Options(&disk);
    options.window_elems = elems;
    auto store = CreateNvmeStore(job.layout(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE(job.Initialize(**store).ok());
    ASSERT_TRUE((*store)->BeginUpdate(job.order()).ok());
    std::int64_t windows = 0;
    for (;;) {
      const auto window = (*store)->AcquireNext();
      ASSERT_TRUE(window.ok()) << window.status();
      if (window->empty()) break;
      ++windows;
      ASSERT_TRUE((*store)->Release(*window).ok());
    }
    ASSERT_TRUE((*store)->Abandon().ok());
    EXPECT_LT(windows, windows_before) << elems;
    windows_before = windows;
  }
  EXPECT_EQ(windows_before, 1) << "a billion elements: all of this job";
}

TEST(NvmeKeys, PipelineReadStartsWindowsBeforeTheyAreAskedFor) {
  const NvmeJob job(2);
  std::int64_t bytes[2] = {};
  for (const bool pipelined : {false, true}) {
    SimulatedDisk disk({.seed = 6});
    NvmeStoreOptions options = Options(&disk);
    options.pipeline_read = pipelined;
    auto store = CreateNvmeStore(job.layout(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE(job.Initialize(**store).ok());
    const std::int64_t before = (*store)->stats().bytes_read;
    ASSERT_TRUE((*store)->BeginUpdate(job.order()).ok());
    bytes[pipelined ? 1 : 0] = (*store)->stats().bytes_read - before;
    ASSERT_TRUE((*store)->Abandon().ok());
  }
  EXPECT_GT(bytes[1], 2 * bytes[0]);
}

// The disk has nothing to do between a commit and the next pass: all slots are
// filled then. What comes in between takes nothing from the next pass's bits.
TEST(NvmeKeys, PipelineReadFillsTheSlotsBetweenSteps) {
  const NvmeJob job(2);
  for (const bool pipelined : {false, true}) {
    SimulatedDisk disk({.seed = 6});
    NvmeStoreOptions options = Options(&disk);
    options.pipeline_read = pipelined;
    auto created = CreateNvmeStore(job.layout(), options);
    ASSERT_TRUE(created.ok()) << created.status();
    NvmeStore& store = **created;
    ASSERT_TRUE(job.Initialize(store).ok());
    std::int64_t wrong = 0;
    ASSERT_TRUE(job.Step(store, &wrong).ok());
    disk.TakeCounts();
    for (int i = 0; i < 100; ++i) store.KeepReading();
    const std::int64_t before = store.stats().bytes_read;
    ASSERT_TRUE(store.BeginUpdate(job.order()).ok());
    const std::int64_t at_begin = store.stats().bytes_read - before;
    EXPECT_EQ(at_begin == 0, pipelined) << at_begin;
    ASSERT_TRUE(store.Abandon().ok());
    // A step that was broken off, a look at the state, another order, a scan.
    ASSERT_TRUE(job.Step(store, &wrong).ok());
    job.Expect(store, 2);
    ASSERT_TRUE(job.Step(store, &wrong).ok());
    std::vector<std::int32_t> backwards(job.order().rbegin(),
                                        job.order().rend());
    ASSERT_TRUE(store.BeginScan(backwards).ok());
    ASSERT_TRUE(store.EndScan().ok());
    ASSERT_TRUE(job.Step(store, &wrong).ok());
    ASSERT_TRUE(store.BeginScan(job.order()).ok());
    ASSERT_TRUE(store.EndScan().ok());
    ASSERT_TRUE(job.Step(store, &wrong).ok());
    EXPECT_EQ(wrong, 0);
    job.Expect(store, 5);
    if (options.kept_versions > 1) {
      ASSERT_TRUE(store.Rewind(4).ok());
      ASSERT_TRUE(job.Step(store, &wrong).ok());
      EXPECT_EQ(wrong, 0);
      job.Expect(store, 5);
    }
    ASSERT_TRUE(store.Close().ok());
  }
}

// The next step's first windows are read while this one's last are written and
// flushed; from what the commit will say, so a commit that fails costs nothing.
TEST(NvmeKeys, PipelineReadBeginsBeforeTheCommit) {
  const NvmeJob job(4);
  for (const bool pipelined : {false, true}) {
    SimulatedDisk disk({.seed = 9});
    NvmeStoreOptions options = Options(&disk);
    options.pipeline_read = pipelined;
    options.durability = Durability::kPower;
    auto created = CreateNvmeStore(job.layout(), options);
    ASSERT_TRUE(created.ok()) << created.status();
    NvmeStore& store = **created;
    ASSERT_TRUE(job.Initialize(store).ok());
    std::int64_t wrong = 0;
    ASSERT_TRUE(job.Step(store, &wrong).ok());
    const std::int64_t whole = 12 * job.layout().state_elems();
    for (const char* const broken : {"/state.0", "/manifest", ""}) {
      const std::int64_t step = store.committed().step;
      // So that only this pass's reads are counted.
      std::vector<float> value(1);
      ASSERT_TRUE(store.Read(0, StateKind::kMaster, 0, value).ok());
      const std::int64_t before = store.stats().bytes_read;
      ASSERT_TRUE(job.UpdateState(store, &wrong).ok());
      disk.FailFlush(broken, broken[0] == 0 ? 0 : EIO);
      const absl::Status committed = store.Commit(NvmeJob::Record(step + 1));
      EXPECT_EQ(committed.ok(), broken[0] == 0) << committed;
      const std::int64_t more = store.stats().bytes_read - before - whole;
      if (pipelined) {
        EXPECT_GT(more, 0) << broken;
      } else {
        EXPECT_LT(more, whole / 10) << broken;
      }
      disk.FailFlush("", 0);
      if (!committed.ok()) {
        ASSERT_TRUE(store.Abandon().ok());
      }
      ASSERT_TRUE(job.Step(store, &wrong).ok());
      EXPECT_EQ(wrong, 0) << broken;
      job.Expect(store, committed.ok() ? step + 2 : step + 1);
    }
  }
}

TEST(NvmeKeys, WithoutPipelineWriteReleaseWaitsForItsWrites) {
  const NvmeJob job(2);
  for (const bool pipelined : {false, true}) {
    SimulatedDisk disk({.seed = 7});
    NvmeStoreOptions options = Options(&disk);
    options.pipeline_write = pipelined;
    options.pipeline_read = false;
    auto store = CreateNvmeStore(job.layout(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE(job.Initialize(**store).ok());
    disk.InjectFaults([](const SimulatedDisk::Request&) {
      return SimulatedDisk::Fault{.late_polls = 2};
    });
    ASSERT_TRUE((*store)->BeginUpdate(job.order()).ok());
    for (int i = 0; i < 2; ++i) {
      const auto window = (*store)->AcquireNext();
      ASSERT_TRUE(window.ok()) << window.status();
      for (std::int64_t at = window->begin; at < window->end; ++at) {
        ASSERT_TRUE((*store)->VerifyChunk(at).ok());
      }
      const double waited = (*store)->stats().write_wait_seconds;
      ASSERT_TRUE((*store)->Release(*window).ok());
      EXPECT_EQ((*store)->stats().write_wait_seconds > waited, !pipelined);
    }
    disk.InjectFaults(nullptr);
    ASSERT_TRUE((*store)->Abandon().ok());
  }
}

TEST(NvmeKeys, SeveralFoldersAreStripedEvenly) {
  const NvmeJob job(8);
  SimulatedDisk disk({.seed = 8});
  NvmeStoreOptions options = Options(&disk);
  options.paths = {"/disk0", "/disk1", "/disk2"};
  std::vector<std::int64_t> by_folder(3);
  disk.InjectFaults([&](const SimulatedDisk::Request& request) {
    if (request.write && request.path.find("/state.") != std::string::npos) {
      by_folder[static_cast<std::size_t>(request.path[5] - '0')] +=
          request.bytes;
    }
    return SimulatedDisk::Fault{};
  });
  CountsOfAStep(job, &disk, options);
  for (const std::int64_t bytes : by_folder) {
    EXPECT_GT(bytes, by_folder[0] / 2);
    EXPECT_LT(bytes, by_folder[0] * 2);
  }
}

}  // namespace
}  // namespace stowage::testing
