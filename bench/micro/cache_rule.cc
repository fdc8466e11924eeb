#include "bench/micro/cache_rule.h"

#include <algorithm>
#include <filesystem>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "common/segment_format.h"
#include "server/core/param_residency.h"
#include "server/core/param_segment.h"
#include "storage/host/memory_budget.h"
#include "storage/host/segment_folder.h"
#include "storage/nvme/io/disk.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/nvme_store.h"

namespace stowage::bench {
namespace {

using storage::NvmeStore;
using storage::NvmeStoreOptions;

constexpr std::int32_t kUnits = 32;
constexpr int kSteps = 3;  // the last one counts

Layout MakeLayout(std::int64_t elems) {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {{.name = "all"}};
  for (std::int32_t u = 0; u < kUnits; ++u) {
    spec.units.push_back({.name = absl::StrCat("unit", u),
                          .params = {{.name = absl::StrCat("w", u),
                                      .shape = {elems / kUnits}}}});
  }
  return *Layout::Create(spec);
}

class Store {
 public:
  Store(const std::string& path, const Layout& layout, std::int64_t cache_bytes)
      : layout_(layout) {
    options_.job_name = "cache-rule";
    options_.paths = {std::filesystem::absolute(path).string()};
    options_.params = true;
    options_.durability = Durability::kPower;
    options_.extent_bytes = kMiB;
    options_.window_elems = std::int64_t{1} << 20;
    options_.lock_memory = false;
    options_.prewrite = false;
    options_.cache_bytes = cache_bytes;
    STOWAGE_CHECK_OK(NvmeStore::Remove(options_.paths, options_.job_name));
    auto made = NvmeStore::Create(
        layout, options_, &budget_,
        *budget_.Reserve(storage::NvmePinnedBytes(layout, options_), "bench"));
    STOWAGE_CHECK_OK(made.status());
    store_ = *std::move(made);
    std::vector<float> values;
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      values.assign(
          static_cast<std::size_t>(
              layout.units()[static_cast<std::size_t>(u)].trainable_elems),
          0.5F);
      STOWAGE_CHECK_OK(store_->Put(u, 0, values));
    }
    STOWAGE_CHECK_OK(store_->Commit({}));
    for (std::size_t c = 0; c < layout.chunks().size(); ++c) {
      order_.push_back(static_cast<std::int32_t>(c));
    }
  }
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  ~Store() {
    store_.reset();
    NvmeStore::Remove(options_.paths, options_.job_name).IgnoreError();
  }

  NvmeStore& operator*() const { return *store_; }

  // A step's pass. Returns: bytes of state that it read.
  std::int64_t Pass() {
    const std::int64_t before = store_->stats().bytes_read;
    STOWAGE_CHECK_OK(store_->BeginUpdate(order_));
    for (;;) {
      const auto window = store_->AcquireNext();
      STOWAGE_CHECK_OK(window.status());
      if (window->empty()) break;
      for (std::int64_t at = window->begin; at < window->end; ++at) {
        STOWAGE_CHECK_OK(store_->VerifyChunk(at));
        store_->ChunkUpdated(at);
      }
      STOWAGE_CHECK_OK(store_->Release(*window));
    }
    storage::CommitRecord record = store_->committed();
    ++record.step;
    STOWAGE_CHECK_OK(store_->Commit(record));
    return store_->stats().bytes_read - before;
  }

  // Bytes that the last of some passes reads under LRU: each extent once a
  // pass, in order.
  std::int64_t LruBytes(std::int64_t cache_bytes) const {
    const std::string file =
        storage::ManifestFile(options_.paths.front(), options_.job_name);
    auto slots = storage::ReadManifestFile(storage::MachineDisk(), file);
    STOWAGE_CHECK_OK(slots.status());
    const storage::ExtentMap map =
        storage::StateMap(layout_, (*slots->Newest(file))->shape);
    std::list<std::int32_t> recent;  // the last used first
    std::int64_t used = 0;
    std::int64_t read = 0;
    for (int pass = 0; pass < kSteps; ++pass) {
      read = 0;
      for (std::int32_t e = 0;
           e < static_cast<std::int32_t>(map.extents().size()); ++e) {
        const std::int64_t bytes = map.extent(e).bytes;
        if (const auto at = std::find(recent.begin(), recent.end(), e);
            at != recent.end()) {
          recent.splice(recent.begin(), recent, at);
          continue;
        }
        read += bytes;
        recent.push_front(e);
        used += bytes;
        while (used > cache_bytes) {
          used -= map.extent(recent.back()).bytes;
          recent.pop_back();
        }
      }
    }
    return read;
  }

