#include "server/server_config.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/memory_limit.h"

namespace stowage {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<ServerConfig> Load(std::vector<std::string> flags,
                                  std::string* printed = nullptr) {
  flags.insert(flags.begin(), "stowd");
  std::vector<char*> argv;
  for (std::string& flag : flags) argv.push_back(flag.data());
  std::string ignored;
  return LoadServerConfig(static_cast<int>(argv.size()), argv.data(),
                          printed != nullptr ? printed : &ignored);
}

class ServerConfigFile : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = absl::StrCat(::testing::TempDir(), "/stowd-config-", ::getpid());
  }
  void TearDown() override { ::unlink(path_.c_str()); }
  absl::StatusOr<ServerConfig> LoadFile(const std::string& text,
                                        std::vector<std::string> flags = {}) {
    std::ofstream(path_) << text;
    flags.insert(flags.begin(), {"--config", path_});
    return Load(flags);
  }
  std::string path_;
};

TEST(ServerConfig, DefaultsAreComplete) {
  const auto config = Load({});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->listen, HasSubstr("unix:/"));
  EXPECT_EQ(config->shm_dir, absl::StrCat("/dev/shm/stowage-", ::geteuid()));
  EXPECT_GE(config->memory_limit_bytes, 16 * kMiB);
  EXPECT_EQ(config->threads, 0);
  EXPECT_TRUE(config->lock_memory);
  EXPECT_EQ(config->log_level, "info");
  EXPECT_EQ(config->sessions_max, 512);
  EXPECT_EQ(config->jobs_max, 1024);
  EXPECT_EQ(config->parent_fd, -1);
}

TEST(ServerConfig, ReadsEveryFlag) {
  const auto config = Load({"--listen",
                            "127.0.0.1:0",
                            "--shm-dir",
                            "/dev/shm/x",
                            "--memory-limit",
                            "32MiB",
                            "--threads",
                            "3",
                            "--no-mlock",
                            "--isa",
                            "portable",
                            "--log-level",
                            "error",
                            "--max-sessions",
                            "9",
                            "--max-jobs",
                            "7",
                            "--exit-with-parent-fd",
                            "3",
                            "--nvme-root",
                            "/a",
                            "--nvme-root",
                            "/b",
                            "--export-root",
                            "/c"});
  // Descriptor 3 may or may not be open in a test: the only allowed complaint.
  if (!config.ok()) {
    EXPECT_THAT(std::string(config.status().message()),
                HasSubstr("not an open descriptor"));
    return;
  }
  EXPECT_EQ(config->listen, "127.0.0.1:0");
  EXPECT_EQ(config->shm_dir, "/dev/shm/x");
  EXPECT_EQ(config->memory_limit_bytes, 32 * kMiB);
  EXPECT_EQ(config->threads, 3);
  EXPECT_FALSE(config->lock_memory);
  EXPECT_EQ(config->isa, "portable");
  EXPECT_EQ(config->log_level, "error");
  EXPECT_EQ(config->sessions_max, 9);
  EXPECT_EQ(config->jobs_max, 7);
  EXPECT_THAT(config->nvme_roots, ElementsAre("/a", "/b"));
  EXPECT_THAT(config->export_roots, ElementsAre("/c"));
}

TEST(ServerConfig, SaysWhatIsWrongWithAFlag) {
  struct Case {
    std::vector<std::string> flags;
    const char* says;
  };
  for (const Case& c : std::vector<Case>{
           {{"--listen", "nonsense"}, "--listen: address \"nonsense\""},
           {{"--listen", "unix:relative"}, "must be absolute"},
           {{"--memory-limit", "lots"}, "--memory-limit"},
           {{"--memory-limit", "1MiB"}, "less than 16.0 MiB"},
           {{"--memory-limit", "900000GiB"}, "this machine or cgroup has"},
           {{"--threads", "-1"}, "whole number from 0 to 1024"},
           {{"--threads", "2.5"}, "whole number"},
           {{"--threads", "many"}, "\"many\""},
           {{"--max-sessions", "0"}, "from 1 to 4096"},
           {{"--max-jobs", "65537"}, "from 1 to 65536"},
           {{"--isa", "sse2"}, "expected avx512, avx2, portable"},
           {{"--log-level", "loud"}, "debug, info, warning, error"},
           {{"--exit-with-parent-fd", "1"}, "from 3"},
           {{"--exit-with-parent-fd", "987654"}, "not an open descriptor"},
           {{"--nvme-root", "relative"}, "not an absolute path"},
           {{"--shm-dir", "relative"}, "not an absolute path"},
           {{"--listen", "unix:/x/y/s.sock", "--shm-dir", "/x/y"},
            "folder of the socket"},
           {{"--no-such-flag"}, "stowd --help"},
           {{"--config", "/no/such/file"}, "/no/such/file"}}) {
    const auto config = Load(c.flags);
    ASSERT_FALSE(config.ok()) << c.says;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(c.says));
  }
}

