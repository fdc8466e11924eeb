#include "proto/session_codec.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/job_codec.h"
#include "proto/optimizer_codec.h"

namespace stowage::proto {
namespace {

static_assert(std::endian::native == std::endian::little,
              "values travel little-endian and are copied as they are");

constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kUnitMax = LayoutLimits{}.units_max - 1;
constexpr std::int64_t kElemsMax = LayoutLimits{}.elems_max;
constexpr std::size_t kHostBytesMax = 256;
constexpr std::int64_t kNameBytesMax = LayoutLimits{}.name_bytes_max;

absl::Status Bad(const std::string& text) {
  return absl::InvalidArgumentError(text);
}

absl::Status CheckRange(const char* what, std::int64_t value, std::int64_t min,
                        std::int64_t max) {
  if (value < min || value > max) {
    return Bad(
        absl::StrCat(what, ": ", value, ", expected ", min, " to ", max));
  }
  return absl::OkStatus();
}

absl::Status CheckFinite(const char* what, double value) {
  if (!std::isfinite(value)) return Bad(absl::StrCat(what, ": not finite"));
  return absl::OkStatus();
}

absl::Status DecodeValues(const char* what, const std::string& bytes,
                          std::vector<float>* values) {
  if (bytes.empty() || bytes.size() % sizeof(float) != 0 ||
      bytes.size() / sizeof(float) >
          static_cast<std::size_t>(kChunkValuesMax)) {
    return Bad(absl::StrCat(what, ": ", bytes.size(),
                            " bytes of values, expected a multiple of 4 from "
                            "4 to ",
                            kChunkValuesMax * 4));
  }
  // A copy: a string's bytes need not be aligned for float.
  values->resize(bytes.size() / sizeof(float));
  std::memcpy(values->data(), bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::StatusOr<StateKind> DecodeStateKind(v1::StateKind kind) {
  switch (kind) {
    case v1::STATE_KIND_MASTER:
      return StateKind::kMaster;
    case v1::STATE_KIND_MOMENT1:
      return StateKind::kMoment1;
    case v1::STATE_KIND_MOMENT2:
      return StateKind::kMoment2;
    case v1::STATE_KIND_PARAM:
      return StateKind::kParam;
    default:
      return Bad(
          absl::StrCat("state kind: unknown value ", static_cast<int>(kind)));
  }
}

v1::StateKind EncodeStateKind(StateKind kind) {
  switch (kind) {
    case StateKind::kMaster:
      return v1::STATE_KIND_MASTER;
    case StateKind::kMoment1:
      return v1::STATE_KIND_MOMENT1;
    case StateKind::kMoment2:
      return v1::STATE_KIND_MOMENT2;
    case StateKind::kParam:
      return v1::STATE_KIND_PARAM;
  }
  return v1::STATE_KIND_UNSPECIFIED;
}

absl::StatusOr<GroupStep> DecodeGroupStep(const v1::GroupStep& message) {
  STOWAGE_RETURN_IF_ERROR(CheckFinite("apply: lr", message.lr()));
  STOWAGE_RETURN_IF_ERROR(
      CheckFinite("apply: weight_decay", message.weight_decay()));
  // Written so that NaN fails.
  if (!(message.beta1() >= 0 && message.beta1() < 1) ||
      !(message.beta2() >= 0 && message.beta2() < 1)) {
    return Bad(absl::StrCat("apply: betas ", message.beta1(), ", ",
                            message.beta2(), ", expected [0, 1)"));
  }
  if (!(message.eps() >= 0) || !std::isfinite(message.eps())) {
    return Bad(absl::StrCat("apply: eps ", message.eps(),
                            ", expected a finite value of at least 0"));
  }
  return GroupStep{message.lr(), message.beta1(), message.beta2(),
                   message.eps(), message.weight_decay()};
}

}  // namespace

absl::Status ProtocolVersionError(std::int32_t server, std::int32_t client) {
  return absl::FailedPreconditionError(absl::StrCat(
      "the server speaks protocol version ", server, ", this client ", client,
      ": use the same release of Stowage for both"));
}

absl::StatusOr<OpenArgs> DecodeOpen(const v1::Open& message) {
  if (message.protocol_version() != kProtocolVersion) {
    return ProtocolVersionError(kProtocolVersion, message.protocol_version());
  }
  OpenArgs args;
  STOWAGE_ASSIGN_OR_RETURN(args.job, DecodeJobSpec(message.job()));
  STOWAGE_ASSIGN_OR_RETURN(args.run, DecodeRunSpec(message.run()));
  STOWAGE_RETURN_IF_ERROR(CheckRange("open: local rank", message.local_rank(),
                                     0, args.run.local_ranks - 1));
  STOWAGE_RETURN_IF_ERROR(CheckRange("open: pid", message.pid(), 1,
                                     std::numeric_limits<std::int32_t>::max()));
  if (message.host().size() > kHostBytesMax) {
    return Bad(absl::StrCat("open: a host name of ", message.host().size(),
                            " bytes, at most ", kHostBytesMax));
  }
  for (const char c : message.host()) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return Bad("open: the host name holds a control character");
    }
  }
  args.local_rank = message.local_rank();
  args.pid = message.pid();
  args.host = message.host();
  return args;
}

void EncodeOpen(const JobSpec& job, const RunSpec& run, std::int32_t local_rank,
                std::int32_t pid, const std::string& host, v1::Open* message) {
  message->set_protocol_version(kProtocolVersion);
  EncodeJobSpec(job, message->mutable_job());
  EncodeRunSpec(run, message->mutable_run());
  message->set_local_rank(local_rank);
  message->set_pid(pid);
  message->set_host(host);
}

absl::Status DecodePutState(const v1::PutState& message, PutStateArgs* args) {
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("put_state: unit", message.unit(), 0, kUnitMax));
  STOWAGE_RETURN_IF_ERROR(CheckRange("put_state: first element",
                                     message.begin_elems(), 0, kElemsMax));
  args->unit = message.unit();
  args->begin_elems = message.begin_elems();
  return DecodeValues("put_state", message.values_fp32(), &args->values);
}

