// The NVMe store without server and ranks: sequential payload reads and writes,
// mixed passes, and optimizer steps whose state is all on the disk.
//
// One mode a call, so that fio can take turns on the same files (tools/bench
// --nvme, bench/side_by_side/nvme.py): `prepare` makes a store, the others open
// it, measure and print one JSON object. `free_offset_bytes` and `free_bytes`
// say which part of state.0 no kept step refers to: fio may write there.
//
//   nvme_bench --path DIR --mode prepare|read|write|mixed|step|remove
//   nvme_bench --path DIR --mode cache   # bytes by the cache's rule and by LRU

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "bench/micro/cache_rule.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/layout.h"
#include "common/status_macros.h"
#include "optim/kernels.h"
#include "server/core/compute_team.h"
#include "storage/host/memory_budget.h"
#include "storage/host/pinned_arena.h"
#include "storage/nvme/io/disk.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/nvme_store.h"

namespace stowage::bench {
namespace {

using storage::NvmeStore;
using storage::NvmeStoreOptions;

struct Flags {
  std::string path;
  std::string mode;
  std::int64_t elems = std::int64_t{64} << 20;
  std::int64_t unit_elems = std::int64_t{4} << 20;
  std::int64_t window_elems = std::int64_t{2} << 20;
  int slots = 4;
  int rounds = 3;
  int threads = 2;
  int queue_depth = 16;
  std::int64_t block_size = kMiB;
  std::int64_t extent_bytes = 4 * kMiB;
  double cache_fraction = 0;
  bool power = false;
  bool no_checksums = false;
  bool pool = false;
  bool single_submit = false;
};

double Now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double CpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) +
           1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

Layout MakeLayout(const Flags& flags) {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {{.name = "all"}};
  for (std::int64_t at = 0, unit = 0; at < flags.elems;
       at += flags.unit_elems, ++unit) {
    spec.units.push_back({.name = absl::StrCat("unit", unit),
                          .params = {{.name = absl::StrCat("w", unit),
                                      .shape = {std::min(flags.unit_elems,
                                                         flags.elems - at)}}}});
  }
  return *Layout::Create(spec);
}

NvmeStoreOptions MakeOptions(const Flags& flags, const Layout& layout) {
  NvmeStoreOptions options;
  options.job_name = "bench";
  options.paths = {std::filesystem::absolute(flags.path).string()};
  options.durability = flags.power ? Durability::kPower : Durability::kMemory;
  options.params = true;
  options.checksums = !flags.no_checksums;
  options.extent_bytes = flags.extent_bytes;
  options.window_elems = flags.window_elems;
  options.slots = flags.slots;
  options.block_size = flags.block_size;
  options.queue_depth = flags.queue_depth;
  options.single_submit = flags.single_submit;
  options.threads = flags.pool ? flags.queue_depth : 1;
  options.lock_memory = false;
  options.backend =
      flags.pool ? storage::IoBackend::kPool : storage::IoBackend::kAuto;
  options.cache_bytes = static_cast<std::int64_t>(
      flags.cache_fraction * 12 * static_cast<double>(layout.state_elems()));
  return options;
}

struct Measured {
  std::int64_t bytes_read = 0;
  std::int64_t bytes_written = 0;
  double seconds = 0;
  double cpu_seconds = 0;
};

storage::PinnedArena MakeArena(storage::MemoryBudget* budget,
                               std::int64_t bytes) {
  auto reservation =
      budget->Reserve(storage::PinnedArena::MappedBytes(bytes), "bench");
  STOWAGE_CHECK_OK(reservation.status());
  auto arena = storage::PinnedArena::Create(bytes, false, budget,
                                            *std::move(reservation));
  STOWAGE_CHECK_OK(arena.status());
  return *std::move(arena);
}

// All units' payloads, `ahead` of them in flight, as a forward fetches them.
Measured Payloads(NvmeStore& store, const Layout& layout, bool write,
                  storage::MemoryBudget* budget) {
  constexpr std::int32_t kAhead = 4;
  STOWAGE_CHECK(layout.unit_count() >= kAhead);
  storage::UnitStore& units = *store.params();
  const std::int64_t unit_bytes = units.payload_bytes(0);
  const storage::PinnedArena arena = MakeArena(budget, kAhead * unit_bytes);
  Measured measured;
  const double cpu = CpuSeconds();
  const double begin = Now();
  const std::int32_t count = layout.unit_count();
  // As many times over as makes about a GiB; the last ones only wait.
  const auto repeats = static_cast<std::int32_t>(
      std::max<std::int64_t>(1, kGiB / (2 * layout.total_elems())));
  for (std::int32_t turn = 0; turn < count * repeats + kAhead; ++turn) {
    if (turn >= kAhead) STOWAGE_CHECK_OK(units.Await((turn - kAhead) % count));
    if (turn >= count * repeats) continue;
    const std::int32_t u = turn % count;
    const std::span<std::byte> memory(
        arena.data() + (turn % kAhead) * unit_bytes,
        static_cast<std::size_t>(units.payload_bytes(u)));
    STOWAGE_CHECK_OK(write ? units.StartWrite(u, memory)
                           : units.StartRead(u, memory));
    (write ? measured.bytes_written : measured.bytes_read) +=
        units.payload_bytes(u);
  }
  if (write) STOWAGE_CHECK_OK(store.Commit(store.committed()));
  measured.seconds = Now() - begin;
  measured.cpu_seconds = CpuSeconds() - cpu;
  return measured;
}

// A pass; with `optimize` AdamW runs on every chunk, else only the checksums.
class Passes {
 public:
  Passes(const Flags& flags, const Layout& layout,
         storage::MemoryBudget* budget)
      : layout_(layout),
        team_(flags.threads),
        half_(MakeArena(budget, 4 * layout.total_elems())),
        constants_(optim::MakeAdamConstants({.lr = 1e-3}, 1, 1.0)) {
    for (std::size_t c = 0; c < layout.chunks().size(); ++c) {
      order_.push_back(static_cast<std::int32_t>(c));
    }
  }

