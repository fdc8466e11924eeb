// A small job with a 1-bit optimizer, and what ranks that keep their own state
// and swap messages make of it: the bits that every other way has to give.

#pragma once

#include <cstdint>
#include <vector>

#include "optim/onebit_optimizer.h"
#include "tests/support/local_byte_exchange.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {

inline constexpr std::int64_t kFreeze = 3;
inline constexpr std::int64_t kSteps = 7;
inline constexpr std::int32_t kRanks = 2;
inline constexpr std::int32_t kMicros = 2;

inline JobSpec OneBitJob(OptimizerKind kind,
                         const std::string& name = "onebit") {
  JobSpec job = SmallJob(name, Dtype::kFp32);
  job.optimizer.kind = kind;
  job.optimizer.freeze_step = kFreeze;
  return job;
}

// Masters of all trainable tensors, tensor by tensor.
inline std::vector<std::vector<float>> Masters(testing::FakeRun& run) {
  std::vector<std::vector<float>> masters;
  for (const Layout::Unit& unit : run.rank(0).layout().units()) {
    for (const Layout::Param& param : unit.params) {
      if (param.frozen) continue;
      std::vector<float>& values =
          masters.emplace_back(static_cast<std::size_t>(param.elems));
      EXPECT_TRUE(run.rank(0)
                      .session()
                      .ReadState(param.unit_index, StateKind::kMaster,
                                 param.begin_elems, values)
                      .ok());
    }
  }
  return masters;
}

// What each rank would have with its state of its own and messages between.
inline std::vector<std::vector<float>> MastersOfRanksApart(const Layout& layout,
                                                           OptimizerKind kind) {
  std::vector<const Layout::Param*> params;
  for (const Layout::Unit& unit : layout.units()) {
    for (const Layout::Param& param : unit.params) {
      if (!param.frozen) params.push_back(&param);
    }
  }
  testing::LocalRanks ranks(kRanks);
  std::vector<std::vector<float>> result;
  ranks.ForEachRank([&](int rank) {
    std::vector<std::vector<float>> p;
    std::vector<std::vector<float>> m;
    std::vector<std::vector<float>> v;
    std::vector<optim::OneBitTensor> tensors;
    for (const Layout::Param* param : params) {
      std::vector<float>& values = p.emplace_back();
      for (std::int64_t i = 0; i < param->elems; ++i) {
        values.push_back(
            InitialValue(param->unit_index, param->begin_elems + i));
      }
      m.emplace_back(values.size());
      v.emplace_back(values.size());
    }
    for (std::size_t k = 0; k < p.size(); ++k) {
      tensors.push_back({.elems = params[k]->elems,
                         .group = params[k]->group_index,
                         .master = p[k].data(),
                         .moment1 = m[k].data(),
                         .moment2 = v[k].data()});
    }
    optim::OneBitOptimizer optimizer(
        {.lamb = kind == OptimizerKind::kOneBitLamb, .freeze_step = kFreeze},
        tensors, Dtype::kFp32, rank, kRanks);
    for (std::int64_t step = 0; step < kSteps; ++step) {
      const ApplyArgs args = MakeApply(step);
      const bool local = optimizer.compressed(step + 1);
      std::vector<std::vector<float>> gradients;
      std::vector<optim::GradientSource> sources;
      for (const Layout::Param* param : params) {
        std::vector<float>& g = gradients.emplace_back();
        for (std::int64_t i = 0; i < param->elems; ++i) {
          float sum = 0;
          bool first = true;
          for (std::int32_t b = 0; b < kRanks * kMicros; ++b) {
            if (local && b % kRanks != rank) continue;
            const float x = BatchGradient(step, b, param->unit_index,
                                          param->begin_elems + i);
            sum = first ? x : sum + x;
            first = false;
          }
          g.push_back(sum);
        }
      }
      for (const auto& g : gradients) sources.push_back({.sum = g.data()});
      ASSERT_TRUE(optimizer
                      .Step(optim::BestKernels(),
                            {.t = step + 1,
                             .gradient_factor =
                                 args.gradient_factor * (local ? kRanks : 1),
                             .groups = args.groups,
                             .gradients = sources},
                            &ranks.exchange(rank))
                      .ok());
    }
    if (rank == 0) result = p;
  });
  return result;
}

}  // namespace stowage::core
