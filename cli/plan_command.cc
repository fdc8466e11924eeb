// stowctl plan: what a file's job will take on this machine.

#include "cli/plan_command.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/plan_calibration.h"
#include "cli/trainer_flags.h"
#include "common/status_macros.h"
#include "engine/config/config.h"

namespace stowage::cli {
namespace {

namespace config = engine::config;

struct PlanFlags {
  std::string file;
  std::int64_t parameters = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t context = 128;
  std::int64_t vocabulary = 256;
  int rank_threads = 0;
  std::string run;
  bool recalibrate = false;
  bool no_calibration = false;
  bool json = false;
};

std::int64_t FreeBytes(std::filesystem::path path) {
  struct statvfs status {};
  while (statvfs(path.c_str(), &status) != 0) {
    if (!path.has_parent_path() || path == path.parent_path()) return 0;
    path = path.parent_path();
  }
  return static_cast<std::int64_t>(status.f_bavail) *
         static_cast<std::int64_t>(status.f_frsize);
}

std::int64_t AvailableMemory() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    long long kilobytes = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %lld", &kilobytes) == 1) {
      return kilobytes * 1024;
    }
  }
  return 0;
}

absl::StatusOr<forecast::GptShape> ShapeOf(const PlanFlags& flags,
                                           std::optional<std::int64_t> width) {
  if (flags.parameters > 0) {
    if (flags.layers > 0 || width) {
      return absl::InvalidArgumentError(
          "plan: give --parameters, or --layers and --width, not both");
    }
    return forecast::ShapeOfSize(flags.parameters, flags.context,
                                 flags.vocabulary);
  }
  if (flags.layers <= 0 || !width) {
    return absl::InvalidArgumentError(
        "plan: how large is the model? Give --parameters N, or --layers L "
        "--width W, or --run DIR of a finished run");
  }
  forecast::GptShape shape{.layers = flags.layers,
                           .width = *width,
                           .heads = flags.heads,
                           .context = flags.context,
                           .vocabulary = flags.vocabulary};
  if (shape.heads == 0) {
    // Heads of 64 where the width allows it.
    shape.heads = shape.width % 64 == 0 ? shape.width / 64 : 1;
  }
  return shape;
}

// The trainer's values of a run, or stow-train's defaults where nothing says
// otherwise.
config::TrainerValues ValuesOf(const TrainerFlags& flags,
                               const forecast::GptShape& shape,
                               const std::optional<RunReality>& run) {
  config::TrainerValues values = flags.Values();
  if (run) {
    values.world_size = run->ranks;
    values.micro_batch = run->micro_batch;
    values.gradient_accumulation_steps = run->accumulation;
    if (const auto dtype = ParseDtype(run->precision); dtype.ok()) {
      values.precision = *dtype;
    }
  }
  if (!values.micro_batch.value) values.micro_batch = 4;
  if (!values.lr.value) values.lr = 3e-4;
  if (!values.total_num_steps.value) values.total_num_steps = 100;
  values.hidden_size = shape.width;
  return values;
}

// What there is; how fast it is comes from Calibrate().
forecast::Machine ThisMachine(int cores, const config::Config& settings,
                              const std::vector<std::string>& folders) {
  forecast::Machine machine;
  machine.cores = cores;
  machine.memory_bytes = AvailableMemory();
  const std::string& shm = settings.stowage.shm_dir;
  machine.segment_bytes = FreeBytes(shm.empty() ? "/dev/shm" : shm);
  for (const std::string& folder : folders) {
    machine.disk_free_bytes += FreeBytes(folder);
  }
  return machine;
}

