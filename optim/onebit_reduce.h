// The 1-bit compressed all-reduce: ranks average a set of buffers by swapping
// signs and one scale a buffer, and keep what the signs lose for the next
// round.
//
// One object is one rank's side. A round, for each buffer of n elements, padded
// with zeros to N (a multiple of ranks x lcm(ranks, 8)):
//   1. the caller has put value + worker_error into worker_error (KernelSet::
//      onebit_compensate) and gives the sum of squares of its n elements;
//   2. scale = sqrt(sum of squares over all N) / sqrt(N); signs are packed,
//      worker_error keeps the rest;
//   3. part k of the signs, and the scales, go to rank k (all-to-all);
//   4. as the server of its own part a rank adds what it got, divided by the
//      ranks, to its server_error, and compresses that in the same way;
//   5. signs and scales of the parts go to all (all-gather): the result.
// All buffers of a round share its two messages. Zero counts as positive, and
// padding takes part (it gets errors of its own): so does the reference.
//
// Source: Tang et al., "1-bit Adam: Communication Efficient Large-Scale
//   Training with Adam's Convergence Speed", Algorithm 1; DeepSpeed 0.19.6,
//   deepspeed/runtime/comm/nccl.py, behaviour only.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "optim/kernels.h"

namespace stowage::optim {

// How ranks swap bytes; every rank calls the same in the same order.
class ByteExchange {
 public:
  ByteExchange() = default;
  ByteExchange(const ByteExchange&) = delete;
  ByteExchange& operator=(const ByteExchange&) = delete;
  virtual ~ByteExchange() = default;

  virtual int rank() const = 0;
  virtual int ranks() const = 0;
  // `parts` are ranks() equal pieces, piece k for rank k; `received` gets as
  // many, piece k from rank k. Both are multiples of 4 bytes a piece.
  virtual absl::Status AllToAll(std::span<const std::byte> parts,
                                std::span<std::byte> received) = 0;
  // `gathered`: every rank's `mine`, in rank order.
  virtual absl::Status AllGather(std::span<const std::byte> mine,
                                 std::span<std::byte> gathered) = 0;
};

// Calls its second argument with 0 to count - 1, in any order, on any threads,
// and returns when all are done.
using ParallelFor =
    std::function<void(std::int64_t, const std::function<void(std::int64_t)>&)>;

struct OneBitCounters {
  std::int64_t rounds = 0;
  // That this rank sent to others: signs with their padding, and scales.
  std::int64_t sent_bytes = 0;
  std::int64_t scale_bytes = 0;  // of sent_bytes
  // Of the last round, over all buffers: what this rank's signs lost, as a
  // share of what they stood for (norms).
  double compression_error = 0;
};

// Thread safety: externally synchronized.
class OneBitReduce {
 public:
  // Requires: 0 <= rank < ranks <= kOneBitRanksMax.
  OneBitReduce(std::span<const std::int64_t> buffer_elems, int rank, int ranks);

  // What an object allocates. `exchanges`: it will Run(), which needs a place
  // for what comes in.
  static std::int64_t StateBytes(std::span<const std::int64_t> buffer_elems,
                                 int ranks, bool exchanges);

  std::int64_t padded_elems(std::size_t buffer) const {
    return buffers_[buffer].padded;
  }
  // padded_elems() floats; step 1 writes the first n of them.
  std::span<float> worker_error(std::size_t buffer) {
    return buffers_[buffer].worker_error;
  }
  // padded_elems() / ranks floats.
  std::span<float> server_error(std::size_t buffer) {
    return buffers_[buffer].server_error;
  }

  // Steps 2 to 5. `squares`: by buffer, of its first n elements (step 1);
  // `results`: by buffer, where n elements go.
  // Errors: the exchange's; then the round is lost and so are the errors.
  absl::Status Run(const KernelSet& kernels, std::span<const double> squares,
                   std::span<float* const> results, ByteExchange& exchange);

