#include "storage/host/segment_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::storage {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class SegmentFolderTest : public ::testing::Test {
 protected:
  SegmentFolderTest() {
    char name[] = "/dev/shm/stowage-test-XXXXXX";
    EXPECT_NE(::mkdtemp(name), nullptr);
    base_ = name;
  }
  ~SegmentFolderTest() override { fs::remove_all(base_); }

  std::set<std::string> Files(const std::string& folder) {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) {
      names.insert(entry.path().filename());
    }
    return names;
  }
  static void Touch(const std::string& path) { std::ofstream(path) << "x"; }

  std::string base_;
};

TEST_F(SegmentFolderTest, MakesAPrivateFolderAndRemovesItsLock) {
  const std::string path = base_ + "/shm";
  {
    auto folder = SegmentFolder::Create(path, "one");
    ASSERT_TRUE(folder.ok()) << folder.status();
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777U, 0700U);
    EXPECT_EQ(Files(path), std::set<std::string>{"stowage-one.lock"});
    EXPECT_NE((*folder)->NewName("grad"), (*folder)->NewName("grad"));
    EXPECT_GT((*folder)->FreeBytes(), 0);
  }
  EXPECT_TRUE(Files(path).empty());
}

TEST_F(SegmentFolderTest, RefusesFoldersThatOthersCanReach) {
  struct Case {
    const char* name;
    absl::StatusCode code;
  };
  ASSERT_EQ(::mkdir((base_ + "/open").c_str(), 0700), 0);
  ASSERT_EQ(::chmod((base_ + "/open").c_str(), 0755), 0);
  ASSERT_EQ(::mkdir((base_ + "/real").c_str(), 0700), 0);
  fs::create_directory_symlink(base_ + "/real", base_ + "/link");
  Touch(base_ + "/file");
  for (const Case& c : {Case{"/open", absl::StatusCode::kPermissionDenied},
                        Case{"/link", absl::StatusCode::kPermissionDenied},
                        Case{"/file", absl::StatusCode::kPermissionDenied},
                        Case{"/no/parent", absl::StatusCode::kNotFound}}) {
    const auto folder = SegmentFolder::Create(base_ + c.name, "one");
    EXPECT_EQ(folder.status().code(), c.code) << folder.status();
    EXPECT_THAT(std::string(folder.status().message()),
                HasSubstr(base_ + c.name));
  }
}

TEST_F(SegmentFolderTest, RefusesBadArguments) {
  for (const char* path : {"", "relative/path"}) {
    EXPECT_EQ(SegmentFolder::Create(path, "one").status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  for (const std::string& id :
       {std::string(), std::string("a/b"), std::string("a-b"),
        std::string("a.b"), std::string(65, 'a')}) {
    EXPECT_EQ(SegmentFolder::Create(base_, id).status().code(),
              absl::StatusCode::kInvalidArgument)
        << id;
  }
}

TEST_F(SegmentFolderTest, RefusesAnIdThatIsLive) {
  auto first = SegmentFolder::Create(base_, "one");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(SegmentFolder::Create(base_, "one").status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST_F(SegmentFolderTest, RemovesFilesOfDeadServersOnly) {
  auto live = SegmentFolder::Create(base_, "live");
  ASSERT_TRUE(live.ok());
  Touch(base_ + "/stowage-live-00.grad");
  Touch(base_ + "/stowage-dead-00.grad");
  Touch(base_ + "/stowage-dead-01.param");
  Touch(base_ + "/stowage-dead.lock");
  Touch(base_ + "/stowage-nolock-00.param");
  Touch(base_ + "/somebody-elses-file");
  Touch(base_ + "/stowage-");
  auto folder = SegmentFolder::Create(base_, "new");
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(Files(base_),
            (std::set<std::string>{"stowage-live.lock", "stowage-live-00.grad",
                                   "stowage-new.lock", "somebody-elses-file",
                                   "stowage-"}));
}

TEST_F(SegmentFolderTest, RemovesWhatAKilledServerLeft) {
  const pid_t child = ::fork();
  if (child == 0) {
    auto folder = SegmentFolder::Create(base_, "killed");
    Touch(base_ + "/" + (*folder)->NewName("param"));
    ::_exit(0);  // no destructors, as after SIGKILL
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(Files(base_).size(), 2U);
  auto folder = SegmentFolder::Create(base_, "new");
  ASSERT_TRUE(folder.ok());
  EXPECT_EQ(Files(base_), std::set<std::string>{"stowage-new.lock"});
}

}  // namespace
}  // namespace stowage::storage
