#include "engine/exchange/spread_shards.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/status_macros.h"
#include "engine/exchange/collective_bytes.h"

namespace stowage::engine {
namespace {

// Returns when every rank has come here.
absl::Status Meet(Collectives* group) {
  const absl::Status met = group->GatherValues({{0.0}}).status();
  CrashPoint("rounds-held");
  return met;
}

}  // namespace

LambServerShards::LambServerShards(client::Session* session,
                                   const plan::ShardPlan* plan,
                                   plan::NodePart node, std::int32_t part,
                                   std::int32_t micro_steps, bool keep_params,
                                   const SpreadPlace& place,
                                   std::int32_t tensors)
    : ServerShards(session, plan, node, part, micro_steps, keep_params),
      place_(place),
      tensor_(std::move(node.tensor)),
      tensors_(tensors) {}

absl::Status LambServerShards::ShareNorms(const ApplyArgs& args) {
  // Pairs of doubles, as LambNorms; one rank speaks for each node.
  std::vector<double> sums(2 * static_cast<std::size_t>(tensors_));
  std::vector<double> pairs(2 * tensor_.size());
  const std::size_t bytes = pairs.size() * sizeof(double);
  const bool speaks = place_.local_rank == 0 && bytes > 0;
  if (speaks) {
    STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::byte> own,
                             session()->BeginRound(args, /*round=*/0));
    if (own.size() != bytes) {
      return absl::InternalError(absl::StrCat(
          "the server gave ", own.size(), " bytes of norms, expected ", bytes));
    }
    std::memcpy(pairs.data(), own.data(), bytes);
    for (std::size_t t = 0; t < tensor_.size(); ++t) {
      const auto at = 2 * static_cast<std::size_t>(tensor_[t]);
      sums[at] = pairs[2 * t];
      sums[at + 1] = pairs[2 * t + 1];
    }
  }
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::vector<double>> all,
                           place_.group->GatherValues(sums));
  if (speaks) {
    for (std::size_t t = 0; t < tensor_.size(); ++t) {
      for (std::size_t i = 0; i < 2; ++i) {
        // In rank order, so that all nodes get the same bits.
        double sum = 0;
        for (const std::vector<double>& of_rank : all) {
          sum += of_rank[2 * static_cast<std::size_t>(tensor_[t]) + i];
        }
        pairs[2 * t + i] = sum;
      }
    }
    STOWAGE_RETURN_IF_ERROR(session()->GiveRound(
        args.step, /*round=*/0, std::as_bytes(std::span(pairs))));
  }
  return Meet(place_.group);
}

absl::Status LambServerShards::Apply(const ApplyArgs& args) {
  if (!args.skip) STOWAGE_RETURN_IF_ERROR(ShareNorms(args));
  return ServerShards::Apply(args);
}

OneBitServerShards::OneBitServerShards(client::Session* session,
                                       const plan::ShardPlan* plan,
                                       plan::NodePart node,
                                       std::int32_t micro_steps,
                                       const SpreadPlace& place,
                                       std::int64_t freeze_step)
    : ServerShards(session, plan, std::move(node), /*part=*/0, micro_steps,
                   /*keep_params=*/false),
      place_(place),
      freeze_step_(freeze_step),
      applied_steps_(session->info().applied_steps) {}

absl::Status OneBitServerShards::AddGradient(std::int64_t step,
                                             std::int32_t micro,
                                             std::int32_t unit,
                                             std::int64_t begin_elems,
                                             std::span<const void* const> parts,
                                             Dtype dtype, std::int64_t elems) {
  if (!Brings()) return absl::OkStatus();
  return ServerShards::AddGradient(step, micro, unit, begin_elems, parts, dtype,
                                   elems);
}

absl::Status OneBitServerShards::GradientDone(std::int64_t step,
                                              std::int32_t micro,
                                              std::int32_t unit, bool empty) {
  return ServerShards::GradientDone(step, micro, unit, empty || !Brings());
}

absl::Status OneBitServerShards::SwapSigns(const ApplyArgs& args) {
  CollectiveBytes exchange(place_.group);
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::byte> signs,
                           session()->BeginRound(args, /*round=*/0));
  std::vector<std::byte> received(signs.size());
  STOWAGE_RETURN_IF_ERROR(exchange.AllToAll(signs, received));
  STOWAGE_RETURN_IF_ERROR(
      session()->GiveRound(args.step, /*round=*/0, received));
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::byte> served,
                           session()->BeginRound(args, /*round=*/1));
  if (served.size() * static_cast<std::size_t>(exchange.ranks()) !=
      received.size()) {
    return absl::InternalError(
        absl::StrCat("the server gave ", served.size(), " bytes of signs for ",
                     exchange.ranks(), " ranks, and ", received.size(),
                     " bytes before that"));
  }
  STOWAGE_RETURN_IF_ERROR(exchange.AllGather(served, received));
  if (place_.local_rank == 0) {
    STOWAGE_RETURN_IF_ERROR(
        session()->GiveRound(args.step, /*round=*/1, received));
  }
  return Meet(place_.group);
}

absl::Status OneBitServerShards::Apply(const ApplyArgs& args) {
  if (!args.skip && place_.spread && takes_own_gradients()) {
    STOWAGE_RETURN_IF_ERROR(SwapSigns(args));
  }
  STOWAGE_RETURN_IF_ERROR(ServerShards::Apply(args));
  if (!args.skip) ++applied_steps_;
  return absl::OkStatus();
}

}  // namespace stowage::engine
