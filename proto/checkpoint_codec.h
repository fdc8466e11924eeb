// Messages about checkpoints <-> the values of common/checkpoint_spec.h.

#pragma once

#include "absl/status/statusor.h"
#include "common/checkpoint_spec.h"

#include "stowage/v1/service.pb.h"

namespace stowage::proto {

// All Decode functions. Errors: kInvalidArgument naming field and value.
absl::StatusOr<LoadSpec> DecodeLoadSpec(const v1::LoadSpec& message);
absl::StatusOr<SaveSpec> DecodeSaveJob(const v1::SaveJobRequest& message);
absl::StatusOr<SaveInfo> DecodeSaveInfo(const v1::SaveInfo& message);

void EncodeLoadSpec(const LoadSpec& spec, v1::LoadSpec* message);
void EncodeSaveJob(const SaveSpec& spec, v1::SaveJobRequest* message);
void EncodeSaveInfo(const SaveInfo& info, v1::SaveInfo* message);

}  // namespace stowage::proto
