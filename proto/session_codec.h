// Messages of session.proto <-> C++ values.
//
// As job_codec.h: decoding checks all that the message alone can tell, so that
// no number reaches the core outside its type's stated range; units, elements
// and steps are then checked against the job by the core.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"

#include "stowage/v1/session.pb.h"

namespace stowage::proto {

struct OpenArgs {
  JobSpec job;
  RunSpec run;
  std::int32_t local_rank = 0;
  std::int32_t pid = 0;
  std::string host;
};

struct PutStateArgs {
  std::int32_t unit = 0;
  std::int64_t begin_elems = 0;
  std::vector<float> values;
};

struct NoticeArgs {
  std::int64_t step = 0;
  std::int32_t micro = 0;
  std::int32_t unit = 0;
  bool empty = false;
  std::int32_t region = 0;

  friend bool operator==(const NoticeArgs&, const NoticeArgs&) = default;
};

struct ForwardOrderArgs {
  std::vector<std::int32_t> units;
  std::vector<std::int32_t> uses;
};

struct LeaseArgs {
  std::int32_t unit = 0;
  std::int64_t step = 0;
};

struct PrepareArgs {
  std::int64_t step = 0;
  std::vector<double> scalars;
};

struct ReadStateArgs {
  std::int32_t unit = 0;
  StateKind kind = StateKind::kMaster;
  std::int64_t begin_elems = 0;
  std::int64_t elems = 0;
};

struct StateChunkArgs {
  std::int32_t unit = 0;
  StateKind kind = StateKind::kMaster;
  std::int64_t begin_elems = 0;
  std::vector<float> values;
};

// Client to server. Errors: kInvalidArgument naming field and value; DecodeOpen
// also kFailedPrecondition for another protocol version (checked first).
absl::StatusOr<OpenArgs> DecodeOpen(const v1::Open& message);
// Reuses `args->values`.
absl::Status DecodePutState(const v1::PutState& message, PutStateArgs* args);
absl::StatusOr<ForwardOrderArgs> DecodeForwardOrder(
    const v1::SetForwardOrder& message);
absl::StatusOr<NoticeArgs> DecodeNotice(const v1::Notice& message);
absl::StatusOr<PrepareArgs> DecodePrepare(const v1::Prepare& message);
absl::StatusOr<ApplyArgs> DecodeApply(const v1::Apply& message);
absl::StatusOr<ReadStateArgs> DecodeReadState(const v1::ReadState& message);
absl::StatusOr<LeaseArgs> DecodeLease(const v1::Lease& message);
absl::StatusOr<std::int32_t> DecodeUnlease(const v1::Unlease& message);

void EncodeOpen(const JobSpec& job, const RunSpec& run, std::int32_t local_rank,
                std::int32_t pid, const std::string& host, v1::Open* message);
void EncodePutState(std::int32_t unit, std::int64_t begin_elems,
                    std::span<const float> values, v1::PutState* message);
void EncodeForwardOrder(std::span<const std::int32_t> units,
                        std::span<const std::int32_t> uses,
                        v1::SetForwardOrder* message);
void EncodeLease(const LeaseArgs& args, v1::Lease* message);
void EncodeNotice(const NoticeArgs& args, v1::Notice* message);
void EncodePrepare(std::int64_t step, std::span<const double> scalars,
                   v1::Prepare* message);
void EncodeApply(const ApplyArgs& args, v1::Apply* message);
void EncodeReadState(const ReadStateArgs& args, v1::ReadState* message);

// Server to client.
absl::StatusOr<Verdict> DecodeVerdict(const v1::Verdict& message);
absl::Status DecodeStateChunk(const v1::StateChunk& message,
                              StateChunkArgs* args);
absl::StatusOr<LeaseArgs> DecodeLeased(const v1::Leased& message);

void EncodeVerdict(const Verdict& verdict, v1::Verdict* message);
void EncodeStateChunk(std::int32_t unit, StateKind kind,
                      std::int64_t begin_elems, std::span<const float> values,
                      v1::StateChunk* message);

// "the server speaks protocol version 2, this client 1: ...".
absl::Status ProtocolVersionError(std::int32_t server, std::int32_t client);

}  // namespace stowage::proto
