#include "tests/support/simulated_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace stowage::testing {
namespace {

std::string FolderOf(const std::string& path) {
  return path.substr(0, path.rfind('/'));
}

}  // namespace

class SimulatedDisk::File final : public storage::DiskFile {
 public:
  File(SimulatedDisk* disk, std::string path, std::shared_ptr<Inode> inode)
      : disk_(*disk), path_(std::move(path)), inode_(std::move(inode)) {}

  const std::string& path() const override { return path_; }
  std::int64_t bytes() const override {
    MutexLock lock(disk_.mutex_);
    return static_cast<std::int64_t>(inode_->now.size());
  }
  storage::IoAlignment alignment() const override {
    return disk_.options_.alignment;
  }
  bool direct() const override { return true; }
  int fd() const override { return -1; }

  int Flush() override {
    MutexLock lock(disk_.mutex_);
    bool last = false;
    if (!disk_.Event(&last) || last) return EIO;
    if (disk_.flush_fault_.second != 0 &&
        absl::StrContains(path_, disk_.flush_fault_.first)) {
      return disk_.flush_fault_.second;
    }
    inode_->durable = inode_->now;
    inode_->pending.clear();
    return 0;
  }

  std::int64_t ReadAt(std::int64_t offset_bytes,
                      std::span<std::byte> into) override {
    MutexLock lock(disk_.mutex_);
    if (!disk_.powered_) return -EIO;
    return ReadFrom(*inode_, offset_bytes, into.data(),
                    static_cast<std::int64_t>(into.size()));
  }

  std::int64_t WriteAt(std::int64_t offset_bytes,
                       std::span<const std::byte> from) override {
    MutexLock lock(disk_.mutex_);
    if (disk_.write_fault_.second != 0 &&
        absl::StrContains(path_, disk_.write_fault_.first)) {
      return -disk_.write_fault_.second;
    }
    return disk_.WriteTo(*inode_, offset_bytes, from.data(),
                         static_cast<std::int64_t>(from.size()));
  }

  Inode& inode() { return *inode_; }

 private:
  SimulatedDisk& disk_;
  const std::string path_;
  const std::shared_ptr<Inode> inode_;
};

class SimulatedDisk::Engine final : public storage::IoEngine {
 public:
  Engine(SimulatedDisk* disk, std::int32_t depth,
         std::span<storage::DiskFile* const> files)
      : disk_(*disk), depth_(depth), files_(files.begin(), files.end()) {}

  std::int32_t capacity() const override { return depth_; }

  std::int32_t Submit(std::span<const storage::IoRequest> requests) override {
    MutexLock lock(disk_.mutex_);
    if (disk_.queues_full_ && disk_.Random(3) == 0) return 0;
    std::int32_t taken = 0;
    const bool overlapped = !done_.empty();
    for (const storage::IoRequest& request : requests) {
      if (static_cast<std::int32_t>(done_.size()) >= depth_) break;
      if (disk_.queues_full_ && taken == 1) break;
      Do(request);
      ++taken;
    }
    Count(taken, overlapped);
    return taken;
  }

  std::int32_t Poll(std::int32_t min,
                    std::vector<storage::IoCompletion>* completions) override {
    MutexLock lock(disk_.mutex_);
    std::int32_t got = 0;
    // In random order, now and then not all, late ones not yet.
    std::shuffle(done_.begin(), done_.end(), disk_.random_);
    for (;;) {
      for (std::size_t i = 0; i < done_.size();) {
        if (done_[i].second > 0) {
          --done_[i].second;
          ++i;
          continue;
        }
        if (got >= min && disk_.Random(4) == 0) break;
        completions->push_back(done_[i].first);
        done_.erase(done_.begin() + static_cast<std::ptrdiff_t>(i));
        ++got;
      }
      if (got >= min) return got;
    }
  }

  std::string Describe() const override { return "simulated"; }

