// One CSV file per event name, as DeepSpeed's csv_monitor writes them: opened
// for every write, CRLF, the header once per process.

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/monitor/append_file.h"
#include "engine/monitor/monitor.h"

namespace stowage::engine::monitor {
namespace {

// A field as Python's csv module writes it: quoted where it must be.
std::string CsvField(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + "\"";
}

std::string ValueText(const Event& event) {
  if (event.integral && std::trunc(event.value) == event.value &&
      std::fabs(event.value) < 9.2e18) {
    return absl::StrCat(static_cast<std::int64_t>(event.value));
  }
  return PythonRepr(event.value);
}

class CsvMonitor final : public Monitor {
 public:
  explicit CsvMonitor(std::string directory)
      : directory_(std::move(directory)) {}

  const char* name() const override { return "csv_monitor"; }

  absl::Status WriteEvents(std::span<const Event> events) override {
    absl::Status first;
    for (const Event& event : events) first.Update(WriteEvent(event));
    return first;
  }

  absl::Status Flush() override { return absl::OkStatus(); }

 private:
  absl::Status WriteEvent(const Event& event) {
    std::string file = event.name;
    for (char& c : file) {
      if (c == '/' || c == ' ') c = '_';
    }
    std::string text;
    const bool first = !headed_.contains(file);
    if (first) {
      absl::StrAppend(&text, "step,",
                      CsvField(event.name.substr(event.name.rfind('/') + 1)),
                      "\r\n");
    }
    absl::StrAppend(&text, event.x, ",", ValueText(event), "\r\n");
    STOWAGE_ASSIGN_OR_RETURN(
        AppendFile out,
        AppendFile::Open(absl::StrCat(directory_, "/", file, ".csv")));
    STOWAGE_RETURN_IF_ERROR(out.Write(text));
    headed_.insert(file);
    return absl::OkStatus();
  }

  const std::string directory_;
  std::set<std::string> headed_;  // files that have their header
};

}  // namespace

absl::StatusOr<std::unique_ptr<Monitor>> CreateCsvMonitor(
    const MonitorDirectory& directory) {
  STOWAGE_RETURN_IF_ERROR(MakeDirectories(directory.Path()));
  return std::make_unique<CsvMonitor>(directory.Path());
}

}  // namespace stowage::engine::monitor
