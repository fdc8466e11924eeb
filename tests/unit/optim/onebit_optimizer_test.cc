// OneBitAdam and OneBitLamb over 200 steps with the freeze in the middle, on 1,
// 2 and 4 ranks, against a model in float64 that is written from the words of
// the reference and shares nothing with the kernels.

#include "optim/onebit_optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/local_byte_exchange.h"

namespace stowage::optim {
namespace {

using testing::LocalRanks;
using Vector = std::vector<double>;

constexpr int kSteps = 200;
constexpr int kFreeze = 100;
const std::vector<std::size_t> kSizes = {700, 33, 258};

double Norm(const Vector& x) {
  return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}

// --- the model
// ----------------------------------------------------------------

// Step 1 to 7 of the compressed all-reduce, all ranks in one place.
class Compressed64 {
 public:
  Compressed64(std::size_t n, int world)
      : n_(n), world_(static_cast<std::size_t>(world)) {
    const std::size_t unit = world_ * std::lcm(world_, std::size_t{8});
    padded_ = (n + unit - 1) / unit * unit;
    worker_error_.assign(world_, Vector(padded_));
    server_error_.assign(world_, Vector(padded_ / world_));
  }

  Vector Average(const std::vector<Vector>& values) {
    std::vector<Vector> decoded;
    for (std::size_t r = 0; r < world_; ++r) {
      Vector b = values[r];
      b.resize(padded_);
      for (std::size_t i = 0; i < padded_; ++i) b[i] += worker_error_[r][i];
      decoded.push_back(Compress(b, &worker_error_[r]));
    }
    const std::size_t part = padded_ / world_;
    Vector result;
    for (std::size_t k = 0; k < world_; ++k) {
      Vector c(part);
      for (std::size_t i = 0; i < part; ++i) {
        for (std::size_t r = 0; r < world_; ++r) {
          c[i] += decoded[r][k * part + i] / static_cast<double>(world_);
        }
        c[i] += server_error_[k][i];
      }
      const Vector served = Compress(c, &server_error_[k]);
      result.insert(result.end(), served.begin(), served.end());
    }
    result.resize(n_);
    return result;
  }

 private:
  static Vector Compress(const Vector& b, Vector* error) {
    const double scale = Norm(b) / std::sqrt(static_cast<double>(b.size()));
    Vector decoded(b.size());
    for (std::size_t i = 0; i < b.size(); ++i) {
      decoded[i] = b[i] >= 0 ? scale : -scale;
      (*error)[i] = b[i] - decoded[i];
    }
    return decoded;
  }

  std::size_t n_;
  std::size_t world_;
  std::size_t padded_;
  std::vector<Vector> worker_error_;
  std::vector<Vector> server_error_;
};

struct Tensor64 {
  Vector p, m, v;
  Vector v_fresh = {};
  double coeff_freeze = 0;
  double last_factor = 1;
  double scaling = 0;
};

class Model64 {
 public:
  Model64(const OneBitSettings& settings, std::vector<Vector> p, int world)
      : s_(settings), world_(static_cast<std::size_t>(world)) {
    std::size_t all = 0;
    for (Vector& x : p) {
      all += x.size();
      tensors_.push_back({x, Vector(x.size()), Vector(x.size())});
      if (!s_.lamb) exchanges_.emplace_back(x.size(), world);
    }
    if (s_.lamb) exchanges_.emplace_back(all, world);
  }

  // gradients[rank][tensor]
  void Step(int t, const GroupStep& h,
            const std::vector<std::vector<Vector>>& gradients) {
    if (t <= s_.freeze_step) {
      WarmUp(t, h, gradients);
    } else if (s_.lamb) {
      FrozenLamb(h, gradients);
    } else {
      FrozenAdam(h, gradients);
    }
  }
  const std::vector<Tensor64>& tensors() const { return tensors_; }

