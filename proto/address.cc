#include "proto/address.h"

#include <sys/un.h>
#include <unistd.h>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/environment.h"

namespace stowage::proto {
namespace {

// sun_path holds the path and its final zero.
constexpr std::size_t kPathBytesMax = sizeof(sockaddr_un{}.sun_path) - 1;
constexpr std::size_t kHostBytesMax = 255;

absl::Status Bad(std::string_view text, const std::string& why) {
  return absl::InvalidArgumentError(
      absl::StrCat("address \"", std::string(text.substr(0, 256)), "\": ", why,
                   "; expected unix:/path or host:port"));
}

}  // namespace

std::string Address::ToString() const {
  if (is_unix) return absl::StrCat("unix:", path);
  if (host.find(':') != std::string_view::npos) {
    return absl::StrCat("[", host, "]:", port);
  }
  return absl::StrCat(host, ":", port);
}

bool Address::IsLoopback() const {
  return is_unix || host == "localhost" || host == "::1" ||
         (host.starts_with("127.") &&
          host.find_first_not_of("0123456789.") == std::string::npos);
}

absl::StatusOr<Address> ParseAddress(std::string_view text) {
  Address address;
  if (text.starts_with("unix:")) {
    address.is_unix = true;
    std::string_view path = text.substr(5);
    if (path.starts_with("///")) path.remove_prefix(2);
    if (path.size() < 2 || path.front() != '/' || path.back() == '/') {
      return Bad(text, "the path of a socket must be absolute");
    }
    if (path.size() > kPathBytesMax) {
      return Bad(text,
                 absl::StrCat("a socket's path has at most ", kPathBytesMax,
                              " bytes, this one ", path.size()));
    }
    if (path.find('\0') != std::string_view::npos) {
      return Bad(text, "the path holds a zero byte");
    }
    address.path = std::string(path);
    return address;
  }
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return Bad(text, "no port");
  std::string_view host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return Bad(text, "an IPv6 address needs brackets");
  }
  if (host.empty() || host.size() > kHostBytesMax ||
      host.find_first_of("/ \t\n%,") != std::string_view::npos) {
    return Bad(text, "not a host name");
  }
  const std::string_view port = text.substr(colon + 1);
  if (port.empty() || port.size() > 5 ||
      port.find_first_not_of("0123456789") != std::string_view::npos ||
      !absl::SimpleAtoi(absl::string_view(port.data(), port.size()),
                        &address.port) ||
      address.port > 65535) {
    return Bad(text, "a port is a number from 0 to 65535");
  }
  address.host = std::string(host);
  return address;
}

std::string DefaultAddress() {
  if (std::string set = Environment("STOWAGE_SERVER"); !set.empty()) {
    return set;
  }
  if (const std::string runtime = Environment("XDG_RUNTIME_DIR");
      runtime.starts_with('/')) {
    return absl::StrCat("unix:", runtime, "/stowage/stowd.sock");
  }
  return absl::StrCat("unix:/tmp/stowage-", ::getuid(), "/stowd.sock");
}

}  // namespace stowage::proto
