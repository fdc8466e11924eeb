// Messages of service.proto <-> the values of common/job_spec.h.

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/job_spec.h"

#include "stowage/v1/service.pb.h"

namespace stowage::proto {

// Errors: kFailedPrecondition for another protocol version, before any other
//   field is looked at.
absl::StatusOr<ServerInfo> DecodeServerInfo(
    const v1::GetServerInfoResponse& message);
void EncodeServerInfo(const ServerInfo& info,
                      v1::GetServerInfoResponse* message);

// Errors: kInvalidArgument for a job without a proper name.
absl::StatusOr<std::vector<JobInfo>> DecodeJobs(
    const v1::ListJobsResponse& message);
void EncodeJobs(const std::vector<JobInfo>& jobs,
                v1::ListJobsResponse* message);

// Errors: kInvalidArgument.
absl::StatusOr<std::string> DecodeDropJob(const v1::DropJobRequest& message);

struct RewindArgs {
  std::string name;
  std::int64_t step = 0;
};
// Errors: kInvalidArgument.
absl::StatusOr<RewindArgs> DecodeRewindJob(const v1::RewindJobRequest& message);

struct RollForwardArgs {
  std::string name;
  ApplyArgs apply;
};
// Errors: kInvalidArgument.
absl::StatusOr<RollForwardArgs> DecodeRollForward(
    const v1::RollForwardRequest& message);

}  // namespace stowage::proto
