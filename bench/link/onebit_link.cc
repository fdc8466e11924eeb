// OneBitAdam between two processes over one TCP connection: seconds and bytes
// of a step before the freeze (gradients averaged in fp16 by a reduce-scatter
// and an all-gather) and after it (signs). What the wire costs, without a
// model: gradients are made up, everything else is the optimizer's own work.
//
// one_bit.py runs it in two network namespaces with a limited link between. The
// exchange over a socket is this program's; trainers use c10d's.
//
// Prints (rank 0) one JSON object.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "common/dtype.h"
#include "optim/onebit_optimizer.h"
#include <CLI/CLI.hpp>

namespace stowage::bench {
namespace {

using Clock = std::chrono::steady_clock;

void Check(bool ok, const char* what) {
  if (ok) return;
  std::perror(what);
  std::exit(1);
}

// Two ranks, one connection.
class PairExchange final : public optim::ByteExchange {
 public:
  PairExchange(int rank, const std::string& address, int port) : rank_(rank) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<std::uint16_t>(port));
    Check(inet_pton(AF_INET, address.c_str(), &at.sin_addr) == 1, "address");
    const int made = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    Check(made >= 0, "socket");
    const int one = 1;
    setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    auto* const name = reinterpret_cast<sockaddr*>(&at);
    if (rank == 0) {
      Check(bind(made, name, sizeof(at)) == 0, "bind");
      Check(listen(made, 1) == 0, "listen");
      socket_ = accept(made, nullptr, nullptr);
      Check(socket_ >= 0, "accept");
      close(made);
    } else {
      for (int tries = 0; connect(made, name, sizeof(at)) != 0; ++tries) {
        Check(tries < 100, "connect");
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
      socket_ = made;
    }
    setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  }
  ~PairExchange() override { close(socket_); }

  int rank() const override { return rank_; }
  int ranks() const override { return 2; }
  absl::Status AllToAll(std::span<const std::byte> parts,
                        std::span<std::byte> received) override {
    const std::size_t piece = parts.size() / 2;
    const auto own = static_cast<std::size_t>(rank_) * piece;
    std::memcpy(received.data() + own, parts.data() + own, piece);
    Swap(parts.subspan(piece - own, piece),
         received.subspan(piece - own, piece));
    return absl::OkStatus();
  }
  absl::Status AllGather(std::span<const std::byte> mine,
                         std::span<std::byte> gathered) override {
    const auto own = static_cast<std::size_t>(rank_) * mine.size();
    std::memcpy(gathered.data() + own, mine.data(), mine.size());
    Swap(mine, gathered.subspan(mine.size() - own, mine.size()));
    return absl::OkStatus();
  }
  std::int64_t sent_bytes() const { return sent_bytes_; }

 private:
  void Swap(std::span<const std::byte> out, std::span<std::byte> in) {
    std::thread sender([&] {
      for (std::size_t at = 0; at < out.size();) {
        const ssize_t n =
            send(socket_, out.data() + at, out.size() - at, MSG_NOSIGNAL);
        Check(n > 0, "send");
        at += static_cast<std::size_t>(n);
      }
    });
    for (std::size_t at = 0; at < in.size();) {
      const ssize_t n = recv(socket_, in.data() + at, in.size() - at, 0);
      Check(n > 0, "recv");
      at += static_cast<std::size_t>(n);
    }
    sender.join();
    sent_bytes_ += static_cast<std::int64_t>(out.size());
  }

