// Which place of an extent the next version may be written to: one that no kept
// commit refers to. There is always one, because an extent has one place more
// than there are kept commits.

#pragma once

#include <cstdint>
#include <vector>

#include "common/check.h"
#include "storage/nvme/manifest.h"

namespace stowage::storage {

// Thread safety: externally synchronized.
class PlaceBook {
 public:
  PlaceBook() = default;
  PlaceBook(std::size_t extents, std::int32_t places)
      : used_(extents), places_(places) {}

  void Clear() { used_.assign(used_.size(), 0); }

  // Counts the places of one kept commit as in use.
  void Keep(const PlaceTable& table) {
    for (std::size_t e = 0; e < table.places.size(); ++e) {
      if (table.places[e] < places_) {
        used_[e] |= std::uint64_t{1} << table.places[e];
      }
    }
  }

  // The free place after `current` in turn, so that the extents of a pass,
  // which all move on by one, stay beside each other on the device.
  std::uint8_t Next(std::int32_t extent, std::uint8_t current) const {
    const std::uint64_t used = used_[static_cast<std::size_t>(extent)];
    std::int32_t place = current < places_ ? current : places_ - 1;
    for (std::int32_t tries = 0; tries < places_; ++tries) {
      place = (place + 1) % places_;
      if (((used >> place) & 1U) == 0) return static_cast<std::uint8_t>(place);
    }
    STOWAGE_CHECK(false);  // more kept commits than places allow
    return 0;
  }

 private:
  std::vector<std::uint64_t> used_;  // by extent: a bit per place
  std::int32_t places_ = 0;
};

}  // namespace stowage::storage
