// The state's bits: against a scalar model of the step, and equal whatever the
// threads, the use of slots and the dealing of micro-batches.

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "optim/kernels.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

constexpr std::int64_t kSteps = 4;

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Outcome {
  std::vector<float> state;
  std::vector<double> norms;
};

class JobBitsTest : public JobTest {
 protected:
  Outcome Run(const RegistryOptions& options, std::int32_t ranks,
              std::int32_t micro_steps, Dtype dtype) {
    auto registry = MakeRegistry(options);
    auto run = StartRun(*registry, SmallJob("gpt", dtype),
                        MakeRun(ranks, micro_steps));
    Outcome outcome;
    for (std::int64_t step = 0; step < kSteps; ++step) {
      outcome.norms.push_back(Train(*run, step, step + 1).sum_of_squares);
    }
    outcome.state = run->rank(0).ReadEverything();
    run->Close(true);
    return outcome;
  }
};

TEST_F(JobBitsTest, AreThoseOfAScalarModelOfTheStep) {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp16, Dtype::kFp32}) {
    auto registry = MakeRegistry();
    auto run = StartRun(*registry, SmallJob("gpt", dtype), MakeRun(2, 1));
    ASSERT_NE(run, nullptr);
    Train(*run, 0, kSteps);
    const Layout& layout = run->rank(0).layout();
    const auto round = [&](float value) {
      if (dtype == Dtype::kBf16) return Bf16ToFloat(FloatToBf16(value));
      if (dtype == Dtype::kFp16) return Fp16ToFloat(FloatToFp16(value));
      return value;
    };
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      const Layout::Unit& unit = layout.units()[static_cast<std::size_t>(u)];
      std::vector<float> copies(static_cast<std::size_t>(unit.elems));
      ASSERT_OK(
          run->rank(1).session().ReadState(u, StateKind::kParam, 0, copies));
      std::vector<float> masters(
          static_cast<std::size_t>(unit.trainable_elems));
      ASSERT_OK(
          run->rank(1).session().ReadState(u, StateKind::kMaster, 0, masters));
      std::vector<bool> is_param(copies.size());
      for (const Layout::Param& param : unit.params) {
        for (std::int64_t i = param.begin_elems;
             i < param.begin_elems + param.elems; i += 7) {
          const auto at = static_cast<std::size_t>(i);
          float p = InitialValue(u, i);
          if (param.frozen) {
            ASSERT_EQ(copies[at], round(p)) << param.name;
            continue;
          }
          float m = 0;
          float v = 0;
          for (std::int64_t step = 0; step < kSteps; ++step) {
            const ApplyArgs args = MakeApply(step);
            const GroupStep& group =
                args.groups[static_cast<std::size_t>(param.group_index)];
            const optim::AdamConstants c =
                optim::MakeAdamConstants({.lr = group.lr,
                                          .beta1 = group.beta1,
                                          .beta2 = group.beta2,
                                          .eps = group.eps,
                                          .weight_decay = group.weight_decay},
                                         step + 1, args.gradient_factor);
            const float sum = round(BatchGradient(step, 0, u, i)) +
                              round(BatchGradient(step, 1, u, i));
            const float g = sum * c.gradient_factor;
            m = m * c.beta1 + g * c.one_minus_beta1;
            v = v * c.beta2 + (g * g) * c.one_minus_beta2;
            const float u_step =
                c.step_size * (m / (std::sqrt(v) * c.inv_sqrt_bias2 + c.eps));
            p = p - (c.decoupled_decay * p + u_step);
          }
          ASSERT_EQ(masters[at], p) << param.name << " " << i;
          ASSERT_EQ(copies[at], round(p)) << param.name << " " << i;
        }
        for (std::int64_t i = 0; i < param.elems; ++i) {
          is_param[static_cast<std::size_t>(param.begin_elems + i)] = true;
        }
      }
      for (std::size_t i = 0; i < copies.size(); ++i) {
        if (!is_param[i]) {
          ASSERT_EQ(copies[i], 0.0F) << "padding " << i << " of unit " << u;
        }
      }
    }
    run->Close(true);
  }
}

TEST_F(JobBitsTest, DoNotDependOnThreadsSlotsKernelsOrDealing) {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp32}) {
    RegistryOptions options;
    options.threads = 1;
    const Outcome reference = Run(options, 1, 4, dtype);
    ASSERT_FALSE(reference.state.empty());
    ASSERT_TRUE(std::isfinite(reference.norms[0]));
    struct Case {
      int threads;
      int kept_slots_max;
      std::int32_t ranks;
      std::int32_t micro_steps;
      const char* isa;
    };
    for (const Case& c :
         {Case{2, 6, 1, 4, ""}, Case{4, 6, 1, 4, ""}, Case{2, 0, 1, 4, ""},
          Case{4, 0, 1, 4, ""}, Case{2, 6, 2, 2, ""}, Case{4, 0, 2, 2, ""},
          Case{2, 6, 4, 1, ""}, Case{3, 0, 4, 1, ""},
          Case{2, 6, 2, 2, "portable"}}) {
      options.threads = c.threads;
      options.kept_slots_max = c.kept_slots_max;
      options.isa = c.isa;
      const Outcome outcome = Run(options, c.ranks, c.micro_steps, dtype);
      EXPECT_TRUE(SameBits(outcome.state, reference.state))
          << c.threads << " threads, kept " << c.kept_slots_max << ", "
          << c.ranks << " x " << c.micro_steps << " " << c.isa;
      EXPECT_EQ(outcome.norms, reference.norms);
    }
  }
}

