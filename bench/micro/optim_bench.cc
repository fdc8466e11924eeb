// The kernels beside what memory allows, each thread on its half of the
// parameters, chunk by chunk as the server's compute team works. Time is that
// of one pass over all parameters by both threads; CPU is the processor time
// that the threads got for it, which says more on a machine that others use
// too.
//
// Compare figures of one run only, for instance:
//   optim_bench --benchmark_filter=/64M --benchmark_repetitions=7
//     --benchmark_enable_random_interleaving=true
//     --benchmark_report_aggregates_only=true
// STOWAGE_ISA chooses the kernels. `bytes_per_second` counts the bytes that
// cross the memory bus by design (DESIGN: 28 an element for Adam);
// `items_per_second` counts parameters.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "bench/micro/huge_buffer.h"
#include "bench/micro/memory_ceiling.h"
#include "common/cache_size.h"
#include "common/layout.h"
#include "optim/kernels.h"
#include "server/core/compute_team.h"

namespace stowage::bench {
namespace {

constexpr int kThreads = 2;

// Buffers of one size, made at first use and kept: 18 bytes an element.
struct Arena {
  explicit Arena(std::int64_t elems_in)
      : elems(elems_in),
        master(elems * 4),
        moment1(elems * 4),
        moment2(elems * 4),
        slot0(elems * 2),
        slot1(elems * 2),
        copy(elems * 2) {
    for (std::int64_t i = 0; i < elems; ++i) {
      const float x = static_cast<float>(i % 1021) * 1e-3F;
      master.as<float>()[i] = x;
      moment1.as<float>()[i] = 1e-3F;
      moment2.as<float>()[i] = 1e-4F;
      slot0.as<std::uint16_t>()[i] = FloatToBf16(x * 0.01F);
      slot1.as<std::uint16_t>()[i] = FloatToBf16(0.01F - x * 0.01F);
    }
    std::memset(copy.data(), 0, static_cast<std::size_t>(elems * 2));
  }
  std::int64_t elems;
  // As the server decides it: gradient, master, moments, copy.
  bool stays_cached = FitsLastLevelCache(elems * 16);
  HugeBuffer master;
  HugeBuffer moment1;
  HugeBuffer moment2;
  HugeBuffer slot0;
  HugeBuffer slot1;
  HugeBuffer copy;
};

Arena* arena = nullptr;

void UseArena(std::int64_t elems) {
  static std::map<std::int64_t, std::unique_ptr<Arena>> arenas;
  std::unique_ptr<Arena>& slot = arenas[elems];
  if (slot == nullptr) slot = std::make_unique<Arena>(elems);
  arena = slot.get();
}

// Calls fn(at, elems) for every chunk of one thread's half.
template <typename Fn>
void ForEachChunk(int thread, Fn fn) {
  const std::int64_t share = arena->elems / kThreads;
  const std::int64_t begin = share * thread;
  for (std::int64_t at = begin; at < begin + share; at += kChunkElems) {
    fn(at, std::min(kChunkElems, begin + share - at));
  }
}

// Measures passes of work(0) and work(1), run by the server's own team, which
// looks for the next pass for 10 us before it sleeps, as OpenMP's threads do.
void Measure(benchmark::State& state, std::int64_t bytes_per_elem,
             const std::string& label, const std::function<void(int)>& work) {
  core::ComputeTeam team(kThreads);
  const auto pass = [&] {
    team.ParallelFor(kThreads,
                     [&](std::int64_t half) { work(static_cast<int>(half)); });
  };
  pass();
  for (auto _ : state) pass();
  state.SetItemsProcessed(arena->elems * state.iterations());
  state.SetBytesProcessed(arena->elems * state.iterations() * bytes_per_elem);
  state.SetLabel(label);
}

void CeilingReadModifyWrite(benchmark::State& state) {
  const MemoryCeiling& ceiling = BestMemoryCeiling();
  Measure(state, 24, ceiling.isa, [&](int thread) {
    for (HugeBuffer* x : {&arena->master, &arena->moment1, &arena->moment2}) {
      ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
        ceiling.read_modify_write(x->as<float>() + at, 1.0F, elems);
      });
    }
  });
}

