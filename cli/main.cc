// stowctl: look into a stowd from a terminal.

#include <cstdio>

#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "proto/address.h"
#include <CLI/CLI.hpp>

namespace {

constexpr char kFooter[] = R"(Examples:
  stowctl info                          the default server
  stowctl --server unix:/run/s/stowd.sock jobs
  stowctl jobs --json | jq '.[].name'
  stowctl job show my-run               steps done, memory, time spent
  stowctl job drop my-run               free a job that nobody will resume
  stowctl job rewind my-run --step 41   go back to a step kept on NVMe
  stowctl fsck /nvme/stowage            check what lies there (no server)
  stowctl checkpoint list /ckpt/my-run  complete checkpoints (no server)
  stowctl checkpoint save my-run /ckpt/my-run
  stowctl export /ckpt/my-run out       its weights as safetensors files
  stowctl config explain ds.json --world-size 2 --hidden-size 512 \
      --micro-batch 4 --lr 1e-3         what every key comes to (no server)
  stowctl config schedule ds.json --steps 100
  stowctl plan ds.json --parameters 85000000 --ranks 2    does it fit, how fast
  stowctl plan ds.json --run out/run1   the same beside what a run needed
  stowctl plot out/run1                 loss and loss scale as a picture

The server is --server, else $STOWAGE_SERVER, else the address that stowd
listens on by itself.

Exit codes: 0 done; 1 refused, or faults found, with the reason; 2 wrong arguments,
or a configuration file that is wrong; 3 no server answers, or one of another protocol version.)";

}  // namespace

int main(int argc, char** argv) {
  stowage::cli::Invocation invocation;
  invocation.server = stowage::proto::DefaultAddress();
  CLI::App app{
      "stowctl shows and manages the jobs of a stowd, explains configuration "
      "files, plans jobs and plots runs.",
      "stowctl"};
  app.footer(kFooter);
  app.set_version_flag("--version", "stowctl " STOWAGE_VERSION);
  app.require_subcommand(1);
  app.add_option("--server", invocation.server,
                 "Address of the server: unix:/path or host:port")
      ->capture_default_str();
  app.add_option("--timeout", invocation.timeout_seconds,
                 "Seconds to wait for the server to answer")
      ->check(CLI::Range(0.1, 600.0))
      ->capture_default_str();
  stowage::cli::AddInfoCommand(app, invocation);
  stowage::cli::AddJobCommands(app, invocation);
  stowage::cli::AddFsckCommand(app, invocation);
  stowage::cli::AddCheckpointCommands(app, invocation);
  stowage::cli::AddExportCommand(app, invocation);
  stowage::cli::AddConfigCommands(app, invocation);
  stowage::cli::AddPlanCommand(app, invocation);
  stowage::cli::AddPlotCommand(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? stowage::cli::kExitOk
                                : stowage::cli::kExitUsage;
  }
  const absl::Status status = invocation.run();
  if (status.ok()) return stowage::cli::kExitOk;
  absl::FPrintF(stderr, "stowctl: %s\n", status.message());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
      return stowage::cli::kExitUsage;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return stowage::cli::kExitUnreachable;
    case absl::StatusCode::kFailedPrecondition:
      // Only Connect() says so before a command has run.
      return status.message().find("protocol version") !=
                     absl::string_view::npos
                 ? stowage::cli::kExitUnreachable
                 : stowage::cli::kExitRefused;
    default:
      return stowage::cli::kExitRefused;
  }
}
