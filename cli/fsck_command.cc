// stowctl fsck: checks the jobs that lie in a folder on NVMe, without a server.

#include <cstdio>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include "storage/nvme/fsck.h"
#include <nlohmann/json.hpp>

namespace stowage::cli {
namespace {

struct Flags {
  bool json = false;
  std::string folder;
  std::string job;
};

const char* SeverityName(storage::FsckFault::Severity severity) {
  switch (severity) {
    case storage::FsckFault::Severity::kNote:
      return "note";
    case storage::FsckFault::Severity::kStep:
      return "step lost";
    case storage::FsckFault::Severity::kState:
      return "state lost";
  }
  return "?";
}

nlohmann::ordered_json ToJson(const std::string& name,
                              const storage::FsckReport& report) {
  nlohmann::ordered_json faults = nlohmann::ordered_json::array();
  for (const storage::FsckFault& fault : report.faults) {
    faults.push_back({{"severity", SeverityName(fault.severity)},
                      {"file", fault.file},
                      {"offset_bytes", fault.offset_bytes},
                      {"bytes", fault.bytes},
                      {"unit", fault.unit},
                      {"extent", fault.extent},
                      {"step", fault.step},
                      {"what", fault.what}});
  }
  nlohmann::ordered_json steps = nlohmann::ordered_json::array();
  for (const storage::CommitRecord& commit : report.info.commits) {
    steps.push_back(commit.step);
  }
  return {{"job", name},
          {"kept_steps", steps},
          {"extents_checked", report.extents_checked},
          {"bytes_checked", report.bytes_checked},
          {"faults", faults}};
}

void Print(const std::string& name, const storage::FsckReport& report) {
  std::string steps = "none";
  if (!report.info.commits.empty()) {
    steps = absl::StrCat(report.info.commits.front().step, " to ",
                         report.info.commits.back().step);
  }
  absl::PrintF("%s: %d extents (%s) checked, kept steps %s, %d faults\n", name,
               report.extents_checked, HumanBytes(report.bytes_checked), steps,
               report.faults.size());
  for (const storage::FsckFault& fault : report.faults) {
    absl::PrintF("  %s: %s\n", SeverityName(fault.severity),
                 storage::ToString(fault));
  }
}

absl::Status Fsck(const Flags& flags) {
  std::vector<std::string> names = {flags.job};
  if (flags.job.empty()) {
    STOWAGE_ASSIGN_OR_RETURN(names, storage::NvmeStore::List(flags.folder));
  }
  if (names.empty()) {
    return absl::NotFoundError(
        absl::StrCat("fsck: no job lies in ", flags.folder));
  }
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  int bad = 0;
  for (const std::string& name : names) {
    STOWAGE_ASSIGN_OR_RETURN(const storage::FsckReport report,
                             storage::Fsck(flags.folder, name));
    for (const storage::FsckFault& fault : report.faults) {
      if (fault.severity != storage::FsckFault::Severity::kNote) ++bad;
    }
    if (flags.json) {
      all.push_back(ToJson(name, report));
    } else {
      Print(name, report);
    }
  }
  if (flags.json) std::puts(all.dump(2).c_str());
  if (bad == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "fsck: ", bad,
      " faults that cost a step or the state; a job whose last step is lost "
      "can be returned to an older one: stowctl job rewind"));
}

}  // namespace

void AddFsckCommand(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<Flags>();
  CLI::App* fsck = app.add_subcommand(
      "fsck",
      "Check every byte of the jobs in a folder on NVMe and name the faults; "
      "no server may have them open");
  fsck->add_option("DIR", flags->folder, "The first folder of the jobs")
      ->required();
  fsck->add_option("--job", flags->job, "Only this one");
  fsck->add_flag("--json", flags->json, "As a JSON array");
  fsck->callback([&invocation, flags] {
    invocation.run = [flags] { return Fsck(*flags); };
  });
}

}  // namespace stowage::cli
