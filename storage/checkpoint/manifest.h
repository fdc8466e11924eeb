// A checkpoint's manifest: what the files in its folder are, and the checksums
// that they must have.
//
// FORMAT.md has the bytes. Both directions are pure functions over bytes;
// nothing that a file says is used as a size before it was checked.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"

namespace stowage::storage {

// A reader knows its own version and the one before (none yet).
inline constexpr std::int32_t kCheckpointFormat = 1;

// What a file's checksums are of: the k-th covers its bytes from k * this on.
inline constexpr std::int64_t kCheckpointBlockBytes = std::int64_t{4} << 20;

// Kinds of files. State kinds are named as in StateKind.
inline constexpr char kKindMaster[] = "master";
inline constexpr char kKindMoment1[] = "moment1";
inline constexpr char kKindMoment2[] = "moment2";
inline constexpr char kKindFrozen[] = "frozen";   // in the ranks' type
inline constexpr char kKindModel[] = "model";     // all, in the ranks' type
inline constexpr char kKindOneBit[] = "one_bit";  // errors of its signs
inline constexpr char kKindIndex[] = "index";     // of kKindModel, as JSON

struct CheckpointFile {
  std::string name;  // in the checkpoint's folder
  std::string kind;
  std::int64_t bytes = 0;
  std::vector<std::uint32_t> crc32;  // by block

  friend bool operator==(const CheckpointFile&,
                         const CheckpointFile&) = default;
};

struct CheckpointManifest {
  std::int32_t format = kCheckpointFormat;
  std::string program;    // that wrote it, with its version
  std::int64_t time = 0;  // milliseconds since 1970
  // Random; the parts of several nodes belong together if it is the same.
  std::string save_id;
  std::int32_t node = 0;
  std::int32_t nodes = 1;
  std::string job;
  std::int64_t step = 0;           // committed steps, skipped ones included
  std::int64_t applied_steps = 0;  // Adam's t
  std::string client_state;        // opaque
  LayoutSpec layout;
  OptimizerSpec optimizer;
  // By group, as of the last apply; empty if there was none. For programs that
  // keep hyper-parameters with the state; a resumed run computes its own.
  std::vector<GroupStep> groups;
  std::vector<std::int32_t> forward_order;  // units; may be empty
  std::vector<std::int32_t> trace;          // likewise
  std::vector<CheckpointFile> files;

  std::int64_t bytes() const;  // of all files
};

std::string EncodeCheckpointManifest(const CheckpointManifest& manifest);

// Errors: kDataLoss saying what is wrong (not a manifest, length, checksum,
//   contents); kUnimplemented for a newer format.
absl::StatusOr<CheckpointManifest> DecodeCheckpointManifest(
    std::string_view bytes);

// Longest manifest that is read.
inline constexpr std::int64_t kCheckpointManifestBytesMax = std::int64_t{1}
                                                            << 30;

}  // namespace stowage::storage