absl::Status Plan(const PlanFlags& flags, const TrainerFlags& trainer) {
  PlanScreen screen;
  screen.file = flags.file;
  if (!flags.run.empty()) {
    STOWAGE_ASSIGN_OR_RETURN(screen.reality, ReadRun(flags.run));
    screen.shape = screen.reality->shape;
  } else {
    STOWAGE_ASSIGN_OR_RETURN(screen.shape, ShapeOf(flags, trainer.hidden_size));
  }
  const absl::StatusOr<config::Document> document =
      config::ReadConfigFile(flags.file);
  if (!document.ok()) {
    return absl::InvalidArgumentError(document.status().message());
  }
  STOWAGE_ASSIGN_OR_RETURN(
      config::Resolution resolution,
      config::Resolve(*document,
                      ValuesOf(trainer, screen.shape, screen.reality)));
  if (const absl::Status supported = config::CheckSupported(resolution.config);
      !supported.ok()) {
    screen.notes.push_back(absl::StrCat("this build refuses the file: ",
                                        std::string(supported.message())));
  }
  forecast::Workload& workload = screen.workload;
  workload.config = std::move(resolution.config);
  if (screen.reality && screen.reality->sent_params >= 0) {
    // By a flag of the run, or by what it found.
    workload.config.stowage.exchange = config::ExchangeKind::kC10d;
  }
  workload.local_ranks = static_cast<std::int32_t>(workload.config.world_size);
  STOWAGE_ASSIGN_OR_RETURN(workload.layout,
                           Layout::Create(forecast::GptLayout(
                               screen.shape, workload.config.precision)));
  const int cores =
      static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  workload.threads_per_rank = std::max(1, cores / workload.local_ranks);
  if (screen.reality && screen.reality->rank_threads > 0) {
    workload.threads_per_rank = static_cast<int>(screen.reality->rank_threads);
  }
  if (flags.rank_threads > 0) workload.threads_per_rank = flags.rank_threads;
  const std::vector<std::string> folders =
      config::ToStorageSpec(workload.config, workload.local_ranks).nvme_paths;
  screen.machine = ThisMachine(cores, workload.config, folders);
  if (!flags.no_calibration) {
    CalibrationRequest request;
    request.shape = screen.shape;
    request.micro_batch = workload.config.train_micro_batch_size_per_gpu;
    request.precision = workload.config.precision;
    request.ranks = workload.local_ranks;
    request.threads_per_rank = workload.threads_per_rank;
    request.server_threads =
        static_cast<int>(workload.config.stowage.server_threads);
    request.disk_folders = folders;
    request.again = flags.recalibrate;
    Calibrate(request, &screen.machine, &screen.notes);
  }
  STOWAGE_ASSIGN_OR_RETURN(screen.forecast,
                           forecast::Predict(workload, screen.machine));
  if (flags.parameters > 0) {
    screen.notes.push_back(absl::StrFormat(
        "%d parameters are taken as a GPT of %d layers of width %d",
        flags.parameters, screen.shape.layers, screen.shape.width));
  }
  const std::string text = flags.json ? PlanJson(screen) : PlanText(screen);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand(
      "plan",
      "Memory, disk, bytes and time of a step before a job runs, from this "
      "machine's measured ceilings; beside reality after it (no server)");
  auto flags = std::make_shared<PlanFlags>();  // shared by the callback
  command->add_option("FILE", flags->file, "DeepSpeed JSON file")->required();
  CLI::Option_group* model =
      command->add_option_group("the model (with --width below)");
  model
      ->add_option("--parameters", flags->parameters,
                   "Parameters; the shape is the usual GPT's")
      ->check(CLI::Range(std::int64_t{1000}, std::int64_t{1} << 40));
  model->add_option("--layers", flags->layers)->check(CLI::Range(1, 1000));
  model->add_option("--heads", flags->heads, "Default width / 64")
      ->check(CLI::Range(1, 1024));
  model->add_option("--context", flags->context, "Tokens of a sample")
      ->check(CLI::Range(2, 65536))
      ->capture_default_str();
  model->add_option("--run", flags->run,
                    "Folder of a finished stow-train --out: takes the model "
                    "from it and shows prediction beside reality");
  command
      ->add_option("--rank-threads", flags->rank_threads,
                   "Threads of each rank; default cores / ranks")
      ->check(CLI::Range(1, 1024));
  command->add_flag("--recalibrate", flags->recalibrate,
                    "Measure this machine again (at most 20 s)");
  command->add_flag("--no-calibration", flags->no_calibration,
                    "Measure nothing; no step time then");
  command->add_flag("--json", flags->json, "As one JSON object");
  const std::shared_ptr<TrainerFlags> trainer = AddTrainerFlags(*command);
  command->callback([&invocation, flags, trainer] {
    invocation.run = [flags, trainer] { return Plan(*flags, *trainer); };
  });
}

}  // namespace stowage::cli
