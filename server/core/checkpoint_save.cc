#include "server/core/checkpoint_save.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/bytes.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace stowage::core {
namespace {

// Frozen values are read in pieces of 1 MiB at most.
constexpr std::int64_t kFrozenElems = std::int64_t{256} * 1024;

}  // namespace

CheckpointSave::CheckpointSave(Parts parts)
    : parts_(std::move(parts)),
      started_(std::chrono::steady_clock::now()),
      chunk_(static_cast<std::size_t>(3 * kChunkElems)) {
  {
    MutexLock lock(mutex_);
    info_.job = parts_.spec.job;
    info_.step = parts_.manifest.step;
    info_.phase = SavePhase::kWriting;
    info_.begin_ms = parts_.begin_ms;
  }
  thread_ = std::thread([this] { ThreadMain(); });
}

CheckpointSave::~CheckpointSave() {
  GiveUp();
  Join();
}

void CheckpointSave::GiveUp() {
  given_up_ = true;
  parts_.snapshot->End();
}

void CheckpointSave::Join() {
  if (thread_.joinable()) thread_.join();
}

SaveInfo CheckpointSave::info() const {
  const storage::SnapshotStats stats = parts_.snapshot->stats();
  MutexLock lock(mutex_);
  SaveInfo info = info_;
  if (info.running()) {
    info.seconds = std::chrono::duration<double>(
                       std::chrono::steady_clock::now() - started_)
                       .count();
  }
  info.copied_bytes = stats.copied_bytes;
  info.copies_bytes_max = stats.copies_bytes_max;
  info.waits = stats.waits;
  info.wait_seconds = stats.wait_seconds;
  return info;
}

void CheckpointSave::ThreadMain() {
  const absl::Status status = Write();
  parts_.snapshot->End();
  parts_.one_bit.clear();
  parts_.one_bit_memory.Release();
  if (status.ok() && parts_.spec.keep > 0) Retire();
  {
    MutexLock lock(mutex_);
    info_.seconds = std::chrono::duration<double>(
                        std::chrono::steady_clock::now() - started_)
                        .count();
    info_.phase = status.ok() ? SavePhase::kDone : SavePhase::kFailed;
    info_.error = std::string(status.message());
  }
  const SaveInfo done = info();
  if (!status.ok()) {
    log::Error(
        "checkpoint_failed",
        {{"job", done.job}, {"step", done.step}, {"reason", status.message()}});
    return;
  }
  log::Info("checkpoint_saved", {{"job", done.job},
                                 {"step", done.step},
                                 {"path", done.path},
                                 {"bytes", HumanBytes(done.bytes_total)},
                                 {"seconds", done.seconds},
                                 {"copied", HumanBytes(done.copied_bytes)},
                                 {"update_waits", done.waits},
                                 {"update_wait_seconds", done.wait_seconds}});
}

void CheckpointSave::Retire() {
  const absl::StatusOr<std::vector<std::int64_t>> removed =
      storage::KeepNewest(parts_.spec.folder, parts_.spec.keep);
  if (!removed.ok()) {
    log::Warning(
        "checkpoint_not_removed",
        {{"job", parts_.spec.job}, {"reason", removed.status().message()}});
  } else if (!removed->empty()) {
    log::Info("checkpoint_removed", {{"job", parts_.spec.job},
                                     {"steps", absl::StrJoin(*removed, ",")}});
  }
}

std::vector<storage::CheckpointWriter::Stream> CheckpointSave::Streams() const {
  std::vector<storage::TensorSpec> state;
  std::vector<storage::TensorSpec> frozen;
  std::vector<storage::TensorSpec> model;
  const Dtype dtype = parts_.layout->param_dtype();
  for (const std::int32_t unit : parts_.unit_order) {
    for (const Layout::Param& param :
         parts_.layout->units()[static_cast<std::size_t>(unit)].params) {
      model.push_back({param.name, dtype, param.shape});
      if (param.frozen) {
        frozen.push_back({param.name, dtype, param.shape});
      } else {
        state.push_back({param.name, Dtype::kFp32, param.shape});
      }
    }
  }
  std::vector<storage::CheckpointWriter::Stream> streams;
  const bool with_state = parts_.spec.state;
  if (with_state && !state.empty()) {
    streams.push_back({storage::kKindMaster, state});
    streams.push_back({storage::kKindMoment1, state});
    streams.push_back({storage::kKindMoment2, state});
  }
  if (with_state && !frozen.empty()) {
    streams.push_back({storage::kKindFrozen, frozen});
  }
  if (with_state && !parts_.one_bit.empty()) {
    std::vector<storage::TensorSpec> errors;
    for (const NamedValues& values : parts_.one_bit) {
      errors.push_back({values.name,
                        Dtype::kFp32,
                        {static_cast<std::int64_t>(values.values.size())}});
    }
    streams.push_back({storage::kKindOneBit, std::move(errors)});
  }
  if (parts_.spec.model) streams.push_back({storage::kKindModel, model});
  return streams;
}

