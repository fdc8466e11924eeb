#include "server/server_config.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/bytes.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "proto/address.h"
#include "server/memory_limit.h"
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace stowage {
namespace {

constexpr std::int64_t kMemoryLimitMin = 16 * kMiB;
constexpr std::int64_t kConfigBytesMax = kMiB;

enum class Kind { kText, kBool, kInt, kBytes, kFolders };

// Reads one value; errors are without the option's name.
using Setter = std::function<absl::Status(const std::string&, ServerConfig*)>;

struct Option {
  const char* name;  // of the flag; the key has '_' for '-'
  Kind kind;
  const char* help;
  Setter set;

  std::string key() const { return absl::StrReplaceAll(name, {{"-", "_"}}); }
};

absl::Status Bad(const std::string& text) {
  return absl::InvalidArgumentError(text);
}

Setter Text(std::string ServerConfig::*field) {
  return [field](const std::string& text, ServerConfig* config) {
    if (text.empty() || text.find('\0') != std::string::npos) {
      return Bad("empty, or holds a zero byte");
    }
    config->*field = text;
    return absl::OkStatus();
  };
}

Setter Int(int ServerConfig::*field, int min, int max) {
  return [field, min, max](const std::string& text, ServerConfig* config) {
    int value = 0;
    if (!absl::SimpleAtoi(text, &value) || value < min || value > max) {
      return Bad(absl::StrCat("\"", text, "\" is not a whole number from ", min,
                              " to ", max));
    }
    config->*field = value;
    return absl::OkStatus();
  };
}

Setter OneOf(std::string ServerConfig::*field,
             const std::vector<std::string>& allowed) {
  return [field, allowed](const std::string& text, ServerConfig* config) {
    if (std::find(allowed.begin(), allowed.end(), text) == allowed.end()) {
      return Bad(absl::StrCat("\"", text, "\", expected ",
                              absl::StrJoin(allowed, ", ")));
    }
    config->*field = text;
    return absl::OkStatus();
  };
}

Setter Folder(std::vector<std::string> ServerConfig::*field) {
  return [field](const std::string& text, ServerConfig* config) {
    if (text.empty() || text.front() != '/') {
      return Bad(absl::StrCat("\"", text, "\" is not an absolute path"));
    }
    (config->*field).push_back(text);
    return absl::OkStatus();
  };
}

absl::Status SetMemoryLimit(const std::string& text, ServerConfig* config) {
  STOWAGE_ASSIGN_OR_RETURN(config->memory_limit_bytes, ParseBytes(text));
  if (config->memory_limit_bytes < kMemoryLimitMin) {
    return Bad(
        absl::StrCat(text, " is less than ", HumanBytes(kMemoryLimitMin)));
  }
  return absl::OkStatus();
}

absl::Status SetListen(const std::string& text, ServerConfig* config) {
  STOWAGE_RETURN_IF_ERROR(proto::ParseAddress(text).status());
  config->listen = text;
  return absl::OkStatus();
}

absl::Status SetInsecureTcp(const std::string& text, ServerConfig* config) {
  config->insecure_tcp = text == "true";
  return absl::OkStatus();
}

absl::Status SetNoMlock(const std::string& text, ServerConfig* config) {
  config->lock_memory = text != "true";
  return absl::OkStatus();
}

const std::vector<Option>& Options() {
  static const std::vector<Option> options = {
      {"listen", Kind::kText,
       "Address: unix:/path (its folder is made 0700) or host:port on "
       "loopback, port 0 for any free one. Default: unix:$XDG_RUNTIME_DIR/"
       "stowage/stowd.sock, else unix:/tmp/stowage-UID/stowd.sock",
       SetListen},
      {"insecure-tcp", Kind::kBool,
       "Listen on TCP beyond loopback, though connections are neither "
       "encrypted nor authenticated; for a network whose every host is "
       "trusted. Default: loopback only",
       SetInsecureTcp},
      {"shm-dir", Kind::kText,
       "Folder of the segments, on a tmpfs; made 0700. Default: "
       "/dev/shm/stowage-UID",
       Text(&ServerConfig::shm_dir)},
      {"memory-limit", Kind::kBytes,
       "Most bytes that jobs may pin, private memory and segments together "
       "(20GiB, 512MiB, plain bytes); 16MiB to the machine's memory. Default: "
       "80 % of what is free now, in the machine or the cgroup",
       SetMemoryLimit},
      {"threads", Kind::kInt,
       "Threads of the compute team, 0 to 1024; 0 is one per processor. "
       "Default: 0",
       Int(&ServerConfig::threads, 0, 1024)},
      {"no-mlock", Kind::kBool,
       "Do not lock pinned memory. Default: lock as far as ulimit -l allows",
       SetNoMlock},
      {"isa", Kind::kText,
       "Kernel set: avx512, avx2 or portable; all give the same bits. "
       "Default: the best that this machine has",
       OneOf(&ServerConfig::isa, {"avx512", "avx2", "portable"})},
      {"log-level", Kind::kText,
       "debug, info, warning or error; logs go to stderr. Default: info",
       OneOf(&ServerConfig::log_level, {"debug", "info", "warning", "error"})},
      {"max-sessions", Kind::kInt,
       "Sessions at once, 1 to 4096; more are refused. Default: 512",
       Int(&ServerConfig::sessions_max, 1, 4096)},
      {"max-jobs", Kind::kInt,
       "Jobs at once, 1 to 65536; more are refused. Default: 1024",
       Int(&ServerConfig::jobs_max, 1, 65536)},
      {"exit-with-parent-fd", Kind::kInt,
       "Stop when the other end of this open pipe closes, and say why a start "
       "failed on stdout; for a server that a trainer starts. Default: none",
       Int(&ServerConfig::parent_fd, 3, 1 << 20)},
      {"nvme-root", Kind::kFolders,
       "Folder, which must be there, below which jobs may keep state on NVMe; "
       "may be repeated. Jobs that lie in it are offered again. Default: none, "
       "so that nothing can be kept on NVMe",
       Folder(&ServerConfig::nvme_roots)},
      {"export-root", Kind::kFolders,
       "Folder, which must be there, below which jobs may write checkpoints "
       "and read them; may be repeated. Default: none, so that nothing can be "
       "saved",
       Folder(&ServerConfig::export_roots)},
  };
  return options;
}

absl::Status Annotate(const std::string& what, const absl::Status& status) {
  if (status.ok()) return status;
  return {status.code(), absl::StrCat(what, ": ", status.message())};
}

std::size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

std::string NearestKey(const std::string& key) {
  std::string best;
  std::size_t best_distance = ~std::size_t{0};
  for (const Option& option : Options()) {
    const std::size_t distance = EditDistance(key, option.key());
    if (distance < best_distance) {
      best_distance = distance;
      best = option.key();
    }
  }
  return best;
}

absl::Status SetFromJson(const Option& option, const nlohmann::json& value,
                         ServerConfig* config) {
  switch (option.kind) {
    case Kind::kText:
      if (!value.is_string()) return Bad("expected a string");
      return option.set(value.get<std::string>(), config);
    case Kind::kBool:
      if (!value.is_boolean()) return Bad("expected true or false");
      return option.set(value.get<bool>() ? "true" : "false", config);
    case Kind::kInt:
      if (!value.is_number_integer()) return Bad("expected a whole number");
      return option.set(value.dump(), config);
    case Kind::kBytes:
      if (value.is_number_integer()) return option.set(value.dump(), config);
      if (!value.is_string()) {
        return Bad(
            "expected bytes as a whole number or as a string with a "
            "unit, such as \"20GiB\"");
      }
      return option.set(value.get<std::string>(), config);
    case Kind::kFolders:
      break;
  }
  if (!value.is_array()) return Bad("expected an array of strings");
  for (const nlohmann::json& item : value) {
    if (!item.is_string()) return Bad("expected an array of strings");
    STOWAGE_RETURN_IF_ERROR(option.set(item.get<std::string>(), config));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadConfigFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return ErrnoStatus(absl::StrCat("configuration file ", path));
  std::string text;
  text.resize(static_cast<std::size_t>(kConfigBytesMax) + 1);
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return ErrnoStatus(absl::StrCat("configuration file ", path));
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (static_cast<std::int64_t>(text.size()) > kConfigBytesMax) {
    return Bad(absl::StrCat("configuration file ", path, ": more than ",
                            HumanBytes(kConfigBytesMax)));
  }
  return text;
}

// "line 3, column 7" of a byte offset (1-based, as nlohmann counts).
std::string Position(const std::string& text, std::size_t byte) {
  const std::string before = text.substr(0, byte > 0 ? byte - 1 : 0);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = newline == std::string::npos
                                 ? before.size() + 1
                                 : before.size() - newline;
  return absl::StrCat("line ", line, ", column ", column);
}

absl::Status ApplyConfigFile(const std::string& path, ServerConfig* config) {
  STOWAGE_ASSIGN_OR_RETURN(const std::string text, ReadConfigFile(path));
  nlohmann::json root;
  try {
    root = nlohmann::json::parse(text, nullptr, true, /*ignore_comments=*/true);
  } catch (const nlohmann::json::parse_error& error) {
    return Bad(
        absl::StrCat(path, ": not JSON at ", Position(text, error.byte)));
  } catch (const nlohmann::json::exception& error) {
    return Bad(absl::StrCat(path, ": ", error.what()));
  }
  if (!root.is_object()) return Bad(absl::StrCat(path, ": not an object"));
  for (const auto& [key, value] : root.items()) {
    const auto& options = Options();
    const auto option =
        std::find_if(options.begin(), options.end(),
                     [&key = key](const Option& o) { return o.key() == key; });
    if (option == options.end() || key == "exit_with_parent_fd") {
      return Bad(absl::StrCat(path, ": unknown key \"", key, "\"; nearest: \"",
                              NearestKey(key), "\""));
    }
    STOWAGE_RETURN_IF_ERROR(Annotate(absl::StrCat(path, ": \"", key, "\""),
                                     SetFromJson(*option, value, config)));
  }
  return absl::OkStatus();
}

// Defaults that depend on the machine, then what two options say together.
absl::Status Complete(ServerConfig* config) {
  if (config->listen.empty()) config->listen = proto::DefaultAddress();
  STOWAGE_ASSIGN_OR_RETURN(const proto::Address address,
                           proto::ParseAddress(config->listen));
  if (config->shm_dir.empty()) {
    config->shm_dir = absl::StrCat("/dev/shm/stowage-", ::geteuid());
  }
  if (config->shm_dir.front() != '/') {
    return Bad(
        absl::StrCat("--shm-dir ", config->shm_dir, ": not an absolute path"));
  }
  if (address.is_unix &&
      address.path.substr(0, address.path.rfind('/')) == config->shm_dir) {
    return Bad(absl::StrCat("--shm-dir ", config->shm_dir,
                            ": is the folder of the socket; give the segments "
                            "one of their own"));
  }
  STOWAGE_ASSIGN_OR_RETURN(const MemoryView view, ReadMemoryView());
  if (config->memory_limit_bytes == 0) {
    config->memory_limit_bytes =
        std::max(kMemoryLimitMin, DefaultMemoryLimit(view));
  } else if (config->memory_limit_bytes > view.total_bytes) {
    return Bad(absl::StrCat(
        "--memory-limit ", HumanBytes(config->memory_limit_bytes),
        ": this machine or cgroup has ", HumanBytes(view.total_bytes)));
  }
  if (config->parent_fd >= 0 && ::fcntl(config->parent_fd, F_GETFD) < 0) {
    return Bad(absl::StrCat("--exit-with-parent-fd ", config->parent_fd,
                            ": not an open descriptor"));
  }
  return absl::OkStatus();
}

constexpr char kFooter[] =
    R"(The file that --config names is a JSON object with the same names, '_' for
'-', lists for what may be repeated: {"memory_limit": "20GiB", "threads": 8}.
Comments are allowed. A flag wins over the file.

Exit codes: 0 stopped in good order (SIGTERM, SIGINT, parent gone); 1 internal
error; 2 wrong flag or configuration file; 3 cannot listen on the address, or a
server is there already; 4 segment folder, memory or threads cannot be had.

When it is ready it prints one line to stdout: ready address=... pid=...)";

}  // namespace

absl::StatusOr<ServerConfig> LoadServerConfig(int argc, char** argv,
                                              std::string* printed) {
  CLI::App app{
      "stowd keeps the parameters and optimizer state of training jobs on this "
      "node.",
      "stowd"};
  app.footer(kFooter);
  app.set_version_flag("--version", "stowd " STOWAGE_VERSION);
  std::string config_path;
  app.add_option("--config", config_path, "JSON file with these options");
  std::map<std::string, std::vector<std::string>> given;
  std::map<std::string, bool> flags;
  for (const Option& option : Options()) {
    const std::string flag = absl::StrCat("--", option.name);
    if (option.kind == Kind::kBool) {
      app.add_flag(flag, flags[option.name], option.help);
    } else {
      auto* added = app.add_option(flag, given[option.name], option.help);
      added->expected(1);
      added->multi_option_policy(option.kind == Kind::kFolders
                                     ? CLI::MultiOptionPolicy::TakeAll
                                     : CLI::MultiOptionPolicy::TakeLast);
    }
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      return Bad(absl::StrCat(error.what(), " (stowd --help lists the flags)"));
    }
    std::ostringstream out;
    app.exit(error, out, out);
    *printed = out.str();
    if (printed->empty() || printed->back() != '\n') *printed += '\n';
    return ServerConfig{};
  }
  ServerConfig config;
  if (!config_path.empty()) {
    STOWAGE_RETURN_IF_ERROR(ApplyConfigFile(config_path, &config));
  }
  for (const Option& option : Options()) {
    if (option.kind == Kind::kBool && flags[option.name]) {
      STOWAGE_RETURN_IF_ERROR(option.set("true", &config));
    }
    for (const std::string& value : given[option.name]) {
      STOWAGE_RETURN_IF_ERROR(Annotate(absl::StrCat("--", option.name),
                                       option.set(value, &config)));
    }
  }
  STOWAGE_RETURN_IF_ERROR(Complete(&config));
  return config;
}

}  // namespace stowage
