// What the tests of jobs share: a registry in a folder of its own, a small
// model with everything special in it, and shorthands.

#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "server/core/job_registry.h"
#include "tests/support/fake_rank.h"

namespace stowage::core {

// Two chunks in one unit, two trainable groups in a unit, a frozen tail, a unit
// that is all frozen, a unit smaller than its alignment.
inline LayoutSpec SmallModel(Dtype dtype = Dtype::kBf16) {
  LayoutSpec spec;
  spec.param_dtype = dtype;
  spec.groups = {
      {.name = "decay"}, {.name = "plain"}, {.name = "ice", .frozen = true}};
  spec.units = {
      {.name = "embed",
       .params = {{.name = "embed.w", .shape = {200, 200}, .group_index = 0}}},
      {.name = "ice",
       .params = {{.name = "ice.w", .shape = {100}, .group_index = 2}}},
      {.name = "block",
       .params = {{.name = "block.norm", .shape = {65}, .group_index = 1},
                  {.name = "block.w", .shape = {70, 65}, .group_index = 0},
                  {.name = "block.table", .shape = {40}, .group_index = 2}}},
      {.name = "head",
       .params = {{.name = "head.b", .shape = {3}, .group_index = 1}}}};
  return spec;
}

inline JobSpec SmallJob(const std::string& name = "gpt",
                        Dtype dtype = Dtype::kBf16) {
  JobSpec job;
  job.name = name;
  job.layout = SmallModel(dtype);
  return job;
}

inline RunSpec MakeRun(std::int32_t ranks, std::int32_t micro_steps,
                       char nonce = 'n') {
  return {.nonce = std::string(16, nonce),
          .world_size = ranks,
          .local_ranks = ranks,
          .micro_steps = micro_steps};
}

inline ApplyArgs MakeApply(std::int64_t step, double gradient_factor = 0.25) {
  ApplyArgs args;
  args.step = step;
  args.gradient_factor = gradient_factor;
  args.groups = {{.lr = 1e-2, .weight_decay = 0.1}, {.lr = 2e-2}, {}};
  args.client_state = "after " + std::to_string(step);
  return args;
}

inline ApplyArgs MakeSkip(std::int64_t step) {
  ApplyArgs args = MakeApply(step);
  args.skip = true;
  return args;
}

inline float InitialValue(std::int32_t unit, std::int64_t element) {
  return testing::HashedValue(1, unit, element);
}

// Different in every micro-batch; spread over magnitudes, so that the order of
// a sum shows in its bits.
inline float BatchGradient(std::int64_t step, std::int32_t batch,
                           std::int32_t unit, std::int64_t element) {
  const auto seed = static_cast<std::uint64_t>(step * 1000 + batch + 17);
  return testing::HashedValue(seed, unit, element) *
         static_cast<float>(1 << (batch % 4 * 3));
}

// A status by its code, printed with its message when a test fails.
struct CodeOf {
  explicit CodeOf(absl::Status status_in) : status(std::move(status_in)) {}
  friend bool operator==(const CodeOf& a, absl::StatusCode code) {
    return a.status.code() == code;
  }
  friend void PrintTo(const CodeOf& a, std::ostream* out) { *out << a.status; }
  absl::Status status;
};

class JobTest : public ::testing::Test {
 protected:
  std::unique_ptr<JobRegistry> MakeRegistry(RegistryOptions options = {}) {
    options.shm_dir = folder_.path();
    if (options.threads == 0) options.threads = 2;
    if (options.memory_limit_bytes == 0) {
      options.memory_limit_bytes = std::int64_t{1} << 30;
    }
    auto registry = JobRegistry::Create(options);
    EXPECT_TRUE(registry.ok()) << registry.status();
    return *std::move(registry);
  }

  // A run that is attached and initialized.
  std::unique_ptr<testing::FakeRun> StartRun(JobRegistry& registry,
                                             const JobSpec& job,
                                             const RunSpec& run) {
    auto started = testing::FakeRun::Start(registry, job, run);
    EXPECT_TRUE(started.ok()) << started.status();
    if (!started.ok()) return nullptr;
    if (!(*started)->rank(0).info().initialized) {
      const absl::Status status = (*started)->Initialize(InitialValue);
      EXPECT_TRUE(status.ok()) << status;
    }
    return *std::move(started);
  }

  // Steps [begin, end) of the usual gradients. Returns the last verdict.
  Verdict Train(testing::FakeRun& run, std::int64_t begin, std::int64_t end) {
    Verdict last;
    for (std::int64_t step = begin; step < end; ++step) {
      auto verdict = run.Prepare(step, BatchGradient);
      EXPECT_TRUE(verdict.ok()) << verdict.status();
      if (!verdict.ok()) return last;
      last = *verdict;
      const absl::Status status = run.Apply(MakeApply(step));
      EXPECT_TRUE(status.ok()) << status;
      if (!status.ok()) return last;
    }
    return last;
  }

  // Files in the segment folder, the server's lock not counted.
  int SegmentFiles() const;

  testing::ShmFolder folder_;
};

#define EXPECT_STATUS(expression, expected) \
  EXPECT_EQ(CodeOf(expression), absl::StatusCode::expected) << #expression

#define ASSERT_OK(expression)                                    \
  do {                                                           \
    const absl::Status status_ = (expression);                   \
    ASSERT_TRUE(status_.ok()) << #expression << ": " << status_; \
  } while (false)

}  // namespace stowage::core
