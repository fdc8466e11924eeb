// A text file as training samples: bytes are tokens.
//
// Sample i is a window of context + 1 bytes. The order is a function of seed
// and global sample index alone: in each epoch every window comes once, in an
// order that a keyed permutation of the window numbers gives, so that any rank
// of any world size finds its samples without state.
//
// Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", method
//   of cycle walking over a Feistel network.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace stowage::gpt {

class TextData {
 public:
  // Errors: kNotFound or what open(2) says, with the path; kInvalidArgument
  //   for a file shorter than one window, with both sizes.
  static absl::StatusOr<TextData> Load(const std::string& path,
                                       std::int64_t context_tokens,
                                       std::uint64_t seed);

  // The first byte of sample `index` (context + 1 bytes long).
  const unsigned char* Sample(std::int64_t index) const;
  std::int64_t window_count() const { return windows_; }
  std::int64_t size_bytes() const {
    return static_cast<std::int64_t>(bytes_.size());
  }

 private:
  std::vector<unsigned char> bytes_;
  std::int64_t context_ = 0;
  std::int64_t windows_ = 0;
  std::uint64_t seed_ = 0;
};

}  // namespace stowage::gpt
