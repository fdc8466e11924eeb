#include "examples/gpt/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/device/host_allocator.h"
#include "engine/engine.h"
#include "engine/monitor/process_memory.h"
#include "examples/gpt/auto_values.h"
#include "examples/gpt/checkpoints.h"
#include "examples/gpt/exit_code.h"
#include "examples/gpt/model.h"
#include "examples/gpt/progress.h"
#include "examples/gpt/summary.h"
#include "examples/gpt/text_data.h"

namespace stowage::gpt {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<engine::Engine*> g_engine{nullptr};
volatile std::sig_atomic_t g_interrupts = 0;
timespec g_first_interrupt{};

// A terminal's Ctrl-C reaches a rank twice: from the terminal, and passed on by
// the launcher. What comes this soon after the first is the same key.
constexpr double kSameKeySeconds = 0.5;

void OnSignal(int /*signal*/) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (g_interrupts > 0) {
    const double since =
        static_cast<double>(now.tv_sec - g_first_interrupt.tv_sec) +
        1e-9 * static_cast<double>(now.tv_nsec - g_first_interrupt.tv_nsec);
    if (since < kSameKeySeconds) return;
    // The second one ends the process at once; the server notices.
    _exit(kExitInterrupted);
  }
  g_interrupts = 1;
  g_first_interrupt = now;
  if (engine::Engine* engine = g_engine; engine != nullptr) {
    engine->RequestStop();
  }
}

void CatchSignals() {
  struct sigaction action {};
  action.sa_handler = &OnSignal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int Fail(const char* what, const absl::Status& status, int code, int rank) {
  std::fprintf(stderr, "stow-train: rank %d: %s: %s\n", rank, what,
               std::string(status.message()).c_str());
  return code;
}

// Samples [first, first + count) as tokens_BT and targets_BT.
std::pair<at::Tensor, at::Tensor> Batch(const TextData& data,
                                        std::int64_t first, std::int64_t count,
                                        std::int64_t context) {
  at::Tensor tokens = at::empty({count, context}, at::kLong);
  at::Tensor targets = at::empty({count, context}, at::kLong);
  auto* token = tokens.mutable_data_ptr<std::int64_t>();
  auto* target = targets.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    const unsigned char* window = data.Sample(first + i);
    for (std::int64_t t = 0; t < context; ++t) {
      *token++ = window[t];
      *target++ = window[t + 1];
    }
  }
  return {tokens, targets};
}

// Continues `prompt` by `count` bytes, drawing at temperature 0.8 from a fixed
// seed: before and after differ by the weights alone.
absl::StatusOr<std::string> Generate(engine::Engine& engine,
                                     Model<engine::Engine>& model,
                                     const std::string& prompt,
                                     std::int64_t count, std::int64_t context) {
  std::string text = prompt;
  std::uint64_t state = 0x2545f4914f6cdd1dULL;
  const std::int64_t window_max = std::min<std::int64_t>(context, 64);
  // Ranks that gather together must all do as many passes.
  const bool together = engine.exchange().collective();
  STOWAGE_RETURN_IF_ERROR(engine.Evaluate([&] {
    for (std::int64_t i = 0; i < count && (together || g_interrupts == 0);
         ++i) {
      const std::size_t length =
          std::min(text.size(), static_cast<std::size_t>(window_max));
      at::Tensor tokens =
          at::empty({1, static_cast<std::int64_t>(length)}, at::kLong);
      for (std::size_t t = 0; t < length; ++t) {
        tokens.mutable_data_ptr<std::int64_t>()[t] =
            static_cast<unsigned char>(text[text.size() - length + t]);
      }
      const at::Tensor probability =
          (model(tokens.to(engine.device()))[0][-1].cpu().to(at::kDouble) / 0.8)
              .softmax(0)
              .cumsum(0);
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      const double draw = static_cast<double>(state >> 11) * 0x1p-53;
      const double* cumulative = probability.const_data_ptr<double>();
      int byte = 0;
      while (byte < 255 && cumulative[byte] < draw) ++byte;
      text.push_back(static_cast<char>(byte));
    }
  }));
  return text.substr(prompt.size());
}