 private:
  void Count(std::int32_t taken, bool overlapped) REQUIRES(disk_.mutex_) {
    if (taken == 0) return;
    Counts& counts = disk_.counts_;
    ++counts.submits;
    if (overlapped) ++counts.overlapped_submits;
    counts.in_flight_max =
        std::max(counts.in_flight_max, static_cast<std::int64_t>(done_.size()));
  }

  void Do(const storage::IoRequest& request) REQUIRES(disk_.mutex_) {
    ++disk_.counts_.requests;
    disk_.counts_.request_bytes_max =
        std::max(disk_.counts_.request_bytes_max, request.bytes);
    auto& file =
        static_cast<File&>(*files_[static_cast<std::size_t>(request.file)]);
    Fault fault;
    if (disk_.injector_) {
      fault = disk_.injector_({.write = request.write,
                               .path = file.path(),
                               .offset_bytes = request.offset_bytes,
                               .bytes = request.bytes,
                               .index = disk_.requests_});
    }
    ++disk_.requests_;
    std::int64_t result = 0;
    std::int64_t bytes = request.bytes;
    if (fault.short_bytes >= 0) bytes = std::min(bytes, fault.short_bytes);
    if (fault.error != 0) {
      result = -fault.error;
    } else if (!disk_.Aligned(request.offset_bytes, request.data,
                              request.bytes)) {
      result = -EINVAL;
    } else if (request.write) {
      result = disk_.WriteTo(file.inode(), request.offset_bytes, request.data,
                             bytes);
    } else if (!disk_.powered_) {
      result = -EIO;
    } else {
      result =
          ReadFrom(file.inode(), request.offset_bytes, request.data, bytes);
    }
    done_.push_back({{request.tag, result}, fault.late_polls});
  }

  SimulatedDisk& disk_;
  const std::int32_t depth_;
  const std::vector<storage::DiskFile*> files_;
  // Guarded by the disk's mutex; with the polls that each is late.
  std::vector<std::pair<storage::IoCompletion, std::int32_t>> done_;
};

class SimulatedDisk::HeldLock final : public storage::Disk::Lock {
 public:
  HeldLock(SimulatedDisk* disk, std::string path)
      : disk_(*disk), path_(std::move(path)) {}
  HeldLock(const HeldLock&) = delete;
  HeldLock& operator=(const HeldLock&) = delete;
  ~HeldLock() override {
    MutexLock lock(disk_.mutex_);
    disk_.locks_.erase(path_);
  }

 private:
  SimulatedDisk& disk_;
  const std::string path_;
};

SimulatedDisk::SimulatedDisk(const Options& options)
    : options_(options), random_(options.seed) {}

SimulatedDisk::~SimulatedDisk() = default;

std::uint64_t SimulatedDisk::Random(std::uint64_t below) {
  return random_() % below;
}

std::int64_t SimulatedDisk::events() const {
  MutexLock lock(mutex_);
  return events_;
}

void SimulatedDisk::CutPowerAt(std::int64_t index) {
  MutexLock lock(mutex_);
  cut_at_ = index;
}

SimulatedDisk::Counts SimulatedDisk::TakeCounts() {
  MutexLock lock(mutex_);
  return std::exchange(counts_, {});
}

bool SimulatedDisk::powered() const {
  MutexLock lock(mutex_);
  return powered_;
}

bool SimulatedDisk::Event(bool* last) {
  if (!powered_) return false;
  *last = events_ == cut_at_;
  if (*last) powered_ = false;
  ++events_;
  return true;
}

bool SimulatedDisk::Aligned(std::int64_t offset_bytes, const void* data,
                            std::int64_t bytes) const {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  return offset_bytes % options_.alignment.offset_bytes == 0 &&
         bytes % options_.alignment.offset_bytes == 0 &&
         address %
                 static_cast<std::uintptr_t>(options_.alignment.memory_bytes) ==
             0;
}