absl::Status CheckpointSave::Write() {
  STOWAGE_ASSIGN_OR_RETURN(
      const std::unique_ptr<storage::CheckpointWriter> writer,
      storage::CheckpointWriter::Create(
          absl::StrCat(parts_.spec.folder, "/",
                       parts_.spec.state
                           ? storage::CheckpointName(parts_.manifest.step)
                           : storage::ModelFolderName(parts_.manifest.step)),
          parts_.manifest, Streams()));
  {
    MutexLock lock(mutex_);
    info_.bytes_total = writer->total_bytes();
  }
  for (const std::int32_t unit : parts_.unit_order) {
    STOWAGE_RETURN_IF_ERROR(WriteUnit(unit, *writer));
  }
  if (parts_.spec.state) {
    for (const NamedValues& values : parts_.one_bit) {
      if (given_up_) return absl::CancelledError("the save was given up");
      STOWAGE_RETURN_IF_ERROR(
          writer->Append(storage::kKindOneBit,
                         std::as_bytes(std::span<const float>(values.values))));
      MutexLock lock(mutex_);
      info_.bytes_done = writer->done_bytes();
    }
  }
  STOWAGE_ASSIGN_OR_RETURN(std::string path, writer->Publish());
  MutexLock lock(mutex_);
  info_.path = std::move(path);
  info_.bytes_done = info_.bytes_total;
  return absl::OkStatus();
}

absl::Status CheckpointSave::WriteUnit(std::int32_t unit,
                                       storage::CheckpointWriter& writer) {
  const storage::StateView view{chunk_.data(), chunk_.data() + kChunkElems,
                                chunk_.data() + 2 * kChunkElems};
  for (std::int64_t c = parts_.layout->chunk_begin(unit);
       c < parts_.layout->chunk_begin(unit + 1); ++c) {
    if (given_up_) return absl::CancelledError("the save was given up");
    STOWAGE_RETURN_IF_ERROR(
        parts_.snapshot->Read(static_cast<std::int32_t>(c), view));
    STOWAGE_RETURN_IF_ERROR(WriteChunk(
        parts_.layout->chunks()[static_cast<std::size_t>(c)], view, writer));
    CrashPoint("checkpoint-chunk-written");
    MutexLock lock(mutex_);
    info_.bytes_done = writer.done_bytes();
  }
  for (const Layout::Param& param :
       parts_.layout->units()[static_cast<std::size_t>(unit)].params) {
    if (param.frozen) STOWAGE_RETURN_IF_ERROR(WriteFrozen(param, writer));
  }
  return absl::OkStatus();
}

// Parameter by parameter: padding is not written.
absl::Status CheckpointSave::WriteChunk(const Layout::Chunk& chunk,
                                        const storage::StateView& view,
                                        storage::CheckpointWriter& writer) {
  const Layout::Unit& unit =
      parts_.layout->units()[static_cast<std::size_t>(chunk.unit_index)];
  const Dtype dtype = parts_.layout->param_dtype();
  for (const Layout::Param& param : unit.params) {
    const std::int64_t begin = std::max(chunk.begin_elems, param.begin_elems);
    const std::int64_t end = std::min(chunk.begin_elems + chunk.elems,
                                      param.begin_elems + param.elems);
    if (param.frozen || begin >= end) continue;
    const auto bytes_of = [&](const float* array) {
      return std::as_bytes(
          std::span<const float>(array + (begin - chunk.begin_elems),
                                 static_cast<std::size_t>(end - begin)));
    };
    if (parts_.spec.state) {
      STOWAGE_RETURN_IF_ERROR(
          writer.Append(storage::kKindMaster, bytes_of(view.master)));
      STOWAGE_RETURN_IF_ERROR(
          writer.Append(storage::kKindMoment1, bytes_of(view.moment1)));
      STOWAGE_RETURN_IF_ERROR(
          writer.Append(storage::kKindMoment2, bytes_of(view.moment2)));
    }
    if (!parts_.spec.model) continue;
    const std::int64_t elems = end - begin;
    // The kernel may want its output aligned as a parameter is.
    rounded_.resize(static_cast<std::size_t>(elems * DtypeBytes(dtype)));
    parts_.kernels->convert(view.master + (begin - chunk.begin_elems), dtype,
                            rounded_.data(), elems);
    STOWAGE_RETURN_IF_ERROR(writer.Append(storage::kKindModel, rounded_));
  }
  return absl::OkStatus();
}

absl::Status CheckpointSave::WriteFrozen(const Layout::Param& param,
                                         storage::CheckpointWriter& writer) {
  const std::int64_t width = DtypeBytes(parts_.layout->param_dtype());
  for (std::int64_t at = 0; at < param.elems; at += kFrozenElems) {
    if (given_up_) return absl::CancelledError("the save was given up");
    const std::int64_t elems = std::min(kFrozenElems, param.elems - at);
    rounded_.resize(static_cast<std::size_t>(elems * width));
    STOWAGE_RETURN_IF_ERROR(
        parts_.read_frozen(param.unit_index, param.begin_elems + at, rounded_));
    if (parts_.spec.state) {
      STOWAGE_RETURN_IF_ERROR(writer.Append(storage::kKindFrozen, rounded_));
    }
    if (parts_.spec.model) {
      STOWAGE_RETURN_IF_ERROR(writer.Append(storage::kKindModel, rounded_));
    }
  }
  return absl::OkStatus();
}

}  // namespace stowage::core
