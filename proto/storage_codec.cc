#include "proto/storage_codec.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/job_codec.h"

namespace stowage::proto {
namespace {

constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();

absl::Status Bad(const std::string& text) {
  return absl::InvalidArgumentError(absl::StrCat("storage: ", text));
}

absl::Status CheckRange(const char* what, std::int64_t value, std::int64_t min,
                        std::int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  if (max == kAny) {
    return Bad(absl::StrCat(what, ": ", value, ", expected at least ", min));
  }
  return Bad(absl::StrCat(what, ": ", value, ", expected ", min, " to ", max));
}

absl::StatusOr<Placement> DecodePlacement(const char* what,
                                          v1::Placement placement) {
  switch (placement) {
    case v1::PLACEMENT_UNSPECIFIED:
    case v1::PLACEMENT_MEMORY:
      return Placement::kMemory;
    case v1::PLACEMENT_NVME:
      return Placement::kNvme;
    default:
      return Bad(absl::StrCat(what, ": unknown placement ",
                              static_cast<int>(placement)));
  }
}

// A path that means what it says: absolute, no "..", no control characters.
absl::Status CheckPath(const std::string& path) {
  if (static_cast<std::int64_t>(path.size()) > kNvmePathBytesMax) {
    return Bad(absl::StrCat("nvme path: ", path.size(), " bytes, at most ",
                            kNvmePathBytesMax));
  }
  for (const char c : path) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return Bad("nvme path: holds a control character");
    }
  }
  if (path.empty() || path.front() != '/') {
    return Bad(absl::StrCat("nvme path \"", path, "\": not absolute"));
  }
  if (absl::StrCat(path, "/").find("/../") != std::string::npos) {
    return Bad(absl::StrCat("nvme path \"", path, "\": has a \"..\" in it"));
  }
  return absl::OkStatus();
}

absl::StatusOr<AioSpec> DecodeAio(const v1::AioSpec& message) {
  STOWAGE_RETURN_IF_ERROR(CheckRange("aio.block_size",
                                     message.block_size_bytes(),
                                     kAioBlockBytesMin, kAioBlockBytesMax));
  if (message.block_size_bytes() % kAioBlockBytesMin != 0) {
    return Bad(absl::StrCat("aio.block_size: ", message.block_size_bytes(),
                            ", expected a multiple of ", kAioBlockBytesMin));
  }
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("aio.queue_depth", message.queue_depth(), 1, kQueueDepthMax));
  STOWAGE_RETURN_IF_ERROR(CheckRange("aio.intra_op_parallelism",
                                     message.intra_op_parallelism(), 1,
                                     kAioThreadsMax));
  AioSpec aio;
  aio.block_size_bytes = message.block_size_bytes();
  aio.queue_depth = message.queue_depth();
  aio.intra_op_parallelism = message.intra_op_parallelism();
  aio.single_submit = message.single_submit();
  aio.overlap_events = message.overlap_events();
  return aio;
}

absl::Status CheckNumbers(const v1::StorageSpec& m) {
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("kept steps", m.kept_steps(), 1, kKeptStepsMax));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("optimizer buffers", m.optimizer_buffers(), 1, kBuffersMax));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("sub-group elements", m.sub_group_elems(), 1, kAny));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("parameter buffers", m.param_buffers(), 1, kBuffersMax));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("parameter buffer elements", m.param_buffer_elems(), 1, kAny));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("max_in_cpu", m.max_in_cpu_elems(), 0, kAny));
  STOWAGE_RETURN_IF_ERROR(
      CheckRange("memory budget", m.memory_budget_bytes(), 0, kAny));
  return CheckRange("nvme budget", m.nvme_budget_bytes(), 0, kAny);
}

}  // namespace

absl::StatusOr<StorageSpec> DecodeStorageSpec(const v1::StorageSpec& message) {
  StorageSpec spec;
  STOWAGE_ASSIGN_OR_RETURN(spec.optimizer,
                           DecodePlacement("optimizer", message.optimizer()));
  STOWAGE_ASSIGN_OR_RETURN(spec.params,
                           DecodePlacement("parameters", message.params()));
  STOWAGE_RETURN_IF_ERROR(CheckRange("nvme paths", message.nvme_paths_size(),
                                     spec.on_nvme() ? 1 : 0,
                                     spec.on_nvme() ? kNvmePathsMax : 0));
  for (const std::string& path : message.nvme_paths()) {
    STOWAGE_RETURN_IF_ERROR(CheckPath(path));
    spec.nvme_paths.push_back(path);
  }
  STOWAGE_RETURN_IF_ERROR(CheckNumbers(message));
  STOWAGE_ASSIGN_OR_RETURN(spec.aio, DecodeAio(message.aio()));
  spec.kept_steps = message.kept_steps();
  spec.optimizer_buffers = message.optimizer_buffers();
  spec.sub_group_elems = message.sub_group_elems();
  spec.pipeline_read = message.pipeline_read();
  spec.pipeline_write = message.pipeline_write();
  spec.param_buffers = message.param_buffers();
  spec.param_buffer_elems = message.param_buffer_elems();
  spec.max_in_cpu_elems = message.max_in_cpu_elems();
  spec.pin_memory = message.pin_memory();
  spec.memory_budget_bytes = message.memory_budget_bytes();
  spec.nvme_budget_bytes = message.nvme_budget_bytes();
  return spec;
}

void EncodeStorageSpec(const StorageSpec& spec, v1::StorageSpec* message) {
  const auto encode = [](Placement placement) {
    return placement == Placement::kNvme ? v1::PLACEMENT_NVME
                                         : v1::PLACEMENT_MEMORY;
  };
  message->Clear();
  message->set_optimizer(encode(spec.optimizer));
  message->set_params(encode(spec.params));
  for (const std::string& path : spec.nvme_paths) message->add_nvme_paths(path);
  message->set_kept_steps(spec.kept_steps);
  v1::AioSpec* aio = message->mutable_aio();
  aio->set_block_size_bytes(spec.aio.block_size_bytes);
  aio->set_queue_depth(spec.aio.queue_depth);
  aio->set_intra_op_parallelism(spec.aio.intra_op_parallelism);
  aio->set_single_submit(spec.aio.single_submit);
  aio->set_overlap_events(spec.aio.overlap_events);
  message->set_optimizer_buffers(spec.optimizer_buffers);
  message->set_sub_group_elems(spec.sub_group_elems);
  message->set_pipeline_read(spec.pipeline_read);
  message->set_pipeline_write(spec.pipeline_write);
  message->set_param_buffers(spec.param_buffers);
  message->set_param_buffer_elems(spec.param_buffer_elems);
  message->set_max_in_cpu_elems(spec.max_in_cpu_elems);
  message->set_pin_memory(spec.pin_memory);
  message->set_memory_budget_bytes(spec.memory_budget_bytes);
  message->set_nvme_budget_bytes(spec.nvme_budget_bytes);
}

}  // namespace stowage::proto
