// The contract of a job's state, run by each store, bare and behind gRPC: host
// memory, NVMe on simulated disks with odd alignments and unruly transfers, and
// NVMe on real files by io_uring and by the fallback.

#include "tests/contract/state_contract.h"

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/offload_client.h"
#include "common/status_macros.h"
#include "proto/job_record_codec.h"
#include "server/core/job_registry.h"
#include "server/rpc/rpc_server.h"
#include "storage/host/host_store.h"
#include "storage/host/memory_budget.h"
#include "storage/nvme/nvme_store.h"
#include "tests/support/nvme_testing.h"
#include "tests/support/simulated_disk.h"

namespace stowage::testing {
namespace {

using storage::IoBackend;
using storage::NvmeStore;
using storage::NvmeStoreOptions;

constexpr std::int32_t kKeptSteps = 2;

// Where a keeper's state lies. `nvme` false: in memory.
struct Place {
  bool nvme = false;
  SimulatedDisk::Options disk;
  bool simulated = false;
  bool unruly = false;
  IoBackend backend = IoBackend::kAuto;
};

// Folders and disk of one keeper.
struct Ground {
  std::vector<std::string> paths;
  std::unique_ptr<SimulatedDisk> disk;
};

Ground MakeGround(const Place& place) {
  static int count = 0;
  Ground ground;
  if (!place.nvme) return ground;
  ++count;
  for (const char* part : {"a", "b"}) {
    // The simulated disk has files of the same names.
    ground.paths.push_back(std::filesystem::canonical(
        ScratchFolder(absl::StrCat("ground-", count, part))));
  }
  if (!place.simulated) return ground;
  ground.disk = std::make_unique<SimulatedDisk>(place.disk);
  for (const std::string& path : ground.paths) {
    EXPECT_TRUE(ground.disk->MakeFolder(path).ok());
  }
  if (place.unruly) MakeUnruly(ground.disk.get());
  return ground;
}

// Drives a bare store as server/core does, in one thread.
class StoreKeeper final : public StateKeeper {
 public:
  StoreKeeper(const Layout& layout, const Place& place)
      : layout_(layout), ground_(MakeGround(place)), budget_(1LL << 32) {
    for (std::size_t c = 0; c < layout.chunks().size(); ++c) {
      order_.push_back(static_cast<std::int32_t>(c));
    }
    if (!place.nvme) {
      auto reservation =
          budget_.Reserve(storage::HostStore::PinnedBytes(layout), "test");
      auto store = storage::HostStore::Create(
          layout, /*lock_memory=*/false, &budget_, *std::move(reservation));
      EXPECT_TRUE(store.ok()) << store.status();
      store_ = *std::move(store);
      return;
    }
    options_ = SmallNvmeOptions();
    options_.paths = ground_.paths;
    options_.disk = ground_.disk.get();
    options_.backend = place.backend;
    options_.durability = Durability::kPower;
    options_.kept_versions = kKeptSteps;
    options_.window_elems = 1;  // of one extent: several a step
    options_.slots = 3;
    auto store = CreateNvmeStore(layout, options_);
    EXPECT_TRUE(store.ok()) << store.status();
    nvme_ = store->get();
    store_ = *std::move(store);
  }

  absl::Status Put(std::int32_t unit, std::int64_t begin_elems,
                   std::span<const float> values) override {
    return store_->Put(unit, begin_elems, values);
  }
  absl::Status Begin() override {
    // A server commits the initial state on NVMe; in memory the first step is
    // the first commit.
    return nvme_ == nullptr ? absl::OkStatus() : store_->Commit({});
  }
  absl::Status Read(std::int32_t unit, StateKind kind, std::int64_t begin_elems,
                    std::span<float> out) override {
    return store_->Read(unit, kind, begin_elems, out);
  }
  absl::StatusOr<storage::CommitRecord> Committed() override {
    return store_->committed();
  }
  absl::Status Rewind(std::int64_t step) override {
    return nvme_->Rewind(step);
  }
  absl::Status Reopen() override {
    STOWAGE_RETURN_IF_ERROR(nvme_->Close());
    store_.reset();
    STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<NvmeStore> opened,
                             OpenNvmeStore(layout_, options_));
    nvme_ = opened.get();
    store_ = std::move(opened);
    return absl::OkStatus();
  }

  absl::Status Step(const ApplyArgs& args,
                    const ElementFunction& gradient) override {
    storage::CommitRecord record = store_->committed();
    ++record.step;
    record.client_state = args.client_state;
    if (!args.skip) {
      ++record.applied_steps;
      STOWAGE_RETURN_IF_ERROR(UpdateAll(args, record.applied_steps, gradient));
    }
    return store_->Commit(record);
  }

