// The session stream as sequences of calls, and segments that change while the
// server reads them.
//
// Up to three ranks of two runs attach to one job and say what the input tells
// them, in any order: well-formed calls with numbers that are mostly right,
// whole messages of the fuzzer's own bytes, ends with and without a goodbye,
// garbage and cuts in their segments, from a thread beside the calls too.
// Nothing may crash or hang; afterwards every byte and file is given back, and
// a neighbour's job takes a step with the bits that it would have alone.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/unique_fd.h"
#include "proto/round_codec.h"
#include "proto/session_codec.h"
#include "server/core/job_registry.h"
#include "server/rpc/session_calls.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/support/fake_rank.h"

#include "stowage/v1/session.pb.h"

namespace stowage {
namespace {

constexpr int kRanks = 3;
constexpr std::int32_t kUnits = 3;
constexpr std::int32_t kGroups = 2;

JobSpec Spec(const std::string& name) {
  JobSpec spec;
  spec.name = name;
  spec.layout.param_dtype = Dtype::kBf16;
  spec.layout.groups = {{.name = "g"}, {.name = "ice", .frozen = true}};
  spec.layout.units = {
      {.name = "a",
       .params = {{.name = "a.w", .shape = {100}, .group_index = 0}}},
      {.name = "b",
       .params = {{.name = "b.w", .shape = {9, 10}, .group_index = 0},
                  {.name = "b.ice", .shape = {5}, .group_index = 1}}},
      {.name = "c",
       .params = {{.name = "c.ice", .shape = {70}, .group_index = 1}}}};
  return spec;
}

ApplyArgs UsualApply(std::int64_t step) {
  ApplyArgs args;
  args.step = step;
  args.groups = {{.lr = 1e-2}, {}};
  return args;
}

// The registry of all inputs, and a neighbour at work in it.
struct World {
  std::unique_ptr<testing::ShmFolder> folder =
      std::make_unique<testing::ShmFolder>();
  std::unique_ptr<core::JobRegistry> registry;
  std::unique_ptr<testing::FakeRun> neighbour;
  std::unique_ptr<testing::FakeRun> twin;  // the same job, never disturbed
  std::int64_t step = 0;
  std::int64_t pinned_bytes = 0;
  std::int64_t files = 0;

  std::int64_t CountFiles() const {
    std::int64_t found = 0;
    for (const auto& file :
         std::filesystem::directory_iterator(folder->path())) {
      found += file.is_regular_file() ? 1 : 0;
    }
    return found;
  }

  std::unique_ptr<testing::FakeRun> StartRun(const std::string& name) {
    auto run = testing::FakeRun::Start(*registry, Spec(name),
                                       {.nonce = std::string(16, 'n')});
    STOWAGE_FUZZ_CHECK(run.ok(), run.status().ToString());
    const absl::Status put =
        (*run)->Initialize([](std::int32_t unit, std::int64_t element) {
          return testing::HashedValue(1, unit, element);
        });
    STOWAGE_FUZZ_CHECK(put.ok(), put.ToString());
    return *std::move(run);
  }

  World() {
    core::RegistryOptions options;
    options.shm_dir = folder->path();
    options.threads = 2;
    options.memory_limit_bytes = std::int64_t{64} << 20;
    options.lock_memory = false;
    (void)log::SetLevel("error");
    auto made = core::JobRegistry::Create(options);
    STOWAGE_FUZZ_CHECK(made.ok(), made.status().ToString());
    registry = *std::move(made);
    neighbour = StartRun("neighbour");
    twin = StartRun("twin");
    pinned_bytes = registry->Info().pinned_bytes;
    files = CountFiles();
  }

  void StepOf(testing::FakeRun& run) const {
    const auto verdict =
        run.Prepare(step, [](std::int64_t at, std::int32_t batch,
                             std::int32_t unit, std::int64_t element) {
          return testing::HashedValue(
              static_cast<std::uint64_t>(at * 7 + batch), unit, element);
        });
    STOWAGE_FUZZ_CHECK(verdict.ok(), verdict.status().ToString());
    const absl::Status applied = run.Apply(UsualApply(step));
    STOWAGE_FUZZ_CHECK(applied.ok(), applied.ToString());
  }
  void NeighbourIsWell() {
    StepOf(*neighbour);
    StepOf(*twin);
    ++step;
    STOWAGE_FUZZ_CHECK(
        neighbour->rank(0).ReadEverything() == twin->rank(0).ReadEverything(),
        "the neighbour's state changed");
  }
};

// Never destroyed: its threads outlive what the fuzzer does at exit.
World& TheWorld() {
  static World* world = new World;
  return *world;
}

class Observer final : public core::SessionObserver {
 public:
  void OnInitialized() override {}
  void OnVerdict(const Verdict& /*verdict*/) override {}
  void OnFailed(const absl::Status& status) override {
    STOWAGE_FUZZ_CHECK(!status.ok(), "failed with no status");
  }
};

// A rank as its stream's handler holds it.
struct Rank {
  Observer observer;
  std::unique_ptr<core::JobSession> session;
  std::unique_ptr<rpc::SessionCalls> calls;
  std::string segment;

