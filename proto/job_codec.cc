#include "proto/job_codec.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/checkpoint_codec.h"
#include "proto/optimizer_codec.h"
#include "proto/storage_codec.h"

namespace stowage::proto {
namespace {

constexpr std::int64_t kPathBytesMax = 4095;  // PATH_MAX without its zero
constexpr std::size_t kNonceBytesMin = 16;
constexpr std::size_t kNonceBytesMax = 64;

absl::Status Bad(const std::string& text) {
  return absl::InvalidArgumentError(text);
}

// Names appear in logs and errors: no control characters, bounded.
absl::Status CheckText(std::string_view what, const std::string& text,
                       std::int64_t bytes_max) {
  if (text.empty()) return Bad(absl::StrCat(std::string(what), ": empty"));
  if (static_cast<std::int64_t>(text.size()) > bytes_max) {
    return Bad(absl::StrCat(std::string(what), ": ", text.size(),
                            " bytes, at most ", bytes_max));
  }
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return Bad(
          absl::StrCat(std::string(what), ": holds a control character"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRange(std::string_view what, std::int64_t value,
                        std::int64_t min, std::int64_t max) {
  if (value < min || value > max) {
    return Bad(absl::StrCat(std::string(what), ": ", value, ", expected ", min,
                            " to ", max));
  }
  return absl::OkStatus();
}

// A segment's name is joined to a folder by the client: one plain component.
absl::Status CheckSegmentName(std::string_view what, const std::string& name) {
  STOWAGE_RETURN_IF_ERROR(CheckText(what, name, 255));
  if (name.front() == '.' || name.find('/') != std::string::npos) {
    return Bad(absl::StrCat(std::string(what), ": \"", name,
                            "\" is not a plain file name"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ParamSpec> DecodeParam(const v1::ParamSpec& message,
                                      const std::string& unit, int index,
                                      int group_count,
                                      const LayoutLimits& limits) {
  const std::string what =
      absl::StrCat("layout: unit \"", unit, "\", parameter ", index);
  STOWAGE_RETURN_IF_ERROR(
      CheckText(what + ": name", message.name(), limits.name_bytes_max));
  STOWAGE_RETURN_IF_ERROR(CheckRange(what + ": dimensions",
                                     message.shape_size(), 0, limits.rank_max));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange(what + ": group", message.group_index(), 0, group_count - 1));
  ParamSpec param;
  param.name = message.name();
  param.group_index = message.group_index();
  param.shape.reserve(static_cast<std::size_t>(message.shape_size()));
  for (const std::int64_t extent : message.shape()) {
    STOWAGE_RETURN_IF_ERROR(
        CheckRange(what + ": extent", extent, 1, limits.elems_max));
    param.shape.push_back(extent);
  }
  return param;
}

v1::Dtype EncodeDtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFp32:
      return v1::DTYPE_FP32;
    case Dtype::kFp16:
      return v1::DTYPE_FP16;
    case Dtype::kBf16:
      return v1::DTYPE_BF16;
  }
  return v1::DTYPE_UNSPECIFIED;
}

absl::StatusOr<Dtype> DecodeDtype(v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_FP32:
      return Dtype::kFp32;
    case v1::DTYPE_FP16:
      return Dtype::kFp16;
    case v1::DTYPE_BF16:
      return Dtype::kBf16;
    default:
      return Bad(absl::StrCat("layout: unknown parameter type ",
                              static_cast<int>(dtype)));
  }
}

}  // namespace

absl::Status CheckJobName(std::string_view name) {
  if (name.empty() ||
      static_cast<std::int64_t>(name.size()) > kJobNameBytesMax) {
    return Bad(absl::StrCat("job name: ", name.size(), " bytes, expected 1 to ",
                            kJobNameBytesMax));
  }
  for (const char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' &&
        c != '_' && c != '-') {
      return Bad(
          "job name: only letters, digits, '.', '_' and '-' may be "
          "in it");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<LayoutSpec> DecodeLayoutSpec(const v1::LayoutSpec& message,
                                            const LayoutLimits& limits) {
  LayoutSpec spec;
  STOWAGE_ASSIGN_OR_RETURN(spec.param_dtype,
                           DecodeDtype(message.param_dtype()));
  STOWAGE_RETURN_IF_ERROR(CheckRange(
      "layout: parameter groups", message.groups_size(), 1, limits.groups_max));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("layout: units", message.units_size(), 1, limits.units_max));
  spec.groups.reserve(static_cast<std::size_t>(message.groups_size()));
  for (const v1::GroupSpec& group : message.groups()) {
    STOWAGE_RETURN_IF_ERROR(CheckText("layout: name of a parameter group",
                                      group.name(), limits.name_bytes_max));
    spec.groups.push_back({group.name(), group.frozen()});
  }
  std::int64_t params = 0;
  spec.units.reserve(static_cast<std::size_t>(message.units_size()));
  for (const v1::UnitSpec& unit_message : message.units()) {
    STOWAGE_RETURN_IF_ERROR(CheckText(
        "layout: name of a unit", unit_message.name(), limits.name_bytes_max));
    STOWAGE_RETURN_IF_ERROR(CheckRange(
        absl::StrCat("layout: unit \"", unit_message.name(), "\": parameters"),
        unit_message.params_size(), 1, limits.params_max));
    params += unit_message.params_size();
    STOWAGE_RETURN_IF_ERROR(
        CheckRange("layout: parameters", params, 1, limits.params_max));
    UnitSpec unit;
    unit.name = unit_message.name();
    unit.params.reserve(static_cast<std::size_t>(unit_message.params_size()));
    for (int p = 0; p < unit_message.params_size(); ++p) {
      STOWAGE_ASSIGN_OR_RETURN(ParamSpec param,
                               DecodeParam(unit_message.params(p), unit.name, p,
                                           message.groups_size(), limits));
      unit.params.push_back(std::move(param));
    }
    spec.units.push_back(std::move(unit));
  }
  return spec;
}

void EncodeLayoutSpec(const LayoutSpec& spec, v1::LayoutSpec* message) {
  message->Clear();
  message->set_param_dtype(EncodeDtype(spec.param_dtype));
  for (const GroupSpec& group : spec.groups) {
    v1::GroupSpec* out = message->add_groups();
    out->set_name(group.name);
    out->set_frozen(group.frozen);
  }
  for (const UnitSpec& unit : spec.units) {
    v1::UnitSpec* unit_out = message->add_units();
    unit_out->set_name(unit.name);
    for (const ParamSpec& param : unit.params) {
      v1::ParamSpec* out = unit_out->add_params();
      out->set_name(param.name);
      out->set_group_index(param.group_index);
      out->mutable_shape()->Add(param.shape.begin(), param.shape.end());
    }
  }
}

absl::StatusOr<JobSpec> DecodeJobSpec(const v1::JobSpec& message) {
  JobSpec spec;
  STOWAGE_RETURN_IF_ERROR(CheckJobName(message.name()));
  spec.name = message.name();
  STOWAGE_ASSIGN_OR_RETURN(spec.layout, DecodeLayoutSpec(message.layout()));
  STOWAGE_ASSIGN_OR_RETURN(spec.optimizer,
                           DecodeOptimizerSpec(message.optimizer()));
  switch (message.durability()) {
    case v1::DURABILITY_MEMORY:
      spec.durability = Durability::kMemory;
      break;
    case v1::DURABILITY_POWER:
      spec.durability = Durability::kPower;
      break;
    default:
      return Bad(absl::StrCat("durability: unknown value ",
                              static_cast<int>(message.durability())));
  }
  if (message.has_storage()) {
    STOWAGE_ASSIGN_OR_RETURN(spec.storage,
                             DecodeStorageSpec(message.storage()));
  }
  return spec;
}

void EncodeJobSpec(const JobSpec& spec, v1::JobSpec* message) {
  message->Clear();
  message->set_name(spec.name);
  EncodeLayoutSpec(spec.layout, message->mutable_layout());
  EncodeOptimizerSpec(spec.optimizer, message->mutable_optimizer());
  message->set_durability(spec.durability == Durability::kPower
                              ? v1::DURABILITY_POWER
                              : v1::DURABILITY_MEMORY);
  if (spec.storage != StorageSpec{}) {
    EncodeStorageSpec(spec.storage, message->mutable_storage());
  }
}

absl::StatusOr<RunSpec> DecodeRunSpec(const v1::RunSpec& message) {
  if (message.nonce().size() < kNonceBytesMin ||
      message.nonce().size() > kNonceBytesMax) {
    return Bad(absl::StrCat("run: a nonce of ", message.nonce().size(),
                            " bytes, expected ", kNonceBytesMin, " to ",
                            kNonceBytesMax));
  }
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("run: world size", message.world_size(), 1, kWorldSizeMax));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("run: local ranks", message.local_ranks(), 1, kLocalRanksMax));
  STOWAGE_RETURN_IF_ERROR(CheckRange("run: local ranks of this world size",
                                     message.local_ranks(), 1,
                                     message.world_size()));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("run: micro steps", message.micro_steps(), 1, kMicroStepsMax));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("run: first rank of this node", message.first_rank(), 0,
                 message.world_size() - message.local_ranks()));
  RunSpec spec;
  spec.nonce = message.nonce();
  spec.world_size = message.world_size();
  spec.local_ranks = message.local_ranks();
  spec.micro_steps = message.micro_steps();
  spec.shards = message.shards();
  spec.first_rank = message.first_rank();
  STOWAGE_ASSIGN_OR_RETURN(spec.load, DecodeLoadSpec(message.load()));
  return spec;
}

void EncodeRunSpec(const RunSpec& spec, v1::RunSpec* message) {
  message->set_nonce(spec.nonce);
  message->set_world_size(spec.world_size);
  message->set_local_ranks(spec.local_ranks);
  message->set_micro_steps(spec.micro_steps);
  message->set_shards(spec.shards);
  message->set_first_rank(spec.first_rank);
  EncodeLoadSpec(spec.load, message->mutable_load());
}

absl::StatusOr<AttachInfo> DecodeAttachInfo(const v1::AttachInfo& message) {
  constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("attached: step", message.step(), 0, kAny));
  STOWAGE_RETURN_IF_ERROR(CheckRange(
      "attached: applied steps", message.applied_steps(), 0, message.step()));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("attached: bytes of client state",
                 static_cast<std::int64_t>(message.client_state().size()), 0,
                 kClientStateBytesMax));
  STOWAGE_RETURN_IF_ERROR(CheckRange(
      "attached: slots per rank", message.slots_per_rank(), 1, kMicroStepsMax));
  STOWAGE_RETURN_IF_ERROR(
      CheckText("attached: segment folder", message.shm_dir(), kPathBytesMax));
  if (message.shm_dir().front() != '/') {
    return Bad("attached: the segment folder is not an absolute path");
  }
  STOWAGE_RETURN_IF_ERROR(
      CheckSegmentName("attached: parameter segment", message.param_segment()));
  STOWAGE_RETURN_IF_ERROR(CheckSegmentName("attached: gradient segment",
                                           message.gradient_segment()));
  AttachInfo info;
  info.job_id = message.job_id();
  info.epoch = message.epoch();
  info.initialized = message.initialized();
  info.step = message.step();
  info.applied_steps = message.applied_steps();
  info.client_state = message.client_state();
  info.slots_per_rank = message.slots_per_rank();
  info.slots_are_ring = message.slots_are_ring();
  info.shm_dir = message.shm_dir();
  info.param_segment = message.param_segment();
  info.gradient_segment = message.gradient_segment();
  STOWAGE_RETURN_IF_ERROR(CheckRange("attached: elements under lease",
                                     message.leased_elems_max(), 0, kAny));
  STOWAGE_RETURN_IF_ERROR(CheckRange("attached: gradient regions",
                                     message.gradient_regions(), 0,
                                     kGradientRegionsMax));
  info.params_leased = message.params_leased();
  info.leased_elems_max = message.leased_elems_max();
  info.gradient_regions = message.gradient_regions();
  info.loaded_from = message.loaded_from();
  return info;
}

