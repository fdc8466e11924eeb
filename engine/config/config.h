// The settings of one training job, read from a DeepSpeed JSON file.
//
//   ReadConfigFile() -> Document            text with comments -> tree
//   Resolve()        -> Resolution          tree + trainer's values -> Config
//   CheckSupported()                        what this build cannot do yet
//
// Every key of the file has its effect, or a warning or an error names it.
// Structs keep DeepSpeed's key names; sizes count elements unless the name says
// _bytes. The table of all keys is engine/config/schema.h, what each does here
// docs/configuration.md.
//
// Thread safety: everything here is a value or a pure function.
// Source: DeepSpeed 0.19.8's configuration, as its documentation and
// deepspeed/runtime/config.py state it; "auto" as transformers 5.23 fills it.

#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/dtype.h"
#include "common/job_spec.h"
#include "common/storage_spec.h"
#include "engine/config/document.h"
#include "engine/schedule/schedule.h"

namespace stowage::engine::config {

enum class OffloadDevice { kNone, kCpu, kNvme };
const char* OffloadDeviceName(OffloadDevice device);

struct OffloadParam {
  OffloadDevice device = OffloadDevice::kNone;
  std::string nvme_path;
  std::int64_t buffer_count = 5;
  std::int64_t buffer_size = 100'000'000;   // elements per buffer
  std::int64_t max_in_cpu = 1'000'000'000;  // elements of this rank
  bool pin_memory = true;
};

struct OffloadOptimizer {
  OffloadDevice device = OffloadDevice::kNone;
  std::string nvme_path;
  std::int64_t buffer_count = 4;
  bool pin_memory = true;
  bool pipeline_read = false;
  bool pipeline_write = false;
  bool fast_init = false;
  double ratio = 1.0;  // share of sub-groups on the CPU
};

// All sizes in elements, counted over whole (gathered) parameters.
struct ZeroOptimization {
  int stage = 0;
  bool overlap_comm = true;
  bool contiguous_gradients = true;
  bool reduce_scatter = true;
  bool allgather_partitions = true;
  std::int64_t reduce_bucket_size = 500'000'000;
  std::int64_t allgather_bucket_size = 500'000'000;
  OffloadParam offload_param;
  OffloadOptimizer offload_optimizer;
  std::int64_t sub_group_size = 1'000'000'000;
  std::int64_t stage3_prefetch_bucket_size = 50'000'000;  // 0: no prefetch
  std::int64_t stage3_param_persistence_threshold = 100'000;
  std::int64_t stage3_model_persistence_threshold = INT64_MAX;
  std::int64_t stage3_max_live_parameters = 1'000'000'000;
  std::int64_t stage3_max_reuse_distance = 1'000'000'000;
  bool stage3_gather_16bit_weights_on_model_save = false;
  bool ignore_unused_parameters = true;
  bool log_trace_cache_warnings = false;
};

struct Fp16 {
  bool enabled = false;
  bool auto_cast = false;  // floating inputs of a unit are cast to fp16
  double loss_scale = 0;   // 0: dynamic
  std::int64_t initial_scale_power = 16;
  std::int64_t loss_scale_window = 1000;  // steps
  std::int64_t hysteresis = 2;
  bool consecutive_hysteresis = false;
  double min_loss_scale = 1;
};

struct Bf16 {
  bool enabled = false;
};

enum class OptimizerType {
  kNone,
  kAdam,
  kAdamW,
  kLamb,
  kOneBitAdam,
  kOneBitLamb
};
const char* OptimizerTypeName(OptimizerType type);
bool IsOneBit(OptimizerType type);

struct Optimizer {
  // kNone: the file has no `optimizer`; the trainer's own settings hold (lr and
  // so on still carry the trainer's values or the defaults).
  OptimizerType type = OptimizerType::kNone;
  double lr = 1e-3;
  schedule::Betas betas;
  double eps = 1e-8;
  double weight_decay = 0.0;
  bool bias_correction = true;
  bool torch_adam = false;
  bool adam_w_mode = true;  // as given
  // What counts: decay is decoupled (AdamW). True for type Adam too unless
  // adam_w_mode is false; always for AdamW.
  bool decoupled_weight_decay = true;
  // Lamb and the 1-bit optimizers.
  double max_coeff = 10.0;
  double min_coeff = 0.01;
  bool eps_inside_sqrt = false;
  std::int64_t freeze_step = 100'000;  // steps
  double coeff_beta = 0.9;
  double factor_max = 4.0;
  double factor_min = 0.5;
  double factor_threshold = 0.1;
};

// csv_monitor, tensorboard and stowage.jsonl_monitor.
struct MonitorBlock {
  bool enabled = false;
  std::string output_path;  // empty: the working directory
  std::string job_name = "DeepSpeedJobName";
};

struct Wandb {
  bool enabled = false;
  std::string group;  // empty: none
  std::string team;   // empty: wandb's default entity
  std::string project = "deepspeed";
};

struct Aio {
  std::int64_t block_size = 1'048'576;  // bytes
  std::int64_t queue_depth = 8;         // requests
  std::int64_t intra_op_parallelism = 1;
  bool single_submit = false;
  bool overlap_events = true;
};

struct Checkpoint {
  std::string tag_validation = "Warn";  // "Ignore", "Warn", "Fail"
  bool load_universal = false;
  bool use_node_local_storage = false;
};

enum class Durability { kMemory, kProcess, kPower };
const char* DurabilityName(Durability durability);
enum class ExchangeKind { kAuto, kSegments, kC10d };
const char* ExchangeKindName(ExchangeKind kind);

// The one block of our own.
struct Stowage {
  std::string server;  // "unix:/path", "host:port"; empty: a private server
  std::string job;     // empty: the trainer chooses
  Durability durability = Durability::kMemory;
  std::int64_t memory_budget_bytes = 0;  // 0: the server's own limit
  std::int64_t nvme_budget_bytes = 0;    // 0: what the file system has
  std::int64_t kept_steps = 1;           // committed steps kept on NVMe
  std::vector<std::string> nvme_paths;   // more folders beside nvme_path
  ExchangeKind exchange = ExchangeKind::kAuto;
  std::int64_t server_threads = 0;  // of a private server; 0: all cores
  std::string shm_dir;              // empty: the server's default
  MonitorBlock jsonl_monitor;
  std::string wandb_python = "python3";  // the interpreter that has wandb
  // Which of DeepSpeed's releases to follow where they differ.
  struct Compat {
    // What an absent `gradient_clipping` means: 1.0 (DeepSpeed 0.19.3 and
    // later) or 0.0 (before).
    double gradient_clipping_default = 1.0;
    // What an absent `steps_per_print` means: 0 (never, since 0.15.3) or 10.
    std::int64_t steps_per_print_default = 0;
    // A `warmup_num_steps` below 1 is an error (since 0.19.6) or becomes 2.
    bool warmup_below_one_is_two = false;
  } compat;
};

struct Config {
  // Batch triangle: train_batch_size = micro x accumulation x world_size.
  std::int64_t world_size = 1;
  std::int64_t train_batch_size = 0;                // samples a step, all ranks
  std::int64_t train_micro_batch_size_per_gpu = 0;  // samples
  std::int64_t gradient_accumulation_steps = 1;     // micro steps a step

