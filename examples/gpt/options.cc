#include "examples/gpt/options.h"

#include "common/dtype.h"
#include <CLI/CLI.hpp>

namespace stowage::gpt {
namespace {

constexpr char kDescription[] =
    "Trains a small byte-level GPT on a text file with ZeRO. Parameters and "
    "optimizer state live in stowd; one DeepSpeed JSON file drives it.\n\n"
    "  stow-train --config configs/stage3_test.json --data book.txt --ranks 2\n"
    "  torchrun --nproc-per-node 2 --no-python stow-train --config ...\n"
    "  stow-train ... --server unix:/run/stowd/s --job mine --keep   # and "
    "again:"
    " goes on where it was";
constexpr char kFooter[] =
    "Exit codes: 0 done; 2 flags, configuration or data, also where they "
    "differ from the job's; 3 no server, or one of another version; 4 refused "
    "(job name in use, memory); 5 a rank or the server was lost, or a signal "
    "ended a rank; 6 the loss scale reached its minimum; 130 interrupted; 1 "
    "internal error.";

}  // namespace

ParsedOptions ParseOptions(int argc, char** argv) {
  Options o;
  CLI::App app(kDescription, "stow-train");
  app.footer(kFooter);
  // The last of a repeated flag counts, so that scripts can override.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_version_flag("--version", "stow-train 0.1.0");
  app.add_option("--config", o.config, "DeepSpeed JSON file")->required();
  app.add_option("--data", o.data, "text file; bytes are tokens")->required();
  app.add_option("--steps", o.steps,
                 "train until this many steps are committed, those of an "
                 "earlier run of the job included")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--ranks", o.ranks,
                 "start this many ranks on this host; absent: torchrun's "
                 "variables, else one rank")
      ->check(CLI::Range(1, 256));
  app.add_option("--out", o.out,
                 "folder for summary.json, monitors and weights; absent: none");
  app.add_option("--server", o.server,
                 "unix:/path or host:port of a stowd; absent: a private one");
  app.add_option("--job", o.job, "name of the job in the server");
  app.add_flag("--keep", o.keep,
               "leave the job in the server at the end, for another run");
  CLI::Option_group* checkpoints = app.add_option_group("checkpoints");
  checkpoints->add_option("--save", o.save,
                          "folder of checkpoints, below a --export-root of the "
                          "server; the last step is saved too");
  checkpoints
      ->add_option("--save-every", o.save_every,
                   "save every so many steps, while training goes on; 0: at "
                   "the end only")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 40))
      ->capture_default_str();
  checkpoints
      ->add_option("--save-keep", o.save_keep,
                   "checkpoints to leave in the folder; 0: all")
      ->check(CLI::Range(0, kCheckpointsKeptMax))
      ->capture_default_str();
  const CLI::Option* resume =
      checkpoints
          ->add_option(
              "--resume", o.resume,
              "begin from a checkpoint, on any number of ranks, if the "
              "server does not have the job: latest (of --save's "
              "folder, also without a value; if there is none, begin "
              "anew), a step of it, or a path")
          ->expected(0, 1);
  app.add_option("--exchange", o.exchange,
                 "auto, segments (ranks of one host) or c10d");
  app.add_option(
         "--device", o.device,
         "what ranks compute on: cpu; cuda or cuda:N (local rank r "
         "takes GPU N + r); auto (cuda where there is a GPU); twin (the "
         "CPU as if it were a GPU, for tests)")
      ->capture_default_str();
  CLI::Option_group* model = app.add_option_group("model");
  model->add_option("--layers", o.model.layers)
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  model->add_option("--width", o.model.width)
      ->check(CLI::Range(8, 65536))
      ->capture_default_str();
  model->add_option("--heads", o.model.heads)
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  model->add_option("--context", o.model.context, "tokens of a sample")
      ->check(CLI::Range(2, 65536))
      ->capture_default_str();
  model->add_flag("--tied", o.model.tied, "the head reads the token embedding");
  model->add_flag("--freeze-positions", o.model.freeze_positions,
                  "position embeddings are not trained");
  CLI::Option_group* train =
      app.add_option_group("training (fill \"auto\" in the configuration)");
  train->add_option("--micro-batch", o.micro_batch,
                    "samples of a rank in a micro step; default 4");
  train->add_option("--accumulation", o.accumulation,
                    "micro steps of a step; default 1");
  train->add_option("--train-batch", o.train_batch, "samples of a step");
  train->add_option("--lr", o.lr, "default 3e-4");
  train->add_option("--weight-decay", o.weight_decay,
                    "default 0.01; norms and biases have none");
  train->add_option("--warmup-steps", o.warmup_steps,
                    "default a fifth of --steps");
  train->add_option("--max-grad-norm", o.max_grad_norm, "default 1.0");
  CLI::Option* precision =
      train
          ->add_option("--precision", o.precision,
                       "fp16, bf16 or fp32, where the file says \"auto\"")
          ->check(CLI::IsMember({"fp16", "bf16", "fp32"}))
          ->capture_default_str();
  train->add_option("--seed", o.seed)->capture_default_str();
  CLI::Option_group* report = app.add_option_group("reporting");
  report
      ->add_option("--sample-bytes", o.sample_bytes,
                   "bytes of text to generate before and after; 0: none")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  report->add_flag("!--no-weights", o.save_weights,
                   "do not write model.safetensors");
  report->add_option("--trace", o.trace_file,
                     "write a JSON line for every step to this file");
  report
      ->add_option("--server-threads", o.server_threads,
                   "compute threads of a private stowd; 0: all cores")
      ->check(CLI::Range(0, 1024));
  report
      ->add_option("--rank-threads", o.rank_threads,
                   "LibTorch's threads in each rank; 0: cores / ranks")
      ->check(CLI::Range(0, 1024));
  CLI::Option* log_level =
      report->add_option("--log-level", o.log_level)
          ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
          ->capture_default_str();
  ParsedOptions parsed;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    parsed.exit_code = app.exit(error) == 0 ? 0 : 2;
    return parsed;
  }
  // CLI11 gives an option without its value that of a flag.
  if (resume->count() > 0 && (o.resume.empty() || o.resume == "true")) {
    o.resume = "latest";
  }
  if (o.model.width % o.model.heads != 0) {
    std::fprintf(
        stderr, "stow-train: --width %ld is not a multiple of --heads %ld\n",
        static_cast<long>(o.model.width), static_cast<long>(o.model.heads));
    parsed.exit_code = 2;
    return parsed;
  }
  o.precision_set = precision->count() > 0;
  o.log_level_set = log_level->count() > 0;
  parsed.options = std::move(o);
  return parsed;
}

