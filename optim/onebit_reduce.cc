#include "optim/onebit_reduce.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "common/check.h"
#include "common/status_macros.h"

namespace stowage::optim {
namespace {

std::int64_t RoundUpTo(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

float ScaleOf(double squares, std::int64_t elems) {
  return static_cast<float>(std::sqrt(squares) /
                            std::sqrt(static_cast<double>(elems)));
}

void PutScale(std::byte* message, std::size_t buffer, float scale) {
  std::memcpy(message + buffer * sizeof(float), &scale, sizeof(float));
}
float GetScale(const std::byte* message, std::size_t buffer) {
  float scale = 0;
  std::memcpy(&scale, message + buffer * sizeof(float), sizeof(float));
  return scale;
}

std::uint8_t* Bits(std::byte* at) {
  return reinterpret_cast<std::uint8_t*>(at);
}

}  // namespace

// Where the signs of a part of all buffers lie in a message.
struct OneBitReduce::Shape {
  Shape(std::span<const std::int64_t> buffer_elems, int ranks) {
    const std::int64_t multiple =
        std::int64_t{ranks} * std::lcm(std::int64_t{ranks}, std::int64_t{8});
    std::int64_t offset =
        static_cast<std::int64_t>(buffer_elems.size() * sizeof(float));
    for (const std::int64_t elems : buffer_elems) {
      padded.push_back(RoundUpTo(elems, multiple));
      bits_offset.push_back(offset);
      offset += padded.back() / ranks / 8;
    }
    message_bytes = RoundUpTo(offset, 4);
  }
  std::vector<std::int64_t> padded;
  std::vector<std::int64_t> bits_offset;
  std::int64_t message_bytes = 0;
};

std::int64_t OneBitReduce::StateBytes(
    std::span<const std::int64_t> buffer_elems, int ranks, bool exchanges) {
  const Shape shape(buffer_elems, ranks);
  std::int64_t bytes = shape.message_bytes * (ranks + 1);
  if (exchanges) bytes += shape.message_bytes * ranks;
  for (const std::int64_t padded : shape.padded) {
    bytes +=
        (padded + padded / ranks) * static_cast<std::int64_t>(sizeof(float));
  }
  return bytes;
}

OneBitReduce::OneBitReduce(std::span<const std::int64_t> buffer_elems, int rank,
                           int ranks)
    : rank_(rank), ranks_(ranks) {
  STOWAGE_CHECK(rank >= 0 && rank < ranks && ranks <= kOneBitRanksMax);
  const Shape shape(buffer_elems, ranks);
  for (std::size_t b = 0; b < buffer_elems.size(); ++b) {
    Buffer& buffer = buffers_.emplace_back();
    buffer.elems = buffer_elems[b];
    buffer.padded = shape.padded[b];
    buffer.part = buffer.padded / ranks;
    buffer.bits_offset = shape.bits_offset[b];
    buffer.worker_error.resize(static_cast<std::size_t>(buffer.padded));
    buffer.server_error.resize(static_cast<std::size_t>(buffer.part));
  }
  message_bytes_ = shape.message_bytes;
  outgoing_.resize(static_cast<std::size_t>(message_bytes_ * ranks));
  served_.resize(static_cast<std::size_t>(message_bytes_));
}

std::int64_t OneBitReduce::CarriedBytes(
    std::span<const std::int64_t> buffer_elems, int ranks) {
  const Shape shape(buffer_elems, ranks);
  std::int64_t bytes = shape.message_bytes * ranks;
  for (const std::int64_t padded : shape.padded) {
    bytes +=
        (padded + padded / ranks) * static_cast<std::int64_t>(sizeof(float));
  }
  return bytes;
}

std::int64_t OneBitReduce::GatheredBytes(
    std::span<const std::int64_t> buffer_elems, int ranks) {
  return Shape(buffer_elems, ranks).message_bytes * ranks;
}

bool OneBitReduce::ScalesAreFinite(std::span<const std::byte> messages) const {
  for (std::size_t begin = 0; begin < messages.size();
       begin += static_cast<std::size_t>(message_bytes_)) {
    for (std::size_t b = 0; b < buffers_.size(); ++b) {
      if (!std::isfinite(GetScale(messages.data() + begin, b))) return false;
    }
  }
  return true;
}

void OneBitReduce::PackForServers(const KernelSet& kernels,
                                  std::span<const double> squares) {
  double whole = 0;
  double lost = 0;
  for (std::size_t b = 0; b < buffers_.size(); ++b) {
    Buffer& buffer = buffers_[b];
    float* const error = buffer.worker_error.data();
    const double all =
        squares[b] + kernels.sum_of_squares({.sum = error + buffer.elems},
                                            buffer.padded - buffer.elems);
    const float scale = ScaleOf(all, buffer.padded);
    for (int r = 0; r < ranks_; ++r) {
      std::byte* const message = Message(outgoing_, r);
      PutScale(message, b, scale);
      kernels.onebit_pack(scale, error + r * buffer.part,
                          Bits(message + buffer.bits_offset), buffer.part);
    }
    whole += all;
    lost += kernels.sum_of_squares({.sum = error}, buffer.padded);
  }
  counters_.compression_error = whole == 0 ? 0 : std::sqrt(lost / whole);
}

std::vector<std::byte*> OneBitReduce::Incoming() {
  std::vector<std::byte*> messages;
  for (int r = 0; r < ranks_; ++r) messages.push_back(Message(incoming_, r));
  return messages;
}

void OneBitReduce::Serve(const KernelSet& kernels,
                         std::span<std::byte* const> messages) {
  std::vector<const std::uint8_t*> bits(static_cast<std::size_t>(ranks_));
  std::vector<float> scales(bits.size());
  for (std::size_t b = 0; b < buffers_.size(); ++b) {
    Buffer& buffer = buffers_[b];
    for (std::size_t r = 0; r < bits.size(); ++r) {
      bits[r] = Bits(messages[r] + buffer.bits_offset);
      scales[r] = GetScale(messages[r], b) / static_cast<float>(ranks_);
    }
    const double squares = kernels.onebit_serve(
        bits, scales, buffer.server_error.data(), buffer.part);
    const float scale = ScaleOf(squares, buffer.part);
    PutScale(served_.data(), b, scale);
    kernels.onebit_pack(scale, buffer.server_error.data(),
                        Bits(served_.data() + buffer.bits_offset), buffer.part);
  }
}

void OneBitReduce::Unpack(const KernelSet& kernels,
                          std::span<std::byte* const> messages,
                          std::span<float* const> results) const {
  for (std::size_t b = 0; b < buffers_.size(); ++b) {
    const Buffer& buffer = buffers_[b];
    for (int r = 0; r < ranks_; ++r) {
      const std::int64_t begin = r * buffer.part;
      if (begin >= buffer.elems) break;
      std::byte* const message = messages[static_cast<std::size_t>(r)];
      kernels.onebit_unpack(
          GetScale(message, b), Bits(message + buffer.bits_offset),
          results[b] + begin, std::min(buffer.part, buffer.elems - begin));
    }
  }
}

absl::Status OneBitReduce::Run(const KernelSet& kernels,
                               std::span<const double> squares,
                               std::span<float* const> results,
                               ByteExchange& exchange) {
  STOWAGE_CHECK(squares.size() == buffers_.size() &&
                results.size() == buffers_.size() && exchange.rank() == rank_ &&
                exchange.ranks() == ranks_);
  incoming_.resize(outgoing_.size());
  PackForServers(kernels, squares);
  STOWAGE_RETURN_IF_ERROR(exchange.AllToAll(outgoing_, incoming_));
  Serve(kernels, Incoming());
  STOWAGE_RETURN_IF_ERROR(exchange.AllGather(served_, incoming_));
  Unpack(kernels, Incoming(), results);
  CountRound();
  return absl::OkStatus();
}

void OneBitReduce::CountRound() {
  ++counters_.rounds;
  const std::int64_t messages = 2 * std::int64_t{ranks_ - 1};
  counters_.sent_bytes += messages * message_bytes_;
  counters_.scale_bytes +=
      messages * static_cast<std::int64_t>(buffers_.size() * sizeof(float));
}

void OneBitReduce::Keep() {
  for (Buffer& buffer : buffers_) {
    if (unfinished_) {
      buffer.worker_error = buffer.kept_worker;
      buffer.server_error = buffer.kept_server;
    } else {
      buffer.kept_worker = buffer.worker_error;
      buffer.kept_server = buffer.server_error;
    }
  }
  incoming_.resize(outgoing_.size());
  unfinished_ = true;
}

void OneBitReduce::Pack(const KernelSet& kernels,
                        std::span<const double> squares) {
  STOWAGE_CHECK(unfinished_ && squares.size() == buffers_.size());
  PackForServers(kernels, squares);
}

void OneBitReduce::Serve(const KernelSet& kernels) {
  STOWAGE_CHECK(unfinished_);
  Serve(kernels, Incoming());
}

void OneBitReduce::Finish(const KernelSet& kernels,
                          std::span<const std::byte> gathered,
                          std::span<float* const> results) {
  STOWAGE_CHECK(unfinished_ && gathered.size() == outgoing_.size());
  if (!results.empty()) {
    // Unpack() only reads; its other callers' messages are their own.
    auto* const first = const_cast<std::byte*>(gathered.data());
    std::vector<std::byte*> messages;
    for (int r = 0; r < ranks_; ++r) {
      messages.push_back(first + r * message_bytes_);
    }
    Unpack(kernels, messages, results);
  }
  unfinished_ = false;
  CountRound();
}

void OneBitReduce::RunTogether(
    const KernelSet& kernels,
    std::span<const std::unique_ptr<OneBitReduce>> sides,
    std::span<const double> squares, std::span<float* const> results,
    const ParallelFor& parallel) {
  const std::size_t buffers = results.size();
  STOWAGE_CHECK(!sides.empty() && squares.size() == sides.size() * buffers);
  const auto ranks = static_cast<std::int64_t>(sides.size());
  parallel(ranks, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r);
    sides[at]->PackForServers(kernels, squares.subspan(at * buffers, buffers));
  });
  parallel(ranks, [&](std::int64_t k) {
    OneBitReduce& server = *sides[static_cast<std::size_t>(k)];
    std::vector<std::byte*> messages;
    for (const auto& side : sides) {
      messages.push_back(side->Message(side->outgoing_, static_cast<int>(k)));
    }
    server.Serve(kernels, messages);
  });
  std::vector<std::byte*> served;
  for (const auto& side : sides) {
    served.push_back(side->served_.data());
    ++side->counters_.rounds;
  }
  sides[0]->Unpack(kernels, served, results);
}

}  // namespace stowage::optim
