// gelu.h in plain arguments: what is compiled for one instruction set sees no
// library code (optim/kernel_arguments.h says why).
//
// Thread safety: pure functions.

#pragma once

#include <cstdint>

namespace stowage {

enum class Dtype : std::uint8_t;

namespace engine::internal {

#if defined(__x86_64__)
void Avx2TanhGelu(const void* x, Dtype dtype, std::int64_t count, void* out);
void Avx2TanhGeluBackward(const void* gradient, const void* x, Dtype dtype,
                          std::int64_t count, void* out);
#endif

}  // namespace engine::internal
}  // namespace stowage