std::int64_t SimulatedDisk::WriteTo(Inode& inode, std::int64_t offset_bytes,
                                    const std::byte* data, std::int64_t bytes) {
  bool last = false;
  if (!Event(&last)) return -EIO;
  const auto size = static_cast<std::int64_t>(inode.now.size());
  if (offset_bytes + bytes > size) return -EFBIG;  // files do not grow
  Pending pending{.offset_bytes = offset_bytes,
                  .bytes = std::string(reinterpret_cast<const char*>(data),
                                       static_cast<std::size_t>(bytes))};
  std::memcpy(inode.now.data() + offset_bytes, pending.bytes.data(),
              pending.bytes.size());
  inode.pending.push_back(std::move(pending));
  return last ? -EIO : bytes;
}

std::int64_t SimulatedDisk::ReadFrom(const Inode& inode,
                                     std::int64_t offset_bytes, std::byte* data,
                                     std::int64_t bytes) {
  const auto size = static_cast<std::int64_t>(inode.now.size());
  const std::int64_t got =
      std::max<std::int64_t>(0, std::min(bytes, size - offset_bytes));
  std::memcpy(data, inode.now.data() + std::min(offset_bytes, size),
              static_cast<std::size_t>(got));
  return got;
}

// Decides what became of a file's unflushed writes.
void SimulatedDisk::Tear(Inode& inode) {
  std::shuffle(inode.pending.begin(), inode.pending.end(), random_);
  for (const Pending& pending : inode.pending) {
    const std::uint64_t fate = Random(4);
    if (fate == 0) continue;  // never arrived
    const std::size_t grain = fate == 1 ? 512 : 4096;
    for (std::size_t at = 0; at < pending.bytes.size(); at += grain) {
      if (fate != 3 && Random(2) == 0) continue;  // torn; fate 3: whole
      const std::size_t piece = std::min(grain, pending.bytes.size() - at);
      std::memcpy(inode.durable.data() + pending.offset_bytes + at,
                  pending.bytes.data() + at, piece);
    }
  }
  inode.pending.clear();
  inode.now = inode.durable;
}

void SimulatedDisk::Restart() {
  MutexLock lock(mutex_);
  for (auto it = files_.begin(); it != files_.end();) {
    Tear(*it->second);
    it = it->second->named ? std::next(it) : files_.erase(it);
  }
  powered_ = true;
  cut_at_ = -1;
}

void SimulatedDisk::InjectFaults(
    std::function<Fault(const Request&)> injector) {
  MutexLock lock(mutex_);
  injector_ = std::move(injector);
}

void SimulatedDisk::MakeQueuesFull(bool on) {
  MutexLock lock(mutex_);
  queues_full_ = on;
}

void SimulatedDisk::FailFlush(std::string part, int error) {
  MutexLock lock(mutex_);
  flush_fault_ = {std::move(part), error};
}

void SimulatedDisk::FailWriteAt(std::string part, int error) {
  MutexLock lock(mutex_);
  write_fault_ = {std::move(part), error};
}

std::string SimulatedDisk::Contents(const std::string& path) const {
  MutexLock lock(mutex_);
  return files_.at(path)->now;
}

void SimulatedDisk::SetContents(const std::string& path, std::string contents) {
  MutexLock lock(mutex_);
  Inode& inode = *files_.at(path);
  inode.now = contents;
  inode.durable = std::move(contents);
  inode.pending.clear();
}

absl::StatusOr<std::unique_ptr<storage::DiskFile>> SimulatedDisk::Create(
    const std::string& path, std::int64_t bytes, bool /*direct*/) {
  MutexLock lock(mutex_);
  if (files_.count(path) != 0) return absl::AlreadyExistsError(path);
  std::int64_t used = bytes;
  for (const auto& [name, inode] : files_) {
    used += static_cast<std::int64_t>(inode->now.size());
  }
  if (used > options_.capacity_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("allocate ", path, ": needs ", bytes, " bytes"));
  }
  auto inode = std::make_shared<Inode>();
  inode->now.resize(static_cast<std::size_t>(bytes));
  inode->durable = inode->now;
  files_[path] = inode;
  return std::make_unique<File>(this, path, std::move(inode));
}

