#include "proto/checkpoint_codec.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "proto/job_codec.h"

namespace stowage::proto {
namespace {

absl::Status CheckFolder(const std::string& folder) {
  const auto bad = [&](const char* why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "checkpoint folder \"", folder.substr(0, 256), "\": ", why));
  };
  if (folder.empty() || folder.front() != '/') {
    return bad("not an absolute path");
  }
  if (static_cast<std::int64_t>(folder.size()) > kCheckpointPathBytesMax) {
    return bad("more than 4096 bytes");
  }
  for (const char c : folder) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return bad("holds a control character");
    }
  }
  for (const absl::string_view part : absl::StrSplit(folder, '/')) {
    if (part == "..") return bad("holds \"..\"");
  }
  return absl::OkStatus();
}

absl::Status CheckStep(std::int64_t step) {
  if (step >= -1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("checkpoint: step ", step, ", expected at least -1"));
}

}  // namespace

absl::StatusOr<LoadSpec> DecodeLoadSpec(const v1::LoadSpec& message) {
  LoadSpec spec;
  if (message.folder().empty()) return spec;
  STOWAGE_RETURN_IF_ERROR(CheckFolder(message.folder()));
  STOWAGE_RETURN_IF_ERROR(CheckStep(message.step()));
  spec.folder = message.folder();
  spec.step = message.step();
  spec.if_any = message.if_any();
  return spec;
}

void EncodeLoadSpec(const LoadSpec& spec, v1::LoadSpec* message) {
  message->Clear();
  if (spec.folder.empty()) return;
  message->set_folder(spec.folder);
  message->set_step(spec.step);
  message->set_if_any(spec.if_any);
}

absl::StatusOr<SaveSpec> DecodeSaveJob(const v1::SaveJobRequest& message) {
  STOWAGE_RETURN_IF_ERROR(CheckJobName(message.job()));
  STOWAGE_RETURN_IF_ERROR(CheckFolder(message.folder()));
  STOWAGE_RETURN_IF_ERROR(CheckStep(message.step()));
  if (message.keep() < 0 || message.keep() > kCheckpointsKeptMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("save: keep ", message.keep(), ", expected 0 to ",
                     kCheckpointsKeptMax));
  }
  SaveSpec spec;
  spec.job = message.job();
  spec.folder = message.folder();
  spec.step = message.step();
  spec.model = message.model() || message.model_only();
  spec.state = !message.model_only();
  spec.keep = message.keep();
  return spec;
}

void EncodeSaveJob(const SaveSpec& spec, v1::SaveJobRequest* message) {
  message->set_job(spec.job);
  message->set_folder(spec.folder);
  message->set_step(spec.step);
  message->set_model(spec.model);
  message->set_model_only(!spec.state);
  message->set_keep(spec.keep);
}

absl::StatusOr<SaveInfo> DecodeSaveInfo(const v1::SaveInfo& message) {
  SaveInfo info;
  switch (message.phase()) {
    case v1::SAVE_PHASE_NONE:
    case v1::SAVE_PHASE_WAITING:
    case v1::SAVE_PHASE_WRITING:
    case v1::SAVE_PHASE_DONE:
    case v1::SAVE_PHASE_FAILED:
      info.phase = static_cast<SavePhase>(message.phase());
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat(
          "save: phase ", static_cast<int>(message.phase()), " is unknown"));
  }
  info.job = message.job();
  info.step = message.step();
  info.path = message.path();
  info.error = message.error();
  info.bytes_done = message.bytes_done();
  info.bytes_total = message.bytes_total();
  info.seconds = message.seconds();
  info.begin_ms = message.begin_ms();
  info.copied_bytes = message.copied_bytes();
  info.copies_bytes_max = message.copies_bytes_max();
  info.waits = message.waits();
  info.wait_seconds = message.wait_seconds();
  return info;
}

void EncodeSaveInfo(const SaveInfo& info, v1::SaveInfo* message) {
  message->set_job(info.job);
  message->set_phase(static_cast<v1::SavePhase>(info.phase));
  message->set_step(info.step);
  message->set_path(info.path);
  message->set_error(info.error);
  message->set_bytes_done(info.bytes_done);
  message->set_bytes_total(info.bytes_total);
  message->set_seconds(info.seconds);
  message->set_begin_ms(info.begin_ms);
  message->set_copied_bytes(info.copied_bytes);
  message->set_copies_bytes_max(info.copies_bytes_max);
  message->set_waits(info.waits);
  message->set_wait_seconds(info.wait_seconds);
}

}  // namespace stowage::proto
