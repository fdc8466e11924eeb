#include "examples/gpt/summary.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bytes.h"
#include "common/errno_status.h"

namespace stowage::gpt {
namespace {

std::string Number(double value) {
  if (!std::isfinite(value)) return "null";
  return absl::StrFormat("%.9g", value);
}

// Empty for a job without files on disk.
std::string DiskPart(const RunFacts& facts) {
  if (facts.job.nvme_paths.empty()) return "";
  // The server's figures begin with the job's: its first values count as no
  // step's.
  const auto steps =
      static_cast<std::int64_t>(std::max<std::size_t>(1, facts.step_ms.size()));
  return absl::StrCat(
      ",\n  \"disk\": {\"bytes\": ", facts.job.disk_bytes,
      ", \"read_per_step\": ", facts.job.disk_bytes_read / steps,
      ", \"written_per_step\": ", facts.job.disk_bytes_written / steps, "}");
}

std::string Traffic(const engine::ExchangeTraffic& traffic) {
  return absl::StrCat(
      "\"gathers\": ", traffic.gathers,
      ", \"gather_bytes\": ", traffic.gather_bytes,
      ", \"reduces\": ", traffic.reduces,
      ", \"reduce_bytes\": ", traffic.reduce_bytes,
      ", \"largest_gather_bytes\": ", traffic.largest_gather_bytes,
      ", \"largest_reduce_bytes\": ", traffic.largest_reduce_bytes,
      ", \"reduces_under_way_max\": ", traffic.reduces_under_way_max,
      ", \"gathered_bytes_peak\": ", traffic.gathered_bytes_peak,
      ", \"reduce_bytes_peak\": ", traffic.reduce_bytes_peak,
      ", \"copied_in_bytes\": ", traffic.copied_in_bytes,
      ", \"copied_out_bytes\": ", traffic.copied_out_bytes);
}

}  // namespace

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  const std::size_t middle = values.size() / 2;
  std::nth_element(values.begin(),
                   values.begin() + static_cast<std::ptrdiff_t>(middle),
                   values.end());
  return values[middle];
}

absl::Status WriteSummary(const std::string& path, const RunFacts& facts,
                          const engine::Engine& engine,
                          const std::string& config_resolved) {
  const auto [least, most] =
      facts.step_ms.empty()
          ? std::pair<double, double>{0, 0}
          : std::pair<double, double>{
                *std::min_element(facts.step_ms.begin(), facts.step_ms.end()),
                *std::max_element(facts.step_ms.begin(), facts.step_ms.end())};
  const std::string text = absl::StrCat(
      "{\n  \"parameters\": ", facts.parameters,
      ",\n  \"ranks\": ", facts.ranks, ",\n  \"steps\": ", engine.step(),
      ",\n  \"first_loss\": ", Number(facts.first_loss),
      ",\n  \"final_loss\": ", Number(facts.final_loss),
      ",\n  \"step_ms\": {\"min\": ", Number(least),
      ", \"median\": ", Number(Median(facts.step_ms)),
      ", \"max\": ", Number(most),
      "},\n  \"phases_ms\": {\"forward\": ", Number(Median(facts.forward_ms)),
      ", \"backward\": ", Number(Median(facts.backward_ms)),
      ", \"optimizer_exposed\": ", Number(Median(facts.exposed_ms)),
      "},\n  \"tokens_per_second\": ", Number(facts.tokens_per_second),
      ",\n  \"loss_scale_final\": ", Number(engine.loss_scale()),
      ",\n  \"skipped_steps\": ", engine.skipped_steps(),
      ",\n  \"exchange\": {\"name\": \"", std::string(engine.exchange().name()),
      "\", \"because\": \"", engine.exchange_reason(), "\", ",
      Traffic(engine.exchange().traffic()), ", \"device\": \"",
      std::string(engine.device_name()),
      "\"},\n  \"server\": {\"pid\": ", facts.server.pid, ", \"version\": \"",
      facts.server.version, "\", \"pinned_bytes\": ", facts.server.pinned_bytes,
      ", \"param_bytes\": ", facts.job.param_bytes,
      ", \"state_bytes\": ", facts.job.state_bytes,
      ", \"gradient_bytes\": ", facts.job.gradient_bytes,
      ", \"rss_bytes\": ", facts.server.rss_bytes, ", \"isa\": \"",
      facts.server.isa, "\", \"threads\": ", facts.server.threads,
      "},\n  \"model\": {\"layers\": ", facts.model.layers,
      ", \"width\": ", facts.model.width, ", \"heads\": ", facts.model.heads,
      ", \"context\": ", facts.model.context,
      "},\n  \"rank\": {\"private_bytes\": ", facts.rank_private_bytes,
      ", \"threads\": ", facts.rank_threads, "}", DiskPart(facts),
      ",\n  \"precision\": \"",
      std::string(DtypeName(engine.config().precision)), "\",\n  \"job\": \"",
      engine.job_name(), "\",\n  \"config_resolved\": ", config_resolved,
      "\n}\n");
  std::ofstream file(path, std::ios::trunc);
  file << text;
  file.close();
  if (!file) return ErrnoStatus(absl::StrCat("write ", path));
  return absl::OkStatus();
}