absl::StatusOr<std::unique_ptr<storage::DiskFile>> SimulatedDisk::Open(
    const std::string& path, bool /*direct*/) {
  MutexLock lock(mutex_);
  const auto found = files_.find(path);
  if (found == files_.end()) {
    return absl::NotFoundError(absl::StrCat("open ", path));
  }
  return std::make_unique<File>(this, path, found->second);
}

absl::Status SimulatedDisk::Replace(const std::string& path,
                                    const std::string& contents) {
  MutexLock lock(mutex_);
  bool last = false;
  if (!Event(&last)) return absl::UnavailableError("no power");
  if (last && Random(2) == 0) return absl::UnavailableError("no power");
  auto inode = std::make_shared<Inode>();
  inode->now = contents;
  inode->durable = contents;
  inode->named = true;
  files_[path] = std::move(inode);
  return last ? absl::UnavailableError("no power") : absl::OkStatus();
}

absl::StatusOr<std::string> SimulatedDisk::ReadSmall(const std::string& path) {
  MutexLock lock(mutex_);
  const auto found = files_.find(path);
  if (found == files_.end()) {
    return absl::NotFoundError(absl::StrCat("open ", path));
  }
  return found->second->now;
}

absl::Status SimulatedDisk::MakeFolder(const std::string& path) {
  MutexLock lock(mutex_);
  folders_[path] = true;
  return absl::OkStatus();
}

absl::Status SimulatedDisk::SyncFolder(const std::string& path) {
  MutexLock lock(mutex_);
  if (!powered_) return absl::UnavailableError("no power");
  for (auto& [name, inode] : files_) {
    if (FolderOf(name) == path) inode->named = true;
  }
  return absl::OkStatus();
}

absl::Status SimulatedDisk::RemoveFolder(const std::string& path) {
  MutexLock lock(mutex_);
  folders_.erase(path);
  for (auto it = files_.begin(); it != files_.end();) {
    it = FolderOf(it->first) == path ? files_.erase(it) : std::next(it);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> SimulatedDisk::List(
    const std::string& path) {
  MutexLock lock(mutex_);
  std::vector<std::string> names;
  bool exists = false;
  for (const auto& [folder, there] : folders_) {
    exists = exists || folder == path || FolderOf(folder) == path;
    if (FolderOf(folder) == path) {
      names.push_back(folder.substr(path.size() + 1));
    }
  }
  for (const auto& [name, inode] : files_) {
    if (FolderOf(name) == path) names.push_back(name.substr(path.size() + 1));
  }
  if (!exists) return absl::NotFoundError(path);
  return names;
}

absl::StatusOr<std::int64_t> SimulatedDisk::FreeBytes(
    const std::string& /*path*/) {
  return options_.capacity_bytes;
}

absl::StatusOr<std::unique_ptr<storage::Disk::Lock>> SimulatedDisk::LockFile(
    const std::string& path) {
  MutexLock lock(mutex_);
  if (locks_[path]) {
    return absl::FailedPreconditionError(absl::StrCat("lock ", path));
  }
  locks_[path] = true;
  return std::make_unique<HeldLock>(this, path);
}

absl::StatusOr<std::unique_ptr<storage::IoEngine>> SimulatedDisk::NewEngine(
    storage::IoBackend /*backend*/, const storage::IoEngineOptions& options,
    std::span<storage::DiskFile* const> files,
    std::span<const std::span<std::byte>> /*buffers*/) {
  return std::make_unique<Engine>(this, options.queue_depth, files);
}

}  // namespace stowage::testing
