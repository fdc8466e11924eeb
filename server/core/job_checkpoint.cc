// The part of Job that saves its state to files and begins from them.

#include <algorithm>
#include <chrono>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bytes.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "server/core/job.h"
#include "storage/host/segment_folder.h"

namespace stowage::core {
namespace {

// State is read and put in pieces of 1 MiB.
constexpr std::int64_t kLoadElems = std::int64_t{256} * 1024;
// A save may be asked for before its step has begun, not for a distant one.
constexpr std::int64_t kStepsAheadMax = 2;

std::int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string Shape(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    absl::StrAppend(&text, text.size() > 1 ? ", " : "", extent);
  }
  return text + "]";
}

// The first difference in words, empty if there is none.
std::string OptimizerDifference(const OptimizerSpec& theirs,
                                const OptimizerSpec& ours) {
  if (theirs.kind != ours.kind) {
    return absl::StrCat("optimizer: ", OptimizerKindName(theirs.kind),
                        ", the job has ", OptimizerKindName(ours.kind));
  }
  if (theirs.decoupled_weight_decay != ours.decoupled_weight_decay) {
    return absl::StrCat(
        "optimizer: ", theirs.decoupled_weight_decay ? "AdamW" : "Adam",
        ", the job has ", ours.decoupled_weight_decay ? "AdamW" : "Adam");
  }
  if (theirs.bias_correction != ours.bias_correction) {
    return absl::StrCat(
        "optimizer: bias correction is ", theirs.bias_correction ? "on" : "off",
        ", the job has it ", ours.bias_correction ? "on" : "off");
  }
  if (theirs.one_bit() && theirs.freeze_step != ours.freeze_step) {
    return absl::StrCat("optimizer: freeze step ", theirs.freeze_step,
                        ", the job's is ", ours.freeze_step);
  }
  return "";
}

std::string ParamDifference(const storage::CheckpointReader& reader,
                            const Layout::Param& param, Dtype dtype) {
  const storage::TensorSpec* found = reader.Find(
      param.frozen ? storage::kKindFrozen : storage::kKindMaster, param.name);
  if (found == nullptr) {
    return absl::StrCat("layout: it has no ",
                        param.frozen ? "frozen" : "trainable", " parameter \"",
                        param.name, "\"");
  }
  if (found->shape != param.shape) {
    return absl::StrCat("layout: parameter \"", param.name, "\" has shape ",
                        Shape(found->shape), ", the job has ",
                        Shape(param.shape));
  }
  // Values that are not trained cannot be made anew from masters.
  if (param.frozen && found->dtype != dtype) {
    return absl::StrCat("element type: frozen parameter \"", param.name,
                        "\" is ", storage::TensorDtypeName(found->dtype),
                        ", the job has ", storage::TensorDtypeName(dtype));
  }
  return "";
}

SaveInfo WaitingFor(const SaveSpec& spec) {
  SaveInfo info;
  info.job = spec.job;
  info.phase = SavePhase::kWaiting;
  info.step = spec.step;
  return info;
}

std::string StillRunning(const SaveInfo& save) {
  return absl::StrCat("save: job \"", save.job, "\": the save of step ",
                      save.step, " is still being written (",
                      HumanBytes(save.bytes_done), " of ",
                      HumanBytes(save.bytes_total), ")");
}

}  // namespace

// ---------------------------------------------------------------------------
// Saving

absl::StatusOr<SaveInfo> Job::Save(const SaveSpec& spec) {
  MutexLock lock(mutex_);
  if (closing_) {
    return absl::UnavailableError(
        absl::StrCat("job \"", spec_.name, "\" is ending"));
  }
  if (!failed_because_.ok()) return failed_because_;
  if (!initialized_ || store_ == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "save: job \"", spec_.name,
        initialized_ ? "\" is not open: no rank has attached since the server "
                       "found it"
                     : "\" has no committed step yet"));
  }
  // Without a run the step that one waits for may never come.
  if (save_wanted_ && run_ && run_->over.ok() && run_->LiveSessions() > 0) {
    return absl::UnavailableError(
        absl::StrCat("save: job \"", spec_.name, "\": the save of step ",
                     save_wanted_->step, " has not begun yet"));
  }
  if (save_ != nullptr && save_->info().running()) {
    return absl::UnavailableError(StillRunning(save_->info()));
  }
  SaveSpec wanted = spec;
  if (wanted.step < 0) wanted.step = committed_.step + (apply_pending_ ? 1 : 0);
  if (wanted.step < committed_.step) {
    return absl::AbortedError(
        absl::StrCat("save: job \"", spec_.name, "\": step ", wanted.step,
                     " has passed, the job is at step ", committed_.step));
  }
  if (wanted.step > committed_.step + kStepsAheadMax) {
    return absl::FailedPreconditionError(
        absl::StrCat("save: job \"", spec_.name, "\": step ", wanted.step,
                     " is far ahead, the job is at step ", committed_.step));
  }
  save_wanted_ = std::move(wanted);
  work_.NotifyOne();
  return WaitingFor(*save_wanted_);
}

