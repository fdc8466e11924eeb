// The NVMe store under the contract of all stores: on the simulated disk with
// odd alignments, full queues, short and late transfers, and on real files by
// io_uring and by the fallback; with and without a cache, with one window in
// memory and with many.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "storage/host/memory_budget.h"
#include "storage/nvme/nvme_store.h"
#include "tests/contract/state_store_contract.h"
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
