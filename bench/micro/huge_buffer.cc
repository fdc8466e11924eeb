#include "bench/micro/huge_buffer.h"

#include <sys/mman.h>

#include "common/check.h"

namespace stowage::bench {
namespace {

constexpr std::int64_t kHugePageBytes = 2 << 20;

}  // namespace

HugeBuffer::HugeBuffer(std::int64_t bytes)
    : bytes_((bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes +
             kHugePageBytes) {
  void* const mapping =
      mmap(nullptr, static_cast<std::size_t>(bytes_), PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  STOWAGE_CHECK(mapping != MAP_FAILED);
  data_ = static_cast<std::byte*>(mapping);
  // Advice only: without huge pages the benchmark runs, 5-10 % slower.
  static_cast<void>(
      madvise(data_, static_cast<std::size_t>(bytes_), MADV_HUGEPAGE));
}

HugeBuffer::~HugeBuffer() { munmap(data_, static_cast<std::size_t>(bytes_)); }

}  // namespace stowage::bench
