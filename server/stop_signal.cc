#include "server/stop_signal.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>

#include "absl/strings/str_cat.h"
#include "common/errno_status.h"

namespace stowage {

absl::StatusOr<StopSignal> StopSignal::Create(int parent_fd) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (::pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0) {
    return ErrnoStatus("pthread_sigmask");
  }
  // A client or parent that is gone must not end the server.
  std::signal(SIGPIPE, SIG_IGN);
  StopSignal made;
  made.signals_ = UniqueFd(::signalfd(-1, &signals, SFD_CLOEXEC));
  if (!made.signals_.valid()) return ErrnoStatus("signalfd");
  made.parent_fd_ = parent_fd;
  if (parent_fd >= 0) ::fcntl(parent_fd, F_SETFD, FD_CLOEXEC);
  return made;
}

std::string StopSignal::Wait() {
  while (true) {
    std::array<pollfd, 2> fds = {pollfd{signals_.get(), POLLIN, 0},
                                 pollfd{parent_fd_, POLLIN, 0}};
    if (::poll(fds.data(), parent_fd_ >= 0 ? 2 : 1, -1) < 0) {
      if (errno == EINTR) continue;
      return "poll failed";
    }
    if (fds[0].revents != 0) {
      signalfd_siginfo info{};
      if (::read(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
        return info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT";
      }
    }
    if (parent_fd_ >= 0 && fds[1].revents != 0) {
      std::array<char, 64> bytes{};
      if (::read(parent_fd_, bytes.data(), bytes.size()) <= 0) {
        return "the parent is gone";
      }
    }
  }
}

}  // namespace stowage
