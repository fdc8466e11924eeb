// The sending side against helpers that behave, never read, or are not there.
// The real client is tests/integration/monitor_readers_test.py's.

#include "engine/monitor/wandb_monitor.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::engine::monitor {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class WandbMonitor : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "stowage-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  void TearDown() override { fs::remove_all(folder_); }

  // An "interpreter" that runs `body` instead of the script.
  std::string Interpreter(const std::string& body) const {
    const std::string path = folder_ + "/interpreter";
    std::ofstream(path) << "#!/bin/sh\n" << body << "\n";
    fs::permissions(path, fs::perms::owner_all);
    return path;
  }
  std::unique_ptr<Monitor> Make(const std::string& python) const {
    WandbOptions options;
    options.python = python;
    options.group = "g";
    options.directory = folder_;
    options.queue_bytes = 4096;
    auto made = CreateWandbMonitor(options);
    EXPECT_TRUE(made.ok()) << made.status().ToString();
    return *std::move(made);
  }
  std::string Wait(const std::string& file, const std::string& want) const {
    std::string text;
    for (int i = 0; i < 500; ++i) {
      std::ifstream in(folder_ + "/" + file);
      std::ostringstream out;
      out << in.rdbuf();
      text = out.str();
      if (text.find(want) != std::string::npos) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return text;
  }

  std::string folder_;
};

TEST_F(WandbMonitor, SendsOnePacketAStep) {
  // The helper without the client: packets come out as lines.
  const std::string python = Interpreter(
      "exec python3 -c 'import socket, os\n"
      "s = socket.socket(fileno=os.dup(0))\n"
      "while True:\n"
      "  p = s.recv(1 << 20)\n"
      "  if not p: break\n"
      "  print(p.decode(), flush=True)\n"
      "print(\"end\", flush=True)'");
  {
    const std::unique_ptr<Monitor> monitor = Make(python);
    const Event first[] = {{"a/loss", 1.5, 8}, {"a/scale", INFINITY, 8}};
    const Event second[] = {{"a/loss", 0.25, 16}};
    ASSERT_TRUE(monitor->WriteEvents(first).ok());
    ASSERT_TRUE(monitor->WriteEvents(second).ok());
  }
  EXPECT_EQ(Wait("wandb-helper.log", "end"),
            "{\"init\": {\"project\": \"deepspeed\", \"group\": \"g\", "
            "\"team\": null, \"directory\": \"" +
                folder_ +
                "\", \"config\": {}}}\n"
                "{\"x\": 8, \"values\": {\"a/loss\": 1.5, \"a/scale\": "
                "Infinity}}\n"
                "{\"x\": 16, \"values\": {\"a/loss\": 0.25}}\n"
                "end\n");
}

TEST_F(WandbMonitor, AHelperThatNeverReadsSlowsNothing) {
  const std::unique_ptr<Monitor> monitor =
      Make(Interpreter("exec sleep 20 > /dev/null"));
  const auto begin = std::chrono::steady_clock::now();
  for (std::int64_t x = 0; x < 20000; ++x) {
    const Event events[] = {{"a/loss", 1.5, x}};
    ASSERT_TRUE(monitor->WriteEvents(events).ok());
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST_F(WandbMonitor, AHelperThatEndsIsSaidOnce) {
  const std::unique_ptr<Monitor> monitor = Make(Interpreter("exit 3"));
  absl::Status status;
  for (int i = 0; i < 500 && status.ok(); ++i) {
    const Event events[] = {{"a/loss", 1.5, i}};
    status = monitor->WriteEvents(events);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("wandb-helper.log says why"));
}

TEST_F(WandbMonitor, AnInterpreterThatIsNotThereCostsOnlyTheNumbers) {
  const std::unique_ptr<Monitor> monitor = Make("/nowhere/python");
  const Event events[] = {{"a/loss", 1.5, 1}};
  EXPECT_THAT(std::string(monitor->WriteEvents(events).message()),
              HasSubstr("start \"/nowhere/python\""));
}

}  // namespace
}  // namespace stowage::engine::monitor
