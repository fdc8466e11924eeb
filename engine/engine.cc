// Engine: the training loop's calls.

#include "engine/engine.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/checkpoint/client_state.h"
#include "engine/torch_status.h"

namespace stowage::engine {
namespace {

using Clock = std::chrono::steady_clock;

double MsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin)
      .count();
}

}  // namespace

absl::StatusOr<at::Tensor> Engine::Forward(
    const std::function<at::Tensor()>& body) {
  const auto begin = Clock::now();
  reporter_.Memory("before forward");
  SeedMicroStep();
  at::Tensor output;
  STOWAGE_RETURN_IF_ERROR(
      Explain(CatchStatus("forward", [&] { output = body(); })));
  const double ms = MsSince(begin);
  forward_ms_ += ms;
  micro_forward_ms_ += ms;
  reporter_.Memory("after forward");
  return output;
}

absl::Status Engine::Evaluate(const std::function<void()>& body) {
  return CatchStatus("evaluation", [&] {
    const at::NoGradGuard no_gradients;
    body();
  });
}

absl::Status Engine::Backward(const at::Tensor& loss) {
  const auto begin = Clock::now();
  const auto micro = static_cast<std::int32_t>(micro_losses_.size());
  if (micro >= config().gradient_accumulation_steps) {
    return absl::FailedPreconditionError(absl::StrCat(
        "backward: ", micro + 1,
        " micro steps, gradient_accumulation_steps is ",
        config().gradient_accumulation_steps, "; call Step() first"));
  }
  if (!loss.defined() || loss.numel() != 1) {
    return absl::InvalidArgumentError(
        "backward: the loss must be a tensor of one element");
  }
  reporter_.Memory("before backward");
  const absl::Status ran = CatchStatus("backward", [&] {
    collector_->BeginMicroStep(step_, micro);
    const at::Tensor seed =
        at::full_like(loss, scaler_.scale(), loss.options());
    torch::autograd::backward({loss}, {seed});
    collector_->EndBackward();
    coordinator_->EndPass();
    micro_losses_.push_back(loss.item<double>());
  });
  STOWAGE_RETURN_IF_ERROR(Explain(ran));
  if (!order_sent_) {
    const std::vector<std::int32_t> order = coordinator_->ForwardOrder();
    if (!order.empty()) {
      STOWAGE_RETURN_IF_ERROR(exchange_->SetForwardOrder(
          order, coordinator_->live_plan().trace().uses()));
      order_sent_ = true;
    }
  }
  const double ms = MsSince(begin);
  backward_ms_ += ms;
  reporter_.Memory("after backward");
  reporter_.MicroBatch(
      {.forward = std::exchange(micro_forward_ms_, 0.0), .backward = ms});
  return absl::OkStatus();
}

ApplyArgs Engine::MakeApplyArgs(const Verdict& verdict,
                                const precision::LossScaleUpdate& update,
                                const std::string& user_state,
                                StepResult* result) {
  const config::Config& config = this->config();
  const double count = static_cast<double>(options_.launch.world_size) *
                       static_cast<double>(config.gradient_accumulation_steps);
  // Numbers of the verdict are of gradients divided by the exchange's divisor.
  const double unscale =
      exchange_->gradient_divisor() / (update.scale_during * count);
  result->gradient_norm = std::sqrt(verdict.sum_of_squares) * unscale;
  ApplyArgs args;
  args.step = step_;
  args.skip = update.skipped;
  args.gradient_factor = unscale;
  if (update.skipped) {
    result->gradient_norm = INFINITY;
    args.gradient_factor = 0;
  } else if (config.gradient_clipping > 0) {
    // As torch's clip_grad_norm_ and DeepSpeed: 1e-6 added to the norm.
    const double excess =
        (result->gradient_norm + 1e-6) / config.gradient_clipping;
    if (excess > 1) args.gradient_factor = unscale / excess;
  }
  for (int g = 0; g < static_cast<int>(options_.groups.size()); ++g) {
    const schedule::Betas betas = schedule_.BetasAt(applied_steps_, g);
    GroupStep group;
    group.lr = schedule_.Lr(applied_steps_, g);
    group.beta1 = betas.beta1;
    group.beta2 = betas.beta2;
    group.eps = config.optimizer.eps;
    group.weight_decay =
        options_.groups[static_cast<std::size_t>(g)].weight_decay.value_or(
            config.optimizer.weight_decay);
    args.groups.push_back(group);
  }
  result->lr = args.groups.front().lr;
  while (static_cast<int>(args.groups.size()) < layout().group_count()) {
    args.groups.emplace_back();  // frozen
  }
  ClientState state;
  state.skipped_steps = skipped_steps_ + (update.skipped ? 1 : 0);
  state.global_samples = global_samples_ + config.train_batch_size;
  state.loss_scaler = scaler_.Serialize();
  if (order_sent_ && coordinator_->live_plan().trace().uses().size() <= 4096) {
    state.trace = coordinator_->live_plan().trace().uses();
  }
  state.user = user_state;
  state.random_seed = random_seed_;
  state.last_apply = args;
  args.client_state = state.Serialize();
  return args;
}