  Measured Run(NvmeStore& store, bool optimize) {
    const storage::NvmeStoreStats before = store.stats();
    const double cpu = CpuSeconds();
    const double begin = Now();
    STOWAGE_CHECK_OK(store.BeginUpdate(order_));
    for (;;) {
      const auto window = store.AcquireNext();
      STOWAGE_CHECK_OK(window.status());
      if (window->empty()) break;
      team_.ParallelFor(window->end - window->begin, [&](std::int64_t i) {
        const std::int64_t position = window->begin + i;
        STOWAGE_CHECK_OK(store.VerifyChunk(position));
        if (optimize) Optimize(store, position);
        store.ChunkUpdated(position);
      });
      STOWAGE_CHECK_OK(store.Release(*window));
    }
    storage::CommitRecord record = store.committed();
    ++record.step;
    STOWAGE_CHECK_OK(store.Commit(record));
    Measured measured;
    measured.seconds = Now() - begin;
    measured.cpu_seconds = CpuSeconds() - cpu;
    measured.bytes_read = store.stats().bytes_read - before.bytes_read;
    measured.bytes_written = store.stats().bytes_written - before.bytes_written;
    return measured;
  }

 private:
  void Optimize(NvmeStore& store, std::int64_t position) {
    const Layout::Chunk& chunk = layout_.chunks()[static_cast<std::size_t>(
        order_[static_cast<std::size_t>(position)])];
    const std::int64_t at =
        layout_.units()[static_cast<std::size_t>(chunk.unit_index)]
            .begin_elems +
        chunk.begin_elems;
    const void* const gradient = half_.data() + 2 * at;
    const storage::StateView view = store.View(position);
    optim::BestKernels().adam(
        constants_,
        {.slots = {&gradient, 1}, .slot_dtype = Dtype::kBf16, .sum = nullptr},
        {.elems = chunk.elems,
         .master = view.master,
         .moment1 = view.moment1,
         .moment2 = view.moment2,
         .copy = half_.data() + 2 * (layout_.total_elems() + at),
         .copy_dtype = Dtype::kBf16});
  }

