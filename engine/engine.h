// The facade of the engine: ZeRO training with state in stowd.
//
//   auto engine = Engine::Create(options);            // config, server
//   auto block = engine->AddUnit<BlockImpl>("block.0", make_block);  // ...
//   engine->Start();                                  // opens the job
//   for (;;) {
//     for (each micro step) {
//       loss = engine->Forward([&] { return model(batch); });
//       engine->Backward(*loss);
//     }
//     result = engine->Step(user_state);
//   }
//   engine->Close(keep);
//
// Step() waits for the verdict on the gradients, never for the optimizer: the
// next forward waits for each unit's new version as it comes to it.
//
// Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training
//   Trillion Parameter Models", section "ZeRO-DP"; the configuration's keys:
//   docs/configuration.md.

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/offload_client.h"
#include "client/private_server.h"
#include "engine/config/config.h"
#include "engine/device/device.h"
#include "engine/device/torch_device.h"
#include "engine/exchange/exchange.h"
#include "engine/exchange/node_alignment.h"
#include "engine/exchange/rendezvous.h"
#include "engine/exchange/shard_store.h"
#include "engine/monitor/step_reporter.h"
#include "engine/plan/shard_plan.h"
#include "engine/precision/loss_scaler.h"
#include "engine/schedule/schedule.h"
#include "engine/zero/coordinator.h"
#include "engine/zero/gradient_collector.h"
#include "engine/zero/unit_module.h"

namespace stowage::engine {

class Collectives;

// A parameter group: what differs from the configuration's optimizer.params.
struct GroupOptions {
  std::string name = "default";
  std::optional<double> weight_decay;
};

struct EngineOptions {
  config::Resolution resolution;
  LaunchInfo launch;
  std::string server;    // empty: stowage.server of the file, STOWAGE_SERVER,
                         // else a private stowd
  std::string job;       // empty: stowage.job of the file, else a fresh name
  std::string exchange;  // empty: as the file says; auto, segments or c10d
  // What the ranks compute on; OpenDevice() says what it may be.
  std::string device = "cpu";
  std::uint64_t seed = 0;
  std::vector<GroupOptions> groups{1};
  // Index in `groups` for a trainable parameter. Absent: 0.
  std::function<int(const std::string& name, const at::Tensor& parameter)>
      group_of;
  std::string monitor_root;            // where relative monitor paths start
  std::int64_t tokens_per_sample = 0;  // for the monitors; 0: unknown
  // Where the state of a job comes from that the server does not have yet. Its
  // folder is absolute.
  LoadSpec load;
  // Folders that a private server may write and read checkpoints in.
  std::vector<std::string> export_roots;
  // Overrides for tests and benches.
  int server_threads = 0;
};

struct StepResult {
  std::int64_t step = 0;     // committed steps after this one
  double loss = 0;           // mean over all micro-batches of all ranks
  double gradient_norm = 0;  // global, before clipping; inf on overflow
  double lr = 0;             // of the first group, used in this step
  double loss_scale = 1;     // used in this step
  bool skipped = false;
  std::string first_nonfinite_param;
  TrustRatios trust_ratios;  // of the step before this one
  Compression compression;   // likewise
  std::int64_t global_samples = 0;
  bool stop_requested = false;  // by any rank: all ranks see it together
  double forward_ms = 0;        // sums over the micro steps
  double backward_ms = 0;
  double step_ms = 0;
  double wait_params_ms = 0;   // of it, waiting for versions
  double wait_prepare_ms = 0;  // of step_ms, waiting for landing and peers
  double wait_ranks_ms = 0;    // of wait_prepare_ms, waiting for other ranks
  double wait_disk_ms = 0;     // of the waits, while the server's disks worked
  double gradients_ms = 0;     // of backward_ms, handing gradients over
};

// One rank's engine. Thread safety: one thread; RequestStop() from anywhere,
//   signal handlers included.
// Errors: of Forward, Backward and Step: the session's (fit to be shown), or
//   kInternal with what LibTorch said. After an error the engine can only be
//   closed.
class Engine {
 public:
  // Reads nothing but `options`: joins the rendezvous, finds or starts the
  // server, connects. Blocks: for peers and server, at most a minute.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineOptions options);

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  // Makes a unit of what `make` returns. The parameters' values are dropped at
  // once; `make` runs again in Start() on the rank that brings this unit's
  // initial values, with the same seed, so no rank ever holds the model whole.
  // A parameter that another unit already owns is tied: this unit borrows it.
  // Parameters that require no gradient are frozen.
  template <typename M>
  UnitModule<M> AddUnit(const std::string& name,
                        std::function<std::shared_ptr<M>()> make) {
    std::shared_ptr<M> module;
    const int unit = RegisterUnit(name, [&]() -> torch::nn::Module* {
      module = make();
      return module.get();
    });
    units_[static_cast<std::size_t>(unit)].make =
        [make]() -> std::shared_ptr<torch::nn::Module> { return make(); };
    return UnitModule<M>(&coordinator_, unit, module);
  }

