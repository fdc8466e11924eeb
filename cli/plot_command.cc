// stowctl plot: loss and loss scale of a run as a picture, drawn by gnuplot.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/run_program.h"
#include "common/status_macros.h"
#include "engine/monitor/series.h"

namespace stowage::cli {
namespace {

namespace monitor = engine::monitor;

struct PlotFlags {
  std::string folder;
  std::string picture;  // empty: loss.png in the folder
  std::string from;     // empty: the first format that has a loss
  bool text = false;
};

using Points = std::map<double, double>;

const Points* Find(const monitor::SeriesSource& source, const char* name) {
  const auto found = source.series.find(name);
  return found == source.series.end() ? nullptr : &found->second;
}

// The format that was asked for, or the first that has a loss; else the first
// with a loss scale.
absl::StatusOr<const monitor::SeriesSource*> Choose(
    const PlotFlags& flags, const std::vector<monitor::SeriesSource>& sources) {
  std::vector<std::string> there;
  for (const char* wanted : {"train_loss", "loss_scale"}) {
    for (const monitor::SeriesSource& source : sources) {
      const std::string format = monitor::SeriesFormatName(source.format);
      if (!flags.from.empty() && format != flags.from) continue;
      if (Find(source, wanted) != nullptr) return &source;
      there.push_back(format);
    }
  }
  if (there.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "plot: ", flags.folder, " holds no monitor's files",
        flags.from.empty() ? "" : absl::StrCat(" of ", flags.from),
        "; csv_monitor, tensorboard, wandb or stowage.jsonl_monitor in the "
        "configuration write them"));
  }
  return absl::NotFoundError(absl::StrCat(
      "plot: ", flags.folder, ": neither train_loss nor loss_scale in the ",
      absl::StrJoin(there, ", "), " files"));
}

// The folders whose files the curves come from. One run has one, but for wandb,
// which makes one each time it is started.
std::set<std::string> FoldersOf(const monitor::SeriesSource& source) {
  std::set<std::string> folders;
  for (const std::string& file : source.files) {
    const std::filesystem::path path(file);
    const std::string name = path.filename().string();
    if (source.format != monitor::SeriesFormat::kCsv ||
        name.ends_with("train_loss.csv") || name.ends_with("loss_scale.csv")) {
      folders.insert(path.parent_path().string());
    }
  }
  return folders;
}

void AddData(const char* name, const Points& points, std::string* script) {
  absl::StrAppend(script, "$", name, " << EOD\n");
  for (const auto& [x, y] : points) {
    if (std::isfinite(y)) {
      absl::StrAppendFormat(script, "%.17g %.17g\n", x, y);
    }
  }
  *script += "EOD\n";
}

std::string Script(const Points* loss, const Points* scale,
                   const std::string& terminal, const std::string& output) {
  std::string script;
  if (loss != nullptr) AddData("loss", *loss, &script);
  if (scale != nullptr) AddData("scale", *scale, &script);
  absl::StrAppend(&script, "set terminal ", terminal, "\n");
  if (!output.empty()) absl::StrAppend(&script, "set output '", output, "'\n");
  script +=
      "set key top right opaque\nset border 3\nset tics nomirror\n"
      "set grid ytics lc rgb '#dddddd'\nset xlabel 'samples'\n"
      "set format x '%.0f'\n";
  std::vector<std::string> curves;
  if (loss != nullptr) {
    script += "set ylabel 'loss'\n";
    curves.push_back(
        absl::StrCat("$loss using 1:2 with lines lw 2 lc rgb '#1f6fb4' title '",
                     scale != nullptr ? "loss (left)" : "loss", "'"));
  }
  if (scale != nullptr && loss != nullptr) {
    // Powers of two on an axis of their own.
    script +=
        "set border 11\nset y2label 'loss scale'\nset logscale y2 2\n"
        "set format y2 '2^{%L}'\nset y2tics\n";
    const auto [least, most] = std::minmax_element(
        scale->begin(), scale->end(),
        [](const auto& a, const auto& b) { return a.second < b.second; });
    absl::StrAppendFormat(&script, "set y2range [%.17g:%.17g]\n",
                          least->second / 2, most->second * 4);
    curves.emplace_back(
        "$scale using 1:2 axes x1y2 with steps lw 1.5 lc rgb '#d97a1a' title "
        "'loss scale (right)'");
  } else if (scale != nullptr) {
    script += "set ylabel 'loss scale'\nset logscale y 2\n";
    curves.emplace_back(
        "$scale using 1:2 with steps lw 2 lc rgb '#d97a1a' title 'loss scale'");
  }
  absl::StrAppend(&script, "plot ", absl::StrJoin(curves, ", \\\n  "), "\n");
  return script;
}

std::string Quoted(const std::string& path) {
  // gnuplot doubles a quote inside quotes.
  std::string out;
  for (const char c : path) {
    out += c;
    if (c == '\'') out += c;
  }
  return out;
}

absl::Status Plot(const PlotFlags& flags) {
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<monitor::SeriesSource> sources,
                           monitor::ReadSeries(flags.folder));
  STOWAGE_ASSIGN_OR_RETURN(const monitor::SeriesSource* source,
                           Choose(flags, sources));
  const std::set<std::string> folders = FoldersOf(*source);
  if (folders.size() > 1 && source->format != monitor::SeriesFormat::kWandb) {
    return absl::InvalidArgumentError(absl::StrCat(
        "plot: ", flags.folder,
        " holds several runs; name one: ", absl::StrJoin(folders, ", ")));
  }
  const Points* loss = Find(*source, "train_loss");
  const Points* scale = Find(*source, "loss_scale");
  const std::string picture =
      flags.picture.empty() ? flags.folder + "/loss.png" : flags.picture;
  const std::string script =
      flags.text ? Script(loss, scale, "dumb size 100,28", "")
                 : Script(loss, scale, "pngcairo size 960,540 font 'sans,11'",
                          Quoted(picture));
  const absl::StatusOr<std::string> drawn =
      RunProgram({"gnuplot", "-"}, script);
  if (!drawn.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("plot: ", std::string(drawn.status().message()),
                     absl::IsNotFound(drawn.status())
                         ? "; Debian's package gnuplot-nox has it"
                         : ""));
  }
  std::fputs(drawn->c_str(), stdout);
  const auto say = [](const char* what, const Points* points) {
    if (points == nullptr || points->empty()) return;
    absl::PrintF("%-10s %d points, %.6g to %.6g\n", what, points->size(),
                 points->begin()->second, points->rbegin()->second);
  };
  say("loss", loss);
  say("loss scale", scale);
  absl::PrintF("from       %s (%s)\n", absl::StrJoin(folders, ", "),
               monitor::SeriesFormatName(source->format));
  if (!flags.text) absl::PrintF("picture    %s\n", picture);
  return absl::OkStatus();
}

}  // namespace

void AddPlotCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand(
      "plot",
      "Draw loss and loss scale of a run from what its monitors wrote: csv, "
      "tensorboard, jsonl or wandb (no server)");
  auto flags = std::make_shared<PlotFlags>();  // shared by the callback
  command->add_option("DIR", flags->folder, "The run's --out, or a monitor's")
      ->required();
  command->add_option("--out", flags->picture,
                      "The picture, a PNG; default DIR/loss.png");
  command->add_option("--from", flags->from, "Only from these files")
      ->check(CLI::IsMember({"csv", "tensorboard", "jsonl", "wandb"}));
  command->add_flag("--text", flags->text, "Draw in the terminal instead");
  command->callback([&invocation, flags] {
    invocation.run = [flags] { return Plot(*flags); };
  });
}

}  // namespace stowage::cli
