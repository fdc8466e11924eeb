// Little-endian bytes of the store's records, written and read back with every
// length checked.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace stowage::storage {

// x86-64 and AArch64 are little-endian, as the format is.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

class ByteWriter {
 public:
  explicit ByteWriter(std::string* out) : out_(out) {}

  template <typename T>
  void Put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    out_->append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void PutText(std::string_view text) {
    Put(static_cast<std::uint64_t>(text.size()));
    out_->append(text);
  }
  template <typename T>
  void PutArray(std::span<const T> values) {
    static_assert(std::is_arithmetic_v<T>);
    out_->append(reinterpret_cast<const char*>(values.data()),
                 values.size_bytes());
  }

 private:
  std::string* out_;
};

// After the first read past the end everything reads as zero and ok() is false.
class ByteReader {
 public:
  explicit ByteReader(std::string_view in) : in_(in) {}

  template <typename T>
  T Get() {
    T value{};
    GetArray(std::span<T>(&value, 1));
    return value;
  }
  std::string GetText() {
    const auto bytes = Get<std::uint64_t>();
    if (bytes > in_.size()) {
      ok_ = false;
      return {};
    }
    std::string text(in_.substr(0, bytes));
    in_.remove_prefix(bytes);
    return text;
  }
  template <typename T>
  void GetArray(std::span<T> into) {
    static_assert(std::is_arithmetic_v<T>);
    if (!ok_ || into.size_bytes() > in_.size()) {
      ok_ = false;
      return;
    }
    if (into.empty()) return;
    std::memcpy(into.data(), in_.data(), into.size_bytes());
    in_.remove_prefix(into.size_bytes());
  }

  bool ok() const { return ok_; }
  std::size_t left() const { return in_.size(); }

 private:
  std::string_view in_;
  bool ok_ = true;
};

}  // namespace stowage::storage
