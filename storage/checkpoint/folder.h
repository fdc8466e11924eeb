// Where checkpoints lie: a folder of the user's with one folder for each step,
//
//   step-0000000100/           complete: it was renamed to this name last
//   step-0000000120.partial/   being written, or left by a crash
//   step-0000000080.old/       being removed, or left by a crash
//
// and the operations on them that a crash at any instant must not spoil.
// FORMAT.md has what is in such a folder.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"
#include "storage/checkpoint/manifest.h"

namespace stowage::storage {

// "step-0000000100"; steps above ten digits are longer.
std::string CheckpointName(std::int64_t step);
// Returns: -1 for anything else.
std::int64_t ParseCheckpointName(const std::string& name);
// "model-0000000100": the parameters alone. No checkpoint: there is no state.
std::string ModelFolderName(std::int64_t step);
// What a folder of either kind is called while it is written.
std::string PartialPath(const std::string& path);

// "checkpoint.json" of node 0, "checkpoint-node-K.json" of the others.
std::string CheckpointManifestName(std::int32_t node);

// Steps that have a complete folder in `folder`, ascending. Only names are
// looked at.
absl::StatusOr<std::vector<std::int64_t>> ListCheckpoints(
    const std::string& folder);

// Reads the manifest of one node's part of the checkpoint in `path` and sees
// that its files are there, each as long as it must be.
// Errors: kNotFound if there is no manifest; kDataLoss naming the file.
absl::StatusOr<CheckpointManifest> ReadCheckpoint(const std::string& path,
                                                  std::int32_t node = 0);

// The folder of a checkpoint: of `step` in `folder`, for -1 of the one that was
// saved last (of those whose manifest reads). `folder` may be a checkpoint's
// own folder, if its step is the one that is asked for.
// Errors: kNotFound, naming what is there.
absl::StatusOr<std::string> FindCheckpoint(const std::string& folder,
                                           std::int64_t step);

// A folder that is being filled; removed if it is not published. Other programs
// see by a lock that it is not a leftover.
class PartialCheckpoint {
 public:
  // For the folder `path`. Removes leftovers of crashes beside it, then makes
  // the partial folder.
  // Errors: kUnavailable if another save of this step is being written.
  static absl::StatusOr<std::unique_ptr<PartialCheckpoint>> Create(
      const std::string& path);
  PartialCheckpoint(const PartialCheckpoint&) = delete;
  PartialCheckpoint& operator=(const PartialCheckpoint&) = delete;
  ~PartialCheckpoint();

  const std::string& path() const { return path_; }
  const std::string& final_path() const { return final_path_; }

  // Gives it the name of a complete one; one of the same step is replaced. What
  // was written before survives a power loss once this has returned.
  absl::Status Publish();

 private:
  PartialCheckpoint() = default;

  std::string folder_;
  std::string path_;
  std::string final_path_;
  UniqueFd lock_;
  bool published_ = false;
};

// Removes the complete checkpoints that were saved first until `keep` are left.
// One whose manifest does not read is left for a person to look at.
// Returns: the steps removed. Errors do not stop it; the first is returned.
absl::StatusOr<std::vector<std::int64_t>> KeepNewest(const std::string& folder,
                                                     std::int32_t keep);

// What is free to an ordinary user where `path` lies.
absl::StatusOr<std::int64_t> FreeBytes(const std::string& path);

// Writes a small file and flushes it.
absl::Status WriteSmallFile(const std::string& path,
                            const std::string& contents);
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          std::int64_t bytes_max);

}  // namespace stowage::storage
