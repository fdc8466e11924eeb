// The host store under the contract of all stores.

#include <memory>
#include <utility>

#include "storage/host/host_store.h"
#include "storage/host/memory_budget.h"
#include "tests/contract/state_store_contract.h"

namespace stowage::testing {
namespace {

std::unique_ptr<storage::StateStore> MakeHostStore(const Layout& layout) {
  static storage::MemoryBudget budget(std::int64_t{1} << 32);
  auto reservation =
      budget.Reserve(storage::HostStore::PinnedBytes(layout), "test");
  EXPECT_TRUE(reservation.ok());
  auto store = storage::HostStore::Create(layout, /*lock_memory=*/false,
                                          &budget, *std::move(reservation));
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

INSTANTIATE_TEST_SUITE_P(HostStore, StateStoreContract,
                         ::testing::Values(StateStoreFactory{
                             .name = "host", .make = MakeHostStore}));

}  // namespace
}  // namespace stowage::testing