void EncodePutState(std::int32_t unit, std::int64_t begin_elems,
                    std::span<const float> values, v1::PutState* message) {
  message->set_unit(unit);
  message->set_begin_elems(begin_elems);
  message->set_values_fp32(values.data(), values.size_bytes());
}

absl::StatusOr<ForwardOrderArgs> DecodeForwardOrder(
    const v1::SetForwardOrder& message) {
  STOWAGE_RETURN_IF_ERROR(CheckRange("set_forward_order: units",
                                     message.units_size(), 1, kUnitMax + 1));
  ForwardOrderArgs args;
  std::vector<bool> seen(static_cast<std::size_t>(kUnitMax) + 1);
  args.units.reserve(static_cast<std::size_t>(message.units_size()));
  for (const std::int32_t unit : message.units()) {
    STOWAGE_RETURN_IF_ERROR(
        CheckRange("set_forward_order: unit", unit, 0, kUnitMax));
    if (seen[static_cast<std::size_t>(unit)]) {
      return Bad(absl::StrCat("set_forward_order: unit ", unit, " twice"));
    }
    seen[static_cast<std::size_t>(unit)] = true;
    args.units.push_back(unit);
  }
  STOWAGE_RETURN_IF_ERROR(CheckRange("set_forward_order: uses",
                                     message.uses_size(), 0, kTraceUsesMax));
  for (const std::int32_t unit : message.uses()) {
    STOWAGE_RETURN_IF_ERROR(
        CheckRange("set_forward_order: used unit", unit, 0, kUnitMax));
  }
  args.uses.assign(message.uses().begin(), message.uses().end());
  return args;
}

void EncodeForwardOrder(std::span<const std::int32_t> units,
                        std::span<const std::int32_t> uses,
                        v1::SetForwardOrder* message) {
  message->mutable_units()->Assign(units.begin(), units.end());
  message->mutable_uses()->Assign(uses.begin(), uses.end());
}

absl::StatusOr<LeaseArgs> DecodeLease(const v1::Lease& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("lease: unit", message.unit(), 0, kUnitMax));
  STOWAGE_RETURN_IF_ERROR(CheckRange("lease: step", message.step(), 0, kAny));
  return LeaseArgs{message.unit(), message.step()};
}

absl::StatusOr<std::int32_t> DecodeUnlease(const v1::Unlease& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("unlease: unit", message.unit(), 0, kUnitMax));
  return message.unit();
}