  const Layout& layout_;
  core::ComputeTeam team_;
  storage::PinnedArena half_;  // gradients, then the ranks' copy; bf16
  const optim::AdamConstants constants_;
  std::vector<std::int32_t> order_;
};

// Where fio may write: the place of state.0 that the last step does not use.
// Whole, as long as every extent of a step is in the same place.
void PrintFree(const NvmeStoreOptions& options, const Layout& layout) {
  const std::string file =
      storage::ManifestFile(options.paths.front(), options.job_name);
  auto slots = storage::ReadManifestFile(storage::MachineDisk(), file);
  STOWAGE_CHECK_OK(slots.status());
  auto newest = slots->Newest(file);
  STOWAGE_CHECK_OK(newest.status());
  const storage::ExtentMap map = storage::StateMap(layout, (*newest)->shape);
  const std::vector<std::uint8_t>& places =
      (*newest)->commits.back().state.places;
  STOWAGE_CHECK(std::all_of(places.begin(), places.end(),
                            [&](auto place) { return place == places[0]; }));
  const std::int64_t region = map.file_bytes(0) / map.shape().places;
  std::printf(
      "\"free_offset_bytes\": %lld, \"free_bytes\": %lld, \"file\": \"%s\"",
      static_cast<long long>((1 - places[0]) * region),
      static_cast<long long>(region),
      storage::StoreFile((*newest)->shape, "state", 0).c_str());
}

void Prepare(const NvmeStoreOptions& options, const Layout& layout,
             storage::MemoryBudget* budget) {
  STOWAGE_CHECK_OK(NvmeStore::Remove(options.paths, options.job_name));
  auto reservation =
      budget->Reserve(storage::NvmePinnedBytes(layout, options), "bench");
  STOWAGE_CHECK_OK(reservation.status());
  auto store =
      NvmeStore::Create(layout, options, budget, *std::move(reservation));
  STOWAGE_CHECK_OK(store.status());
  std::vector<float> values;
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    values.assign(
        static_cast<std::size_t>(
            layout.units()[static_cast<std::size_t>(u)].trainable_elems),
        0.5F);
    STOWAGE_CHECK_OK((*store)->Put(u, 0, values));
  }
  Payloads(**store, layout, /*write=*/true, budget);
  STOWAGE_CHECK_OK((*store)->Close());
}

void Measure(const Flags& flags, const NvmeStoreOptions& options,
             const Layout& layout, storage::MemoryBudget* budget) {
  auto reservation =
      budget->Reserve(storage::NvmePinnedBytes(layout, options), "bench");
  STOWAGE_CHECK_OK(reservation.status());
  auto store =
      NvmeStore::Open(layout, options, budget, *std::move(reservation));
  STOWAGE_CHECK_OK(store.status());
  const bool passes = flags.mode == "mixed" || flags.mode == "step";
  std::unique_ptr<Passes> pass;
  if (passes) pass = std::make_unique<Passes>(flags, layout, budget);
  std::vector<Measured> rounds;
  for (int r = 0; r < flags.rounds; ++r) {
    rounds.push_back(
        passes ? pass->Run(**store, flags.mode == "step")
               : Payloads(**store, layout, flags.mode == "write", budget));
  }
  const storage::NvmeStoreStats stats = (*store)->stats();
  const std::string io = (*store)->DescribeIo();
  STOWAGE_CHECK_OK((*store)->Close());
  std::printf(
      "\"io\": \"%s\", \"read_wait_s\": %.4f, \"write_wait_s\": %.4f, "
      "\"commit_s\": %.4f, \"rounds\": [",
      io.c_str(), stats.read_wait_seconds, stats.write_wait_seconds,
      stats.commit_seconds);
  for (std::size_t r = 0; r < rounds.size(); ++r) {
    std::printf(
        "%s{\"read_bytes\": %lld, \"written_bytes\": %lld, "
        "\"seconds\": %.6f, \"cpu_seconds\": %.6f}",
        r == 0 ? "" : ", ", static_cast<long long>(rounds[r].bytes_read),
        static_cast<long long>(rounds[r].bytes_written), rounds[r].seconds,
        rounds[r].cpu_seconds);
  }
  std::printf("], ");
}

