#include "engine/monitor/monitor.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/config/document.h"
#include "engine/config/json_reader.h"
#include "engine/monitor/append_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::engine::monitor {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "stowage-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { fs::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(PythonRepr, PrintsAsPythonDoes) {
  const std::vector<std::pair<double, const char*>> cases = {
      {0.0, "0.0"},
      {-0.0, "-0.0"},
      {1.0, "1.0"},
      {0.001, "0.001"},
      {0.0001, "0.0001"},
      {0.00001, "1e-05"},
      {3e-05, "3e-05"},
      {1.5e-7, "1.5e-07"},
      {0.1 + 0.2, "0.30000000000000004"},
      {65536.0, "65536.0"},
      {123456.789, "123456.789"},
      {-2.5, "-2.5"},
      {1e15, "1000000000000000.0"},
      {1e16, "1e+16"},
      {1.2345e+100, "1.2345e+100"},
      {5e-324, "5e-324"},
      {1.7976931348623157e308, "1.7976931348623157e+308"},
      {std::numeric_limits<double>::infinity(), "inf"},
      {-std::numeric_limits<double>::infinity(), "-inf"},
      {std::numeric_limits<double>::quiet_NaN(), "nan"}};
  for (const auto& [value, text] : cases) EXPECT_EQ(PythonRepr(value), text);
}

TEST(CsvMonitor, WritesWhatTheReferenceSays) {
  const Folder folder;
  const MonitorDirectory directory{folder.path() + "/out", "job"};
  {
    auto monitor = CreateCsvMonitor(directory);
    ASSERT_TRUE(monitor.ok()) << monitor.status().ToString();
    const std::vector<Event> first = {{kEventLr, 1e-5, 24, false},
                                      {kEventLossScale, 65536, 24, true}};
    const std::vector<Event> second = {{kEventLr, 0.001, 48, false},
                                       {kEventLossScale, 32768, 48, false},
                                       {"my event", 2, 48, false}};
    ASSERT_TRUE((*monitor)->WriteEvents(first).ok());
    ASSERT_TRUE((*monitor)->WriteEvents(second).ok());
  }
  const std::string base = folder.path() + "/out/job/";
  EXPECT_EQ(ReadAll(base + "Train_Samples_lr.csv"),
            "step,lr\r\n24,1e-05\r\n48,0.001\r\n");
  EXPECT_EQ(ReadAll(base + "Train_Samples_loss_scale.csv"),
            "step,loss_scale\r\n24,65536\r\n48,32768.0\r\n");
  EXPECT_EQ(ReadAll(base + "my_event.csv"), "step,my event\r\n48,2.0\r\n");

  // Another process: the header again, in the middle.
  auto again = CreateCsvMonitor(directory);
  ASSERT_TRUE(again.ok());
  const std::vector<Event> third = {{kEventLr, 0.5, 72, false}};
  ASSERT_TRUE((*again)->WriteEvents(third).ok());
  EXPECT_EQ(ReadAll(base + "Train_Samples_lr.csv"),
            "step,lr\r\n24,1e-05\r\n48,0.001\r\nstep,lr\r\n72,0.5\r\n");
}

TEST(CsvMonitor, EmptyOutputPathIsTheWorkingFolder) {
  EXPECT_EQ((MonitorDirectory{"", "job"}).Path(), "job");
  EXPECT_EQ((MonitorDirectory{"out", "job"}).Path(), "out/job");
  EXPECT_EQ((MonitorDirectory{"out/", "job"}).Path(), "out/job");
  EXPECT_EQ((MonitorDirectory{"out", ""}).Path(), "out");
  EXPECT_EQ((MonitorDirectory{"", ""}).Path(), ".");
}

TEST(CsvMonitor, SaysWhichFolderCannotBeMade) {
  const Folder folder;
  std::ofstream(folder.path() + "/file") << "x";
  const auto monitor = CreateCsvMonitor({folder.path() + "/file", "job"});
  ASSERT_FALSE(monitor.ok());
  EXPECT_THAT(std::string(monitor.status().message()),
              HasSubstr(folder.path() + "/file/job"));
}

