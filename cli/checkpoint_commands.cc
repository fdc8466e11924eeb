// stowctl checkpoint list | verify | info (no server), save | status.

#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/command.h"
#include "common/absolute_path.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include "storage/checkpoint/folder.h"
#include "storage/checkpoint/reader.h"
#include <nlohmann/json.hpp>

namespace stowage::cli {
namespace {

namespace fs = std::filesystem;

// What the flags of this group say; shared by the callbacks.
struct Flags {
  bool json = false;
  std::string folder;
  std::string job;
  std::int64_t step = -1;
  std::int32_t keep = 0;
  bool model = false;
  bool wait = true;
};

std::string TimeText(std::int64_t time_ms) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixMillis(time_ms),
                          absl::LocalTimeZone());
}

bool HasModel(const storage::CheckpointManifest& manifest) {
  for (const storage::CheckpointFile& file : manifest.files) {
    if (file.kind == storage::kKindModel) return true;
  }
  return false;
}

nlohmann::ordered_json ToJson(const std::string& path,
                              const storage::CheckpointManifest& manifest) {
  return {{"path", path},
          {"step", manifest.step},
          {"applied_steps", manifest.applied_steps},
          {"job", manifest.job},
          {"time_ms", manifest.time},
          {"program", manifest.program},
          {"nodes", manifest.nodes},
          {"bytes", manifest.bytes()},
          {"model", HasModel(manifest)}};
}

// Complete checkpoints in the folder, or the folder itself, by step.
absl::StatusOr<std::vector<std::string>> Paths(const std::string& folder) {
  if (fs::exists(folder + "/" + storage::CheckpointManifestName(0))) {
    return std::vector<std::string>{folder};
  }
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::int64_t> steps,
                           storage::ListCheckpoints(folder));
  std::vector<std::string> paths;
  paths.reserve(steps.size());
  for (const std::int64_t step : steps) {
    paths.push_back(absl::StrCat(folder, "/", storage::CheckpointName(step)));
  }
  return paths;
}

absl::Status List(const Flags& flags) {
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::string> paths,
                           Paths(AbsolutePath(flags.folder)));
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  std::vector<std::string> bad;
  if (!flags.json) {
    absl::PrintF("%10s  %-19s %10s %-6s %s\n", "STEP", "SAVED", "SIZE", "MODEL",
                 "PATH");
  }
  for (const std::string& path : paths) {
    const auto manifest = storage::ReadCheckpoint(path);
    if (!manifest.ok()) {
      bad.push_back(std::string(manifest.status().message()));
      continue;
    }
    if (flags.json) {
      all.push_back(ToJson(path, *manifest));
      continue;
    }
    absl::PrintF("%10d  %-19s %10s %-6s %s\n", manifest->step,
                 TimeText(manifest->time), HumanBytes(manifest->bytes()),
                 HasModel(*manifest) ? "yes" : "no", path);
  }
  if (flags.json) std::puts(all.dump(2).c_str());
  for (const std::string& why : bad) {
    absl::FPrintF(stderr, "not complete: %s\n", why);
  }
  return absl::OkStatus();
}

absl::Status Info(const Flags& flags) {
  STOWAGE_ASSIGN_OR_RETURN(
      const std::string path,
      storage::FindCheckpoint(AbsolutePath(flags.folder), flags.step));
  STOWAGE_ASSIGN_OR_RETURN(const storage::CheckpointManifest manifest,
                           storage::ReadCheckpoint(path));
  std::int64_t params = 0;
  std::size_t tensors = 0;
  for (const UnitSpec& unit : manifest.layout.units) {
    for (const ParamSpec& param : unit.params) {
      std::int64_t elems = 1;
      for (const std::int64_t extent : param.shape) elems *= extent;
      params += elems;
      ++tensors;
    }
  }
  if (flags.json) {
    nlohmann::ordered_json out = ToJson(path, manifest);
    out["parameters"] = params;
    out["files"] = nlohmann::ordered_json::array();
    for (const storage::CheckpointFile& file : manifest.files) {
      out["files"].push_back(
          {{"name", file.name}, {"kind", file.kind}, {"bytes", file.bytes}});
    }
    std::puts(out.dump(2).c_str());
    return absl::OkStatus();
  }
  const auto line = [](const char* name, const std::string& value) {
    absl::PrintF("%-14s %s\n", name, value);
  };
  line("checkpoint", path);
  line("job", manifest.job);
  line("step",
       absl::StrCat(manifest.step, " (", manifest.step - manifest.applied_steps,
                    " skipped)"));
  line("saved",
       absl::StrCat(TimeText(manifest.time), " by ", manifest.program));
  line("parameters",
       absl::StrCat(params, " in ", tensors, " tensors of ",
                    manifest.layout.units.size(), " units, ",
                    std::string(DtypeName(manifest.layout.param_dtype))));
  line("size", absl::StrCat(HumanBytes(manifest.bytes()), " in ",
                            manifest.files.size(), " files"));
  for (const storage::CheckpointFile& file : manifest.files) {
    line("", absl::StrCat(file.name, " ", HumanBytes(file.bytes)));
  }
  return absl::OkStatus();
}

