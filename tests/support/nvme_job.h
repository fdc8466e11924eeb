// A small job whose state after each step is known without the store: what
// crash and fault tests compare with, bit for bit.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/layout.h"
#include "gtest/gtest.h"
#include "storage/nvme/nvme_store.h"

namespace stowage::testing {

class NvmeJob {
 public:
  // Five units of 0.2 to 2.6 MiB of state, one frozen, two groups; `units`
  // copies of them.
  explicit NvmeJob(int copies = 1);

  const Layout& layout() const { return layout_; }
  const std::vector<std::int32_t>& order() const { return order_; }
  void SetOrder(std::vector<std::int32_t> order) { order_ = std::move(order); }

  // What element i of an array of a chunk is after `step` steps.
  static float Value(std::int64_t step, int array, std::int64_t chunk,
                     std::int64_t element);
  static storage::CommitRecord Record(std::int64_t step);

  // Initial values and the commit of step 0. Parameters too if the store has
  // them.
  absl::Status Initialize(storage::NvmeStore& store) const;
  // One step after the store's last; every chunk is checked before it is
  // updated. `*wrong` counts values that are not those of the last step.
  absl::Status Step(storage::NvmeStore& store, std::int64_t* wrong) const;
  // The same without Commit(): the pass is open. UpdateState() leaves the
  // parameters as they are.
  absl::Status UpdateState(storage::NvmeStore& store,
                           std::int64_t* wrong) const;
  absl::Status Update(storage::NvmeStore& store, std::int64_t* wrong) const;

  // Expects state, record and parameters to be exactly those of `step`.
  void Expect(storage::NvmeStore& store, std::int64_t step) const;

 private:
  absl::Status WriteParams(storage::NvmeStore& store, std::int64_t step) const;

  Layout layout_;
  std::vector<std::int32_t> order_;
};

}  // namespace stowage::testing