void EncodeLease(const LeaseArgs& args, v1::Lease* message) {
  message->set_unit(args.unit);
  message->set_step(args.step);
}

absl::StatusOr<LeaseArgs> DecodeLeased(const v1::Leased& message) {
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("leased: unit", message.unit(), 0, kUnitMax));
  STOWAGE_RETURN_IF_ERROR(CheckRange("leased: step", message.step(), 0, kAny));
  return LeaseArgs{message.unit(), message.step()};
}

absl::StatusOr<NoticeArgs> DecodeNotice(const v1::Notice& message) {
  STOWAGE_RETURN_IF_ERROR(CheckRange("notice: step", message.step(), 0, kAny));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("notice: micro step", message.micro(), 0, kMicroStepsMax - 1));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("notice: unit", message.unit(), 0, kUnitMax));
  STOWAGE_RETURN_IF_ERROR(CheckRange("notice: region", message.region(), 0,
                                     kGradientRegionsMax - 1));
  return NoticeArgs{message.step(), message.micro(), message.unit(),
                    message.empty(), message.region()};
}

void EncodeNotice(const NoticeArgs& args, v1::Notice* message) {
  message->set_step(args.step);
  message->set_micro(args.micro);
  message->set_unit(args.unit);
  message->set_empty(args.empty);
  message->set_region(args.region);
}

absl::StatusOr<PrepareArgs> DecodePrepare(const v1::Prepare& message) {
  STOWAGE_RETURN_IF_ERROR(CheckRange("prepare: step", message.step(), 0, kAny));
  STOWAGE_RETURN_IF_ERROR(CheckRange("prepare: scalars", message.scalars_size(),
                                     0, kScalarsPerRankMax));
  // Values are opaque: a loss may well be NaN.
  return PrepareArgs{message.step(),
                     {message.scalars().begin(), message.scalars().end()}};
}

void EncodePrepare(std::int64_t step, std::span<const double> scalars,
                   v1::Prepare* message) {
  message->set_step(step);
  message->mutable_scalars()->Assign(scalars.begin(), scalars.end());
}

absl::StatusOr<ApplyArgs> DecodeApply(const v1::Apply& message) {
  STOWAGE_RETURN_IF_ERROR(CheckRange("apply: step", message.step(), 0, kAny));
  STOWAGE_RETURN_IF_ERROR(CheckRange("apply: parameter groups",
                                     message.groups_size(), 0,
                                     LayoutLimits{}.groups_max));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("apply: bytes of client state",
                 static_cast<std::int64_t>(message.client_state().size()), 0,
                 kClientStateBytesMax));
  ApplyArgs args;
  args.step = message.step();
  args.skip = message.skip();
  if (!args.skip) {
    STOWAGE_RETURN_IF_ERROR(
        CheckFinite("apply: gradient_factor", message.gradient_factor()));
  }
  args.gradient_factor = message.gradient_factor();
  args.groups.reserve(static_cast<std::size_t>(message.groups_size()));
  for (const v1::GroupStep& group : message.groups()) {
    STOWAGE_ASSIGN_OR_RETURN(GroupStep decoded, DecodeGroupStep(group));
    args.groups.push_back(decoded);
  }
  args.client_state = message.client_state();
  return args;
}

void EncodeApply(const ApplyArgs& args, v1::Apply* message) {
  message->set_step(args.step);
  message->set_skip(args.skip);
  message->set_gradient_factor(args.gradient_factor);
  message->clear_groups();
  for (const GroupStep& group : args.groups) {
    v1::GroupStep* out = message->add_groups();
    out->set_lr(group.lr);
    out->set_beta1(group.beta1);
    out->set_beta2(group.beta2);
    out->set_eps(group.eps);
    out->set_weight_decay(group.weight_decay);
  }
  message->set_client_state(args.client_state);
}

absl::StatusOr<ReadStateArgs> DecodeReadState(const v1::ReadState& message) {
  ReadStateArgs args;
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("read_state: unit", message.unit(), 0, kUnitMax));
  STOWAGE_ASSIGN_OR_RETURN(args.kind, DecodeStateKind(message.kind()));
  STOWAGE_RETURN_IF_ERROR(CheckRange("read_state: first element",
                                     message.begin_elems(), 0, kElemsMax));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("read_state: elements", message.elems(), 1, kElemsMax));
  args.unit = message.unit();
  args.begin_elems = message.begin_elems();
  args.elems = message.elems();
  return args;
}