absl::StatusOr<StepResult> Engine::Step(const std::string& user_state) {
  const auto begin = Clock::now();
  if (static_cast<std::int64_t>(micro_losses_.size()) !=
      config().gradient_accumulation_steps) {
    return absl::FailedPreconditionError(absl::StrCat(
        "step: ", micro_losses_.size(), " of ",
        config().gradient_accumulation_steps, " micro steps done"));
  }
  reporter_.Memory("before step");
  absl::StatusOr<StepResult> stepped = StepInner(user_state);
  if (!stepped.ok()) return Explain(stepped.status());
  StepResult result = *std::move(stepped);
  result.forward_ms = std::exchange(forward_ms_, 0.0);
  result.backward_ms = std::exchange(backward_ms_, 0.0);
  const ExchangeWaits waits = exchange_->TakeWaits();
  result.wait_params_ms = waits.params_seconds * 1e3;
  result.wait_prepare_ms = waits.prepare_seconds * 1e3;
  result.wait_ranks_ms = std::min(result.wait_ranks_ms, result.wait_prepare_ms);
  result.wait_disk_ms = std::min(
      result.wait_disk_ms, result.wait_params_ms + result.wait_prepare_ms);
  result.gradients_ms = waits.gradients_seconds * 1e3;
  result.step_ms = MsSince(begin);
  reporter_.Memory("after step");
  if (options_.launch.rank == 0) Report(result);
  return result;
}

absl::StatusOr<StepResult> Engine::StepInner(const std::string& user_state) {
  // The last scalar is this rank's wish to stop: all ranks read the same
  // verdict, so all stop after the same step.
  std::vector<double> scalars = std::exchange(micro_losses_, {});
  const std::size_t micros = scalars.size();
  scalars.push_back(stop_requested_ ? 1.0 : 0.0);
  STOWAGE_ASSIGN_OR_RETURN(const Verdict verdict,
                           exchange_->Prepare(step_, scalars));
  StepResult result;
  double loss_sum = 0;
  for (std::size_t micro = 0; micro < micros; ++micro) {
    for (const std::vector<double>& rank : verdict.rank_scalars) {
      if (rank.size() != micros + 1) {
        return absl::InternalError(
            absl::StrCat("step ", step_, ": a rank reported ", rank.size(),
                         " numbers, this one ", micros + 1));
      }
      loss_sum += rank[micro];
    }
  }
  for (const std::vector<double>& rank : verdict.rank_scalars) {
    if (rank.back() != 0) result.stop_requested = true;
  }
  result.loss = loss_sum / (static_cast<double>(micros) *
                            static_cast<double>(verdict.rank_scalars.size()));
  const auto local_rank = static_cast<std::size_t>(options_.launch.local_rank);
  if (local_rank < verdict.rank_wait_seconds.size()) {
    result.wait_ranks_ms = verdict.rank_wait_seconds[local_rank] * 1e3;
  }
  const double disk_before =
      std::exchange(disk_wait_seconds_, verdict.disk_wait_seconds);
  if (disk_before >= 0) {
    result.wait_disk_ms =
        std::max(0.0, verdict.disk_wait_seconds - disk_before) * 1e3;
  }
  const bool overflow = !std::isfinite(verdict.sum_of_squares);
  STOWAGE_ASSIGN_OR_RETURN(
      const precision::LossScaleUpdate update,
      scaler_.Update(overflow, verdict.first_nonfinite_param));
  result.skipped = update.skipped || overflow;
  result.loss_scale = update.scale_during;
  result.first_nonfinite_param = verdict.first_nonfinite_param;
  result.trust_ratios = verdict.trust_ratios;
  result.compression = verdict.compression;
  precision::LossScaleUpdate decision = update;
  decision.skipped = result.skipped;
  const ApplyArgs args = MakeApplyArgs(verdict, decision, user_state, &result);
  STOWAGE_RETURN_IF_ERROR(exchange_->Apply(args));
  ++step_;
  if (result.skipped) {
    ++skipped_steps_;
  } else {
    ++applied_steps_;
  }
  global_samples_ += config().train_batch_size;
  user_state_ = user_state;
  collector_->EndStep();
  coordinator_->SetStep(step_);
  result.step = step_;
  result.global_samples = global_samples_;
  if (options_.launch.rank == 0) {
    if (const std::string text = update.Describe(); !text.empty()) {
      log::Info(text, {{"step", step_},
                       {"first_nonfinite", result.first_nonfinite_param}});
    } else if (result.skipped) {
      log::Warning(
          "gradients are not finite, step skipped",
          {{"step", step_}, {"first_nonfinite", result.first_nonfinite_param}});
    }
  }
  return result;
}

