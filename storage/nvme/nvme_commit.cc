// The commit of NvmeStoreImpl: data first, the manifest last; keeping, going
// back to and closing steps.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/job_spec.h"
#include "common/status_macros.h"
#include "storage/nvme/nvme_store_impl.h"

namespace stowage::storage {

absl::Status NvmeStoreImpl::FlushFiles(const ExtentFiles& files) {
  for (const std::unique_ptr<DiskFile>& file : files.files) {
    if (const int error = file->Flush(); error != 0) {
      return names_.OfFile("flush", *file, error);
    }
  }
  return absl::OkStatus();
}

// Sequence n lies in slot n mod 2; the other slot stays as it is.
absl::Status NvmeStoreImpl::WriteManifest(
    const std::vector<const KeptCommit*>& commits, std::uint64_t sequence,
    bool flush) {
  Manifest manifest;
  manifest.sequence = sequence;
  manifest.slot_bytes = plan_.manifest_bytes;
  manifest.durability = options_.durability;
  manifest.shape = shape_;
  for (const KeptCommit* commit : commits) manifest.commits.push_back(*commit);
  const std::string bytes = EncodeManifest(manifest);
  STOWAGE_CHECK(static_cast<std::int64_t>(bytes.size()) <=
                plan_.manifest_bytes);
  std::byte* const buffer = slot_data(plan_.slots) + plan_.cache_bytes;
  const std::int64_t written_bytes =
      (static_cast<std::int64_t>(bytes.size()) + shape_.align_bytes - 1) /
      shape_.align_bytes * shape_.align_bytes;
  std::memset(buffer, 0, static_cast<std::size_t>(written_bytes));
  std::memcpy(buffer, bytes.data(), bytes.size());
  const std::int64_t offset_bytes =
      static_cast<std::int64_t>(sequence % 2) * plan_.manifest_bytes;
  DiskFile& file = *files_.manifest;
  const std::int64_t result = file.WriteAt(
      offset_bytes, {buffer, static_cast<std::size_t>(written_bytes)});
  stats_.bytes_written += written_bytes;
  int error = 0;
  if (result != written_bytes) {
    error = result < 0 ? static_cast<int>(-result) : 0;
    return IoFaultStatus({.operation = "write the manifest",
                          .job = shape_.job_name,
                          .unit = "",
                          .extent = -1,
                          .file = file.path(),
                          .offset_bytes = offset_bytes,
                          .bytes = written_bytes,
                          .done_bytes = std::max<std::int64_t>(0, result),
                          .error = error,
                          .detail = error == 0 ? "short transfer" : ""});
  }
  if (flush) error = file.Flush();
  if (error != 0) return names_.OfFile("flush", file, error);
  return absl::OkStatus();
}

// A manifest whose write or flush failed may or may not be what a restart
// finds. Before anything is written to the places that it refers to, its slot
// is overwritten with the commit that counts.
absl::Status NvmeStoreImpl::SettleDoubt() {
  if (!in_doubt_) return absl::OkStatus();
  std::vector<const KeptCommit*> commits;
  for (const KeptCommit& commit : commits_) commits.push_back(&commit);
  // The same slot as the one in doubt, and newer.
  STOWAGE_RETURN_IF_ERROR(
      WriteManifest(commits, sequence_ + 3, /*flush=*/true));
  sequence_ += 3;
  in_doubt_ = false;
  return absl::OkStatus();
}

absl::Status NvmeStoreImpl::Commit(const CommitRecord& record) {
  STOWAGE_RETURN_IF_ERROR(CheckUsable());
  const auto begin = std::chrono::steady_clock::now();
  if (static_cast<std::int64_t>(record.client_state.size()) >
      kClientStateBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "commit of step ", record.step, ": ", record.client_state.size(),
        " bytes of client state; at most ", kClientStateBytesMax));
  }
  if (in_pass_) {
    STOWAGE_CHECK(!failed_.ok() || next_release_ == windows_.size());
    STOWAGE_RETURN_IF_ERROR(EndWrites());
  } else {
    STOWAGE_RETURN_IF_ERROR(SettleDoubt());
    STOWAGE_RETURN_IF_ERROR(FlushAllStaged());
  }
  const bool first = commits_.empty();
  KeptCommit commit{
      .record = record, .state = in_pass_ ? next_ : table_, .params = {}};
  bool params_written = false;
  if (params_) {
    STOWAGE_RETURN_IF_ERROR(params_->Settle());
    params_written = params_->dirty();
    commit.params = params_->current();
  }
  const bool flush = options_.durability == Durability::kPower;
  if (flush && (!touched_.empty() || first)) {
    STOWAGE_RETURN_IF_ERROR(FlushFiles(files_.state));
  }
  if (flush && params_written) {
    STOWAGE_RETURN_IF_ERROR(FlushFiles(files_.params));
  }
  // The oldest leaves when there are as many as may be kept.
  std::vector<const KeptCommit*> commits;
  const auto keep = static_cast<std::size_t>(shape_.kept_versions) - 1;
  const std::size_t drop = commits_.size() > keep ? commits_.size() - keep : 0;
  for (std::size_t i = drop; i < commits_.size(); ++i) {
    commits.push_back(&commits_[i]);
  }
  commits.push_back(&commit);
  in_doubt_ = true;
  STOWAGE_RETURN_IF_ERROR(WriteManifest(commits, sequence_ + 1, flush));
  in_doubt_ = false;
  ++sequence_;
  commits_.erase(commits_.begin(),
                 commits_.begin() + static_cast<std::ptrdiff_t>(drop));
  commits_.push_back(std::move(commit));
  const bool passed = std::exchange(in_pass_, false);
  // Cut windows, read ahead: not where each window is read when it is asked
  // for, nor where extents come back.
  const bool early = passed && ReadsEarly();
  if (early) early_order_.assign(order_.begin(), order_.end());
  order_ = {};
  touched_.clear();
  AdoptCommits();
  if (early) StartEarly();
  stats_.commit_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
          .count();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StateSnapshot>> NvmeStoreImpl::BeginSnapshot(
    const SnapshotOptions& options) {
  STOWAGE_RETURN_IF_ERROR(CheckUsable());
  STOWAGE_CHECK(!in_pass_);
  if (commits_.empty()) {
    return absl::FailedPreconditionError("state: a snapshot before a commit");
  }
  if (pins_ != nullptr && !pins_->ended()) {
    return absl::FailedPreconditionError(
        "state: another snapshot is being read");
  }
  std::vector<std::byte*> homes(residents_.size(), nullptr);
  for (std::size_t e = 0; e < homes.size(); ++e) {
    if (table_.places[e] == kPlaceMemory) homes[e] = residents_[e].data;
  }
  pins_ = std::make_shared<SnapshotPins>(layout_, map(), table_, options);
  return std::make_unique<NvmeSnapshot>(files_.state, names_, shape_.checksums,
                                        pins_, std::move(homes));
}

