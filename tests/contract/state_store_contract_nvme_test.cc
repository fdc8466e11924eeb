// The NVMe store under the contract of all stores: on the simulated disk with
// odd alignments, full queues, short and late transfers, and on real files by
// io_uring and by the fallback; with and without a cache, with one window in
// memory and with many.

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "storage/host/memory_budget.h"
#include "storage/nvme/nvme_store.h"
#include "tests/contract/state_store_contract.h"
#include "tests/support/nvme_job.h"
#include "tests/support/nvme_testing.h"
#include "tests/support/simulated_disk.h"

namespace stowage::testing {
namespace {

using storage::IoBackend;
using storage::NvmeStoreOptions;

StateStoreFactory OnSimulatedDisk(const std::string& name,
                                  SimulatedDisk::Options disk_options,
                                  NvmeStoreOptions options, bool unruly) {
  return {
      .name = name,
      .make =
          [=](const Layout& layout) -> std::unique_ptr<storage::StateStore> {
        // Outlives the store; a few small ones a run.
        static std::vector<std::unique_ptr<SimulatedDisk>> disks;
        disks.push_back(std::make_unique<SimulatedDisk>(disk_options));
        SimulatedDisk& disk = *disks.back();
        NvmeStoreOptions with = options;
        with.disk = &disk;
        auto store = CreateNvmeStore(layout, with);
        EXPECT_TRUE(store.ok()) << store.status();
        if (unruly) MakeUnruly(&disk);
        return *std::move(store);
      },
      .abandon_restores =
          options.cache_bytes == 0 || options.durability == Durability::kPower};
}

StateStoreFactory OnRealFile(const std::string& name,
                             NvmeStoreOptions options) {
  return {
      .name = name,
      .make =
          [=](const Layout& layout) -> std::unique_ptr<storage::StateStore> {
        static int count = 0;
        NvmeStoreOptions with = options;
        with.job_name = absl::StrCat(options.job_name, "-", ++count);
        with.paths = {ScratchFolder("a"), ScratchFolder("b")};
        auto store = CreateNvmeStore(layout, with);
        EXPECT_TRUE(store.ok()) << store.status();
        return *std::move(store);
      },
      .abandon_restores = true};
}

NvmeStoreOptions Power(NvmeStoreOptions options) {
  options.durability = Durability::kPower;
  return options;
}

NvmeStoreOptions WithCache(NvmeStoreOptions options, std::int64_t bytes) {
  options.cache_bytes = bytes;
  return options;
}

// Windows of one extent: a pass of several.
NvmeStoreOptions Narrow(NvmeStoreOptions options) {
  options.window_elems = 1;
  options.slots = 3;
  return options;
}

NvmeStoreOptions Synchronous(NvmeStoreOptions options) {
  options.pipeline_read = false;
  options.pipeline_write = false;
  options.overlap_events = false;
  options.single_submit = true;
  options.queue_depth = 1;
  return options;
}

NvmeStoreOptions WithBackend(NvmeStoreOptions options, IoBackend backend) {
  options.backend = backend;
  options.threads = 2;
  return options;
}

INSTANTIATE_TEST_SUITE_P(
    NvmeStore, StateStoreContract,
    ::testing::Values(
        OnSimulatedDisk("Sectors512", {.seed = 1}, SmallNvmeOptions(), false),
        OnSimulatedDisk("Sectors4096Unruly",
                        {.seed = 2,
                         .alignment = {.offset_bytes = 4096,
                                       .memory_bytes = 4096}},
                        Narrow(Power(SmallNvmeOptions())), true),
        OnSimulatedDisk("Sectors1024Unruly",
                        {.seed = 3,
                         .alignment = {.offset_bytes = 1024,
                                       .memory_bytes = 64}},
                        Narrow(SmallNvmeOptions()), true),
        OnSimulatedDisk("CachePower", {.seed = 4},
                        WithCache(Narrow(Power(SmallNvmeOptions())), 600000),
                        true),
        OnSimulatedDisk("CacheMemory", {.seed = 5},
                        WithCache(Narrow(SmallNvmeOptions()), 600000), false),
        OnSimulatedDisk("AllCached", {.seed = 6},
                        WithCache(Power(SmallNvmeOptions()), 1 << 30), false),
        OnSimulatedDisk("Synchronous", {.seed = 7},
                        Narrow(Synchronous(SmallNvmeOptions())), true),
        OnRealFile("RealFileAuto", Power(SmallNvmeOptions())),
        OnRealFile("RealFilePool",
                   Narrow(WithBackend(SmallNvmeOptions(), IoBackend::kPool)))),
    [](const auto& instance) { return instance.param.name; });

// Ranks fetch units while the optimizer's pass runs on another thread.
TEST(NvmeUnitStore, ServesManyThreadsWhileAPassRuns) {
  const NvmeJob job;
  NvmeStoreOptions options = Narrow(SmallNvmeOptions());
  options.params = true;
  options.paths = {ScratchFolder("a"), ScratchFolder("b")};
  options.job_name = "units";
  auto store = CreateNvmeStore(job.layout(), options);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE(job.Initialize(**store).ok());
  storage::UnitStore& units = *(*store)->params();
  std::vector<std::thread> threads;
  for (std::int32_t u = 0; u < job.layout().unit_count(); ++u) {
    threads.emplace_back([&units, u] {
      const auto bytes = static_cast<std::size_t>(units.payload_bytes(u));
      const std::unique_ptr<void, void (*)(void*)> memory(
          std::aligned_alloc(4096, bytes), std::free);
      for (int i = 0; i < 20; ++i) {
        const std::span<std::byte> into(static_cast<std::byte*>(memory.get()),
                                        bytes);
        EXPECT_TRUE(units.StartRead(u, into).ok());
        while (i % 3 == 0 && !units.Done(u)) std::this_thread::yield();
        const absl::Status read = units.Await(u);
        EXPECT_TRUE(read.ok()) << read;
      }
    });
  }
  NvmeJob state_only;
  std::int64_t wrong = 0;
  for (int step = 0; step < 3; ++step) {
    ASSERT_TRUE(state_only.UpdateState(**store, &wrong).ok());
    ASSERT_TRUE((*store)->Commit(NvmeJob::Record(step + 1)).ok());
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(NvmeStoreOnUring, SaysWhatItUses) {
  LayoutSpec spec;
  spec.groups = {{.name = "g"}};
  spec.units = {{.name = "u", .params = {{.name = "w", .shape = {100000}}}}};
  const Layout layout = *Layout::Create(spec);
  NvmeStoreOptions options = WithBackend(SmallNvmeOptions(), IoBackend::kUring);
  options.paths = {ScratchFolder("a")};
  options.job_name = "uring";
  auto store = CreateNvmeStore(layout, options);
  if (absl::IsUnavailable(store.status())) {
    GTEST_SKIP() << "io_uring is refused here: " << store.status();
  }
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_THAT((*store)->DescribeIo(), ::testing::HasSubstr("io_uring"));
}

}  // namespace
}  // namespace stowage::testing
