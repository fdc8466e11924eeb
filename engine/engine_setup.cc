// Engine: from options to an attached job.

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/environment.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/checkpoint/client_state.h"
#include "engine/device/host_allocator.h"
#include "engine/engine.h"
#include "engine/exchange/segment_exchange.h"
#include "engine/torch_status.h"

namespace stowage::engine {
namespace {

constexpr std::chrono::milliseconds kRendezvousTimeout{60000};
constexpr char kFrozenGroup[] = "frozen";

std::string RandomHex(int bytes) {
  std::random_device device;
  std::string text;
  for (int i = 0; i < bytes; ++i) {
    absl::StrAppend(&text, absl::Hex(device() & 0xffU, absl::kZeroPad2));
  }
  return text;
}

// splitmix64: neighbouring units get unrelated streams.
std::uint64_t Mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15ULL;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineOptions options) {
  std::unique_ptr<Engine> engine(new Engine(std::move(options)));
  STOWAGE_RETURN_IF_ERROR(config::CheckSupported(engine->config()));
  STOWAGE_RETURN_IF_ERROR(engine->CheckExchange());
  STOWAGE_RETURN_IF_ERROR(engine->MakeSchedule());
  STOWAGE_RETURN_IF_ERROR(engine->Connect());
  return engine;
}

Engine::~Engine() = default;

absl::Status Engine::CheckExchange() const {
  const config::Config& config = this->config();
  std::string exchange = options_.exchange;
  if (exchange.empty()) {
    exchange = config::ExchangeKindName(config.stowage.exchange);
  }
  if (exchange != "auto" && exchange != "segments" && exchange != "c10d") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--exchange \"", exchange, "\": expected auto, segments or c10d"));
  }
  if (exchange == "c10d") {
    return absl::UnimplementedError(
        "exchange c10d is not built yet; use --exchange segments, for ranks of "
        "one host");
  }
  if (options_.launch.world_size != options_.launch.local_world_size) {
    return absl::UnimplementedError(absl::StrCat(
        "WORLD_SIZE=", options_.launch.world_size,
        " but LOCAL_WORLD_SIZE=", options_.launch.local_world_size,
        ": ranks on several hosts need the c10d exchange, which is not built "
        "yet; start all ranks on one host"));
  }
  const config::ZeroOptimization& zero = config.zero_optimization;
  if (zero.stage == 0 ||
      zero.offload_optimizer.device == config::OffloadDevice::kNone) {
    return absl::UnimplementedError(absl::StrCat(
        "zero_optimization.stage ", zero.stage,
        " with offload_optimizer.device ",
        config::OffloadDeviceName(zero.offload_optimizer.device),
        " needs the c10d exchange, which is not built yet; use stage 1, 2 or 3 "
        "with offload_optimizer.device cpu"));
  }
  return absl::OkStatus();
}

absl::Status Engine::MakeSchedule() {
  const config::Config& config = this->config();
  std::vector<schedule::GroupBase> bases(
      options_.groups.size(),
      schedule::GroupBase{config.optimizer.lr, config.optimizer.betas});
  STOWAGE_ASSIGN_OR_RETURN(schedule_,
                           schedule::Schedule::Create(config.scheduler, bases));
  precision::LossScalerOptions options;
  if (config.precision == Dtype::kFp16) {
    const config::Fp16& fp16 = config.fp16;
    if (fp16.loss_scale > 0) {
      options.init_scale = fp16.loss_scale;
    } else {
      options.kind = precision::LossScaleKind::kDynamic;
      options.init_scale =
          std::ldexp(1.0, static_cast<int>(fp16.initial_scale_power));
      options.scale_window = fp16.loss_scale_window;
      options.hysteresis = fp16.hysteresis;
      options.consecutive_hysteresis = fp16.consecutive_hysteresis;
      options.min_scale = fp16.min_loss_scale;
    }
  }
  STOWAGE_ASSIGN_OR_RETURN(scaler_, precision::LossScaler::Create(options));
  return absl::OkStatus();
}

