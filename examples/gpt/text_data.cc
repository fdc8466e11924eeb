#include "examples/gpt/text_data.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errno_status.h"
#include "common/unique_fd.h"

namespace stowage::gpt {
namespace {

std::uint64_t Mix(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

// A permutation of [0, count) keyed by `key`.
std::int64_t Permute(std::int64_t index, std::int64_t count,
                     std::uint64_t key) {
  const auto bits =
      static_cast<int>(std::bit_width(static_cast<std::uint64_t>(count - 1)));
  const int half = (bits + 1) / 2;
  const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
  auto value = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = value >> half;
    std::uint64_t right = value & mask;
    for (std::uint64_t round = 0; round < 4; ++round) {
      const std::uint64_t mixed =
          Mix(right + key + round * 0x9e3779b97f4a7c15ULL) & mask;
      left = std::exchange(right, left ^ mixed);
    }
    value = (left << half) | right;
  } while (value >= static_cast<std::uint64_t>(count));
  return static_cast<std::int64_t>(value);
}

}  // namespace

absl::StatusOr<TextData> TextData::Load(const std::string& path,
                                        std::int64_t context_tokens,
                                        std::uint64_t seed) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) {
    return ErrnoStatus(absl::StrCat("data file ", path));
  }
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) {
    return ErrnoStatus(absl::StrCat("data file ", path));
  }
  if (!S_ISREG(facts.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("data file ", path, ": not a regular file"));
  }
  if (facts.st_size < context_tokens + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data file ", path, ": ", facts.st_size,
        " bytes, one sample of --context ", context_tokens, " needs ",
        context_tokens + 1, "; give a longer text or a smaller --context"));
  }
  TextData data;
  data.bytes_.resize(static_cast<std::size_t>(facts.st_size));
  std::size_t done = 0;
  while (done < data.bytes_.size()) {
    const ssize_t got = ::read(file.get(), data.bytes_.data() + done,
                               data.bytes_.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(absl::StrCat("read data file ", path));
    if (got == 0) {
      return absl::DataLossError(
          absl::StrCat("data file ", path, ": became shorter while reading"));
    }
    done += static_cast<std::size_t>(got);
  }
  data.context_ = context_tokens;
  data.windows_ =
      (static_cast<std::int64_t>(facts.st_size) - 1) / context_tokens;
  data.seed_ = seed;
  return data;
}

const unsigned char* TextData::Sample(std::int64_t index) const {
  const std::int64_t epoch = index / windows_;
  const std::int64_t window =
      windows_ == 1 ? 0
                    : Permute(index % windows_, windows_,
                              Mix(seed_ * 0x9e3779b97f4a7c15ULL +
                                  static_cast<std::uint64_t>(epoch) + 1));
  return bytes_.data() + window * context_;
}

}  // namespace stowage::gpt
