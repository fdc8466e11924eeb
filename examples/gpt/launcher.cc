#include "examples/gpt/launcher.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "examples/gpt/exit_code.h"

namespace stowage::gpt {
namespace {

std::atomic<int> g_signal{0};

void RememberSignal(int signal) { g_signal = signal; }

void SetVariable(const char* name, const std::string& value) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the child has one thread.
  setenv(name, value.c_str(), 1);
}

// A rank that a signal ended is one that was lost, unless the user asked.
int ExitCodeOf(int wait_status) {
  if (WIFEXITED(wait_status)) return WEXITSTATUS(wait_status);
  const int signal = WTERMSIG(wait_status);
  return signal == SIGINT || signal == SIGTERM ? kExitInterrupted : kExitLost;
}

// After the first failure: the others hear of it from the server at once, and
// what they are busy with ends within this; then they are asked, then ended.
constexpr std::chrono::seconds kGrace{7};
constexpr std::chrono::seconds kGraceAfterAsking{2};

}  // namespace

int LaunchRanks(int ranks, const std::function<int()>& rank_main) {
  char rendezvous[] = "/tmp/stowage-rendezvous-XXXXXX";
  const int file = mkstemp(rendezvous);
  if (file < 0) {
    std::perror("stow-train: cannot make a rendezvous file in /tmp");
    return kExitUsage;
  }
  close(file);
  struct sigaction action {};
  action.sa_handler = &RememberSignal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);

  // A signal between fork and the rank's own handler must not be lost: it waits
  // until the rank has the default one, which ends it.
  sigset_t stops;
  sigemptyset(&stops);
  sigaddset(&stops, SIGINT);
  sigaddset(&stops, SIGTERM);
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &stops, &before);

  const pid_t parent = getpid();
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      // A parent that is killed must not leave ranks behind.
      prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (getppid() != parent) _exit(kExitLost);
      action.sa_handler = SIG_DFL;
      sigaction(SIGINT, &action, nullptr);
      sigaction(SIGTERM, &action, nullptr);
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      SetVariable("RANK", std::to_string(rank));
      SetVariable("LOCAL_RANK", std::to_string(rank));
      SetVariable("WORLD_SIZE", std::to_string(ranks));
      SetVariable("LOCAL_WORLD_SIZE", std::to_string(ranks));
      SetVariable("STOWAGE_RENDEZVOUS_FILE", rendezvous);
      std::exit(rank_main());  // NOLINT(concurrency-mt-unsafe)
    }
    if (child < 0) {
      std::perror("stow-train: fork");
      g_signal = SIGTERM;
      break;
    }
    children.push_back(child);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);

  int exit_code = 0;
  std::size_t running = children.size();
  int signals_sent = 0;
  std::chrono::steady_clock::time_point deadline{};
  bool deadline_set = false;
  while (running > 0) {
    int status = 0;
    const pid_t ended = waitpid(-1, &status, WNOHANG);
    if (ended > 0) {
      for (std::size_t rank = 0; rank < children.size(); ++rank) {
        if (children[rank] != ended) continue;
        children[rank] = -1;
        --running;
        const int code = ExitCodeOf(status);
        if (WIFSIGNALED(status)) {
          std::fprintf(stderr,
                       "stow-train: rank %zu (pid %d) was ended by %s\n", rank,
                       static_cast<int>(ended), strsignal(WTERMSIG(status)));
        }
        if (code != 0) {
          // A rank that lost the others, or the private server that ended
          // with one of them, is a consequence of theirs.
          if (exit_code == 0 ||
              (exit_code == kExitLost && code != kExitInternal) ||
              (exit_code == kExitServer && code == kExitUsage)) {
            exit_code = code;
          }
          if (!deadline_set) {
            deadline = std::chrono::steady_clock::now() + kGrace;
            deadline_set = true;
          }
        }
      }
      continue;
    }
    if (const int signal = g_signal.exchange(0); signal != 0) {
      std::fprintf(stderr,
                   "\nstow-train: %s: the ranks end their step first (once "
                   "more: at once)\n",
                   signal == SIGINT ? "interrupt" : "asked to end");
      for (const pid_t child : children) {
        if (child > 0) kill(child, signal);
      }
    }
    if (deadline_set && std::chrono::steady_clock::now() > deadline) {
      for (const pid_t child : children) {
        if (child > 0) kill(child, signals_sent == 0 ? SIGTERM : SIGKILL);
      }
      ++signals_sent;
      deadline += kGraceAfterAsking;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  unlink(rendezvous);
  return exit_code;
}

}  // namespace stowage::gpt
