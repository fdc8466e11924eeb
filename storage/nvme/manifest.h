// The record that says which extents and which steps are the job, and its two
// places on disk. Replacing it is the commit. FORMAT.md has the bytes.
//
// A manifest file has two slots of one size. Sequence number n is written to
// slot n mod 2, so that the newest whole one always survives the writing of the
// next. The layout and the opaque record change rarely and lie in a small file
// beside it, `job`.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "storage/nvme/extent_map.h"
#include "storage/nvme/io/disk.h"
#include "storage/nvme/nvme_options.h"
#include "storage/state_store.h"

namespace stowage::storage {

// Version 1 is the first. A reader knows its own version and the one before.
inline constexpr std::uint32_t kFormatVersion = 1;

// Values of a place that are not one.
inline constexpr std::uint8_t kPlaceZero = 0xFE;    // never written: all zero
inline constexpr std::uint8_t kPlaceMemory = 0xFF;  // only in a server's memory
inline constexpr std::int32_t kKeptVersionsMax = 63;  // a word of places

// Where each extent's current bytes are, and what they must sum to.
struct PlaceTable {
  std::vector<std::uint8_t> places;      // by extent
  std::vector<std::uint32_t> checksums;  // by piece

  PlaceTable() = default;
  explicit PlaceTable(const ExtentMap& map)
      : places(map.extents().size(), kPlaceZero),
        checksums(map.pieces().size()) {}
  friend bool operator==(const PlaceTable&, const PlaceTable&) = default;
};

struct KeptCommit {
  CommitRecord record;
  PlaceTable state;
  PlaceTable params;  // empty if the store keeps none
};

// What never changes after Create().
struct StoreShape {
  std::string job_name;
  std::uint64_t job_id = 0;
  std::uint64_t layout_fingerprint = 0;
  std::int32_t kept_versions = 1;
  bool params = false;
  bool gradient_spill = false;
  bool checksums = true;
  std::int64_t extent_bytes = 0;
  std::int64_t align_bytes = 4096;
  std::vector<std::string> paths;

  friend bool operator==(const StoreShape&, const StoreShape&) = default;
};

struct Manifest {
  std::uint32_t format_version = kFormatVersion;
  std::uint64_t sequence = 0;
  std::int64_t slot_bytes = 0;                  // of the file it lies in
  Durability durability = Durability::kMemory;  // of the newest commit
  StoreShape shape;
  std::vector<KeptCommit> commits;  // oldest first
};

// The file `job`.
struct JobFile {
  LayoutSpec layout;
  std::string job_record;
};

std::string EncodeManifest(const Manifest& manifest);
// Errors: kDataLoss saying what is wrong (magic, length, checksum, contents);
//   kUnimplemented for a newer format.
absl::StatusOr<Manifest> DecodeManifest(std::string_view bytes);

std::string EncodeJobFile(const JobFile& job);
absl::StatusOr<JobFile> DecodeJobFile(std::string_view bytes);

// Bytes of one slot that any manifest of this shape fits in.
std::int64_t ManifestSlotBytes(const StoreShape& shape, const ExtentMap& state,
                               const ExtentMap& params);

ExtentMap StateMap(const Layout& layout, const StoreShape& shape);
ExtentMap ParamMap(const Layout& layout, const StoreShape& shape);
ExtentMap SumMap(const Layout& layout, const StoreShape& shape);

// Names of a store's files.
std::string StoreFolder(const std::string& path, const std::string& job_name);
std::string StoreFile(const StoreShape& shape, const std::string& kind,
                      std::int32_t folder_index);  // state, params, sums
std::string ManifestFile(const std::string& path, const std::string& job_name);
std::string JobFileName(const std::string& path, const std::string& job_name);
std::string LockFileName(const std::string& path, const std::string& job_name);

// Both slots of a manifest file.
struct ManifestSlots {
  std::int64_t slot_bytes = 0;
  absl::StatusOr<Manifest> slots[2] = {absl::NotFoundError("empty"),
                                       absl::NotFoundError("empty")};

  // The whole one with the higher sequence number.
  // Errors: kDataLoss naming what is wrong with both, or kUnimplemented.
  absl::StatusOr<const Manifest*> Newest(const std::string& file) const;
};

absl::StatusOr<ManifestSlots> ReadManifestFile(Disk& disk,
                                               const std::string& file);

}  // namespace stowage::storage
