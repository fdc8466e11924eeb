// Real faults of a real file system under a store on NVMe.
//
// Fault model: the process's file size limit (EFBIG), a file system without
// room (ENOSPC at admission), files truncated while the store has them open and
// while it has not, a second opener, a memlock limit too small for registered
// buffers. A full file system needs a mount of its own; where that is not
// permitted the test skips and says so.

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/nvme/fsck.h"
#include "storage/nvme/io_fault.h"
#include "tests/support/nvme_job.h"
#include "tests/support/nvme_testing.h"

namespace stowage::testing {
namespace {

using storage::GetIoFault;
using storage::IoBackend;
using storage::IoFault;
using storage::NvmeStoreOptions;
using ::testing::HasSubstr;

NvmeStoreOptions Options(const std::string& job, IoBackend backend) {
  NvmeStoreOptions options = SmallNvmeOptions();
  options.job_name = job;
  options.paths = {ScratchFolder("faults")};
  options.durability = Durability::kPower;
  options.kept_versions = 2;
  options.window_elems = 1;
  options.slots = 3;
  options.params = true;
  options.backend = backend;
  options.threads = 2;
  return options;
}

class NvmeRealFault : public ::testing::TestWithParam<IoBackend> {
 protected:
  static std::string JobName(const std::string& name) {
    return name + (GetParam() == IoBackend::kPool ? "-pool" : "-auto");
  }
};

TEST_P(NvmeRealFault, AFileSizeLimitIsEfbigWithUnitAndFile) {
  const NvmeJob job;
  const NvmeStoreOptions options = Options(JobName("efbig"), GetParam());
  auto store = CreateNvmeStore(job.layout(), options);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE(job.Initialize(**store).ok());
  std::int64_t wrong = 0;
  ASSERT_TRUE(job.Step(**store, &wrong).ok());
  // As a service manager would set it, below where the next step is written.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit tight = before;
  tight.rlim_cur = 4 << 20;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const absl::Status status = job.Step(**store, &wrong);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  const std::optional<IoFault> fault = GetIoFault(status);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->error, EFBIG);
  EXPECT_EQ(fault->operation, "write");
  EXPECT_THAT(fault->file, HasSubstr(JobName("efbig") + ".stowage/"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("file size limit"));
  ASSERT_TRUE((*store)->Abandon().ok());
  job.Expect(**store, 1);
  ASSERT_TRUE(job.Step(**store, &wrong).ok());
  EXPECT_EQ(wrong, 0);
  job.Expect(**store, 2);
}

TEST_P(NvmeRealFault, ATruncatedFileIsNeverZeroesOrSuccess) {
  const NvmeJob job;
  const NvmeStoreOptions options = Options(JobName("truncated"), GetParam());
  const std::string file =
      options.paths[0] + "/" + options.job_name + ".stowage/state.0";
  auto store = CreateNvmeStore(job.layout(), options);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE(job.Initialize(**store).ok());
  std::int64_t wrong = 0;
  ASSERT_TRUE(job.Step(**store, &wrong).ok());
  ASSERT_EQ(::truncate(file.c_str(), 100000), 0);
  const absl::Status status = job.Step(**store, &wrong);
  ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_EQ(wrong, 0);
  const std::optional<IoFault> fault = GetIoFault(status);
  ASSERT_TRUE(fault.has_value()) << status;
  EXPECT_EQ(fault->file, file);
  ASSERT_TRUE((*store)->Abandon().ok());
  store->reset();
  store = OpenNvmeStore(job.layout(), options);
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("truncated"));
  auto report = storage::Fsck(options.paths[0], options.job_name);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->faults.empty());
}

INSTANTIATE_TEST_SUITE_P(Backends, NvmeRealFault,
                         ::testing::Values(IoBackend::kAuto, IoBackend::kPool),
                         [](const auto& instance) {
                           return instance.param == IoBackend::kPool ? "Pool"
                                                                     : "Auto";
                         });

// --- What containers take away; each in a process of its own ----------------

// As a seccomp profile does: io_uring_setup is EPERM from here on.
void RefuseIoUring() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program = {.len = 4, .filter = code};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    std::_Exit(77);
  }
}

// An ordinary user's limit: 64 KiB, and no right to pass it.
void AllowLittleLocking() {
  const rlimit little{.rlim_cur = 64 << 10, .rlim_max = 64 << 10};
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3,
                                  .pid = 0};
  __user_cap_data_struct none[2] = {};
  if (::setrlimit(RLIMIT_MEMLOCK, &little) != 0 ||
      ::syscall(SYS_capset, &header, none) != 0) {
    std::_Exit(77);
  }
}