TEST(CsvMonitor, AFailedWriteIsSaidAndTheNextTriesAgain) {
  const Folder folder;
  auto monitor = CreateCsvMonitor({folder.path(), "job"});
  ASSERT_TRUE(monitor.ok());
  fs::remove_all(folder.path() + "/job");
  const std::vector<Event> events = {{kEventLr, 1, 1, false}};
  EXPECT_THAT(std::string((*monitor)->WriteEvents(events).message()),
              HasSubstr("Train_Samples_lr.csv"));
  fs::create_directories(folder.path() + "/job");
  EXPECT_TRUE((*monitor)->WriteEvents(events).ok());
  EXPECT_EQ(ReadAll(folder.path() + "/job/Train_Samples_lr.csv"),
            "step,lr\r\n1,1.0\r\n");
}

TEST(JsonlMonitor, OneObjectPerX) {
  const Folder folder;
  auto monitor = CreateJsonlMonitor({folder.path(), "job"});
  ASSERT_TRUE(monitor.ok());
  const std::vector<Event> events = {
      {kEventLr, 0.001, 24, false},
      {kEventTrainLoss, std::numeric_limits<double>::quiet_NaN(), 24, false},
      {kEventLr, 0.002, 48, false}};
  ASSERT_TRUE((*monitor)->WriteEvents(events).ok());
  ASSERT_TRUE((*monitor)->WriteEvents({}).ok());
  std::istringstream lines(ReadAll(folder.path() + "/job/events.jsonl"));
  std::vector<config::Value> objects;
  for (std::string line; std::getline(lines, line);) {
    const auto value = config::ParseJson(line, "events.jsonl");
    ASSERT_TRUE(value.ok()) << value.status().ToString();
    objects.push_back(*value);
  }
  ASSERT_EQ(objects.size(), 2U);
  EXPECT_EQ(objects[0].Find("x")->value.integer, 24);
  EXPECT_EQ(objects[0].Find(kEventLr)->value.number, 0.001);
  EXPECT_EQ(objects[0].Find(kEventTrainLoss)->value.kind,
            config::Value::Kind::kNull);
  EXPECT_GT(objects[0].Find("time")->value.number, 1.6e9);
  EXPECT_EQ(objects[1].Find("x")->value.integer, 48);
}

TEST(MultiMonitor, OnlyRankZeroWritesAndOnlyWhatIsEnabled) {
  const Folder folder;
  config::Config config;
  EXPECT_TRUE(MultiMonitor::Create(config, 0, folder.path())->empty());
  config.csv_monitor = {true, "csv", "job"};
  config.tensorboard = {true, folder.path() + "/absolute", "job"};
  config.stowage.jsonl_monitor = {true, "", "job"};
  EXPECT_TRUE(MultiMonitor::Create(config, 1, folder.path())->empty());
  EXPECT_TRUE(fs::is_empty(folder.path()));

  auto monitors = MultiMonitor::Create(config, 0, folder.path());
  ASSERT_TRUE(monitors.ok()) << monitors.status().ToString();
  EXPECT_EQ(monitors->monitors().size(), 3U);
  const std::vector<Event> events = {{kEventLr, 0.001, 24, false}};
  EXPECT_TRUE(monitors->WriteEvents(events).ok());
  EXPECT_TRUE(monitors->Flush().ok());
  EXPECT_TRUE(fs::exists(folder.path() + "/csv/job/Train_Samples_lr.csv"));
  EXPECT_TRUE(fs::exists(folder.path() + "/job/events.jsonl"));
  EXPECT_FALSE(fs::is_empty(folder.path() + "/absolute/job"));
}

TEST(MultiMonitor, OneBrokenMonitorDoesNotSilenceTheOthers) {
  const Folder folder;
  config::Config config;
  config.csv_monitor = {true, "csv", "job"};
  config.stowage.jsonl_monitor = {true, "jsonl", "job"};
  auto monitors = MultiMonitor::Create(config, 0, folder.path());
  ASSERT_TRUE(monitors.ok());
  fs::remove_all(folder.path() + "/csv");
  const std::vector<Event> events = {{kEventLr, 0.001, 24, false}};
  EXPECT_FALSE(monitors->WriteEvents(events).ok());
  EXPECT_NE(ReadAll(folder.path() + "/jsonl/job/events.jsonl"), "");
}

}  // namespace
}  // namespace stowage::engine::monitor