TEST(ServerConfig, HelpTeachesAndVersionIsOneLine) {
  std::string printed;
  ASSERT_TRUE(Load({"--help"}, &printed).ok());
  for (const char* word : {"--listen", "--memory-limit", "Exit codes",
                           "--exit-with-parent-fd", "Default"}) {
    EXPECT_THAT(printed, HasSubstr(word));
  }
  ASSERT_TRUE(Load({"--version"}, &printed).ok());
  EXPECT_THAT(printed, ::testing::MatchesRegex("stowd [0-9.]+\n"));
}

TEST_F(ServerConfigFile, GivesValuesThatFlagsOverrule) {
  const auto config = LoadFile(
      R"({ // comments are fine
        "listen": "127.0.0.1:7070", "memory_limit": "64MiB", "threads": 2,
        "no_mlock": true, "nvme_root": ["/n1", "/n2"], "max_jobs": 5})",
      {"--threads", "4"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->listen, "127.0.0.1:7070");
  EXPECT_EQ(config->memory_limit_bytes, 64 * kMiB);
  EXPECT_EQ(config->threads, 4);
  EXPECT_FALSE(config->lock_memory);
  EXPECT_THAT(config->nvme_roots, ElementsAre("/n1", "/n2"));
  EXPECT_EQ(config->jobs_max, 5);
}

TEST_F(ServerConfigFile, SaysWhatIsWrongInIt) {
  struct Case {
    const char* text;
    const char* says;
  };
  for (const Case& c : std::vector<Case>{
           {"{\n  \"threads\": 2,,\n}", "line 2, column 16"},
           {"", "not JSON at line 1, column 1"},
           {"[1]", "not an object"},
           {R"({"memory_limits": 1})", "nearest: \"memory_limit\""},
           {R"({"exit_with_parent_fd": 5})", "unknown key"},
           {R"({"threads": "2"})", "\"threads\": expected a whole number"},
           {R"({"threads": 2.0})", "expected a whole number"},
           {R"({"threads": 99999})", "from 0 to 1024"},
           {R"({"threads": 99999999999999999999999})", "whole number"},
           {R"({"no_mlock": 1})", "expected true or false"},
           {R"({"listen": null})", "expected a string"},
           {R"({"memory_limit": true})", "expected bytes"},
           {R"({"memory_limit": -5})", "memory_limit"},
           {R"({"nvme_root": "/a"})", "array of strings"},
           {R"({"nvme_root": [1]})", "array of strings"}}) {
    const auto config = LoadFile(c.text);
    ASSERT_FALSE(config.ok()) << c.text;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(c.says));
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(path_));
  }
}

class MemoryLimit : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/stowage-memory-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    root_ = name;
    Write("/proc/meminfo",
          "MemTotal: 1000 kB\nMemFree: 1 kB\n"
          "MemAvailable: 500 kB\n");
  }
  void TearDown() override {
    ASSERT_EQ(std::system(absl::StrCat("rm -rf ", root_).c_str()), 0);
  }
  void Write(const std::string& path, const std::string& text) {
    const std::string full = root_ + path;
    ASSERT_EQ(
        std::system(
            absl::StrCat("mkdir -p ", full.substr(0, full.rfind('/'))).c_str()),
        0);
    std::ofstream(full) << text;
  }
  std::string root_;
};

TEST_F(MemoryLimit, IsTheMachinesWithoutACgroup) {
  const auto view = ReadMemoryView(root_);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->total_bytes, 1000 * 1024);
  EXPECT_EQ(view->available_bytes, 500 * 1024);
  EXPECT_EQ(DefaultMemoryLimit(*view), 500 * 1024 / 10 * 8);
}

TEST_F(MemoryLimit, IsTheTightestCgroups) {
  Write("/proc/self/cgroup", "0::/a/b\n");
  Write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  Write("/sys/fs/cgroup/a/b/memory.current", "1\n");
  Write("/sys/fs/cgroup/a/memory.max", "300000\n");
  Write("/sys/fs/cgroup/a/memory.current", "100000\n");
  const auto view = ReadMemoryView(root_);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->total_bytes, 300000);
  EXPECT_EQ(view->available_bytes, 200000);
}

TEST_F(MemoryLimit, KnowsTheFirstVersionOfCgroups) {
  Write("/proc/self/cgroup", "7:cpu:/x\n5:memory:/job\n");
  Write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "250000\n");
  Write("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "260000\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  const auto view = ReadMemoryView(root_);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->total_bytes, 250000);
  EXPECT_EQ(view->available_bytes, 0);
}

TEST_F(MemoryLimit, NeedsMeminfo) {
  Write("/proc/meminfo", "nothing\n");
  EXPECT_FALSE(ReadMemoryView(root_).ok());
}

}  // namespace
}  // namespace stowage
