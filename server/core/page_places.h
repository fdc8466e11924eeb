// Free places in a region of a fixed size: what the pages of leased parameters
// are handed out from (param_segment.h).
//
// Best fit, and what is given back joins its neighbours. The largest units lie
// at the front of what is free and all others at its end: in a region of
// several times their size the blocks of a transformer then always find a place
// beside a few small units. Other mixes can tear the region apart, and the
// caller has somewhere else to go.
//
// Source: Knuth, "The Art of Computer Programming", volume 1, section 2.5.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace stowage::core {

// Thread safety: none.
class PagePlaces {
 public:
  struct Run {
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
  };

  // All of [0, bytes) is free.
  explicit PagePlaces(std::int64_t bytes);

  enum class End : std::uint8_t { kFront, kBack };

  // The offset of `bytes` > 0 in one piece, at this end of the smallest free
  // run that has them; none if there is no such run.
  std::optional<std::int64_t> Take(std::int64_t bytes, End end);
  // `bytes` in pieces, the smallest free runs first. Requires: so much is free.
  std::vector<Run> TakePieces(std::int64_t bytes);
  // Requires: taken, as a whole or in parts.
  void Give(const Run& run);

  std::int64_t free_bytes() const { return free_bytes_; }

 private:
  std::int64_t TakeFrom(std::map<std::int64_t, std::int64_t>::iterator run,
                        std::int64_t bytes, End end);

  std::map<std::int64_t, std::int64_t> free_;  // by offset: bytes
  std::int64_t free_bytes_ = 0;
};

}  // namespace stowage::core
