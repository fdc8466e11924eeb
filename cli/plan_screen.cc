// The plan as a screen and as JSON, and the reading of a finished run.

#include <cmath>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/plan_command.h"
#include "common/bytes.h"
#include "common/dtype.h"
#include <nlohmann/json.hpp>

namespace stowage::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string Milliseconds(double seconds) {
  if (seconds < 0) return "not known";
  return absl::StrFormat("%.*f ms", seconds < 0.01 ? 2 : 1, seconds * 1e3);
}

std::string Millions(std::int64_t count) {
  return absl::StrFormat("%.2f M", static_cast<double>(count) / 1e6);
}

std::string Count(std::int64_t count, const char* what) {
  return absl::StrCat(count, " ", what, count == 1 ? "" : "s");
}

void Line(const char* where, const std::string& what, const std::string& value,
          const std::string& remark, std::string* out) {
  absl::StrAppendFormat(out, "  %-6s %-38s %12s%s%s\n", where, what, value,
                        remark.empty() ? "" : "   ", remark);
}

void Memory(const PlanScreen& screen, std::string* out) {
  const forecast::Forecast& f = screen.forecast;
  const bool leased = f.disk_space > 0;
  *out += "\nMemory of this node\n";
  if (f.server_own > 0) {
    Line("stowd", leased ? "state: pipeline and cache" : "masters and moments",
         HumanBytes(f.server_state), "private, pinned", out);
    Line("", "parameters", HumanBytes(f.server_params),
         "shared segment, which ranks read", out);
    Line("", "gradients", HumanBytes(f.server_gradients), "shared segments",
         out);
    Line("", "the program itself", HumanBytes(f.server_own), "", out);
  }
  const std::string times =
      absl::StrCat("x ", Count(screen.workload.local_ranks, "rank"));
  if (f.rank_private >= 0) {
    Line("rank", "process, with all below", HumanBytes(f.rank_private), times,
         out);
  } else {
    Line("rank", "process, activations", "not known",
         "depends on the model; not measured", out);
  }
  if (f.rank_params > 0) {
    Line("", "its own parameters", HumanBytes(f.rank_params), "", out);
  }
  if (f.rank_gathered > 0) {
    Line("", "gathered at most", HumanBytes(f.rank_gathered),
         f.rank_exchange > 0 ? "its own copies"
                             : "read in place, no memory of its own",
         out);
  }
  if (f.rank_state > 0) {
    Line("", "its part of the state", HumanBytes(f.rank_state), "", out);
  }
  std::string remark;
  if (screen.machine.memory_bytes > 0) {
    remark = absl::StrCat("of ", HumanBytes(screen.machine.memory_bytes),
                          " available");
  }
  if (f.rank_private < 0) {
    absl::StrAppend(&remark, remark.empty() ? "" : "; ", "without activations");
  }
  Line("all", "", HumanBytes(f.node_memory), remark, out);
}

void Disk(const PlanScreen& screen, std::string* out) {
  const forecast::Forecast& f = screen.forecast;
  if (f.disk_space == 0) return;
  *out += "\nDisk\n";
  Line("", "space", HumanBytes(f.disk_space),
       screen.machine.disk_free_bytes > 0
           ? absl::StrCat("of ", HumanBytes(screen.machine.disk_free_bytes),
                          " free")
           : "",
       out);
  Line("", "read in a step", HumanBytes(f.disk_read), "", out);
  Line("", "written in a step", HumanBytes(f.disk_written), "", out);
  if (f.wear_bytes_per_day >= 0) {
    const double terabytes = f.wear_bytes_per_day / 1e12;
    Line("", "written in a day of training",
         absl::StrFormat("%.2f TB", terabytes),
         absl::StrFormat("a disk rated for 600 TB lasts %.0f days",
                         600 / terabytes),
         out);
  }
}

void Time(const PlanScreen& screen, std::string* out) {
  const forecast::Forecast& f = screen.forecast;
  *out += "\nOne step\n";
  const char* where = "moves";
  for (const forecast::Amount& amount : f.moved) {
    Line(where, amount.what, HumanBytes(amount.bytes), "", out);
    where = "";
  }
  if (f.step < 0) return;
  Line("takes", "forward", Milliseconds(f.forward), "", out);
  Line("", "backward", Milliseconds(f.backward), "", out);
  Line("", "gradients, optimizer, disk: exposed",
       Milliseconds(f.optimizer_exposed), "", out);
  Line("", "in all", Milliseconds(f.step),
       absl::StrFormat(
           "%.0f samples/s",
           static_cast<double>(screen.workload.config.train_batch_size) /
               f.step),
       out);
}

