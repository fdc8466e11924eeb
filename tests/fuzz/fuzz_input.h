// Numbers and bytes out of a fuzzer's input, and the check that a target makes.
//
// Reading past the end gives zeros, so that every input means something and a
// mutation of a byte changes one thing.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace stowage::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size)
      : data_(data), left_(size) {}

  bool empty() const { return left_ == 0; }

  template <typename T>
  T Get() {
    T value{};
    const std::size_t n = left_ < sizeof(T) ? left_ : sizeof(T);
    std::memcpy(&value, data_, n);
    Skip(n);
    return value;
  }
  // 0 to below - 1.
  std::int32_t Below(std::int32_t below) {
    return static_cast<std::int32_t>(Get<std::uint8_t>() % below);
  }
  // Mostly small and near what is right; now and then anything.
  std::int64_t Number(std::int64_t about) {
    const auto how = Get<std::uint8_t>();
    if (how < 200) return about;
    if (how < 240) return about + static_cast<std::int8_t>(Get<std::uint8_t>());
    return Get<std::int64_t>();
  }
  // At most `max` bytes.
  std::string Bytes(std::size_t max) {
    std::size_t n = Get<std::uint16_t>() % (max + 1);
    if (n > left_) n = left_;
    std::string bytes(reinterpret_cast<const char*>(data_), n);
    Skip(n);
    return bytes;
  }
  std::string Rest() {
    std::string bytes(reinterpret_cast<const char*>(data_), left_);
    Skip(left_);
    return bytes;
  }

 private:
  void Skip(std::size_t n) {
    data_ += n;
    left_ -= n;
  }

  const std::uint8_t* data_;
  std::size_t left_;
};

}  // namespace stowage::fuzz

// A promise that no input may break; ends the process as a crash would.
#define STOWAGE_FUZZ_CHECK(condition, text)                                   \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, \
                   std::string(text).c_str());                                \
      std::abort();                                                           \
    }                                                                         \
  } while (false)