void EncodeAttachInfo(const AttachInfo& info, v1::AttachInfo* message) {
  message->set_job_id(info.job_id);
  message->set_epoch(info.epoch);
  message->set_initialized(info.initialized);
  message->set_step(info.step);
  message->set_applied_steps(info.applied_steps);
  message->set_client_state(info.client_state);
  message->set_slots_per_rank(info.slots_per_rank);
  message->set_slots_are_ring(info.slots_are_ring);
  message->set_shm_dir(info.shm_dir);
  message->set_param_segment(info.param_segment);
  message->set_gradient_segment(info.gradient_segment);
  message->set_params_leased(info.params_leased);
  message->set_leased_elems_max(info.leased_elems_max);
  message->set_gradient_regions(info.gradient_regions);
  message->set_loaded_from(info.loaded_from);
}

absl::StatusOr<JobInfo> DecodeJobInfo(const v1::JobInfo& message) {
  STOWAGE_RETURN_IF_ERROR(CheckJobName(message.name()));
  JobInfo info;
  info.name = message.name();
  info.job_id = message.job_id();
  info.epoch = message.epoch();
  info.initialized = message.initialized();
  info.step = message.step();
  info.applied_steps = message.applied_steps();
  info.parameters = message.parameters();
  info.live_sessions = message.live_sessions();
  info.local_ranks = message.local_ranks();
  info.state_bytes = message.state_bytes();
  info.param_bytes = message.param_bytes();
  info.gradient_bytes = message.gradient_bytes();
  info.failed_because = message.failed_because();
  info.units_landed = message.units_landed();
  info.landing_seconds = message.landing_seconds();
  info.apply_seconds = message.apply_seconds();
  info.nvme_paths.assign(message.nvme_paths().begin(),
                         message.nvme_paths().end());
  info.durability = message.durability();
  info.kept_steps.assign(message.kept_steps().begin(),
                         message.kept_steps().end());
  info.disk_bytes = message.disk_bytes();
  info.cache_bytes = message.cache_bytes();
  info.disk_bytes_read = message.disk_bytes_read();
  info.disk_bytes_written = message.disk_bytes_written();
  info.prepared = message.prepared();
  info.params_leased = message.params_leased();
  info.param_limit_bytes = message.param_limit_bytes();
  info.io = message.io();
  STOWAGE_ASSIGN_OR_RETURN(info.trust_ratios,
                           DecodeTrustRatios(message.trust_ratios()));
  STOWAGE_ASSIGN_OR_RETURN(info.compression,
                           DecodeCompression(message.compression()));
  return info;
}

