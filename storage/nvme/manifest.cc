#include "storage/nvme/manifest.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/job_spec.h"
#include "common/status_macros.h"
#include "storage/nvme/byte_codec.h"
#include "storage/nvme/crc32c.h"

namespace stowage::storage {
namespace {

// Header of both kinds of record: magic 8, version 4, checksum 4 (of all that
// follows), body length 8.
constexpr std::string_view kManifestMagic = "STOWMAN\n";
constexpr std::string_view kJobMagic = "STOWJOB\n";
constexpr std::size_t kHeaderBytes = 8 + 4 + 4 + 8;
constexpr std::size_t kChecksumFrom = 16;
// Paths, names and numbers of a manifest, without its commits.
constexpr std::int64_t kFixedBytesMax = 64 * kKiB;

std::uint32_t Sum(std::string_view bytes) {
  return Crc32c(std::as_bytes(std::span<const char>(bytes)));
}

std::string Sealed(std::string_view magic, const std::string& body) {
  std::string out(magic);
  ByteWriter writer(&out);
  writer.Put(kFormatVersion);
  writer.Put(std::uint32_t{0});
  writer.Put(static_cast<std::uint64_t>(body.size()));
  out += body;
  const std::uint32_t sum = Sum(std::string_view(out).substr(kChecksumFrom));
  std::memcpy(out.data() + 12, &sum, sizeof(sum));
  return out;
}

// Returns the body.
absl::StatusOr<std::string_view> Unsealed(std::string_view magic,
                                          std::string_view bytes) {
  if (bytes.size() < kHeaderBytes || bytes.substr(0, 8) != magic) {
    const bool zero = std::all_of(
        bytes.begin(),
        bytes.begin() +
            static_cast<std::ptrdiff_t>(std::min<std::size_t>(8, bytes.size())),
        [](char c) { return c == 0; });
    return absl::DataLossError(zero ? "never written" : "wrong magic");
  }
  ByteReader header(bytes.substr(8, kHeaderBytes - 8));
  const auto version = header.Get<std::uint32_t>();
  const auto written = header.Get<std::uint32_t>();
  const auto body_bytes = header.Get<std::uint64_t>();
  if (version == 0 || version > kFormatVersion) {
    return absl::UnimplementedError(absl::StrCat("format version ", version,
                                                 ", this program knows up to ",
                                                 kFormatVersion));
  }
  if (body_bytes > bytes.size() - kHeaderBytes) {
    return absl::DataLossError(absl::StrCat("says it is ", body_bytes,
                                            " bytes long, there are ",
                                            bytes.size() - kHeaderBytes));
  }
  const std::uint32_t found = Sum(
      bytes.substr(kChecksumFrom, kHeaderBytes - kChecksumFrom + body_bytes));
  if (found != written) {
    return absl::DataLossError(absl::StrFormat(
        "checksum %08x, written %08x: torn or damaged", found, written));
  }
  return bytes.substr(kHeaderBytes, body_bytes);
}

void PutTable(const PlaceTable& table, ByteWriter* writer) {
  writer->PutArray(std::span<const std::uint8_t>(table.places));
  writer->PutArray(std::span<const std::uint32_t>(table.checksums));
}

PlaceTable GetTable(std::uint64_t extents, std::uint64_t pieces,
                    ByteReader* reader) {
  PlaceTable table;
  // No allocation that the bytes cannot fill.
  if (extents > reader->left() || pieces > reader->left() / 4) {
    reader->GetText();  // fails
    return table;
  }
  table.places.resize(extents);
  table.checksums.resize(pieces);
  reader->GetArray(std::span<std::uint8_t>(table.places));
  reader->GetArray(std::span<std::uint32_t>(table.checksums));
  return table;
}

void PutShape(const StoreShape& shape, ByteWriter* writer) {
  writer->PutText(shape.job_name);
  writer->Put(shape.job_id);
  writer->Put(shape.layout_fingerprint);
  writer->Put(shape.kept_versions);
  writer->Put(static_cast<std::uint8_t>(shape.params));
  writer->Put(static_cast<std::uint8_t>(shape.gradient_spill));
  writer->Put(static_cast<std::uint8_t>(shape.checksums));
  writer->Put(shape.extent_bytes);
  writer->Put(shape.align_bytes);
  writer->Put(static_cast<std::uint32_t>(shape.paths.size()));
  for (const std::string& path : shape.paths) writer->PutText(path);
}

StoreShape GetShape(ByteReader* reader) {
  StoreShape shape;
  shape.job_name = reader->GetText();
  shape.job_id = reader->Get<std::uint64_t>();
  shape.layout_fingerprint = reader->Get<std::uint64_t>();
  shape.kept_versions = reader->Get<std::int32_t>();
  shape.params = reader->Get<std::uint8_t>() != 0;
  shape.gradient_spill = reader->Get<std::uint8_t>() != 0;
  shape.checksums = reader->Get<std::uint8_t>() != 0;
  shape.extent_bytes = reader->Get<std::int64_t>();
  shape.align_bytes = reader->Get<std::int64_t>();
  const auto paths = reader->Get<std::uint32_t>();
  for (std::uint32_t i = 0; i < paths && reader->ok(); ++i) {
    shape.paths.push_back(reader->GetText());
  }
  return shape;
}

bool Sane(const StoreShape& shape) {
  const auto power_of_two = [](std::int64_t n) {
    return n > 0 && (n & (n - 1)) == 0;
  };
  return shape.kept_versions >= 1 && shape.kept_versions <= kKeptVersionsMax &&
         shape.extent_bytes > 0 && power_of_two(shape.align_bytes) &&
         !shape.paths.empty();
}

}  // namespace

std::string EncodeManifest(const Manifest& manifest) {
  std::string body;
  ByteWriter writer(&body);
  writer.Put(manifest.sequence);
  writer.Put(manifest.slot_bytes);
  writer.Put(static_cast<std::uint8_t>(manifest.durability));
  PutShape(manifest.shape, &writer);
  const auto count = static_cast<std::uint32_t>(manifest.commits.size());
  writer.Put(count);
  const KeptCommit none;
  const KeptCommit& any = count == 0 ? none : manifest.commits.front();
  for (const PlaceTable* table : {&any.state, &any.params}) {
    writer.Put(static_cast<std::uint64_t>(table->places.size()));
    writer.Put(static_cast<std::uint64_t>(table->checksums.size()));
  }
  for (const KeptCommit& commit : manifest.commits) {
    writer.Put(commit.record.step);
    writer.Put(commit.record.applied_steps);
    writer.PutText(commit.record.client_state);
    PutTable(commit.state, &writer);
    PutTable(commit.params, &writer);
  }
  return Sealed(kManifestMagic, body);
}

absl::StatusOr<Manifest> DecodeManifest(std::string_view bytes) {
  STOWAGE_ASSIGN_OR_RETURN(const std::string_view body,
                           Unsealed(kManifestMagic, bytes));
  ByteReader reader(body);
  Manifest manifest;
  manifest.sequence = reader.Get<std::uint64_t>();
  manifest.slot_bytes = reader.Get<std::int64_t>();
  manifest.durability = static_cast<Durability>(reader.Get<std::uint8_t>());
  manifest.shape = GetShape(&reader);
  const auto commits = reader.Get<std::uint32_t>();
  std::uint64_t sizes[4] = {};
  for (std::uint64_t& size : sizes) size = reader.Get<std::uint64_t>();
  for (std::uint32_t i = 0; i < commits && reader.ok(); ++i) {
    KeptCommit commit;
    commit.record.step = reader.Get<std::int64_t>();
    commit.record.applied_steps = reader.Get<std::int64_t>();
    commit.record.client_state = reader.GetText();
    commit.state = GetTable(sizes[0], sizes[1], &reader);
    commit.params = GetTable(sizes[2], sizes[3], &reader);
    manifest.commits.push_back(std::move(commit));
  }
  if (!reader.ok() || reader.left() != 0 || !Sane(manifest.shape)) {
    return absl::DataLossError("checksum right, contents impossible");
  }
  return manifest;
}

std::string EncodeJobFile(const JobFile& job) {
  std::string body;
  ByteWriter writer(&body);
  writer.PutText(job.job_record);
  writer.Put(static_cast<std::uint8_t>(job.layout.param_dtype));
  writer.Put(static_cast<std::uint32_t>(job.layout.groups.size()));
  for (const GroupSpec& group : job.layout.groups) {
    writer.PutText(group.name);
    writer.Put(static_cast<std::uint8_t>(group.frozen));
  }
  writer.Put(static_cast<std::uint32_t>(job.layout.units.size()));
  for (const UnitSpec& unit : job.layout.units) {
    writer.PutText(unit.name);
    writer.Put(static_cast<std::uint32_t>(unit.params.size()));
    for (const ParamSpec& param : unit.params) {
      writer.PutText(param.name);
      writer.Put(param.group_index);
      writer.Put(static_cast<std::uint32_t>(param.shape.size()));
      writer.PutArray(std::span<const std::int64_t>(param.shape));
    }
  }
  return Sealed(kJobMagic, body);
}

absl::StatusOr<JobFile> DecodeJobFile(std::string_view bytes) {
  STOWAGE_ASSIGN_OR_RETURN(const std::string_view body,
                           Unsealed(kJobMagic, bytes));
  ByteReader reader(body);
  JobFile job;
  job.job_record = reader.GetText();
  job.layout.param_dtype = static_cast<Dtype>(reader.Get<std::uint8_t>());
  const auto groups = reader.Get<std::uint32_t>();
  for (std::uint32_t g = 0; g < groups && reader.ok(); ++g) {
    GroupSpec group;
    group.name = reader.GetText();
    group.frozen = reader.Get<std::uint8_t>() != 0;
    job.layout.groups.push_back(std::move(group));
  }
  const auto units = reader.Get<std::uint32_t>();
  for (std::uint32_t u = 0; u < units && reader.ok(); ++u) {
    UnitSpec unit;
    unit.name = reader.GetText();
    const auto params = reader.Get<std::uint32_t>();
    for (std::uint32_t p = 0; p < params && reader.ok(); ++p) {
      ParamSpec param;
      param.name = reader.GetText();
      param.group_index = reader.Get<std::int32_t>();
      const auto rank = reader.Get<std::uint32_t>();
      if (rank > reader.left() / sizeof(std::int64_t)) {
        return absl::DataLossError("checksum right, contents impossible");
      }
      param.shape.resize(rank);
      reader.GetArray(std::span<std::int64_t>(param.shape));
      unit.params.push_back(std::move(param));
    }
    job.layout.units.push_back(std::move(unit));
  }
  if (!reader.ok() || reader.left() != 0) {
    return absl::DataLossError("checksum right, contents impossible");
  }
  return job;
}

std::int64_t ManifestSlotBytes(const StoreShape& shape, const ExtentMap& state,
                               const ExtentMap& params) {
  std::int64_t commit = 64 + kClientStateBytesMax;
  for (const ExtentMap* map : {&state, &params}) {
    commit += static_cast<std::int64_t>(map->extents().size()) +
              4 * static_cast<std::int64_t>(map->pieces().size());
  }
  return RoundUp(kFixedBytesMax + shape.kept_versions * commit,
                 shape.align_bytes);
}

ExtentMap StateMap(const Layout& layout, const StoreShape& shape) {
  return ExtentMap::OfState(
      layout, {.extent_bytes = shape.extent_bytes,
               .align_bytes = shape.align_bytes,
               .files = static_cast<std::int32_t>(shape.paths.size()),
               .places = shape.kept_versions + 1});
}

ExtentMap ParamMap(const Layout& layout, const StoreShape& shape) {
  if (!shape.params) return {};
  return ExtentMap::OfParams(
      layout, {.extent_bytes = shape.extent_bytes,
               .align_bytes = shape.align_bytes,
               .files = static_cast<std::int32_t>(shape.paths.size()),
               .places = shape.kept_versions + 1});
}

ExtentMap SumMap(const Layout& layout, const StoreShape& shape) {
  if (!shape.gradient_spill) return {};
  return ExtentMap::OfSums(
      layout, {.extent_bytes = shape.extent_bytes,
               .align_bytes = shape.align_bytes,
               .files = static_cast<std::int32_t>(shape.paths.size()),
               .places = 1});
}

std::string StoreFolder(const std::string& path, const std::string& job_name) {
  return absl::StrCat(path, "/", job_name, ".stowage");
}

std::string StoreFile(const StoreShape& shape, const std::string& kind,
                      std::int32_t folder_index) {
  return absl::StrCat(
      StoreFolder(shape.paths[static_cast<std::size_t>(folder_index)],
                  shape.job_name),
      "/", kind, ".", folder_index);
}

std::string ManifestFile(const std::string& path, const std::string& job_name) {
  return StoreFolder(path, job_name) + "/manifest";
}

std::string JobFileName(const std::string& path, const std::string& job_name) {
  return StoreFolder(path, job_name) + "/job";
}

std::string LockFileName(const std::string& path, const std::string& job_name) {
  return StoreFolder(path, job_name) + "/lock";
}

absl::StatusOr<const Manifest*> ManifestSlots::Newest(
    const std::string& file) const {
  const Manifest* newest = nullptr;
  for (const absl::StatusOr<Manifest>& slot : slots) {
    if (!slot.ok() && absl::IsUnimplemented(slot.status())) {
      return absl::UnimplementedError(
          absl::StrCat(file, ": ", slot.status().message()));
    }
    if (slot.ok() && (newest == nullptr || slot->sequence > newest->sequence)) {
      newest = &*slot;
    }
  }
  if (newest != nullptr) return newest;
  return absl::DataLossError(absl::StrCat(
      file,
      ": no whole manifest: slot 0 at offset 0: ", slots[0].status().message(),
      "; slot 1 at offset ", slot_bytes, ": ", slots[1].status().message(),
      "; the job's steps cannot be told apart any more: restore the file from "
      "a copy, or drop the job"));
}

absl::StatusOr<ManifestSlots> ReadManifestFile(Disk& disk,
                                               const std::string& file) {
  STOWAGE_ASSIGN_OR_RETURN(const std::string bytes, disk.ReadSmall(file));
  ManifestSlots result;
  const std::string_view view(bytes);
  // A truncated file still has its first slot, which knows where the second is.
  result.slots[0] = DecodeManifest(view);
  result.slot_bytes = result.slots[0].ok()
                          ? result.slots[0]->slot_bytes
                          : static_cast<std::int64_t>(bytes.size() / 2);
  result.slots[1] = DecodeManifest(view.substr(
      std::min(bytes.size(), static_cast<std::size_t>(result.slot_bytes))));
  return result;
}

}  // namespace stowage::storage