// A private server may use what the file names: its folders are made, as
// DeepSpeed makes them, and its memory is the budget.
absl::Status Engine::AddStorageArguments(
    std::vector<std::string>& arguments) const {
  const StorageSpec storage = config::ToStorageSpec(config(), 1);
  if (storage.memory_budget_bytes > 0) {
    arguments.insert(
        arguments.end(),
        {"--memory-limit", absl::StrCat(storage.memory_budget_bytes)});
  }
  for (const std::string& path : storage.nvme_paths) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) {
      return absl::FailedPreconditionError(absl::StrCat(
          "nvme_path \"", path, "\": make the folder: ", error.message()));
    }
    arguments.insert(arguments.end(), {"--nvme-root", path});
  }
  return absl::OkStatus();
}

absl::Status Engine::Connect() {
  STOWAGE_ASSIGN_OR_RETURN(
      rendezvous_, Rendezvous::Create(options_.launch, kRendezvousTimeout));
  server_address_ = options_.server;
  if (server_address_.empty()) server_address_ = config().stowage.server;
  if (server_address_.empty()) {
    server_address_ = Environment("STOWAGE_SERVER");
  }
  private_server_known_ = server_address_.empty();
  job_name_ = options_.job;
  if (job_name_.empty()) job_name_ = config().stowage.job;
  if (options_.launch.rank == 0) {
    std::string error;
    if (private_server_known_) {
      client::PrivateServer::Options server;
      server.shm_dir = config().stowage.shm_dir;
      server.threads = options_.server_threads > 0
                           ? options_.server_threads
                           : static_cast<int>(config().stowage.server_threads);
      if (absl::Status added = AddStorageArguments(server.extra_args);
          !added.ok()) {
        rendezvous_->Set("server", "!").IgnoreError();
        return added;
      }
      absl::StatusOr<std::unique_ptr<client::PrivateServer>> started =
          client::PrivateServer::Start(server);
      if (!started.ok()) {
        // The others must not wait for an address that never comes.
        rendezvous_->Set("server", "!").IgnoreError();
        return started.status();
      }
      private_server_ = *std::move(started);
      server_address_ = private_server_->address();
      log::Info("private server", {{"address", server_address_},
                                   {"pid", private_server_->pid()}});
    }
    nonce_ = RandomHex(16);
    if (job_name_.empty())
      job_name_ = absl::StrCat("run-", nonce_.substr(0, 8));
    STOWAGE_RETURN_IF_ERROR(rendezvous_->Set("nonce", nonce_));
    STOWAGE_RETURN_IF_ERROR(rendezvous_->Set("job", job_name_));
    STOWAGE_RETURN_IF_ERROR(rendezvous_->Set("server", server_address_));
  } else {
    STOWAGE_ASSIGN_OR_RETURN(server_address_, rendezvous_->Get("server"));
    if (server_address_ == "!") {
      return absl::UnavailableError("rank 0 could not start a private stowd");
    }
    STOWAGE_ASSIGN_OR_RETURN(nonce_, rendezvous_->Get("nonce"));
    STOWAGE_ASSIGN_OR_RETURN(job_name_, rendezvous_->Get("job"));
  }
  client::ConnectOptions connect;
  STOWAGE_ASSIGN_OR_RETURN(
      client_, client::OffloadClient::Connect(server_address_, connect));
  return absl::OkStatus();
}

std::uint64_t Engine::UnitSeed(std::uint64_t seed, int unit) {
  return Mix(seed * 0x100000001b3ULL + static_cast<std::uint64_t>(unit)) >> 1;
}

