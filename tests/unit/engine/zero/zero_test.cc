// Units, coordinator and gradient collector over an exchange in this process:
// release frees, limits hold, and every kind of parameter gets its gradient
// exactly once.

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>
#include <torch/utils.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/torch_status.h"
#include "engine/zero/coordinator.h"
#include "engine/zero/gradient_collector.h"
#include "engine/zero/unit_module.h"
#include "tests/unit/engine/zero/null_exchange.h"

namespace stowage::engine {
namespace {

// Parameters and gradients in plain memory.
class MemoryExchange final : public NullExchange {
 public:
  explicit MemoryExchange(const Layout* layout) : layout_(layout) {
    for (const Layout::Unit& unit : layout->units()) {
      params_.emplace_back(static_cast<std::size_t>(unit.elems), 0.0F);
      gradients_.emplace_back(static_cast<std::size_t>(unit.trainable_elems),
                              -1.0F);
    }
  }
  std::string_view name() const override { return "memory"; }
  absl::StatusOr<std::span<const std::byte>> Fetch(std::int32_t unit,
                                                   std::int64_t) override {
    ++fetches_;
    return std::as_bytes(
        std::span<const float>(params_[static_cast<std::size_t>(unit)]));
  }
  absl::StatusOr<std::span<std::byte>> GradientTarget(
      std::int64_t, std::int32_t, std::int32_t unit) override {
    return std::as_writable_bytes(
        std::span<float>(gradients_[static_cast<std::size_t>(unit)]));
  }
  absl::Status GradientReady(std::int64_t, std::int32_t, std::int32_t unit,
                             bool empty) override {
    notices_.emplace_back(unit, empty);
    return absl::OkStatus();
  }

  float* params(std::int32_t unit) {
    return params_[static_cast<std::size_t>(unit)].data();
  }
  const float* gradients(std::int32_t unit) {
    return gradients_[static_cast<std::size_t>(unit)].data();
  }
  const std::vector<std::pair<std::int32_t, bool>>& notices() const {
    return notices_;
  }
  void Clear() { notices_.clear(); }
  int fetches() const { return fetches_; }

 private:
  const Layout* layout_;
  std::vector<std::vector<float>> params_;
  std::vector<std::vector<float>> gradients_;
  std::vector<std::pair<std::int32_t, bool>> notices_;
  int fetches_ = 0;
};

struct LayerImpl : torch::nn::Module {
  LayerImpl(std::int64_t in, std::int64_t out, bool with_unused = false) {
    weight = register_parameter("weight", at::randn({out, in}) * 0.3);
    bias = register_parameter("bias", at::randn({out}) * 0.1);
    if (with_unused) {
      unused = register_parameter("unused", at::randn({7}));
    }
  }
  at::Tensor forward(const at::Tensor& x) {
    return at::tanh(at::linear(x, weight, bias));
  }
  at::Tensor weight, bias, unused;
};

// Reads the first layer's weight, transposed by use: a tied parameter.
struct TiedImpl : torch::nn::Module {
  explicit TiedImpl(const at::Tensor& shared) {
    weight = register_parameter("weight", shared);
    scale = register_parameter("scale", at::ones({1}) * 0.5);
  }
  at::Tensor forward(const at::Tensor& x) {
    return at::linear(x, weight) * scale;
  }
  at::Tensor weight, scale;
};

struct Fixture {
  explicit Fixture(int stage, plan::LiveLimits limits,
                   std::int64_t persistence = 0, bool contiguous = true) {
    torch::manual_seed(3);
    first = std::make_shared<LayerImpl>(8, 8);
    middle = std::make_shared<LayerImpl>(8, 8, /*with_unused=*/true);
    frozen = std::make_shared<LayerImpl>(8, 8);
    for (at::Tensor& parameter : frozen->parameters()) {
      parameter.requires_grad_(false);
    }
    lonely = std::make_shared<LayerImpl>(8, 8);
    tied = std::make_shared<TiedImpl>(first->weight);
    const std::vector<std::pair<std::string, torch::nn::Module*>> modules = {
        {"first", first.get()},
        {"middle", middle.get()},
        {"frozen", frozen.get()},
        {"lonely", lonely.get()},
        {"tied", tied.get()}};
    LayoutSpec spec;
    spec.groups = {{"all", false}, {"frozen", true}};
    std::vector<Coordinator::Unit> units;
    std::vector<std::vector<at::Tensor>> params;
    std::map<const void*, std::int32_t> owner;
    for (const auto& [name, module] : modules) {
      UnitSpec unit_spec;
      Coordinator::Unit unit;
      unit.name = unit_spec.name = name;
      for (const auto& item : module->named_parameters()) {
        const void* identity = item.value().unsafeGetTensorImpl();
        if (owner.count(identity) == 1) {
          unit.borrows.push_back(owner[identity]);
          continue;
        }
        owner[identity] = static_cast<std::int32_t>(units.size());
        unit_spec.params.push_back({name + "." + item.key(),
                                    item.value().sizes().vec(),
                                    item.value().requires_grad() ? 0 : 1});
        unit.params.push_back(item.value());
      }
      params.push_back(unit.params);
      units.push_back(unit);
      spec.units.push_back(unit_spec);
    }
    layout = std::make_unique<Layout>(Layout::Create(spec).value());
    exchange = std::make_unique<MemoryExchange>(layout.get());
    for (std::size_t u = 0; u < params.size(); ++u) {
      for (const Layout::Param& param : layout->units()[u].params) {
        const at::Tensor& value =
            params[u][static_cast<std::size_t>(param.declared_index)];
        std::memcpy(
            exchange->params(static_cast<std::int32_t>(u)) + param.begin_elems,
            value.data_ptr(), value.nbytes());
        // What plain autograd says is kept beside.
        plain.push_back(value.detach().clone());
      }
    }
    CoordinatorOptions options;
    options.stage = stage;
    options.limits = limits;
    options.persistence_threshold_elems = persistence;
    coordinator = std::make_unique<Coordinator>(options, layout.get(),
                                                exchange.get(), units);
    collector = std::make_unique<GradientCollector>(
        layout.get(), exchange.get(), params,
        GradientCollector::Options{.keep_gradients = stage == 1,
                                   .contiguous = contiguous});
    first_unit = {&coordinator, 0, first};
    middle_unit = {&coordinator, 1, middle};
    frozen_unit = {&coordinator, 2, frozen};
    lonely_unit = {&coordinator, 3, lonely};
    tied_unit = {&coordinator, 4, tied};
  }

