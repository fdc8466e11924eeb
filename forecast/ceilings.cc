#include "forecast/ceilings.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/errno_status.h"
#include "common/layout.h"
#include "common/unique_fd.h"
#include "optim/kernels.h"

namespace stowage::forecast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kElems = std::int64_t{16} << 20;
constexpr std::int64_t kFileBytes = std::int64_t{256} << 20;
constexpr std::int64_t kBlockBytes = std::int64_t{1} << 20;
constexpr int kDiskThreads = 8;  // blocks in flight, each way

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Zeroed memory on huge pages where there are any, as the server's.
class Block {
 public:
  explicit Block(std::int64_t bytes)
      : bytes_(static_cast<std::size_t>(bytes) + kHugePage) {
    mapped_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    STOWAGE_CHECK(mapped_ != MAP_FAILED);
    const std::size_t off =
        reinterpret_cast<std::uintptr_t>(mapped_) % kHugePage;
    data_ = static_cast<char*>(mapped_) + (off == 0 ? 0 : kHugePage - off);
    madvise(data_, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
    std::memset(data_, 0, static_cast<std::size_t>(bytes));
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { munmap(mapped_, bytes_); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;
  std::size_t bytes_;
  void* mapped_ = nullptr;
  char* data_ = nullptr;
};

// Seconds of one pass over kElems by all threads, chunk by chunk as the
// server's team; the best of as many passes as fit into `seconds`.
double BestPass(int threads, double seconds,
                const std::function<void(std::int64_t, std::int64_t)>& chunk) {
  const auto pass = [&] {
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
      for (std::int64_t at = next.fetch_add(kChunkElems); at < kElems;
           at = next.fetch_add(kChunkElems)) {
        chunk(at, std::min(kChunkElems, kElems - at));
      }
    };
    std::vector<std::jthread> helpers;
    helpers.reserve(static_cast<std::size_t>(threads));
    for (int i = 1; i < threads; ++i) helpers.emplace_back(work);
    work();
  };
  pass();  // wakes memory and clocks
  double best = 1e300;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    pass();
    best = std::min(best, SecondsSince(start));
  } while (SecondsSince(begin) < seconds);
  return best;
}

// Moves blocks of one file, each thread its own, until `seconds` are over.
// Returns: bytes per second. `*error` becomes the errno of the first failure.
// Only the first `span` bytes of the file are touched.
double Move(int fd, bool write, std::int64_t span, double seconds,
            std::atomic<int>* error) {
  std::atomic<std::int64_t> next{0};
  std::atomic<std::int64_t> moved{0};
  // All threads' blocks together, so that they are huge pages: pieces of a
  // block that lie apart cost the disk a descriptor each.
  const Block blocks(kDiskThreads * kBlockBytes);
  const auto begin = Clock::now();
  {
    std::vector<std::jthread> threads;
    threads.reserve(kDiskThreads);
    for (int i = 0; i < kDiskThreads; ++i) {
      threads.emplace_back([&, i] {
        char* const block = blocks.as<char>() + i * kBlockBytes;
        while (SecondsSince(begin) < seconds && *error == 0) {
          const std::int64_t at = next.fetch_add(kBlockBytes) % span;
          const ssize_t done = write ? pwrite(fd, block, kBlockBytes, at)
                                     : pread(fd, block, kBlockBytes, at);
          if (done != kBlockBytes) {
            *error = done < 0 ? errno : EIO;
            return;
          }
          moved += done;
        }
      });
    }
  }
  return static_cast<double>(moved) / SecondsSince(begin);
}

}  // namespace

// The best of some passes over 32 MiB.
double FreshPages() {
  constexpr std::size_t kBytes = std::size_t{32} << 20;
  double best = 1e300;
  for (int i = 0; i < 3; ++i) {
    void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    STOWAGE_CHECK(memory != MAP_FAILED);
    const auto begin = Clock::now();
    std::memset(memory, 1, kBytes);
    best = std::min(best, SecondsSince(begin));
    munmap(memory, kBytes);
  }
  return static_cast<double>(kBytes) / best;
}

