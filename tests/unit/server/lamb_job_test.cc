// Jobs with Lamb: the step against a float64 model over whole tensors, bits
// whatever the threads, slots, kernels and dealing, trust ratios told to ranks.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

constexpr std::int64_t kSteps = 4;

JobSpec LambJob(Dtype dtype = Dtype::kBf16) {
  JobSpec job = SmallJob("lamb", dtype);
  // A tensor over three chunks and one that begins in the third.
  job.layout.units.push_back(
      {.name = "tall",
       .params = {{.name = "tall.a", .shape = {70001}, .group_index = 0},
                  {.name = "tall.b", .shape = {9000}, .group_index = 0},
                  {.name = "tall.c", .shape = {33}, .group_index = 0}}});
  job.optimizer.kind = OptimizerKind::kLamb;
  return job;
}

// A tensor in float64, from the words of Lamb's update.
struct Model {
  std::vector<double> p;
  std::vector<double> m;
  std::vector<double> v;
  double ratio = 1;

  void Step(const std::vector<double>& gradient, const GroupStep& h,
            std::int64_t t) {
    std::vector<double> u(p.size());
    double weight = 0;
    double update = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      m[i] = h.beta1 * m[i] + (1 - h.beta1) * gradient[i];
      v[i] = h.beta2 * v[i] + (1 - h.beta2) * gradient[i] * gradient[i];
      u[i] = m[i] / (std::sqrt(v[i]) + h.eps) + h.weight_decay * p[i];
      weight += p[i] * p[i];
      update += u[i] * u[i];
    }
    ratio = weight == 0 || update == 0
                ? 1
                : std::clamp(std::sqrt(weight / update), 0.01, 10.0);
    const double step =
        h.lr * std::sqrt(1 - std::pow(h.beta2, static_cast<double>(t))) /
        (1 - std::pow(h.beta1, static_cast<double>(t)));
    for (std::size_t i = 0; i < p.size(); ++i) p[i] -= step * ratio * u[i];
  }
};

using LambJobTest = JobTest;

TEST_F(LambJobTest, StaysNearAFloat64ModelOfWholeTensors) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, LambJob(Dtype::kFp32), MakeRun(2, 1));
  ASSERT_NE(run, nullptr);
  const Verdict last = Train(*run, 0, kSteps);
  double least = 1e9;
  double most = 0;
  std::int64_t tensors = 0;
  for (const Layout::Unit& unit : run->rank(0).layout().units()) {
    for (const Layout::Param& param : unit.params) {
      if (param.frozen) continue;
      const auto elems = static_cast<std::size_t>(param.elems);
      Model model{std::vector<double>(elems), std::vector<double>(elems),
                  std::vector<double>(elems)};
      const auto at = [&](std::size_t i) {
        return param.begin_elems + static_cast<std::int64_t>(i);
      };
      for (std::size_t i = 0; i < elems; ++i) {
        model.p[i] = InitialValue(param.unit_index, at(i));
      }
      for (std::int64_t step = 0; step < kSteps; ++step) {
        const ApplyArgs args = MakeApply(step);
        std::vector<double> gradient(elems);
        for (std::size_t i = 0; i < elems; ++i) {
          gradient[i] = args.gradient_factor *
                        static_cast<double>(
                            BatchGradient(step, 0, param.unit_index, at(i)) +
                            BatchGradient(step, 1, param.unit_index, at(i)));
        }
        model.Step(gradient,
                   args.groups[static_cast<std::size_t>(param.group_index)],
                   step + 1);
        // The last verdict is of the last step, its ratios of the one before.
        if (step == kSteps - 2) {
          least = std::min(least, model.ratio);
          most = std::max(most, model.ratio);
          ++tensors;
        }
      }
      std::vector<float> masters(elems);
      ASSERT_OK(run->rank(0).session().ReadState(
          param.unit_index, StateKind::kMaster, param.begin_elems, masters));
      for (std::size_t i = 0; i < elems; ++i) {
        ASSERT_NEAR(masters[i], model.p[i], 2e-6 + 1e-5 * std::abs(model.p[i]))
            << param.name << " " << i;
      }
    }
  }
  EXPECT_EQ(last.trust_ratios.tensors, tensors);
  EXPECT_NEAR(last.trust_ratios.min, least, 1e-5 * least);
  EXPECT_NEAR(last.trust_ratios.max, most, 1e-5 * most);
  EXPECT_GE(last.trust_ratios.mean, last.trust_ratios.min);
  EXPECT_LE(last.trust_ratios.mean, last.trust_ratios.max);
  EXPECT_GT(last.trust_ratios.max, last.trust_ratios.min);
  EXPECT_EQ(registry->List()[0].trust_ratios.tensors, tensors);
  // Padding stays zero.
  for (std::int32_t u = 0; u < run->rank(0).layout().unit_count(); ++u) {
    const Layout::Unit& unit =
        run->rank(0).layout().units()[static_cast<std::size_t>(u)];
    std::vector<float> copies(static_cast<std::size_t>(unit.elems));
    ASSERT_OK(
        run->rank(1).session().ReadState(u, StateKind::kParam, 0, copies));
    for (const Layout::Param& param : unit.params) {
      std::fill_n(copies.begin() + param.begin_elems, param.elems, 0.0F);
    }
    EXPECT_EQ(std::count(copies.begin(), copies.end(), 0.0F), unit.elems);
  }
  run->Close(true);
}

