#include "storage/nvme/io_fault.h"

#include <cerrno>
#include <system_error>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace stowage::storage {
namespace {

constexpr char kPayloadUrl[] = "stowage/io_fault";

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::StatusCode::kResourceExhausted;
    case ENODEV:
    case ENXIO:
    case EROFS:
    case ESTALE:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kDataLoss;
  }
}

std::string Advice(const IoFault& fault) {
  switch (fault.error) {
    case ENOSPC:
    case EDQUOT:
      return "free space or raise the quota there, then attach again";
    case EFBIG:
      return "raise the server's file size limit (ulimit -f, LimitFSIZE=), "
             "then attach again";
    case ENODEV:
    case ENXIO:
    case EROFS:
    case ESTALE:
      return "the device or its file system is gone or read-only: mend it, "
             "then attach again";
    case 0:
      return "run `stowctl fsck`; `stowctl job rewind` returns to an older "
             "kept step";
    default:
      return "see the kernel's log for the device; `stowctl fsck` says what "
             "can still be read";
  }
}

}  // namespace

absl::Status IoFaultStatus(const IoFault& fault) {
  std::string message = absl::StrCat("job \"", fault.job, "\": ");
  if (!fault.unit.empty()) {
    absl::StrAppend(&message, "unit \"", fault.unit, "\": ");
  }
  absl::StrAppend(&message, fault.operation);
  if (fault.extent >= 0) absl::StrAppend(&message, " extent ", fault.extent);
  absl::StrAppend(&message, " of ", fault.file, " at offset ",
                  fault.offset_bytes, ", ", fault.bytes, " bytes: ");
  if (fault.error != 0) {
    absl::StrAppend(&message, std::generic_category().message(fault.error),
                    " (errno ", fault.error, ")");
    if (!fault.detail.empty()) absl::StrAppend(&message, ", ", fault.detail);
  } else {
    absl::StrAppend(&message, fault.detail);
  }
  if (fault.done_bytes > 0) {
    absl::StrAppend(&message, " after ", fault.done_bytes, " bytes");
  }
  absl::StrAppend(&message, "; ", Advice(fault));
  absl::Status status(CodeOf(fault.error), message);
  status.SetPayload(
      kPayloadUrl, absl::Cord(absl::StrCat(
                       fault.operation, "\n", fault.job, "\n", fault.unit, "\n",
                       fault.extent, "\n", fault.file, "\n", fault.offset_bytes,
                       "\n", fault.bytes, "\n", fault.done_bytes, "\n",
                       fault.error, "\n", fault.detail)));
  return status;
}

std::optional<IoFault> GetIoFault(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kPayloadUrl);
  if (!payload.has_value()) return std::nullopt;
  const std::vector<std::string> parts =
      absl::StrSplit(std::string(*payload), absl::MaxSplits('\n', 9));
  IoFault fault;
  if (parts.size() != 10 || !absl::SimpleAtoi(parts[3], &fault.extent) ||
      !absl::SimpleAtoi(parts[5], &fault.offset_bytes) ||
      !absl::SimpleAtoi(parts[6], &fault.bytes) ||
      !absl::SimpleAtoi(parts[7], &fault.done_bytes) ||
      !absl::SimpleAtoi(parts[8], &fault.error)) {
    return std::nullopt;
  }
  fault.operation = parts[0];
  fault.job = parts[1];
  fault.unit = parts[2];
  fault.file = parts[4];
  fault.detail = parts[9];
  return fault;
}

}  // namespace stowage::storage
