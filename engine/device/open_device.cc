#include <unistd.h>

#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "engine/device/device.h"

namespace stowage::engine {
namespace {

// The driver's control file: without it the CUDA half need not be loaded, which
// takes about a second.
bool HasGpuDriver() { return ::access("/dev/nvidiactl", F_OK) == 0; }

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(std::string_view name,
                                                   int local_rank) {
  if (name == "cpu") return std::unique_ptr<Device>();
  if (name == "twin") return Device::MakeTwin();
  if (name == "auto") {
    if (!HasGpuDriver()) return std::unique_ptr<Device>();
    absl::StatusOr<std::unique_ptr<Device>> made = Device::MakeCuda(local_rank);
    if (made.ok()) return made;
    log::Warning("no GPU is used", {{"because", made.status().ToString()}});
    return std::unique_ptr<Device>();
  }
  int first = 0;
  if (name == "cuda" ||
      (name.starts_with("cuda:") &&
       absl::SimpleAtoi(std::string(name.substr(5)), &first) && first >= 0)) {
    return Device::MakeCuda(first + local_rank);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device \"", std::string(name),
                   "\": expected auto, cpu, twin, cuda or cuda:N"));
}

}  // namespace stowage::engine
