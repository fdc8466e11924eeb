// The products of a linear layer whose tensors are bf16: ours, LibTorch's fp32
// products with widening and rounding around them, and LibTorch's fp32 products
// alone, which have nothing to widen or round.
//
//   product_bench [--benchmark_filter=85M] [--benchmark_repetitions=5]
//
// One thread. Items are multiplications with their additions, so twice the
// items a second are flops. Each call takes the next of 32 weights, so that
// they come from memory, as in training; what is multiplied with them, and what
// a weight's gradient is made of, is the last layer's work and in the cache
// there.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/layers/half_products.h"
#include "engine/product/packed_product.h"

namespace stowage::engine {
namespace {

struct Layer {
  const char* name;
  std::int64_t rows, in, out;
};

constexpr std::size_t kWeights = 32;

// What the three products of a layer take.
struct Operands {
  Operands(const Layer& layer, at::ScalarType type) {
    for (std::size_t i = 0; i < kWeights; ++i) {
      w.push_back(at::randn({layer.out, layer.in}).to(type));
    }
    x = at::randn({layer.rows, layer.in}).to(type);
    gradient = at::randn({layer.rows, layer.out}).to(type);
  }
  const at::Tensor& NextWeight() { return w[next++ % kWeights]; }

  std::vector<at::Tensor> w;
  at::Tensor x, gradient;
  std::size_t next = 0;
};

enum class Kind { kForward, kInputGradient, kWeightGradient };

void Half(benchmark::State& state, Layer layer, Kind kind, ProductWay how) {
  Operands operands(layer, at::kBFloat16);
  for (auto _ : state) {
    const at::Tensor& w = operands.NextWeight();
    switch (kind) {
      case Kind::kForward:
        benchmark::DoNotOptimize(HalfProduct(operands.x, w, {}, how));
        break;
      case Kind::kInputGradient:
        benchmark::DoNotOptimize(HalfInputGradient(operands.gradient, w, how));
        break;
      case Kind::kWeightGradient:
        benchmark::DoNotOptimize(
            HalfWeightGradient(operands.gradient, operands.x, how));
        break;
    }
  }
  state.SetItemsProcessed(state.iterations() * layer.rows * layer.in *
                          layer.out);
}

void Fp32(benchmark::State& state, Layer layer, Kind kind) {
  Operands operands(layer, at::kFloat);
  for (auto _ : state) {
    const at::Tensor& w = operands.NextWeight();
    switch (kind) {
      case Kind::kForward:
        benchmark::DoNotOptimize(at::mm(operands.x, w.t()));
        break;
      case Kind::kInputGradient:
        benchmark::DoNotOptimize(at::mm(operands.gradient, w));
        break;
      case Kind::kWeightGradient:
        benchmark::DoNotOptimize(at::mm(operands.gradient.t(), operands.x));
        break;
    }
  }
  state.SetItemsProcessed(state.iterations() * layer.rows * layer.in *
                          layer.out);
}

void Register() {
  const std::vector<Layer> layers = {
      {"25M/qkv", 128, 512, 1536}, {"25M/fc", 128, 512, 2048},
      {"25M/out", 128, 2048, 512}, {"25M_micro_batch_4/fc", 512, 512, 2048},
      {"85M/fc", 128, 768, 3072},  {"85M/out", 128, 3072, 768}};
  const std::vector<std::pair<const char*, Kind>> kinds = {
      {"forward", Kind::kForward},
      {"input_gradient", Kind::kInputGradient},
      {"weight_gradient", Kind::kWeightGradient}};
  for (const Layer& layer : layers) {
    for (const auto& [name, kind] : kinds) {
      const std::string which = std::string(layer.name) + "/" + name;
      if (HavePackedProducts()) {
        benchmark::RegisterBenchmark(("packed/" + which).c_str(), Half, layer,
                                     kind, ProductWay::kPacked);
      }
      benchmark::RegisterBenchmark(("panels/" + which).c_str(), Half, layer,
                                   kind, ProductWay::kPanels);
      benchmark::RegisterBenchmark(("torch_fp32/" + which).c_str(), Fp32, layer,
                                   kind);
    }
  }
}

}  // namespace
}  // namespace stowage::engine

int main(int argc, char** argv) {
  at::set_num_threads(1);
  stowage::engine::Register();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