// A peer that ends breaks the connections between ranks first; the server knows
// who it was and why.
absl::Status Engine::Explain(absl::Status status) const {
  if (!absl::IsUnavailable(status) || session_ == nullptr) return status;
  for (int i = 0; i < 50; ++i) {
    if (absl::Status known = session_->status(); !known.ok()) return known;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return status;
}

absl::Status Engine::ViewParams(
    int unit,
    const std::function<absl::Status(std::span<const std::byte>)>& view) {
  const absl::StatusOr<std::span<const std::byte>> data =
      exchange_->Fetch(unit, step_);
  if (!data.ok()) return Explain(data.status());
  absl::Status viewed;
  if (device_ == nullptr) {
    viewed = view(*data);
  } else {
    std::vector<std::byte> host(data->size());
    absl::StatusOr<std::unique_ptr<DeviceCopy>> copy = device_->CopyOut(
        host.data(), data->data(), static_cast<std::int64_t>(host.size()));
    viewed = copy.ok() ? (*copy)->Wait() : copy.status();
    if (viewed.ok()) viewed = view(host);
  }
  exchange_->Release(unit);
  return viewed;
}

absl::StatusOr<at::Tensor> Engine::ReadParam(int unit, int param,
                                             StateKind kind) {
  const Layout::Unit& shape = layout().units()[static_cast<std::size_t>(unit)];
  for (const Layout::Param& candidate : shape.params) {
    if (candidate.declared_index != param) continue;
    at::Tensor values = at::empty(candidate.shape);
    STOWAGE_RETURN_IF_ERROR(
        exchange_->ReadState(unit, kind, candidate.begin_elems,
                             {values.mutable_data_ptr<float>(),
                              static_cast<std::size_t>(candidate.elems)}));
    return values;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unit ", unit, " has no parameter ", param));
}

absl::Status Engine::Close(bool keep) {
  reporter_.Flush();
  coordinator_.reset();
  if (exchange_ == nullptr) return absl::OkStatus();
  if (options_.launch.rank == 0 && session_ != nullptr) {
    // What it says is in the server's log, and in the caller's WaitForSave().
    WaitForSave(std::chrono::hours(24)).IgnoreError();
  }
  const absl::Status closed = exchange_->Close(/*close_job=*/!keep);
  if (private_server_ != nullptr) {
    // The other ranks' sessions live in our child: let them say goodbye.
    for (int i = 0; i < 1000; ++i) {
      const absl::StatusOr<std::vector<JobInfo>> jobs = client_->ListJobs();
      if (!jobs.ok() || jobs->empty() || jobs->front().live_sessions == 0) {
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    private_server_->Stop();
  }
  return closed;
}

}  // namespace stowage::engine