void RunMode(const Flags& flags) {
  const Layout layout = MakeLayout(flags);
  const NvmeStoreOptions options = MakeOptions(flags, layout);
  storage::MemoryBudget budget(std::int64_t{1} << 40);
  if (flags.mode == "cache") {
    std::printf("%s\n", MeasureCacheRule(flags.path, flags.elems).c_str());
    return;
  }
  if (flags.mode == "remove") {
    STOWAGE_CHECK_OK(NvmeStore::Remove(options.paths, options.job_name));
    return;
  }
  std::printf(
      "{\"mode\": \"%s\", \"durability\": \"%s\", \"checksums\": %s, "
      "\"elems\": %lld, ",
      flags.mode.c_str(), flags.power ? "power" : "memory",
      flags.no_checksums ? "false" : "true",
      static_cast<long long>(flags.elems));
  if (flags.mode == "prepare") {
    Prepare(options, layout, &budget);
  } else {
    Measure(flags, options, layout, &budget);
  }
  PrintFree(options, layout);
  std::printf("}\n");
}

// Every mode for a moment, in the working folder: does the program still run?
void RunEachForAMoment() {
  Flags flags;
  flags.path = ".";
  flags.elems = std::int64_t{4} << 20;
  flags.unit_elems = std::int64_t{1} << 20;
  flags.rounds = 1;
  for (const char* mode :
       {"prepare", "read", "write", "mixed", "step", "remove", "cache"}) {
    flags.mode = mode;
    RunMode(flags);
  }
}

int Main(int argc, char** argv) {
  // As tools/test --full calls every benchmark.
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]).substr(0, 12) == "--benchmark_") {
      RunEachForAMoment();
      return 0;
    }
  }
  Flags flags;
  CLI::App app{"Measures the NVMe store; prints one JSON object."};
  app.add_option("--path", flags.path, "folder on the device")->required();
  app.add_option("--mode", flags.mode,
                 "prepare, read, write, mixed, step or remove; cache: what the "
                 "cache's rule is worth")
      ->required()
      ->check(CLI::IsMember(
          {"prepare", "read", "write", "mixed", "step", "remove", "cache"}));
  app.add_option("--elems", flags.elems, "parameters");
  app.add_option("--unit-elems", flags.unit_elems, "parameters of a unit");
  app.add_option("--window-elems", flags.window_elems, "sub_group_size");
  app.add_option("--slots", flags.slots, "buffer_count");
  app.add_option("--rounds", flags.rounds, "measurements in one call");
  app.add_option("--threads", flags.threads, "that compute");
  app.add_option("--queue-depth", flags.queue_depth, "aio.queue_depth");
  app.add_option("--block-size", flags.block_size, "aio.block_size");
  app.add_option("--extent-bytes", flags.extent_bytes, "of a new store");
  app.add_option("--cache-fraction", flags.cache_fraction, "of the state");
  app.add_flag("--single-submit", flags.single_submit, "aio.single_submit");
  app.add_flag("--power", flags.power, "durability power; else memory");
  app.add_flag("--no-checksums", flags.no_checksums, "of a new store");
  app.add_flag("--pool", flags.pool, "pread/pwrite instead of io_uring");
  CLI11_PARSE(app, argc, argv);

  RunMode(flags);
  return 0;
}

}  // namespace
}  // namespace stowage::bench

int main(int argc, char** argv) { return stowage::bench::Main(argc, argv); }