SaveInfo Job::LastSave() const {
  MutexLock lock(mutex_);
  if (save_wanted_) return WaitingFor(*save_wanted_);
  SaveInfo info = save_ == nullptr ? save_failed_ : save_->info();
  info.job = spec_.name;
  return info;
}

// By the busy one, between two steps: everything that takes long is the save's
// own thread's.
void Job::BeginSave() {
  const auto begin = std::chrono::steady_clock::now();
  SaveSpec spec;
  std::shared_ptr<CheckpointSave> previous;
  {
    MutexLock lock(mutex_);
    spec = *save_wanted_;
    previous = std::move(save_);
  }
  previous.reset();  // it has ended
  absl::StatusOr<std::shared_ptr<CheckpointSave>> made = MakeSave(spec);
  if (!made.ok()) {
    log::Error("checkpoint_failed", {{"job", spec_.name},
                                     {"step", spec.step},
                                     {"reason", made.status().message()}});
  }
  CrashPoint("checkpoint-snapshot");
  const double ms = std::chrono::duration<double, std::milli>(
                        std::chrono::steady_clock::now() - begin)
                        .count();
  log::Debug("checkpoint_begun",
             {{"job", spec_.name}, {"step", spec.step}, {"ms", ms}});
  MutexLock lock(mutex_);
  save_wanted_.reset();
  save_failed_ = {};
  if (made.ok()) {
    save_ = *std::move(made);
  } else {
    save_failed_.phase = SavePhase::kFailed;
    save_failed_.step = spec.step;
    save_failed_.error = std::string(made.status().message());
  }
  EndBusy();
}

absl::StatusOr<std::shared_ptr<CheckpointSave>> Job::MakeSave(
    const SaveSpec& spec) {
  const auto begin = std::chrono::steady_clock::now();
  CheckpointSave::Parts parts;
  storage::CheckpointManifest& manifest = parts.manifest;
  STOWAGE_ASSIGN_OR_RETURN(
      parts.snapshot,
      store_->BeginSnapshot(
          {.budget = services_->budget,
           .copies_bytes_max = 3 * layout_.state_elems() *
                               static_cast<std::int64_t>(sizeof(float))}));
  // All errors change in a step, so that their copy is made at once.
  if (OneBitUpdate* const one_bit = update_->one_bit();
      one_bit != nullptr && spec.state) {
    STOWAGE_ASSIGN_OR_RETURN(
        parts.one_bit_memory,
        services_->budget->Reserve(
            one_bit->bytes(),
            absl::StrCat("save of job \"", spec_.name, "\"")));
    parts.one_bit = one_bit->Copy();
  }
  parts.spec = spec;
  parts.layout = &layout_;
  parts.kernels = services_->kernels;
  parts.read_frozen = [this](std::int32_t unit, std::int64_t begin_elems,
                             std::span<std::byte> out) {
    return ReadFrozen(unit, begin_elems, out);
  };
  manifest.program = "stowd " STOWAGE_VERSION;
  manifest.time = NowMs();
  manifest.save_id = storage::RandomHex(16);
  manifest.job = spec_.name;
  manifest.layout = layout_.spec();
  manifest.optimizer = spec_.optimizer;
  {
    MutexLock lock(mutex_);
    manifest.step = committed_.step;
    manifest.applied_steps = committed_.applied_steps;
    manifest.client_state = committed_.client_state;
    manifest.groups = last_groups_;
    manifest.forward_order = forward_order_;
    manifest.trace = trace_;
    parts.unit_order = order_->units();
  }
  parts.begin_ms = std::chrono::duration<double, std::milli>(
                       std::chrono::steady_clock::now() - begin)
                       .count();
  return std::make_shared<CheckpointSave>(std::move(parts));
}

