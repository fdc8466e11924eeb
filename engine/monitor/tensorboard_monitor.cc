// A TensorBoard event file, one new file per process as its own writer makes.

#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/monitor/append_file.h"
#include "engine/monitor/monitor.h"
#include "engine/monitor/tf_record.h"

namespace stowage::engine::monitor {
namespace {

double Now() {
  return std::chrono::duration<double>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

class TensorboardMonitor final : public Monitor {
 public:
  explicit TensorboardMonitor(AppendFile file) : file_(std::move(file)) {}

  const char* name() const override { return "tensorboard"; }

  absl::Status WriteEvents(std::span<const Event> events) override {
    const double now = Now();
    std::string records;
    for (const Event& event : events) {
      records += TfRecord(ScalarEvent(now, event.x, event.name,
                                      static_cast<float>(event.value)));
    }
    return file_.Write(records);
  }

  absl::Status Flush() override { return absl::OkStatus(); }

 private:
  AppendFile file_;
};

// "events.out.tfevents.<seconds>.<host>.<pid>.<n>": the name by which
// TensorBoard finds the file; n tells apart two of one process and second.
std::string FileName(double now) {
  static std::atomic<int> made{0};
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  std::string name = host.data();
  for (char& c : name) {
    if (c == '/') c = '_';
  }
  return absl::StrCat("events.out.tfevents.", static_cast<std::int64_t>(now),
                      ".", name.empty() ? "localhost" : name, ".", ::getpid(),
                      ".", made.fetch_add(1));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Monitor>> CreateTensorboardMonitor(
    const MonitorDirectory& directory) {
  STOWAGE_RETURN_IF_ERROR(MakeDirectories(directory.Path()));
  const double now = Now();
  STOWAGE_ASSIGN_OR_RETURN(
      AppendFile file,
      AppendFile::Open(absl::StrCat(directory.Path(), "/", FileName(now))));
  STOWAGE_RETURN_IF_ERROR(file.Write(TfRecord(VersionEvent(now))));
  return std::make_unique<TensorboardMonitor>(std::move(file));
}

}  // namespace stowage::engine::monitor