std::vector<std::int64_t> NvmeStoreImpl::KeptSteps() const {
  std::vector<std::int64_t> steps;
  for (std::size_t i = 0; i < commits_.size(); ++i) {
    // An older step that was partly in memory only has been overwritten there.
    const auto& places = commits_[i].state.places;
    if (i + 1 == commits_.size() ||
        std::find(places.begin(), places.end(), kPlaceMemory) == places.end()) {
      steps.push_back(commits_[i].record.step);
    }
  }
  return steps;
}

absl::Status NvmeStoreImpl::Rewind(std::int64_t step) {
  STOWAGE_RETURN_IF_ERROR(CheckUsable());
  if (in_pass_) {
    return absl::FailedPreconditionError(
        absl::StrCat("rewind job \"", shape_.job_name, "\" to step ", step,
                     ": a step is running"));
  }
  const std::vector<std::int64_t> kept = KeptSteps();
  if (std::find(kept.begin(), kept.end(), step) == kept.end()) {
    return absl::NotFoundError(
        absl::StrCat("rewind job \"", shape_.job_name, "\": step ", step,
                     " is not kept; kept are ", absl::StrJoin(kept, ", ")));
  }
  if (step == committed_.step) return absl::OkStatus();
  DropEarly();
  STOWAGE_RETURN_IF_ERROR(SettleDoubt());
  if (params_) STOWAGE_RETURN_IF_ERROR(params_->Settle());
  std::vector<const KeptCommit*> commits;
  for (const KeptCommit& commit : commits_) {
    commits.push_back(&commit);
    if (commit.record.step == step) break;
  }
  const std::size_t keep = commits.size();
  in_doubt_ = true;
  STOWAGE_RETURN_IF_ERROR(
      WriteManifest(commits, sequence_ + 1, /*flush=*/true));
  in_doubt_ = false;
  ++sequence_;
  commits_.resize(keep);
  for (Resident& at : residents_) at.valid = false;
  ForgetStaged();
  AdoptCommits();
  return absl::OkStatus();
}

