#include "proto/job_record_codec.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/job_codec.h"

namespace stowage::proto {
namespace {

constexpr std::int32_t kRecordVersion = 1;

}  // namespace

std::string EncodeJobRecord(const JobRecord& record) {
  v1::JobRecord message;
  message.set_record_version(kRecordVersion);
  EncodeJobSpec(record.spec, message.mutable_spec());
  message.mutable_forward_order()->Add(record.forward_order.begin(),
                                       record.forward_order.end());
  message.mutable_trace()->Add(record.trace.begin(), record.trace.end());
  message.set_params_current(record.params_current);
  return message.SerializeAsString();
}

absl::StatusOr<JobRecord> DecodeJobRecord(const std::string& bytes) {
  v1::JobRecord message;
  if (!message.ParseFromString(bytes) || message.record_version() < 1) {
    return absl::DataLossError(absl::StrCat("job record: ", bytes.size(),
                                            " bytes that are no job record"));
  }
  if (message.record_version() > kRecordVersion) {
    return absl::UnimplementedError(absl::StrCat(
        "job record: version ", message.record_version(),
        ", this server reads up to ", kRecordVersion, "; take a newer stowd"));
  }
  JobRecord record;
  record.params_current = message.params_current();
  STOWAGE_ASSIGN_OR_RETURN(record.spec, DecodeJobSpec(message.spec()));
  const auto units = static_cast<std::int64_t>(record.spec.layout.units.size());
  const auto copy = [&](const auto& from, std::vector<std::int32_t>* to) {
    if (from.size() > kTraceUsesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("job record: ", from.size(), " uses of units, at most ",
                       kTraceUsesMax));
    }
    for (const std::int32_t unit : from) {
      if (unit < 0 || unit >= units) {
        return absl::InvalidArgumentError(
            absl::StrCat("job record: uses unit ", unit, " of ", units));
      }
      to->push_back(unit);
    }
    return absl::OkStatus();
  };
  STOWAGE_RETURN_IF_ERROR(copy(message.forward_order(), &record.forward_order));
  STOWAGE_RETURN_IF_ERROR(copy(message.trace(), &record.trace));
  return record;
}

}  // namespace stowage::proto