KernelCeilings MeasureKernels(int threads, double seconds) {
  if (threads <= 0) {
    threads =
        static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  }
  const optim::KernelSet& kernels = optim::BestKernels();
  const Block master(kElems * 4);
  const Block moment1(kElems * 4);
  const Block moment2(kElems * 4);
  const Block slot(kElems * 2);
  const Block copy(kElems * 2);
  const auto gradient = [&](std::int64_t at, const void* const* slots) {
    (void)at;
    optim::GradientSource source;
    source.slots = {slots, 1};
    source.slot_dtype = Dtype::kBf16;
    return source;
  };
  const optim::AdamConstants constants =
      optim::MakeAdamConstants(optim::AdamHyperparameters{}, 1, 1.0);
  KernelCeilings ceilings;
  ceilings.threads = threads;
  ceilings.isa = optim::IsaName(kernels.isa);
  const double adam =
      BestPass(threads, seconds / 2, [&](std::int64_t at, std::int64_t elems) {
        const void* slots[] = {slot.as<std::uint16_t>() + at};
        kernels.adam(constants, gradient(at, slots),
                     {.elems = elems,
                      .master = master.as<float>() + at,
                      .moment1 = moment1.as<float>() + at,
                      .moment2 = moment2.as<float>() + at,
                      .copy = copy.as<std::uint16_t>() + at,
                      .copy_dtype = Dtype::kBf16});
      });
  std::atomic<double> sink{0};
  const double norm =
      BestPass(threads, seconds / 4, [&](std::int64_t at, std::int64_t elems) {
        const void* slots[] = {slot.as<std::uint16_t>() + at};
        sink = kernels.sum_of_squares(gradient(at, slots), elems);
      });
  const double copying =
      BestPass(threads, seconds / 4, [&](std::int64_t at, std::int64_t elems) {
        std::memcpy(copy.as<std::uint16_t>() + at,
                    slot.as<std::uint16_t>() + at,
                    static_cast<std::size_t>(elems) * 2);
      });
  const auto elems = static_cast<double>(kElems);
  ceilings.adam_bytes_per_second = 28 * elems / adam;
  ceilings.norm_bytes_per_second = 2 * elems / norm;
  ceilings.copy_bytes_per_second = 4 * elems / copying;
  ceilings.fresh_bytes_per_second = FreshPages();
  return ceilings;
}

absl::StatusOr<DiskCeilings> MeasureDisk(const std::string& folder,
                                         double seconds) {
  std::string path = absl::StrCat(folder, "/stowage-plan-XXXXXX");
  const UniqueFd made(mkostemp(path.data(), O_CLOEXEC));
  if (!made.valid()) {
    return ErrnoStatus(absl::StrCat("make a file in ", folder));
  }
  const auto direct = [&](int flags) {
    return UniqueFd(open(path.c_str(), flags | O_DIRECT | O_CLOEXEC));
  };
  const UniqueFd fd = direct(O_RDWR);
  const int refused = errno;
  const bool reserved = fallocate(made.get(), 0, 0, kFileBytes) == 0;
  const int full = errno;
  unlink(path.c_str());
  if (!fd.valid()) {
    return ErrnoStatus(absl::StrCat("open ", path, " for direct I/O"), refused);
  }
  if (!reserved) {
    return ErrnoStatus(
        absl::StrCat("reserve ", kFileBytes, " bytes in ", folder), full);
  }
  std::atomic<int> error{0};
  // A store writes where it has written before; the first write of a block
  // costs the file system several times as much.
  std::int64_t span = 0;
  {
    const Block block(kBlockBytes);
    const auto begin = Clock::now();
    while (span < kFileBytes && SecondsSince(begin) < seconds / 4) {
      if (pwrite(fd.get(), block.as<char>(), kBlockBytes, span) !=
          kBlockBytes) {
        return ErrnoStatus(absl::StrCat("write in ", folder), errno);
      }
      span += kBlockBytes;
    }
  }
  DiskCeilings ceilings;
  ceilings.write_bytes_per_second =
      Move(fd.get(), true, span, seconds / 4, &error);
  ceilings.read_bytes_per_second =
      Move(fd.get(), false, span, seconds / 4, &error);
  double reading = 0;
  double writing = 0;
  {
    const std::jthread reader(
        [&] { reading = Move(fd.get(), false, span, seconds / 4, &error); });
    writing = Move(fd.get(), true, span, seconds / 4, &error);
  }
  if (error != 0) {
    return ErrnoStatus(absl::StrCat("move a block in ", folder), error);
  }
  // A pass reads what it writes: the slower way counts twice.
  ceilings.mixed_bytes_per_second = 2 * std::min(reading, writing);
  return ceilings;
}

}  // namespace stowage::forecast
