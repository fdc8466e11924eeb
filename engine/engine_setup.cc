// Engine: from options to an attached job.

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <chrono>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/checkpoint/client_state.h"
#include "engine/device/host_allocator.h"
#include "engine/engine.h"
#include "engine/torch_status.h"

namespace stowage::engine {
namespace {

constexpr char kFrozenGroup[] = "frozen";

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
  STOWAGE_RETURN_IF_ERROR(engine->ChooseDevice());
  STOWAGE_RETURN_IF_ERROR(engine->ChooseExchange());
  STOWAGE_RETURN_IF_ERROR(engine->MakeSchedule());
  STOWAGE_RETURN_IF_ERROR(engine->Connect());
  return engine;
}

Engine::~Engine() = default;

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

void Engine::SeedMicroStep() {
  const std::int64_t micros = config().gradient_accumulation_steps;
  const std::int64_t micro =
      step_ * micros + static_cast<std::int64_t>(micro_losses_.size());
  if (micro == seeded_micro_) return;
  seeded_micro_ = micro;
  const auto batch = static_cast<std::uint64_t>(
      micro * options_.launch.world_size + options_.launch.rank);
  torch::manual_seed(Mix(Mix(random_seed_) ^ batch) >> 1);
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
  job.optimizer = config::ToOptimizerSpec(config().optimizer);
  job.durability = config().stowage.durability == config::Durability::kPower
                       ? Durability::kPower
                       : Durability::kMemory;
  job.storage = config::ToStorageSpec(config(), group_ranks_);
  return job;
}

absl::Status Engine::Start() {
  const auto begin = std::chrono::steady_clock::now();
  const config::Config& config = this->config();
  STOWAGE_RETURN_IF_ERROR(MakeExchange());
  const AttachInfo& info = exchange_->info();
  resumed_ = info.initialized;
  STOWAGE_RETURN_IF_ERROR(CheckLoaded(info));
  random_seed_ = options_.seed;
  if (!info.initialized) {
    STOWAGE_RETURN_IF_ERROR(BringInitialValues());
  }
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
  options.refresh_bucket_elems = zero.allgather_bucket_size;
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
        options, &layout_, exchange_.get(), std::move(units));
    collector_ = std::make_unique<GradientCollector>(
        &layout_, exchange_.get(), std::move(params),
        GradientCollector::Options{
            // Where ranks reduce, the reducer keeps the sums of stages 0 and 1.
            .keep_gradients = zero.stage == 1 && !use_c10d_,
            .contiguous = !use_c10d_ || zero.contiguous_gradients});
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
               {"server", needs_server_ ? server_address_ : "none"},
               {"exchange", std::string(exchange_->name())},
               {"because", exchange_reason_},
               {"device", std::string(device_name())},
               {"payload", !needs_server_ ? "none"
                           : info.remote  ? "over the stream, in chunks"
                                          : "through segments"},
               {"epoch", info.epoch},
               {"loaded_from",
                info.loaded_from.empty() ? "nothing" : info.loaded_from},
               {"step", step_},
               {"parameters", layout_.parameter_count()},
               {"stage", zero.stage},
               {"precision", std::string(DtypeName(config.precision))}});
  }
  return absl::OkStatus();
}

absl::Status Engine::BringInitialValues() {
  const Exchange::InitialShare share = exchange_->initial_share();
  for (int u = share.index; u < static_cast<int>(units_.size());
       u += share.count) {
    const UnitRecord& unit = units_[static_cast<std::size_t>(u)];
    const absl::Status status = CatchStatus("initial values", [&] {
      torch::manual_seed(UnitSeed(options_.seed, u));
      const std::shared_ptr<torch::nn::Module> module = unit.make();
      const auto parameters = module->named_parameters(/*recurse=*/true);
      for (const Layout::Param& param :
           layout_.units()[static_cast<std::size_t>(u)].params) {
        const std::string key = param.name.substr(unit.name.size() + 1);
        const at::Tensor values =
            parameters[key].detach().to(at::kFloat).contiguous();
        ThrowIfError(
            exchange_->PutState(u, param.begin_elems,
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
  return exchange_->FinishInitialization();
}

absl::Status Engine::RestoreClientState(const AttachInfo& info) {
  if (info.client_state.empty()) return absl::OkStatus();
  STOWAGE_ASSIGN_OR_RETURN(ClientState state,
                           ClientState::Parse(info.client_state));
  STOWAGE_RETURN_IF_ERROR(scaler_.Restore(state.loss_scaler));
  skipped_steps_ = state.skipped_steps;
  global_samples_ = state.global_samples;
  user_state_ = state.user;
  random_seed_ = state.random_seed.value_or(options_.seed);
  bool known = !state.trace.empty();
  for (const std::int32_t unit : state.trace) {
    known = known && unit >= 0 && unit < layout_.unit_count();
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
