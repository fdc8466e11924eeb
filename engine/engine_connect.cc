// Engine: which exchange, which server, and the connection to it.

#include <chrono>
#include <filesystem>
#include <limits>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/environment.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/engine.h"
#include "engine/exchange/c10d_exchange.h"
#include "engine/exchange/lamb_shards.h"
#include "engine/exchange/one_bit_shards.h"
#include "engine/exchange/rank_shards.h"
#include "engine/exchange/segment_exchange.h"
#include "engine/exchange/server_shards.h"
#include "engine/exchange/spread_shards.h"

namespace stowage::engine {
namespace {

constexpr std::chrono::milliseconds kRendezvousTimeout{60000};
// As long as a session waits for a peer (client::SessionOptions).
constexpr std::chrono::milliseconds kExchangeTimeout{600000};

std::string RandomHex(int bytes) {
  std::random_device device;
  std::string text;
  for (int i = 0; i < bytes; ++i) {
    absl::StrAppend(&text, absl::Hex(device() & 0xffU, absl::kZeroPad2));
  }
  return text;
}

// STOWAGE_EXCHANGE_TIMEOUT: seconds until a collective that does not complete
// is an error; for tests and for clusters that want to know sooner.
std::chrono::milliseconds ExchangeTimeout() {
  std::int64_t seconds = 0;
  if (absl::SimpleAtoi(Environment("STOWAGE_EXCHANGE_TIMEOUT"), &seconds) &&
      seconds > 0) {
    return std::chrono::seconds(seconds);
  }
  return kExchangeTimeout;
}

// An address that names the same server from every host.
bool IsShared(const std::string& address) {
  return !address.starts_with("unix:") && !address.starts_with("localhost") &&
         !address.starts_with("127.") && !address.starts_with("[::1]");
}

// State that is not offloaded.
std::unique_ptr<ShardStore> MakeRankShards(const Layout* layout,
                                           const plan::ShardPlan* plan,
                                           const OptimizerSpec& optimizer,
                                           Collectives* group) {
  const std::int32_t part = plan->parts() == 1 ? 0 : group->rank();
  if (optimizer.one_bit()) {
    return std::make_unique<OneBitShards>(layout, plan, optimizer, group);
  }
  if (optimizer.kind == OptimizerKind::kLamb) {
    return std::make_unique<LambShards>(layout, plan, part, optimizer, group);
  }
  return std::make_unique<RankShards>(layout, plan, part, optimizer);
}

// The least that a server leases to a rank, over all nodes. Blocks: until all
// ranks are here.
absl::StatusOr<std::optional<std::int64_t>> LeastLease(const AttachInfo& info,
                                                       Collectives* group) {
  constexpr double kNoLease = std::numeric_limits<double>::infinity();
  const double mine = info.params_leased
                          ? static_cast<double>(info.leased_elems_max)
                          : kNoLease;
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::vector<double>> all,
                           group->GatherValues({&mine, 1}));
  double least = kNoLease;
  for (const std::vector<double>& of_rank : all) {
    least = std::min(least, of_rank.front());
  }
  if (least == kNoLease) return std::optional<std::int64_t>();
  return std::optional<std::int64_t>(static_cast<std::int64_t>(least));
}

}  // namespace

absl::Status Engine::ChooseDevice() {
  absl::StatusOr<std::unique_ptr<Device>> opened =
      OpenDevice(options_.device, options_.launch.local_rank);
  if (absl::IsUnavailable(opened.status()) ||
      absl::IsFailedPrecondition(opened.status())) {
    // Not the server's fault, as these are elsewhere at the start.
    return absl::InvalidArgumentError(
        absl::StrCat("--device ", options_.device, ": ",
                     std::string(opened.status().message())));
  }
  STOWAGE_ASSIGN_OR_RETURN(device_, std::move(opened));
  if (device_ != nullptr && device_->cuda_index() >= 0 &&
      config::IsOneBit(config().optimizer.type)) {
    return absl::UnimplementedError(absl::StrCat(
        "optimizer.type \"", config::OptimizerTypeName(config().optimizer.type),
        "\" packs signs in the host's memory, which NCCL does not move; take "
        "--device cpu"));
  }
  return absl::OkStatus();
}

