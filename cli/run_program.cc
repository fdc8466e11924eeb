#include "cli/run_program.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/errno_status.h"
#include "common/unique_fd.h"

extern char** environ;

namespace stowage::cli {
namespace {

// A file without a name that holds `input`, at its beginning.
absl::StatusOr<UniqueFd> InputFile(const std::string& input) {
  UniqueFd file(memfd_create("stowctl-input", MFD_CLOEXEC));
  if (!file.valid()) return ErrnoStatus("make a file in memory");
  for (std::size_t done = 0; done < input.size();) {
    const ssize_t wrote = pwrite(file.get(), input.data() + done,
                                 input.size() - done, static_cast<off_t>(done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return ErrnoStatus("write to a file in memory");
    done += static_cast<std::size_t>(wrote);
  }
  return file;
}

}  // namespace

std::string ProgramBesideUs(const std::string& name) {
  std::array<char, 4096> self{};
  const ssize_t length = readlink("/proc/self/exe", self.data(), self.size());
  if (length <= 0) return name;
  std::string path(self.data(), static_cast<std::size_t>(length));
  path.resize(path.rfind('/') + 1);
  path += name;
  return access(path.c_str(), X_OK) == 0 ? path : name;
}

absl::StatusOr<std::string> RunProgram(
    const std::vector<std::string>& arguments, const std::string& input) {
  absl::StatusOr<UniqueFd> file = InputFile(input);
  if (!file.ok()) return file.status();
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("make a pipe");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, file->get(), 0);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  pid_t child = -1;
  const int error =
      posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return absl::NotFoundError(absl::StrCat("start ", arguments[0], ": ",
                                            ErrnoStatus("", error).message()));
  }
  write_end.Reset();
  std::string output;
  std::array<char, 65536> buffer{};
  while (true) {
    const ssize_t got = read(read_end.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    output.append(buffer.data(), static_cast<std::size_t>(got));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::UnknownError(absl::StrCat(
        arguments[0],
        WIFEXITED(status)
            ? absl::StrCat(" ended with ", WEXITSTATUS(status))
            : absl::StrCat(" was ended by signal ", WTERMSIG(status))));
  }
  return output;
}

}  // namespace stowage::cli