  // Opens the job and attaches; brings initial values if it is new. Afterwards
  // step() says where training stands and user_state() what Step() was last
  // given.
  absl::Status Start();

  // Runs a forward (or part of one) and returns its tensor.
  absl::StatusOr<at::Tensor> Forward(const std::function<at::Tensor()>& body);
  // Runs `body` without gradients (evaluation, generation).
  absl::Status Evaluate(const std::function<void()>& body);
  // One backward per micro step; `loss` is a scalar, not divided by the number
  // of micro steps (the optimizer's pass divides once).
  absl::Status Backward(const at::Tensor& loss);
  // Ends a step after gradient_accumulation_steps backwards. `user_state` is
  // kept with the step (at most about 60 KiB).
  absl::StatusOr<StepResult> Step(const std::string& user_state);

  // The seed of a unit's initial values.
  static std::uint64_t UnitSeed(std::uint64_t seed, int unit);

  // Has the server write a checkpoint of the step that was last committed to
  // `folder` (absolute), beside the training. All ranks may call it; rank 0
  // asks. With stage3_gather_16bit_weights_on_model_save it has the parameters
  // too, as Hugging Face's loaders take them. `keep`: complete checkpoints to
  // leave in the folder, 0: all.
  // Returns: at once, when the server has taken it down; SaveStatus() tells how
  //   it goes.
  // Errors: kUnavailable while an earlier save still runs; the server's.
  absl::Status Save(const std::string& folder, std::int32_t keep);
  // Rank 0 only.
  absl::StatusOr<SaveInfo> SaveStatus();
  // Blocks: until no save runs, or `limit`. Errors: kDeadlineExceeded.
  absl::StatusOr<SaveInfo> WaitForSave(std::chrono::milliseconds limit);

  // Leaves the job in order; it ends with its last rank unless `keep`. Rank 0
  // waits for a save that runs.
  absl::Status Close(bool keep);

  // Asks all ranks to stop after the same step (StepResult::stop_requested).
  void RequestStop() { stop_requested_ = true; }

  // The unit's fp32 master or moments (trainable), for export and tests: one
  // parameter in declaration order.
  absl::StatusOr<at::Tensor> ReadParam(int unit, int param, StateKind kind);

  const config::Config& config() const { return options_.resolution.config; }
  // Every key with its value, as nested JSON.
  std::string config_resolved_json() const {
    return config::ResolvedJson(options_.resolution);
  }
  const LaunchInfo& launch() const { return options_.launch; }
  // The model's, whoever holds how much of it.
  const Layout& layout() const { return layout_; }
  // No server: all state is on the ranks.
  bool has_server() const { return needs_server_; }
  const Exchange& exchange() const { return *exchange_; }
  // Where the model's inputs are to be.
  at::Device device() const { return TorchDevice(device_.get()); }
  // "cpu", or what Device::name() says.
  std::string_view device_name() const {
    return device_ == nullptr ? "cpu" : device_->name();
  }
  // Why the exchange is what it is, in words.
  const std::string& exchange_reason() const { return exchange_reason_; }
  // Shows the unit's parameters as ranks compute with them (a flat buffer in
  // the layout's type). Where the exchange is collective, all ranks call it.
  absl::Status ViewParams(
      int unit,
      const std::function<absl::Status(std::span<const std::byte>)>& view);
  const std::string& server_address() const { return server_address_; }
  const std::string& job_name() const { return job_name_; }
  bool server_is_private() const { return private_server_known_; }
  bool resumed() const { return resumed_; }
  // The checkpoint that this run began from; empty: none.
  const std::string& loaded_from() const {
    return exchange_->info().loaded_from;
  }
  std::int64_t step() const { return step_; }
  std::int64_t global_samples() const { return global_samples_; }
  const std::string& user_state() const { return user_state_; }
  const Coordinator& coordinator() const { return *coordinator_; }
  Coordinator& coordinator() { return *coordinator_; }
  const GradientCollector& collector() const { return *collector_; }
  client::OffloadClient& offload_client() { return *client_; }
  client::Session& session() { return *session_; }
  std::int64_t skipped_steps() const { return skipped_steps_; }
  double loss_scale() const { return scaler_.scale(); }
  double start_seconds() const { return start_seconds_; }
  // Names, fully qualified, of a unit's parameters in declaration order.
  std::vector<std::string> ParamNames(int unit) const;