// A row of the comparison; nothing where one side is not known.
void Beside(const char* what, double predicted, double real, bool bytes,
            std::string* out) {
  if (predicted < 0 || real < 0) return;
  const auto show = [&](double value) {
    return bytes ? HumanBytes(static_cast<std::int64_t>(value))
                 : absl::StrFormat("%.1f ms", value);
  };
  std::string off;
  if (real > 0) {
    off = absl::StrFormat("%+.1f %%", 100 * (predicted - real) / real);
  } else {
    off = predicted == 0 ? "+0.0 %" : "";
  }
  absl::StrAppendFormat(out, "  %-36s %12s %12s %10s\n", what, show(predicted),
                        show(real), off);
}

void Reality(const PlanScreen& screen, std::string* out) {
  if (!screen.reality) return;
  const RunReality& run = *screen.reality;
  const forecast::Forecast& f = screen.forecast;
  const auto ms = [](double seconds) {
    return seconds < 0 ? seconds : seconds * 1e3;
  };
  const auto number = [](std::int64_t value) {
    return static_cast<double>(value);
  };
  absl::StrAppendFormat(out, "\n%-38s %12s %12s %10s\n",
                        "Prediction beside that run", "predicted", "was",
                        "off by");
  if (f.server_own > 0) {
    Beside("stowd: state", number(f.server_state), number(run.state_bytes),
           true, out);
    Beside("stowd: parameters", number(f.server_params),
           number(run.param_bytes), true, out);
    Beside("stowd: gradients", number(f.server_gradients),
           number(run.gradient_bytes), true, out);
    Beside("stowd: all of it", number(f.server_bytes()),
           number(run.server_bytes), true, out);
  }
  Beside("rank: process", number(f.rank_private),
         number(run.rank_private_bytes), true, out);
  if (f.rank_private >= 0) {
    Beside("server and all ranks", number(f.node_memory),
           number(run.node_bytes()), true, out);
  }
  if (f.disk_space > 0) {
    Beside("disk: space", number(f.disk_space), number(run.disk_bytes), true,
           out);
    Beside("disk: read in a step", number(f.disk_read),
           number(run.disk_read_per_step), true, out);
    Beside("disk: written in a step", number(f.disk_written),
           number(run.disk_written_per_step), true, out);
  }
  if (f.traffic && run.steps > 0) {
    // The first step sends more: it learns the order in which units are used.
    const auto steps = static_cast<double>(run.steps);
    Beside("sent by a rank in a step: parameters",
           number(f.traffic->params_of(run.steps)) / steps,
           number(run.sent_params) / steps, true, out);
    Beside("sent by a rank in a step: gradients", number(f.traffic->gradients),
           number(run.sent_gradients) / steps, true, out);
  }
  // Phases are not set beside each other: a run's forward contains its waiting
  // for parameters, the plan's does not.
  Beside("step", ms(f.step), run.step_ms, false, out);
}

}  // namespace

std::string PlanText(const PlanScreen& screen) {
  const engine::config::Config& config = screen.workload.config;
  std::string out = absl::StrFormat(
      "%s on this machine (%d cores%s)\n\n", screen.file, screen.machine.cores,
      screen.machine.kernels
          ? absl::StrCat(", ", screen.machine.kernels->isa, " kernels")
          : "");
  absl::StrAppendFormat(
      &out, "  model  %d layers of width %d, context %d: %s parameters in %s\n",
      screen.shape.layers, screen.shape.width, screen.shape.context,
      Millions(screen.workload.layout.parameter_count()),
      std::string(DtypeName(config.precision)));
  absl::StrAppendFormat(
      &out,
      "  job    stage %d on %s of %s; micro batch %d, accumulation %d: %d "
      "samples a step\n",
      config.zero_optimization.stage, Count(config.world_size, "rank"),
      Count(screen.workload.threads_per_rank, "thread"),
      config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps,
      config.train_batch_size);
  Memory(screen, &out);
  Disk(screen, &out);
  Time(screen, &out);
  Reality(screen, &out);
  out += "\n";
  for (const std::string& problem : screen.forecast.does_not_fit) {
    absl::StrAppend(&out, "DOES NOT FIT: ", problem, "\n");
  }
  if (screen.forecast.does_not_fit.empty()) out += "It fits.\n";
  for (const std::string& note : screen.forecast.notes) {
    absl::StrAppend(&out, "note: ", note, "\n");
  }
  for (const std::string& note : screen.notes) {
    absl::StrAppend(&out, "note: ", note, "\n");
  }
  return out;
}