std::string Printable(const std::string& text) {
  std::string out = "    ";
  for (const char c : text) {
    if (c == '\n') {
      out += "\n    ";
    } else {
      out += static_cast<unsigned char>(c) < 0x20 ||
                     static_cast<unsigned char>(c) > 0x7e
                 ? '.'
                 : c;
    }
  }
  return out;
}

absl::Status MakeFolder(const std::string& path) {
  for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    if (::mkdir(part.c_str(), 0755) != 0 && errno != EEXIST) {
      return ErrnoStatus(absl::StrCat("create folder ", part));
    }
    if (end == std::string::npos) return absl::OkStatus();
  }
}

// The ranks' parameters, unit by unit. Where the exchange is collective all
// ranks call it; the first one writes.
absl::Status SaveWeights(engine::Engine& engine, const std::string& path) {
  const Layout& layout = engine.layout();
  std::vector<engine::SafetensorsEntry> entries;
  for (const Layout::Unit& unit : layout.units()) {
    for (const Layout::Param& param : unit.params) {
      entries.push_back({param.name, layout.param_dtype(), param.shape});
    }
  }
  std::optional<engine::SafetensorsWriter> writer;
  if (engine.launch().rank == 0) {
    STOWAGE_ASSIGN_OR_RETURN(
        writer, engine::SafetensorsWriter::Create(
                    path, std::move(entries),
                    {{"format", "pt"}, {"step", absl::StrCat(engine.step())}}));
  }
  const std::int64_t width = DtypeBytes(layout.param_dtype());
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    const absl::Status written = engine.ViewParams(
        u, [&](std::span<const std::byte> data) -> absl::Status {
          if (!writer) return absl::OkStatus();
          for (const Layout::Param& param :
               layout.units()[static_cast<std::size_t>(u)].params) {
            STOWAGE_RETURN_IF_ERROR(writer->Append(data.subspan(
                static_cast<std::size_t>(param.begin_elems * width),
                static_cast<std::size_t>(param.elems * width))));
          }
          return absl::OkStatus();
        });
    if (!written.ok()) return written;
  }
  return writer ? writer->Finish() : absl::OkStatus();
}

class Trainer {
 public:
  Trainer(const Options& options, engine::Engine& engine,
          Model<engine::Engine>& model, const TextData& data,
          const std::string& checkpoint_folder)
      : options_(options),
        engine_(engine),
        model_(model),
        data_(data),
        checkpoints_(options,
                     engine.launch().rank == 0 ? checkpoint_folder : "",
                     engine) {}

  absl::Status Run() {
    const engine::config::Config& config = engine_.config();
    const std::int64_t micro_batch = config.train_micro_batch_size_per_gpu;
    facts_.first_step = engine_.step();
    facts_.tokens_per_step = config.train_batch_size * options_.model.context;
    Progress progress(engine_.step(), options_.steps, facts_.tokens_per_step);
    const auto begin = Clock::now();
    while (engine_.step() < options_.steps && !stopped_) {
      const auto step_begin = Clock::now();
      for (std::int64_t micro = 0; micro < config.gradient_accumulation_steps;
           ++micro) {
        const std::int64_t first =
            engine_.global_samples() +
            (micro * config.world_size + engine_.launch().rank) * micro_batch;
        const auto [tokens, targets] =
            Batch(data_, first, micro_batch, options_.model.context);
        STOWAGE_ASSIGN_OR_RETURN(
            const at::Tensor loss,
            engine_.Forward([&, &tokens = tokens, &targets = targets] {
              return Loss(model_(tokens.to(engine_.device())),
                          targets.to(engine_.device()));
            }));
        STOWAGE_RETURN_IF_ERROR(engine_.Backward(loss));
      }
      STOWAGE_ASSIGN_OR_RETURN(const engine::StepResult result,
                               engine_.Step(user_state_));
      const double ms =
          std::chrono::duration<double, std::milli>(Clock::now() - step_begin)
              .count();
      STOWAGE_RETURN_IF_ERROR(Record(result, ms));
      STOWAGE_ASSIGN_OR_RETURN(const std::string saving,
                               checkpoints_.AfterStep());
      if (engine_.launch().rank == 0) progress.Update(result, saving);
      stopped_ = result.stop_requested;
    }
    progress.Finish();
    const double seconds =
        std::chrono::duration<double>(Clock::now() - begin).count();
    facts_.tokens_per_second =
        static_cast<double>((engine_.step() - facts_.first_step) *
                            facts_.tokens_per_step) /
        seconds;
    return absl::OkStatus();
  }

