#include "storage/nvme/nvme_options.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include "storage/host/pinned_arena.h"
#include "storage/nvme/memory_plan.h"

namespace stowage::storage {
namespace {

constexpr std::int32_t kSlotsMin = 3;
constexpr std::int32_t kSlotsMax = 64;
constexpr std::int32_t kPathsMax = 64;

absl::Status Bounds(const char* what, std::int64_t value, std::int64_t low,
                    std::int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("NVMe store: ", what, " is ",
                                                 value, ", must be from ", low,
                                                 " to ", high));
}

absl::Status CheckName(const std::string& name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ||
           c == '_' || c == '-';
  });
  if (plain && !name.empty() && name.front() != '.' &&
      static_cast<std::int64_t>(name.size()) <= kJobNameBytesMax) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("NVMe store: job name \"", name,
                   "\" is no folder name of [A-Za-z0-9._-], not beginning with "
                   "a dot, at most ",
                   kJobNameBytesMax, " bytes"));
}

struct Maps {
  StoreShape shape;
  ExtentMap state;
  ExtentMap params;
};

Maps MapsOf(const Layout& layout, const NvmeStoreOptions& options) {
  Maps maps{.shape = ShapeOf(layout, options), .state = {}, .params = {}};
  maps.state = StateMap(layout, maps.shape);
  maps.params = ParamMap(layout, maps.shape);
  return maps;
}

}  // namespace

absl::Status CheckNvmeOptions(const NvmeStoreOptions& options) {
  STOWAGE_RETURN_IF_ERROR(CheckName(options.job_name));
  STOWAGE_RETURN_IF_ERROR(
      Bounds("the number of paths",
             static_cast<std::int64_t>(options.paths.size()), 1, kPathsMax));
  for (std::size_t i = 0; i < options.paths.size(); ++i) {
    const std::string& path = options.paths[i];
    if (path.empty() || path.front() != '/') {
      return absl::InvalidArgumentError(
          absl::StrCat("NVMe store: path \"", path, "\" is not absolute"));
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (options.paths[j] == path) {
        return absl::InvalidArgumentError(
            absl::StrCat("NVMe store: path ", path, " is given twice"));
      }
    }
  }
  STOWAGE_RETURN_IF_ERROR(
      Bounds("kept_versions", options.kept_versions, 1, kKeptVersionsMax));
  STOWAGE_RETURN_IF_ERROR(
      Bounds("extent_bytes", options.extent_bytes, kMiB, 8 * kMiB));
  if (options.extent_bytes % kMiB != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("NVMe store: extent_bytes is ", options.extent_bytes,
                     ", must be a multiple of 1 MiB"));
  }
  STOWAGE_RETURN_IF_ERROR(Bounds("window_elems (sub_group_size)",
                                 options.window_elems, 1,
                                 std::int64_t{1} << 40));
  STOWAGE_RETURN_IF_ERROR(
      Bounds("slots (buffer_count)", options.slots, kSlotsMin, kSlotsMax));
  STOWAGE_RETURN_IF_ERROR(
      Bounds("cache_bytes", options.cache_bytes, 0, std::int64_t{1} << 50));
  STOWAGE_RETURN_IF_ERROR(
      Bounds("aio.block_size", options.block_size, 4096, kGiB));
  if (options.block_size % 4096 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("NVMe store: aio.block_size is ", options.block_size,
                     ", must be a multiple of 4096"));
  }
  STOWAGE_RETURN_IF_ERROR(
      Bounds("aio.queue_depth", options.queue_depth, 1, 4096));
  return Bounds("aio.intra_op_parallelism", options.threads, 1, 64);
}

std::int64_t NvmePinnedBytes(const Layout& layout,
                             const NvmeStoreOptions& options) {
  const Maps maps = MapsOf(layout, options);
  return PinnedArena::MappedBytes(
      PlanMemory(maps.state, maps.params, maps.shape, options).total_bytes());
}

std::int64_t NvmeSpaceBytes(const Layout& layout,
                            const NvmeStoreOptions& options,
                            std::vector<std::int64_t>* by_path) {
  const Maps maps = MapsOf(layout, options);
  const ExtentMap sums = SumMap(layout, maps.shape);
  std::vector<std::int64_t> bytes(options.paths.size());
  bytes.front() = 2 * ManifestSlotBytes(maps.shape, maps.state, maps.params);
  std::int64_t total = 0;
  for (std::size_t f = 0; f < bytes.size(); ++f) {
    const auto file = static_cast<std::int32_t>(f);
    bytes[f] += maps.state.file_bytes(file);
    if (options.params) bytes[f] += maps.params.file_bytes(file);
    if (options.gradient_spill) bytes[f] += sums.file_bytes(file);
    total += bytes[f];
  }
  if (by_path != nullptr) *by_path = std::move(bytes);
  return total;
}

std::int64_t NvmePinnedBytesMin(const Layout& layout,
                                const NvmeStoreOptions& options) {
  NvmeStoreOptions least = options;
  least.window_elems = 1;
  least.slots = kSlotsMin;
  least.cache_bytes = 0;
  return NvmePinnedBytes(layout, least);
}

absl::StatusOr<NvmeStoreOptions> FitNvmeOptions(const Layout& layout,
                                                NvmeStoreOptions options,
                                                std::int64_t budget_bytes) {
  const std::int64_t least = NvmePinnedBytesMin(layout, options);
  // What the arena rounds up to must fit as well.
  const std::int64_t usable =
      budget_bytes >= kHugePageBytes
          ? budget_bytes / kHugePageBytes * kHugePageBytes
          : budget_bytes / 4096 * 4096;
  if (least > usable) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "NVMe store of job \"", options.job_name, "\": a budget of ",
        HumanBytes(budget_bytes), " (", budget_bytes,
        " bytes) holds no pipeline; three windows of one extent of ",
        HumanBytes(options.extent_bytes), " and the manifest take ",
        HumanBytes(least), " (", least, " bytes)"));
  }
  const Maps maps = MapsOf(layout, options);
  options.cache_bytes = 0;
  options.slots = std::max(kSlotsMin, options.slots);
  const auto plan = [&] {
    return PlanMemory(maps.state, maps.params, maps.shape, options);
  };
  // Fewer and smaller windows first, so that the cache keeps three quarters.
  const auto too_large = [&] {
    const MemoryPlan now = plan();
    return now.slots * now.slot_bytes > usable / 4 ||
           now.total_bytes() > usable;
  };
  while (too_large() && options.slots > 4) --options.slots;
  while (too_large() && plan().slot_bytes > maps.state.extent_bytes_max()) {
    options.window_elems = std::max<std::int64_t>(1, options.window_elems / 2);
  }
  while (plan().total_bytes() > usable && options.slots > kSlotsMin) {
    --options.slots;
  }
  options.cache_bytes = std::max<std::int64_t>(
      0, std::min(maps.state.total_bytes(), usable - plan().total_bytes()) /
             4096 * 4096);
  return options;
}

}  // namespace stowage::storage