void EncodeJobInfo(const JobInfo& info, v1::JobInfo* message) {
  message->set_name(info.name);
  message->set_job_id(info.job_id);
  message->set_epoch(info.epoch);
  message->set_initialized(info.initialized);
  message->set_step(info.step);
  message->set_applied_steps(info.applied_steps);
  message->set_parameters(info.parameters);
  message->set_live_sessions(info.live_sessions);
  message->set_local_ranks(info.local_ranks);
  message->set_state_bytes(info.state_bytes);
  message->set_param_bytes(info.param_bytes);
  message->set_gradient_bytes(info.gradient_bytes);
  message->set_failed_because(info.failed_because);
  message->set_units_landed(info.units_landed);
  message->set_landing_seconds(info.landing_seconds);
  message->set_apply_seconds(info.apply_seconds);
  for (const std::string& path : info.nvme_paths) message->add_nvme_paths(path);
  message->set_durability(info.durability);
  message->mutable_kept_steps()->Assign(info.kept_steps.begin(),
                                        info.kept_steps.end());
  message->set_disk_bytes(info.disk_bytes);
  message->set_cache_bytes(info.cache_bytes);
  message->set_disk_bytes_read(info.disk_bytes_read);
  message->set_disk_bytes_written(info.disk_bytes_written);
  message->set_prepared(info.prepared);
  message->set_params_leased(info.params_leased);
  message->set_param_limit_bytes(info.param_limit_bytes);
  message->set_io(info.io);
  if (info.trust_ratios.tensors > 0) {
    EncodeTrustRatios(info.trust_ratios, message->mutable_trust_ratios());
  }
  if (info.compression.rounds > 0) {
    EncodeCompression(info.compression, message->mutable_compression());
  }
}

}  // namespace stowage::proto