  // Saves the last step. Rank 0.
  absl::Status FinishCheckpoints() { return checkpoints_.Finish(); }
  RunFacts& facts() { return facts_; }
  bool stopped() const { return stopped_; }

 private:
  absl::Status Record(const engine::StepResult& result, double ms) {
    if (facts_.step_ms.empty()) {
      // A resumed run reports the first loss of the whole training.
      if (engine_.resumed() && engine_.user_state().size() == sizeof(double)) {
        std::memcpy(&facts_.first_loss, engine_.user_state().data(),
                    sizeof(double));
      } else {
        facts_.first_loss = result.loss;
      }
    }
    user_state_.assign(reinterpret_cast<const char*>(&facts_.first_loss),
                       sizeof(double));
    facts_.final_loss = result.loss;
    facts_.step_ms.push_back(ms);
    // A forward waits for the units' new versions: that is the optimizer's
    // time.
    facts_.forward_ms.push_back(
        std::max(0.0, result.forward_ms - result.wait_params_ms));
    facts_.backward_ms.push_back(result.backward_ms);
    facts_.exposed_ms.push_back(result.wait_params_ms + result.step_ms);
    if (options_.trace_file.empty() || engine_.launch().rank != 0) {
      return absl::OkStatus();
    }
    if (!trace_.is_open()) {
      trace_.open(options_.trace_file, std::ios::app);
    }
    trace_
        << absl::StrFormat(
               "{\"step\": %d, \"loss\": %.17g, \"norm\": %s, \"lr\": %.17g, "
               "\"scale\": %g, \"skipped\": %s, \"ms\": %.3f, "
               "\"forward_ms\": %.3f, \"backward_ms\": %.3f, "
               "\"step_ms\": %.3f, \"wait_params_ms\": %.3f, "
               "\"gathered_peak\": %d}",
               result.step, result.loss,
               result.skipped ? "null"
                              : absl::StrFormat("%.17g", result.gradient_norm),
               result.lr, result.loss_scale, result.skipped ? "true" : "false",
               ms, result.forward_ms, result.backward_ms, result.step_ms,
               result.wait_params_ms,
               engine_.coordinator().held().gathered_peak)
        << std::endl;
    if (!trace_) {
      return ErrnoStatus(absl::StrCat("write ", options_.trace_file));
    }
    return absl::OkStatus();
  }

  const Options& options_;
  engine::Engine& engine_;
  Model<engine::Engine>& model_;
  const TextData& data_;
  Checkpoints checkpoints_;
  RunFacts facts_;
  std::string user_state_;
  std::ofstream trace_;
  bool stopped_ = false;
};

absl::Status CollectFacts(engine::Engine& engine, RunFacts& facts) {
  facts.parameters = engine.layout().parameter_count();
  facts.ranks = engine.launch().world_size;
  facts.held = engine.coordinator().held();
  facts.rank_private_bytes = engine::monitor::ReadMemoryUse().private_bytes;
  facts.rank_threads = at::get_num_threads();
  if (!engine.has_server()) return absl::OkStatus();
  STOWAGE_ASSIGN_OR_RETURN(facts.server,
                           engine.offload_client().GetServerInfo());
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<JobInfo> jobs,
                           engine.offload_client().ListJobs());
  for (const JobInfo& job : jobs) {
    if (job.name == engine.job_name()) facts.job = job;
  }
  return absl::OkStatus();
}