 private:
  struct UnitRecord {
    std::string name;
    std::vector<std::string> param_names;
    std::vector<at::Tensor> params;
    std::vector<int> group;  // -1: frozen
    std::vector<std::int32_t> borrows;
    std::function<std::shared_ptr<torch::nn::Module>()> make;
  };

  explicit Engine(EngineOptions options) : options_(std::move(options)) {}
  int RegisterUnit(const std::string& name,
                   const std::function<torch::nn::Module*()>& make);
  absl::Status Connect();
  absl::Status AddStorageArguments(std::vector<std::string>& arguments) const;
  absl::Status ChooseDevice();
  absl::Status ChooseExchange();
  absl::Status MakeExchange();
  absl::Status MakeC10dExchange();
  // Stage 3, parameters not offloaded: a rank's part of them stays with it.
  bool KeepsShards() const;
  std::unique_ptr<ShardStore> MakeServerShards(const OptimizerSpec& optimizer,
                                               plan::NodePart node,
                                               Collectives* group);
  absl::Status AlignNodes();
  absl::Status FollowOtherNodes(const NodePlan& plan);
  absl::Status TellHowStepEnded();
  absl::Status Explain(absl::Status status) const;
  absl::Status StartServer();
  absl::Status FindServers();
  RunSpec MakeRunSpec() const;
  JobSpec MakeJobSpec() const;
  absl::Status BringInitialValues();
  absl::Status RestoreClientState(const AttachInfo& info);
  // kUnimplemented where no server, or more than one, holds the state.
  absl::Status CheckCheckpoints() const;
  absl::Status CheckLoaded(const AttachInfo& info) const;
  // Draws of a micro step depend on seed, step and micro-batch alone.
  void SeedMicroStep();
  absl::Status MakeSchedule();
  ApplyArgs MakeApplyArgs(const Verdict& verdict,
                          const precision::LossScaleUpdate& update,
                          const std::string& user_state, StepResult* result);
  absl::StatusOr<StepResult> StepInner(const std::string& user_state);
  // engine_report.cc
  absl::Status MakeReporter();
  std::optional<monitor::TierBytes> Tiers();
  void Report(const StepResult& result);

  EngineOptions options_;
  std::unique_ptr<Device> device_;  // null: the host
  std::unique_ptr<Rendezvous> rendezvous_;
  std::unique_ptr<client::PrivateServer> private_server_;
  bool private_server_known_ = false;
  std::string server_address_;
  std::string job_name_;
  std::string nonce_;
  bool use_c10d_ = false;
  bool needs_server_ = true;
  std::string exchange_reason_;
  // Ranks that share this rank's server, in rank order.
  int group_first_ = 0;
  int group_ranks_ = 1;
  bool aligned_source_ = false;  // other nodes follow this one's last step
  Layout layout_;
  plan::ShardPlan shard_plan_;
  std::unique_ptr<client::OffloadClient> client_;
  std::vector<UnitRecord> units_;
  std::unique_ptr<client::Session> session_;
  std::unique_ptr<Exchange> exchange_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<GradientCollector> collector_;
  schedule::Schedule schedule_;
  precision::LossScaler scaler_;
  monitor::StepReporter reporter_;
  std::chrono::steady_clock::time_point last_report_;
  // The server's, cumulative, as of the last verdict; negative: none yet.
  double disk_wait_seconds_ = -1;
  double micro_forward_ms_ = 0;  // of the current micro step

  bool resumed_ = false;
  std::int64_t step_ = 0;
  std::int64_t applied_steps_ = 0;
  std::int64_t skipped_steps_ = 0;
  std::int64_t global_samples_ = 0;
  std::string user_state_;
  bool order_sent_ = false;
  std::uint64_t random_seed_ = 0;   // of draws in forwards
  std::int64_t seeded_micro_ = -1;  // counted from the job's begin
  std::vector<double> micro_losses_;
  double forward_ms_ = 0;
  double backward_ms_ = 0;
  double start_seconds_ = 0;
  std::atomic<bool> stop_requested_{false};
};

}  // namespace stowage::engine
