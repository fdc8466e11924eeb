// stowctl config explain, config schedule: what a configuration file means,
// without a trainer and without a server.

#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/trainer_flags.h"
#include "common/status_macros.h"
#include "engine/config/config.h"
#include "engine/schedule/schedule.h"

namespace stowage::cli {
namespace {

namespace config = engine::config;
namespace schedule = engine::schedule;

// Errors: kInvalidArgument or kUnimplemented, fit to be shown.
absl::StatusOr<config::Resolution> ReadAndResolve(
    const std::string& file, const config::TrainerValues& trainer) {
  const absl::StatusOr<config::Document> document =
      config::ReadConfigFile(file);
  if (!document.ok()) {
    return absl::InvalidArgumentError(document.status().message());
  }
  return config::Resolve(*document, trainer);
}

absl::Status Explain(const std::string& file, const TrainerFlags& flags,
                     bool json) {
  STOWAGE_ASSIGN_OR_RETURN(const config::Resolution resolution,
                           ReadAndResolve(file, flags.Values()));
  const std::string text =
      json ? config::ExplainJson(resolution) : config::ExplainText(resolution);
  std::fputs(text.c_str(), stdout);
  // What the file means is said; that it cannot run here is said beside it.
  const absl::Status supported = config::CheckSupported(resolution.config);
  if (!supported.ok()) {
    absl::FPrintF(stderr, "stowctl: this build refuses the file: %s\n",
                  supported.message());
  }
  return absl::OkStatus();
}

// "step,lr,beta1": the values in force at each optimizer step if none is
// skipped; step 0 is the first.
absl::Status PrintSchedule(const std::string& file, const TrainerFlags& flags) {
  // The curve depends on neither, so "auto" there needs no flag.
  config::TrainerValues trainer = flags.Values();
  if (!trainer.hidden_size.value) trainer.hidden_size = 1;
  if (!trainer.micro_batch.value) trainer.micro_batch = 1;
  STOWAGE_ASSIGN_OR_RETURN(const config::Resolution resolution,
                           ReadAndResolve(file, trainer));
  const config::Config& settings = resolution.config;
  STOWAGE_ASSIGN_OR_RETURN(
      const schedule::Schedule lrs,
      schedule::Schedule::Create(
          settings.scheduler,
          {{settings.optimizer.lr, settings.optimizer.betas}}));
  for (const config::Warning& warning : resolution.warnings) {
    if (warning.path.starts_with("scheduler")) {
      absl::FPrintF(stderr, "%s\n", warning.ToString());
    }
  }
  std::puts("step,lr,beta1");
  for (std::int64_t step = 0; step < flags.steps.value_or(0); ++step) {
    absl::PrintF("%d,%.17g,%.17g\n", step, lrs.Lr(step, 0),
                 lrs.BetasAt(step, 0).beta1);
  }
  return absl::OkStatus();
}

}  // namespace

void AddConfigCommands(CLI::App& app, Invocation& invocation) {
  CLI::App* group =
      app.add_subcommand("config", "Understand a configuration file");
  group->require_subcommand(1);
  auto file = std::make_shared<std::string>();  // shared by the callbacks
  auto json = std::make_shared<bool>(false);
  const auto add = [&](const char* name, const char* what) {
    CLI::App* command = group->add_subcommand(name, what);
    command->add_option("FILE", *file, "DeepSpeed JSON file")->required();
    return std::pair{command, AddTrainerFlags(*command)};
  };
  const auto [explain, explain_flags] =
      add("explain", "Every key, its value, where it came from, and warnings");
  explain->add_flag("--json", *json, "As one JSON object");
  explain->callback([&invocation, file, json, flags = explain_flags] {
    invocation.run = [file, json, flags] {
      return Explain(*file, *flags, *json);
    };
  });
  const auto [curve, curve_flags] =
      add("schedule", "CSV of the learning rate and beta1 of every step");
  curve->get_option("--steps")->required();
  curve->callback([&invocation, file, flags = curve_flags] {
    invocation.run = [file, flags] { return PrintSchedule(*file, *flags); };
  });
}

}  // namespace stowage::cli
