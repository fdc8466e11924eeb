// StorageSpec <-> its message of job.proto; bounds as there.
//
// Whether a folder lies below one of the server's is the server's to say.

#pragma once

#include "absl/status/statusor.h"
#include "common/job_spec.h"

#include "stowage/v1/job.pb.h"

namespace stowage::proto {

// Errors: kInvalidArgument naming field and value.
absl::StatusOr<StorageSpec> DecodeStorageSpec(const v1::StorageSpec& message);
void EncodeStorageSpec(const StorageSpec& spec, v1::StorageSpec* message);

}  // namespace stowage::proto