absl::Status NvmeStoreImpl::SetJobRecord(std::string record) {
  STOWAGE_RETURN_IF_ERROR(CheckUsable());
  STOWAGE_RETURN_IF_ERROR(disk_.Replace(
      JobFileName(shape_.paths.front(), shape_.job_name),
      EncodeJobFile({.layout = layout_.spec(), .job_record = record})));
  job_record_ = std::move(record);
  return absl::OkStatus();
}

// What only the cache holds goes to free places, under the same step.
absl::Status NvmeStoreImpl::WriteMemory() {
  if (commits_.empty()) return absl::OkStatus();
  KeptCommit whole = commits_.back();
  std::vector<std::int32_t> written;
  for (std::size_t i = 0; i < residents_.size(); ++i) {
    if (whole.state.places[i] != kPlaceMemory) continue;
    const auto e = static_cast<std::int32_t>(i);
    const Resident& at = residents_[i];
    STOWAGE_CHECK(at.cached && at.valid);
    const std::uint8_t place = book_.Next(e, kPlaceZero);
    whole.state.places[i] = place;
    MoveExtent(e, place, /*write=*/true);
    written.push_back(e);
  }
  if (written.empty()) return absl::OkStatus();
  queue_->Drain();
  for (const std::int32_t e : written) {
    const Resident& at = resident(e);
    if (!at.transfer.ok()) {
      return names_.OfTransfer("write", files_.state, e,
                               whole.state.places[static_cast<std::size_t>(e)],
                               at.transfer);
    }
  }
  STOWAGE_RETURN_IF_ERROR(FlushFiles(files_.state));
  std::vector<const KeptCommit*> commits;
  for (std::size_t i = 0; i + 1 < commits_.size(); ++i) {
    commits.push_back(&commits_[i]);
  }
  commits.push_back(&whole);
  in_doubt_ = true;
  STOWAGE_RETURN_IF_ERROR(
      WriteManifest(commits, sequence_ + 1, /*flush=*/true));
  in_doubt_ = false;
  ++sequence_;
  commits_.back() = std::move(whole);
  AdoptCommits();
  return absl::OkStatus();
}

absl::Status NvmeStoreImpl::Close() {
  if (closed_) return absl::OkStatus();
  if (in_pass_) {
    Abandon().IgnoreError();  // what it loses is in lost_
  }
  DropEarly();
  absl::Status status = lost_;
  if (status.ok()) status = SettleDoubt();
  if (status.ok()) status = FlushAllStaged();
  if (status.ok()) status = WriteMemory();
  for (const ExtentFiles* files : {&files_.state, &files_.params}) {
    if (status.ok()) status = FlushFiles(*files);
  }
  if (status.ok()) {
    if (const int error = files_.manifest->Flush(); error != 0) {
      status = names_.OfFile("flush", *files_.manifest, error);
    }
  }
  params_.reset();
  sums_.reset();
  queue_.reset();
  files_ = {};
  closed_ = true;
  return status;
}

}  // namespace stowage::storage