absl::Status Engine::ChooseExchange() {
  const config::Config& config = this->config();
  std::string asked = options_.exchange;
  if (asked.empty()) {
    asked = config::ExchangeKindName(config.stowage.exchange);
  }
  if (asked != "auto" && asked != "segments" && asked != "c10d") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--exchange \"", asked, "\": expected auto, segments or c10d"));
  }
  const LaunchInfo& launch = options_.launch;
  needs_server_ = config::OffloadsOptimizer(config);
  std::string why_not = config::WhyNotSegments(config);
  if (why_not.empty() && device_ != nullptr) {
    why_not = absl::StrCat("ranks compute on ", std::string(device_->name()));
  }
  if (why_not.empty() && launch.world_size != launch.local_world_size) {
    why_not = absl::StrCat(
        "ranks are on ", launch.world_size / launch.local_world_size, " hosts");
  }
  if (asked == "segments" && !why_not.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--exchange segments: ", why_not, "; use c10d or auto"));
  }
  use_c10d_ = asked == "c10d" || !why_not.empty();
  if (config::IsOneBit(config.optimizer.type) &&
      launch.world_size > optim::kOneBitRanksMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "optimizer.type \"", config::OptimizerTypeName(config.optimizer.type),
        "\": ", launch.world_size, " ranks; signs are added on at most ",
        optim::kOneBitRanksMax));
  }
  exchange_reason_ = asked == "c10d"       ? "asked for"
                     : asked == "segments" ? "asked for"
                     : use_c10d_           ? why_not
                                           : "all ranks are on one host";
  if (launch.world_size % launch.local_world_size != 0 ||
      launch.rank % launch.local_world_size != launch.local_rank) {
    return absl::InvalidArgumentError(absl::StrCat(
        "RANK=", launch.rank, " LOCAL_RANK=", launch.local_rank, " WORLD_SIZE=",
        launch.world_size, " LOCAL_WORLD_SIZE=", launch.local_world_size,
        ": every host must have as many ranks, numbered host by host"));
  }
  return absl::OkStatus();
}

// A private server may use what the file names: its folders are made, as
// DeepSpeed makes them, and its memory is the budget.
absl::Status Engine::AddStorageArguments(
    std::vector<std::string>& arguments) const {
  const StorageSpec storage = config::ToStorageSpec(config(), 1);
  if (storage.memory_budget_bytes > 0) {
    arguments.insert(
        arguments.end(),
        {"--memory-limit", absl::StrCat(storage.memory_budget_bytes)});
  }
  for (const std::string& path : storage.nvme_paths) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) {
      return absl::FailedPreconditionError(absl::StrCat(
          "nvme_path \"", path, "\": make the folder: ", error.message()));
    }
    arguments.insert(arguments.end(), {"--nvme-root", path});
  }
  for (const std::string& path : options_.export_roots) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) {
      return absl::FailedPreconditionError(absl::StrCat(
          "checkpoint folder \"", path, "\": make it: ", error.message()));
    }
    arguments.insert(arguments.end(), {"--export-root", path});
  }
  return absl::OkStatus();
}

// By the first rank of a host.
absl::Status Engine::StartServer() {
  client::PrivateServer::Options server;
  server.shm_dir = config().stowage.shm_dir;
  server.threads = options_.server_threads > 0
                       ? options_.server_threads
                       : static_cast<int>(config().stowage.server_threads);
  STOWAGE_RETURN_IF_ERROR(AddStorageArguments(server.extra_args));
  STOWAGE_ASSIGN_OR_RETURN(private_server_,
                           client::PrivateServer::Start(server));
  server_address_ = private_server_->address();
  log::Info("private server",
            {{"address", server_address_}, {"pid", private_server_->pid()}});
  return absl::OkStatus();
}

// Every host's first rank says which server its ranks use; ranks whose hosts
// name the same server are one group.
absl::Status Engine::FindServers() {
  const LaunchInfo& launch = options_.launch;
  const int hosts = launch.world_size / launch.local_world_size;
  const int host = launch.rank / launch.local_world_size;
  const auto key = [](int h) { return absl::StrCat("server/", h); };
  if (launch.local_rank == 0) {
    if (private_server_known_) {
      if (absl::Status started = StartServer(); !started.ok()) {
        // The others must not wait for an address that never comes.
        rendezvous_->Set(key(host), "!").IgnoreError();
        return started;
      }
    }
    STOWAGE_RETURN_IF_ERROR(rendezvous_->Set(key(host), server_address_));
  }
  STOWAGE_ASSIGN_OR_RETURN(server_address_, rendezvous_->Get(key(host)));
  if (server_address_ == "!") {
    return absl::UnavailableError(
        absl::StrCat("rank ", host * launch.local_world_size,
                     " could not start a private stowd"));
  }
  group_first_ = host * launch.local_world_size;
  group_ranks_ = launch.local_world_size;
  if (hosts == 1 || !IsShared(server_address_)) return absl::OkStatus();
  for (int h = 0; h < hosts; ++h) {
    STOWAGE_ASSIGN_OR_RETURN(const std::string other, rendezvous_->Get(key(h)));
    if (other != server_address_) {
      if (h == 0) continue;
      return absl::OkStatus();
    }
  }
  group_first_ = 0;
  group_ranks_ = launch.world_size;
  return absl::OkStatus();
}

