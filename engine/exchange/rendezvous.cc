#include "engine/exchange/rendezvous.h"

#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/torch_status.h"
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace stowage::engine {
namespace {

// Reading the environment races with nobody: ranks are started by it.
const char* Variable(const char* name) {
  return std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
}

absl::Status ReadNumber(const char* name, int fallback, int* value) {
  const char* text = Variable(name);
  if (text == nullptr) {
    *value = fallback;
    return absl::OkStatus();
  }
  if (!absl::SimpleAtoi(text, value) || *value < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "environment variable ", name, "=\"", text, "\" is not a rank number"));
  }
  return absl::OkStatus();
}

class StoreRendezvous final : public Rendezvous {
 public:
  explicit StoreRendezvous(c10::intrusive_ptr<c10d::Store> store)
      : store_(std::move(store)) {}

  absl::Status Set(const std::string& key, const std::string& value) override {
    return CatchStatus("rendezvous", [&] {
      store_->set(key, std::vector<std::uint8_t>(value.begin(), value.end()));
    });
  }

  absl::StatusOr<std::string> Get(const std::string& key) override {
    std::string value;
    const absl::Status status = CatchStatus("rendezvous", [&] {
      const std::vector<std::uint8_t> bytes = store_->get(key);
      value.assign(bytes.begin(), bytes.end());
    });
    if (!status.ok()) {
      return absl::DeadlineExceededError(absl::StrCat(
          "rendezvous: no rank published \"", key,
          "\" in time; did rank 0 start? (", status.message(), ")"));
    }
    return value;
  }

  c10::intrusive_ptr<c10d::Store> store() override { return store_; }

 private:
  c10::intrusive_ptr<c10d::Store> store_;
};

}  // namespace

absl::StatusOr<LaunchInfo> LaunchInfo::FromEnvironment() {
  LaunchInfo launch;
  if (Variable("RANK") == nullptr && Variable("WORLD_SIZE") == nullptr) {
    return launch;
  }
  for (const char* name : {"RANK", "WORLD_SIZE"}) {
    if (Variable(name) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "environment variable ", name,
          " is not set; start ranks with torchrun or with --ranks N"));
    }
  }
  for (const absl::Status& status :
       {ReadNumber("RANK", 0, &launch.rank),
        ReadNumber("WORLD_SIZE", 1, &launch.world_size),
        ReadNumber("LOCAL_RANK", launch.rank, &launch.local_rank),
        ReadNumber("LOCAL_WORLD_SIZE", launch.world_size,
                   &launch.local_world_size)}) {
    if (!status.ok()) return status;
  }
  if (launch.rank >= launch.world_size ||
      launch.local_rank >= launch.local_world_size ||
      launch.local_world_size > launch.world_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "RANK=", launch.rank, " WORLD_SIZE=", launch.world_size,
        " LOCAL_RANK=", launch.local_rank,
        " LOCAL_WORLD_SIZE=", launch.local_world_size, " do not fit together"));
  }
  return launch;
}

absl::StatusOr<std::unique_ptr<Rendezvous>> Rendezvous::Create(
    const LaunchInfo& launch, std::chrono::milliseconds timeout) {
  c10::intrusive_ptr<c10d::Store> store;
  if (launch.world_size == 1) {
    store = c10::make_intrusive<c10d::HashStore>();
  } else if (const char* file = Variable("STOWAGE_RENDEZVOUS_FILE")) {
    const absl::Status status = CatchStatus("rendezvous", [&] {
      store = c10::make_intrusive<c10d::FileStore>(file, launch.world_size);
    });
    if (!status.ok()) return status;
  } else {
    const char* address = Variable("MASTER_ADDR");
    int port = 0;
    if (address == nullptr || Variable("MASTER_PORT") == nullptr) {
      return absl::InvalidArgumentError(
          "rendezvous: MASTER_ADDR and MASTER_PORT are not set; start ranks "
          "with torchrun or with --ranks N");
    }
    if (absl::Status s = ReadNumber("MASTER_PORT", 0, &port); !s.ok()) return s;
    // torchrun's agent already hosts the store and says so.
    const char* agent = Variable("TORCHELASTIC_USE_AGENT_STORE");
    const bool hosted = agent != nullptr && std::string(agent) == "True";
    const absl::Status status = CatchStatus("rendezvous", [&] {
      c10d::TCPStoreOptions options;
      options.port = static_cast<std::uint16_t>(port);
      options.isServer = launch.rank == 0 && !hosted;
      options.numWorkers = static_cast<std::size_t>(launch.world_size);
      options.waitWorkers = false;
      options.timeout = timeout;
      store = c10::make_intrusive<c10d::TCPStore>(address, options);
    });
    if (!status.ok()) {
      return absl::UnavailableError(absl::StrCat("rendezvous at ", address, ":",
                                                 port, ": ", status.message()));
    }
    // A restart by torchrun's agent reuses the store: keys carry its count.
    const char* restart = Variable("TORCHELASTIC_RESTART_COUNT");
    store = c10::make_intrusive<c10d::PrefixStore>(
        absl::StrCat("stowage/", restart == nullptr ? "0" : restart), store);
  }
  const absl::Status status =
      CatchStatus("rendezvous", [&] { store->setTimeout(timeout); });
  if (!status.ok()) return status;
  return std::make_unique<StoreRendezvous>(std::move(store));
}

}  // namespace stowage::engine
