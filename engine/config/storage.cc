// The StorageSpec that the server is sent, from the keys that users write.

#include <algorithm>
#include <limits>

#include "engine/config/config.h"

namespace stowage::engine::config {
namespace {

// A count that the schema lets be larger than the protocol's field.
std::int32_t Narrow(std::int64_t value) {
  return static_cast<std::int32_t>(
      std::min<std::int64_t>(value, std::numeric_limits<std::int32_t>::max()));
}

void AddPath(std::string path, std::vector<std::string>& paths) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.empty() ||
      std::find(paths.begin(), paths.end(), path) != paths.end()) {
    return;
  }
  paths.push_back(std::move(path));
}

}  // namespace

StorageSpec ToStorageSpec(const Config& config, std::int32_t local_ranks) {
  const OffloadOptimizer& optimizer =
      config.zero_optimization.offload_optimizer;
  const OffloadParam& param = config.zero_optimization.offload_param;
  const auto place = [](OffloadDevice device) {
    return device == OffloadDevice::kNvme ? Placement::kNvme
                                          : Placement::kMemory;
  };
  StorageSpec spec;
  spec.memory_budget_bytes = config.stowage.memory_budget_bytes;
  spec.optimizer = place(optimizer.device);
  spec.params = place(param.device);
  spec.pin_memory = optimizer.pin_memory && param.pin_memory;
  if (!spec.on_nvme()) return spec;
  if (spec.optimizer == Placement::kNvme) {
    AddPath(optimizer.nvme_path, spec.nvme_paths);
  }
  if (spec.params == Placement::kNvme) {
    AddPath(param.nvme_path, spec.nvme_paths);
  }
  for (const std::string& path : config.stowage.nvme_paths) {
    AddPath(path, spec.nvme_paths);
  }
  spec.kept_steps = Narrow(config.stowage.kept_steps);
  spec.nvme_budget_bytes = config.stowage.nvme_budget_bytes;
  spec.aio = {.block_size_bytes = config.aio.block_size,
              .queue_depth = Narrow(config.aio.queue_depth),
              .intra_op_parallelism = Narrow(config.aio.intra_op_parallelism),
              .single_submit = config.aio.single_submit,
              .overlap_events = config.aio.overlap_events};
  spec.optimizer_buffers = Narrow(optimizer.buffer_count);
  spec.sub_group_elems = config.zero_optimization.sub_group_size;
  spec.pipeline_read = optimizer.pipeline_read;
  spec.pipeline_write = optimizer.pipeline_write;
  spec.param_buffers = Narrow(param.buffer_count);
  spec.param_buffer_elems = param.buffer_size;
  spec.max_in_cpu_elems =
      param.max_in_cpu > std::numeric_limits<std::int64_t>::max() / local_ranks
          ? std::numeric_limits<std::int64_t>::max()
          : param.max_in_cpu * local_ranks;
  return spec;
}

}  // namespace stowage::engine::config