absl::Status Verify(const Flags& flags) {
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::string> paths,
                           Paths(AbsolutePath(flags.folder)));
  if (paths.empty()) {
    return absl::NotFoundError(absl::StrCat("no checkpoint in ", flags.folder));
  }
  absl::Status first;
  for (const std::string& path : paths) {
    const auto begin = std::chrono::steady_clock::now();
    auto reader = storage::CheckpointReader::Open(path);
    absl::Status status = reader.status();
    if (reader.ok()) status = reader->Verify([](std::int64_t /*bytes*/) {});
    first.Update(status);
    if (!status.ok()) {
      absl::PrintF("%s: DAMAGED: %s\n", path, status.message());
      continue;
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
            .count();
    absl::PrintF("%s: %s verified in %.1f s\n", path,
                 HumanBytes(reader->bytes()), seconds);
  }
  return first;
}

// One line, written over itself on a terminal.
void PrintProgress(const SaveInfo& save) {
  const double rate = save.seconds > 0
                          ? static_cast<double>(save.bytes_done) / save.seconds
                          : 0;
  const double left =
      rate > 0 ? static_cast<double>(save.bytes_total - save.bytes_done) / rate
               : 0;
  absl::FPrintF(stderr, "\rstep %d: %s of %s, %s/s, %.0f s left   ", save.step,
                HumanBytes(save.bytes_done), HumanBytes(save.bytes_total),
                HumanBytes(static_cast<std::int64_t>(rate)), left);
  std::fflush(stderr);
}

absl::Status Report(const SaveInfo& save) {
  switch (save.phase) {
    case SavePhase::kNone:
      absl::PrintF("%s: no save\n", save.job);
      return absl::OkStatus();
    case SavePhase::kWaiting:
      absl::PrintF("%s: step %d is saved when it is committed\n", save.job,
                   save.step);
      return absl::OkStatus();
    case SavePhase::kWriting:
      absl::PrintF("%s: step %d, %s of %s written in %.1f s\n", save.job,
                   save.step, HumanBytes(save.bytes_done),
                   HumanBytes(save.bytes_total), save.seconds);
      return absl::OkStatus();
    case SavePhase::kDone:
      absl::PrintF(
          "%s: step %d saved to %s: %s in %.1f s; the job stood still for %.2f "
          "ms, its updates copied %s and waited %.2f s\n",
          save.job, save.step, save.path, HumanBytes(save.bytes_total),
          save.seconds, save.begin_ms, HumanBytes(save.copied_bytes),
          save.wait_seconds);
      return absl::OkStatus();
    case SavePhase::kFailed:
      break;
  }
  return absl::DataLossError(absl::StrCat("the save of step ", save.step,
                                          " of job \"", save.job,
                                          "\" failed: ", save.error));
}

absl::Status Save(const Invocation& invocation, const Flags& flags) {
  STOWAGE_ASSIGN_OR_RETURN(auto client, Connect(invocation));
  SaveSpec spec;
  spec.job = flags.job;
  spec.folder = AbsolutePath(flags.folder);
  spec.step = flags.step;
  spec.model = flags.model;
  spec.keep = flags.keep;
  STOWAGE_ASSIGN_OR_RETURN(SaveInfo save, client->SaveJob(spec));
  while (flags.wait && save.running()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    STOWAGE_ASSIGN_OR_RETURN(save, client->GetSave(flags.job));
    if (save.phase == SavePhase::kWriting) PrintProgress(save);
  }
  if (flags.wait) std::fputs("\n", stderr);
  return Report(save);
}

absl::Status Status(const Invocation& invocation, const Flags& flags) {
  STOWAGE_ASSIGN_OR_RETURN(auto client, Connect(invocation));
  STOWAGE_ASSIGN_OR_RETURN(const SaveInfo save, client->GetSave(flags.job));
  return Report(save);
}

}  // namespace

void AddCheckpointCommands(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<Flags>();
  CLI::App* group = app.add_subcommand(
      "checkpoint", "List, check and make checkpoints on disk");
  group->require_subcommand(1);
  const auto local = [&](const char* name, const char* help,
                         absl::Status (*run)(const Flags&)) {
    CLI::App* command = group->add_subcommand(name, help);
    command
        ->add_option("DIR", flags->folder,
                     "Folder of checkpoints, or one checkpoint")
        ->required();
    command->callback([&invocation, flags, run] {
      invocation.run = [flags, run] { return run(*flags); };
    });
    return command;
  };
  CLI::App* list = local("list", "The complete ones, by step", &List);
  list->add_flag("--json", flags->json, "As a JSON array; sizes in bytes");
  local("verify", "Read every byte and name what is damaged", &Verify);
  CLI::App* info = local("info", "What is in one", &Info);
  info->add_option("--step", flags->step,
                   "Its step; default: the one saved last");
  info->add_flag("--json", flags->json, "As one JSON object; sizes in bytes");
  CLI::App* save = group->add_subcommand(
      "save", "Have the server save a job's last step, while it trains on");
  save->add_option("JOB", flags->job, "The job's name")->required();
  save->add_option("DIR", flags->folder,
                   "Folder of checkpoints, below a --export-root")
      ->required();
  save->add_flag("--model", flags->model,
                 "Also the parameters, as Hugging Face's loaders take them");
  save->add_option("--keep", flags->keep,
                   "Checkpoints to keep in the folder; 0: all")
      ->check(CLI::Range(0, kCheckpointsKeptMax));
  save->add_flag("!--no-wait", flags->wait, "Return when it has begun");
  save->callback([&invocation, flags] {
    invocation.run = [&invocation, flags] { return Save(invocation, *flags); };
  });
  CLI::App* status =
      group->add_subcommand("status", "How a job's last save goes");
  status->add_option("JOB", flags->job, "The job's name")->required();
  status->callback([&invocation, flags] {
    invocation.run = [&invocation, flags] {
      return Status(invocation, *flags);
    };
  });
}

}  // namespace stowage::cli
