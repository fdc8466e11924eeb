// What the service costs: a step through stowd (a real process, gRPC and
// segments) against the same kernels called in this process, alternating, and
// one prepare + apply with nothing to do. Prints one JSON object.
//
//   service_bench [--parameters 64000000] [--pairs 5] [--threads 2]
//
// bf16 gradients of one rank in, landing, AdamW, bf16 parameters out; huge
// pages by madvise on both sides' private state; the ranks' parameters and
// gradients are tmpfs pages through the service and anonymous ones in process.

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/micro/huge_buffer.h"
#include "bench/micro/spread.h"
#include "client/offload_client.h"
#include "client/private_server.h"
#include "common/cache_size.h"
#include "common/check.h"
#include "common/layout.h"
#include "optim/kernels.h"
#include "server/core/compute_team.h"
#include <CLI/CLI.hpp>

namespace stowage {
namespace {

using Clock = std::chrono::steady_clock;

double MsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin)
      .count();
}

// Twelve units of equal size.
LayoutSpec MakeSpec(std::int64_t parameters) {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {{"all", false}};
  const int units = parameters >= 1 << 20 ? 12 : 1;
  for (int u = 0; u < units; ++u) {
    spec.units.push_back(
        {"unit" + std::to_string(u),
         {{"w" + std::to_string(u), {parameters / units}, 0}}});
  }
  return spec;
}

GroupStep Hyper() { return {1e-3, 0.9, 0.999, 1e-8, 0.01}; }

// The same chain in this process.
class InProcess {
 public:
  InProcess(const Layout& layout, int threads)
      : layout_(layout),
        team_(threads),
        master_(layout.state_elems() * 4),
        moment1_(layout.state_elems() * 4),
        moment2_(layout.state_elems() * 4),
        gradient_(layout.state_elems() * 2),
        params_(layout.total_elems() * 2),
        partials_(layout.chunks().size()) {
    auto* gradient = gradient_.as<std::uint16_t>();
    for (std::int64_t i = 0; i < layout.state_elems(); ++i) {
      gradient[i] = FloatToBf16(0.01F * static_cast<float>(i % 7 - 3));
    }
  }

  double Step(std::int64_t step) {
    const auto begin = Clock::now();
    const optim::KernelSet& kernels = optim::BestKernels();
    const auto count = static_cast<std::int64_t>(layout_.chunks().size());
    team_.ParallelFor(count, [&](std::int64_t c) {
      const void* slot = Slot(c);
      partials_[static_cast<std::size_t>(c)] = kernels.sum_of_squares(
          {{&slot, 1}, Dtype::kBf16, nullptr}, Chunk(c).elems);
    });
    double sum = 0;
    for (const double partial : partials_) sum += partial;
    const GroupStep hyper = Hyper();
    const optim::AdamConstants constants =
        optim::MakeAdamConstants({hyper.lr, hyper.beta1, hyper.beta2, hyper.eps,
                                  hyper.weight_decay, true, true},
                                 step + 1, 1.0 / std::max(1.0, std::sqrt(sum)));
    team_.ParallelFor(count, [&](std::int64_t c) {
      const std::int64_t at = State(c);
      const void* slot = Slot(c);
      kernels.adam(
          constants, {{&slot, 1}, Dtype::kBf16, nullptr},
          {Chunk(c).elems, master_.as<float>() + at, moment1_.as<float>() + at,
           moment2_.as<float>() + at, params_.as<std::uint16_t>() + at,
           Dtype::kBf16, stays_cached_});
    });
    return MsSince(begin);
  }

 private:
  const Layout::Chunk& Chunk(std::int64_t c) const {
    return layout_.chunks()[static_cast<std::size_t>(c)];
  }
  std::int64_t State(std::int64_t c) const {
    return layout_.units()[static_cast<std::size_t>(Chunk(c).unit_index)]
               .state_begin_elems +
           Chunk(c).begin_elems;
  }
  const void* Slot(std::int64_t c) {
    return gradient_.as<std::uint16_t>() + State(c);
  }

  const Layout& layout_;
  const bool stays_cached_ = FitsLastLevelCache(layout_.state_elems() * 16);
  core::ComputeTeam team_;
  bench::HugeBuffer master_, moment1_, moment2_, gradient_, params_;
  std::vector<double> partials_;
};

