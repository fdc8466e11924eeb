#include "engine/zero/gathered_storage.h"

#include <ATen/ATen.h>

#include <memory>
#include <utility>

#include "common/check.h"

namespace stowage::engine {
namespace {

// What a filled storage owns: the ledger's entry.
struct Entry {
  GatheredLedger* ledger;
  std::int64_t bytes;
};

void DropEntry(void* context) {
  const std::unique_ptr<Entry> entry(static_cast<Entry*>(context));
  entry->ledger->Remove(entry->bytes);
}

}  // namespace

void GatheredLedger::Add(std::int64_t bytes) {
  const std::int64_t live = live_bytes_ += bytes;
  std::int64_t peak = peak_bytes_.load();
  while (live > peak && !peak_bytes_.compare_exchange_weak(peak, live)) {
  }
}

GatheredStorage GatheredStorage::Adopt(at::Tensor& parameter,
                                       at::ScalarType dtype,
                                       GatheredLedger* ledger,
                                       c10::Device device) {
  GatheredStorage gathered;
  gathered.device_ = device;
  gathered.ledger_ = ledger;
  gathered.bytes_ =
      parameter.numel() * static_cast<std::int64_t>(c10::elementSize(dtype));
  gathered.storage_ = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t{}, 0, c10::DataPtr(nullptr, device),
      nullptr,
      /*resizable=*/false);
  at::Tensor empty = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(gathered.storage_),
      c10::DispatchKeySet(device.is_cuda() ? c10::DispatchKey::CUDA
                                           : c10::DispatchKey::CPU),
      c10::scalarTypeToTypeMeta(dtype));
  empty.unsafeGetTensorImpl()->set_sizes_contiguous(parameter.sizes());
  parameter.set_data(empty);
  return gathered;
}

void GatheredStorage::Fill(const void* data) {
  STOWAGE_CHECK(!filled_);
  ledger_->Add(bytes_);
  // The mapping is read-only memory; nothing in LibTorch writes a parameter
  // that no optimizer of LibTorch owns, and one that does faults at once.
  auto* address = const_cast<void*>(data);
  storage_->set_data_ptr_noswap(c10::DataPtr(
      address, std::make_unique<Entry>(Entry{ledger_, bytes_}).release(),
      &DropEntry, device_));
  storage_->set_nbytes(static_cast<std::size_t>(bytes_));
  filled_ = true;
}

void GatheredStorage::Empty() {
  if (!filled_) return;
  storage_->set_data_ptr_noswap(c10::DataPtr(nullptr, device_));
  storage_->set_nbytes(0);
  filled_ = false;
}

}  // namespace stowage::engine