// Runs a few steps and says how the store did its I/O.
[[noreturn]] void RunAndDescribe(const std::string& name) {
  const NvmeJob job;
  auto store = CreateNvmeStore(job.layout(), Options(name, IoBackend::kAuto));
  std::int64_t wrong = 0;
  if (!store.ok() || !job.Initialize(**store).ok() ||
      !job.Step(**store, &wrong).ok() || !job.Step(**store, &wrong).ok() ||
      wrong != 0) {
    std::fprintf(stderr, "failed: %s\n", store.status().ToString().c_str());
    std::_Exit(1);
  }
  std::fprintf(stderr, "%s\n", (*store)->DescribeIo().c_str());
  std::_Exit(0);
}

TEST(NvmeFallback, TakesThePoolWhereIoUringIsRefused) {
  ::testing::FLAGS_gtest_death_test_style = "fast";
  ScratchFolder("faults");  // this process's to remove
  EXPECT_EXIT(
      {
        RefuseIoUring();
        RunAndDescribe("refused");
      },
      ::testing::ExitedWithCode(0),
      ::testing::AllOf(HasSubstr("io_uring_refused"), HasSubstr("pread")));
}

TEST(NvmeFallback, GoesOnUnregisteredWhereMemoryMayNotBeLocked) {
  ::testing::FLAGS_gtest_death_test_style = "fast";
  {
    const NvmeJob job;
    auto probe =
        CreateNvmeStore(job.layout(), Options("probe", IoBackend::kUring));
    if (absl::IsUnavailable(probe.status())) {
      GTEST_SKIP() << "io_uring is refused here: " << probe.status();
    }
  }
  EXPECT_EXIT(
      {
        AllowLittleLocking();
        RunAndDescribe("unlocked");
      },
      ::testing::ExitedWithCode(0),
      ::testing::AllOf(HasSubstr("io_buffers_not_registered"),
                       HasSubstr("unregistered buffers")));
}

TEST(NvmeAdmission, SaysWhatSpaceIsMissing) {
  const NvmeJob job;
  NvmeStoreOptions options = Options("space", IoBackend::kAuto);
  // More than any file system of the machine that runs this.
  LayoutSpec spec;
  spec.groups = {{.name = "g"}};
  spec.units = {
      {.name = "huge", .params = {{.name = "w", .shape = {1 << 18, 1 << 18}}}}};
  const Layout layout = *Layout::Create(spec);
  const std::int64_t need = storage::NvmeSpaceBytes(layout, options);
  EXPECT_GT(need, 36 * layout.state_elems());
  auto store = CreateNvmeStore(layout, options);
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), absl::StatusCode::kResourceExhausted)
      << store.status();
  EXPECT_FALSE(std::filesystem::exists(options.paths[0] + "/space.stowage"));
}

TEST(NvmeAdmission, RefusesASmallFullFileSystemWithItsFreeBytes) {
  const std::string folder = ScratchFolder("small");
  if (::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=8m") != 0) {
    GTEST_SKIP() << "mount: " << std::strerror(errno)  // NOLINT: one thread
                 << "; a full file system cannot be made here";
  }
  const NvmeJob job;
  NvmeStoreOptions options = Options("full", IoBackend::kPool);
  options.paths = {folder};
  auto store = CreateNvmeStore(job.layout(), options);
  const bool left = std::filesystem::exists(folder + "/full.stowage");
  EXPECT_EQ(::umount(folder.c_str()), 0);
  EXPECT_EQ(store.status().code(), absl::StatusCode::kResourceExhausted)
      << store.status();
  EXPECT_THAT(std::string(store.status().message()),
              ::testing::AllOf(HasSubstr("free are"), HasSubstr(folder)));
  EXPECT_FALSE(left);
}

TEST(NvmeAdmission, RefusesASecondOpener) {
  const NvmeJob job;
  const NvmeStoreOptions options = Options("twice", IoBackend::kAuto);
  auto store = CreateNvmeStore(job.layout(), options);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE(job.Initialize(**store).ok());
  EXPECT_EQ(OpenNvmeStore(job.layout(), options).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(storage::Fsck(options.paths[0], "twice").status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CreateNvmeStore(job.layout(), options).status().code(),
            absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE((*store)->Close().ok());
  auto again = OpenNvmeStore(job.layout(), options);
  ASSERT_TRUE(again.ok()) << again.status();
  job.Expect(**again, 0);
}

}  // namespace
}  // namespace stowage::testing