engine::config::TrainerValues MakeTrainerValues(const Options& options,
                                                int world_size) {
  using engine::config::TrainerValue;
  engine::config::TrainerValues values;
  values.world_size = world_size;
  const std::int64_t accumulation = options.accumulation.value_or(1);
  std::int64_t micro_batch = options.micro_batch.value_or(4);
  if (options.train_batch) {
    values.train_batch_size = {*options.train_batch, true};
    // What --train-batch leaves for one rank's micro step; whether it comes out
    // even is the configuration's to check.
    if (!options.micro_batch) {
      micro_batch = std::max<std::int64_t>(
          1, *options.train_batch / (world_size * accumulation));
    }
  }
  values.micro_batch = {micro_batch, options.micro_batch.has_value()};
  values.gradient_accumulation_steps = {accumulation,
                                        options.accumulation.has_value()};
  values.lr = {options.lr.value_or(3e-4), options.lr.has_value()};
  values.betas = TrainerValue<engine::schedule::Betas>(
      engine::schedule::Betas{0.9, 0.999});
  values.eps = {1e-8, false};
  values.weight_decay = {options.weight_decay.value_or(0.01),
                         options.weight_decay.has_value()};
  values.warmup_num_steps = {options.warmup_steps.value_or(
                                 std::max<std::int64_t>(1, options.steps / 5)),
                             options.warmup_steps.has_value()};
  values.total_num_steps = {options.steps, false};
  values.max_grad_norm = {options.max_grad_norm.value_or(1.0),
                          options.max_grad_norm.has_value()};
  values.hidden_size = {options.model.width, false};
  values.precision = {ParseDtype(options.precision).value(),
                      options.precision_set};
  return values;
}

}  // namespace stowage::gpt
