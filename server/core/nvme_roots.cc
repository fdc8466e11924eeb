#include "server/core/nvme_roots.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace stowage::core {
namespace {

namespace fs = std::filesystem;

bool Below(const std::string& path, const std::string& root) {
  return path == root || root == "/" ||
         (path.size() > root.size() &&
          path.compare(0, root.size(), root) == 0 && path[root.size()] == '/');
}

std::string WithoutSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

absl::StatusOr<NvmeRoots> NvmeRoots::Create(
    const std::vector<std::string>& roots, const std::string& what) {
  NvmeRoots made;
  made.what_ = what;
  for (const std::string& root : roots) {
    std::error_code error;
    const fs::path real = fs::canonical(root, error);
    if (error) {
      return ErrnoStatus(absl::StrCat(what, " root ", root), error.value());
    }
    if (!fs::is_directory(real, error)) {
      return absl::FailedPreconditionError(
          absl::StrCat(what, " root ", root, ": not a folder"));
    }
    if (std::find(made.roots_.begin(), made.roots_.end(), real.string()) ==
        made.roots_.end()) {
      made.roots_.push_back(real.string());
    }
  }
  return made;
}

absl::StatusOr<std::string> NvmeRoots::Canonical(
    const std::string& path) const {
  std::error_code error;
  // Canonical as far as it is there; the rest has no link in it yet.
  std::string real = WithoutSlash(fs::weakly_canonical(path, error).string());
  if (error) {
    return ErrnoStatus(absl::StrCat(what_, " path ", path), error.value());
  }
  if (std::none_of(roots_.begin(), roots_.end(), [&](const std::string& root) {
        return Below(real, root);
      })) {
    return absl::PermissionDeniedError(absl::StrCat(
        what_, " path ", path,
        real == path ? "" : absl::StrCat(" (", real, ")"),
        " lies below none of this server's folders (",
        roots_.empty() ? "it has none" : absl::StrJoin(roots_, ", "),
        "); take one below them, or start stowd with --", what_, "-root ",
        path));
  }
  return real;
}

absl::StatusOr<std::string> NvmeRoots::ResolveToRead(
    const std::string& path) const {
  return Canonical(path);
}

absl::StatusOr<std::vector<std::string>> NvmeRoots::Resolve(
    const std::vector<std::string>& paths) const {
  std::vector<std::string> resolved;
  for (const std::string& path : paths) {
    std::error_code error;
    STOWAGE_ASSIGN_OR_RETURN(const std::string real, Canonical(path));
    if (std::find(resolved.begin(), resolved.end(), real) != resolved.end()) {
      continue;
    }
    // One by one, so that each gets its mode.
    fs::path partial;
    for (const fs::path& part : fs::path(real)) {
      partial /= part;
      if (!fs::create_directory(partial, error)) {
        if (!error && fs::is_directory(partial, error)) continue;
        if (!error) error = std::make_error_code(std::errc::not_a_directory);
        return ErrnoStatus(
            absl::StrCat(what_, " path ", path, ": make ", partial.string()),
            error.value());
      }
      fs::permissions(partial, fs::perms::owner_all, error);
    }
    resolved.push_back(real);
  }
  return resolved;
}

std::vector<std::string> NvmeRoots::Folders() const {
  std::vector<std::string> folders;
  bool cut = false;
  for (const std::string& root : roots_) {
    if (std::find(folders.begin(), folders.end(), root) != folders.end()) {
      continue;
    }
    folders.push_back(root);
    std::error_code error;
    fs::recursive_directory_iterator at(
        root, fs::directory_options::skip_permission_denied, error);
    for (; !error && at != fs::recursive_directory_iterator();
         at.increment(error)) {
      std::error_code ignored;
      const fs::file_status status = at->symlink_status(ignored);
      if (!fs::is_directory(status)) continue;
      if (at.depth() >= kDepthMax - 1) at.disable_recursion_pending();
      if (folders.size() >= static_cast<std::size_t>(kFoldersMax)) {
        cut = true;
        break;
      }
      folders.push_back(at->path().string());
    }
  }
  if (cut) {
    log::Warning("nvme_roots_too_large",
                 {{"folders_looked_at", kFoldersMax},
                  {"advice", "give --nvme-root folders of Stowage's own"}});
  }
  return folders;
}

}  // namespace stowage::core
