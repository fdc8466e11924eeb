// What a job's state is, whatever keeps it and however it is reached: the one
// suite that every store runs bare and behind gRPC.
//
// A StateKeeper is a store with a client's verbs: initial values in, steps of
// given gradients, state out, an end and a return. StoreKeeper drives a bare
// store as the optimizer step does; RemoteKeeper is a rank that reaches a
// server in this process through the client library. What only a store can be
// asked (windows, abandoned passes) is in state_store_contract.h.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/dtype.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "optim/kernels.h"
#include "storage/state_store.h"
#include "tests/support/fake_rank.h"

namespace stowage::testing {

class StateKeeper {
 public:
  StateKeeper() = default;
  StateKeeper(const StateKeeper&) = delete;
  StateKeeper& operator=(const StateKeeper&) = delete;
  virtual ~StateKeeper() = default;

  // Masters of a unit's trainable elements, before Begin().
  virtual absl::Status Put(std::int32_t unit, std::int64_t begin_elems,
                           std::span<const float> values) = 0;
  // Commits step 0.
  virtual absl::Status Begin() = 0;
  // One step with one bf16 gradient of every trainable parameter.
  virtual absl::Status Step(const ApplyArgs& args,
                            const ElementFunction& gradient) = 0;
  virtual absl::Status Read(std::int32_t unit, StateKind kind,
                            std::int64_t begin_elems, std::span<float> out) = 0;
  virtual absl::StatusOr<storage::CommitRecord> Committed() = 0;
  // An orderly end of whatever holds the state, and its return.
  virtual absl::Status Reopen() = 0;
  virtual absl::Status Rewind(std::int64_t step) = 0;
};

struct StateKeeperFactory {
  std::string name;
  std::function<std::unique_ptr<StateKeeper>(const Layout&)> make;
  bool persistent = false;  // Reopen() and Rewind() work; 2 steps are kept

  friend void PrintTo(const StateKeeperFactory& factory, std::ostream* out) {
    *out << factory.name;
  }
};

inline LayoutSpec ContractModel() {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {
      {.name = "decay"}, {.name = "plain"}, {.name = "ice", .frozen = true}};
  // Several extents, two groups in a unit, a frozen tail, a frozen unit, a unit
  // smaller than its alignment.
  spec.units = {
      {.name = "a",
       .params = {{.name = "a.w", .shape = {300, 457}, .group_index = 0},
                  {.name = "a.b", .shape = {457}, .group_index = 1}}},
      {.name = "b",
       .params = {{.name = "b.w", .shape = {64, 33}, .group_index = 1},
                  {.name = "b.f", .shape = {1000}, .group_index = 2}}},
      {.name = "c",
       .params = {{.name = "c.f", .shape = {10}, .group_index = 2}}},
      {.name = "d", .params = {{.name = "d.w", .shape = {1}}}},
  };
  return spec;
}

class StateContract : public ::testing::TestWithParam<StateKeeperFactory> {
 protected:
  StateContract() : layout_(*Layout::Create(ContractModel())) {
    keeper_ = GetParam().make(layout_);
  }

  static float Initial(std::int32_t unit, std::int64_t element) {
    return HashedValue(3, unit, element);
  }
  static ApplyArgs Args(std::int64_t step, bool skip = false) {
    ApplyArgs args;
    args.step = step;
    args.skip = skip;
    args.gradient_factor = 0.5;
    args.groups = {{.lr = 0.01, .weight_decay = 0.1}, {.lr = 0.02}, {}};
    // Not text: opaque bytes.
    args.client_state = absl::StrCat("after ", step, std::string("\0\xff", 2));
    return args;
  }
  static ElementFunction Gradient(std::int64_t step) {
    return [step](std::int32_t unit, std::int64_t element) {
      return HashedValue(static_cast<std::uint64_t>(100 + step), unit, element);
    };
  }

