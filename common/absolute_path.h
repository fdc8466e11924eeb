// A path as a server needs it, which runs in another folder than its clients.

#pragma once

#include <string>

namespace stowage {

// Absolute, without ".", ".." and slashes at its end; symbolic links stay. The
// path as given, cleaned, if there is no working folder.
std::string AbsolutePath(const std::string& path);

}  // namespace stowage