void EncodeReadState(const ReadStateArgs& args, v1::ReadState* message) {
  message->set_unit(args.unit);
  message->set_kind(EncodeStateKind(args.kind));
  message->set_begin_elems(args.begin_elems);
  message->set_elems(args.elems);
}

absl::StatusOr<Verdict> DecodeVerdict(const v1::Verdict& message) {
  STOWAGE_RETURN_IF_ERROR(CheckRange("verdict: step", message.step(), 0, kAny));
  STOWAGE_RETURN_IF_ERROR(CheckRange(
      "verdict: bytes of a parameter's name",
      static_cast<std::int64_t>(message.first_nonfinite_param().size()), 0,
      kNameBytesMax));
  STOWAGE_RETURN_IF_ERROR(CheckRange(
      "verdict: ranks", message.rank_scalars_size(), 0, kLocalRanksMax));
  Verdict verdict;
  verdict.step = message.step();
  verdict.sum_of_squares = message.sum_of_squares();
  verdict.first_nonfinite_param = message.first_nonfinite_param();
  verdict.rank_scalars.reserve(
      static_cast<std::size_t>(message.rank_scalars_size()));
  for (const v1::RankScalars& rank : message.rank_scalars()) {
    STOWAGE_RETURN_IF_ERROR(CheckRange("verdict: scalars", rank.values_size(),
                                       0, kScalarsPerRankMax));
    verdict.rank_scalars.emplace_back(rank.values().begin(),
                                      rank.values().end());
  }
  STOWAGE_RETURN_IF_ERROR(CheckRange("verdict: waits of ranks",
                                     message.rank_wait_seconds_size(), 0,
                                     kLocalRanksMax));
  verdict.rank_wait_seconds.assign(message.rank_wait_seconds().begin(),
                                   message.rank_wait_seconds().end());
  verdict.disk_wait_seconds = message.disk_wait_seconds();
  STOWAGE_ASSIGN_OR_RETURN(verdict.trust_ratios,
                           DecodeTrustRatios(message.trust_ratios()));
  STOWAGE_ASSIGN_OR_RETURN(verdict.compression,
                           DecodeCompression(message.compression()));
  return verdict;
}

void EncodeVerdict(const Verdict& verdict, v1::Verdict* message) {
  message->set_step(verdict.step);
  message->set_sum_of_squares(verdict.sum_of_squares);
  message->set_first_nonfinite_param(verdict.first_nonfinite_param);
  for (const std::vector<double>& scalars : verdict.rank_scalars) {
    message->add_rank_scalars()->mutable_values()->Assign(scalars.begin(),
                                                          scalars.end());
  }
  message->mutable_rank_wait_seconds()->Assign(
      verdict.rank_wait_seconds.begin(), verdict.rank_wait_seconds.end());
  message->set_disk_wait_seconds(verdict.disk_wait_seconds);
  if (verdict.trust_ratios.tensors > 0) {
    EncodeTrustRatios(verdict.trust_ratios, message->mutable_trust_ratios());
  }
  if (verdict.compression.rounds > 0) {
    EncodeCompression(verdict.compression, message->mutable_compression());
  }
}

absl::Status DecodeStateChunk(const v1::StateChunk& message,
                              StateChunkArgs* args) {
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("state_chunk: unit", message.unit(), 0, kUnitMax));
  STOWAGE_ASSIGN_OR_RETURN(args->kind, DecodeStateKind(message.kind()));
  STOWAGE_RETURN_IF_ERROR(CheckRange("state_chunk: first element",
                                     message.begin_elems(), 0, kElemsMax));
  args->unit = message.unit();
  args->begin_elems = message.begin_elems();
  return DecodeValues("state_chunk", message.values_fp32(), &args->values);
}

void EncodeStateChunk(std::int32_t unit, StateKind kind,
                      std::int64_t begin_elems, std::span<const float> values,
                      v1::StateChunk* message) {
  message->set_unit(unit);
  message->set_kind(EncodeStateKind(kind));
  message->set_begin_elems(begin_elems);
  message->set_values_fp32(values.data(), values.size_bytes());
}

}  // namespace stowage::proto