 private:
  void WarmUp(int t, const GroupStep& h,
              const std::vector<std::vector<Vector>>& gradients) {
    for (std::size_t k = 0; k < tensors_.size(); ++k) {
      Tensor64& x = tensors_[k];
      Vector u(x.p.size());
      for (std::size_t i = 0; i < u.size(); ++i) {
        double g = 0;
        for (const auto& rank : gradients) g += rank[k][i];
        g /= static_cast<double>(world_);
        x.m[i] = h.beta1 * x.m[i] + (1 - h.beta1) * g;
        x.v[i] = h.beta2 * x.v[i] + (1 - h.beta2) * g * g;
        u[i] = x.m[i] / (std::sqrt(x.v[i]) + h.eps) + h.weight_decay * x.p[i];
      }
      double coeff = 1;
      if (s_.lamb) {
        if (Norm(x.p) != 0 && Norm(u) != 0) {
          coeff = std::clamp(Norm(x.p) / Norm(u), s_.min_coeff, s_.max_coeff);
        }
        if (coeff != 1) {
          x.coeff_freeze =
              s_.coeff_beta * x.coeff_freeze + (1 - s_.coeff_beta) * coeff;
        }
      }
      for (std::size_t i = 0; i < u.size(); ++i) x.p[i] -= h.lr * coeff * u[i];
      if (t == s_.freeze_step) x.v_fresh = x.v;
    }
  }

  void FrozenAdam(const GroupStep& h,
                  const std::vector<std::vector<Vector>>& gradients) {
    for (std::size_t k = 0; k < tensors_.size(); ++k) {
      Tensor64& x = tensors_[k];
      std::vector<Vector> momenta;
      for (const auto& rank : gradients) {
        Vector& m = momenta.emplace_back(x.m);
        for (std::size_t i = 0; i < m.size(); ++i) {
          m[i] = h.beta1 * m[i] + (1 - h.beta1) * rank[k][i];
        }
      }
      x.m = exchanges_[k].Average(momenta);
      for (std::size_t i = 0; i < x.m.size(); ++i) {
        x.p[i] -= h.lr * (x.m[i] / (std::sqrt(x.v[i]) + h.eps) +
                          h.weight_decay * x.p[i]);
      }
    }
  }

  void FrozenLamb(const GroupStep& h,
                  const std::vector<std::vector<Vector>>& gradients) {
    if (tensors_[0].scaling == 0) {
      double united = 0;
      const auto root = [](const Tensor64& x) {
        return Norm(x.m) / std::sqrt(static_cast<double>(x.m.size()));
      };
      for (const Tensor64& x : tensors_) united += root(x);
      united /= static_cast<double>(tensors_.size());
      for (Tensor64& x : tensors_) x.scaling = united / root(x);
    }
    std::vector<Vector> flat(world_);
    for (std::size_t k = 0; k < tensors_.size(); ++k) {
      const Tensor64& x = tensors_[k];
      for (std::size_t r = 0; r < world_; ++r) {
        for (std::size_t i = 0; i < x.m.size(); ++i) {
          flat[r].push_back(
              (h.beta1 * x.m[i] + (1 - h.beta1) * gradients[r][k][i]) *
              x.scaling);
        }
      }
    }
    const Vector averaged = exchanges_[0].Average(flat);
    std::size_t at = 0;
    for (Tensor64& x : tensors_) {
      const Vector last = x.m;
      Vector u0(x.m.size());
      Vector u(x.m.size());
      double factor = 0;
      for (std::size_t i = 0; i < x.m.size(); ++i) {
        x.m[i] = averaged[at++] / x.scaling;
        const double g = (x.m[i] - h.beta1 * last[i]) / (1 - h.beta1);
        x.v_fresh[i] = h.beta2 * x.v_fresh[i] + (1 - h.beta2) * g * g;
        const double denominator = std::sqrt(x.v[i]) + h.eps;
        u0[i] = x.m[i] / denominator;
        u[i] = u0[i] + h.weight_decay * x.p[i];
        factor =
            std::max(factor, denominator / (std::sqrt(x.v_fresh[i]) + h.eps));
      }
      if (h.weight_decay > 0) {
        const double q = std::min(1.0, Norm(u0) / Norm(u));
        factor = factor * q + (1 - q);
      }
      factor = std::clamp(factor, s_.factor_min, s_.factor_max);
      factor = std::clamp(factor, x.last_factor * (1 - s_.factor_threshold),
                          x.last_factor * (1 + s_.factor_threshold));
      x.last_factor = factor;
      for (std::size_t i = 0; i < u.size(); ++i) {
        x.p[i] -= h.lr * x.coeff_freeze * factor * u[i];
      }
    }
  }