  // The same round for ranks whose messages somebody else carries: in this
  // order, Keep(), step 1, Pack() (makes outgoing()), incoming() is filled,
  // Serve() (makes served()), Finish() with what all ranks served. Until
  // Finish() the round can be begun anew: Keep() goes back to the errors of the
  // last one that was finished, which committed_*_error() always are.
  void Keep();
  void Pack(const KernelSet& kernels, std::span<const double> squares);
  // A message for each rank, and from each rank, in rank order.
  std::span<const std::byte> outgoing() const { return outgoing_; }
  std::span<std::byte> incoming() { return incoming_; }
  void Serve(const KernelSet& kernels);
  std::span<const std::byte> served() const { return served_; }
  // `gathered`: every rank's served(), in rank order; `results` as Run()'s, and
  // may be empty: one of a process's sides is enough.
  void Finish(const KernelSet& kernels, std::span<const std::byte> gathered,
              std::span<float* const> results);
  std::span<float> committed_worker_error(std::size_t buffer) {
    return Committed(buffers_[buffer].worker_error,
                     buffers_[buffer].kept_worker);
  }
  std::span<float> committed_server_error(std::size_t buffer) {
    return Committed(buffers_[buffer].server_error,
                     buffers_[buffer].kept_server);
  }
  // Whether every scale in a rank's messages, or in all ranks', is a number.
  bool ScalesAreFinite(std::span<const std::byte> messages) const;
  // What such rounds need beside StateBytes() without `exchanges`; and what all
  // ranks serve.
  static std::int64_t CarriedBytes(std::span<const std::int64_t> buffer_elems,
                                   int ranks);
  static std::int64_t GatheredBytes(std::span<const std::int64_t> buffer_elems,
                                    int ranks);

  // The same round where all ranks are in this process: `sides[r]` is rank r,
  // `squares` are rank by rank, `results` are wanted once. Nothing is sent and
  // nothing counted as sent. `parallel` runs the ranks' work.
  static void RunTogether(const KernelSet& kernels,
                          std::span<const std::unique_ptr<OneBitReduce>> sides,
                          std::span<const double> squares,
                          std::span<float* const> results,
                          const ParallelFor& parallel);

  const OneBitCounters& counters() const { return counters_; }

 private:
  struct Shape;
  struct Buffer {
    std::int64_t elems = 0;
    std::int64_t padded = 0;
    std::int64_t part = 0;         // elements of a rank's part
    std::int64_t bits_offset = 0;  // of its part's signs in a message
    std::vector<float> worker_error;
    std::vector<float> server_error;
    std::vector<float> kept_worker;  // by Keep()
    std::vector<float> kept_server;
  };
  std::span<float> Committed(std::vector<float>& now,
                             std::vector<float>& kept) const {
    return unfinished_ ? kept : now;
  }
  void CountRound();
  std::byte* Message(std::vector<std::byte>& messages, int rank) const {
    return messages.data() + rank * message_bytes_;
  }
  // By rank: the messages that lie end to end in incoming_.
  std::vector<std::byte*> Incoming();
  void PackForServers(const KernelSet& kernels,
                      std::span<const double> squares);
  // `messages`: by rank, what it sent.
  void Serve(const KernelSet& kernels, std::span<std::byte* const> messages);
  void Unpack(const KernelSet& kernels, std::span<std::byte* const> messages,
              std::span<float* const> results) const;

  const int rank_;
  const int ranks_;
  std::int64_t message_bytes_ = 0;  // scales, then signs; one part of all
  std::vector<Buffer> buffers_;
  std::vector<std::byte> outgoing_;  // ranks messages
  std::vector<std::byte> incoming_;  // ranks messages; made by Run()
  std::vector<std::byte> served_;    // one message
  bool unfinished_ = false;          // between Keep() and Finish()
  OneBitCounters counters_;
};

}  // namespace stowage::optim
