#include "storage/checkpoint/block_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/errno_status.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32.h"

namespace stowage::storage {
namespace {

// Of addresses, offsets and lengths; no device here asks for more.
constexpr std::int64_t kDirectAlign = 4096;

}  // namespace

void BlockBuffer::Free::operator()(std::byte* data) const { std::free(data); }

BlockBuffer::BlockBuffer()
    : data_(static_cast<std::byte*>(
          std::aligned_alloc(kDirectAlign, kCheckpointBlockBytes))) {
  STOWAGE_CHECK(data_ != nullptr);
}

absl::StatusOr<BlockWriter> BlockWriter::Create(const std::string& path,
                                                std::int64_t bytes) {
  BlockWriter writer;
  writer.path_ = path;
  writer.bytes_ = bytes;
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  writer.file_.Reset(::open(path.c_str(), kFlags | O_DIRECT, 0644));
  if (!writer.file_.valid() && errno == EINVAL) {
    // A file system without direct I/O may have made the file all the same.
    ::unlink(path.c_str());
    writer.file_.Reset(::open(path.c_str(), kFlags, 0644));
  }
  if (!writer.file_.valid()) return ErrnoStatus(absl::StrCat("create ", path));
  // Where it cannot be reserved the writes meet the end of the space.
  if (bytes > 0 && ::fallocate(writer.file_.get(), 0, 0, bytes) != 0 &&
      errno != EOPNOTSUPP && errno != ENOSYS) {
    return ErrnoStatus(absl::StrCat("allocate ", bytes, " bytes of ", path));
  }
  return writer;
}

absl::Status BlockWriter::WriteBlock() {
  const std::span<const std::byte> block(
      buffer_.data(), static_cast<std::size_t>(filled_bytes_));
  crc32_.push_back(Crc32(block));
  const std::int64_t padded = RoundUp(filled_bytes_, kDirectAlign);
  std::memset(buffer_.data() + filled_bytes_, 0,
              static_cast<std::size_t>(padded - filled_bytes_));
  for (std::int64_t done = 0; done < padded;) {
    const ssize_t wrote = ::pwrite(file_.get(), buffer_.data() + done,
                                   static_cast<std::size_t>(padded - done),
                                   written_bytes_ + done);
    if (wrote > 0) {
      done += wrote;
      continue;
    }
    if (wrote < 0 && errno == EINTR) continue;
    return ErrnoStatus(
        absl::StrCat("write ", path_, ", offset ", written_bytes_ + done, ", ",
                     padded - done, " bytes"),
        wrote == 0 ? ENOSPC : errno);
  }
  written_bytes_ += filled_bytes_;
  filled_bytes_ = 0;
  return absl::OkStatus();
}

absl::Status BlockWriter::Append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t part = std::min(
        bytes.size(),
        static_cast<std::size_t>(kCheckpointBlockBytes - filled_bytes_));
    std::memcpy(buffer_.data() + filled_bytes_, bytes.data(), part);
    filled_bytes_ += static_cast<std::int64_t>(part);
    bytes = bytes.subspan(part);
    if (filled_bytes_ == kCheckpointBlockBytes) {
      STOWAGE_RETURN_IF_ERROR(WriteBlock());
    }
  }
  return absl::OkStatus();
}

absl::Status BlockWriter::Finish() {
  if (filled_bytes_ > 0) STOWAGE_RETURN_IF_ERROR(WriteBlock());
  STOWAGE_CHECK(written_bytes_ == bytes_);
  if (::ftruncate(file_.get(), bytes_) != 0) {
    return ErrnoStatus(absl::StrCat("cut ", path_, " to ", bytes_, " bytes"));
  }
  if (::fsync(file_.get()) != 0) {
    return ErrnoStatus(absl::StrCat("flush ", path_));
  }
  file_.Reset();
  return absl::OkStatus();
}

absl::StatusOr<BlockReader> BlockReader::Open(const std::string& folder,
                                              const CheckpointFile& file) {
  BlockReader reader;
  reader.path_ = absl::StrCat(folder, "/", file.name);
  reader.file_ = file;
  reader.fd_.Reset(::open(reader.path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!reader.fd_.valid()) {
    return ErrnoStatus(absl::StrCat("open ", reader.path_));
  }
  struct stat info {};
  if (::fstat(reader.fd_.get(), &info) != 0) {
    return ErrnoStatus(absl::StrCat("stat ", reader.path_));
  }
  if (info.st_size != file.bytes) {
    return absl::DataLossError(absl::StrCat(reader.path_, " is ", info.st_size,
                                            " bytes long, written were ",
                                            file.bytes));
  }
  ::posix_fadvise(reader.fd_.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  return reader;
}

std::int64_t BlockReader::BlockBytes(std::int64_t block) const {
  return std::min(kCheckpointBlockBytes,
                  file_.bytes - block * kCheckpointBlockBytes);
}

absl::Status BlockReader::Load(std::int64_t block) {
  if (block == loaded_) return absl::OkStatus();
  loaded_ = -1;
  const std::int64_t begin = block * kCheckpointBlockBytes;
  const std::int64_t bytes = BlockBytes(block);
  for (std::int64_t done = 0; done < bytes;) {
    const ssize_t got =
        ::pread(fd_.get(), buffer_.data() + done,
                static_cast<std::size_t>(bytes - done), begin + done);
    if (got > 0) {
      done += got;
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    const std::string what =
        absl::StrCat("read ", path_, ", offset ", begin + done, ", ",
                     bytes - done, " bytes");
    if (got == 0) {
      return absl::DataLossError(absl::StrCat(what, ": the file ends there"));
    }
    return ErrnoStatus(what);
  }
  const std::uint32_t found =
      Crc32({buffer_.data(), static_cast<std::size_t>(bytes)});
  const std::uint32_t written = file_.crc32[static_cast<std::size_t>(block)];
  if (found != written) {
    return absl::DataLossError(absl::StrCat(
        path_, " is damaged: bytes ", begin, " to ", begin + bytes,
        " have the checksum ", absl::Hex(found, absl::kZeroPad8),
        ", written were bytes with ", absl::Hex(written, absl::kZeroPad8)));
  }
  loaded_ = block;
  return absl::OkStatus();
}

absl::Status BlockReader::Read(std::int64_t offset_bytes,
                               std::span<std::byte> into) {
  if (offset_bytes < 0 ||
      static_cast<std::int64_t>(into.size()) > file_.bytes - offset_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("read ", path_, ": bytes ", offset_bytes, ", +",
                     into.size(), " of ", file_.bytes));
  }
  while (!into.empty()) {
    const std::int64_t block = offset_bytes / kCheckpointBlockBytes;
    STOWAGE_RETURN_IF_ERROR(Load(block));
    const std::int64_t in_block = offset_bytes - block * kCheckpointBlockBytes;
    const std::size_t part = std::min(
        into.size(), static_cast<std::size_t>(BlockBytes(block) - in_block));
    std::memcpy(into.data(), buffer_.data() + in_block, part);
    into = into.subspan(part);
    offset_bytes += static_cast<std::int64_t>(part);
  }
  return absl::OkStatus();
}

}  // namespace stowage::storage
