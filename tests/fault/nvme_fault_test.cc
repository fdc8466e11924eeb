// Faults of the device under a store on NVMe: what the caller is told, and that
// nothing wrong is computed on.
//
// Fault model: every transfer of a step in turn fails with EIO, ENOSPC or
// EFBIG, is short for good, or comes late; flushes and manifest writes fail;
// bytes change behind the store's back (a flipped bit, two extents swapped, an
// older manifest, both manifests damaged, a truncated file). After the cause is
// gone the job goes on from its last committed step.

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/nvme/fsck.h"
#include "storage/nvme/io_fault.h"
#include "storage/nvme/manifest.h"
#include "tests/support/nvme_job.h"
#include "tests/support/nvme_testing.h"
#include "tests/support/simulated_disk.h"

namespace stowage::testing {
namespace {

using storage::Fsck;
using storage::FsckFault;
using storage::FsckReport;
using storage::GetIoFault;
using storage::IoFault;
using storage::NvmeStore;
using storage::NvmeStoreOptions;
using ::testing::HasSubstr;

NvmeStoreOptions Options(SimulatedDisk* disk) {
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

// A store at step `step`.
std::unique_ptr<NvmeStore> StoreAt(const NvmeJob& job,
                                   const NvmeStoreOptions& options,
                                   std::int64_t step) {
  auto store = CreateNvmeStore(job.layout(), options);
  EXPECT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(job.Initialize(**store).ok());
  std::int64_t wrong = 0;
  for (std::int64_t s = 0; s < step; ++s) {
    EXPECT_TRUE(job.Step(**store, &wrong).ok());
  }
  EXPECT_EQ(wrong, 0);
  return *std::move(store);
}

struct FaultCase {
  const char* name;
  SimulatedDisk::Fault fault;
  absl::StatusCode code;
  int error;
};

class NvmeTransferFault : public ::testing::TestWithParam<FaultCase> {};

// Each request of a step fails in turn, for good.
TEST_P(NvmeTransferFault, StopsTheStepWithItsCauseAndLeavesTheLastOne) {
  const NvmeJob job;
  SimulatedDisk disk({.seed = 11});
  auto store = StoreAt(job, Options(&disk), 2);
  std::int64_t requests = 0;
  disk.InjectFaults([&](const SimulatedDisk::Request&) {
    ++requests;
    return SimulatedDisk::Fault{};
  });
  std::int64_t wrong = 0;
  ASSERT_TRUE(job.Step(*store, &wrong).ok());
  const std::int64_t per_step = requests;
  ASSERT_GT(per_step, 20);
  std::int64_t early = 0;
  for (std::int64_t at = 0; at < per_step; ++at) {
    SCOPED_TRACE(absl::StrCat("request ", at));
    std::int64_t step = store->committed().step;
    std::int64_t seen = 0;
    std::optional<SimulatedDisk::Request> hit;
    disk.InjectFaults([&](const SimulatedDisk::Request& request) {
      // What was asked again after a short transfer fails as well.
      const bool again = hit.has_value() && hit->write == request.write &&
                         hit->path == request.path &&
                         request.offset_bytes > hit->offset_bytes &&
                         request.offset_bytes < hit->offset_bytes + hit->bytes;
      if (again) return SimulatedDisk::Fault{.short_bytes = 0};
      if (seen++ != at) return SimulatedDisk::Fault{};
      hit = request;
      SimulatedDisk::Fault fault = GetParam().fault;
      if (fault.short_bytes > 0) fault.short_bytes = request.bytes / 1024 * 512;
      return fault;
    });
    absl::Status status = job.Step(*store, &wrong);
    ASSERT_TRUE(hit.has_value());
    if (status.ok()) {
      // A read for the next step, made early: that step stops.
      EXPECT_FALSE(hit->write);
      ++early;
      ++step;
      status = job.Step(*store, &wrong);
    }
    disk.InjectFaults(nullptr);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.code(), GetParam().code) << status;
    const std::optional<IoFault> fault = GetIoFault(status);
    ASSERT_TRUE(fault.has_value()) << status;
    EXPECT_EQ(fault->error, GetParam().error);
    EXPECT_EQ(fault->job, "job");
    EXPECT_EQ(fault->file, hit->path);
    EXPECT_EQ(fault->operation, hit->write ? "write" : "read");
    EXPECT_FALSE(fault->unit.empty());
    EXPECT_GE(fault->extent, 0);
    EXPECT_LE(fault->offset_bytes, hit->offset_bytes);
    EXPECT_GT(fault->offset_bytes + fault->bytes, hit->offset_bytes);
    EXPECT_THAT(std::string(status.message()), HasSubstr(hit->path));
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault->unit));
    ASSERT_TRUE(store->Abandon().ok());
    if (at % 8 == 0) job.Expect(*store, step);
    ASSERT_EQ(store->committed().step, step);
    // The cause is gone: the same step succeeds.
    status = job.Step(*store, &wrong);
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(early, 0);
  EXPECT_LT(early, per_step / 2);
  job.Expect(*store, 3 + per_step + early);
}

INSTANTIATE_TEST_SUITE_P(
    All, NvmeTransferFault,
    ::testing::Values(
        FaultCase{"Eio", {.error = EIO}, absl::StatusCode::kDataLoss, EIO},
        FaultCase{"Enospc",
                  {.error = ENOSPC},
                  absl::StatusCode::kResourceExhausted,
                  ENOSPC},
        FaultCase{"Efbig",
                  {.error = EFBIG},
                  absl::StatusCode::kResourceExhausted,
                  EFBIG},
        FaultCase{"DeviceGone",
                  {.error = ENODEV},
                  absl::StatusCode::kUnavailable,
                  ENODEV},
        FaultCase{
            "ShortAtOnce", {.short_bytes = 0}, absl::StatusCode::kDataLoss, 0},
        FaultCase{"ShortInTheMiddle",
                  {.short_bytes = 1},
                  absl::StatusCode::kDataLoss,
                  0}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST(NvmeFault, HidesLateReorderedAndShortTransfersAndFullQueues) {
  const NvmeJob job;
  SimulatedDisk disk({.seed = 12});
  auto store = StoreAt(job, Options(&disk), 0);
  MakeUnruly(&disk);
  std::int64_t wrong = 0;
  for (int step = 1; step <= 5; ++step) {
    ASSERT_TRUE(job.Step(*store, &wrong).ok());
    job.Expect(*store, step);
  }
  EXPECT_EQ(wrong, 0);
}

// The manifest or a flush fails: the commit is in doubt, and whichever a
// restart finds is whole. A retry must not touch what it refers to.
TEST(NvmeFault, KeepsAStepWholeWhenItsCommitIsInDoubt) {
  struct Case {
    const char* part;
    bool flush;
  };
  for (const Case& c : {Case{"/manifest", true}, Case{"/manifest", false},
                        Case{"/state.1", true}, Case{"/params.0", true}}) {
    SCOPED_TRACE(absl::StrCat(c.part, c.flush ? " flush" : " write"));
    const NvmeJob job;
    for (const bool power_cut : {false, true}) {
      SimulatedDisk disk({.seed = 13});
      auto store = StoreAt(job, Options(&disk), 3);
      const auto fail = [&](int error) {
        if (c.flush) {
          disk.FailFlush(c.part, error);
        } else {
          disk.FailWriteAt(c.part, error);
        }
      };
      fail(EIO);
      std::int64_t wrong = 0;
      absl::Status status = job.Step(*store, &wrong);
      ASSERT_FALSE(status.ok());
      const std::optional<IoFault> fault = GetIoFault(status);
      ASSERT_TRUE(fault.has_value()) << status;
      EXPECT_EQ(fault->error, EIO);
      EXPECT_TRUE(absl::StrContains(fault->file, c.part)) << fault->file;
      ASSERT_TRUE(store->Abandon().ok());
      job.Expect(*store, 3);
      if (absl::StrContains(c.part, "manifest")) {
        // Still broken: nothing may be written over the step in doubt.
        EXPECT_FALSE(job.Step(*store, &wrong).ok());
        EXPECT_TRUE(store->Abandon().ok());
      }
      fail(0);
      if (power_cut) {
        // While the step is done again.
        disk.CutPowerAt(disk.events() + 9);
        EXPECT_FALSE(job.Step(*store, &wrong).ok());
        store.reset();
        disk.Restart();
        auto opened = OpenNvmeStore(job.layout(), Options(&disk));
        ASSERT_TRUE(opened.ok()) << opened.status();
        const std::int64_t step = (*opened)->committed().step;
        EXPECT_TRUE(step == 3 || step == 4) << step;
        job.Expect(**opened, step);
      } else {
        status = job.Step(*store, &wrong);
        ASSERT_TRUE(status.ok()) << status;
        job.Expect(*store, 4);
      }
      EXPECT_EQ(wrong, 0);
    }
  }
}

// --- Bytes that change behind the store's back ----------------------------

constexpr char kState0[] = "/disk0/job.stowage/state.0";
constexpr char kState1[] = "/disk1/job.stowage/state.1";
constexpr char kParams0[] = "/disk0/job.stowage/params.0";
constexpr char kManifest[] = "/disk0/job.stowage/manifest";

// Where the last step's copy of the state extent lies in its file.
std::int64_t CurrentOffset(SimulatedDisk& disk, const Layout& layout,
                           std::int32_t extent) {
  auto slots = storage::ReadManifestFile(disk, kManifest);
  auto newest = slots->Newest(kManifest);
  const storage::ExtentMap map = storage::StateMap(layout, (*newest)->shape);
  return map.OffsetBytes(
      extent,
      (*newest)->commits.back().state.places[static_cast<std::size_t>(extent)]);
}

FsckReport MustFsck(SimulatedDisk& disk) {
  absl::StatusOr<FsckReport> report = Fsck("/disk0", "job", &disk);
  EXPECT_TRUE(report.ok()) << report.status();
  return *std::move(report);
}

TEST(NvmeTamper, AWholeStoreIsClean) {
  const NvmeJob job;
  SimulatedDisk disk({.seed = 14});
  ASSERT_TRUE(StoreAt(job, Options(&disk), 3)->Close().ok());
  const FsckReport report = MustFsck(disk);
  for (const FsckFault& fault : report.faults) {
    ADD_FAILURE() << ToString(fault);
  }
  EXPECT_EQ(report.info.commits.size(), 2U);
  EXPECT_EQ(report.info.commits.back(), NvmeJob::Record(3));
  EXPECT_GT(report.bytes_checked, 2 * job.layout().state_elems() * 12);
}

// Opens, runs a step, and expects it to be refused by a checksum of `unit`.
void ExpectRefusedStep(const NvmeJob& job, SimulatedDisk& disk,
                       const std::string& file) {
  auto store = OpenNvmeStore(job.layout(), Options(&disk));
  ASSERT_TRUE(store.ok()) << store.status();
  const std::int64_t step = (*store)->committed().step;
  std::int64_t wrong = 0;
  const absl::Status status = job.Step(**store, &wrong);
  ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_EQ(wrong, 0);  // nothing wrong was handed out
  const std::optional<IoFault> fault = GetIoFault(status);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->operation, "verify");
  EXPECT_EQ(fault->file, file);
  EXPECT_THAT(fault->detail, HasSubstr("checksum"));
  ASSERT_TRUE((*store)->Abandon().ok());
  EXPECT_EQ((*store)->committed().step, step);
  // The step before it is whole: its bytes lie elsewhere.
  ASSERT_TRUE((*store)->Rewind(step - 1).ok());
  job.Expect(**store, step - 1);
  ASSERT_TRUE(job.Step(**store, &wrong).ok());
  EXPECT_EQ(wrong, 0);
}

TEST(NvmeTamper, AFlippedBitIsNamedAndNotComputedOn) {
  const NvmeJob job;
  SimulatedDisk disk({.seed = 15});
  ASSERT_TRUE(StoreAt(job, Options(&disk), 3)->Close().ok());
  const std::int64_t at = CurrentOffset(disk, job.layout(), 0) + 12345;
  std::string bytes = disk.Contents(kState0);
  bytes[static_cast<std::size_t>(at)] ^= 0x10;
  disk.SetContents(kState0, bytes);
  const FsckReport report = MustFsck(disk);
  ASSERT_EQ(report.faults.size(), 1U);
  const FsckFault& fault = report.faults[0];
  EXPECT_EQ(fault.severity, FsckFault::Severity::kState);
  EXPECT_EQ(fault.file, kState0);
  EXPECT_EQ(fault.unit, "embed0");
  EXPECT_EQ(fault.extent, 0);
  EXPECT_EQ(fault.step, 3);
  EXPECT_LE(fault.offset_bytes, at);
  EXPECT_GT(fault.offset_bytes + fault.bytes, at);
  EXPECT_THAT(ToString(fault), HasSubstr("checksum"));
  ExpectRefusedStep(job, disk, kState0);
}

TEST(NvmeTamper, AFlippedBitInParametersIsNamed) {
  const NvmeJob job;
  SimulatedDisk disk({.seed = 16});
  ASSERT_TRUE(StoreAt(job, Options(&disk), 2)->Close().ok());
  std::string bytes = disk.Contents(kParams0);
  // Every place of the first extent.
  for (std::size_t at = 77; at < bytes.size(); at += 4096) bytes[at] ^= 1;
  disk.SetContents(kParams0, bytes);
  EXPECT_FALSE(MustFsck(disk).faults.empty());
  auto store = OpenNvmeStore(job.layout(), Options(&disk));
  ASSERT_TRUE(store.ok());
  const auto size =
      static_cast<std::size_t>((*store)->params()->payload_bytes(0));
  std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(4096, size),
                                                std::free);
  ASSERT_TRUE((*store)
                  ->params()
                  ->StartRead(0, {static_cast<std::byte*>(memory.get()), size})
                  .ok());
  const absl::Status status = (*store)->params()->Await(0);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_EQ(GetIoFault(status)->unit, "embed0");
}

TEST(NvmeTamper, TwoSwappedExtentsAreNamed) {
  const NvmeJob job(2);
  SimulatedDisk disk({.seed = 17});
  ASSERT_TRUE(StoreAt(job, Options(&disk), 3)->Close().ok());
  const storage::ExtentMap map = storage::StateMap(
      job.layout(),
      (*storage::ReadManifestFile(disk, kManifest)->Newest(kManifest))->shape);
  // Two extents of one size in one file: the same unit of both copies.
  std::int32_t first = -1;
  std::int32_t second = -1;
  for (std::int32_t a = 0;
       a < static_cast<std::int32_t>(map.extents().size()) && second < 0; ++a) {
    for (std::int32_t b = a + 1;
         b < static_cast<std::int32_t>(map.extents().size()); ++b) {
      if (map.extent(a).file == map.extent(b).file &&
          map.extent(a).bytes == map.extent(b).bytes) {
        first = a;
        second = b;
        break;
      }
    }
  }
  ASSERT_GE(second, 0);
  const char* file = map.extent(first).file == 0 ? kState0 : kState1;
  std::string bytes = disk.Contents(file);
  const auto size = static_cast<std::size_t>(map.extent(first).bytes);
  const auto one =
      static_cast<std::size_t>(CurrentOffset(disk, job.layout(), first));
  const auto two =
      static_cast<std::size_t>(CurrentOffset(disk, job.layout(), second));
  const std::string kept = bytes.substr(one, size);
  bytes.replace(one, size, bytes.substr(two, size));
  bytes.replace(two, size, kept);
  disk.SetContents(file, bytes);
  const FsckReport report = MustFsck(disk);
  std::vector<std::int64_t> extents;
  for (const FsckFault& fault : report.faults) extents.push_back(fault.extent);
  EXPECT_THAT(extents, ::testing::Contains(first));
  EXPECT_THAT(extents, ::testing::Contains(second));
  ExpectRefusedStep(job, disk, file);
}

TEST(NvmeTamper, AStaleManifestIsRefusedByChecksums) {
  const NvmeJob job;
  SimulatedDisk disk({.seed = 18});
  auto store = StoreAt(job, Options(&disk), 1);
  const std::string stale = disk.Contents(kManifest);
  std::int64_t wrong = 0;
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(job.Step(*store, &wrong).ok());
  ASSERT_TRUE(store->Close().ok());
  store.reset();
  disk.SetContents(kManifest, stale);
  const FsckReport report = MustFsck(disk);
  ASSERT_FALSE(report.faults.empty());
  EXPECT_EQ(report.faults[0].severity, FsckFault::Severity::kState);
  auto opened = OpenNvmeStore(job.layout(), Options(&disk));
  ASSERT_TRUE(opened.ok());
  const absl::Status status = job.Step(**opened, &wrong);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_EQ(wrong, 0);
}

TEST(NvmeTamper, OneBadManifestCostsAtMostAStepAndBothAreNamed) {
  const NvmeJob job;
  SimulatedDisk disk({.seed = 19});
  ASSERT_TRUE(StoreAt(job, Options(&disk), 3)->Close().ok());
  const std::string good = disk.Contents(kManifest);
  for (std::size_t slot = 0; slot < 2; ++slot) {
    std::string bytes = good;
    bytes[slot * good.size() / 2 + 100] ^= 4;
    disk.SetContents(kManifest, bytes);
    auto store = OpenNvmeStore(job.layout(), Options(&disk));
    ASSERT_TRUE(store.ok()) << store.status();
    const std::int64_t step = (*store)->committed().step;
    EXPECT_TRUE(step == 3 || step == 2);
    job.Expect(**store, step);
    store->reset();
    const FsckReport report = MustFsck(disk);
    ASSERT_EQ(report.faults.size(), 1U);
    EXPECT_EQ(report.faults[0].severity, FsckFault::Severity::kNote);
    EXPECT_THAT(report.faults[0].what, HasSubstr("torn or damaged"));
  }
  std::string bytes = good;
  bytes[100] ^= 4;
  bytes[good.size() / 2 + 100] ^= 4;
  disk.SetContents(kManifest, bytes);
  auto store = OpenNvmeStore(job.layout(), Options(&disk));
  EXPECT_EQ(store.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(store.status().message()),
              ::testing::AllOf(HasSubstr(kManifest), HasSubstr("slot 0"),
                               HasSubstr("slot 1")));
  EXPECT_EQ(MustFsck(disk).faults.size(), 2U);
}

TEST(NvmeTamper, ATruncatedFileIsNamed) {
  const NvmeJob job;
  for (const char* file : {kState0, kParams0, kManifest}) {
    SCOPED_TRACE(file);
    SimulatedDisk disk({.seed = 20});
    ASSERT_TRUE(StoreAt(job, Options(&disk), 3)->Close().ok());
    std::string bytes = disk.Contents(file);
    bytes.resize(bytes.size() / 3);
    disk.SetContents(file, bytes);
    const FsckReport report = MustFsck(disk);
    ASSERT_FALSE(report.faults.empty());
    EXPECT_EQ(report.faults[0].file, file);
    auto store = OpenNvmeStore(job.layout(), Options(&disk));
    if (std::string(file) == kManifest) {
      // Its first slot may be the newest still.
      continue;
    }
    EXPECT_EQ(store.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(store.status().message()), HasSubstr("truncated"));
  }
}

TEST(NvmeTamper, ANewerFormatIsRefusedNotGuessed) {
  const NvmeJob job;
  SimulatedDisk disk({.seed = 21});
  ASSERT_TRUE(StoreAt(job, Options(&disk), 1)->Close().ok());
  std::string bytes = disk.Contents(kManifest);
  bytes[8] = 2;
  bytes[bytes.size() / 2 + 8] = 2;
  disk.SetContents(kManifest, bytes);
  EXPECT_EQ(OpenNvmeStore(job.layout(), Options(&disk)).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(Fsck("/disk0", "job", &disk).status().code(),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace stowage::testing