  // In two pieces, the second first.
  absl::Status PutAll(StateKeeper& keeper) const {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      std::vector<float> values(
          static_cast<std::size_t>(Unit(u).trainable_elems));
      for (const Layout::Param& param : Unit(u).params) {
        for (std::int64_t i = 0; !param.frozen && i < param.elems; ++i) {
          values[static_cast<std::size_t>(param.begin_elems + i)] =
              Initial(u, param.begin_elems + i);
        }
      }
      const std::span<const float> all(values);
      const std::size_t half = all.size() / 2;
      for (const auto& [begin, part] :
           {std::pair{half, all.subspan(half)},
            std::pair{std::size_t{0}, all.first(half)}}) {
        if (part.empty()) continue;
        absl::Status put =
            keeper.Put(u, static_cast<std::int64_t>(begin), part);
        if (!put.ok()) return put;
      }
    }
    return absl::OkStatus();
  }
  void Start() {
    const absl::Status put = PutAll(*keeper_);
    ASSERT_TRUE(put.ok()) << put;
    const absl::Status begun = keeper_->Begin();
    ASSERT_TRUE(begun.ok()) << begun;
  }
  void Run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t step = begin; step < end; ++step) {
      const absl::Status done = keeper_->Step(Args(step), Gradient(step));
      ASSERT_TRUE(done.ok()) << "step " << step << ": " << done;
    }
  }

  // Every element, of every kind, is what a scalar model of AdamW makes of the
  // steps in `applied`; bit for bit.
  void ExpectState(const std::vector<std::int64_t>& applied) {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      if (Unit(u).trainable_elems == 0) continue;
      std::vector<float> got[3];
      for (int k = 0; k < 3; ++k) {
        got[k].resize(static_cast<std::size_t>(Unit(u).trainable_elems));
        const absl::Status read =
            keeper_->Read(u, static_cast<StateKind>(k + 1), 0, got[k]);
        ASSERT_TRUE(read.ok()) << read;
      }
      for (const Layout::Param& param : Unit(u).params) {
        if (param.frozen) continue;
        for (std::int64_t i = param.begin_elems;
             i < param.begin_elems + param.elems; ++i) {
          const auto at = static_cast<std::size_t>(i);
          float p = Initial(u, i);
          float m = 0;
          float v = 0;
          Model(applied, u, i, static_cast<std::size_t>(param.group_index), &p,
                &m, &v);
          ASSERT_EQ(got[0][at], p) << param.name << " master " << i;
          ASSERT_EQ(got[1][at], m) << param.name << " moment 1 " << i;
          ASSERT_EQ(got[2][at], v) << param.name << " moment 2 " << i;
        }
      }
    }
  }

  const Layout::Unit& Unit(std::int32_t u) const {
    return layout_.units()[static_cast<std::size_t>(u)];
  }

  const Layout layout_;
  std::unique_ptr<StateKeeper> keeper_;

 private:
  static void Model(const std::vector<std::int64_t>& applied, std::int32_t u,
                    std::int64_t i, std::size_t group, float* p, float* m,
                    float* v) {
    for (std::size_t k = 0; k < applied.size(); ++k) {
      const ApplyArgs args = Args(applied[k]);
      const GroupStep& g = args.groups[group];
      const optim::AdamConstants c = optim::MakeAdamConstants(
          {.lr = g.lr,
           .beta1 = g.beta1,
           .beta2 = g.beta2,
           .eps = g.eps,
           .weight_decay = g.weight_decay},
          static_cast<std::int64_t>(k) + 1, args.gradient_factor);
      const float gradient =
          Bf16ToFloat(FloatToBf16(Gradient(applied[k])(u, i))) *
          c.gradient_factor;
      *m = *m * c.beta1 + gradient * c.one_minus_beta1;
      *v = *v * c.beta2 + (gradient * gradient) * c.one_minus_beta2;
      const float update =
          c.step_size * (*m / (std::sqrt(*v) * c.inv_sqrt_bias2 + c.eps));
      *p = *p - (c.decoupled_decay * *p + update);
    }
  }
};

TEST_P(StateContract, HoldsTheInitialValuesAndZeroMomentsAtStepZero) {
  Start();
  ExpectState({});
  const auto record = keeper_->Committed();
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(*record, storage::CommitRecord{});
}

TEST_P(StateContract, StepsAreThoseOfAScalarModel) {
  Start();
  Run(0, 4);
  ExpectState({0, 1, 2, 3});
}

TEST_P(StateContract, RecordAndTensorsMoveTogether) {
  Start();
  Run(0, 2);
  const auto record = keeper_->Committed();
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(*record,
            (storage::CommitRecord{.step = 2,
                                   .applied_steps = 2,
                                   .client_state = Args(1).client_state}));
  ExpectState({0, 1});
}

