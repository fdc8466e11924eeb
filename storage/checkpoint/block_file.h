// A checkpoint's file, written from front to end and read anywhere, in blocks
// that each have a checksum.
//
// Writing goes past the page cache where the file system allows it (O_DIRECT),
// so that saving a large state pushes nothing else out of memory; reading goes
// through it. A block is checked when it is read, before a byte of it is used.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"
#include "storage/checkpoint/manifest.h"

namespace stowage::storage {

// Memory for one block, at an address that direct I/O takes.
class BlockBuffer {
 public:
  BlockBuffer();
  BlockBuffer(BlockBuffer&&) = default;
  BlockBuffer& operator=(BlockBuffer&&) = default;
  BlockBuffer(const BlockBuffer&) = delete;
  BlockBuffer& operator=(const BlockBuffer&) = delete;
  ~BlockBuffer() = default;

  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
};

// Thread safety: externally synchronized. Errors: kResourceExhausted for a full
// file system; else errno's. Each names file, offset and length.
class BlockWriter {
 public:
  // Makes a file that must not be there yet and allocates its space.
  static absl::StatusOr<BlockWriter> Create(const std::string& path,
                                            std::int64_t bytes);

  // The next bytes; they are written when a block is full.
  absl::Status Append(std::span<const std::byte> bytes);

  // Writes what is left and flushes the file to the device.
  // Requires: as many bytes as Create() was told were appended.
  absl::Status Finish();

  const std::vector<std::uint32_t>& crc32() const { return crc32_; }

 private:
  BlockWriter() = default;
  absl::Status WriteBlock();

  std::string path_;
  std::int64_t bytes_ = 0;
  UniqueFd file_;
  BlockBuffer buffer_;
  std::int64_t filled_bytes_ = 0;   // of the buffer
  std::int64_t written_bytes_ = 0;  // of the file
  std::vector<std::uint32_t> crc32_;
};

// Thread safety: externally synchronized.
class BlockReader {
 public:
  // Errors: kNotFound; kDataLoss if it is not as long as the manifest says.
  static absl::StatusOr<BlockReader> Open(const std::string& folder,
                                          const CheckpointFile& file);

  // Copies bytes out; the blocks that they lie in are checked.
  // Errors: kDataLoss naming file and block; kInvalidArgument for a range
  //   outside the file.
  absl::Status Read(std::int64_t offset_bytes, std::span<std::byte> into);

  // Checks every block. `progress` hears of the bytes of each.
  template <typename Progress>
  absl::Status Verify(const Progress& progress) {
    for (std::int64_t block = 0; block < blocks(); ++block) {
      if (absl::Status status = Load(block); !status.ok()) return status;
      progress(BlockBytes(block));
    }
    return absl::OkStatus();
  }

  std::int64_t bytes() const { return file_.bytes; }
  const std::string& path() const { return path_; }

 private:
  BlockReader() = default;
  std::int64_t blocks() const {
    return static_cast<std::int64_t>(file_.crc32.size());
  }
  std::int64_t BlockBytes(std::int64_t block) const;
  absl::Status Load(std::int64_t block);

  std::string path_;
  CheckpointFile file_;
  UniqueFd fd_;
  BlockBuffer buffer_;
  std::int64_t loaded_ = -1;  // block in the buffer
};

}  // namespace stowage::storage
