#include "engine/monitor/wandb_monitor.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "engine/monitor/append_file.h"
#include "engine/monitor/wandb_script.h"

extern char** environ;

namespace stowage::engine::monitor {
namespace {

std::string TextOrNull(const std::string& text) {
  return text.empty() ? "null" : config::JsonString(text);
}

std::string InitPacket(const WandbOptions& options) {
  return absl::StrCat(
      "{\"init\": {\"project\": ", TextOrNull(options.project),
      ", \"group\": ", TextOrNull(options.group),
      ", \"team\": ", TextOrNull(options.team),
      ", \"directory\": ", config::JsonString(options.directory),
      ", \"config\": ", options.config_json, "}}");
}

// Actions of the child, freed with the object.
class SpawnActions {
 public:
  SpawnActions() { posix_spawn_file_actions_init(&actions_); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  ~SpawnActions() { posix_spawn_file_actions_destroy(&actions_); }
  posix_spawn_file_actions_t* get() { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_{};
};

class WandbMonitor final : public Monitor {
 public:
  explicit WandbMonitor(WandbOptions options)
      : options_(std::move(options)),
        log_path_(absl::StrCat(options_.directory, "/wandb-helper.log")) {}

  ~WandbMonitor() override {
    // The end of the socket: the helper finishes by itself, without us.
    socket_.Reset();
    if (pid_ > 0) waitpid(pid_, nullptr, WNOHANG);
    if (dropped_ > 0) {
      log::Warning("wandb: steps were dropped, training does not wait",
                   {{"dropped", dropped_}, {"sent", sent_}});
    }
  }

  const char* name() const override { return "wandb"; }

  // Starts the helper and queues the first packet.
  absl::Status Start() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
      return ErrnoStatus("wandb: make a socket");
    }
    UniqueFd ours(ends[0]);
    const UniqueFd theirs(ends[1]);
    const int bytes = static_cast<int>(options_.queue_bytes);
    setsockopt(ours.get(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    SpawnActions actions;
    posix_spawn_file_actions_adddup2(actions.get(), theirs.get(), 0);
    posix_spawn_file_actions_addopen(actions.get(), 1, log_path_.c_str(),
                                     O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(actions.get(), 1, 2);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
    const char* const arguments[] = {options_.python.c_str(), "-c",
                                     kWandbScript, nullptr};
    const int error =
        posix_spawnp(&pid_, options_.python.c_str(), actions.get(), &attributes,
                     const_cast<char* const*>(arguments), environ);
    posix_spawnattr_destroy(&attributes);
    if (error != 0) {
      pid_ = -1;
      errno = error;
      return ErrnoStatus(
          absl::StrCat("wandb: start \"", options_.python,
                       "\" (stowage.wandb_python): no numbers are sent"));
    }
    socket_ = std::move(ours);
    return Send(InitPacket(options_));
  }

  void SetBroken(absl::Status why) { broken_ = std::move(why); }

  absl::Status WriteEvents(std::span<const Event> events) override {
    STOWAGE_RETURN_IF_ERROR(broken_);
    // All events of a step have one x.
    std::string packet;
    for (std::size_t i = 0; i < events.size(); ++i) {
      const bool first = i == 0 || events[i].x != events[i - 1].x;
      if (first && i > 0) {
        STOWAGE_RETURN_IF_ERROR(Send(packet + "}}"));
        packet.clear();
      }
      if (first) {
        absl::StrAppend(&packet, "{\"x\": ", events[i].x, ", \"values\": {");
      } else {
        packet += ", ";
      }
      absl::StrAppend(&packet, config::JsonString(events[i].name), ": ",
                      config::JsonNumber(events[i].value));
    }
    return packet.empty() ? absl::OkStatus() : Send(packet + "}}");
  }

  absl::Status Flush() override { return absl::OkStatus(); }

 private:
  // Never blocks. A full queue drops the packet and is no error.
  absl::Status Send(std::string_view packet) {
    if (send(socket_.get(), packet.data(), packet.size(),
             MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR) >= 0) {
      ++sent_;
      return absl::OkStatus();
    }
    const int error = errno;
    if (error == EAGAIN || error == ENOBUFS || error == EMSGSIZE) {
      ++dropped_;
      return absl::OkStatus();
    }
    broken_ = absl::UnavailableError(
        absl::StrCat("wandb: the helper has ended after ", sent_, " packets; ",
                     log_path_, " says why"));
    return broken_;
  }

  const WandbOptions options_;
  const std::string log_path_;
  UniqueFd socket_;
  pid_t pid_ = -1;
  absl::Status broken_;
  std::int64_t sent_ = 0;
  std::int64_t dropped_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Monitor>> CreateWandbMonitor(
    const WandbOptions& options) {
  WandbOptions made = options;
  // GCC 12 takes the assignment of a literal for an overlapping copy.
  if (made.directory.empty()) made.directory.assign(1, '.');
  STOWAGE_RETURN_IF_ERROR(MakeDirectories(made.directory));
  auto monitor = std::make_unique<WandbMonitor>(std::move(made));
  if (absl::Status started = monitor->Start(); !started.ok()) {
    monitor->SetBroken(std::move(started));
  }
  return monitor;
}

}  // namespace stowage::engine::monitor
