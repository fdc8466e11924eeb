// stowctl jobs, job show, job drop, job rewind.

#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include <nlohmann/json.hpp>

namespace stowage::cli {
namespace {

std::string State(const JobInfo& job) {
  if (!job.failed_because.empty()) return "failed";
  if (!job.initialized) return "empty";
  return job.live_sessions > 0 ? "running" : "waiting";
}

nlohmann::ordered_json ToJson(const JobInfo& job) {
  return {
      {"name", job.name},
      {"job_id", job.job_id},
      {"epoch", job.epoch},
      {"state", State(job)},
      {"failed_because", job.failed_because},
      {"step", job.step},
      {"applied_steps", job.applied_steps},
      {"parameters", job.parameters},
      {"live_sessions", job.live_sessions},
      {"local_ranks", job.local_ranks},
      {"state_bytes", job.state_bytes},
      {"param_bytes", job.param_bytes},
      {"gradient_bytes", job.gradient_bytes},
      {"units_landed", job.units_landed},
      {"landing_seconds", job.landing_seconds},
      {"apply_seconds", job.apply_seconds},
      {"durability", job.durability},
      {"nvme_paths", job.nvme_paths},
      {"kept_steps", job.kept_steps},
      {"disk_bytes", job.disk_bytes},
      {"disk_bytes_read", job.disk_bytes_read},
      {"disk_bytes_written", job.disk_bytes_written},
      {"cache_bytes", job.cache_bytes},
      {"params_leased", job.params_leased},
      {"param_limit_bytes", job.param_limit_bytes},
      {"io", job.io},
      {"trust_ratios",
       {{"tensors", job.trust_ratios.tensors},
        {"min", job.trust_ratios.min},
        {"mean", job.trust_ratios.mean},
        {"max", job.trust_ratios.max}}},
      {"compression",
       {{"rounds", job.compression.rounds}, {"error", job.compression.error}}}};
}

void PrintTable(const std::vector<JobInfo>& jobs) {
  if (jobs.empty()) {
    std::puts("no jobs");
    return;
  }
  absl::PrintF("%-24s %-8s %8s %14s %6s %10s %10s %10s\n", "JOB", "STATE",
               "STEP", "PARAMETERS", "RANKS", "STATE", "PARAMS", "GRADIENTS");
  for (const JobInfo& job : jobs) {
    absl::PrintF("%-24s %-8s %8d %14d %6s %10s %10s %10s\n", job.name,
                 State(job), job.step, job.parameters,
                 absl::StrCat(job.live_sessions, "/", job.local_ranks),
                 HumanBytes(job.state_bytes), HumanBytes(job.param_bytes),
                 HumanBytes(job.gradient_bytes));
  }
}

void PrintJob(const JobInfo& job) {
  const auto line = [](const char* name, const std::string& value) {
    absl::PrintF("%-14s %s\n", name, value);
  };
  line("job",
       absl::StrCat(job.name, " (id ", job.job_id, ", epoch ", job.epoch, ")"));
  line("state", job.failed_because.empty()
                    ? State(job)
                    : absl::StrCat("failed: ", job.failed_because));
  line("step",
       absl::StrCat(job.step, " (", job.step - job.applied_steps, " skipped)"));
  line("parameters", absl::StrCat(job.parameters));
  line("ranks",
       absl::StrCat(job.live_sessions, " of ", job.local_ranks, " attached"));
  line("state bytes",
       absl::StrCat(HumanBytes(job.state_bytes), " (master and moments)"));
  line("param bytes", HumanBytes(job.param_bytes));
  line("gradient bytes", HumanBytes(job.gradient_bytes));
  line("units landed", absl::StrCat(job.units_landed));
  line("landing", absl::StrFormat("%.3f s", job.landing_seconds));
  line("apply", absl::StrFormat("%.3f s", job.apply_seconds));
  if (job.trust_ratios.tensors > 0) {
    line("trust ratios",
         absl::StrFormat("%.4g to %.4g, mean %.4g, of %d tensors",
                         job.trust_ratios.min, job.trust_ratios.max,
                         job.trust_ratios.mean, job.trust_ratios.tensors));
  }
  if (job.compression.rounds > 0) {
    line("compressed steps",
         absl::StrFormat("%d, the last one's signs lost %.1f %%",
                         job.compression.rounds, 100 * job.compression.error));
  }
  if (job.nvme_paths.empty()) return;
  line("durability", job.durability);
  line("on disk", absl::StrCat(HumanBytes(job.disk_bytes), " in ",
                               absl::StrJoin(job.nvme_paths, ", ")));
  line("kept steps", absl::StrJoin(job.kept_steps, ", "));
  line("cached state", HumanBytes(job.cache_bytes));
  line("parameters",
       job.params_leased
           ? absl::StrCat("on disk, at most ",
                          HumanBytes(job.param_limit_bytes), " in memory")
           : "in memory");
  line("disk read", HumanBytes(job.disk_bytes_read));
  line("disk written", HumanBytes(job.disk_bytes_written));
  if (!job.io.empty()) line("io", job.io);
}

absl::Status Show(const Invocation& invocation, const std::string& name,
                  bool json) {
  STOWAGE_ASSIGN_OR_RETURN(auto client, Connect(invocation));
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<JobInfo> jobs, client->ListJobs());
  const auto job = std::find_if(
      jobs.begin(), jobs.end(),
      [&name](const JobInfo& candidate) { return candidate.name == name; });
  if (job == jobs.end()) {
    return absl::NotFoundError(
        absl::StrCat("no job \"", name, "\"; stowctl jobs lists them"));
  }
  if (json) {
    std::puts(ToJson(*job).dump(2).c_str());
  } else {
    PrintJob(*job);
  }
  return absl::OkStatus();
}

absl::Status List(const Invocation& invocation, bool json) {
  STOWAGE_ASSIGN_OR_RETURN(auto client, Connect(invocation));
  STOWAGE_ASSIGN_OR_RETURN(std::vector<JobInfo> jobs, client->ListJobs());
  std::sort(jobs.begin(), jobs.end(),
            [](const JobInfo& a, const JobInfo& b) { return a.name < b.name; });
  if (!json) {
    PrintTable(jobs);
    return absl::OkStatus();
  }
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const JobInfo& job : jobs) all.push_back(ToJson(job));
  std::puts(all.dump(2).c_str());
  return absl::OkStatus();
}

