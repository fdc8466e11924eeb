// A trainer's rank inside a test: attaches to a JobRegistry directly and maps
// the job's segments itself, as the client library does in another process.
//
// Gradients and initial values come from functions of an element's identity, so
// that the same micro-batches can be dealt to any number of ranks. Every wait
// has a deadline and fails the test when it runs out.

#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/dtype.h"
#include "common/job_spec.h"
#include "common/mutex.h"
#include "common/segment_format.h"
#include "common/unique_fd.h"
#include "gtest/gtest.h"
#include "server/core/job_registry.h"

namespace stowage::testing {

// A folder for segments on tmpfs, empty at first, removed at the end.
class ShmFolder {
 public:
  ShmFolder() {
    char name[] = "/dev/shm/stowage-test-XXXXXX";
    STOWAGE_CHECK(::mkdtemp(name) != nullptr);
    path_ = name;
  }
  ShmFolder(const ShmFolder&) = delete;
  ShmFolder& operator=(const ShmFolder&) = delete;
  ~ShmFolder() {
    const std::string command = absl::StrCat("rm -rf ", path_);
    STOWAGE_CHECK(std::system(command.c_str()) == 0);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A file of the folder, mapped as a rank maps it.
class MappedFile {
 public:
  MappedFile(const std::string& path, bool writable) {
    const UniqueFd fd(::open(
        path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC));
    STOWAGE_CHECK(fd.valid());
    struct stat info {};
    STOWAGE_CHECK(::fstat(fd.get(), &info) == 0);
    bytes_ = info.st_size;
    void* data = ::mmap(nullptr, static_cast<std::size_t>(bytes_),
                        PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED,
                        fd.get(), 0);
    STOWAGE_CHECK(data != MAP_FAILED);
    data_ = static_cast<std::byte*>(data);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { ::munmap(data_, static_cast<std::size_t>(bytes_)); }
  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

// Value of one element: (unit, element of its flat buffer).
using ElementFunction = std::function<float(std::int32_t, std::int64_t)>;

// A deterministic value in about [-1, 1) from a seed and an element.
inline float HashedValue(std::uint64_t seed, std::int32_t unit,
                         std::int64_t element) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ULL +
                    static_cast<std::uint64_t>(unit) * 0xbf58476d1ce4e5b9ULL +
                    static_cast<std::uint64_t>(element);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  x ^= x >> 31;
  return static_cast<float>(static_cast<std::int64_t>(x >> 40)) /
             static_cast<float>(1 << 23) -
         1.0F;
}

class FakeRank final : public core::SessionObserver {
 public:
  static constexpr std::chrono::seconds kDeadline{30};

  // Attaches and maps. Errors: of JobRegistry::Attach().
  static absl::StatusOr<std::unique_ptr<FakeRank>> Attach(
      core::JobRegistry& registry, const JobSpec& job, const RunSpec& run,
      std::int32_t local_rank) {
    auto rank = std::make_unique<FakeRank>();
    auto session =
        registry.Attach(job, run, local_rank,
                        absl::StrCat("pid ", 4700 + local_rank), rank.get());
    if (!session.ok()) return session.status();
    rank->session_ = *std::move(session);
    rank->local_rank_ = local_rank;
    rank->local_ranks_ = run.local_ranks;
    const AttachInfo& info = rank->info();
    rank->params_ = std::make_unique<MappedFile>(
        absl::StrCat(info.shm_dir, "/", info.param_segment), false);
    rank->gradients_ = std::make_unique<MappedFile>(
        absl::StrCat(info.shm_dir, "/", info.gradient_segment), true);
    return rank;
  }

  FakeRank() = default;

  core::JobSession& session() { return *session_; }
  const AttachInfo& info() const { return session_->info(); }
  const Layout& layout() const { return session_->layout(); }
  std::int32_t local_rank() const { return local_rank_; }

  // Raw views of the segments.
  const UnitWords& words(std::int32_t unit) const {
    return *reinterpret_cast<const UnitWords*>(
        params_->data() + ParamWordsOffsetBytes() +
        unit * static_cast<std::int64_t>(sizeof(UnitWords)));
  }
  const std::byte* params(std::int32_t unit) const {
    return params_->data() + UnitParamOffsetBytes(layout(), unit, words(unit));
  }
  std::byte* slot(std::int32_t micro, std::int32_t unit) const {
    if (info().gradient_regions > 0) {
      return gradients_->data() + GradientRegionOffsetBytes(layout(), region_);
    }
    return gradients_->data() +
           UnitGradientOffsetBytes(layout(), micro % info().slots_per_rank,
                                   unit);
  }
  SegmentHeader& gradient_header() const {
    return *reinterpret_cast<SegmentHeader*>(gradients_->data());
  }

  // Sends every parameter of every unit, padding included (as garbage).
  absl::Status PutAll(const ElementFunction& value) {
    for (std::int32_t u = 0; u < layout().unit_count(); ++u) {
      const Layout::Unit& unit = Unit(u);
      std::vector<float> values(static_cast<std::size_t>(unit.elems), 123.0F);
      for (const Layout::Param& param : unit.params) {
        for (std::int64_t i = param.begin_elems;
             i < param.begin_elems + param.elems; ++i) {
          values[static_cast<std::size_t>(i)] = value(u, i);
        }
      }
      if (absl::Status s = session_->PutState(u, 0, values); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  // Writes a unit's gradient into its slot, rounded to the job's type.
  void WriteGradient(std::int32_t micro, std::int32_t u,
                     const ElementFunction& value) {
    std::byte* to = slot(micro, u);
    for (const Layout::Param& param : Unit(u).params) {
      if (param.frozen) continue;
      for (std::int64_t i = param.begin_elems;
           i < param.begin_elems + param.elems; ++i) {
        const float v = value(u, i);
        switch (layout().param_dtype()) {
          case Dtype::kFp32:
            reinterpret_cast<float*>(to)[i] = v;
            break;
          case Dtype::kFp16:
            reinterpret_cast<std::uint16_t*>(to)[i] = FloatToFp16(v);
            break;
          case Dtype::kBf16:
            reinterpret_cast<std::uint16_t*>(to)[i] = FloatToBf16(v);
            break;
        }
      }
    }
  }

  // Runs one whole backward of micro step `micro`: gradients (last unit first)
  // written and noticed; ring slots waited for.
  absl::Status Backward(std::int64_t step, std::int32_t micro,
                        std::int32_t micro_steps,
                        const ElementFunction& value) {
    for (std::int32_t u = layout().unit_count() - 1; u >= 0; --u) {
      if (Unit(u).trainable_elems == 0) continue;
      if (info().slots_are_ring) {
        if (!WaitWord(words(u).landed, step * micro_steps + micro)) {
          return absl::DeadlineExceededError("landed word");
        }
      }
      if (info().gradient_regions > 0 &&
          !NextRegion(step, micro, micro_steps, u)) {
        return absl::DeadlineExceededError("gradient region");
      }
      WriteGradient(micro, u, value);
      if (absl::Status s = session_->Notice(step, micro, u, false, region_);
          !s.ok()) {
        return s;
      }
    }
    return absl::OkStatus();
  }

  // Leases a unit and waits until it may be read.
  absl::Status Lease(std::int32_t unit, std::int64_t step) {
    {
      MutexLock lock(mutex_);
      leased_ = {-1, -1};
    }
    if (absl::Status s = session_->Lease(unit, step); !s.ok()) return s;
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    MutexLock lock(mutex_);
    while (failure_.ok() && leased_ != std::pair{unit, step}) {
      if (!WaitChange(end)) return absl::DeadlineExceededError("lease");
    }
    return failure_;
  }

  // Waits as the client does: announce, look, sleep in slices.
  bool WaitVersion(std::int32_t unit, std::int64_t step) const {
    return WaitWord(words(unit).version, step);
  }
  bool WaitAllVersions(std::int64_t step) const {
    for (std::int32_t u = 0; u < layout().unit_count(); ++u) {
      if (!WaitVersion(u, step)) return false;
    }
    return true;
  }
  bool WaitLanded(std::int32_t unit, std::int64_t micro_steps_total) const {
    return WaitWord(words(unit).landed, micro_steps_total);
  }

  // Waits for the answer to a prepare, or for the failure of the session.
  absl::StatusOr<Verdict> WaitVerdict(std::int64_t step) {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    MutexLock lock(mutex_);
    while (failure_.ok() && verdict_step_ != step) {
      if (!WaitChange(end)) return absl::DeadlineExceededError("verdict");
    }
    if (verdict_step_ == step) return verdict_;
    return failure_;
  }
  bool WaitInitialized() {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    MutexLock lock(mutex_);
    while (failure_.ok() && !initialized_) {
      if (!WaitChange(end)) return false;
    }
    return initialized_;
  }
  absl::Status WaitFailed() {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    MutexLock lock(mutex_);
    while (failure_.ok()) {
      if (!WaitChange(end)) return absl::DeadlineExceededError("failure");
    }
    return failure_;
  }
  bool failed() {
    MutexLock lock(mutex_);
    return !failure_.ok();
  }
  int verdicts() {
    MutexLock lock(mutex_);
    return verdicts_;
  }

  // All of a state kind, unit after unit; parameters without their padding's
  // neighbours being touched.
  std::vector<float> ReadAll(StateKind kind) {
    std::vector<float> all;
    for (std::int32_t u = 0; u < layout().unit_count(); ++u) {
      const Layout::Unit& unit = Unit(u);
      std::vector<float> part(static_cast<std::size_t>(
          kind == StateKind::kParam ? unit.elems : unit.trainable_elems));
      const absl::Status status = session_->ReadState(u, kind, 0, part);
      EXPECT_TRUE(status.ok()) << status;
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  // Masters, moments and parameters: the whole state, to compare bit by bit.
  std::vector<float> ReadEverything() {
    std::vector<float> all;
    for (const StateKind kind : {StateKind::kMaster, StateKind::kMoment1,
                                 StateKind::kMoment2, StateKind::kParam}) {
      const std::vector<float> part = ReadAll(kind);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  void Close(bool close_job) { session_->Detach(true, close_job, ""); }
  void Lose(const std::string& reason) {
    session_->Detach(false, false, reason);
  }

  // SessionObserver.
  void OnInitialized() override {
    MutexLock lock(mutex_);
    initialized_ = true;
    changed_.NotifyAll();
  }
  void OnVerdict(const Verdict& verdict) override {
    MutexLock lock(mutex_);
    verdict_ = verdict;
    verdict_step_ = verdict.step;
    ++verdicts_;
    changed_.NotifyAll();
  }
  void OnLeased(std::int32_t unit, std::int64_t step) override {
    MutexLock lock(mutex_);
    leased_ = {unit, step};
    changed_.NotifyAll();
  }
  void OnFailed(const absl::Status& status) override {
    MutexLock lock(mutex_);
    failure_ = status;
    changed_.NotifyAll();
  }

 private:
  const Layout::Unit& Unit(std::int32_t unit) const {
    return layout().units()[static_cast<std::size_t>(unit)];
  }

  // Gradient regions in turn; waits until what was there has landed, and zeroes
  // it, padding included.
  bool NextRegion(std::int64_t step, std::int32_t micro,
                  std::int32_t micro_steps, std::int32_t unit) {
    region_ = (region_ + 1) % info().gradient_regions;
    in_region_.resize(static_cast<std::size_t>(info().gradient_regions));
    auto& [before, target] = in_region_[static_cast<std::size_t>(region_)];
    if (target > 0 && !WaitWord(words(before).landed, target)) return false;
    before = unit;
    target = step * micro_steps + micro + 1;
    std::memset(slot(micro, unit), 0,
                static_cast<std::size_t>(Unit(unit).trainable_elems *
                                         DtypeBytes(layout().param_dtype())));
    return true;
  }

  // Returns: false when the deadline is over.
  bool WaitChange(std::chrono::steady_clock::time_point end) REQUIRES(mutex_) {
    if (std::chrono::steady_clock::now() > end) return false;
    changed_.WaitFor(mutex_, std::chrono::milliseconds(100));
    return true;
  }

  static bool WaitWord(const std::atomic<std::uint32_t>& word,
                       std::int64_t target) {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    while (!WordReached(word.load(), static_cast<std::uint32_t>(target))) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return true;
  }

  std::unique_ptr<core::JobSession> session_;
  std::int32_t local_rank_ = 0;
  std::int32_t local_ranks_ = 1;
  std::unique_ptr<MappedFile> params_;
  std::unique_ptr<MappedFile> gradients_;
  std::int32_t region_ = 0;
  // By region: the unit it holds, and that unit's landed word when it is free.
  std::vector<std::pair<std::int32_t, std::int64_t>> in_region_;

  Mutex mutex_;
  CondVar changed_;
  bool initialized_ GUARDED_BY(mutex_) = false;
  int verdicts_ GUARDED_BY(mutex_) = 0;
  std::int64_t verdict_step_ GUARDED_BY(mutex_) = -1;
  Verdict verdict_ GUARDED_BY(mutex_);
  absl::Status failure_ GUARDED_BY(mutex_);
  std::pair<std::int32_t, std::int64_t> leased_ GUARDED_BY(mutex_);
};

// A run of all its ranks, driven from one thread.
class FakeRun {
 public:
  // The gradient of micro-batch `batch` (of the step's global order).
  using BatchGradient =
      std::function<float(std::int64_t step, std::int32_t batch,
                          std::int32_t unit, std::int64_t element)>;

  static absl::StatusOr<std::unique_ptr<FakeRun>> Start(
      core::JobRegistry& registry, const JobSpec& job, const RunSpec& run) {
    auto made = std::make_unique<FakeRun>();
    made->run_ = run;
    for (std::int32_t r = 0; r < run.local_ranks; ++r) {
      auto rank = FakeRank::Attach(registry, job, run, r);
      if (!rank.ok()) return rank.status();
      made->ranks_.push_back(*std::move(rank));
    }
    return made;
  }

  FakeRank& rank(std::int32_t r) {
    return *ranks_[static_cast<std::size_t>(r)];
  }
  std::int32_t ranks() const {
    return static_cast<std::int32_t>(ranks_.size());
  }

  absl::Status Initialize(const ElementFunction& value) {
    if (absl::Status s = rank(0).PutAll(value); !s.ok()) return s;
    for (auto& rank : ranks_) {
      absl::Status s = rank->session().FinishInitialization();
      if (!s.ok()) return s;
    }
    for (auto& rank : ranks_) {
      if (!rank->WaitInitialized()) return absl::InternalError("not told");
    }
    return absl::OkStatus();
  }

  // Backward of all micro-batches and prepare. Micro-batch `b` of the step is
  // rank b % ranks, micro step b / ranks.
  absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                  const BatchGradient& gradient) {
    if (rank(0).info().gradient_regions > 0) {
      if (absl::Status s = BackwardAtOnce(step, gradient); !s.ok()) return s;
    } else {
      for (std::int32_t micro = 0; micro < run_.micro_steps; ++micro) {
        for (auto& rank : ranks_) {
          absl::Status s = BackwardOf(*rank, step, micro, gradient);
          if (!s.ok()) return s;
        }
      }
    }
    for (auto& rank : ranks_) {
      absl::Status s = rank->session().Prepare(
          step, {static_cast<double>(rank->local_rank()), 0.5});
      if (!s.ok()) return s;
    }
    absl::StatusOr<Verdict> verdict = rank(0).WaitVerdict(step);
    for (auto& rank : ranks_) {
      if (auto other = rank->WaitVerdict(step); !other.ok()) {
        return other.status();
      }
    }
    return verdict;
  }

  // Every rank applies; waits until all units have the new version and the step
  // is committed (versions come before that).
  absl::Status Apply(const ApplyArgs& args) {
    for (auto& rank : ranks_) {
      if (absl::Status s = rank->session().Apply(args); !s.ok()) return s;
    }
    for (auto& rank : ranks_) {
      if (!rank->WaitAllVersions(args.step + 1)) {
        return absl::DeadlineExceededError("versions");
      }
    }
    return rank(0).session().ReadState(0, StateKind::kParam, 0, {});
  }

  void Close(bool close_job) {
    for (auto& rank : ranks_) rank->Close(close_job);
  }

 private:
  absl::Status BackwardOf(FakeRank& rank, std::int64_t step, std::int32_t micro,
                          const BatchGradient& gradient) const {
    const std::int32_t batch = micro * ranks() + rank.local_rank();
    return rank.Backward(step, micro, run_.micro_steps,
                         [&](std::int32_t unit, std::int64_t element) {
                           return gradient(step, batch, unit, element);
                         });
  }

  // Where ranks wait for each other's gradients to land.
  absl::Status BackwardAtOnce(std::int64_t step,
                              const BatchGradient& gradient) {
    std::vector<absl::Status> results(ranks_.size());
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      threads.emplace_back([&, r] {
        for (std::int32_t micro = 0; micro < run_.micro_steps; ++micro) {
          if (results[r].ok()) {
            results[r] = BackwardOf(*ranks_[r], step, micro, gradient);
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& result : results) {
      if (!result.ok()) return result;
    }
    return absl::OkStatus();
  }

  RunSpec run_;
  std::vector<std::unique_ptr<FakeRank>> ranks_;
};

}  // namespace stowage::testing
