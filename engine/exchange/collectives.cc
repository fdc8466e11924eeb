#include "engine/exchange/collectives.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/environment.h"
#include "common/status_macros.h"
#include "engine/device/cuda/nccl_group.h"
#include "engine/exchange/rendezvous.h"
#include "engine/scalar_type.h"
#include "engine/torch_status.h"
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace stowage::engine {
namespace {

// Gathers under way are far fewer: a tag is free again when it comes round.
constexpr int kTagMax = 1 << 20;

// What a back end throws is a peer or a link that is gone.
absl::Status Lost(const absl::Status& status, std::string_view what) {
  if (status.ok()) return status;
  return absl::UnavailableError(
      absl::StrCat("exchange between ranks: ", std::string(what), ": ",
                   std::string(status.message()),
                   " (a rank has ended, or the link to it is down)"));
}

class WorkPending final : public Pending {
 public:
  WorkPending(c10::intrusive_ptr<c10d::Work> work, const char* what)
      : work_(std::move(work)), what_(what) {}

  bool Done() override {
    bool done = false;
    // An error counts as done: Wait() says it.
    const absl::Status status =
        CatchStatus(what_, [&] { done = work_->isCompleted(); });
    return done || !status.ok();
  }

  absl::Status Wait() override {
    return Lost(CatchStatus(what_, [&] { work_->wait(); }), what_);
  }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  const char* what_;
};

// One send and one receive for each peer.
class PeersPending final : public Pending {
 public:
  PeersPending(std::vector<c10::intrusive_ptr<c10d::Work>> works,
               const char* what) {
    for (c10::intrusive_ptr<c10d::Work>& work : works) {
      works_.emplace_back(std::move(work), what);
    }
  }

  bool Done() override {
    return std::all_of(works_.begin(), works_.end(),
                       [](WorkPending& work) { return work.Done(); });
  }

  absl::Status Wait() override {
    for (; waited_ < works_.size(); ++waited_) {
      STOWAGE_RETURN_IF_ERROR(works_[waited_].Wait());
    }
    return absl::OkStatus();
  }

 private:
  std::deque<WorkPending> works_;
  std::size_t waited_ = 0;
};

class NothingPending final : public Pending {
 public:
  bool Done() override { return true; }
  absl::Status Wait() override { return absl::OkStatus(); }
};

std::unique_ptr<Pending> Nothing() {
  return std::make_unique<NothingPending>();
}

// A rank alone: everything is a copy, or nothing.
class LoneCollectives final : public Collectives {
 public:
  int rank() const override { return 0; }
  int ranks() const override { return 1; }
  std::string_view backend() const override { return "none"; }
  absl::StatusOr<std::unique_ptr<Pending>> AllGather(
      std::span<std::byte> gathered, std::span<const std::byte> mine) override {
    std::memcpy(gathered.data(), mine.data(), mine.size());
    return Nothing();
  }
  absl::StatusOr<std::unique_ptr<Pending>> Broadcast(
      std::span<std::byte> /*bytes*/, int /*root*/) override {
    return Nothing();
  }
  absl::StatusOr<std::unique_ptr<Pending>> ExchangeParts(
      Dtype dtype, const void* send,
      std::span<const std::int64_t> /*send_elems*/, void* receive,
      std::int64_t recv_elems_of_each) override {
    std::memcpy(
        receive, send,
        static_cast<std::size_t>(recv_elems_of_each * DtypeBytes(dtype)));
    return Nothing();
  }
  absl::StatusOr<std::unique_ptr<Pending>> AllReduce(
      Dtype /*dtype*/, void* /*values*/, std::int64_t /*elems*/) override {
    return Nothing();
  }
  absl::StatusOr<std::unique_ptr<Pending>> ReduceScatter(
      Dtype dtype, const void* parts, void* mine,
      std::int64_t part_elems) override {
    std::memcpy(mine, parts,
                static_cast<std::size_t>(part_elems * DtypeBytes(dtype)));
    return Nothing();
  }
  absl::StatusOr<std::vector<std::vector<double>>> GatherValues(
      std::span<const double> mine) override {
    return std::vector<std::vector<double>>{{mine.begin(), mine.end()}};
  }
};

class GroupCollectives final : public Collectives {
 public:
  GroupCollectives(c10::intrusive_ptr<c10d::Backend> group,
                   std::string_view backend, at::Device device)
      : group_(std::move(group)), backend_(backend), device_(device) {}

  int rank() const override { return group_->getRank(); }
  int ranks() const override { return group_->getSize(); }
  std::string_view backend() const override { return backend_; }

  absl::StatusOr<std::unique_ptr<Pending>> AllGather(
      std::span<std::byte> gathered, std::span<const std::byte> mine) override {
    at::Tensor out = Bytes(gathered.data(), gathered.size());
    at::Tensor in = Bytes(mine.data(), mine.size());
    const auto size = static_cast<std::int64_t>(mine.size());
    Count((ranks() - 1) * size, ranks() * size);
    if (backend_ == "gloo") return GatherFromPeers(gathered, in);
    return Start("all-gather",
                 [&] { return group_->_allgather_base(out, in); });
  }

  absl::StatusOr<std::unique_ptr<Pending>> Broadcast(std::span<std::byte> bytes,
                                                     int root) override {
    std::vector<at::Tensor> tensors = {Bytes(bytes.data(), bytes.size())};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    const auto size = static_cast<std::int64_t>(bytes.size());
    // Over all ranks every byte is sent ranks - 1 times; counted at the root.
    Count(root == rank() ? (ranks() - 1) * size : 0, size);
    return Start("broadcast",
                 [&] { return group_->broadcast(tensors, options); });
  }

  absl::StatusOr<std::unique_ptr<Pending>> ExchangeParts(
      Dtype dtype, const void* send, std::span<const std::int64_t> send_elems,
      void* receive, std::int64_t recv_elems_of_each) override {
    std::vector<std::int64_t> in_splits(send_elems.begin(), send_elems.end());
    std::vector<std::int64_t> out_splits(static_cast<std::size_t>(ranks()),
                                         recv_elems_of_each);
    std::int64_t total = 0;
    for (const std::int64_t elems : in_splits) total += elems;
    at::Tensor out =
        Typed(receive, ranks() * recv_elems_of_each, ToScalarType(dtype));
    at::Tensor in = Typed(send, total, ToScalarType(dtype));
    const std::int64_t width = DtypeBytes(dtype);
    Count((total - in_splits[static_cast<std::size_t>(rank())]) * width,
          total * width);
    return Start("all-to-all", [&] {
      return group_->alltoall_base(out, in, out_splits, in_splits);
    });
  }

  absl::StatusOr<std::unique_ptr<Pending>> AllReduce(
      Dtype dtype, void* values, std::int64_t elems) override {
    std::vector<at::Tensor> tensors = {
        Typed(values, elems, ToScalarType(dtype))};
    const std::int64_t bytes = elems * DtypeBytes(dtype);
    Count(2 * bytes * (ranks() - 1) / ranks(), bytes);
    return Start("all-reduce", [&] { return group_->allreduce(tensors); });
  }

  absl::StatusOr<std::unique_ptr<Pending>> ReduceScatter(
      Dtype dtype, const void* parts, void* mine,
      std::int64_t part_elems) override {
    at::Tensor in = Typed(parts, ranks() * part_elems, ToScalarType(dtype));
    at::Tensor out = Typed(mine, part_elems, ToScalarType(dtype));
    const std::int64_t bytes = part_elems * DtypeBytes(dtype);
    Count((ranks() - 1) * bytes, ranks() * bytes);
    return Start("reduce-scatter",
                 [&] { return group_->_reduce_scatter_base(out, in); });
  }

  absl::StatusOr<std::vector<std::vector<double>>> GatherValues(
      std::span<const double> mine) override {
    const auto count = static_cast<std::int64_t>(mine.size());
    std::vector<std::vector<double>> values;
    const absl::Status status = CatchStatus("all-gather of values", [&] {
      at::Tensor in = at::empty({count}, at::kDouble);
      std::copy(mine.begin(), mine.end(), in.mutable_data_ptr<double>());
      in = in.to(device_);
      at::Tensor out = at::empty({ranks() * count}, in.options());
      group_->_allgather_base(out, in)->wait();
      const at::Tensor host = out.cpu();
      const auto* data = host.const_data_ptr<double>();
      for (int r = 0; r < ranks(); ++r) {
        values.emplace_back(data + r * count, data + (r + 1) * count);
      }
    });
    if (!status.ok()) return Lost(status, "all-gather of values");
    return values;
  }

 private:
  at::Tensor Typed(const void* data, std::int64_t elems,
                   at::ScalarType type) const {
    return at::from_blob(const_cast<void*>(data), {elems},
                         at::TensorOptions().dtype(type).device(device_));
  }
  at::Tensor Bytes(const void* data, std::size_t bytes) const {
    return Typed(data, static_cast<std::int64_t>(bytes), at::kByte);
  }

  absl::StatusOr<std::unique_ptr<Pending>> GatherFromPeers(
      std::span<std::byte> gathered, const at::Tensor& mine) {
    constexpr const char* kWhat = "all-gather";
    const auto size = static_cast<std::size_t>(mine.numel());
    const auto piece = [&](int of) {
      return gathered.subspan(static_cast<std::size_t>(of) * size, size);
    };
    // All ranks start the same gathers in the same order.
    const int tag = next_tag_;
    next_tag_ = next_tag_ == kTagMax ? 0 : next_tag_ + 1;
    std::vector<c10::intrusive_ptr<c10d::Work>> works;
    const absl::Status status = CatchStatus(kWhat, [&] {
      std::vector<at::Tensor> out = {mine};
      // Each begins at its neighbour, so that no rank is everybody's first.
      for (int i = 1; i < ranks(); ++i) {
        const int from = (rank() + ranks() - i) % ranks();
        std::vector<at::Tensor> in = {
            Bytes(piece(from).data(), piece(from).size())};
        works.push_back(group_->recv(in, from, tag));
      }
      for (int i = 1; i < ranks(); ++i) {
        works.push_back(group_->send(out, (rank() + i) % ranks(), tag));
      }
    });
    // What was started ends with its work, here.
    if (!status.ok()) return Lost(status, kWhat);
    std::memcpy(piece(rank()).data(), mine.const_data_ptr(), size);
    return std::make_unique<PeersPending>(std::move(works), kWhat);
  }

  template <typename Call>
  absl::StatusOr<std::unique_ptr<Pending>> Start(const char* what,
                                                 Call&& call) {
    c10::intrusive_ptr<c10d::Work> work;
    const absl::Status status = CatchStatus(what, [&] { work = call(); });
    if (!status.ok()) return Lost(status, what);
    return std::make_unique<WorkPending>(std::move(work), what);
  }

  c10::intrusive_ptr<c10d::Backend> group_;
  std::string_view backend_;
  at::Device device_;
  int next_tag_ = 0;
};

c10::intrusive_ptr<c10d::Backend> MakeGloo(
    const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks,
    std::chrono::milliseconds timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  const std::string interface = Environment("GLOO_SOCKET_IFNAME");
  options->devices.push_back(
      interface.empty()
          ? c10d::ProcessGroupGloo::createDefaultDevice()
          : c10d::ProcessGroupGloo::createDeviceForInterface(interface));
  // One thread: the collectives of a group run one after the other, in the
  // order in which they were started; more would only take cores from the
  // ranks' compute.
  options->threads = 1;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, ranks,
                                                     options);
}

}  // namespace