TEST_P(StateContract, ASkippedStepMovesTheRecordOnly) {
  Start();
  Run(0, 1);
  const absl::Status skipped = keeper_->Step(Args(1, true), Gradient(1));
  ASSERT_TRUE(skipped.ok()) << skipped;
  ExpectState({0});
  const auto record = keeper_->Committed();
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->step, 2);
  EXPECT_EQ(record->applied_steps, 1);
  EXPECT_EQ(record->client_state, Args(1).client_state);
  Run(2, 3);
  ExpectState({0, 2});
}

TEST_P(StateContract, ReadsAnyPart) {
  Start();
  Run(0, 1);
  std::vector<float> all(static_cast<std::size_t>(Unit(0).trainable_elems));
  ASSERT_TRUE(keeper_->Read(0, StateKind::kMoment2, 0, all).ok());
  for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{1},
                                   std::int64_t{32767}, std::int64_t{65535}}) {
    std::vector<float> part(5);
    ASSERT_TRUE(keeper_->Read(0, StateKind::kMoment2, begin, part).ok());
    EXPECT_EQ(std::memcmp(part.data(), all.data() + begin, 5 * sizeof(float)),
              0)
        << begin;
  }
}

// The last thing that its keeper does: a session ends with such a call.
TEST_P(StateContract, RefusesPlacesThatAreNotThere) {
  struct Place {
    std::int32_t unit;
    std::int64_t begin;
  };
  for (const Place& place :
       {Place{-1, 0}, Place{4, 0}, Place{0, -1}, Place{0, Unit(0).elems},
        Place{0, INT64_MAX}, Place{0, INT64_MIN}}) {
    SCOPED_TRACE(absl::StrCat("unit ", place.unit, " from ", place.begin));
    std::vector<float> values(8);
    auto putting = GetParam().make(layout_);
    absl::Status put = PutAll(*putting);
    ASSERT_TRUE(put.ok()) << put;
    put = putting->Put(place.unit, place.begin, values);
    if (put.ok()) put = putting->Begin();  // where nobody waits for an answer
    EXPECT_EQ(put.code(), absl::StatusCode::kInvalidArgument) << put;
    auto reading = GetParam().make(layout_);
    ASSERT_TRUE(PutAll(*reading).ok());
    ASSERT_TRUE(reading->Begin().ok());
    const absl::Status read =
        reading->Read(place.unit, StateKind::kMaster, place.begin, values);
    EXPECT_EQ(read.code(), absl::StatusCode::kInvalidArgument) << read;
  }
}

TEST_P(StateContract, RefusesInitialValuesAfterACommit) {
  Start();
  Run(0, 1);
  const std::vector<float> values(8, 1.0F);
  absl::Status put = keeper_->Put(0, 0, values);
  // Where nobody waits for an answer, the next call has it.
  if (put.ok()) put = keeper_->Step(Args(1), Gradient(1));
  EXPECT_EQ(put.code(), absl::StatusCode::kFailedPrecondition) << put;
}

TEST_P(StateContract, ComesBackAtItsLastStepAndGoesOn) {
  if (!GetParam().persistent) GTEST_SKIP() << "its state is in memory";
  Start();
  Run(0, 3);
  for (std::int64_t step = 3; step < 6; ++step) {
    const absl::Status again = keeper_->Reopen();
    ASSERT_TRUE(again.ok()) << again;
    const auto record = keeper_->Committed();
    ASSERT_TRUE(record.ok()) << record.status();
    EXPECT_EQ(record->step, step);
    EXPECT_EQ(record->client_state, Args(step - 1).client_state);
    Run(step, step + 1);
  }
  ExpectState({0, 1, 2, 3, 4, 5});
}

TEST_P(StateContract, ReturnsToAKeptStepAndGoesOnFromThere) {
  if (!GetParam().persistent) GTEST_SKIP() << "it keeps no steps";
  Start();
  Run(0, 4);
  EXPECT_EQ(keeper_->Rewind(1).code(), absl::StatusCode::kNotFound);
  const absl::Status rewound = keeper_->Rewind(3);
  ASSERT_TRUE(rewound.ok()) << rewound;
  ExpectState({0, 1, 2});
  Run(3, 6);
  ExpectState({0, 1, 2, 3, 4, 5});
}

}  // namespace stowage::testing
