#include "engine/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/errno_status.h"
#include "common/status_macros.h"

namespace stowage::engine {
namespace {

const char* DtypeText(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFp32:
      return "F32";
    case Dtype::kFp16:
      return "F16";
    case Dtype::kBf16:
      return "BF16";
  }
  return "F32";
}

std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppend(&out, "\\u", absl::Hex(c, absl::kZeroPad4));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

absl::Status WriteAll(int file, const std::string& path, const char* data,
                      std::size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(file, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      return ErrnoStatus(absl::StrCat("write ", path, ", ", size, " bytes"));
    }
    data += written;
    size -= static_cast<std::size_t>(written);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata) {
  SafetensorsWriter writer;
  writer.path_ = path;
  std::string header = "{";
  if (!metadata.empty()) {
    absl::StrAppend(&header, "\"__metadata__\":{",
                    absl::StrJoin(metadata, ",",
                                  [](std::string* out, const auto& item) {
                                    absl::StrAppend(out, Quoted(item.first),
                                                    ":", Quoted(item.second));
                                  }),
                    "}");
  }
  std::set<std::string> names;
  std::int64_t offset = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (!names.insert(entry.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor \"", entry.name, "\" appears twice"));
    }
    std::int64_t size = DtypeBytes(entry.dtype);
    for (const std::int64_t extent : entry.shape) size *= extent;
    if (header.size() > 1) header += ',';
    absl::StrAppend(&header, Quoted(entry.name), ":{\"dtype\":\"",
                    DtypeText(entry.dtype), "\",\"shape\":[",
                    absl::StrJoin(entry.shape, ","), "],\"data_offsets\":[",
                    offset, ",", offset + size, "]}");
    writer.sizes_.push_back(size);
    offset += size;
  }
  header += '}';
  header.resize(static_cast<std::size_t>(
                    RoundUp(static_cast<std::int64_t>(header.size()), 8)),
                ' ');
  writer.temporary_ = absl::StrCat(path, ".writing");
  writer.file_.Reset(::open(writer.temporary_.c_str(),
                            O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!writer.file_.valid()) {
    return ErrnoStatus(absl::StrCat("create ", writer.temporary_));
  }
  const std::int64_t need =
      8 + static_cast<std::int64_t>(header.size()) + offset;
  struct statvfs space {};
  if (::fstatvfs(writer.file_.get(), &space) == 0) {
    const auto free_bytes =
        static_cast<std::int64_t>(space.f_bavail * space.f_frsize);
    if (free_bytes < need) {
      return absl::ResourceExhaustedError(absl::StrCat(
          path, ": needs ", HumanBytes(need), ", the file system has ",
          HumanBytes(free_bytes), " free"));
    }
  }
  char length[8];
  for (int i = 0; i < 8; ++i) {
    length[i] = static_cast<char>((header.size() >> (8 * i)) & 0xffU);
  }
  STOWAGE_RETURN_IF_ERROR(
      WriteAll(writer.file_.get(), writer.temporary_, length, 8));
  STOWAGE_RETURN_IF_ERROR(WriteAll(writer.file_.get(), writer.temporary_,
                                   header.data(), header.size()));
  return writer;
}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> data) {
  STOWAGE_CHECK(next_ < sizes_.size());
  STOWAGE_CHECK(static_cast<std::int64_t>(data.size()) == sizes_[next_]);
  ++next_;
  return WriteAll(file_.get(), temporary_,
                  reinterpret_cast<const char*>(data.data()), data.size());
}

absl::Status SafetensorsWriter::Finish() {
  STOWAGE_CHECK(next_ == sizes_.size());
  if (::fsync(file_.get()) != 0) {
    return ErrnoStatus(absl::StrCat("sync ", temporary_));
  }
  file_.Reset();
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return ErrnoStatus(absl::StrCat("rename ", temporary_, " to ", path_));
  }
  temporary_.clear();
  return absl::OkStatus();
}

SafetensorsWriter::~SafetensorsWriter() {
  if (file_.valid() && !temporary_.empty()) ::unlink(temporary_.c_str());
}

}  // namespace stowage::engine