 private:
  absl::Status UpdateAll(const ApplyArgs& args, std::int64_t t,
                         const ElementFunction& gradient) {
    STOWAGE_RETURN_IF_ERROR(store_->BeginUpdate(order_));
    for (;;) {
      STOWAGE_ASSIGN_OR_RETURN(const storage::UpdateWindow window,
                               store_->AcquireNext());
      if (window.empty()) return absl::OkStatus();
      for (std::int64_t at = window.begin; at < window.end; ++at) {
        STOWAGE_RETURN_IF_ERROR(store_->VerifyChunk(at));
        UpdateChunk(at, args, t, gradient);
        store_->ChunkUpdated(at);
      }
      STOWAGE_RETURN_IF_ERROR(store_->Release(window));
    }
  }

  void UpdateChunk(std::int64_t at, const ApplyArgs& args, std::int64_t t,
                   const ElementFunction& gradient) {
    const Layout::Chunk& chunk = layout_.chunks()[static_cast<std::size_t>(
        order_[static_cast<std::size_t>(at)])];
    std::vector<std::uint16_t> slot(static_cast<std::size_t>(chunk.elems));
    const Layout::Unit& unit =
        layout_.units()[static_cast<std::size_t>(chunk.unit_index)];
    for (const Layout::Param& param : unit.params) {
      for (std::int64_t i = 0; i < chunk.elems; ++i) {
        const std::int64_t element = chunk.begin_elems + i;
        if (!param.frozen && element >= param.begin_elems &&
            element < param.begin_elems + param.elems) {
          slot[static_cast<std::size_t>(i)] =
              FloatToBf16(gradient(chunk.unit_index, element));
        }
      }
    }
    const void* const data = slot.data();
    const GroupStep& group =
        args.groups[static_cast<std::size_t>(chunk.group_index)];
    const storage::StateView view = store_->View(at);
    std::vector<std::uint16_t> copy(slot.size());
    optim::BestKernels().adam(
        optim::MakeAdamConstants({.lr = group.lr,
                                  .beta1 = group.beta1,
                                  .beta2 = group.beta2,
                                  .eps = group.eps,
                                  .weight_decay = group.weight_decay},
                                 t, args.gradient_factor),
        {.slots = {&data, 1}, .slot_dtype = Dtype::kBf16, .sum = nullptr},
        {.elems = chunk.elems,
         .master = view.master,
         .moment1 = view.moment1,
         .moment2 = view.moment2,
         .copy = copy.data(),
         .copy_dtype = Dtype::kBf16});
  }

  const Layout& layout_;
  Ground ground_;
  storage::MemoryBudget budget_;
  NvmeStoreOptions options_;
  std::vector<std::int32_t> order_;
  std::unique_ptr<storage::StateStore> store_;
  NvmeStore* nvme_ = nullptr;
};

// A rank of a job in a server of this process, reached over gRPC.
class RemoteKeeper final : public StateKeeper {
 public:
  RemoteKeeper(const Layout& layout, const Place& place)
      : layout_(layout), ground_(MakeGround(place)), place_(place) {
    const absl::Status up = StartServer();
    EXPECT_TRUE(up.ok()) << up;
    const absl::Status there = Attach();
    EXPECT_TRUE(there.ok()) << there;
  }
  ~RemoteKeeper() override {
    session_.reset();
    StopServer();
  }