void PrintTables(const RunFacts& facts, const engine::Engine& engine) {
  std::printf(
      "\nWhere the state lived (%s parameters, %d ranks)\n",
      absl::StrFormat("%.2f M", static_cast<double>(facts.parameters) / 1e6)
          .c_str(),
      facts.ranks);
  if (engine.has_server()) {
    std::printf(
        "  stowd, pid %d%s\n", facts.server.pid,
        engine.server_is_private() ? " (private, ended with this run)" : "");
    std::printf("    fp32 masters and moments   %12s\n",
                HumanBytes(facts.job.state_bytes).c_str());
    std::printf("    %s parameters (shared)   %12s\n",
                std::string(DtypeName(engine.config().precision)).c_str(),
                HumanBytes(facts.job.param_bytes).c_str());
    std::printf("    gradient slots and sums    %12s\n",
                HumanBytes(facts.job.gradient_bytes).c_str());
  }
  std::printf("  each rank\n");
  if (engine.config().zero_optimization.stage >= 3) {
    std::printf("    parameters gathered, peak  %12s  (%s)\n",
                HumanBytes(facts.held.gathered_peak).c_str(),
                engine.exchange().in_place() ? "leases, read in place"
                                             : "from all ranks");
  } else {
    std::printf("    its own parameters         %12s\n",
                HumanBytes(facts.held.own_params).c_str());
  }
  if (engine.exchange().collective()) {
    const engine::ExchangeTraffic traffic = engine.exchange().traffic();
    std::printf("    state and buffers          %12s\n",
                HumanBytes(engine.exchange().held_bytes()).c_str());
    std::printf(
        "    sent for parameters        %12s in %ld collectives\n"
        "    sent for gradients         %12s in %ld\n",
        HumanBytes(traffic.gather_bytes).c_str(),
        static_cast<long>(traffic.gathers),
        HumanBytes(traffic.reduce_bytes).c_str(),
        static_cast<long>(traffic.reduces));
    if (engine.device_name() != "cpu") {
      std::printf(
          "    copied to the device       %12s\n"
          "    copied from the device     %12s\n",
          HumanBytes(traffic.copied_in_bytes).c_str(),
          HumanBytes(traffic.copied_out_bytes).c_str());
    }
  } else {
    std::printf("    optimizer state            %12s\n", "0 B");
  }
  std::printf("\nWhere a step's time went (median of %zu steps)\n",
              facts.step_ms.size());
  std::printf(
      "  step      %8.1f ms\n  forward   %8.1f ms\n"
      "  backward  %8.1f ms\n  optimizer %8.1f ms exposed "
      "(waiting for landing, peers and new parameters)\n",
      Median(facts.step_ms), Median(facts.forward_ms),
      Median(facts.backward_ms), Median(facts.exposed_ms));
  if (!engine.has_server()) return;
  const double steps =
      static_cast<double>(std::max<std::size_t>(1, facts.step_ms.size()));
  std::printf("\nWhat stowd did (%s kernels, %d threads)\n",
              facts.server.isa.c_str(), facts.server.threads);
  std::printf(
      "  units landed %ld, %.2f ms of landing and %.2f ms of "
      "optimizer a step, behind the ranks' work\n",
      static_cast<long>(facts.job.units_landed),
      facts.job.landing_seconds * 1e3 / steps,
      facts.job.apply_seconds * 1e3 / steps);
}

}  // namespace stowage::gpt