  const int rank_;
  int socket_ = -1;
  std::int64_t sent_bytes_ = 0;
};

// Averages both ranks' fp16 gradients: each sums a half and sends it back.
void AverageHalves(const std::vector<std::uint16_t>& mine,
                   optim::ByteExchange& exchange,
                   std::vector<std::uint16_t>* mean) {
  const optim::KernelSet& kernels = optim::BestKernels();
  std::vector<std::uint16_t> parts(mine.size());
  const std::size_t half = mine.size() / 2;
  exchange
      .AllToAll(std::as_bytes(std::span(mine)),
                std::as_writable_bytes(std::span(parts)))
      .IgnoreError();
  std::vector<float> sum(half);
  const std::array<const void*, 2> both = {parts.data(), parts.data() + half};
  kernels.accumulate(both, Dtype::kFp16, true, sum.data(),
                     static_cast<std::int64_t>(half));
  for (float& x : sum) x *= 0.5F;
  std::vector<std::uint16_t> served(half);
  kernels.convert(sum.data(), Dtype::kFp16, served.data(),
                  static_cast<std::int64_t>(half));
  mean->resize(mine.size());
  exchange
      .AllGather(std::as_bytes(std::span(served)),
                 std::as_writable_bytes(std::span(*mean)))
      .IgnoreError();
}

struct Phase {
  std::vector<double> seconds;
  std::int64_t bytes_a_step = 0;
  void Print(const char* name, const char* end) {
    std::sort(seconds.begin(), seconds.end());
    std::printf(
        "\"%s\": {\"min_s\": %.4f, \"median_s\": %.4f, \"max_s\": %.4f, "
        "\"sent_bytes_a_step\": %lld}%s",
        name, seconds.front(), seconds[seconds.size() / 2], seconds.back(),
        static_cast<long long>(bytes_a_step), end);
  }
};

int Run(int rank, const std::string& address, int port, std::int64_t elems,
        int steps) {
  PairExchange exchange(rank, address, port);
  const auto size = static_cast<std::size_t>(elems);
  std::vector<float> p(size, 0.1F);
  std::vector<float> m(size);
  std::vector<float> v(size);
  std::vector<std::uint16_t> gradient(size);
  for (std::size_t i = 0; i < size; ++i) {
    const auto hash = (i + 17 * static_cast<std::size_t>(rank)) * 2654435761U;
    gradient[i] = FloatToFp16(static_cast<float>(hash % 2001) * 1e-3F - 1.0F);
  }
  optim::OneBitOptimizer optimizer({.freeze_step = steps},
                                   {{.elems = elems,
                                     .master = p.data(),
                                     .moment1 = m.data(),
                                     .moment2 = v.data()}},
                                   Dtype::kFp32, rank, 2);
  const GroupStep group = {.lr = 1e-4};
  Phase phases[2];
  std::vector<std::uint16_t> mean;
  for (int t = 1; t <= 2 * steps; ++t) {
    const bool compressed = optimizer.compressed(t);
    Phase& phase = phases[compressed ? 1 : 0];
    const std::int64_t before = exchange.sent_bytes();
    const Clock::time_point begin = Clock::now();
    if (!compressed) AverageHalves(gradient, exchange, &mean);
    const void* const slot[] = {compressed ? gradient.data() : mean.data()};
    const optim::GradientSource source = {slot, Dtype::kFp16, nullptr};
    optimizer
        .Step(optim::BestKernels(),
              {.t = t,
               .groups = std::span(&group, 1),
               .gradients = std::span(&source, 1)},
              &exchange)
        .IgnoreError();
    phase.seconds.push_back(
        std::chrono::duration<double>(Clock::now() - begin).count());
    phase.bytes_a_step = exchange.sent_bytes() - before;
  }
  if (rank != 0) return 0;
  const double ratio = static_cast<double>(phases[0].bytes_a_step) /
                       static_cast<double>(phases[1].bytes_a_step);
  std::printf("{\"elements\": %lld, \"steps_a_phase\": %d, ",
              static_cast<long long>(elems), steps);
  phases[0].Print("uncompressed_fp16", ", ");
  phases[1].Print("one_bit", ", ");
  std::printf("\"bytes_ratio\": %.3f, \"time_ratio\": %.2f}\n", ratio,
              phases[0].seconds[phases[0].seconds.size() / 2] /
                  phases[1].seconds[phases[1].seconds.size() / 2]);
  return 0;
}

}  // namespace
}  // namespace stowage::bench

int main(int argc, char** argv) {
  CLI::App app("OneBitAdam between two processes over one connection");
  int rank = 0;
  std::string address = "127.0.0.1";
  int port = 29555;
  std::int64_t elems = std::int64_t{4} << 20;
  int steps = 7;
  app.add_option("--rank", rank, "0 listens, 1 connects")->required();
  app.add_option("--address", address, "Of rank 0");
  app.add_option("--port", port, "Of rank 0");
  app.add_option("--elements", elems, "Parameters, a multiple of 16")
      ->check(CLI::Range(std::int64_t{16}, std::int64_t{1} << 30));
  app.add_option("--steps", steps, "Of each phase")->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  return stowage::bench::Run(rank, address, port, elems - elems % 16, steps);
}