// One rank of a real stowd.
class Service {
 public:
  Service(client::OffloadClient& client, const LayoutSpec& spec,
          const std::string& name) {
    JobSpec job;
    job.name = name;
    job.layout = spec;
    RunSpec run;
    run.nonce = "bench-" + name + "-0123456789abcdef";
    absl::StatusOr<std::unique_ptr<client::Session>> session =
        client.Attach(job, run, 0, {});
    STOWAGE_CHECK_OK(session.status());
    session_ = *std::move(session);
    std::vector<float> zeros(1 << 20);
    const Layout& layout = session_->layout();
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      const Layout::Unit& unit = layout.units()[static_cast<std::size_t>(u)];
      for (std::int64_t at = 0; at < unit.params[0].elems;) {
        const std::int64_t part = std::min<std::int64_t>(
            static_cast<std::int64_t>(zeros.size()), unit.params[0].elems - at);
        STOWAGE_CHECK_OK(session_->PutState(
            u, at, {zeros.data(), static_cast<std::size_t>(part)}));
        at += part;
      }
      auto* gradient = reinterpret_cast<std::uint16_t*>(
          session_->gradient_slot(0, u).data());
      for (std::int64_t i = 0; i < unit.params[0].elems; ++i) {
        gradient[i] = FloatToBf16(0.01F * static_cast<float>(i % 7 - 3));
      }
    }
    STOWAGE_CHECK_OK(session_->FinishInitialization());
  }

  double Step(std::int64_t step) {
    const auto begin = Clock::now();
    for (std::int32_t u = 0; u < session_->layout().unit_count(); ++u) {
      STOWAGE_CHECK_OK(session_->Notice(step, 0, u, false));
    }
    Finish(step, 1.0);
    for (std::int32_t u = 0; u < session_->layout().unit_count(); ++u) {
      STOWAGE_CHECK_OK(session_->WaitVersion(u, step + 1));
    }
    return MsSince(begin);
  }

  // prepare + apply alone: the gradient was noticed before, and is empty.
  double Exchange(std::int64_t step) {
    for (std::int32_t u = 0; u < session_->layout().unit_count(); ++u) {
      STOWAGE_CHECK_OK(session_->Notice(step, 0, u, true));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    const auto begin = Clock::now();
    Finish(step, 1.0, /*skip=*/true);
    return MsSince(begin) * 1e3;
  }

  absl::Status Close() { return session_->Close(true); }

 private:
  void Finish(std::int64_t step, double loss, bool skip = false) {
    const absl::StatusOr<Verdict> verdict = session_->Prepare(step, {&loss, 1});
    STOWAGE_CHECK_OK(verdict.status());
    ApplyArgs args;
    args.step = step;
    args.skip = skip;
    args.gradient_factor =
        1.0 / std::max(1.0, std::sqrt(verdict->sum_of_squares));
    args.groups = {Hyper()};
    STOWAGE_CHECK_OK(session_->Apply(args));
  }

  std::unique_ptr<client::Session> session_;
};

std::string Compare(client::OffloadClient& client, std::int64_t parameters,
                    int pairs, int threads) {
  const LayoutSpec spec = MakeSpec(parameters);
  const Layout layout = Layout::Create(spec).value();
  InProcess in_process(layout, threads);
  Service service(client, spec, "p" + std::to_string(parameters));
  std::vector<double> direct;
  std::vector<double> served;
  std::vector<double> ratios;
  const int repeats = parameters > 8'000'000 ? 3 : 20;
  std::int64_t step = 0;
  for (int pair = -1; pair < pairs; ++pair) {
    std::vector<double> a;
    std::vector<double> b;
    for (int i = 0; i < repeats; ++i, ++step) {
      a.push_back(in_process.Step(step));
      b.push_back(service.Step(step));
    }
    if (pair < 0) continue;  // warm-up
    direct.push_back(Median(a));
    served.push_back(Median(b));
    ratios.push_back(served.back() / direct.back());
  }
  STOWAGE_CHECK_OK(service.Close());
  return "{\"parameters\": " + std::to_string(parameters) +
         ", \"in_process_ms\": " + Spread(direct) +
         ", \"service_ms\": " + Spread(served) +
         ", \"service_over_in_process\": " + Spread(ratios) + "}";
}

// What two processes on this machine need for a question and its answer over a
// socket, after the same pause: the floor of prepare + apply.
std::string SocketRoundTrip() {
  std::array<int, 2> ends{};
  STOWAGE_CHECK(
      ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  const pid_t child = ::fork();
  STOWAGE_CHECK(child >= 0);
  char byte = 0;
  if (child == 0) {
    ::close(ends[0]);
    while (::read(ends[1], &byte, 1) == 1 && ::write(ends[1], &byte, 1) == 1) {
    }
    ::_exit(0);
  }
  ::close(ends[1]);
  std::vector<double> us;
  for (int i = 0; i < 2000; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    const auto begin = Clock::now();
    STOWAGE_CHECK(::write(ends[0], &byte, 1) == 1);
    STOWAGE_CHECK(::read(ends[0], &byte, 1) == 1);
    if (i >= 200) us.push_back(MsSince(begin) * 1e3);
  }
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  return Spread(us);
}

int Main(int argc, char** argv) {
  std::int64_t parameters = 64'000'000;
  int pairs = 5;
  int threads = 2;
  CLI::App app("Cost of the service against the same kernels in process");
  app.add_option("--parameters", parameters)->capture_default_str();
  app.add_option("--pairs", pairs)->capture_default_str();
  app.add_option("--threads", threads)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  // First: a fork belongs before the threads.
  const std::string socket_us = SocketRoundTrip();
  client::PrivateServer::Options options;
  options.threads = threads;
  absl::StatusOr<std::unique_ptr<client::PrivateServer>> server =
      client::PrivateServer::Start(options);
  STOWAGE_CHECK_OK(server.status());
  absl::StatusOr<std::unique_ptr<client::OffloadClient>> client =
      client::OffloadClient::Connect((*server)->address(), {});
  STOWAGE_CHECK_OK(client.status());
  const std::string large = Compare(**client, parameters, pairs, threads);
  const std::string small = Compare(**client, 1'000'000, pairs, threads);
  std::vector<double> exchange_us;
  {
    Service nothing(**client, MakeSpec(64), "nothing");
    for (std::int64_t step = 0; step < 2000; ++step) {
      const double us = nothing.Exchange(step);
      if (step >= 200) exchange_us.push_back(us);
    }
    STOWAGE_CHECK_OK(nothing.Close());
  }
  std::printf(
      "{\"isa\": \"%s\", \"threads\": %d,\n \"large\": %s,\n \"small\": "
      "%s,\n \"prepare_apply_us\": %s,\n \"socket_round_trip_us\": %s}\n",
      std::string(optim::IsaName(optim::BestKernels().isa)).c_str(), threads,
      large.c_str(), small.c_str(), Spread(exchange_us).c_str(),
      socket_us.c_str());
  return 0;
}

}  // namespace
}  // namespace stowage

int main(int argc, char** argv) { return stowage::Main(argc, argv); }
