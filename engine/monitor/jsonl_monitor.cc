// events.jsonl: one JSON object per value of x, with every event's name as a
// key, "x" and "time" (seconds since 1970). A number that is not finite is
// null.

#include <chrono>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/config/json_text.h"
#include "engine/monitor/append_file.h"
#include "engine/monitor/monitor.h"

namespace stowage::engine::monitor {
namespace {

class JsonlMonitor final : public Monitor {
 public:
  explicit JsonlMonitor(AppendFile file) : file_(std::move(file)) {}

  const char* name() const override { return "jsonl_monitor"; }

  absl::Status WriteEvents(std::span<const Event> events) override {
    const double now = std::chrono::duration<double>(
                           std::chrono::system_clock::now().time_since_epoch())
                           .count();
    std::string text;
    for (std::size_t i = 0; i < events.size(); ++i) {
      const Event& event = events[i];
      if (i == 0 || event.x != events[i - 1].x) {
        absl::StrAppend(
            &text, i == 0 ? "" : "}\n", "{\"x\": ", event.x,
            ", \"time\": ", config::JsonNumber(std::round(now * 1e3) / 1e3));
      }
      absl::StrAppend(&text, ", ", config::JsonString(event.name), ": ",
                      std::isfinite(event.value)
                          ? config::JsonNumber(event.value)
                          : "null");
    }
    if (!events.empty()) text += "}\n";
    return file_.Write(text);
  }

  absl::Status Flush() override { return absl::OkStatus(); }

 private:
  AppendFile file_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Monitor>> CreateJsonlMonitor(
    const MonitorDirectory& directory) {
  STOWAGE_RETURN_IF_ERROR(MakeDirectories(directory.Path()));
  STOWAGE_ASSIGN_OR_RETURN(
      AppendFile file,
      AppendFile::Open(absl::StrCat(directory.Path(), "/events.jsonl")));
  return std::make_unique<JsonlMonitor>(std::move(file));
}

}  // namespace stowage::engine::monitor
