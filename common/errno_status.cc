#include "common/errno_status.h"

#include <system_error>

#include "absl/strings/str_cat.h"

namespace stowage {

absl::Status ErrnoStatus(const std::string& operation, int error) {
  return absl::Status(
      absl::ErrnoToStatusCode(error),
      absl::StrCat(operation, ": ", std::generic_category().message(error),
                   " (errno ", error, ")"));
}

}  // namespace stowage