  void End(bool clean, bool close_job) {
    if (session == nullptr) return;
    session->Detach(clean, close_job, "fuzzed");
    calls.reset();
    session.reset();
  }
};

// Changes bytes of a gradient segment for as long as it lives. By writes to the
// file: what is mapped may have been cut off, and its end must stay cut off.
class Scribbler {
 public:
  Scribbler(const std::string& path, std::uint64_t seed)
      : fd_(::open(path.c_str(), O_RDWR | O_CLOEXEC)) {
    if (!fd_.valid()) return;
    thread_ = std::thread([this, seed] {
      std::uint64_t x = seed | 1;
      struct stat info {};
      while (!stop_ && ::fstat(fd_.get(), &info) == 0) {
        x = x * 6364136223846793005ULL + 1442695040888963407ULL;
        const auto words = static_cast<std::uint64_t>(info.st_size) / 4;
        if (words == 0) continue;
        const auto value = static_cast<std::uint32_t>(x >> 20);
        if (::pwrite(fd_.get(), &value, sizeof(value),
                     static_cast<off_t>((x >> 33) % words * 4)) < 0) {
          return;
        }
      }
    });
  }
  Scribbler(const Scribbler&) = delete;
  Scribbler& operator=(const Scribbler&) = delete;
  ~Scribbler() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  const UniqueFd fd_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class Play {
 public:
  explicit Play(fuzz::Input input) : input_(input) {}
  Play(const Play&) = delete;
  Play& operator=(const Play&) = delete;
  ~Play() = default;

  void Run() {
    for (int call = 0; call < 64 && !input_.empty(); ++call) Call();
    scribblers_.clear();
    for (Rank& rank : ranks_) rank.End(input_.Below(2) == 0, true);
    const absl::Status dropped = TheWorld().registry->Drop("job");
    STOWAGE_FUZZ_CHECK(dropped.ok() || absl::IsNotFound(dropped),
                       dropped.ToString());
  }

 private:
  void Attach(Rank& rank, int index) {
    rank.End(false, false);
    RunSpec run;
    run.nonce = std::string(16, input_.Below(8) == 0 ? 'b' : 'a');
    run.local_ranks = input_.Below(4) == 0 ? kRanks : 1;
    // Ranks on another node, who never come: rounds have to be made up.
    run.world_size = run.local_ranks + (input_.Below(3) == 0 ? 1 : 0);
    run.micro_steps = input_.Below(16) == 0 ? 9 : 1 + input_.Below(2);
    world_size_ = run.world_size;
    JobSpec spec = Spec("job");
    spec.optimizer.kind = kind_;
    if (spec.optimizer.one_bit()) spec.optimizer.freeze_step = 1;
    auto session = TheWorld().registry->Attach(
        spec, run, index % run.local_ranks, "pid 1", &rank.observer);
    if (!session.ok()) return;
    rank.session = *std::move(session);
    rank.calls = std::make_unique<rpc::SessionCalls>(
        *rank.session, run.local_ranks,
        [](const v1::ServerMessage& /*answer*/) { return true; },
        [] { return false; });  // nobody waits long
    const AttachInfo& info = rank.session->info();
    rank.segment = absl::StrCat(info.shm_dir, "/", info.gradient_segment);
    step_ = info.step;
  }

  v1::ClientMessage Message() {
    v1::ClientMessage message;
    switch (input_.Below(11)) {
      case 0:
        proto::EncodePutState(
            input_.Below(kUnits), input_.Number(0),
            std::vector<float>(static_cast<std::size_t>(1 + input_.Below(128)),
                               0.5F),
            message.mutable_put_state());
        break;
      case 1:
        message.mutable_finish_initialization();
        break;
      case 2: {
        std::vector<std::int32_t> units;
        for (int i = input_.Below(6); i > 0; --i) {
          units.push_back(static_cast<std::int32_t>(input_.Number(i % kUnits)));
        }
        proto::EncodeForwardOrder(units, units,
                                  message.mutable_set_forward_order());
        break;
      }
      case 3:
        proto::EncodeNotice(
            {.step = input_.Number(step_),
             .micro = static_cast<std::int32_t>(input_.Number(0)),
             .unit =
                 static_cast<std::int32_t>(input_.Number(input_.Below(kUnits))),
             .empty = input_.Below(4) == 0},
            message.mutable_notice());
        break;
      case 4:
        proto::EncodePrepare(input_.Number(step_), std::vector<double>{1.0},
                             message.mutable_prepare());
        break;
      case 5: {
        ApplyArgs args = UsualApply(input_.Number(step_));
        args.skip = input_.Below(8) == 0;
        args.gradient_factor = static_cast<double>(input_.Number(1));
        args.groups.resize(static_cast<std::size_t>(input_.Number(kGroups)) %
                           64);
        args.client_state = input_.Bytes(16);
        proto::EncodeApply(args, message.mutable_apply());
        break;
      }
      case 6:
        proto::EncodeReadState(
            {.unit = input_.Below(kUnits),
             .kind = static_cast<StateKind>(1 + input_.Below(4)),
             .begin_elems = input_.Number(0),
             .elems = input_.Number(1)},
            message.mutable_read_state());
        break;
      case 7:
        proto::EncodeLease({.unit = input_.Below(kUnits), .step = step_},
                           message.mutable_lease());
        break;
      case 8:
        proto::EncodeBeginRound(UsualApply(input_.Number(step_)),
                                static_cast<std::int32_t>(input_.Number(0)),
                                message.mutable_begin_round());
        break;
      case 9: {
        const std::string bytes = input_.Bytes(64);
        proto::EncodeRoundResult(
            {.step = input_.Number(step_),
             .round = static_cast<std::int32_t>(input_.Number(0)),
             .begin_bytes = input_.Number(0),
             .total_bytes = 0,
             .data = std::as_bytes(std::span<const char>(bytes))},
            message.mutable_round_result());
        break;
      }
      default:
        (void)message.ParseFromString(input_.Bytes(512));
    }
    return message;
  }

  // One forward and backward of one rank, so that steps really happen.
  void WholeStep(Rank& rank) {
    for (std::int32_t unit = 0; unit < kUnits; ++unit) {
      const std::int64_t elems =
          rank.session->layout().units()[static_cast<std::size_t>(unit)].elems;
      (void)rank.session->PutState(
          unit, 0, std::vector<float>(static_cast<std::size_t>(elems), 0.25F));
    }
    (void)rank.session->FinishInitialization();
    for (std::int32_t micro = 0; micro < 2; ++micro) {
      for (std::int32_t unit = kUnits - 1; unit >= 0; --unit) {
        (void)rank.session->Notice(step_, micro, unit, false);
      }
    }
    (void)rank.session->Prepare(step_, {});
    if (input_.Below(4) != 0) MakeUpRounds(rank);
    if (rank.session->Apply(UsualApply(step_)).ok()) ++step_;
  }

  // As if the other nodes had the same to give.
  void MakeUpRounds(Rank& rank) {
    for (std::int32_t round = 0; round < 2; ++round) {
      auto out = rank.session->BeginRound(UsualApply(step_), round);
      if (!out.ok()) return;
      const std::vector<std::byte> once = *out;
      for (int r = 1; round == 1 && r < world_size_; ++r) {
        out->insert(out->end(), once.begin(), once.end());
      }
      (void)rank.session->TakeRound(step_, round, 0, *out);
    }
  }

  void Call() {
    const int index = input_.Below(kRanks);
    Rank& rank = ranks_[static_cast<std::size_t>(index)];
    const int what = input_.Below(16);
    if (rank.session == nullptr || what == 0) return Attach(rank, index);
    switch (what) {
      case 1:
        return rank.End(true, input_.Below(2) == 0);
      case 2:
        return rank.End(false, false);
      case 3:
        if (scribblers_.size() < 2) {
          scribblers_.push_back(std::make_unique<Scribbler>(
              rank.segment, input_.Get<std::uint64_t>()));
        }
        return;
      case 4:
        (void)::truncate(rank.segment.c_str(), input_.Get<std::uint16_t>());
        return;
      case 5:
        (void)TheWorld().registry->List();
        (void)TheWorld().registry->Drop("job");
        return;
      case 6:
      case 7:
        return WholeStep(rank);
      default: {
        const v1::ClientMessage message = Message();
        const absl::Status status = rank.calls->Handle(message);
        if (status.ok()) {
          if (message.has_apply()) ++step_;
          return;
        }
        STOWAGE_FUZZ_CHECK(!status.message().empty(), "a bare code");
        rank.End(false, false);  // as the handler does
      }
    }
  }

  fuzz::Input input_;
  // Most jobs have Adam.
  const OptimizerKind kind_ =
      static_cast<OptimizerKind>(std::max(1, input_.Below(8) - 3));
  std::int32_t world_size_ = 1;
  std::array<Rank, kRanks> ranks_;
  std::vector<std::unique_ptr<Scribbler>> scribblers_;
  std::int64_t step_ = 0;
};

}  // namespace
}  // namespace stowage

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  using stowage::TheWorld;
  stowage::Play(stowage::fuzz::Input(data, size)).Run();
  STOWAGE_FUZZ_CHECK(
      TheWorld().registry->Info().pinned_bytes == TheWorld().pinned_bytes,
      "pinned bytes were not given back");
  STOWAGE_FUZZ_CHECK(TheWorld().CountFiles() == TheWorld().files,
                     "a segment was left behind");
  TheWorld().NeighbourIsWell();
  return 0;
}
