#include "common/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace stowage::log {
namespace {

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>(
        "stowage", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %n[%P] %v");
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum ToSpdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarning:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

bool NeedsQuotes(std::string_view text) {
  return text.empty() ||
         text.find_first_of(" \t\n\"=") != std::string_view::npos;
}

void AppendQuoted(std::string& line, std::string_view text) {
  line += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') line += '\\';
    // A log line stays one line whatever a client put into a name.
    line += (c == '\n' || c == '\r') ? ' ' : c;
  }
  line += '"';
}

}  // namespace

void Initialize(std::string_view process_name, Level level) {
  Logger().set_level(ToSpdlog(level));
  Logger().set_pattern("%Y-%m-%dT%H:%M:%S.%e %L " + std::string(process_name) +
                       "[%P] %v");
  Logger().flush_on(spdlog::level::debug);
}

absl::Status SetLevel(std::string_view name) {
  for (const auto& [text, level] :
       {std::pair<std::string_view, Level>{"debug", Level::kDebug},
        {"info", Level::kInfo},
        {"warning", Level::kWarning},
        {"error", Level::kError}}) {
    if (name == text) {
      Logger().set_level(ToSpdlog(level));
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("log level \"", std::string(name),
                   "\": expected debug, info, warning or error"));
}

void Write(Level level, std::string_view event,
           std::initializer_list<Field> fields) {
  if (!Logger().should_log(ToSpdlog(level))) return;
  std::string line(event);
  for (const Field& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    if (NeedsQuotes(field.value)) {
      AppendQuoted(line, field.value);
    } else {
      line += field.value;
    }
  }
  Logger().log(ToSpdlog(level), "{}", line);
}

}  // namespace stowage::log
