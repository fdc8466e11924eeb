// stowd: starts, says that it is ready, waits for a reason to stop, stops.

#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bytes.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "proto/job_record_codec.h"
#include "server/core/job_registry.h"
#include "server/heap.h"
#include "server/rpc/rpc_server.h"
#include "server/server_config.h"
#include "server/stop_signal.h"

namespace stowage {
namespace {

// What the heap may keep, and how long more than that lies free before it goes
// back: four looks, a second.
constexpr std::size_t kFreeHeapBytes = std::size_t{2} << 20;
constexpr int kTrimLooks = 4;
constexpr std::chrono::milliseconds kTrimPeriod{250};

std::string RandomId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

core::RegistryOptions ToRegistryOptions(const ServerConfig& config) {
  core::RegistryOptions options;
  options.memory_limit_bytes = config.memory_limit_bytes;
  options.threads = config.threads;
  options.shm_dir = config.shm_dir;
  options.server_id = RandomId();
  options.lock_memory = config.lock_memory;
  options.jobs_max = config.jobs_max;
  options.isa = config.isa;
  options.nvme_roots = config.nvme_roots;
  options.export_roots = config.export_roots;
  options.encode_record = proto::EncodeJobRecord;
  options.decode_record = proto::DecodeJobRecord;
  return options;
}

// One line, where the one who started us looks for it.
int Fail(const ServerConfig& config, const absl::Status& status, int code) {
  std::FILE* out = config.parent_fd >= 0 ? stdout : stderr;
  absl::FPrintF(out, "stowd: %s\n", status.message());
  std::fflush(out);
  return code;
}

int Run(const ServerConfig& config) {
  absl::StatusOr<StopSignal> stop = StopSignal::Create(config.parent_fd);
  if (!stop.ok()) return Fail(config, stop.status(), kExitInternal);
  absl::StatusOr<std::unique_ptr<core::JobRegistry>> registry =
      core::JobRegistry::Create(ToRegistryOptions(config));
  if (!registry.ok()) return Fail(config, registry.status(), kExitResources);
  absl::StatusOr<std::unique_ptr<rpc::RpcServer>> server =
      rpc::RpcServer::Start({.listen = config.listen,
                             .insecure_tcp = config.insecure_tcp,
                             .version = STOWAGE_VERSION,
                             .sessions_max = config.sessions_max},
                            **registry);
  if (!server.ok()) return Fail(config, server.status(), kExitListen);
  const HeapTrimmer trimmer(kFreeHeapBytes, kTrimLooks, kTrimPeriod);
  const ServerInfo info = (*registry)->Info();
  log::Info("started", {{"address", (*server)->address()},
                        {"version", STOWAGE_VERSION},
                        {"isa", info.isa},
                        {"threads", info.threads},
                        {"memory_limit", HumanBytes(info.memory_limit_bytes)},
                        {"shm_dir", info.shm_dir}});
  absl::PrintF("ready address=%s pid=%d\n", (*server)->address(), ::getpid());
  std::fflush(stdout);
  const std::string reason = stop->Wait();
  log::Info("stopping", {{"reason", reason}});
  (*server)->Stop();
  server->reset();
  registry->reset();
  log::Info("stopped");
  return kExitClean;
}

}  // namespace
}  // namespace stowage

int main(int argc, char** argv) {
  stowage::KeepSmallBlocks();
  std::string printed;
  absl::StatusOr<stowage::ServerConfig> config =
      stowage::LoadServerConfig(argc, argv, &printed);
  if (!config.ok()) {
    return stowage::Fail({}, config.status(), stowage::kExitUsage);
  }
  if (!printed.empty()) {
    std::fputs(printed.c_str(), stdout);
    return stowage::kExitClean;
  }
  stowage::log::Initialize("stowd", stowage::log::Level::kInfo);
  if (!stowage::log::SetLevel(config->log_level).ok()) {
    return stowage::kExitUsage;  // the table of options has checked it
  }
  return stowage::Run(*config);
}