template <int kSlots>
void CeilingAdamAccesses(benchmark::State& state) {
  const MemoryCeiling& ceiling = BestMemoryCeiling();
  Measure(state, 26 + 2 * kSlots, ceiling.isa, [&](int thread) {
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      ceiling.adam_accesses(
          {elems, arena->slot0.as<std::uint16_t>() + at,
           kSlots == 2 ? arena->slot1.as<std::uint16_t>() + at : nullptr,
           arena->master.as<float>() + at, arena->moment1.as<float>() + at,
           arena->moment2.as<float>() + at,
           arena->copy.as<std::uint16_t>() + at},
          1.0F);
    });
  });
}

template <int kSlots>
void CeilingReadSlots(benchmark::State& state) {
  const MemoryCeiling& ceiling = BestMemoryCeiling();
  Measure(state, 2 * kSlots, ceiling.isa, [&](int thread) {
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      benchmark::DoNotOptimize(
          ceiling.read(arena->slot0.data() + at * 2, elems * 2));
      if (kSlots == 2) {
        benchmark::DoNotOptimize(
            ceiling.read(arena->slot1.data() + at * 2, elems * 2));
      }
    });
  });
}

// The slots of a chunk, as a gradient.
template <int kSlots>
struct ChunkGradient {
  explicit ChunkGradient(std::int64_t at)
      : slots{arena->slot0.data() + at * 2, arena->slot1.data() + at * 2} {}
  optim::GradientSource source() const {
    return {std::span<const void* const>(slots).first(kSlots), Dtype::kBf16,
            nullptr};
  }
  std::array<const void*, 2> slots;
};

template <int kSlots>
double LandChunk(const optim::KernelSet& kernels, std::int64_t at,
                 std::int64_t elems) {
  const ChunkGradient<kSlots> gradient(at);
  return kernels.sum_of_squares(gradient.source(), elems);
}

template <int kSlots>
void AdamChunk(const optim::KernelSet& kernels,
               const optim::AdamConstants& constants, std::int64_t at,
               std::int64_t elems) {
  const ChunkGradient<kSlots> gradient(at);
  kernels.adam(
      constants, gradient.source(),
      {elems, arena->master.as<float>() + at, arena->moment1.as<float>() + at,
       arena->moment2.as<float>() + at, arena->copy.data() + at * 2,
       Dtype::kBf16, arena->stays_cached});
}

optim::AdamConstants Constants() {
  optim::AdamHyperparameters h;
  h.lr = 1e-6;
  h.weight_decay = 0.01;
  return optim::MakeAdamConstants(h, 10, 0.5);
}

std::string IsaLabel() {
  return std::string(optim::IsaName(optim::BestKernels().isa));
}

template <int kSlots>
void Adam(benchmark::State& state) {
  const optim::KernelSet& kernels = optim::BestKernels();
  const optim::AdamConstants constants = Constants();
  Measure(state, 26 + 2 * kSlots, IsaLabel(), [&](int thread) {
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      AdamChunk<kSlots>(kernels, constants, at, elems);
    });
  });
}

template <int kSlots>
void Norm(benchmark::State& state) {
  const optim::KernelSet& kernels = optim::BestKernels();
  Measure(state, 2 * kSlots, IsaLabel(), [&](int thread) {
    double total = 0;
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      total += LandChunk<kSlots>(kernels, at, elems);
    });
    benchmark::DoNotOptimize(total);
  });
}

// Norm over everything, then Adam with the clip factor: what a step costs.
template <int kSlots>
void Chain(benchmark::State& state) {
  const optim::KernelSet& kernels = optim::BestKernels();
  std::barrier<> landed(kThreads);
  std::array<double, kThreads> totals = {};
  Measure(state, 26 + 4 * kSlots, IsaLabel(), [&](int thread) {
    double total = 0;
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      total += LandChunk<kSlots>(kernels, at, elems);
    });
    totals[static_cast<std::size_t>(thread)] = total;
    landed.arrive_and_wait();
    optim::AdamConstants constants = Constants();
    const double norm = std::sqrt(totals[0] + totals[1]);
    if (norm > 1) constants.gradient_factor /= static_cast<float>(norm);
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      AdamChunk<kSlots>(kernels, constants, at, elems);
    });
  });
}

