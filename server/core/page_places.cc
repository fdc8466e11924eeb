#include "server/core/page_places.h"

#include <algorithm>
#include <iterator>

#include "common/check.h"

namespace stowage::core {

PagePlaces::PagePlaces(std::int64_t bytes) {
  if (bytes > 0) Give({0, bytes});
}

// An end of a free run. Returns: its offset.
std::int64_t PagePlaces::TakeFrom(
    std::map<std::int64_t, std::int64_t>::iterator run, std::int64_t bytes,
    End end) {
  free_bytes_ -= bytes;
  if (end == End::kBack && run->second > bytes) {
    run->second -= bytes;
    return run->first + run->second;
  }
  const auto [offset, had] = *run;
  free_.erase(run);
  if (had > bytes) free_.emplace(offset + bytes, had - bytes);
  return offset;
}

// Few runs are free at a time, so all are looked at.
std::optional<std::int64_t> PagePlaces::Take(std::int64_t bytes, End end) {
  STOWAGE_CHECK(bytes > 0);
  auto best = free_.end();
  for (auto run = free_.begin(); run != free_.end(); ++run) {
    if (run->second < bytes) continue;
    if (best == free_.end() || run->second < best->second) best = run;
  }
  if (best == free_.end()) return std::nullopt;
  return TakeFrom(best, bytes, end);
}

std::vector<PagePlaces::Run> PagePlaces::TakePieces(std::int64_t bytes) {
  STOWAGE_CHECK(bytes <= free_bytes_);
  std::vector<Run> pieces;
  while (bytes > 0) {
    const auto least = std::min_element(
        free_.begin(), free_.end(),
        [](const auto& a, const auto& b) { return a.second < b.second; });
    const std::int64_t some = std::min(bytes, least->second);
    pieces.push_back({TakeFrom(least, some, End::kFront), some});
    bytes -= some;
  }
  return pieces;
}

void PagePlaces::Give(const Run& run) {
  STOWAGE_CHECK(run.offset >= 0 && run.bytes > 0);
  const auto next = free_.lower_bound(run.offset);
  STOWAGE_CHECK(next == free_.end() || run.offset + run.bytes <= next->first);
  const auto at = free_.emplace_hint(next, run.offset, run.bytes);
  free_bytes_ += run.bytes;
  if (next != free_.end() && next->first == run.offset + run.bytes) {
    at->second += next->second;
    free_.erase(next);
  }
  if (at == free_.begin()) return;
  const auto before = std::prev(at);
  STOWAGE_CHECK(before->first + before->second <= run.offset);
  if (before->first + before->second == run.offset) {
    before->second += at->second;
    free_.erase(at);
  }
}

}  // namespace stowage::core
