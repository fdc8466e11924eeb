// OptimizerSpec, TrustRatios and Compression of job.proto <->
// common/job_spec.h. Part of job_codec and session_codec; same rules.

#pragma once

#include "absl/status/statusor.h"
#include "common/job_spec.h"

#include "stowage/v1/job.pb.h"

namespace stowage::proto {

// Errors: kInvalidArgument naming field and value.
absl::StatusOr<OptimizerSpec> DecodeOptimizerSpec(
    const v1::OptimizerSpec& message);
absl::StatusOr<TrustRatios> DecodeTrustRatios(const v1::TrustRatios& message);
absl::StatusOr<Compression> DecodeCompression(const v1::Compression& message);

void EncodeCompression(const Compression& compression,
                       v1::Compression* message);
void EncodeOptimizerSpec(const OptimizerSpec& spec, v1::OptimizerSpec* message);
void EncodeTrustRatios(const TrustRatios& ratios, v1::TrustRatios* message);

}  // namespace stowage::proto