// The accesses of Lamb's two passes: 14 bytes read, then Adam's 28.
void CeilingLambAccesses(benchmark::State& state) {
  const MemoryCeiling& ceiling = BestMemoryCeiling();
  std::barrier<> measured(kThreads);
  Measure(state, 42, ceiling.isa, [&](int thread) {
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      benchmark::DoNotOptimize(
          ceiling.read(arena->slot0.data() + at * 2, elems * 2));
      for (HugeBuffer* x : {&arena->master, &arena->moment1, &arena->moment2}) {
        benchmark::DoNotOptimize(ceiling.read(x->data() + at * 4, elems * 4));
      }
    });
    measured.arrive_and_wait();
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      ceiling.adam_accesses(
          {elems, arena->slot0.as<std::uint16_t>() + at, nullptr,
           arena->master.as<float>() + at, arena->moment1.as<float>() + at,
           arena->moment2.as<float>() + at,
           arena->copy.as<std::uint16_t>() + at},
          1.0F);
    });
  });
}

optim::AdamRange ChunkRange(std::int64_t at, std::int64_t elems) {
  return {elems,
          arena->master.as<float>() + at,
          arena->moment1.as<float>() + at,
          arena->moment2.as<float>() + at,
          arena->copy.data() + at * 2,
          Dtype::kBf16};
}

// One tensor of all elements: norms, ratio, update.
template <bool kUpdate>
void Lamb(benchmark::State& state) {
  const optim::KernelSet& kernels = optim::BestKernels();
  optim::LambHyperparameters h;
  h.lr = 1e-6;
  h.weight_decay = 0.01;
  const optim::LambConstants constants = optim::MakeLambConstants(h, 10, 0.5);
  std::barrier<> measured(kThreads);
  std::array<optim::LambNorms, kThreads> norms = {};
  Measure(state, kUpdate ? 42 : 14, IsaLabel(), [&](int thread) {
    optim::LambNorms sum;
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      const ChunkGradient<1> gradient(at);
      const optim::LambNorms part = kernels.lamb_norms(
          constants, gradient.source(), ChunkRange(at, elems));
      sum.weight += part.weight;
      sum.update += part.update;
    });
    norms[static_cast<std::size_t>(thread)] = sum;
    measured.arrive_and_wait();
    if (!kUpdate) return;
    const double ratio = optim::LambTrustRatio(
        constants,
        {norms[0].weight + norms[1].weight, norms[0].update + norms[1].update});
    const auto step = static_cast<float>(constants.step_size * ratio);
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      const ChunkGradient<1> gradient(at);
      kernels.lamb(constants, step, gradient.source(), ChunkRange(at, elems));
    });
  });
}

// A slot added to the fp32 sum: 10 bytes an element.
void Accumulate(benchmark::State& state) {
  const optim::KernelSet& kernels = optim::BestKernels();
  Measure(state, 10, IsaLabel(), [&](int thread) {
    ForEachChunk(thread, [&](std::int64_t at, std::int64_t elems) {
      const ChunkGradient<1> gradient(at);
      kernels.accumulate(gradient.source().slots, Dtype::kBf16, false,
                         arena->moment1.as<float>() + at, elems);
    });
  });
}

void Register(const std::string& name, void (*function)(benchmark::State&)) {
  for (const auto& [label, elems] :
       {std::pair<const char*, std::int64_t>{"64M", std::int64_t{64} << 20},
        std::pair<const char*, std::int64_t>{"1M", std::int64_t{1} << 20}}) {
    benchmark::RegisterBenchmark(
        (name + "/" + label).c_str(),
        [function, elems = elems](benchmark::State& state) {
          UseArena(elems);
          function(state);
        })
        ->MeasureProcessCPUTime()
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace
}  // namespace stowage::bench

int main(int argc, char** argv) {
  using namespace stowage::bench;  // NOLINT(google-build-using-namespace)
  Register("ceiling_read_modify_write", &CeilingReadModifyWrite);
  Register("ceiling_adam_accesses_1_slot", &CeilingAdamAccesses<1>);
  Register("ceiling_adam_accesses_2_slots", &CeilingAdamAccesses<2>);
  Register("ceiling_read_1_slot", &CeilingReadSlots<1>);
  Register("ceiling_read_2_slots", &CeilingReadSlots<2>);
  Register("adam_1_slot", &Adam<1>);
  Register("adam_2_slots", &Adam<2>);
  Register("norm_1_slot", &Norm<1>);
  Register("norm_2_slots", &Norm<2>);
  Register("chain_1_slot", &Chain<1>);
  Register("chain_2_slots", &Chain<2>);
  Register("accumulate_1_slot", &Accumulate);
  Register("ceiling_lamb_accesses_1_slot", &CeilingLambAccesses);
  Register("lamb_1_slot", &Lamb<true>);
  Register("lamb_norms_1_slot", &Lamb<false>);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
