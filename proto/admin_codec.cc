#include "proto/admin_codec.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/job_codec.h"
#include "proto/session_codec.h"

namespace stowage::proto {

absl::StatusOr<ServerInfo> DecodeServerInfo(
    const v1::GetServerInfoResponse& message) {
  if (message.protocol_version() != kProtocolVersion) {
    return ProtocolVersionError(message.protocol_version(), kProtocolVersion);
  }
  ServerInfo info;
  info.protocol_version = message.protocol_version();
  info.version = message.version();
  info.pid = message.pid();
  info.isa = message.isa();
  info.threads = message.threads();
  info.memory_limit_bytes = message.memory_limit_bytes();
  info.pinned_bytes = message.pinned_bytes();
  info.locked_bytes = message.locked_bytes();
  info.huge_page_bytes = message.huge_page_bytes();
  info.rss_bytes = message.rss_bytes();
  info.uptime_seconds = message.uptime_seconds();
  info.shm_dir = message.shm_dir();
  return info;
}

void EncodeServerInfo(const ServerInfo& info,
                      v1::GetServerInfoResponse* message) {
  message->set_protocol_version(info.protocol_version);
  message->set_version(info.version);
  message->set_pid(info.pid);
  message->set_isa(info.isa);
  message->set_threads(info.threads);
  message->set_memory_limit_bytes(info.memory_limit_bytes);
  message->set_pinned_bytes(info.pinned_bytes);
  message->set_locked_bytes(info.locked_bytes);
  message->set_huge_page_bytes(info.huge_page_bytes);
  message->set_rss_bytes(info.rss_bytes);
  message->set_uptime_seconds(info.uptime_seconds);
  message->set_shm_dir(info.shm_dir);
}

absl::StatusOr<std::vector<JobInfo>> DecodeJobs(
    const v1::ListJobsResponse& message) {
  std::vector<JobInfo> jobs;
  jobs.reserve(static_cast<std::size_t>(message.jobs_size()));
  for (const v1::JobInfo& job : message.jobs()) {
    STOWAGE_ASSIGN_OR_RETURN(JobInfo info, DecodeJobInfo(job));
    jobs.push_back(std::move(info));
  }
  return jobs;
}

void EncodeJobs(const std::vector<JobInfo>& jobs,
                v1::ListJobsResponse* message) {
  for (const JobInfo& job : jobs) EncodeJobInfo(job, message->add_jobs());
}

absl::StatusOr<std::string> DecodeDropJob(const v1::DropJobRequest& message) {
  STOWAGE_RETURN_IF_ERROR(CheckJobName(message.name()));
  return message.name();
}

absl::StatusOr<RewindArgs> DecodeRewindJob(
    const v1::RewindJobRequest& message) {
  STOWAGE_RETURN_IF_ERROR(CheckJobName(message.name()));
  if (message.step() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rewind: step ", message.step(), ", expected at least 0"));
  }
  return RewindArgs{message.name(), message.step()};
}

absl::StatusOr<RollForwardArgs> DecodeRollForward(
    const v1::RollForwardRequest& message) {
  STOWAGE_RETURN_IF_ERROR(CheckJobName(message.name()));
  STOWAGE_ASSIGN_OR_RETURN(ApplyArgs apply, DecodeApply(message.apply()));
  return RollForwardArgs{message.name(), std::move(apply)};
}

}  // namespace stowage::proto
