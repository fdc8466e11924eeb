#include "cli/plan_calibration.h"

#include <sys/stat.h>
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/run_program.h"
#include "common/dtype.h"
#include "common/environment.h"
#include <nlohmann/json.hpp>

namespace stowage::cli {
namespace {

using Json = nlohmann::ordered_json;

// Together within 20 s, start-up of the helper included.
constexpr double kKernelSeconds = 2;
constexpr double kComputeSeconds = 12;
constexpr double kDiskSeconds = 3;
// Older figures are measured again: machines change.
constexpr std::int64_t kKeepSeconds = std::int64_t{30} * 86400;

std::string CachePath() {
  std::string folder = Environment("XDG_CACHE_HOME");
  if (folder.empty()) folder = Environment("HOME") + "/.cache";
  return folder + "/stowage/plan-calibration.json";
}

// What the processor and its memory are: a copied cache is not believed.
std::string MachineName() {
  utsname name{};
  uname(&name);
  std::string model;
  std::ifstream cpus("/proc/cpuinfo");
  for (std::string line; std::getline(cpus, line);) {
    if (line.starts_with("model name")) {
      model = line.substr(line.find(':') + 1);
      break;
    }
  }
  return absl::StrCat(name.nodename, ",", model, ",",
                      std::thread::hardware_concurrency(), " cores");
}

class Cache {
 public:
  Cache() : path_(CachePath()) {
    std::ifstream file(path_);
    if (file) json_ = Json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (!json_.is_object()) json_ = Json::object();
  }

  // Null if there is none, or an old one.
  const Json* Find(const std::string& key) const {
    const auto found = json_.find(key);
    if (found == json_.end() || !found->is_object()) return nullptr;
    const std::int64_t at = found->value("unix_seconds", std::int64_t{0});
    return std::time(nullptr) - at > kKeepSeconds ? nullptr : &*found;
  }

  void Put(const std::string& key, Json value) {
    value["unix_seconds"] = std::time(nullptr);
    json_[key] = std::move(value);
    std::error_code ignored;
    std::filesystem::create_directories(
        std::filesystem::path(path_).parent_path(), ignored);
    const std::string partial = path_ + ".partial";
    std::ofstream(partial) << json_.dump(2) << "\n";
    std::filesystem::rename(partial, path_, ignored);
  }

