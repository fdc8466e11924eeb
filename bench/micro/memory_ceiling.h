// What memory allows: loops with the loads and stores of the kernels and next
// to no arithmetic. A kernel's time is compared with its ceiling's in one run.

#pragma once

#include <cstdint>

namespace stowage::bench {

// One parameter range as the fused Adam kernel sees it: bf16 gradient in, three
// fp32 arrays in place, a 16-bit copy out. All aligned to 64 bytes.
struct CeilingRange {
  std::int64_t elems = 0;  // a multiple of 32
  const std::uint16_t* gradient = nullptr;
  const std::uint16_t* gradient2 = nullptr;  // second slot, or null
  float* master = nullptr;
  float* moment1 = nullptr;
  float* moment2 = nullptr;
  std::uint16_t* copy = nullptr;
};

struct MemoryCeiling {
  const char* isa;
  // The Adam kernel's accesses: 28 bytes an element (30 with a second slot),
  // streaming stores for the copy, each fp32 value multiplied once.
  void (*adam_accesses)(const CeilingRange& range, float factor);
  // x[i] *= factor: 8 bytes an element.
  void (*read_modify_write)(float* x, float factor, std::int64_t elems);
  // Reads bytes (a multiple of 128) and returns something of them.
  std::uint64_t (*read)(const void* bytes_at, std::int64_t bytes);
};

// For the widest vectors of this processor.
const MemoryCeiling& BestMemoryCeiling();

}  // namespace stowage::bench