std::string PlanJson(const PlanScreen& screen) {
  const forecast::Forecast& f = screen.forecast;
  Json moved = Json::object();
  for (const forecast::Amount& amount : f.moved) {
    moved[amount.what] = amount.bytes;
  }
  const auto known = [](double value) -> Json {
    return value < 0 ? Json() : Json(value);
  };
  Json sent;
  if (f.traffic) {
    sent = {{"params_first_step", f.traffic->params_first},
            {"params", f.traffic->params},
            {"gradients", f.traffic->gradients}};
  }
  Json json = {{"model",
                {{"layers", screen.shape.layers},
                 {"width", screen.shape.width},
                 {"context", screen.shape.context},
                 {"parameters", screen.workload.layout.parameter_count()}}},
               {"memory_bytes",
                {{"server_state", f.server_state},
                 {"server_params", f.server_params},
                 {"server_gradients", f.server_gradients},
                 {"server_own", f.server_own},
                 {"rank_private", known(static_cast<double>(f.rank_private))},
                 {"rank_params", f.rank_params},
                 {"rank_gathered", f.rank_gathered},
                 {"rank_exchange", f.rank_exchange},
                 {"rank_state", f.rank_state},
                 {"node", f.node_memory}}},
               {"disk_bytes",
                {{"space", f.disk_space},
                 {"read_per_step", f.disk_read},
                 {"written_per_step", f.disk_written},
                 {"written_per_day", known(f.wear_bytes_per_day)}}},
               {"moved_bytes_per_step", moved},
               {"sent_bytes_per_step", std::move(sent)},
               {"step_seconds",
                {{"forward", known(f.forward)},
                 {"backward", known(f.backward)},
                 {"exposed", known(f.optimizer_exposed)},
                 {"step", known(f.step)}}},
               {"fits", f.does_not_fit.empty()},
               {"does_not_fit", f.does_not_fit},
               {"notes", screen.notes}};
  if (screen.reality) {
    json["run"] = {{"step_ms", known(screen.reality->step_ms)},
                   {"state_bytes", screen.reality->state_bytes},
                   {"param_bytes", screen.reality->param_bytes},
                   {"gradient_bytes", screen.reality->gradient_bytes},
                   {"rank_private_bytes", screen.reality->rank_private_bytes},
                   {"disk_bytes", screen.reality->disk_bytes},
                   {"server_bytes", screen.reality->server_bytes},
                   {"node_bytes", screen.reality->node_bytes()},
                   {"steps", screen.reality->steps},
                   {"sent_params", screen.reality->sent_params},
                   {"sent_gradients", screen.reality->sent_gradients}};
  }
  return json.dump(2) + "\n";
}

absl::StatusOr<RunReality> ReadRun(const std::string& path) {
  std::error_code ignored;
  const std::string file = std::filesystem::is_directory(path, ignored)
                               ? path + "/summary.json"
                               : path;
  std::ifstream in(file);
  if (!in) {
    return absl::InvalidArgumentError(
        absl::StrCat("--run ", path, ": cannot read ", file));
  }
  const Json json = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  try {
    RunReality run;
    const Json& model = json.at("model");
    run.shape = {.layers = model.at("layers"),
                 .width = model.at("width"),
                 .heads = model.at("heads"),
                 .context = model.at("context")};
    run.ranks = json.at("ranks");
    run.precision = json.at("precision");
    const Json& resolved = json.at("config_resolved");
    run.micro_batch = resolved.at("train_micro_batch_size_per_gpu");
    run.accumulation = resolved.at("gradient_accumulation_steps");
    run.step_ms = json.at("step_ms").at("median");
    const Json& server = json.at("server");
    run.state_bytes = server.at("state_bytes");
    run.param_bytes = server.at("param_bytes");
    run.gradient_bytes = server.at("gradient_bytes");
    run.server_bytes = server.at("rss_bytes");
    run.steps = json.at("steps");
    if (const Json& exchange = json.at("exchange");
        exchange.at("name") == "c10d") {
      run.sent_params = exchange.at("gather_bytes");
      run.sent_gradients = exchange.at("reduce_bytes");
    }
    const Json& rank = json.at("rank");
    run.rank_private_bytes = rank.at("private_bytes");
    run.rank_threads = rank.at("threads");
    if (const auto disk = json.find("disk"); disk != json.end()) {
      run.disk_bytes = disk->at("bytes");
      run.disk_read_per_step = disk->at("read_per_step");
      run.disk_written_per_step = disk->at("written_per_step");
    }
    return run;
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--run ", path, ": ", file,
        " is not the summary of a run of this version: ", error.what()));
  }
}

}  // namespace stowage::cli
