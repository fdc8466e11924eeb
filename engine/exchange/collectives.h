// What the c10d exchange asks of a process group: the few collectives it uses,
// started without waiting, with their messages and bytes counted.
//
// One implementation, over LibTorch's c10d back ends: Gloo for memory of the
// host, NCCL where CUDA is. A group of one rank does its work at once and sends
// nothing. No collective of our own: every method is one call of c10d, but for
// the all-gather over Gloo, which is a send to and a receive from each peer.
// c10d's gathers into a buffer of its own, on a thread of its own, and copies
// all of it again; the bytes sent are the same.
//
// Every rank of the group makes the same calls in the same order. Buffers stay
// the caller's and must live until the Pending is done.
//
// Measured with Gloo (2 and 4 ranks, 16 MiB, torch 2.13): an all-to-all moves
// half of what its reduce-scatter does, which is an all-reduce inside; hence
// ExchangeParts() with the sum done by the receiver, in rank order.
//
// No LibTorch here. Thread safety: externally synchronized.
// Errors: kUnavailable for what a back end throws (a peer went away, the link
//   stayed down for longer than the time limit), with its words.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/dtype.h"

namespace stowage::engine {

class Rendezvous;

// A collective under way.
class Pending {
 public:
  Pending() = default;
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;
  virtual ~Pending() = default;

  // Never true too early; Gloo's sends and receives say it after Wait() only.
  virtual bool Done() = 0;
  // Blocks: until done, at most the group's time limit (over Gloo a gather, for
  // each peer).
  virtual absl::Status Wait() = 0;
};

struct CollectiveCounters {
  std::int64_t messages = 0;  // collectives started
  // Payload that this rank sends, by the formula of the algorithm: an
  // all-gather and an all-to-all send (ranks - 1) / ranks of the whole, an
  // all-reduce twice that, a broadcast all of it over the root's tree.
  std::int64_t sent_bytes = 0;
  std::int64_t largest_message_bytes = 0;  // the whole, not this rank's part

  friend bool operator==(const CollectiveCounters&,
                         const CollectiveCounters&) = default;
};

class Collectives {
 public:
  enum class Backend : std::uint8_t { kGloo, kNccl };

  Collectives() = default;
  Collectives(const Collectives&) = delete;
  Collectives& operator=(const Collectives&) = delete;
  virtual ~Collectives() = default;

  // `name` tells groups of one run apart. Blocks: until all ranks are there, at
  // most `timeout`, which is also every collective's limit.
  // Errors: kUnimplemented for NCCL in a build without CUDA.
  static absl::StatusOr<std::unique_ptr<Collectives>> Create(
      Backend backend, Rendezvous& rendezvous, const std::string& name,
      int rank, int ranks, std::chrono::milliseconds timeout);

  virtual int rank() const = 0;
  virtual int ranks() const = 0;
  virtual std::string_view backend() const = 0;  // "gloo", "nccl", "none"

  // gathered: ranks() pieces as long as `mine`, in rank order.
  virtual absl::StatusOr<std::unique_ptr<Pending>> AllGather(
      std::span<std::byte> gathered, std::span<const std::byte> mine) = 0;
  virtual absl::StatusOr<std::unique_ptr<Pending>> Broadcast(
      std::span<std::byte> bytes, int root) = 0;
  // Sends send_elems[r] elements to each rank r (from one array, in rank
  // order) and receives recv_elems from each likewise.
  virtual absl::StatusOr<std::unique_ptr<Pending>> ExchangeParts(
      Dtype dtype, const void* send, std::span<const std::int64_t> send_elems,
      void* receive, std::int64_t recv_elems_of_each) = 0;
  virtual absl::StatusOr<std::unique_ptr<Pending>> AllReduce(
      Dtype dtype, void* values, std::int64_t elems) = 0;
  // Sums ranks() parts of part_elems; this rank gets the sum of its part.
  virtual absl::StatusOr<std::unique_ptr<Pending>> ReduceScatter(
      Dtype dtype, const void* parts, void* mine, std::int64_t part_elems) = 0;
  // Every rank's values, rank by rank; for control, small. Blocks.
  virtual absl::StatusOr<std::vector<std::vector<double>>> GatherValues(
      std::span<const double> mine) = 0;

  const CollectiveCounters& counters() const { return counters_; }

 protected:
  void Count(std::int64_t sent_bytes, std::int64_t whole_bytes);

 private:
  CollectiveCounters counters_;
};

}  // namespace stowage::engine