 private:
  const Layout& layout_;
  storage::MemoryBudget budget_{std::int64_t{1} << 40};
  NvmeStoreOptions options_;
  std::vector<std::int32_t> order_;
  std::unique_ptr<NvmeStore> store_;
};

// One rank that uses every unit forward and backward, and an update of all.
class Rank {
 public:
  Rank(const Layout& layout, Store& store, std::int64_t limit_bytes,
       bool with_trace)
      : layout_(layout),
        units_(*(*store).params()),
        folder_(*storage::SegmentFolder::Create(ShmDir(), "benc")),
        params_(*core::ParamSegment::Create(
            layout, *folder_, {.job_id = 1, .leased_bytes = limit_bytes},
            &budget_,
            *budget_.Reserve(ParamDataOffsetBytes(layout) + limit_bytes,
                             "bench"))),
        residency_(layout, *params_, units_,
                   {.limit_bytes = limit_bytes,
                    .ahead_units = 4,
                    .ahead_bytes = limit_bytes,
                    .granted =
                        [this](const std::vector<core::LeaseGrant>& grants) {
                          Note(grants);
                        },
                    .failed =
                        [](const absl::Status& status) {
                          STOWAGE_CHECK_OK(status);
                        }}) {
    for (std::int32_t u = 0; u < kUnits; ++u) trace_.push_back(u);
    for (std::int32_t u = kUnits; u-- > 0;) trace_.push_back(u);
    Update(0);
    if (with_trace) residency_.SetTrace(trace_);
    residency_.BeginRun(1, 1, 1, 0);
  }

  // Returns: bytes of parameters that the last step read.
  std::int64_t Run() {
    std::int64_t before = 0;
    for (int step = 0; step < kSteps; ++step) {
      before = units_.bytes_read();
      for (const std::int32_t u : trace_) Use(u, step);
      Update(step + 1);
    }
    return units_.bytes_read() - before;
  }

 private:
  static std::string ShmDir() {
    const std::string name = "/dev/shm/stowage-cache-rule";
    std::filesystem::create_directory(name);
    std::filesystem::permissions(name, std::filesystem::perms::owner_all);
    return name;
  }
  void Note(const std::vector<core::LeaseGrant>& grants) {
    MutexLock lock(mutex_);
    for (const core::LeaseGrant& grant : grants) granted_.insert(grant.unit);
    changed_.NotifyAll();
  }
  void Use(std::int32_t unit, std::int64_t step) {
    std::vector<core::LeaseGrant> grants;
    residency_.Lease(0, unit, step, &grants);
    Note(grants);
    {
      MutexLock lock(mutex_);
      while (granted_.erase(unit) == 0) changed_.Wait(mutex_);
    }
    residency_.Unlease(0, unit);
  }
  void Update(std::int64_t step) {
    std::vector<core::LeaseGrant> grants;
    for (std::int32_t u = 0; u < kUnits; ++u) {
      STOWAGE_CHECK_OK(residency_.BeginWrite(u, false, false));
      residency_.EndWrite(u, step, &grants);
    }
    Note(grants);
    STOWAGE_CHECK_OK(residency_.Settle());
  }

  const Layout& layout_;
  storage::UnitStore& units_;
  storage::MemoryBudget budget_{std::int64_t{1} << 40};
  std::unique_ptr<storage::SegmentFolder> folder_;
  std::unique_ptr<core::ParamSegment> params_;
  std::vector<std::int32_t> trace_;
  Mutex mutex_;
  CondVar changed_;
  std::multiset<std::int32_t> granted_ GUARDED_BY(mutex_);
  core::ParamResidency residency_;
};

std::string Row(const char* what, double share, std::int64_t ours,
                std::int64_t lru) {
  return absl::StrCat("{\"what\": \"", what, "\", \"share\": ", share,
                      ", \"belady_bytes\": ", ours, ", \"lru_bytes\": ", lru,
                      "}");
}

}  // namespace

std::string MeasureCacheRule(const std::string& path, std::int64_t elems) {
  const Layout layout = MakeLayout(elems);
  std::string rows;
  for (const double share : {0.1, 0.25, 0.5, 0.75, 0.9}) {
    const auto cache = static_cast<std::int64_t>(
        share * 12 * static_cast<double>(layout.state_elems()));
    Store store(path, layout, cache);
    std::int64_t read = 0;
    for (int pass = 0; pass < kSteps; ++pass) read = store.Pass();
    absl::StrAppend(&rows, rows.empty() ? "" : ", ",
                    Row("state", share, read, store.LruBytes(cache)));
  }
  for (const double share : {0.125, 0.25, 0.5, 0.75, 0.875}) {
    const auto limit = static_cast<std::int64_t>(
        share * 2 * static_cast<double>(layout.total_elems()));
    Store store(path, layout, 0);
    const std::int64_t ours = Rank(layout, store, limit, true).Run();
    const std::int64_t lru = Rank(layout, store, limit, false).Run();
    absl::StrAppend(&rows, ", ", Row("parameters", share, ours, lru));
  }
  return absl::StrCat("{\"rows\": [", rows, "]}");
}

}  // namespace stowage::bench
