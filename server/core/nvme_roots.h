// The folders that the server may use (stowd --nvme-root, --export-root), and
// the check that a client's folder lies below one.
//
// Paths are compared in their canonical form, so that neither ".." nor a link
// leads out.
//
// Thread safety: immutable.

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace stowage::core {

class NvmeRoots {
 public:
  // `what` they are for, as in the flag: "nvme", "export".
  // Errors: errno's, naming the root, for one that is no folder.
  static absl::StatusOr<NvmeRoots> Create(const std::vector<std::string>& roots,
                                          const std::string& what = "nvme");

  // A server without roots: nothing on NVMe.
  NvmeRoots() = default;

  bool empty() const { return roots_.empty(); }
  const std::vector<std::string>& roots() const { return roots_; }

  // Canonical forms of a client's folders, duplicates dropped; they are made
  // (0700) where they are not there.
  // Errors: kPermissionDenied naming folder and roots if one lies below none of
  //   them; errno's where a folder cannot be made.
  absl::StatusOr<std::vector<std::string>> Resolve(
      const std::vector<std::string>& paths) const;
  // The canonical form of one that is only read; it need not be there.
  absl::StatusOr<std::string> ResolveToRead(const std::string& path) const;

  // The roots and the folders below them, at most kFoldersMax and kDepthMax
  // deep, links not followed: where jobs may be found.
  static constexpr int kFoldersMax = 4096;
  static constexpr int kDepthMax = 4;
  std::vector<std::string> Folders() const;

 private:
  absl::StatusOr<std::string> Canonical(const std::string& path) const;

  std::string what_ = "nvme";
  std::vector<std::string> roots_;  // canonical
};

}  // namespace stowage::core
