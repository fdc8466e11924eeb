// Messages of job.proto <-> the values of common/job_spec.h.
//
// Decoding checks every size, range, enumerator and string that can be judged
// from the message alone; what needs the whole layout (unique names, element
// totals) is Layout::Create()'s, what needs a job is the server core's.
// Encoding never fails. Pure.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"

#include "stowage/v1/job.pb.h"

namespace stowage::proto {

// Largest message in either direction. It bounds the names of a layout: a
// million parameters of 60 bytes each, field tags included.
inline constexpr int kMessageBytesMax = 64 * 1024 * 1024;

// Values in one PutState or StateChunk: 1 MiB of fp32.
inline constexpr std::int64_t kChunkValuesMax = std::int64_t{256} * 1024;

// All Decode functions. Errors: kInvalidArgument naming field and value.
absl::StatusOr<LayoutSpec> DecodeLayoutSpec(const v1::LayoutSpec& message,
                                            const LayoutLimits& limits = {});
absl::StatusOr<JobSpec> DecodeJobSpec(const v1::JobSpec& message);
absl::StatusOr<RunSpec> DecodeRunSpec(const v1::RunSpec& message);
absl::StatusOr<AttachInfo> DecodeAttachInfo(const v1::AttachInfo& message);
absl::StatusOr<JobInfo> DecodeJobInfo(const v1::JobInfo& message);

void EncodeLayoutSpec(const LayoutSpec& spec, v1::LayoutSpec* message);
void EncodeJobSpec(const JobSpec& spec, v1::JobSpec* message);
void EncodeRunSpec(const RunSpec& spec, v1::RunSpec* message);
void EncodeAttachInfo(const AttachInfo& info, v1::AttachInfo* message);
void EncodeJobInfo(const JobInfo& info, v1::JobInfo* message);

// Checks a job's name: [A-Za-z0-9._-], 1 to kJobNameBytesMax bytes.
absl::Status CheckJobName(std::string_view name);

}  // namespace stowage::proto