// What all ranks do at the end where the exchange is collective, and the first
// one elsewhere.
absl::Status Finish(const Options& options, engine::Engine& engine,
                    Model<engine::Engine>& model, Trainer& trainer,
                    const std::string& prompt, const std::string& before) {
  if (options.sample_bytes > 0) {
    STOWAGE_ASSIGN_OR_RETURN(
        const std::string after,
        Generate(engine, model, prompt, options.sample_bytes,
                 options.model.context));
    if (engine.launch().rank == 0) {
      std::printf(
          "\nText generated before training:\n%s\n\nand after %ld "
          "steps:\n%s\n",
          Printable(before).c_str(), static_cast<long>(engine.step()),
          Printable(after).c_str());
    }
  }
  if (engine.launch().rank == 0) {
    trainer.facts().model = options.model;
    STOWAGE_RETURN_IF_ERROR(CollectFacts(engine, trainer.facts()));
    PrintTables(trainer.facts(), engine);
  }
  if (options.out.empty()) return absl::OkStatus();
  if (options.save_weights) {
    STOWAGE_RETURN_IF_ERROR(
        SaveWeights(engine, absl::StrCat(options.out, "/model.safetensors")));
  }
  if (engine.launch().rank != 0) return absl::OkStatus();
  STOWAGE_RETURN_IF_ERROR(
      WriteSummary(absl::StrCat(options.out, "/summary.json"), trainer.facts(),
                   engine, engine.config_resolved_json()));
  std::printf("\nWritten to %s: summary.json%s and the monitors' files\n",
              options.out.c_str(),
              options.save_weights ? ", model.safetensors" : "");
  return absl::OkStatus();
}

absl::StatusOr<engine::EngineOptions> MakeEngineOptions(
    const Options& options, const engine::LaunchInfo& launch) {
  STOWAGE_ASSIGN_OR_RETURN(const engine::config::Document document,
                           engine::config::ReadConfigFile(options.config));
  engine::EngineOptions made;
  STOWAGE_ASSIGN_OR_RETURN(
      made.resolution,
      engine::config::Resolve(document,
                              MakeTrainerValues(options, launch.world_size)));
  made.launch = launch;
  made.server = options.server;
  made.job = options.job;
  made.exchange = options.exchange;
  made.device = options.device;
  made.seed = options.seed;
  made.server_threads = options.server_threads;
  made.monitor_root = options.out;
  made.tokens_per_sample = options.model.context;
  STOWAGE_ASSIGN_OR_RETURN(const CheckpointPlan checkpoints,
                           PlanCheckpoints(options));
  made.load = checkpoints.load;
  made.export_roots = checkpoints.roots();
  made.groups = {{"decay", std::nullopt}, {"no_decay", 0.0}};
  made.group_of = [](const std::string& /*name*/, const at::Tensor& parameter) {
    return parameter.dim() >= 2 ? 0 : 1;
  };
  return made;
}

}  // namespace