int Engine::RegisterUnit(const std::string& name,
                         const std::function<torch::nn::Module*()>& make) {
  const int unit = static_cast<int>(units_.size());
  torch::manual_seed(UnitSeed(options_.seed, unit));
  torch::nn::Module* module = make();
  std::map<const c10::TensorImpl*, std::int32_t> owners;
  for (std::size_t u = 0; u < units_.size(); ++u) {
    for (const at::Tensor& param : units_[u].params) {
      owners[param.unsafeGetTensorImpl()] = static_cast<std::int32_t>(u);
    }
  }
  UnitRecord record;
  record.name = name;
  for (const auto& item : module->named_parameters(/*recurse=*/true)) {
    at::Tensor parameter = item.value();
    if (const auto owner = owners.find(parameter.unsafeGetTensorImpl());
        owner != owners.end()) {
      if (owner->second != unit) record.borrows.push_back(owner->second);
      continue;
    }
    owners[parameter.unsafeGetTensorImpl()] = unit;
    const std::string full_name = absl::StrCat(name, ".", item.key());
    int group = -1;
    if (parameter.requires_grad()) {
      group = options_.group_of ? options_.group_of(full_name, parameter) : 0;
    }
    record.param_names.push_back(full_name);
    record.group.push_back(group);
    // Drops the values: one element stands for all until Start().
    parameter.set_data(at::zeros({1}).expand(parameter.sizes()));
    record.params.push_back(parameter);
  }
  units_.push_back(std::move(record));
  ReturnFreeMemory();
  return unit;
}

std::vector<std::string> Engine::ParamNames(int unit) const {
  return units_[static_cast<std::size_t>(unit)].param_names;
}

JobSpec Engine::MakeJobSpec() const {
  JobSpec job;
  job.name = job_name_;
  job.layout.param_dtype = config().precision;
  for (const GroupOptions& group : options_.groups) {
    job.layout.groups.push_back({group.name, false});
  }
  bool any_frozen = false;
  for (const UnitRecord& unit : units_) {
    UnitSpec spec;
    spec.name = unit.name;
    for (std::size_t p = 0; p < unit.params.size(); ++p) {
      const bool frozen = unit.group[p] < 0;
      any_frozen = any_frozen || frozen;
      spec.params.push_back(
          {unit.param_names[p], unit.params[p].sizes().vec(),
           frozen ? static_cast<std::int32_t>(options_.groups.size())
                  : unit.group[p]});
    }
    job.layout.units.push_back(std::move(spec));
  }
  if (any_frozen) job.layout.groups.push_back({kFrozenGroup, true});
  job.optimizer.decoupled_weight_decay =
      config().optimizer.decoupled_weight_decay;
  job.optimizer.bias_correction = config().optimizer.bias_correction;
  job.durability = config().stowage.durability == config::Durability::kPower
                       ? Durability::kPower
                       : Durability::kMemory;
  job.storage =
      config::ToStorageSpec(config(), options_.launch.local_world_size);
  return job;
}

