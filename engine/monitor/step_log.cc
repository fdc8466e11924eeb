#include "engine/monitor/step_log.h"

#include <cmath>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/monitor/monitor.h"

namespace stowage::engine::monitor {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

// round(x, 2) of a size in GiB, printed as Python prints it.
std::string Gigabytes(std::int64_t bytes) {
  return PythonRepr(std::round(static_cast<double>(bytes) / kGiB * 100.0) /
                    100.0);
}

}  // namespace

std::string StepLine(std::int64_t step, std::int64_t skipped,
                     std::span<const double> lrs,
                     std::span<const schedule::Betas> betas) {
  std::string out =
      absl::StrCat("step=", step, ", skipped=", skipped, ", lr=[");
  for (std::size_t i = 0; i < lrs.size(); ++i) {
    absl::StrAppend(&out, i == 0 ? "" : ", ", PythonRepr(lrs[i]));
  }
  out += "], mom=[";
  for (std::size_t i = 0; i < betas.size(); ++i) {
    absl::StrAppend(&out, i == 0 ? "(" : ", (", PythonRepr(betas[i].beta1),
                    ", ", PythonRepr(betas[i].beta2), ")");
  }
  return out + "]";
}

bool StepLineDue(std::int64_t step, std::int64_t steps_per_print) {
  return steps_per_print > 0 && step % steps_per_print == 0;
}

std::string TimeLine(int rank, std::span<const NamedTime> times) {
  std::string out = absl::StrCat("[Rank ", rank, "] time (ms)");
  for (const NamedTime& time : times) {
    absl::StrAppendFormat(&out, " | %s: %.2f", std::string(time.name), time.ms);
  }
  return out;
}

std::string ThroughputLine(const Throughput& throughput) {
  return absl::StrCat(
      "epoch=", throughput.epoch, "/micro_step=", throughput.micro_step,
      "/global_step=", throughput.global_step, ", RunningAvgSamplesPerSec=",
      PythonRepr(throughput.average_samples_per_second),
      ", CurrSamplesPerSec=", PythonRepr(throughput.current_samples_per_second),
      ", MemAllocated=", Gigabytes(throughput.allocated_bytes),
      "GB, MaxMemAllocated=", Gigabytes(throughput.allocated_bytes_max), "GB");
}

std::string MemoryLines(std::string_view where, const MemoryUse& use) {
  const double percent =
      use.host_total_bytes <= 0
          ? 0.0
          : std::round(1000.0 * static_cast<double>(use.host_used_bytes) /
                       static_cast<double>(use.host_total_bytes)) /
                10.0;
  return absl::StrCat(
      std::string(where), "\nMA ", Gigabytes(use.allocated_bytes),
      " GB  Max_MA ", Gigabytes(use.allocated_bytes_max), " GB  CA ",
      Gigabytes(use.reserved_bytes), " GB  Max_CA ",
      Gigabytes(use.reserved_bytes_max),
      " GB\nCPU Virtual Memory:  used = ", Gigabytes(use.host_used_bytes),
      " GB, percent = ", PythonRepr(percent), "%");
}

}  // namespace stowage::engine::monitor
