#include "engine/monitor/series.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/config/json_reader.h"
#include "engine/monitor/series_names.h"

namespace stowage::engine::monitor {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kFileBytesMax = std::uintmax_t{1} << 30;

std::optional<double> Number(std::string_view text) {
  while (!text.empty() && (text.back() == '\r' || text.back() == ' ')) {
    text.remove_suffix(1);
  }
  double value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

// Calls `line` for each line; the last counts without a line end too.
template <typename Line>
void ForEachLine(std::string_view bytes, Line line) {
  while (!bytes.empty()) {
    const std::size_t end = bytes.find('\n');
    line(bytes.substr(0, end));
    if (end == std::string_view::npos) return;
    bytes.remove_prefix(end + 1);
  }
}

std::optional<SeriesFormat> FormatOf(const fs::path& path) {
  const std::string name = path.filename().string();
  if (name.ends_with(".csv")) return SeriesFormat::kCsv;
  if (name.find("tfevents") != std::string::npos) {
    return SeriesFormat::kTensorboard;
  }
  if (name.ends_with(".jsonl")) return SeriesFormat::kJsonl;
  if (name.ends_with(".wandb")) return SeriesFormat::kWandb;
  return std::nullopt;
}

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

}  // namespace

const char* SeriesFormatName(SeriesFormat format) {
  switch (format) {
    case SeriesFormat::kCsv:
      return "csv";
    case SeriesFormat::kTensorboard:
      return "tensorboard";
    case SeriesFormat::kJsonl:
      return "jsonl";
    case SeriesFormat::kWandb:
      return "wandb";
  }
  return "";
}

std::string ShortEventName(std::string_view name) {
  for (const std::string_view prefix : {std::string_view("Train/Samples/"),
                                        std::string_view("Train_Samples_")}) {
    if (name.starts_with(prefix))
      return std::string(name.substr(prefix.size()));
  }
  return std::string(name);
}

void ReadCsvSeries(std::string_view file_name, std::string_view bytes,
                   SeriesMap* series) {
  const std::size_t slash = file_name.rfind('/');
  std::string_view stem =
      slash == std::string_view::npos ? file_name : file_name.substr(slash + 1);
  if (stem.ends_with(".csv")) stem.remove_suffix(4);
  std::map<double, double> points;
  bool headed = false;
  ForEachLine(bytes, [&](std::string_view line) {
    const std::size_t comma = line.find(',');
    if (comma == std::string_view::npos) return;
    headed = headed || line.substr(0, comma) == "step";
    const std::optional<double> x = Number(line.substr(0, comma));
    const std::optional<double> value = Number(line.substr(comma + 1));
    if (x && value) points[*x] = *value;
  });
  if (headed && !points.empty()) {
    (*series)[ShortEventName(stem)] = std::move(points);
  }
}

void ReadJsonlSeries(std::string_view bytes, SeriesMap* series) {
  ForEachLine(bytes, [&](std::string_view line) {
    const absl::StatusOr<config::Value> row = config::ParseJson(line, "line");
    if (!row.ok() || row->kind != config::Value::Kind::kObject) return;
    const config::Member* x = row->Find("x");
    if (x == nullptr || x->value.kind != config::Value::Kind::kNumber) return;
    for (const config::Member& member : row->members) {
      if (member.value.kind != config::Value::Kind::kNumber ||
          member.key == "x" || member.key == "time") {
        continue;
      }
      (*series)[ShortEventName(member.key)][x->value.number] =
          member.value.number;
    }
  });
}

absl::StatusOr<std::vector<SeriesSource>> ReadSeries(
    const std::string& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    return absl::NotFoundError(absl::StrCat(directory, ": no such folder"));
  }
  std::vector<fs::path> paths;
  for (fs::recursive_directory_iterator
           at(directory, fs::directory_options::skip_permission_denied, error),
       end;
       !error && at != end; at.increment(error)) {
    if (at->is_regular_file(error) && FormatOf(at->path()) &&
        at->file_size(error) <= kFileBytesMax) {
      paths.push_back(at->path());
    }
  }
  // Event files carry their time in their names: later ones replace.
  std::sort(paths.begin(), paths.end());
  std::vector<SeriesSource> sources;
  for (const SeriesFormat format :
       {SeriesFormat::kCsv, SeriesFormat::kTensorboard, SeriesFormat::kJsonl,
        SeriesFormat::kWandb}) {
    SeriesSource source;
    source.format = format;
    for (const fs::path& path : paths) {
      if (FormatOf(path) != format) continue;
      source.files.push_back(path.string());
      const std::string bytes = ReadFile(path);
      switch (format) {
        case SeriesFormat::kCsv:
          ReadCsvSeries(path.string(), bytes, &source.series);
          break;
        case SeriesFormat::kTensorboard:
          ReadTensorboardSeries(bytes, &source.series);
          break;
        case SeriesFormat::kJsonl:
          ReadJsonlSeries(bytes, &source.series);
          break;
        case SeriesFormat::kWandb:
          ReadWandbSeries(bytes, &source.series);
          break;
      }
    }
    if (!source.series.empty()) sources.push_back(std::move(source));
  }
  return sources;
}

}  // namespace stowage::engine::monitor