// On the save's thread.
absl::Status Job::ReadFrozen(std::int32_t unit, std::int64_t begin_elems,
                             std::span<std::byte> out) {
  if (residency_ != nullptr) STOWAGE_RETURN_IF_ERROR(residency_->Hold(unit));
  const std::byte* from = params_->param(unit, begin_elems);
  std::copy(from, from + out.size(), out.begin());
  if (residency_ != nullptr) residency_->LetGo(unit);
  return absl::OkStatus();
}

// Requires: no lock; nobody can begin another one meanwhile.
void Job::EndSave(bool finish) {
  std::shared_ptr<CheckpointSave> save;
  {
    MutexLock lock(mutex_);
    save = save_;
  }
  if (save == nullptr) return;
  if (!finish) save->GiveUp();
  save->Join();
}

// ---------------------------------------------------------------------------
// Loading

absl::Status Job::CheckCheckpoint(
    const storage::CheckpointReader& reader) const {
  std::string difference =
      OptimizerDifference(reader.manifest().optimizer, spec_.optimizer);
  std::set<std::string> names;
  for (const Layout::Unit& unit : layout_.units()) {
    for (const Layout::Param& param : unit.params) {
      if (!difference.empty()) break;
      names.insert(param.name);
      difference = ParamDifference(reader, param, layout_.param_dtype());
    }
  }
  for (const char* kind : {storage::kKindMaster, storage::kKindFrozen}) {
    if (!difference.empty()) break;
    for (const storage::TensorSpec& tensor : reader.Tensors(kind)) {
      if (names.count(tensor.name) > 0) continue;
      difference = absl::StrCat("layout: parameter \"", tensor.name,
                                "\", which the job has not");
      break;
    }
  }
  if (difference.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("load ", reader.path(), " into job \"", spec_.name,
                   "\": the checkpoint has another ", difference));
}

absl::Status Job::LoadParamFrom(storage::CheckpointReader& reader,
                                const Layout::Param& param) {
  if (param.frozen) {
    const std::int64_t bytes = param.elems * DtypeBytes(layout_.param_dtype());
    return reader.Read(storage::kKindFrozen, param.name, 0,
                       {params_->param(param.unit_index, param.begin_elems),
                        static_cast<std::size_t>(bytes)});
  }
  std::vector<float> values;
  for (std::int64_t at = 0; at < param.elems; at += kLoadElems) {
    const std::int64_t elems = std::min(kLoadElems, param.elems - at);
    const std::int64_t begin = param.begin_elems + at;
    values.resize(static_cast<std::size_t>(elems));
    const auto read = [&](const char* kind) {
      return reader.Read(kind, param.name,
                         at * static_cast<std::int64_t>(sizeof(float)),
                         std::as_writable_bytes(std::span<float>(values)));
    };
    STOWAGE_RETURN_IF_ERROR(read(storage::kKindMaster));
    STOWAGE_RETURN_IF_ERROR(store_->Put(param.unit_index, begin, values));
    services_->kernels->convert(values.data(), layout_.param_dtype(),
                                params_->param(param.unit_index, begin), elems);
    STOWAGE_RETURN_IF_ERROR(read(storage::kKindMoment1));
    STOWAGE_RETURN_IF_ERROR(store_->PutMoment(
        param.unit_index, StateKind::kMoment1, begin, values));
    STOWAGE_RETURN_IF_ERROR(read(storage::kKindMoment2));
    STOWAGE_RETURN_IF_ERROR(store_->PutMoment(
        param.unit_index, StateKind::kMoment2, begin, values));
  }
  return absl::OkStatus();
}

absl::Status Job::LoadUnitFrom(storage::CheckpointReader& reader,
                               std::int32_t unit) {
  if (residency_ != nullptr) {
    STOWAGE_RETURN_IF_ERROR(
        residency_->BeginWrite(unit, /*load=*/false, /*give_up=*/true));
  }
  for (const Layout::Param& param :
       layout_.units()[static_cast<std::size_t>(unit)].params) {
    STOWAGE_RETURN_IF_ERROR(LoadParamFrom(reader, param));
  }
  if (residency_ == nullptr) return absl::OkStatus();
  std::vector<LeaseGrant> none;
  residency_->EndWrite(unit, reader.manifest().step, &none);
  return residency_->Settle();
}