TEST_F(JobBitsTest, CountEmptyNoticesAsZeroAndReadNoSlotOfThem) {
  std::vector<float> reference;
  for (const int kept_slots_max : {6, 0}) {
    RegistryOptions options;
    options.kept_slots_max = kept_slots_max;
    auto registry = MakeRegistry(options);
    auto run = StartRun(*registry, SmallJob(), MakeRun(2, 2));
    std::vector<double> norms;
    for (std::int64_t step = 0; step < 3; ++step) {
      for (std::int32_t micro = 0; micro < 2; ++micro) {
        for (std::int32_t r = 0; r < 2; ++r) {
          testing::FakeRank& rank = run->rank(r);
          for (const std::int32_t u : {3, 2, 0}) {
            if (rank.info().slots_are_ring) {
              ASSERT_TRUE(rank.WaitLanded(u, step * 2 + micro));
            }
            // Unit 3 has no gradient at all, unit 2 none from rank 0, unit 0
            // none in the first micro step.
            const bool empty =
                u == 3 || (u == 2 && r == 0) || (u == 0 && micro == 0);
            rank.WriteGradient(
                micro, u, [&](std::int32_t unit, std::int64_t element) {
                  return empty ? NAN
                               : BatchGradient(step, micro * 2 + r, unit,
                                               element);
                });
            ASSERT_OK(rank.session().Notice(step, micro, u, empty));
          }
        }
      }
      for (std::int32_t r = 0; r < 2; ++r) {
        ASSERT_OK(run->rank(r).session().Prepare(step, {}));
      }
      const auto verdict = run->rank(0).WaitVerdict(step);
      ASSERT_TRUE(verdict.ok());
      EXPECT_TRUE(std::isfinite(verdict->sum_of_squares));
      EXPECT_GT(verdict->sum_of_squares, 0);
      EXPECT_EQ(verdict->first_nonfinite_param, "");
      ASSERT_OK(run->Apply(MakeApply(step)));
    }
    const std::vector<float> state = run->rank(0).ReadEverything();
    if (reference.empty()) reference = state;
    EXPECT_TRUE(SameBits(state, reference));
    run->Close(true);
  }
}

TEST_F(JobBitsTest, GiveTheNormOfTheSumOverAllMicroBatches) {
  auto registry = MakeRegistry();
  auto run = StartRun(*registry, SmallJob("gpt", Dtype::kFp32), MakeRun(2, 2));
  const auto verdict = run->Prepare(0, BatchGradient);
  ASSERT_TRUE(verdict.ok());
  double expected = 0;
  for (const Layout::Unit& unit : run->rank(0).layout().units()) {
    for (const Layout::Param& param : unit.params) {
      if (param.frozen) continue;
      for (std::int64_t i = param.begin_elems;
           i < param.begin_elems + param.elems; ++i) {
        float sum = 0;
        for (std::int32_t b = 0; b < 4; ++b) {
          sum += BatchGradient(0, b, param.unit_index, i);
        }
        expected += static_cast<double>(sum) * static_cast<double>(sum);
      }
    }
  }
  EXPECT_NEAR(verdict->sum_of_squares, expected, 1e-12 * expected);
  EXPECT_EQ(verdict->rank_scalars,
            (std::vector<std::vector<double>>{{0, 0.5}, {1, 0.5}}));
}

TEST_F(JobBitsTest, NameTheFirstParameterThatIsNotFinite) {
  for (const int kept_slots_max : {6, 0}) {
    RegistryOptions options;
    options.kept_slots_max = kept_slots_max;
    auto registry = MakeRegistry(options);
    auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
    const auto spoiled = [](std::int64_t step, std::int32_t batch,
                            std::int32_t unit, std::int64_t element) {
      // block.w begins at element 0 of unit 2 (group 0 comes first).
      if (batch == 1 && unit == 2 && element == 70 * 65 - 1) return NAN;
      if (batch == 0 && unit == 3) return INFINITY;
      return BatchGradient(step, batch, unit, element);
    };
    const auto verdict = run->Prepare(0, spoiled);
    ASSERT_TRUE(verdict.ok());
    EXPECT_FALSE(std::isfinite(verdict->sum_of_squares));
    EXPECT_EQ(verdict->first_nonfinite_param, "block.w");
    const std::vector<float> before = run->rank(0).ReadEverything();
    ASSERT_OK(run->Apply(MakeSkip(0)));
    EXPECT_TRUE(SameBits(run->rank(0).ReadEverything(), before));
    // The next step is not touched by the one before.
    const Verdict next = Train(*run, 1, 2);
    EXPECT_TRUE(std::isfinite(next.sum_of_squares));
    run->Close(true);
  }
}

}  // namespace
}  // namespace stowage::core