int TrainRank(const Options& options) {
  CatchSignals();
  engine::TuneHostAllocator();
  log::Initialize("stow-train", log::Level::kInfo);
  log::SetLevel(options.log_level).IgnoreError();
  absl::StatusOr<engine::LaunchInfo> launch =
      engine::LaunchInfo::FromEnvironment();
  if (!launch.ok()) return Fail("launch", launch.status(), kExitUsage, 0);
  const int rank = launch->rank;
  absl::StatusOr<engine::EngineOptions> engine_options =
      MakeEngineOptions(options, *launch);
  if (engine_options.ok() && !options.log_level_set) {
    const std::string& level = engine_options->resolution.config.log_level;
    if (!level.empty()) log::SetLevel(level).IgnoreError();
  }
  if (!engine_options.ok()) {
    // Every rank reads the same file: one line is enough.
    if (rank == 0) {
      std::fprintf(stderr, "stow-train: %s\n",
                   std::string(engine_options.status().message()).c_str());
    }
    return kExitUsage;
  }
  absl::StatusOr<TextData> data =
      TextData::Load(options.data, options.model.context, options.seed);
  if (!data.ok()) {
    if (rank == 0) return Fail("data", data.status(), kExitUsage, rank);
    return kExitUsage;
  }
  if (rank == 0) {
    for (const engine::config::Warning& warning :
         engine_options->resolution.warnings) {
      std::fprintf(stderr, "%s\n", warning.ToString().c_str());
    }
    PrintAutoValues(options.config, engine_options->resolution);
    if (!options.out.empty()) {
      if (const absl::Status made = MakeFolder(options.out); !made.ok()) {
        return Fail("output", made, kExitUsage, rank);
      }
    }
  }
  const absl::StatusOr<CheckpointPlan> checkpoints = PlanCheckpoints(options);
  if (!checkpoints.ok()) return kExitUsage;  // MakeEngineOptions() has said so
  const int cores =
      static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  at::set_num_threads(options.rank_threads > 0
                          ? options.rank_threads
                          : std::max(1, cores / launch->local_world_size));

  absl::StatusOr<std::unique_ptr<engine::Engine>> created =
      engine::Engine::Create(*std::move(engine_options));
  if (!created.ok()) {
    return Fail("start", created.status(), ExitCodeBefore(created.status()),
                rank);
  }
  engine::Engine& engine = **created;
  g_engine = &engine;
  if (g_interrupts > 0) engine.RequestStop();
  Model<engine::Engine> model(engine, options.model);
  if (const absl::Status started = engine.Start(); !started.ok()) {
    return Fail("start", started, ExitCodeBefore(started), rank);
  }
  Trainer trainer(options, engine, model, *data, checkpoints->folder);
  absl::Status status;
  std::string before;
  const std::string prompt(reinterpret_cast<const char*>(data->Sample(0)), 16);
  const bool takes_part = rank == 0 || engine.exchange().collective();
  if (takes_part && options.sample_bytes > 0) {
    absl::StatusOr<std::string> text = Generate(
        engine, model, prompt, options.sample_bytes, options.model.context);
    status = text.status();
    if (text.ok()) before = *std::move(text);
  }
  if (status.ok()) status = trainer.Run();
  // Where the ranks act together an interrupt counts when all have heard it.
  const bool goes_on =
      engine.exchange().collective() ? !trainer.stopped() : g_interrupts == 0;
  if (status.ok() && rank == 0) status = trainer.FinishCheckpoints();
  if (status.ok() && takes_part && goes_on) {
    status = Finish(options, engine, model, trainer, prompt, before);
  }
  if (!status.ok()) {
    return Fail("training stopped", status, ExitCodeDuring(status), rank);
  }
  // What was interrupted may be wanted again: the job stays in a server of
  // the user's.
  const bool stopped = trainer.stopped() || g_interrupts > 0;
  g_engine = nullptr;
  const absl::Status closed = engine.Close(options.keep || stopped);
  if (!closed.ok()) {
    return Fail("close", closed, ExitCodeDuring(closed), rank);
  }
  if (stopped) {
    if (rank == 0) {
      std::fprintf(stderr, "stow-train: interrupted after step %ld%s\n",
                   static_cast<long>(engine.step()),
                   engine.server_is_private()
                       ? "; its private server, and the state in it, ended "
                         "with it (--server and --job keep them)"
                       : "; start it again with the same --job to go on");
    }
    return kExitInterrupted;
  }
  return kExitOk;
}

}  // namespace stowage::gpt
