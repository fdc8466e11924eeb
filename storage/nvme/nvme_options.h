// How a job's state lies on NVMe and how it moves: the options of NvmeStore,
// what they cost in memory and space, and the fitting to a memory budget.
//
// server/core fills them from the job's configuration (DeepSpeed's
// offload_optimizer, offload_param and aio sections) and the server's limits.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"

namespace stowage::storage {

class Disk;

enum class IoBackend : std::uint8_t {
  kAuto = 0,   // io_uring; where it is refused, the pool, with one warning
  kUring = 1,  // refuse otherwise
  kPool = 2,   // threads that pread and pwrite
};

struct NvmeStoreOptions {
  // --- What, and where.
  std::string job_name;  // a folder name: [A-Za-z0-9._-]+
  std::uint64_t job_id = 0;
  // Existing folders, one per device; extents are striped over them. The
  // manifest lies in the first. Order and number are part of the store.
  std::vector<std::string> paths;
  // Opaque to the store, kept with it and returned by NvmeStore::Peek(): what
  // the server needs to offer the job again (its spec, its trace).
  std::string job_record;

  // --- What is promised.
  // kMemory: nothing is flushed, and what the cache holds is not written while
  //   the server lives. kPower: data are flushed before the manifest, the
  //   manifest before Commit() returns.
  Durability durability = Durability::kMemory;
  // Committed steps that can be returned to, the last one included; at least 1,
  // at most 63. Space is (kept_versions + 1) x 12 bytes per parameter.
  std::int32_t kept_versions = 1;
  bool params = false;          // also the ranks' copy: NvmeStore::params()
  bool gradient_spill = false;  // also space for fp32 sums: spill()

  // --- The format on disk; fixed at Create(). A multiple of 1 MiB, 1 to 8.
  std::int64_t extent_bytes = std::int64_t{4} << 20;

  // --- The pipeline. A window carries about this many elements
  // (sub_group_size), at least one extent's.
  std::int64_t window_elems = std::int64_t{4} << 20;
  // Windows in memory at once (buffer_count): read ahead | compute | write
  // back. At least 3; 2 more help where compute is uneven.
  std::int32_t slots = 4;
  bool pipeline_read = true;   // false: a window is read when it is asked for
  bool pipeline_write = true;  // false: Release() waits for its writes
  // DRAM that keeps a fixed set of extents from step to step.
  std::int64_t cache_bytes = 0;

  // --- aio.
  std::int64_t block_size = std::int64_t{1} << 20;  // bytes of one request
  std::int32_t queue_depth = 16;  // requests in flight, per path and thread
  bool single_submit = false;     // a system call per request
  bool overlap_events = true;     // false: a batch ends before the next begins
  std::int32_t threads = 1;       // intra_op_parallelism: of the pool; with
                                  // io_uring it multiplies queue_depth

  // --- For benchmarks and tests.
  bool checksums = true;  // false: neither made nor verified; never in a server
  bool prewrite = true;   // false: the first writes also allocate
  bool direct = true;     // false: through the page cache
  IoBackend backend = IoBackend::kAuto;
  bool lock_memory = true;
  Disk* disk = nullptr;  // nullptr: the machine's file system
};

// kInvalidArgument naming the option and its bounds.
absl::Status CheckNvmeOptions(const NvmeStoreOptions& options);

// Bytes that a store with these options pins, to the byte.
std::int64_t NvmePinnedBytes(const Layout& layout,
                             const NvmeStoreOptions& options);

// Bytes of file space that it takes, over all paths; by path in `by_path` if
// not nullptr. Create() allocates exactly these.
std::int64_t NvmeSpaceBytes(const Layout& layout,
                            const NvmeStoreOptions& options,
                            std::vector<std::int64_t>* by_path = nullptr);

// The least that NvmePinnedBytes() can be for this layout: three windows of one
// extent each, no cache.
std::int64_t NvmePinnedBytesMin(const Layout& layout,
                                const NvmeStoreOptions& options);

// Fits window_elems, slots and cache_bytes to `budget_bytes`: windows as asked
// while they take at most a quarter of it, shrunk to one extent otherwise; all
// the rest, at most the whole state, becomes cache.
// Errors: kResourceExhausted with budget and minimum.
absl::StatusOr<NvmeStoreOptions> FitNvmeOptions(const Layout& layout,
                                                NvmeStoreOptions options,
                                                std::int64_t budget_bytes);

}  // namespace stowage::storage