  // `middle` is used twice, `lonely` not at all.
  at::Tensor Forward(const at::Tensor& x) {
    return tied_unit(middle_unit(frozen_unit(middle_unit(first_unit(x)))))
        .square()
        .mean();
  }
  void Pass(std::int64_t step) {
    coordinator->SetStep(step);
    const at::Tensor loss = Forward(Input());
    collector->BeginMicroStep(step, 0);
    loss.backward();
    collector->EndBackward();
    coordinator->EndPass();
  }
  static at::Tensor Input() { return at::ones({3, 8}) * 0.7; }

  const float* Gradient(std::int32_t unit, int declared) {
    for (const Layout::Param& param :
         layout->units()[static_cast<std::size_t>(unit)].params) {
      if (param.declared_index == declared) {
        return exchange->gradients(unit) + param.begin_elems;
      }
    }
    return nullptr;
  }

  std::shared_ptr<LayerImpl> first, middle, frozen, lonely;
  std::shared_ptr<TiedImpl> tied;
  std::vector<at::Tensor> plain;
  std::unique_ptr<Layout> layout;
  std::unique_ptr<MemoryExchange> exchange;
  std::unique_ptr<Coordinator> coordinator;
  std::unique_ptr<GradientCollector> collector;
  UnitModule<LayerImpl> first_unit, middle_unit, frozen_unit, lonely_unit;
  UnitModule<TiedImpl> tied_unit;
};

// The same function by plain autograd; gradients of first.weight, first.bias,
// middle.weight, middle.bias, tied.scale.
std::vector<at::Tensor> PlainGradients() {
  torch::manual_seed(3);
  LayerImpl first(8, 8);
  LayerImpl middle(8, 8, true);
  LayerImpl frozen(8, 8);
  LayerImpl lonely(8, 8);
  TiedImpl tied(first.weight);
  for (at::Tensor& parameter : frozen.parameters()) {
    parameter.requires_grad_(false);
  }
  tied.forward(middle.forward(frozen.forward(
                   middle.forward(first.forward(Fixture::Input())))))
      .square()
      .mean()
      .backward();
  return {first.weight.grad(), first.bias.grad(), middle.weight.grad(),
          middle.bias.grad(), tied.scale.grad()};
}

void ExpectEqual(const float* got, const at::Tensor& want) {
  ASSERT_NE(got, nullptr);
  for (std::int64_t i = 0; i < want.numel(); ++i) {
    ASSERT_FLOAT_EQ(got[i], want.const_data_ptr<float>()[i]) << i;
  }
}

TEST(Zero, EveryKindOfParameterGetsItsGradientOnceInEveryStage) {
  const std::vector<at::Tensor> want = PlainGradients();
  for (const int stage : {1, 2, 3}) {
    for (const std::int64_t live : {0, 100, 100000}) {
      Fixture f(stage, {live, live, live});
      for (std::int64_t step = 0; step < 3; ++step) {
        f.exchange->Clear();
        f.Pass(step);
        ExpectEqual(f.Gradient(0, 0), want[0]);
        ExpectEqual(f.Gradient(0, 1), want[1]);
        ExpectEqual(f.Gradient(1, 0), want[2]);
        ExpectEqual(f.Gradient(1, 1), want[3]);
        ExpectEqual(f.Gradient(4, 0), want[4]);
        ExpectEqual(f.Gradient(1, 2), at::zeros({7}));  // middle.unused
        std::map<std::int32_t, bool> notices;
        for (const auto& [unit, empty] : f.exchange->notices()) {
          EXPECT_EQ(notices.count(unit), 0U) << "noticed twice";
          notices[unit] = empty;
        }
        EXPECT_EQ(notices, (std::map<std::int32_t, bool>{
                               {0, false}, {1, false}, {3, true}, {4, false}}))
            << "the frozen unit is not noticed, the unused one is empty";
        f.collector->EndStep();
      }
    }
  }
}

TEST(Zero, ReleaseFreesAndTheAllocatorNeverPassesTheLimit) {
  for (const std::int64_t live : {0, 80, 160, 100000}) {
    Fixture f(3, {live, 100000, 100000});
    for (std::int64_t step = 0; step < 4; ++step) {
      f.coordinator->ResetPeak();
      f.Pass(step);
      EXPECT_LE(f.coordinator->held().gathered_peak,
                f.coordinator->gathered_limit_bytes())
          << "limit " << live << " step " << step;
      EXPECT_EQ(f.coordinator->held().gathered, 0) << "nothing stays";
      EXPECT_EQ(f.first->weight.storage().nbytes(), 0U);
      EXPECT_EQ(f.first->weight.storage().data(), nullptr);
    }
    // The largest need is 8*8 + 8 + 7 of middle, or tied with first's weight.
    EXPECT_EQ(f.coordinator->gathered_limit_bytes(),
              4 * std::max<std::int64_t>(live, 79));
  }
}

TEST(Zero, ReleaseTakesTheMemoryFromSavedViewsToo) {
  Fixture f(3, {0, 0, 0});
  f.coordinator->SetStep(0);
  f.coordinator->BeginUse(0, false);
  const at::Tensor view = f.first->weight.detach().t();
  EXPECT_NE(view.storage().data(), nullptr);
  f.coordinator->EndUse(0, false);
  EXPECT_EQ(view.storage().data(), nullptr);
  EXPECT_EQ(f.coordinator->held().gathered, 0);
}

TEST(Zero, PersistentParametersStayGatheredAndFollowTheVersion) {
  Fixture f(3, {0, 0, 0}, /*persistence=*/8);
  f.Pass(0);
  // Biases (8), unused (7) and scale (1) are persistent: 4 * 8 + 7 + 1.
  EXPECT_EQ(f.coordinator->held().persistent, 4 * (3 * 8 + 7 + 1))
      << "the never-used unit has not been gathered";
  EXPECT_EQ(f.coordinator->held().gathered, f.coordinator->held().persistent);
  const int before = f.exchange->fetches();
  f.Pass(1);
  EXPECT_GT(f.exchange->fetches(), before);
}

TEST(Zero, StagesOneAndTwoHoldTheirOwnCopyAndOnlyOneKeepsGradients) {
  for (const int stage : {1, 2}) {
    Fixture f(stage, {100000, 100000, 100000});
    f.Pass(0);
    EXPECT_EQ(f.coordinator->held().own_params, f.layout->total_elems() * 4);
    EXPECT_EQ(f.coordinator->held().gathered, 0);
    EXPECT_EQ(f.collector->kept_bytes() > 0, stage == 1);
    f.collector->EndStep();
    EXPECT_EQ(f.collector->kept_bytes(), 0);
  }
}

TEST(Zero, BackwardOutsideTheEngineIsRefusedInWords) {
  Fixture f(3, {100000, 100000, 100000});
  f.coordinator->SetStep(0);
  const at::Tensor loss = f.Forward(Fixture::Input());
  const absl::Status status = CatchStatus("backward", [&] { loss.backward(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(status.message()).find("Backward(loss)"),
            std::string::npos);
  f.coordinator->EndPass();
}

TEST(C10dKeys, ContiguousGradients) {
  Fixture contiguous(2, {});
  contiguous.Pass(0);
  EXPECT_EQ(contiguous.collector->held_bytes_peak(), 0);
  Fixture scattered(2, {}, 0, /*contiguous=*/false);
  scattered.Pass(0);
  // At least one unit's gradients stayed where autograd made them, and never
  // those of all units.
  const std::int64_t unit_bytes = (8 * 8 + 8) * 4;
  EXPECT_GE(scattered.collector->held_bytes_peak(), 8 * 8 * 4);
  EXPECT_LT(scattered.collector->held_bytes_peak(), 3 * unit_bytes);
  // The same gradients all the same.
  EXPECT_EQ(contiguous.exchange->notices(), scattered.exchange->notices());
  for (const auto& [unit, empty] : contiguous.exchange->notices()) {
    if (empty) continue;
    const auto u = static_cast<std::size_t>(unit);
    EXPECT_EQ(std::memcmp(contiguous.exchange->gradients(unit),
                          scattered.exchange->gradients(unit),
                          static_cast<std::size_t>(
                              contiguous.layout->units()[u].trainable_elems) *
                              sizeof(float)),
              0)
        << "unit " << unit;
  }
}

}  // namespace
}  // namespace stowage::engine
