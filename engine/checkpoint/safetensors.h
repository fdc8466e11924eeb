// Writes a safetensors file tensor by tensor, so that memory stays bounded.
//
// Format: 8 bytes little-endian header length N; N bytes of JSON {name:
// {"dtype", "shape", "data_offsets": [begin, end]}}, padded with spaces to 8;
// then the data. Written beside its place and renamed into it last.
//
// Source: the safetensors repository's README, "Format".

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/dtype.h"
#include "common/unique_fd.h"

namespace stowage::engine {

struct SafetensorsEntry {
  std::string name;
  Dtype dtype = Dtype::kFp32;
  std::vector<std::int64_t> shape;
};

// Thread safety: externally synchronized.
class SafetensorsWriter {
 public:
  // Errors: kInvalidArgument for a duplicate name; kResourceExhausted if the
  //   file system has too little space (asked before the first byte); else the
  //   file operation's.
  static absl::StatusOr<SafetensorsWriter> Create(
      const std::string& path, const std::vector<SafetensorsEntry>& entries,
      const std::map<std::string, std::string>& metadata);

  // Appends the next entry's data; entries come in Create()'s order.
  absl::Status Append(std::span<const std::byte> data);
  // Flushes, syncs and renames. Requires: every entry was appended.
  absl::Status Finish();

  SafetensorsWriter(SafetensorsWriter&&) = default;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = default;
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  ~SafetensorsWriter();  // removes the unfinished file

 private:
  SafetensorsWriter() = default;
  std::string path_;
  std::string temporary_;
  UniqueFd file_;
  std::vector<std::int64_t> sizes_;
  std::size_t next_ = 0;
};

}  // namespace stowage::engine
