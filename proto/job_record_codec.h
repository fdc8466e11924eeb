// A job's record as the bytes that are kept with its state: a JobRecord message
// of job.proto. Shows no message, so that stowd's main can use it.

#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/job_spec.h"

namespace stowage::proto {

std::string EncodeJobRecord(const JobRecord& record);
// Errors: kDataLoss if they are no such message; kUnimplemented for a newer
//   version; kInvalidArgument as DecodeJobSpec(), or for a unit that the layout
//   has not.
absl::StatusOr<JobRecord> DecodeJobRecord(const std::string& bytes);

}  // namespace stowage::proto