absl::Status Engine::Connect() {
  STOWAGE_ASSIGN_OR_RETURN(
      rendezvous_, Rendezvous::Create(options_.launch, kRendezvousTimeout));
  job_name_ = options_.job;
  if (job_name_.empty()) job_name_ = config().stowage.job;
  if (options_.launch.rank == 0) {
    nonce_ = RandomHex(16);
    if (job_name_.empty()) {
      job_name_ = absl::StrCat("run-", nonce_.substr(0, 8));
    }
    STOWAGE_RETURN_IF_ERROR(rendezvous_->Set("nonce", nonce_));
    STOWAGE_RETURN_IF_ERROR(rendezvous_->Set("job", job_name_));
  }
  if (!needs_server_) {
    group_first_ = options_.launch.rank;
    return absl::OkStatus();
  }
  server_address_ = options_.server;
  if (server_address_.empty()) server_address_ = config().stowage.server;
  if (server_address_.empty()) {
    server_address_ = Environment("STOWAGE_SERVER");
  }
  private_server_known_ = server_address_.empty();
  STOWAGE_RETURN_IF_ERROR(FindServers());
  STOWAGE_ASSIGN_OR_RETURN(nonce_, rendezvous_->Get("nonce"));
  STOWAGE_ASSIGN_OR_RETURN(job_name_, rendezvous_->Get("job"));
  client::ConnectOptions connect;
  STOWAGE_ASSIGN_OR_RETURN(
      client_, client::OffloadClient::Connect(server_address_, connect));
  return absl::OkStatus();
}

RunSpec Engine::MakeRunSpec() const {
  RunSpec run;
  run.nonce = nonce_;
  run.world_size = options_.launch.world_size;
  run.local_ranks = group_ranks_;
  run.micro_steps =
      static_cast<std::int32_t>(config().gradient_accumulation_steps);
  // A 1-bit optimizer compresses each rank's own gradient.
  run.shards = use_c10d_ && !config::IsOneBit(config().optimizer.type);
  run.first_rank = group_first_;
  run.load = options_.load;
  return run;
}

absl::Status Engine::MakeExchange() {
  const JobSpec job = MakeJobSpec();
  STOWAGE_ASSIGN_OR_RETURN(layout_, Layout::Create(job.layout));
  if (use_c10d_) return MakeC10dExchange();
  const RunSpec run = MakeRunSpec();
  STOWAGE_ASSIGN_OR_RETURN(
      session_, client_->Attach(job, run, options_.launch.rank - group_first_,
                                client::SessionOptions{}));
  exchange_ = std::make_unique<SegmentExchange>(session_.get(), run.micro_steps,
                                                run.local_ranks);
  return absl::OkStatus();
}

bool Engine::KeepsShards() const {
  const config::ZeroOptimization& zero = config().zero_optimization;
  return zero.stage == 3 &&
         zero.offload_param.device == config::OffloadDevice::kNone;
}

// State in the node's server.
std::unique_ptr<ShardStore> Engine::MakeServerShards(
    const OptimizerSpec& optimizer, plan::NodePart node, Collectives* group) {
  const LaunchInfo& launch = options_.launch;
  const auto micro_steps =
      static_cast<std::int32_t>(config().gradient_accumulation_steps);
  // On a device it is the exchange that keeps them, and there.
  const bool keep_params = KeepsShards() && device_ == nullptr;
  const SpreadPlace place{.group = group,
                          .local_rank = launch.rank - group_first_,
                          .spread = group_ranks_ != launch.world_size};
  if (optimizer.one_bit()) {
    return std::make_unique<OneBitServerShards>(session_.get(), &shard_plan_,
                                                std::move(node), micro_steps,
                                                place, optimizer.freeze_step);
  }
  if (optimizer.kind == OptimizerKind::kLamb && place.spread) {
    return std::make_unique<LambServerShards>(
        session_.get(), &shard_plan_, std::move(node), launch.rank, micro_steps,
        keep_params, place,
        static_cast<std::int32_t>(layout_.TrainableParams().size()));
  }
  return std::make_unique<ServerShards>(session_.get(), &shard_plan_,
                                        std::move(node), launch.rank,
                                        micro_steps, keep_params);
}

