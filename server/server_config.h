// Every option of stowd: meaning, unit, default, bounds, cross-checks.
//
// An option is a flag (--memory-limit 20GiB) and a key of the JSON file that
// --config names ("memory_limit": "20GiB"); a flag wins over the file. Both are
// read by one table in server_config.cc, which is also what --help prints.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace stowage {

// What stowd's exit codes mean (in --help, too).
enum ServerExitCode : int {
  kExitClean = 0,      // stopped on SIGTERM, SIGINT or its parent's end
  kExitInternal = 1,   // a bug
  kExitUsage = 2,      // a flag or the configuration file is wrong
  kExitListen = 3,     // the address cannot be listened on, or is in use
  kExitResources = 4,  // segment folder, memory or threads cannot be had
};

struct ServerConfig {
  std::string listen;         // unix:/path or host:port (0: any free port)
  bool insecure_tcp = false;  // listen beyond loopback, unprotected
  std::string shm_dir;        // absolute folder for segments, on tmpfs
  std::int64_t memory_limit_bytes = 0;
  int threads = 0;          // of the compute team; 0: one per processor
  bool lock_memory = true;  // mlock pinned memory where the limit allows
  std::string isa;          // avx512, avx2, portable; empty: the best
  std::string log_level = "info";
  int sessions_max = 512;
  int jobs_max = 1024;
  int parent_fd = -1;  // stop when the pipe's other end closes; -1: none
  std::vector<std::string> nvme_roots;    // folders for state on NVMe
  std::vector<std::string> export_roots;  // folders for checkpoints
};

// Reads flags and file. If `*printed` is not empty afterwards (--help,
// --version), the program prints it and ends with kExitClean.
// Errors: kInvalidArgument or the file's errno code, naming flag or key (the
//   nearest known one for an unknown key; line and column for bad JSON).
absl::StatusOr<ServerConfig> LoadServerConfig(int argc, char** argv,
                                              std::string* printed);

}  // namespace stowage
