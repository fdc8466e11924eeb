// stowctl info: the server, in one screen.

#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include <nlohmann/json.hpp>

namespace stowage::cli {
namespace {

void PrintText(const std::string& address, const ServerInfo& info) {
  const auto line = [](const char* name, const std::string& value) {
    absl::PrintF("%-14s %s\n", name, value);
  };
  line("address", address);
  line("version",
       absl::StrCat(info.version, " (protocol ", info.protocol_version, ")"));
  line("pid", absl::StrCat(info.pid));
  line("up", absl::StrFormat("%.0f s", info.uptime_seconds));
  line("kernels", absl::StrCat(info.isa, ", ", info.threads, " threads"));
  line("pinned", absl::StrCat(HumanBytes(info.pinned_bytes), " of ",
                              HumanBytes(info.memory_limit_bytes)));
  line("locked", HumanBytes(info.locked_bytes));
  line("huge pages", HumanBytes(info.huge_page_bytes));
  line("resident", HumanBytes(info.rss_bytes));
  line("segments in", info.shm_dir);
}

void PrintJson(const std::string& address, const ServerInfo& info) {
  const nlohmann::ordered_json json = {
      {"address", address},
      {"version", info.version},
      {"protocol_version", info.protocol_version},
      {"pid", info.pid},
      {"uptime_seconds", info.uptime_seconds},
      {"isa", info.isa},
      {"threads", info.threads},
      {"memory_limit_bytes", info.memory_limit_bytes},
      {"pinned_bytes", info.pinned_bytes},
      {"locked_bytes", info.locked_bytes},
      {"huge_page_bytes", info.huge_page_bytes},
      {"rss_bytes", info.rss_bytes},
      {"shm_dir", info.shm_dir}};
  std::puts(json.dump(2).c_str());
}

}  // namespace

void AddInfoCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand(
      "info", "Version, memory and kernel set of the server");
  auto json = std::make_shared<bool>(false);  // shared with the callback below
  command->add_flag("--json", *json, "As one JSON object; sizes in bytes");
  command->callback([&invocation, json] {
    invocation.run = [&invocation, json]() -> absl::Status {
      STOWAGE_ASSIGN_OR_RETURN(auto client, Connect(invocation));
      STOWAGE_ASSIGN_OR_RETURN(const ServerInfo info, client->GetServerInfo());
      if (*json) {
        PrintJson(invocation.server, info);
      } else {
        PrintText(invocation.server, info);
      }
      return absl::OkStatus();
    };
  });
}

}  // namespace stowage::cli
