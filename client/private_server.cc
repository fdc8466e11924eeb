#include "client/private_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/environment.h"
#include "common/errno_status.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"

namespace stowage::client {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kStartLimit{20};
constexpr std::chrono::seconds kStopLimit{5};
constexpr int kChildFd = 3;  // the pipe's number in the child
constexpr std::string_view kReadyPrefix = "ready ";
constexpr std::size_t kLastWordsMax = 4096;

absl::StatusOr<std::string> FindBinary(const std::string& asked) {
  std::vector<std::string> places;
  const std::string set = Environment("STOWAGE_STOWD");
  if (!asked.empty()) {
    places.push_back(asked);
  } else if (!set.empty()) {
    places.push_back(set);
  } else {
    std::array<char, 4096> self{};
    const ssize_t length =
        ::readlink("/proc/self/exe", self.data(), self.size() - 1);
    if (length > 0) {
      const std::string path(self.data(), static_cast<std::size_t>(length));
      places.push_back(path.substr(0, path.rfind('/')) + "/stowd");
    }
    const std::string path = Environment("PATH");
    for (const absl::string_view folder :
         absl::StrSplit(path, ':', absl::SkipEmpty())) {
      places.push_back(absl::StrCat(folder, "/stowd"));
    }
  }
  for (const std::string& place : places) {
    struct stat info {};
    if (::stat(place.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
        ::access(place.c_str(), X_OK) == 0) {
      return place;
    }
  }
  return absl::NotFoundError(absl::StrCat(
      "no stowd program (looked at ", absl::StrJoin(places, ", "),
      "); set STOWAGE_STOWD to its path, or --server to one that runs"));
}

// A name that nobody can have taken; stowd makes the folder, 0700, and so
// removes it at its end.
std::string FolderName() {
  const std::string runtime = Environment("XDG_RUNTIME_DIR");
  const bool usable = runtime.starts_with('/') && runtime.size() < 48 &&
                      ::access(runtime.c_str(), W_OK | X_OK) == 0;
  std::random_device random;
  return absl::StrFormat("%s/stowage-%d-%08x%08x",
                         usable ? runtime : std::string("/tmp"), ::getpid(),
                         random(), random());
}

std::vector<std::string> Arguments(const PrivateServer::Options& options,
                                   const std::string& binary,
                                   const std::string& address) {
  std::vector<std::string> arguments = {binary,
                                        "--listen",
                                        address,
                                        "--exit-with-parent-fd",
                                        absl::StrCat(kChildFd),
                                        "--log-level",
                                        "warning"};
  if (!options.shm_dir.empty()) {
    arguments.insert(arguments.end(), {"--shm-dir", options.shm_dir});
  }
  if (options.threads > 0) {
    arguments.insert(arguments.end(),
                     {"--threads", absl::StrCat(options.threads)});
  }
  arguments.insert(arguments.end(), options.extra_args.begin(),
                   options.extra_args.end());
  return arguments;
}

// In the child, between fork and exec: async-signal-safe calls only.
[[noreturn]] void RunChild(char* const* argv, int life_fd, int words_fd,
                           pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(0);  // it died before prctl
  // A group of its own: Ctrl-C at the terminal reaches the trainer, which ends
  // its server once it has said goodbye.
  ::setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  ::pthread_sigmask(SIG_SETMASK, &none, nullptr);
  // Either may be the number that the other has to get: move both out first.
  const int life = ::fcntl(life_fd, F_DUPFD_CLOEXEC, 10);
  const int words = ::fcntl(words_fd, F_DUPFD_CLOEXEC, 10);
  if (life < 0 || words < 0 || ::dup2(words, STDOUT_FILENO) < 0 ||
      ::dup2(life, kChildFd) < 0) {
    ::_exit(127);
  }
  ::execv(argv[0], argv);
  ::_exit(127);
}

// Reads the child's stdout until a whole line is there.
// Returns: the line; what there was, if the child closed it; empty on timeout.
std::string ReadLine(int fd, Clock::time_point end) {
  std::string text;
  while (text.size() < kLastWordsMax) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - Clock::now());
    pollfd wait{fd, POLLIN, 0};
    const int ready =
        left.count() > 0 ? ::poll(&wait, 1, static_cast<int>(left.count())) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return "";
    std::array<char, 512> bytes{};
    const ssize_t got = ::read(fd, bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(bytes.data(), static_cast<std::size_t>(got));
    if (text.find('\n') != std::string::npos) break;
  }
  return text.substr(0, text.find('\n'));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrivateServer>> PrivateServer::Start(
    const Options& options) {
  STOWAGE_ASSIGN_OR_RETURN(const std::string binary,
                           FindBinary(options.binary));
  std::unique_ptr<PrivateServer> server(new PrivateServer);
  server->folder_ = FolderName();
  server->address_ = absl::StrCat("unix:", server->folder_, "/stowd.sock");
  std::array<int, 2> life{};
  if (::pipe2(life.data(), O_CLOEXEC) != 0) return ErrnoStatus("pipe");
  UniqueFd life_read(life[0]);
  UniqueFd life_write(life[1]);
  std::array<int, 2> words{};
  if (::pipe2(words.data(), O_CLOEXEC) != 0) return ErrnoStatus("pipe");
  const UniqueFd words_read(words[0]);
  UniqueFd words_write(words[1]);
  std::vector<std::string> arguments =
      Arguments(options, binary, server->address_);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(absl::StrCat("fork for ", binary));
  if (pid == 0) {
    RunChild(argv.data(), life_read.get(), words_write.get(), parent);
  }
  server->pid_ = pid;
  server->pipe_fd_ = life_write.Release();
  words_write.Reset();
  life_read.Reset();
  const std::string line =
      ReadLine(words_read.get(), Clock::now() + kStartLimit);
  if (line.rfind(kReadyPrefix, 0) == 0) return server;
  return absl::UnavailableError(absl::StrCat(
      "the private server ", binary,
      line.empty() ? " ended or did not get ready within 20 s; its messages "
                     "are above"
                   : absl::StrCat(" did not start: ", line)));
}

void PrivateServer::Stop() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGTERM);
  const auto end = Clock::now() + kStopLimit;
  bool killed = false;
  while (true) {
    const pid_t ended = ::waitpid(pid_, nullptr, killed ? 0 : WNOHANG);
    if (ended == pid_ || (ended < 0 && errno != EINTR)) break;
    if (!killed && Clock::now() > end) {
      ::kill(pid_, SIGKILL);
      killed = true;
    } else if (!killed) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  pid_ = -1;
  if (pipe_fd_ >= 0) ::close(std::exchange(pipe_fd_, -1));
  // Gone already, unless the server was killed.
  ::unlink(address_.substr(std::strlen("unix:")).c_str());
  ::rmdir(folder_.c_str());
}

PrivateServer::~PrivateServer() { Stop(); }

}  // namespace stowage::client