  absl::Status Put(std::int32_t unit, std::int64_t begin_elems,
                   std::span<const float> values) override {
    return session_->PutState(unit, begin_elems, values);
  }
  absl::Status Begin() override {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      for (const Layout::Param& param :
           layout_.units()[static_cast<std::size_t>(u)].params) {
        if (!param.frozen) continue;
        STOWAGE_RETURN_IF_ERROR(session_->PutState(
            u, param.begin_elems,
            std::vector<float>(static_cast<std::size_t>(param.elems), 0.5F)));
      }
    }
    return session_->FinishInitialization();
  }
  absl::Status Step(const ApplyArgs& args,
                    const ElementFunction& gradient) override {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      STOWAGE_RETURN_IF_ERROR(session_->WaitVersion(u, args.step));
      auto* const slot = reinterpret_cast<std::uint16_t*>(
          session_->gradient_slot(0, u).data());
      for (const Layout::Param& param :
           layout_.units()[static_cast<std::size_t>(u)].params) {
        for (std::int64_t i = param.begin_elems;
             !param.frozen && i < param.begin_elems + param.elems; ++i) {
          slot[i] = FloatToBf16(gradient(u, i));
        }
      }
      STOWAGE_RETURN_IF_ERROR(session_->Notice(args.step, 0, u, false));
    }
    STOWAGE_RETURN_IF_ERROR(
        session_->Prepare(args.step, std::vector<double>{1.0}).status());
    STOWAGE_RETURN_IF_ERROR(session_->Apply(args));
    std::vector<float> one(1);  // answered when the step is committed
    return session_->ReadState(0, StateKind::kMaster, 0, one);
  }
  absl::Status Read(std::int32_t unit, StateKind kind, std::int64_t begin_elems,
                    std::span<float> out) override {
    return session_->ReadState(unit, kind, begin_elems, out);
  }
  // What a rank is told when it attaches.
  absl::StatusOr<storage::CommitRecord> Committed() override {
    STOWAGE_RETURN_IF_ERROR(Leave());
    STOWAGE_RETURN_IF_ERROR(Attach());
    const AttachInfo& info = session_->info();
    return storage::CommitRecord{.step = info.step,
                                 .applied_steps = info.applied_steps,
                                 .client_state = info.client_state};
  }
  absl::Status Reopen() override {
    STOWAGE_RETURN_IF_ERROR(Leave());
    StopServer();
    STOWAGE_RETURN_IF_ERROR(StartServer());
    return Attach();
  }
  absl::Status Rewind(std::int64_t step) override {
    STOWAGE_RETURN_IF_ERROR(Leave());
    const absl::Status rewound = client_->RewindJob("contract", step).status();
    STOWAGE_RETURN_IF_ERROR(Attach());
    return rewound;
  }

 private:
  absl::Status StartServer() {
    core::RegistryOptions options;
    options.shm_dir = shm_.path();
    options.memory_limit_bytes = std::int64_t{1} << 30;
    options.threads = 2;
    options.lock_memory = false;
    options.nvme_roots = ground_.paths;
    options.encode_record = proto::EncodeJobRecord;
    options.decode_record = proto::DecodeJobRecord;
    options.disk = ground_.disk.get();
    options.io_backend = place_.backend;
    STOWAGE_ASSIGN_OR_RETURN(registry_, core::JobRegistry::Create(options));
    STOWAGE_ASSIGN_OR_RETURN(
        server_, rpc::RpcServer::Start(
                     {.listen = absl::StrCat("unix:", sockets_.path(), "/s"),
                      .version = "test"},
                     *registry_));
    STOWAGE_ASSIGN_OR_RETURN(
        client_, client::OffloadClient::Connect(server_->address(), {}));
    return absl::OkStatus();
  }
  void StopServer() {
    client_.reset();
    if (server_ != nullptr) server_->Stop();
    server_.reset();
    registry_.reset();
  }
  absl::Status Attach() {
    JobSpec job;
    job.name = "contract";
    job.layout = ContractModel();
    if (place_.nvme) {
      job.durability = Durability::kPower;
      job.storage.optimizer = Placement::kNvme;
      job.storage.nvme_paths = ground_.paths;
      job.storage.kept_steps = kKeptSteps;
      job.storage.pipeline_read = true;
      job.storage.pipeline_write = true;
      job.storage.sub_group_elems = 1;
      job.storage.aio.block_size_bytes = 64 * 1024;
      job.storage.aio.queue_depth = 8;
    }
    RunSpec run;
    run.nonce = std::string(16, static_cast<char>('a' + runs_++ % 26));
    client::SessionOptions options;
    options.wait_timeout = std::chrono::seconds(60);
    STOWAGE_ASSIGN_OR_RETURN(session_, client_->Attach(job, run, 0, options));
    return absl::OkStatus();
  }
  absl::Status Leave() {
    absl::Status left = session_->Close(/*close_job=*/false);
    session_.reset();
    return left;
  }

  const Layout& layout_;
  Ground ground_;
  const Place place_;
  ShmFolder shm_;
  ShmFolder sockets_;
  int runs_ = 0;
  std::unique_ptr<core::JobRegistry> registry_;
  std::unique_ptr<rpc::RpcServer> server_;
  std::unique_ptr<client::OffloadClient> client_;
  std::unique_ptr<client::Session> session_;
};

std::vector<StateKeeperFactory> Factories() {
  const std::vector<std::pair<std::string, Place>> places = {
      {"Host", Place()},
      {"Simulated4096Unruly",
       {.nvme = true,
        .disk = {.seed = 2,
                 .alignment = {.offset_bytes = 4096, .memory_bytes = 4096}},
        .simulated = true,
        .unruly = true}},
      {"Simulated1024",
       {.nvme = true,
        .disk = {.seed = 3,
                 .alignment = {.offset_bytes = 1024, .memory_bytes = 64}},
        .simulated = true}},
      {"FileByUring", {.nvme = true, .disk = {}}},
      {"FileByPool", {.nvme = true, .disk = {}, .backend = IoBackend::kPool}}};
  std::vector<StateKeeperFactory> factories;
  for (const auto& [name, place] : places) {
    factories.push_back({.name = name,
                         .make =
                             [place = place](const Layout& layout) {
                               return std::make_unique<StoreKeeper>(layout,
                                                                    place);
                             },
                         .persistent = place.nvme});
    factories.push_back({.name = name + "BehindGrpc",
                         .make =
                             [place = place](const Layout& layout) {
                               return std::make_unique<RemoteKeeper>(layout,
                                                                     place);
                             },
                         .persistent = place.nvme});
  }
  return factories;
}

INSTANTIATE_TEST_SUITE_P(All, StateContract, ::testing::ValuesIn(Factories()),
                         [](const auto& instance) {
                           return instance.param.name;
                         });

}  // namespace
}  // namespace stowage::testing