TEST_F(LambJobTest, BitsDoNotDependOnThreadsSlotsKernelsOrDealing) {
  struct Case {
    int threads;
    int kept_slots_max;
    std::int32_t ranks;
    std::int32_t micro_steps;
    const char* isa;
  };
  std::vector<float> reference;
  TrustRatios ratios;
  for (const Case& c : {Case{1, 6, 1, 4, ""}, Case{3, 6, 1, 4, ""},
                        Case{2, 0, 1, 4, ""}, Case{2, 6, 2, 2, "portable"},
                        Case{4, 0, 2, 2, ""}, Case{2, 6, 4, 1, ""}}) {
    RegistryOptions options;
    options.threads = c.threads;
    options.kept_slots_max = c.kept_slots_max;
    options.isa = c.isa;
    auto registry = MakeRegistry(options);
    auto run = StartRun(*registry, LambJob(), MakeRun(c.ranks, c.micro_steps));
    ASSERT_NE(run, nullptr);
    const Verdict last = Train(*run, 0, kSteps);
    const std::vector<float> state = run->rank(0).ReadEverything();
    if (reference.empty()) {
      reference = state;
      ratios = last.trust_ratios;
    }
    EXPECT_TRUE(state.size() == reference.size() &&
                std::memcmp(state.data(), reference.data(),
                            state.size() * sizeof(float)) == 0)
        << c.threads << " threads, kept " << c.kept_slots_max << ", " << c.ranks
        << " x " << c.micro_steps << " " << c.isa;
    EXPECT_EQ(last.trust_ratios, ratios);
    run->Close(true);
  }
}

TEST_F(LambJobTest, RefusesAnotherLambUnderTheSameName) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, LambJob(), MakeRun(1, 1));
  ASSERT_NE(run, nullptr);
  Train(*run, 0, 1);
  run->Close(false);
  const auto message = [&](const JobSpec& job) {
    return std::string(
        testing::FakeRun::Start(*registry, job, MakeRun(1, 1, 'x'))
            .status()
            .message());
  };
  JobSpec other = LambJob();
  other.optimizer.max_coeff = 5;
  EXPECT_NE(message(other).find("[0.01, 5], the job's within [0.01, 10]"),
            std::string::npos)
      << message(other);
  other = LambJob();
  other.optimizer.eps_inside_sqrt = true;
  EXPECT_NE(message(other).find("eps is inside the root"), std::string::npos);
  other = LambJob();
  other.optimizer.kind = OptimizerKind::kAdam;
  EXPECT_NE(message(other).find("another optimizer"), std::string::npos);
}

}  // namespace
}  // namespace stowage::core