  OneBitSettings s_;
  std::size_t world_;
  std::vector<Tensor64> tensors_;
  std::vector<Compressed64> exchanges_;
};

// --- ours
// ---------------------------------------------------------------------

struct RankState {
  explicit RankState(const std::vector<Vector>& start) {
    for (const Vector& x : start) {
      p.emplace_back(x.begin(), x.end());
      m.emplace_back(x.size());
      v.emplace_back(x.size());
    }
  }
  std::vector<OneBitTensor> Tensors() {
    std::vector<OneBitTensor> tensors;
    for (std::size_t k = 0; k < p.size(); ++k) {
      tensors.push_back({.elems = static_cast<std::int64_t>(p[k].size()),
                         .master = p[k].data(),
                         .moment1 = m[k].data(),
                         .moment2 = v[k].data()});
    }
    return tensors;
  }
  std::vector<std::vector<float>> p, m, v;
};

std::vector<Vector> Start() {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  std::vector<Vector> start;
  for (const std::size_t n : kSizes) {
    Vector& x = start.emplace_back();
    for (std::size_t i = 0; i < n; ++i) {
      x.push_back(static_cast<float>(0.5 * normal(random)));
    }
  }
  return start;
}

// Of one rank and step: a common slope that a tensor follows, and noise.
std::vector<Vector> Gradients(int step, int rank) {
  std::mt19937 random(static_cast<std::uint32_t>(1000 * step + rank));
  std::normal_distribution<double> normal;
  std::vector<Vector> gradients;
  for (std::size_t k = 0; k < kSizes.size(); ++k) {
    Vector& g = gradients.emplace_back();
    for (std::size_t i = 0; i < kSizes[k]; ++i) {
      g.push_back(static_cast<float>(
          (0.3 * std::sin(static_cast<double>(i + k)) + normal(random)) *
          std::pow(3.0, static_cast<double>(k))));
    }
  }
  return gradients;
}

GroupStep Hyperparameters(const OneBitSettings& settings) {
  return {.lr = settings.lamb ? 4e-3 : 1e-3,
          .beta1 = 0.9,
          .beta2 = 0.99,
          .eps = 1e-8,
          .weight_decay = settings.lamb ? 0.02 : 0.01};
}

// Steps (begin, end] of one rank.
void Train(OneBitOptimizer& optimizer, const OneBitSettings& settings,
           int begin, int end, LocalRanks& ranks, int rank) {
  const GroupStep group = Hyperparameters(settings);
  for (int t = begin + 1; t <= end; ++t) {
    std::vector<std::vector<float>> gradients;
    const bool local = optimizer.compressed(t);
    for (const Vector& g : Gradients(t, local ? rank : 0)) {
      gradients.emplace_back(g.begin(), g.end());
    }
    for (int r = 1; !local && r < ranks.ranks(); ++r) {
      const std::vector<Vector> other = Gradients(t, r);
      for (std::size_t k = 0; k < kSizes.size(); ++k) {
        for (std::size_t i = 0; i < kSizes[k]; ++i) {
          gradients[k][i] += static_cast<float>(other[k][i]);
        }
      }
    }
    std::vector<GradientSource> sources;
    for (const std::vector<float>& g : gradients) {
      sources.push_back({.sum = g.data()});
    }
    ASSERT_TRUE(optimizer
                    .Step(BestKernels(),
                          {.t = t,
                           .gradient_factor = local ? 1.0 : 1.0 / ranks.ranks(),
                           .groups = std::span(&group, 1),
                           .gradients = sources},
                          &ranks.exchange(rank))
                    .ok());
  }
}

// A sign that is decided the other way, because a value next to zero rounds
// differently in fp32, makes an element differ by a step or two until the error
// has brought it back; hence a bound for nearly all and a wide one for each.
void ExpectNear(const std::vector<std::vector<float>>& got,
                const std::vector<Tensor64>& want, double each) {
  std::size_t far = 0;
  std::size_t all = 0;
  for (std::size_t k = 0; k < got.size(); ++k) {
    for (std::size_t i = 0; i < got[k].size(); ++i) {
      const double off = std::abs(got[k][i] - want[k].p[i]);
      ++all;
      if (off > 2e-5) ++far;
      ASSERT_LT(off, each) << "tensor " << k << " element " << i << ": "
                           << got[k][i] << ", model " << want[k].p[i];
    }
  }
  EXPECT_LT(far, all / 50) << "of " << all;
}

class OneBitOptimizerTest : public ::testing::TestWithParam<bool> {
 protected:
  OneBitSettings Settings() const {
    return {.lamb = GetParam(), .freeze_step = kFreeze};
  }
};

TEST_P(OneBitOptimizerTest, StaysNearFloat64ThroughTheFreeze) {
  const OneBitSettings settings = Settings();
  for (const int world : {1, 2, 4}) {
    SCOPED_TRACE(absl::StrCat(world, " ranks"));
    Model64 model(settings, Start(), world);
    std::vector<Tensor64> at_freeze;
    for (int t = 1; t <= kSteps; ++t) {
      std::vector<std::vector<Vector>> gradients;
      for (int r = 0; r < world; ++r) gradients.push_back(Gradients(t, r));
      model.Step(t, Hyperparameters(settings), gradients);
      if (t == kFreeze) at_freeze = model.tensors();
    }
    LocalRanks ranks(world);
    std::vector<std::vector<std::vector<float>>> results(
        static_cast<std::size_t>(world));
    ranks.ForEachRank([&](int rank) {
      RankState state(Start());
      OneBitOptimizer optimizer(settings, state.Tensors(), Dtype::kFp32, rank,
                                world);
      Train(optimizer, settings, 0, kFreeze, ranks, rank);
      if (rank == 0) ExpectNear(state.p, at_freeze, 2e-5);
      Train(optimizer, settings, kFreeze, kSteps, ranks, rank);
      if (rank == 0) ExpectNear(state.p, model.tensors(), 2e-2);
      if (settings.lamb && rank == 0) {
        for (std::size_t k = 0; k < kSizes.size(); ++k) {
          const Tensor64& want = model.tensors()[k];
          const OneBitLambState& got = optimizer.lamb_state()[k];
          EXPECT_NEAR(got.coeff_freeze, want.coeff_freeze,
                      1e-4 * want.coeff_freeze);
          EXPECT_NEAR(got.scaling, want.scaling, 1e-4 * want.scaling);
          EXPECT_NEAR(got.last_factor, want.last_factor,
                      5e-2 * want.last_factor);
        }
      }
      EXPECT_EQ(optimizer.counters().rounds, kSteps - kFreeze);
      results[static_cast<std::size_t>(rank)] = state.p;
    });
    for (const auto& p : results) EXPECT_EQ(p, results[0]);
    // The momentum did travel: parameters moved after the freeze.
    EXPECT_NE(model.tensors()[0].p, at_freeze[0].p);
  }
}

// What a checkpoint holds is enough: a run that is put together from it goes on
// as the unbroken one, in both phases.
TEST_P(OneBitOptimizerTest, GoesOnFromItsStateAsIfItHadNotStopped) {
  const OneBitSettings settings = Settings();
  LocalRanks ranks(2);
  ranks.ForEachRank([&](int rank) {
    RankState whole(Start());
    OneBitOptimizer unbroken(settings, whole.Tensors(), Dtype::kFp32, rank, 2);
    Train(unbroken, settings, 0, 130, ranks, rank);
    for (const int stop : {60, kFreeze, 115}) {
      RankState state(Start());
      auto first = std::make_unique<OneBitOptimizer>(settings, state.Tensors(),
                                                     Dtype::kFp32, rank, 2);
      Train(*first, settings, 0, stop, ranks, rank);
      OneBitOptimizer second(settings, state.Tensors(), Dtype::kFp32, rank, 2);
      ASSERT_EQ(first->buffers(), second.buffers());
      for (std::size_t b = 0; b < first->buffers(); ++b) {
        std::ranges::copy(first->side(0).worker_error(b),
                          second.side(0).worker_error(b).begin());
        std::ranges::copy(first->side(0).server_error(b),
                          second.side(0).server_error(b).begin());
      }
      second.lamb_state() = first->lamb_state();
      for (std::size_t k = 0; k < kSizes.size(); ++k) {
        std::ranges::copy(first->fresh_variance(k),
                          second.fresh_variance(k).begin());
      }
      first.reset();
      Train(second, settings, stop, 130, ranks, rank);
      EXPECT_EQ(state.p, whole.p) << "stopped after " << stop;
      EXPECT_EQ(state.m, whole.m) << "stopped after " << stop;
    }
  });
}

// All ranks in one object: the bits of ranks that swap messages.
TEST_P(OneBitOptimizerTest, GivesTheSameBitsForAllRanksAtOnce) {
  const OneBitSettings settings = Settings();
  constexpr int kWorld = 3;
  constexpr int kEnd = kFreeze + 20;
  LocalRanks ranks(kWorld);
  std::vector<std::vector<float>> apart;
  ranks.ForEachRank([&](int rank) {
    RankState state(Start());
    OneBitOptimizer optimizer(settings, state.Tensors(), Dtype::kFp32, rank,
                              kWorld);
    Train(optimizer, settings, 0, kEnd, ranks, rank);
    if (rank == 0) apart = state.p;
  });
  RankState state(Start());
  OneBitOptimizer optimizer(settings, state.Tensors(), Dtype::kFp32,
                            OneBitOptimizer::kAllRanks, kWorld);
  EXPECT_EQ(optimizer.sides(), static_cast<std::size_t>(kWorld));
  const GroupStep group = Hyperparameters(settings);
  for (int t = 1; t <= kEnd; ++t) {
    std::vector<std::vector<float>> gradients;
    for (int r = 0; r < kWorld; ++r) {
      for (const Vector& g : Gradients(t, r)) {
        gradients.emplace_back(g.begin(), g.end());
      }
    }
    const std::size_t count = kSizes.size();
    std::vector<std::vector<const void*>> slots(count);
    std::vector<GradientSource> sources;
    if (optimizer.compressed(t)) {
      for (const auto& g : gradients) sources.push_back({.sum = g.data()});
    } else {
      for (std::size_t k = 0; k < count; ++k) {
        for (int r = 0; r < kWorld; ++r) {
          slots[k].push_back(
              gradients[static_cast<std::size_t>(r) * count + k].data());
        }
        sources.push_back({slots[k], Dtype::kFp32, nullptr});
      }
    }
    ASSERT_TRUE(
        optimizer
            .Step(BestKernels(),
                  {.t = t,
                   .gradient_factor =
                       optimizer.compressed(t) ? 1.0 : 1.0 / kWorld,
                   .groups = std::span(&group, 1),
                   .gradients = sources,
                   .parallel =
                       [](std::int64_t n,
                          const std::function<void(std::int64_t)>& work) {
                         for (std::int64_t i = n; i-- > 0;) work(i);
                       }},
                  nullptr)
            .ok());
  }
  EXPECT_EQ(state.p, apart);
  EXPECT_EQ(optimizer.counters().sent_bytes, 0);
}

INSTANTIATE_TEST_SUITE_P(Both, OneBitOptimizerTest, ::testing::Bool(),
                         [](const auto& param) {
                           return param.param ? "Lamb" : "Adam";
                         });

}  // namespace
}  // namespace stowage::optim
