// How long one prepare + apply takes with nothing to do, and that it is not
// orders of magnitude off. The figure is printed; the bound of the project (80
// us median on an idle machine) is for bench, a loaded test machine gets slack.

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "tests/integration/client_server_fixture.h"

namespace stowage::testing {
namespace {

class ClientServerLatency : public ClientServerTest {};

TEST_F(ClientServerLatency, PrepareAndApplyWithNothingToDo) {
  StartServer();
  JobSpec job;
  job.name = "latency";
  job.layout.groups = {{"all", false}};
  job.layout.units = {{"unit", {{"weight", {64}, 0}}}};
  auto rank = ClientRank::Attach(server_->address(), job, SmallRun(1, 1), 0);
  ASSERT_TRUE(rank.ok()) << rank.status();
  client::Session& session = (*rank)->session();
  const std::vector<float> values(
      static_cast<std::size_t>(session.layout().units()[0].elems));
  ASSERT_TRUE(session.PutState(0, 0, values).ok());
  ASSERT_TRUE(session.FinishInitialization().ok());
  const int rounds = 3000;
  std::vector<double> us;
  ApplyArgs args;
  args.skip = true;
  args.groups.resize(1);
  for (std::int64_t step = 0; step < rounds; ++step) {
    ASSERT_TRUE(session.Notice(step, 0, 0, /*empty=*/true).ok());
    const auto start = std::chrono::steady_clock::now();
    auto verdict = session.Prepare(step, {});
    ASSERT_TRUE(verdict.ok()) << verdict.status();
    args.step = step;
    ASSERT_TRUE(session.Apply(args).ok());
    us.push_back(std::chrono::duration<double, std::micro>(
                     std::chrono::steady_clock::now() - start)
                     .count());
  }
  std::sort(us.begin(), us.end());
  const auto at = [&us](double q) {
    return us[static_cast<std::size_t>(q * static_cast<double>(us.size()))];
  };
  std::printf("prepare + apply, us: min %.1f median %.1f p90 %.1f max %.1f\n",
              us.front(), at(0.5), at(0.9), us.back());
  EXPECT_LT(at(0.5), 2000);
  EXPECT_TRUE(session.Close(true).ok());
}

}  // namespace
}  // namespace stowage::testing
