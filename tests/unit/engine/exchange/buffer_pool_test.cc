#include "engine/exchange/buffer_pool.h"

#include <gtest/gtest.h>

#include <vector>

namespace stowage::engine {
namespace {

TEST(BufferPool, UsesABufferAgain) {
  BufferPool pool;
  const auto first = pool.Take(1000).value();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first.data()) % 64, 0U);
  pool.Give(first);
  EXPECT_EQ(pool.Take(1000).value().data(), first.data());
  EXPECT_EQ(pool.used_bytes(), 1024);
}

TEST(BufferPool, HoldsNoMoreThanWasEverInUse) {
  BufferPool pool;
  std::int64_t most = 0;
  for (int round = 1; round < 40; ++round) {
    std::vector<std::span<std::byte>> taken;
    for (int i = 0; i < 3; ++i) {
      taken.push_back(pool.Take(5000 + 3000 * ((round * 7 + i) % 11)).value());
    }
    most = std::max(most, pool.used_bytes());
    for (const auto& buffer : taken) pool.Give(buffer);
    EXPECT_LE(pool.held_bytes(), most);
  }
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_EQ(pool.used_bytes_peak(), most);
}

}  // namespace
}  // namespace stowage::engine
