#include "storage/checkpoint/reader.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace stowage::storage {
namespace {

bool HoldsTensors(const CheckpointFile& file) {
  return file.kind != kKindIndex;
}

}  // namespace

absl::StatusOr<CheckpointReader> CheckpointReader::Open(
    const std::string& path) {
  CheckpointReader reader;
  reader.path_ = path;
  std::int32_t nodes = 1;
  for (std::int32_t node = 0; node < nodes; ++node) {
    absl::StatusOr<CheckpointManifest> manifest = ReadCheckpoint(path, node);
    STOWAGE_RETURN_IF_ERROR(manifest.status());
    if (node == 0) {
      nodes = manifest->nodes;
    } else if (manifest->save_id != reader.manifests_[0].save_id ||
               manifest->step != reader.manifests_[0].step ||
               manifest->nodes != nodes) {
      return absl::DataLossError(
          absl::StrCat(path, ": the part of node ", node,
                       " belongs to another save than that of node 0"));
    }
    reader.manifests_.push_back(*std::move(manifest));
  }
  for (const CheckpointManifest& manifest : reader.manifests_) {
    for (const CheckpointFile& file : manifest.files) {
      reader.files_.push_back(file);
      if (HoldsTensors(file)) STOWAGE_RETURN_IF_ERROR(reader.AddFile(file));
    }
  }
  reader.open_.clear();
  return reader;
}

std::int64_t CheckpointReader::bytes() const {
  std::int64_t sum = 0;
  for (const CheckpointFile& file : files_) sum += file.bytes;
  return sum;
}

absl::Status CheckpointReader::AddFile(const CheckpointFile& file) {
  const std::size_t index = files_.size() - 1;
  STOWAGE_ASSIGN_OR_RETURN(BlockReader * reader, Reader(index));
  const auto bad = [&](const std::string& what) {
    return absl::DataLossError(absl::StrCat(reader->path(), ": ", what));
  };
  if (file.bytes < kTensorPrefixBytes) return bad("too short for a header");
  std::array<std::byte, kTensorPrefixBytes> prefix{};
  STOWAGE_RETURN_IF_ERROR(reader->Read(0, prefix));
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < prefix.size(); ++i) {
    length |= std::to_integer<std::uint64_t>(prefix[i]) << (8 * i);
  }
  if (length > static_cast<std::uint64_t>(kTensorHeaderBytesMax) ||
      length > static_cast<std::uint64_t>(file.bytes - kTensorPrefixBytes)) {
    return bad(absl::StrCat("says that its header has ", length, " bytes"));
  }
  const auto header_bytes = static_cast<std::int64_t>(length);
  std::string header(length, '\0');
  STOWAGE_RETURN_IF_ERROR(reader->Read(
      kTensorPrefixBytes,
      {reinterpret_cast<std::byte*>(header.data()), header.size()}));
  const std::int64_t data_begin = kTensorPrefixBytes + header_bytes;
  absl::StatusOr<std::vector<PlacedTensor>> tensors =
      DecodeTensorHeader(header, file.bytes - data_begin);
  if (!tensors.ok()) {
    return absl::Status(
        tensors.status().code(),
        absl::StrCat(reader->path(), ": ", tensors.status().message()));
  }
  for (PlacedTensor& tensor : *tensors) {
    const Key key(file.kind, tensor.spec.name);
    if (!places_.emplace(key, Place{index, tensor, data_begin}).second) {
      return bad(absl::StrCat("tensor \"", tensor.spec.name,
                              "\" is in another file too"));
    }
    order_[file.kind].push_back(key);
  }
  return absl::OkStatus();
}

absl::StatusOr<BlockReader*> CheckpointReader::Reader(std::size_t file) {
  const std::string& kind = files_[file].kind;
  const auto found = open_.find(kind);
  if (found != open_.end() && found->second.file == file) {
    return &found->second.reader;
  }
  STOWAGE_ASSIGN_OR_RETURN(BlockReader reader,
                           BlockReader::Open(path_, files_[file]));
  const auto placed =
      open_.insert_or_assign(kind, OpenFile{file, std::move(reader)}).first;
  return &placed->second.reader;
}

const TensorSpec* CheckpointReader::Find(const std::string& kind,
                                         const std::string& name) const {
  const auto found = places_.find({kind, name});
  return found == places_.end() ? nullptr : &found->second.tensor.spec;
}

std::vector<TensorSpec> CheckpointReader::Tensors(
    const std::string& kind) const {
  std::vector<TensorSpec> tensors;
  const auto found = order_.find(kind);
  if (found == order_.end()) return tensors;
  for (const Key& key : found->second) {
    tensors.push_back(places_.at(key).tensor.spec);
  }
  return tensors;
}

absl::Status CheckpointReader::Read(const std::string& kind,
                                    const std::string& name,
                                    std::int64_t begin_bytes,
                                    std::span<std::byte> into) {
  const auto found = places_.find({kind, name});
  if (found == places_.end()) {
    return absl::NotFoundError(absl::StrCat("checkpoint ", path_, " has no ",
                                            kind, " of \"", name, "\""));
  }
  const Place& place = found->second;
  if (begin_bytes < 0 || static_cast<std::int64_t>(into.size()) >
                             place.tensor.spec.bytes() - begin_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("read \"", name, "\": bytes ", begin_bytes, ", +",
                     into.size(), " of ", place.tensor.spec.bytes()));
  }
  STOWAGE_ASSIGN_OR_RETURN(BlockReader * reader, Reader(place.file));
  return reader->Read(
      place.data_begin_bytes + place.tensor.begin_bytes + begin_bytes, into);
}

absl::Status CheckpointReader::Verify(
    const std::function<void(std::int64_t)>& progress) {
  for (const CheckpointFile& file : files_) {
    STOWAGE_ASSIGN_OR_RETURN(BlockReader reader,
                             BlockReader::Open(path_, file));
    STOWAGE_RETURN_IF_ERROR(reader.Verify(progress));
  }
  return absl::OkStatus();
}

}  // namespace stowage::storage