// What the flags of this group say; shared by the callbacks.
struct Flags {
  bool json = false;
  std::string name;
  std::int64_t step = -1;
};

}  // namespace

void AddJobCommands(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<Flags>();
  CLI::App* jobs = app.add_subcommand("jobs", "List the server's jobs");
  jobs->add_flag("--json", flags->json, "As a JSON array; sizes in bytes");
  jobs->callback([&invocation, flags] {
    invocation.run = [&invocation, flags] {
      return List(invocation, flags->json);
    };
  });
  CLI::App* job = app.add_subcommand("job", "Look at, rewind or end one job");
  job->require_subcommand(1);
  CLI::App* show = job->add_subcommand("show", "Where one job stands");
  show->add_option("NAME", flags->name, "The job's name")->required();
  show->add_flag("--json", flags->json, "As one JSON object; sizes in bytes");
  show->callback([&invocation, flags] {
    invocation.run = [&invocation, flags] {
      return Show(invocation, flags->name, flags->json);
    };
  });
  CLI::App* drop = job->add_subcommand(
      "drop",
      "End a job without live ranks; its memory and files are freed, its "
      "state is lost");
  drop->add_option("NAME", flags->name, "The job's name")->required();
  drop->callback([&invocation, flags] {
    invocation.run = [&invocation, flags]() -> absl::Status {
      STOWAGE_ASSIGN_OR_RETURN(auto client, Connect(invocation));
      STOWAGE_RETURN_IF_ERROR(client->DropJob(flags->name));
      absl::PrintF("dropped %s\n", flags->name);
      return absl::OkStatus();
    };
  });
  CLI::App* rewind = job->add_subcommand(
      "rewind",
      "Return a job on NVMe, without live ranks, to a kept step; later steps "
      "are lost");
  rewind->add_option("NAME", flags->name, "The job's name")->required();
  rewind->add_option("--step", flags->step, "One of the steps that show lists")
      ->required()
      ->check(CLI::NonNegativeNumber);
  rewind->callback([&invocation, flags] {
    invocation.run = [&invocation, flags]() -> absl::Status {
      STOWAGE_ASSIGN_OR_RETURN(auto client, Connect(invocation));
      STOWAGE_ASSIGN_OR_RETURN(const double seconds,
                               client->RewindJob(flags->name, flags->step));
      absl::PrintF("%s is at step %d (%.1f ms)\n", flags->name, flags->step,
                   seconds * 1e3);
      return absl::OkStatus();
    };
  });
}

}  // namespace stowage::cli
