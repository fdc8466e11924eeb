// Reads a complete checkpoint: its manifest and the tensors of each kind, by
// name. Every byte is checked before it is handed out.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/checkpoint/block_file.h"
#include "storage/checkpoint/folder.h"
#include "storage/checkpoint/manifest.h"
#include "storage/checkpoint/tensor_header.h"

namespace stowage::storage {

// Thread safety: externally synchronized; different readers of one folder are
//   independent.
// Memory: one block for each kind that is being read.
class CheckpointReader {
 public:
  // Opens the checkpoint in `path`, of one node or of several (then all parts
  // must be there and belong together).
  // Errors: ReadCheckpoint()'s; kDataLoss for a header that is not whole.
  static absl::StatusOr<CheckpointReader> Open(const std::string& path);

  // Of node 0; the parts of other nodes differ in their files only.
  const CheckpointManifest& manifest() const { return manifests_.front(); }
  const std::string& path() const { return path_; }
  std::int64_t bytes() const;

  // Returns: nullptr if the kind has no tensor of that name.
  const TensorSpec* Find(const std::string& kind,
                         const std::string& name) const;
  // In the order of the files.
  std::vector<TensorSpec> Tensors(const std::string& kind) const;

  // Copies bytes [begin, begin + into.size()) of a tensor out.
  // Errors: kNotFound; BlockReader's.
  absl::Status Read(const std::string& kind, const std::string& name,
                    std::int64_t begin_bytes, std::span<std::byte> into);

  // Checks every byte of every file. `progress` hears of bytes checked.
  absl::Status Verify(const std::function<void(std::int64_t)>& progress);

 private:
  struct Place {
    std::size_t file = 0;
    PlacedTensor tensor;
    std::int64_t data_begin_bytes = 0;  // of its file
  };
  using Key = std::pair<std::string, std::string>;  // kind, name

  CheckpointReader() = default;
  absl::Status AddFile(const CheckpointFile& file);
  absl::StatusOr<BlockReader*> Reader(std::size_t file);

  std::string path_;
  std::vector<CheckpointManifest> manifests_;  // by node
  std::vector<CheckpointFile> files_;          // of all nodes
  std::map<Key, Place> places_;
  std::map<std::string, std::vector<Key>> order_;  // by kind
  // The open file of each kind: reading goes through a kind in order.
  struct OpenFile {
    std::size_t file = 0;
    BlockReader reader;
  };
  std::map<std::string, OpenFile> open_;
};

}  // namespace stowage::storage