 private:
  std::string path_;
  Json json_ = Json::object();
};

void Say(const char* what) {
  absl::FPrintF(stderr, "stowctl plan: measuring %s ...\n", what);
}

void CalibrateKernels(const CalibrationRequest& request, Cache& cache,
                      forecast::Machine* machine) {
  const std::string key =
      absl::StrCat(MachineName(), "|memory|", request.server_threads);
  const Json* cached = request.again ? nullptr : cache.Find(key);
  forecast::KernelCeilings kernels;
  if (cached == nullptr) {
    Say("the optimizer's kernels (2 s)");
    kernels = forecast::MeasureKernels(request.server_threads, kKernelSeconds);
    cache.Put(key, {{"threads", kernels.threads},
                    {"isa", kernels.isa},
                    {"adam", kernels.adam_bytes_per_second},
                    {"norm", kernels.norm_bytes_per_second},
                    {"copy", kernels.copy_bytes_per_second},
                    {"fresh", kernels.fresh_bytes_per_second}});
  } else {
    kernels = {cached->value("threads", 1), cached->value("isa", std::string()),
               cached->value("adam", 1e9),  cached->value("norm", 1e9),
               cached->value("copy", 1e9),  cached->value("fresh", 1e9)};
  }
  machine->kernels = kernels;
}

// The cost of the asked depth from that of one and of three blocks.
forecast::RankCompute Extrapolate(const Json& measured, std::int64_t layers) {
  const Json& one = measured.at("one_block");
  const Json& three = measured.at("three_blocks");
  const auto of_block = [&](const char* key) {
    return std::max(
        0.0, (three.at(key).get<double>() - one.at(key).get<double>()) / 2);
  };
  const auto seconds = [&](const char* key) {
    return one.at(key).get<double>() +
           of_block(key) * static_cast<double>(layers - 1);
  };
  forecast::RankCompute compute;
  compute.forward_seconds = seconds("forward_seconds");
  compute.backward_seconds = seconds("backward_seconds");
  // What more blocks save is known to the byte; from the process's size, which
  // the allocator rounds, every block would take a share of its whims.
  compute.process_bytes = static_cast<std::int64_t>(
      three.at("anonymous_bytes").get<double>() +
      of_block("saved_bytes") * static_cast<double>(layers - 3));
  return compute;
}

void CalibrateCompute(const CalibrationRequest& request, Cache& cache,
                      forecast::Machine* machine,
                      std::vector<std::string>* notes) {
  const std::string precision(DtypeName(request.precision));
  const std::vector<std::string> arguments = {
      "--width",       absl::StrCat(request.shape.width),
      "--heads",       absl::StrCat(request.shape.heads),
      "--context",     absl::StrCat(request.shape.context),
      "--micro-batch", absl::StrCat(request.micro_batch),
      "--precision",   precision,
      "--ranks",       absl::StrCat(request.ranks),
      "--threads",     absl::StrCat(request.threads_per_rank)};
  const std::string key =
      absl::StrCat(MachineName(), "|rank|", absl::StrJoin(arguments, " "));
  Json measured;
  if (const Json* cached = request.again ? nullptr : cache.Find(key);
      cached != nullptr) {
    measured = *cached;
  } else {
    Say("forward and backward with all ranks at once (about 12 s)");
    std::vector<std::string> command = {ProgramBesideUs("stow-calibrate")};
    command.insert(command.end(), arguments.begin(), arguments.end());
    command.insert(command.end(), {"--seconds", absl::StrCat(kComputeSeconds)});
    const absl::StatusOr<std::string> output = RunProgram(command, "");
    if (output.ok()) {
      measured = Json::parse(*output, nullptr, /*allow_exceptions=*/false);
    }
    if (!output.ok() || !measured.is_object() ||
        !measured.contains("three_blocks")) {
      notes->push_back(absl::StrCat(
          "no step time: forward and backward could not be measured (",
          output.ok() ? "stow-calibrate printed something else"
                      : std::string(output.status().message()),
          ")"));
      return;
    }
    cache.Put(key, measured);
  }
  try {
    machine->compute = Extrapolate(measured, request.shape.layers);
  } catch (const Json::exception& error) {
    notes->push_back(absl::StrCat("no step time: ", CachePath(),
                                  " is damaged, --recalibrate mends it (",
                                  error.what(), ")"));
  }
}

// The folder, or the nearest one above it that is there.
std::string ExistingFolder(std::filesystem::path path) {
  std::error_code ignored;
  while (!std::filesystem::is_directory(path, ignored) &&
         path.has_parent_path() && path != path.parent_path()) {
    path = path.parent_path();
  }
  return path.empty() ? "." : path.string();
}

void CalibrateDisk(const CalibrationRequest& request, Cache& cache,
                   forecast::Machine* machine,
                   std::vector<std::string>* notes) {
  forecast::DiskCeilings sum;
  std::vector<std::uint64_t> devices;
  for (const std::string& asked : request.disk_folders) {
    const std::string folder = ExistingFolder(asked);
    struct stat status {};
    if (stat(folder.c_str(), &status) != 0) continue;
    // Two folders of one disk have its rate once.
    if (std::find(devices.begin(), devices.end(), status.st_dev) !=
        devices.end()) {
      continue;
    }
    devices.push_back(status.st_dev);
    const std::string key =
        absl::StrCat(MachineName(), "|disk of written files|", folder);
    forecast::DiskCeilings disk;
    if (const Json* cached = request.again ? nullptr : cache.Find(key);
        cached != nullptr) {
      disk = {cached->value("read", 0.0), cached->value("write", 0.0),
              cached->value("mixed", 0.0)};
    } else {
      Say(absl::StrCat("the disk of ", folder, " (3 s)").c_str());
      const absl::StatusOr<forecast::DiskCeilings> measured =
          forecast::MeasureDisk(folder, kDiskSeconds);
      if (!measured.ok()) {
        notes->push_back(
            absl::StrCat("the disk was not measured: ",
                         std::string(measured.status().message())));
        return;
      }
      disk = *measured;
      cache.Put(key, {{"read", disk.read_bytes_per_second},
                      {"write", disk.write_bytes_per_second},
                      {"mixed", disk.mixed_bytes_per_second}});
    }
    sum.read_bytes_per_second += disk.read_bytes_per_second;
    sum.write_bytes_per_second += disk.write_bytes_per_second;
    sum.mixed_bytes_per_second += disk.mixed_bytes_per_second;
  }
  if (!devices.empty()) machine->disk = sum;
}

}  // namespace

void Calibrate(const CalibrationRequest& request, forecast::Machine* machine,
               std::vector<std::string>* notes) {
  Cache cache;
  CalibrateKernels(request, cache, machine);
  CalibrateCompute(request, cache, machine, notes);
  if (!request.disk_folders.empty()) {
    CalibrateDisk(request, cache, machine, notes);
  }
}

}  // namespace stowage::cli
