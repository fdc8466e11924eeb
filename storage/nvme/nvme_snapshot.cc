#include "storage/nvme/nvme_snapshot.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32c.h"

namespace stowage::storage {

SnapshotPins::SnapshotPins(const Layout& layout, const ExtentMap& map,
                           PlaceTable table, const SnapshotOptions& options)
    : table_(std::move(table)),
      copies_(layout, options),
      chunks_left_(map.extents().size()) {
  for (std::size_t c = 0; c < layout.chunks().size(); ++c) {
    const Piece& piece =
        map.piece(map.chunk_piece(static_cast<std::int32_t>(c)));
    ++chunks_left_[static_cast<std::size_t>(piece.extent)];
  }
}

void SnapshotPins::AwaitPlace(std::int32_t extent, std::uint8_t place) {
  const auto e = static_cast<std::size_t>(extent);
  if (table_.places[e] != place || ended()) return;
  MutexLock lock(mutex_);
  if (chunks_left_[e] == 0) return;
  const auto begin = std::chrono::steady_clock::now();
  while (chunks_left_[e] > 0 && !ended()) changed_.Wait(mutex_);
  ++waits_;
  wait_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
          .count();
}

void SnapshotPins::ChunkRead(std::int32_t extent) {
  MutexLock lock(mutex_);
  if (--chunks_left_[static_cast<std::size_t>(extent)] == 0) {
    changed_.NotifyAll();
  }
}

void SnapshotPins::End() {
  copies_.End();
  MutexLock lock(mutex_);
  changed_.NotifyAll();
}

SnapshotStats SnapshotPins::stats() const {
  SnapshotStats stats = copies_.stats();
  MutexLock lock(mutex_);
  stats.waits += waits_;
  stats.wait_seconds += wait_seconds_;
  return stats;
}

void NvmeSnapshot::Free::operator()(std::byte* data) const { std::free(data); }

NvmeSnapshot::NvmeSnapshot(const ExtentFiles& files, const FaultNames& names,
                           bool checksums, std::shared_ptr<SnapshotPins> pins,
                           std::vector<std::byte*> homes)
    : files_(files),
      names_(names),
      checksums_(checksums),
      pins_(std::move(pins)),
      homes_(std::move(homes)),
      buffer_(static_cast<std::byte*>(std::aligned_alloc(
          4096, static_cast<std::size_t>(
                    RoundUp(files.map.extent_bytes_max() + 1, 4096))))) {
  STOWAGE_CHECK(buffer_ != nullptr);
}

absl::Status NvmeSnapshot::Load(std::int32_t extent) {
  if (loaded_ == extent) return absl::OkStatus();
  loaded_ = -1;
  const Extent& shape = files_.map.extent(extent);
  const std::uint8_t place =
      pins_->table().places[static_cast<std::size_t>(extent)];
  const auto bytes = static_cast<std::size_t>(shape.bytes);
  if (place == kPlaceZero) {
    std::fill_n(buffer_.get(), bytes, std::byte{0});
    loaded_ = extent;
    return absl::OkStatus();
  }
  DiskFile& file = *files_.files[static_cast<std::size_t>(shape.file)];
  const std::int64_t offset = files_.map.OffsetBytes(extent, place);
  const std::int64_t got = file.ReadAt(offset, {buffer_.get(), bytes});
  if (got != shape.bytes) {
    Transfer transfer;
    transfer.error = got < 0 ? static_cast<int>(-got) : 0;
    transfer.short_transfer = got >= 0;
    transfer.fault_offset_bytes = offset;
    transfer.done_bytes = std::max<std::int64_t>(got, 0);
    transfer.bytes = shape.bytes;
    return names_.OfTransfer("read for a snapshot", files_, extent, place,
                             transfer);
  }
  for (std::int64_t p = shape.begin; checksums_ && p < shape.end; ++p) {
    const Piece& piece = files_.map.piece(p);
    const std::uint32_t found = Crc32c({buffer_.get() + piece.offset_bytes,
                                        static_cast<std::size_t>(piece.bytes)});
    const std::uint32_t written =
        pins_->table().checksums[static_cast<std::size_t>(p)];
    if (found != written) {
      return names_.OfChecksum(files_, p, place, found, written);
    }
  }
  loaded_ = extent;
  return absl::OkStatus();
}

absl::Status NvmeSnapshot::Read(std::int32_t chunk, const StateView& into) {
  if (pins_->ended()) return absl::CancelledError("the snapshot was given up");
  const Piece& piece = files_.map.piece(files_.map.chunk_piece(chunk));
  const auto view_of = [&](std::byte* extent) {
    auto* const master = reinterpret_cast<float*>(extent + piece.offset_bytes);
    return StateView{master, master + piece.elems, master + 2 * piece.elems};
  };
  if (pins_->InMemory(piece.extent)) {
    return pins_->copies().Take(
        chunk, view_of(homes_[static_cast<std::size_t>(piece.extent)]), into);
  }
  STOWAGE_RETURN_IF_ERROR(Load(piece.extent));
  const StateView from = view_of(buffer_.get());
  std::copy_n(from.master, piece.elems, into.master);
  std::copy_n(from.moment1, piece.elems, into.moment1);
  std::copy_n(from.moment2, piece.elems, into.moment2);
  pins_->ChunkRead(piece.extent);
  return absl::OkStatus();
}

}  // namespace stowage::storage