void Collectives::Count(std::int64_t sent_bytes, std::int64_t whole_bytes) {
  counters_.messages += 1;
  counters_.sent_bytes += sent_bytes;
  counters_.largest_message_bytes =
      std::max(counters_.largest_message_bytes, whole_bytes);
}

absl::StatusOr<std::unique_ptr<Collectives>> Collectives::Create(
    Backend backend, Rendezvous& rendezvous, const std::string& name, int rank,
    int ranks, std::chrono::milliseconds timeout) {
  if (ranks == 1) return std::make_unique<LoneCollectives>();
  c10::intrusive_ptr<c10d::Backend> group;
  at::Device device(at::kCPU);
  const absl::Status status = CatchStatus("process group", [&] {
    const auto store = c10::make_intrusive<c10d::PrefixStore>(
        absl::StrCat("c10d/", name), rendezvous.store());
    if (backend == Backend::kGloo) {
      group = MakeGloo(store, rank, ranks, timeout);
      return;
    }
    absl::StatusOr<NcclGroup> nccl = MakeNcclGroup(store, rank, ranks, timeout);
    ThrowIfError(nccl.status());
    group = nccl->backend;
    device = nccl->device;
  });
  if (!status.ok()) {
    return absl::Status(status.code() == absl::StatusCode::kInternal
                            ? absl::StatusCode::kUnavailable
                            : status.code(),
                        absl::StrCat("process group of ", ranks, " ranks: ",
                                     std::string(status.message())));
  }
  return std::make_unique<GroupCollectives>(
      std::move(group), backend == Backend::kGloo ? "gloo" : "nccl", device);
}

}  // namespace stowage::engine