  Dtype precision = Dtype::kFp32;  // what fp16.enabled and bf16.enabled say
  Fp16 fp16;
  Bf16 bf16;
  double gradient_clipping = 1.0;  // global L2 norm; 0: off
  Optimizer optimizer;
  schedule::ScheduleSpec scheduler;
  ZeroOptimization zero_optimization;
  Aio aio;
  Checkpoint checkpoint;

  MonitorBlock csv_monitor;
  MonitorBlock tensorboard;
  Wandb wandb;
  std::int64_t steps_per_print = 0;  // 0: never (absent or Infinity)
  bool wall_clock_breakdown = false;
  bool memory_breakdown = false;
  bool dump_state = false;
  Dtype communication_data_type = Dtype::kFp32;
  bool prescale_gradients = false;
  double gradient_predivide_factor = 1.0;
  bool zero_allow_untested_optimizer = false;
  std::string log_level;  // "debug", "info", "warning", "error"; empty: unset

  Stowage stowage;
};

// A value that a trainer brings, and whether its user set it (a flag) or it is
// the trainer's default. Only what was set can contradict the file.
template <typename T>
struct TrainerValue {
  std::optional<T> value;
  bool set_by_user = false;

  TrainerValue() = default;
  // Implicit: `values.lr = 3e-4` says all there is to say.
  // NOLINTNEXTLINE(google-explicit-constructor)
  TrainerValue(T v, bool by_user = false) : value(v), set_by_user(by_user) {}
};

// What fills "auto". Flags named in errors: those in the comments.
struct TrainerValues {
  std::int64_t world_size = 1;                             // --world-size
  TrainerValue<std::int64_t> micro_batch;                  // --micro-batch
  TrainerValue<std::int64_t> gradient_accumulation_steps;  // --accumulation
  TrainerValue<std::int64_t> train_batch_size;             // --train-batch
  TrainerValue<double> lr;                                 // --lr
  TrainerValue<schedule::Betas> betas;                     // --betas
  TrainerValue<double> eps;                                // --eps
  TrainerValue<double> weight_decay;                       // --weight-decay
  TrainerValue<std::int64_t> warmup_num_steps;             // --warmup-steps
  TrainerValue<std::int64_t> total_num_steps;              // --steps
  TrainerValue<double> max_grad_norm;                      // --max-grad-norm
  TrainerValue<std::int64_t> hidden_size;                  // --width
  TrainerValue<Dtype> precision;                           // --precision
};

// Where a value came from.
enum class Origin { kFile, kAuto, kTrainer, kDefault, kDerived };
const char* OriginName(Origin origin);

// One key with the value in force.
struct ResolvedKey {
  std::string path;   // "zero_optimization.stage"
  std::string value;  // as JSON: 3, "AdamW", [0.9,0.999], true, null
  Origin origin = Origin::kDefault;
  std::string source;  // "config.json:12:5", "--lr", "0.9 * width^2", ...
};

// A key that is in the file but has no effect, or other than one may expect.
struct Warning {
  std::string path;
  std::string message;   // without path and position
  std::string position;  // "config.json:12:5"; empty if the key is not there
  // "config.json:12:5: warning: zero_optimization.x: message".
  std::string ToString() const;
};

struct Resolution {
  Config config;
  std::vector<ResolvedKey> keys;  // every key that applies, in schema order
  std::vector<Warning> warnings;
};

// Resolves every key of `document`.
// Errors: kInvalidArgument: one or more lines, each with file:line:column, key
//   path, what was found and what is expected: an unknown key (with the nearest
//   known one), a wrong type, a value out of bounds, "auto" without a value
//   (with the flag to set), a batch that does not factor, values of the trainer
//   that contradict the file. kUnimplemented: a key known and refused.
absl::StatusOr<Resolution> Resolve(const Document& document,
                                   const TrainerValues& trainer);

// Refuses what is resolved but not available in this build, with the reason.
// Errors: kUnimplemented naming key and value.
absl::Status CheckSupported(const Config& config);

// The optimizer's state lives in a server. (Stage 0 keeps it on the ranks,
// whatever offload_optimizer says, unless the optimizer is a 1-bit one.)
bool OffloadsOptimizer(const Config& config);

// Why ranks cannot exchange through segments under this configuration, though
// they be on one host; empty if they can.
std::string WhyNotSegments(const Config& config);

// Where the job's state lies, as the server is told. max_in_cpu counts the
// elements of one rank, the server those of a node: `local_ranks` times as
// many.
StorageSpec ToStorageSpec(const Config& config, std::int32_t local_ranks);

// What the server, or a rank that keeps its own state, is told of the
// optimizer.
OptimizerSpec ToOptimizerSpec(const Optimizer& optimizer);

// The resolution as a table for people, or as one JSON object.
std::string ExplainText(const Resolution& resolution);
std::string ExplainJson(const Resolution& resolution);
// The values alone as nested JSON (`config_resolved` of a summary).
std::string ResolvedJson(const Resolution& resolution);

// The table of all keys as JSON, one object per key.
std::string DumpSchema();

}  // namespace stowage::engine::config
