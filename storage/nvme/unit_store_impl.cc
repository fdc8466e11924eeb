#include "storage/nvme/unit_store_impl.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32c.h"

namespace stowage::storage {

UnitStoreImpl::UnitStoreImpl(const ExtentFiles* files, const FaultNames* names,
                             std::unique_ptr<TransferQueue> queue,
                             bool versioned, bool checksums)
    : files_(*files),
      names_(*names),
      versioned_(versioned),
      checksums_(checksums),
      // Extents are numbered unit by unit.
      unit_count_(files->map.extents().empty()
                      ? 0
                      : files->map.extents().back().unit_index + 1),
      queue_(std::move(queue)),
      table_(files->map),
      book_(files->map.extents().size(), files->map.shape().places),
      fresh_(files->map.extents().size()),
      transfers_(files->map.extents().size()),
      units_(static_cast<std::size_t>(unit_count_)) {}

std::int64_t UnitStoreImpl::payload_bytes(std::int32_t unit_index) const {
  if (unit_index < 0 || unit_index >= unit_count_) return 0;
  std::int64_t bytes = 0;
  for (std::int32_t e = files_.map.unit_begin(unit_index);
       e < files_.map.unit_begin(unit_index + 1); ++e) {
    bytes += files_.map.extent(e).used_bytes;
  }
  return bytes;
}

std::span<std::byte> UnitStoreImpl::ExtentMemory(
    std::span<std::byte> unit_memory, std::int32_t unit_index,
    std::int32_t extent) const {
  const std::int64_t at = (extent - files_.map.unit_begin(unit_index)) *
                          files_.map.shape().extent_bytes;
  return unit_memory.subspan(
      static_cast<std::size_t>(at),
      static_cast<std::size_t>(files_.map.extent(extent).bytes));
}

absl::Status UnitStoreImpl::CheckSpan(std::int32_t unit_index,
                                      std::size_t bytes,
                                      const void* address) const {
  const std::int64_t need = payload_bytes(unit_index);
  if (static_cast<std::int64_t>(bytes) == need &&
      reinterpret_cast<std::uintptr_t>(address) % kAlignBytes == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("payload of unit ", unit_index, ": ", bytes, " bytes at ",
                   reinterpret_cast<std::uintptr_t>(address), "; must be ",
                   need, " at a multiple of ", kAlignBytes));
}

bool UnitStoreImpl::Idle(std::int32_t unit_index) const {
  for (std::int32_t e = files_.map.unit_begin(unit_index);
       e < files_.map.unit_begin(unit_index + 1); ++e) {
    if (!transfers_[static_cast<std::size_t>(e)].done()) return false;
  }
  return true;
}

void UnitStoreImpl::WaitFor(std::int32_t unit_index) {
  std::vector<IoCompletion> completions;
  while (!Idle(unit_index)) {
    if (polling_) {
      polled_.Wait(mutex_);
      continue;
    }
    queue_->Take({});  // submits what has not found room yet
    if (!queue_->anything_in_flight()) continue;
    // The queue belongs to this store for as long as it lives.
    const TransferQueue& queue = *queue_;
    completions.clear();
    polling_ = true;
    mutex_.Unlock();
    queue.AwaitCompletions(&completions);
    mutex_.Lock();
    polling_ = false;
    queue_->Take(completions);
    polled_.NotifyAll();
  }
}

absl::Status UnitStoreImpl::StartRead(std::int32_t unit_index,
                                      std::span<std::byte> into) {
  STOWAGE_RETURN_IF_ERROR(CheckSpan(unit_index, into.size(), into.data()));
  if (into.empty()) return absl::OkStatus();
  MutexLock lock(mutex_);
  UnitState& unit = units_[static_cast<std::size_t>(unit_index)];
  STOWAGE_CHECK(unit.moving == Moving::kNothing);
  const std::int32_t begin = files_.map.unit_begin(unit_index);
  const std::int32_t end = files_.map.unit_begin(unit_index + 1);
  for (std::int32_t e = begin; e < end; ++e) {
    if (table_.places[static_cast<std::size_t>(e)] == kPlaceZero) {
      return absl::FailedPreconditionError(
          absl::StrCat("payload of unit ", unit_index, ": never written"));
    }
  }
  unit = {.moving = Moving::kRead, .memory = into};
  for (std::int32_t e = begin; e < end; ++e) {
    const auto at = static_cast<std::size_t>(e);
    queue_->Start({.write = false,
                   .file = files_.map.extent(e).file,
                   .offset_bytes = files_.map.OffsetBytes(e, table_.places[at]),
                   .buffer = -1},
                  ExtentMemory(into, unit_index, e), &transfers_[at]);
  }
  return absl::OkStatus();
}

absl::Status UnitStoreImpl::StartWrite(std::int32_t unit_index,
                                       std::span<const std::byte> from) {
  STOWAGE_RETURN_IF_ERROR(CheckSpan(unit_index, from.size(), from.data()));
  if (from.empty()) return absl::OkStatus();
  // A write only reads it; one type of request serves both directions.
  const std::span<std::byte> memory(const_cast<std::byte*>(from.data()),
                                    from.size());
  const std::int32_t begin = files_.map.unit_begin(unit_index);
  const std::int32_t end = files_.map.unit_begin(unit_index + 1);
  std::vector<std::uint32_t> sums(static_cast<std::size_t>(end - begin));
  for (std::int32_t e = begin; checksums_ && e < end; ++e) {
    sums[static_cast<std::size_t>(e - begin)] =
        Crc32c(ExtentMemory(memory, unit_index, e));
  }
  MutexLock lock(mutex_);
  UnitState& unit = units_[static_cast<std::size_t>(unit_index)];
  STOWAGE_CHECK(unit.moving == Moving::kNothing);
  unit = {.moving = Moving::kWrite, .memory = memory};
  dirty_ = true;
  for (std::int32_t e = begin; e < end; ++e) {
    const auto at = static_cast<std::size_t>(e);
    // What no commit refers to yet may be written again where it is.
    if (!versioned_) {
      table_.places[at] = 0;
    } else if (fresh_[at] == 0) {
      table_.places[at] = book_.Next(e, table_.places[at]);
    }
    fresh_[at] = 1;
    table_.checksums[at] = sums[static_cast<std::size_t>(e - begin)];
    queue_->Start({.write = true,
                   .file = files_.map.extent(e).file,
                   .offset_bytes = files_.map.OffsetBytes(e, table_.places[at]),
                   .buffer = -1},
                  ExtentMemory(memory, unit_index, e), &transfers_[at]);
  }
  return absl::OkStatus();
}

absl::Status UnitStoreImpl::TakeResult(std::int32_t unit_index) {
  UnitState& unit = units_[static_cast<std::size_t>(unit_index)];
  const Moving moved = std::exchange(unit.moving, Moving::kNothing);
  if (moved == Moving::kNothing) return absl::OkStatus();
  const bool wrote = moved == Moving::kWrite;
  for (std::int32_t e = files_.map.unit_begin(unit_index);
       e < files_.map.unit_begin(unit_index + 1); ++e) {
    const auto at = static_cast<std::size_t>(e);
    (wrote ? bytes_written_ : bytes_read_) += files_.map.extent(e).bytes;
    if (transfers_[at].ok()) continue;
    absl::Status status = names_.OfTransfer(wrote ? "write" : "read", files_, e,
                                            table_.places[at], transfers_[at]);
    if (wrote) failed_.Update(status);
    return status;
  }
  return absl::OkStatus();
}

absl::Status UnitStoreImpl::Await(std::int32_t unit_index) {
  if (payload_bytes(unit_index) == 0) return absl::OkStatus();
  const std::int32_t begin = files_.map.unit_begin(unit_index);
  const std::int32_t end = files_.map.unit_begin(unit_index + 1);
  std::span<std::byte> memory;
  std::vector<std::uint32_t> written(static_cast<std::size_t>(end - begin));
  std::vector<std::uint8_t> places(written.size());
  {
    MutexLock lock(mutex_);
    WaitFor(unit_index);
    const UnitState unit = units_[static_cast<std::size_t>(unit_index)];
    STOWAGE_RETURN_IF_ERROR(TakeResult(unit_index));
    if (unit.moving != Moving::kRead || !checksums_) return absl::OkStatus();
    memory = unit.memory;
    for (std::size_t i = 0; i < written.size(); ++i) {
      written[i] = table_.checksums[static_cast<std::size_t>(begin) + i];
      places[i] = table_.places[static_cast<std::size_t>(begin) + i];
    }
  }
  for (std::int32_t e = begin; e < end; ++e) {
    const auto i = static_cast<std::size_t>(e - begin);
    const std::uint32_t found = Crc32c(ExtentMemory(memory, unit_index, e));
    if (found != written[i]) {
      return names_.OfChecksum(files_, e, places[i], found, written[i]);
    }
  }
  return absl::OkStatus();
}

bool UnitStoreImpl::Done(std::int32_t unit_index) {
  if (payload_bytes(unit_index) == 0) return true;
  MutexLock lock(mutex_);
  if (Idle(unit_index)) return true;
  if (!polling_) queue_->Pump(/*wait=*/false);
  return Idle(unit_index);
}

std::int64_t UnitStoreImpl::bytes_read() const {
  MutexLock lock(mutex_);
  return bytes_read_;
}

std::int64_t UnitStoreImpl::bytes_written() const {
  MutexLock lock(mutex_);
  return bytes_written_;
}

absl::Status UnitStoreImpl::Settle() {
  MutexLock lock(mutex_);
  for (std::size_t u = 0; u < units_.size(); ++u) {
    if (units_[u].moving != Moving::kWrite) continue;
    WaitFor(static_cast<std::int32_t>(u));
    TakeResult(static_cast<std::int32_t>(u)).IgnoreError();  // in failed_
  }
  return failed_;
}

bool UnitStoreImpl::dirty() const {
  MutexLock lock(mutex_);
  return dirty_;
}

PlaceTable UnitStoreImpl::current() const {
  MutexLock lock(mutex_);
  return table_;
}

void UnitStoreImpl::Adopt(const PlaceTable& table,
                          std::span<const PlaceTable* const> kept) {
  MutexLock lock(mutex_);
  table_ = table;
  book_.Clear();
  for (const PlaceTable* one : kept) book_.Keep(*one);
  fresh_.assign(fresh_.size(), 0);
  failed_ = absl::OkStatus();
  dirty_ = false;
}

}  // namespace stowage::storage
