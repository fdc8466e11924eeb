// The storage of one parameter that can be emptied and filled again in place.
//
// A linear layer's backward holds views of its weight, so swapping a
// parameter's data frees nothing: the views keep the old storage alive. Here a
// parameter keeps one StorageImpl for life; Fill() points it at memory (a
// mapping under a lease, or a gathered buffer) and Empty() takes the memory
// away from the parameter and from every view of it at once.
//
// What is gathered is counted where the memory is let go: by the deleter of
// the storage's own data pointer, not by whoever decided to release.
//
// Thread safety: externally synchronized per parameter; the ledger is
//   thread-safe.

#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace stowage::engine {

// Bytes that filled storages hold now, and the most since the last reset.
class GatheredLedger {
 public:
  void Add(std::int64_t bytes);
  void Remove(std::int64_t bytes) { live_bytes_ -= bytes; }
  std::int64_t live_bytes() const { return live_bytes_; }
  std::int64_t peak_bytes() const { return peak_bytes_; }
  void ResetPeak() { peak_bytes_ = live_bytes_.load(); }

 private:
  std::atomic<std::int64_t> live_bytes_{0};
  std::atomic<std::int64_t> peak_bytes_{0};
};

class GatheredStorage {
 public:
  // Gives `parameter` (a leaf of any content; its old data is freed if nobody
  // else holds it) an empty storage for `shape` elements of `dtype`. The
  // parameter keeps its identity: modules and tied references see the change.
  // `device`: where what it is filled with will be.
  // Ownership: the ledger must outlive every storage and view.
  static GatheredStorage Adopt(at::Tensor& parameter, at::ScalarType dtype,
                               GatheredLedger* ledger,
                               c10::Device device = c10::Device(c10::kCPU));

  // Points the storage at `data` (bytes() long), which stays the caller's and
  // must live until Empty(). Requires: empty.
  void Fill(const void* data);
  // Requires: nothing; emptying twice is allowed.
  void Empty();

  bool filled() const { return filled_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  c10::intrusive_ptr<c10::StorageImpl> storage_;
  GatheredLedger* ledger_ = nullptr;
  c10::Device device_ = c10::Device(c10::kCPU);
  std::int64_t bytes_ = 0;
  bool filled_ = false;
};

}  // namespace stowage::engine
