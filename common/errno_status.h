// errno as an absl::Status that names operation, object and cause.

#pragma once

#include <cerrno>
#include <string>

#include "absl/status/status.h"

namespace stowage {

// "<operation>: <errno's text> (errno N)"; the code is absl's for that errno.
// Call it at once: anything in between may overwrite errno.
absl::Status ErrnoStatus(const std::string& operation, int error = errno);

}  // namespace stowage