absl::Status Engine::MakeC10dExchange() {
  const config::Config& config = this->config();
  const config::ZeroOptimization& zero = config.zero_optimization;
  const LaunchInfo& launch = options_.launch;
  const bool replicated = zero.stage == 0;
  shard_plan_ = plan::ShardPlan(layout_, replicated ? 1 : launch.world_size);
  C10dParts parts;
  for (auto [group, name] : {std::pair{&parts.gathers, "gathers"},
                             std::pair{&parts.reduces, "reduces"}}) {
    STOWAGE_ASSIGN_OR_RETURN(
        *group,
        Collectives::Create(device_ != nullptr && device_->cuda_index() >= 0
                                ? Collectives::Backend::kNccl
                                : Collectives::Backend::kGloo,
                            *rendezvous_, name, launch.rank, launch.world_size,
                            ExchangeTimeout()));
  }
  JobSpec job = MakeJobSpec();
  if (needs_server_) {
    plan::NodePart node = replicated
                              ? plan::MakeNodePart(layout_, shard_plan_, 0, 1)
                              : plan::MakeNodePart(layout_, shard_plan_,
                                                   group_first_, group_ranks_);
    job.layout = node.spec;
    STOWAGE_RETURN_IF_ERROR(AlignNodes());
    client::SessionOptions session_options;
    for (std::int32_t u = 0; u < layout_.unit_count() && !replicated; ++u) {
      const auto at = static_cast<std::size_t>(u);
      if (node.unit[at] < 0) continue;
      const plan::ElemRange shard = shard_plan_.Shard(u, launch.rank);
      session_options.ranges.push_back({shard.begin - node.range[at].begin,
                                        shard.end - node.range[at].begin});
    }
    STOWAGE_ASSIGN_OR_RETURN(
        session_, client_->Attach(job, MakeRunSpec(),
                                  launch.rank - group_first_, session_options));
    STOWAGE_RETURN_IF_ERROR(TellHowStepEnded());
    parts.store =
        MakeServerShards(job.optimizer, std::move(node), parts.reduces.get());
  } else {
    parts.store = MakeRankShards(&layout_, &shard_plan_, job.optimizer,
                                 parts.reduces.get());
  }
  C10dOptions options;
  options.reduce.bucket_elems = zero.reduce_bucket_size;
  // Regions are handed on from unit to unit: a rank that has not taken its
  // part of one in would keep the others waiting.
  options.reduce.overlap =
      zero.overlap_comm && parts.store->info().gradient_regions == 0;
  options.reduce.scatter = zero.reduce_scatter && !replicated;
  options.reduce.wire_dtype = config.communication_data_type;
  options.reduce.divisor = config.gradient_predivide_factor;
  if (config.prescale_gradients) {
    options.reduce.divisor *= launch.world_size;
  }
  options.reduce.micro_steps =
      static_cast<std::int32_t>(config.gradient_accumulation_steps);
  options.reduce.at_boundary = zero.stage <= 1;
  options.gather_bucket_elems =
      std::max<std::int64_t>(1, zero.allgather_bucket_size);
  options.all_gather = zero.allgather_partitions;
  options.verdict_ranks = needs_server_ ? group_ranks_ : 1;
  options.replicated = replicated;
  options.device = device_.get();
  options.keep_shards = KeepsShards() && device_ != nullptr;
  STOWAGE_ASSIGN_OR_RETURN(
      options.leased_elems_max,
      LeastLease(parts.store->info(), parts.reduces.get()));
  options.initial_share =
      needs_server_
          ? Exchange::InitialShare{launch.rank - group_first_, group_ranks_}
          : Exchange::InitialShare{};
  exchange_ = std::make_unique<C10dExchange>(options, &layout_, &shard_plan_,
                                             std::move(parts));
  return absl::OkStatus();
}

}  // namespace stowage::engine
