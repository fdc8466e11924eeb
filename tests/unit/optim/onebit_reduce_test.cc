// The compressed all-reduce: golden numbers of two rounds, padding, volume, and
// that what is lost comes back in later rounds.

#include "optim/onebit_reduce.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/support/local_byte_exchange.h"

namespace stowage::optim {
namespace {

using testing::LocalRanks;

// One rank's side over buffers given as vectors: adds them to the errors as the
// optimizer's kernel would.
std::vector<std::vector<float>> Round(
    OneBitReduce& reduce, const std::vector<std::vector<float>>& values,
    ByteExchange& exchange) {
  std::vector<std::vector<float>> results = values;
  std::vector<double> squares;
  std::vector<float*> outs;
  for (std::size_t b = 0; b < values.size(); ++b) {
    // beta1 = 1: the momentum alone.
    squares.push_back(BestKernels().onebit_compensate(
        {.beta1 = 1}, {}, values[b].data(), reduce.worker_error(b).data(),
        static_cast<std::int64_t>(values[b].size())));
    outs.push_back(results[b].data());
  }
  EXPECT_TRUE(reduce.Run(BestKernels(), squares, outs, exchange).ok());
  return results;
}

// W = 2, n = 4 padded to 16: worked out by hand from the words of the
// reference.
TEST(OneBitReduce, GivesTheGoldenNumbersOfTwoRounds) {
  const std::vector<std::vector<float>> inputs = {{1, -2, 3, -4},
                                                  {2, 2, -2, 0}};
  struct Golden {
    double output;
    std::vector<int> signs;
    std::vector<double> worker_error0;
    std::vector<double> server_error0;
  };
  const std::vector<Golden> rounds = {
      {0.896929075,
       {1, -1, 1, -1},
       {-0.369306394, -0.630693606, 1.630693606, -2.630693606, -1.369306394},
       {0.220736824, 0.64528858, -0.64528858, 0.64528858, 0.220736824}},
      {1.564133673, {1, 1, -1, -1}, {}, {}}};
  LocalRanks ranks(2);
  ranks.ForEachRank([&](int rank) {
    const std::int64_t elems[] = {4};
    OneBitReduce reduce(elems, rank, 2);
    EXPECT_EQ(reduce.padded_elems(0), 16);
    for (const Golden& golden : rounds) {
      const std::vector<float> out =
          Round(reduce, {inputs[static_cast<std::size_t>(rank)]},
                ranks.exchange(rank))[0];
      for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_NEAR(out[i], golden.signs[i] * golden.output, 1e-6)
            << "rank " << rank << " element " << i;
      }
      for (std::size_t i = 0; rank == 0 && i < golden.worker_error0.size();
           ++i) {
        EXPECT_NEAR(reduce.worker_error(0)[i], golden.worker_error0[i], 1e-6);
        EXPECT_NEAR(reduce.server_error(0)[i], golden.server_error0[i], 1e-6);
      }
    }
  });
}

TEST(OneBitReduce, ScalesAreThoseOfTheGoldenNumbers) {
  // One rank's message, seen through an exchange that keeps it.
  class Keeping final : public ByteExchange {
   public:
    int rank() const override { return 0; }
    int ranks() const override { return 2; }
    absl::Status AllToAll(std::span<const std::byte> parts,
                          std::span<std::byte> received) override {
      std::copy(parts.begin(), parts.end(), received.begin());
      std::memcpy(&worker_scale, parts.data(), 4);
      first_byte = static_cast<int>(parts[4]);
      return absl::OkStatus();
    }
    absl::Status AllGather(std::span<const std::byte> mine,
                           std::span<std::byte> gathered) override {
      std::copy(mine.begin(), mine.end(), gathered.begin());
      return absl::OkStatus();
    }
    float worker_scale = 0;
    int first_byte = 0;
  };
  Keeping exchange;
  const std::int64_t elems[] = {4};
  OneBitReduce reduce(elems, 0, 2);
  Round(reduce, {{1, -2, 3, -4}}, exchange);
  EXPECT_NEAR(exchange.worker_scale, 1.369306394, 1e-6);
  // + - + - and four zeros, which count as positive.
  EXPECT_EQ(exchange.first_byte, 0b10101111);
  Round(reduce, {{1, -2, 3, -4}}, exchange);
  EXPECT_NEAR(exchange.worker_scale, 2.439617596, 1e-6);
}

TEST(OneBitReduce, AllRanksGetTheSameAndErrorsComeBack) {
  for (const int world : {1, 2, 3, 4}) {
    LocalRanks ranks(world);
    constexpr int kRounds = 60;
    const std::vector<std::int64_t> elems = {1000, 7, 333};
    std::vector<std::vector<std::vector<float>>> results(
        static_cast<std::size_t>(world));
    std::vector<std::vector<double>> sums(static_cast<std::size_t>(world));
    ranks.ForEachRank([&](int rank) {
      OneBitReduce reduce(elems, rank, world);
      for (std::size_t b = 0; b < elems.size(); ++b) {
        EXPECT_GE(reduce.padded_elems(b), elems[b]);
        EXPECT_EQ(reduce.padded_elems(b) % (world * 8), 0);
      }
      std::vector<std::vector<float>> values;
      for (const std::int64_t n : elems) {
        std::vector<float>& x = values.emplace_back();
        for (std::int64_t i = 0; i < n; ++i) {
          x.push_back(static_cast<float>(
              std::sin(0.7 * static_cast<double>(i)) + 0.1 * (rank + 1)));
        }
      }
      std::vector<double>& sum = sums[static_cast<std::size_t>(rank)];
      sum.resize(static_cast<std::size_t>(elems[0]));
      for (int round = 0; round < kRounds; ++round) {
        results[static_cast<std::size_t>(rank)] =
            Round(reduce, values, ranks.exchange(rank));
        for (std::size_t i = 0; i < sum.size(); ++i) {
          sum[i] += results[static_cast<std::size_t>(rank)][0][i];
        }
      }
      EXPECT_EQ(reduce.counters().rounds, kRounds);
      EXPECT_GT(reduce.counters().compression_error, 0);
      EXPECT_LT(reduce.counters().compression_error, 1);
      // Sent to each other rank, twice a round: a bit an element of its part
      // and three scales.
      std::int64_t part_bytes = 3 * 4;
      for (std::size_t b = 0; b < elems.size(); ++b) {
        part_bytes += reduce.padded_elems(b) / world / 8;
      }
      part_bytes = (part_bytes + 3) / 4 * 4;
      EXPECT_EQ(reduce.counters().sent_bytes,
                kRounds * 2 * (world - 1) * part_bytes);
    });
    for (const auto& result : results) EXPECT_EQ(result, results[0]);
    // Over many rounds the mean of the outputs is the mean of the inputs.
    for (std::size_t i = 0; i < sums[0].size(); ++i) {
      const double mean =
          std::sin(0.7 * static_cast<double>(i)) + 0.1 * (world + 1) / 2.0;
      EXPECT_NEAR(sums[0][i] / kRounds, mean, 0.12) << world << " " << i;
    }
  }
}

}  // namespace
}  // namespace stowage::optim
