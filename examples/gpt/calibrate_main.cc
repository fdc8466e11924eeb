// stow-calibrate: one rank's forward and backward on this machine, with all
// ranks of the node at once, for `stowctl plan`.
//
// The model of stow-train without ZeRO, as shallow as it goes (1 and 3 blocks):
// what a block costs follows from the difference, and with it any depth. Its
// parameters lie in shared memory, and each gradient is copied there and
// dropped, so that the process does and holds what a rank does whose parameters
// and gradients are in segments. Prints one JSON object; ends within --seconds.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/dtype.h"
#include "engine/device/host_allocator.h"
#include "engine/zero/coordinator.h"
#include "examples/gpt/model.h"
#include "examples/gpt/plain_builder.h"
#include <CLI/CLI.hpp>

namespace stowage::gpt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDepths[] = {1, 3};
constexpr int kRanksMax = 256;

struct Options {
  ModelOptions model;
  std::int64_t micro_batch = 4;
  std::string precision = "bf16";
  int ranks = 1;
  int threads = 1;
  double seconds = 12;
};

struct Measured {
  double forward = 0;
  double backward = 0;
  std::int64_t anonymous_bytes = 0;  // the most that the process had
  // What a forward leaves for its backward: exact, where the former has what
  // the allocator keeps beside it.
  std::int64_t saved_bytes = 0;
};

// A tensor that is no private memory; never unmapped.
at::Tensor SharedLike(const at::Tensor& tensor) {
  void* const memory = mmap(nullptr, tensor.nbytes(), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return at::from_blob(memory, tensor.sizes(), tensor.options());
}

// As the engine's, which copies the gradient into a segment.
class TakeGradient final : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit TakeGradient(const at::Tensor& parameter)
      : segment_(SharedLike(parameter)) {}
  void operator()(const torch::autograd::Variable& tensor) override {
    segment_.copy_(tensor.grad());
    tensor.mutable_grad().reset();
  }

 private:
  at::Tensor segment_;
};

std::int64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<std::int64_t>(info.uordblks + info.hblkhd);
}

// Shared by the ranks: they start each depth together.
struct Board {
  std::atomic<int> arrived[2];
  Measured measured[2][kRanksMax];
};

std::int64_t AnonymousBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    long long kilobytes = 0;
    if (std::sscanf(line.c_str(), "RssAnon: %lld", &kilobytes) == 1) {
      return kilobytes * 1024;
    }
  }
  return 0;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Measured Measure(const Options& options, int depth, double seconds) {
  ModelOptions shape = options.model;
  shape.layers = depth;
  PlainBuilder builder(1);
  Model<PlainBuilder> model(builder, shape);
  const at::ScalarType dtype =
      engine::ToScalarType(ParseDtype(options.precision).value());
  Measured measured;
  for (const auto& [name, module] : builder.modules()) {
    for (at::Tensor& parameter : module->parameters()) {
      const at::Tensor value = parameter.detach().to(dtype);
      at::Tensor shared = SharedLike(value);
      shared.copy_(value);
      parameter.set_data(shared);
      torch::autograd::impl::set_post_acc_grad_hooks(
          parameter, std::make_unique<TakeGradient>(shared));
    }
  }
  engine::ReturnFreeMemory();
  const at::Tensor tokens =
      at::randint(kVocabulary, {options.micro_batch, shape.context}, at::kLong);
  std::vector<double> forward;
  std::vector<double> backward;
  const auto begin = Clock::now();
  const auto since = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  for (int pass = 0; pass < 3 || since(begin) < seconds; ++pass) {
    const std::int64_t heap_bytes = HeapBytes();
    const auto start = Clock::now();
    const at::Tensor loss = Loss(model(tokens), tokens);
    const double forward_seconds = since(start);
    measured.saved_bytes = HeapBytes() - heap_bytes;
    const auto middle = Clock::now();
    loss.backward();
    if (pass > 0) {  // the first wakes caches and threads
      forward.push_back(forward_seconds);
      backward.push_back(since(middle));
    }
  }
  measured.forward = Median(forward);
  measured.backward = Median(backward);
  measured.anonymous_bytes = AnonymousBytes();
  return measured;
}

void RunRank(const Options& options, int rank, Board* board) {
  engine::TuneHostAllocator();
  at::set_num_threads(options.threads);
  for (int i = 0; i < 2; ++i) {
    board->arrived[i].fetch_add(1);
    while (board->arrived[i].load() < options.ranks) usleep(200);
    board->measured[i][rank] =
        Measure(options, kDepths[i], options.seconds / 3);
    malloc_trim(0);
  }
}

Measured MedianOf(const Board& board, int depth, int ranks) {
  std::vector<double> forward;
  std::vector<double> backward;
  Measured out = board.measured[depth][0];
  for (int rank = 0; rank < ranks; ++rank) {
    forward.push_back(board.measured[depth][rank].forward);
    backward.push_back(board.measured[depth][rank].backward);
    out.anonymous_bytes = std::max(out.anonymous_bytes,
                                   board.measured[depth][rank].anonymous_bytes);
  }
  out.forward = Median(forward);
  out.backward = Median(backward);
  return out;
}

int Run(const Options& options) {
  void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  auto* board = new (memory) Board{};
  // Children before anything of LibTorch runs here: its threads do not survive
  // a fork.
  std::vector<pid_t> children;
  for (int rank = 0; rank < options.ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      RunRank(options, rank, board);
      _exit(0);
    }
    if (child > 0) children.push_back(child);
  }
  bool good = static_cast<int>(children.size()) == options.ranks;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    good = good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  if (!good) {
    std::fprintf(stderr, "stow-calibrate: a rank did not finish\n");
    return 1;
  }
  const auto print = [&](const char* name, const Measured& m,
                         const char* separator) {
    std::printf(
        "  \"%s\": {\"forward_seconds\": %.9f, \"backward_seconds\": %.9f, "
        "\"anonymous_bytes\": %lld, \"saved_bytes\": %lld}%s\n",
        name, m.forward, m.backward, static_cast<long long>(m.anonymous_bytes),
        static_cast<long long>(m.saved_bytes), separator);
  };
  std::printf("{\n");
  print("one_block", MedianOf(*board, 0, options.ranks), ",");
  print("three_blocks", MedianOf(*board, 1, options.ranks), "");
  std::printf("}\n");
  return 0;
}

}  // namespace
}  // namespace stowage::gpt

int main(int argc, char** argv) {
  stowage::gpt::Options options;
  CLI::App app{
      "Measures one rank's forward and backward on this machine, with all "
      "ranks at once, and prints JSON. stowctl plan runs it.",
      "stow-calibrate"};
  app.add_option("--width", options.model.width)
      ->check(CLI::Range(8, 65536))
      ->capture_default_str();
  app.add_option("--heads", options.model.heads)
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--context", options.model.context)
      ->check(CLI::Range(2, 65536))
      ->capture_default_str();
  app.add_option("--micro-batch", options.micro_batch)
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--precision", options.precision)
      ->check(CLI::IsMember({"fp16", "bf16", "fp32"}))
      ->capture_default_str();
  app.add_option("--ranks", options.ranks)
      ->check(CLI::Range(1, stowage::gpt::kRanksMax))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "of each rank")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds)
      ->check(CLI::Range(0.1, 60.0))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return stowage::gpt::Run(options);
}
