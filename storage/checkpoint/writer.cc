#include "storage/checkpoint/writer.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/crash_point.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32.h"
#include <nlohmann/json.hpp>

namespace stowage::storage {

TensorStream::TensorStream(std::string folder, std::string kind,
                           std::vector<TensorSpec> tensors,
                           std::int64_t file_bytes_max)
    : folder_(std::move(folder)),
      kind_(std::move(kind)),
      tensors_(std::move(tensors)) {
  std::vector<std::vector<TensorSpec>> files;
  std::int64_t bytes = 0;
  for (const TensorSpec& tensor : tensors_) {
    if (files.empty() ||
        (bytes > 0 && bytes + tensor.bytes() > file_bytes_max)) {
      files.emplace_back();
      bytes = 0;
    }
    files.back().push_back(tensor);
    file_of_.push_back(files.size() - 1);
    bytes += tensor.bytes();
  }
  for (std::size_t i = 0; i < files.size(); ++i) {
    headers_.push_back(EncodeTensorHeader(
        files[i], {{"format", "pt"}, {"stowage_kind", kind_}}));
    std::int64_t data = 0;
    for (const TensorSpec& tensor : files[i]) data += tensor.bytes();
    left_.push_back(data);
    CheckpointFile file;
    file.name = files.size() == 1
                    ? absl::StrCat(kind_, ".safetensors")
                    : absl::StrFormat("%s-%05d-of-%05d.safetensors", kind_,
                                      i + 1, files.size());
    file.kind = kind_;
    file.bytes = static_cast<std::int64_t>(headers_.back().size()) + data;
    files_.push_back(std::move(file));
  }
}

std::int64_t TensorStream::bytes() const {
  std::int64_t sum = 0;
  for (const CheckpointFile& file : files_) sum += file.bytes;
  return sum;
}

const std::string& TensorStream::file_of(std::size_t tensor) const {
  return files_[file_of_[tensor]].name;
}

absl::Status TensorStream::OpenNext() {
  const CheckpointFile& file = files_[current_];
  STOWAGE_ASSIGN_OR_RETURN(
      writer_,
      BlockWriter::Create(absl::StrCat(folder_, "/", file.name), file.bytes));
  const std::string& header = headers_[current_];
  return writer_->Append(
      {reinterpret_cast<const std::byte*>(header.data()), header.size()});
}

absl::Status TensorStream::Append(std::span<const std::byte> bytes) {
  for (;;) {
    if (current_ < files_.size() && !writer_) {
      STOWAGE_RETURN_IF_ERROR(OpenNext());
    }
    if (bytes.empty()) return absl::OkStatus();
    STOWAGE_CHECK(current_ < files_.size());
    const std::size_t part =
        std::min(bytes.size(), static_cast<std::size_t>(left_[current_]));
    STOWAGE_RETURN_IF_ERROR(writer_->Append(bytes.first(part)));
    bytes = bytes.subspan(part);
    left_[current_] -= static_cast<std::int64_t>(part);
    if (left_[current_] > 0) continue;
    STOWAGE_RETURN_IF_ERROR(writer_->Finish());
    files_[current_].crc32 = writer_->crc32();
    writer_.reset();
    CrashPoint("checkpoint-file-written");
    ++current_;
  }
}

absl::Status TensorStream::Finish() {
  // Files whose tensors have no bytes are still to be written.
  while (current_ < files_.size()) {
    STOWAGE_CHECK(left_[current_] == 0);
    if (!writer_) STOWAGE_RETURN_IF_ERROR(OpenNext());
    STOWAGE_RETURN_IF_ERROR(writer_->Finish());
    files_[current_].crc32 = writer_->crc32();
    writer_.reset();
    ++current_;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Create(
    const std::string& path, CheckpointManifest manifest,
    const std::vector<Stream>& streams, std::int64_t file_bytes_max) {
  auto writer = absl::WrapUnique(new CheckpointWriter);
  const std::string folder = path.substr(0, path.rfind('/'));
  const std::string partial = PartialPath(path);
  for (const Stream& stream : streams) {
    writer->streams_.emplace_back(partial, stream.kind, stream.tensors,
                                  file_bytes_max);
    writer->total_bytes_ += writer->streams_.back().bytes();
  }
  // A little for the manifest and what the file system adds.
  const std::int64_t need = writer->total_bytes_ + kMiB;
  STOWAGE_ASSIGN_OR_RETURN(const std::int64_t free_bytes, FreeBytes(folder));
  if (free_bytes < need) {
    return absl::ResourceExhaustedError(
        absl::StrCat("checkpoint of step ", manifest.step, " in ", folder,
                     ": needs ", HumanBytes(need), " (", need,
                     " bytes), the file system has ", HumanBytes(free_bytes),
                     " (", free_bytes, " bytes) free; nothing was written"));
  }
  STOWAGE_ASSIGN_OR_RETURN(writer->partial_, PartialCheckpoint::Create(path));
  writer->manifest_ = std::move(manifest);
  CrashPoint("checkpoint-begun");
  return writer;
}

absl::Status CheckpointWriter::Append(const std::string& kind,
                                      std::span<const std::byte> bytes) {
  for (TensorStream& stream : streams_) {
    if (stream.kind() != kind) continue;
    done_bytes_ += static_cast<std::int64_t>(bytes.size());
    return stream.Append(bytes);
  }
  STOWAGE_CHECK(false);
  return absl::OkStatus();
}

// What Hugging Face's loaders look for beside a set of several files.
absl::Status CheckpointWriter::WriteIndex(const TensorStream& stream) {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  std::int64_t bytes = 0;
  for (std::size_t t = 0; t < stream.tensors().size(); ++t) {
    map[stream.tensors()[t].name] = stream.file_of(t);
    bytes += stream.tensors()[t].bytes();
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", bytes}}},
                                        {"weight_map", std::move(map)}};
  const std::string text = index.dump(2) + "\n";
  CheckpointFile file;
  file.name = absl::StrCat(stream.kind(), ".safetensors.index.json");
  file.kind = kKindIndex;
  file.bytes = static_cast<std::int64_t>(text.size());
  for (std::size_t at = 0; at < text.size(); at += kCheckpointBlockBytes) {
    const std::string_view block =
        std::string_view(text).substr(at, kCheckpointBlockBytes);
    file.crc32.push_back(Crc32(
        {reinterpret_cast<const std::byte*>(block.data()), block.size()}));
  }
  STOWAGE_RETURN_IF_ERROR(
      WriteSmallFile(absl::StrCat(partial_->path(), "/", file.name), text));
  manifest_.files.push_back(std::move(file));
  return absl::OkStatus();
}

absl::StatusOr<std::string> CheckpointWriter::Publish() {
  for (TensorStream& stream : streams_) {
    STOWAGE_RETURN_IF_ERROR(stream.Finish());
    manifest_.files.insert(manifest_.files.end(), stream.files().begin(),
                           stream.files().end());
    if (stream.kind() == kKindModel && stream.files().size() > 1) {
      STOWAGE_RETURN_IF_ERROR(WriteIndex(stream));
    }
  }
  STOWAGE_RETURN_IF_ERROR(
      WriteSmallFile(absl::StrCat(partial_->path(), "/",
                                  CheckpointManifestName(manifest_.node)),
                     EncodeCheckpointManifest(manifest_)));
  CrashPoint("checkpoint-manifest-written");
  std::string path = partial_->final_path();
  STOWAGE_RETURN_IF_ERROR(partial_->Publish());
  return path;
}

}  // namespace stowage::storage