absl::Status Engine::Start() {
  const auto begin = std::chrono::steady_clock::now();
  const config::Config& config = this->config();
  RunSpec run;
  run.nonce = nonce_;
  run.world_size = options_.launch.world_size;
  run.local_ranks = options_.launch.local_world_size;
  run.micro_steps =
      static_cast<std::int32_t>(config.gradient_accumulation_steps);
  STOWAGE_ASSIGN_OR_RETURN(
      session_, client_->Attach(MakeJobSpec(), run, options_.launch.local_rank,
                                client::SessionOptions{}));
  const AttachInfo& info = session_->info();
  resumed_ = info.initialized;
  if (!info.initialized) {
    STOWAGE_RETURN_IF_ERROR(BringInitialValues());
  }
  exchange_ =
      std::make_unique<SegmentExchange>(session_.get(), run.micro_steps);
  const config::ZeroOptimization& zero = config.zero_optimization;
  CoordinatorOptions options;
  options.stage = zero.stage;
  options.limits = {zero.stage3_max_live_parameters,
                    zero.stage3_max_reuse_distance,
                    zero.stage3_prefetch_bucket_size};
  options.persistence_threshold_elems = zero.stage3_param_persistence_threshold;
  options.model_persistence_threshold_elems =
      zero.stage3_model_persistence_threshold;
  options.log_trace = zero.log_trace_cache_warnings;
  options.auto_cast = config.fp16.auto_cast && config.precision == Dtype::kFp16;
  if (info.params_leased) {
    // A unit is leased as a whole, and what is leased stays in the server's
    // memory: nothing may be kept for good, nor more than the server allows.
    options.persistence_threshold_elems = 0;
    options.limits.max_live_elems =
        std::min(options.limits.max_live_elems, info.leased_elems_max);
  }
  std::vector<Coordinator::Unit> units;
  std::vector<std::vector<at::Tensor>> params;
  for (const UnitRecord& unit : units_) {
    units.push_back({unit.name, unit.params, unit.borrows});
    params.push_back(unit.params);
  }
  const absl::Status made = CatchStatus("engine start", [&] {
    coordinator_ = std::make_unique<Coordinator>(
        options, &session_->layout(), exchange_.get(), std::move(units));
    collector_ = std::make_unique<GradientCollector>(
        &session_->layout(), exchange_.get(), std::move(params),
        /*keep_gradients=*/zero.stage == 1);
  });
  STOWAGE_RETURN_IF_ERROR(made);
  if (const std::int64_t need = coordinator_->live_plan().limit_elems();
      info.params_leased && need > info.leased_elems_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the largest unit with what it borrows has ", need,
        " elements, the server's memory for parameters allows a rank ",
        info.leased_elems_max,
        " under lease; raise stowage.memory_budget or max_in_cpu"));
  }
  step_ = info.step;
  applied_steps_ = info.applied_steps;
  coordinator_->SetStep(step_);
  STOWAGE_RETURN_IF_ERROR(RestoreClientState(info));
  STOWAGE_RETURN_IF_ERROR(MakeReporter());
  start_seconds_ =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
          .count();
  if (options_.launch.rank == 0) {
    log::Info(resumed_ ? "job resumed" : "job started",
              {{"job", job_name_},
               {"server", server_address_},
               {"exchange", std::string(exchange_->name())},
               {"epoch", info.epoch},
               {"step", step_},
               {"parameters", session_->layout().parameter_count()},
               {"stage", zero.stage},
               {"precision", std::string(DtypeName(config.precision))}});
  }
  return absl::OkStatus();
}

absl::Status Engine::BringInitialValues() {
  const int ranks = options_.launch.local_world_size;
  for (int u = options_.launch.local_rank; u < static_cast<int>(units_.size());
       u += ranks) {
    const UnitRecord& unit = units_[static_cast<std::size_t>(u)];
    const absl::Status status = CatchStatus("initial values", [&] {
      torch::manual_seed(UnitSeed(options_.seed, u));
      const std::shared_ptr<torch::nn::Module> module = unit.make();
      const auto parameters = module->named_parameters(/*recurse=*/true);
      for (const Layout::Param& param :
           session_->layout().units()[static_cast<std::size_t>(u)].params) {
        const std::string key = param.name.substr(unit.name.size() + 1);
        const at::Tensor values =
            parameters[key].detach().to(at::kFloat).contiguous();
        ThrowIfError(
            session_->PutState(u, param.begin_elems,
                               {values.const_data_ptr<float>(),
                                static_cast<std::size_t>(values.numel())}));
      }
    });
    ReturnFreeMemory();
    if (!status.ok()) {
      return absl::Status(
          status.code(),
          absl::StrCat("unit \"", unit.name, "\": ", status.message()));
    }
  }
  return session_->FinishInitialization();
}

absl::Status Engine::RestoreClientState(const AttachInfo& info) {
  if (info.client_state.empty()) return absl::OkStatus();
  STOWAGE_ASSIGN_OR_RETURN(ClientState state,
                           ClientState::Parse(info.client_state));
  STOWAGE_RETURN_IF_ERROR(scaler_.Restore(state.loss_scaler));
  skipped_steps_ = state.skipped_steps;
  global_samples_ = state.global_samples;
  user_state_ = state.user;
  bool known = !state.trace.empty();
  for (const std::int32_t unit : state.trace) {
    known = known && unit >= 0 && unit < session_->layout().unit_count();
  }
  if (known) {
    coordinator_->RestoreTrace(state.trace);
    STOWAGE_RETURN_IF_ERROR(
        exchange_->SetForwardOrder(coordinator_->ForwardOrder(), state.trace));
    order_sent_ = true;
  }
  return absl::OkStatus();
}

}  // namespace stowage::engine
