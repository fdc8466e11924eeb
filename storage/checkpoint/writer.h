// Writes one node's part of a checkpoint: tensors in, a complete folder out.
//
// The caller appends the bytes of each kind's tensors in the layout's order;
// kinds are independent of each other. A kind's tensors are cut into files of
// about the same size at tensors' borders. Nothing is visible under a complete
// name before Publish().

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
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

// What shards are cut at, unless a tensor alone is larger. DeepSpeed's and
// Hugging Face's default is 5 GB.
inline constexpr std::int64_t kTensorFileBytes = 5'000'000'000;

// Tensors of one kind, in files "KIND-00001-of-00003.safetensors" or, if one is
// enough, "KIND.safetensors".
// Thread safety: externally synchronized. Errors: BlockWriter's.
class TensorStream {
 public:
  TensorStream(std::string folder, std::string kind,
               std::vector<TensorSpec> tensors, std::int64_t file_bytes_max);

  std::int64_t bytes() const;  // of all files

  // The next bytes of the kind, across tensors and files.
  absl::Status Append(std::span<const std::byte> bytes);
  // Requires: all tensors were appended.
  absl::Status Finish();

  const std::string& kind() const { return kind_; }
  const std::vector<CheckpointFile>& files() const { return files_; }
  // File index by tensor, in their order; for an index of names.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  const std::string& file_of(std::size_t tensor) const;

 private:
  absl::Status OpenNext();

  const std::string folder_;
  const std::string kind_;
  const std::vector<TensorSpec> tensors_;
  std::vector<std::size_t> file_of_;   // by tensor
  std::vector<std::string> headers_;   // by file
  std::vector<CheckpointFile> files_;  // likewise; checksums when written
  std::vector<std::int64_t> left_;     // bytes of data to come, by file
  std::size_t current_ = 0;
  std::optional<BlockWriter> writer_;
};

class CheckpointWriter {
 public:
  struct Stream {
    std::string kind;
    std::vector<TensorSpec> tensors;
  };

  // Asks for the space of all files, then makes the partial folder of `path`,
  // the checkpoint's own. `manifest.files` is filled while writing.
  // Errors: kResourceExhausted with need and free bytes; else as
  //   PartialCheckpoint::Create().
  static absl::StatusOr<std::unique_ptr<CheckpointWriter>> Create(
      const std::string& path, CheckpointManifest manifest,
      const std::vector<Stream>& streams,
      std::int64_t file_bytes_max = kTensorFileBytes);

  std::int64_t total_bytes() const { return total_bytes_; }
  std::int64_t done_bytes() const { return done_bytes_; }

  // The next bytes of a kind.
  absl::Status Append(const std::string& kind,
                      std::span<const std::byte> bytes);

  // Ends all files, writes the manifest and gives the folder its name.
  // Returns: the path of the checkpoint.
  absl::StatusOr<std::string> Publish();

 private:
  CheckpointWriter() = default;
  absl::Status WriteIndex(const TensorStream& stream);

  std::unique_ptr<PartialCheckpoint> partial_;
  CheckpointManifest manifest_;
  std::vector<TensorStream> streams_;
  std::int64_t total_bytes_ = 0;
  std::int64_t done_bytes_ = 0;
};

}  // namespace stowage::storage
