// What the subcommands of stowctl share: the server they talk to, and the way
// they register. One file per group of subcommands; main.cc only lists them.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/offload_client.h"
#include <CLI/CLI.hpp>

namespace stowage::cli {

// stowctl's exit codes (in --help, too).
enum ExitCode : int {
  kExitOk = 0,
  kExitRefused = 1,      // the server said no; the line says why
  kExitUsage = 2,        // wrong arguments
  kExitUnreachable = 3,  // nobody answers, or not in our protocol version
};

struct Invocation {
  std::string server;  // address
  double timeout_seconds = 5;
  // What the chosen subcommand does; set by its callback while parsing.
  std::function<absl::Status()> run;
};

// Connects to invocation.server. Errors: as OffloadClient::Connect.
absl::StatusOr<std::unique_ptr<client::OffloadClient>> Connect(
    const Invocation& invocation);

// Each adds its subcommands to `app`; `invocation` must outlive it.
void AddCheckpointCommands(CLI::App& app, Invocation& invocation);
void AddExportCommand(CLI::App& app, Invocation& invocation);
void AddFsckCommand(CLI::App& app, Invocation& invocation);
void AddInfoCommand(CLI::App& app, Invocation& invocation);
void AddJobCommands(CLI::App& app, Invocation& invocation);
void AddConfigCommands(CLI::App& app, Invocation& invocation);
void AddPlanCommand(CLI::App& app, Invocation& invocation);
void AddPlotCommand(CLI::App& app, Invocation& invocation);

}  // namespace stowage::cli
