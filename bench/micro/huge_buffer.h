// Memory for benchmarks: page-aligned, on transparent huge pages where the
// system gives them, touched by the threads that will use it.

#pragma once

#include <cstddef>
#include <cstdint>

namespace stowage::bench {

// Ownership: owns the mapping. Errors: aborts if there is no memory.
class HugeBuffer {
 public:
  explicit HugeBuffer(std::int64_t bytes);
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;
  ~HugeBuffer();

  std::byte* data() { return data_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::int64_t bytes_;
  std::byte* data_;
};

}  // namespace stowage::bench