absl::Status Job::LoadOneBit(storage::CheckpointReader& reader) {
  OneBitUpdate* const one_bit = update_->one_bit();
  if (one_bit == nullptr) return absl::OkStatus();
  const std::vector<OneBitUpdate::Place> places = one_bit->Places();
  if (reader.Tensors(storage::kKindOneBit).size() != places.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        reader.path(),
        ": errors of signs: ", reader.Tensors(storage::kKindOneBit).size(),
        " arrays, the job of ", one_bit->Who(), " has ", places.size(),
        "; a 1-bit optimizer goes on with the number of ranks that saved"));
  }
  for (const OneBitUpdate::Place& place : places) {
    const storage::TensorSpec* found =
        reader.Find(storage::kKindOneBit, place.name);
    const std::int64_t bytes = found == nullptr ? 0 : found->bytes();
    if (bytes != static_cast<std::int64_t>(place.bytes.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          reader.path(), ": errors of signs: ", place.name, " has ", bytes,
          " bytes, the job of ", one_bit->Who(), " has ", place.bytes.size(),
          "; a 1-bit optimizer goes on with the number of ranks that saved"));
    }
  }
  for (const OneBitUpdate::Place& place : places) {
    STOWAGE_RETURN_IF_ERROR(
        reader.Read(storage::kKindOneBit, place.name, 0, place.bytes));
  }
  return absl::OkStatus();
}

absl::Status Job::LoadIfNew(const LoadSpec& load) {
  {
    MutexLock lock(mutex_);
    loaded_from_.clear();
    if (load.folder.empty() || initialized_) return absl::OkStatus();
  }
  const auto begin = std::chrono::steady_clock::now();
  absl::StatusOr<std::string> path =
      storage::FindCheckpoint(load.folder, load.step);
  if (absl::IsNotFound(path.status()) && load.if_any) return absl::OkStatus();
  STOWAGE_RETURN_IF_ERROR(path.status());
  STOWAGE_ASSIGN_OR_RETURN(storage::CheckpointReader reader,
                           storage::CheckpointReader::Open(*path));
  STOWAGE_RETURN_IF_ERROR(CheckCheckpoint(reader));
  const storage::CheckpointManifest& manifest = reader.manifest();
  STOWAGE_RETURN_IF_ERROR(LoadOneBit(reader));
  for (std::int32_t unit = 0; unit < layout_.unit_count(); ++unit) {
    STOWAGE_RETURN_IF_ERROR(LoadUnitFrom(reader, unit));
  }
  const storage::CommitRecord record{.step = manifest.step,
                                     .applied_steps = manifest.applied_steps,
                                     .client_state = manifest.client_state};
  if (nvme_ != nullptr) {
    STOWAGE_RETURN_IF_ERROR(WriteInitialState(record));
    RefreshDiskFigures();
  } else {
    STOWAGE_RETURN_IF_ERROR(store_->Commit(record));
  }
  for (std::int32_t unit = 0; unit < layout_.unit_count(); ++unit) {
    params_->PublishVersion(unit, record.step);
  }
  // Units are told by their index.
  const bool same_units = manifest.layout.units == layout_.spec().units;
  std::vector<std::int32_t> first;
  if (same_units) first = manifest.forward_order;
  STOWAGE_ASSIGN_OR_RETURN(std::shared_ptr<const UpdateOrder> order,
                           UpdateOrder::Create(layout_, first));
  log::Info("checkpoint_loaded",
            {{"job", spec_.name},
             {"path", *path},
             {"step", record.step},
             {"bytes", HumanBytes(reader.bytes())},
             {"seconds", std::chrono::duration<double>(
                             std::chrono::steady_clock::now() - begin)
                             .count()}});
  MutexLock lock(mutex_);
  order_ = std::move(order);
  if (same_units) {
    forward_order_ = manifest.forward_order;
    trace_ = manifest.trace;
    record_changed_ = true;
    if (residency_ != nullptr) residency_->SetTrace(trace_);
  }
  committed_ = record;
  initialized_ = true;
  coverage_.clear();
  loaded_from_ = *path;
  last_groups_ = manifest.groups;
  if (last_groups_.size() != layout_.spec().groups.size()) last_groups_.clear();
  return absl::OkStatus();
}

}  // namespace stowage::core
