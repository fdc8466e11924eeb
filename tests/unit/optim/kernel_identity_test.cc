// Every kernel implementation gives the bits of the scalar reference, for all
// element types, slot counts, lengths, alignments and special values, and
// writes nothing outside its range.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/dtype.h"
#include "tests/unit/optim/kernel_candidates.h"
#include "tests/unit/optim/scalar_reference.h"

namespace stowage::optim {
namespace {

constexpr std::array kDtypes = {Dtype::kFp32, Dtype::kFp16, Dtype::kBf16};

// STOWAGE_TEST_SEED repeats a failure.
std::uint32_t Seed() {
  const char* text = std::getenv("STOWAGE_TEST_SEED");
  return text == nullptr ? 20240607U
                         : static_cast<std::uint32_t>(std::atoll(text));
}

class Random {
 public:
  explicit Random(std::uint32_t salt) : engine_(Seed() + salt) {}

  std::uint32_t Bits() { return static_cast<std::uint32_t>(engine_()); }

  // `special` adds zeros, denormals, infinities and NaNs to one in four.
  float Float(bool special) {
    if (special && Bits() % 4 == 0) {
      constexpr std::array<std::uint32_t, 14> kSpecial = {
          0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00012345,
          0x7f800000, 0xff800000, 0x7fc00000, 0x7fffffff, 0xffc12345,
          0x7f812345, 0x7f7fffff, 0x00800000, 0x33800000};
      return std::bit_cast<float>(kSpecial[Bits() % kSpecial.size()]);
    }
    const double sign = Bits() % 2 == 0 ? 1 : -1;
    const int exponent = static_cast<int>(Bits() % 24) - 20;
    return static_cast<float>(
        sign * std::ldexp(1 + static_cast<double>(Bits()) * 0x1p-32, exponent));
  }

 private:
  std::mt19937 engine_;
};

// `elems` elements at `offset_bytes` past a cache line, with margins on both
// sides that count when two arrays are compared.
class Array {
 public:
  Array(Dtype dtype, std::int64_t elems, std::int64_t offset_bytes)
      : dtype_(dtype),
        offset_bytes_(offset_bytes),
        lines_(static_cast<std::size_t>(
            (elems * DtypeBytes(dtype) + offset_bytes + 63) / 64 + 4)) {
    std::memset(lines_.data(), 0xa5, lines_.size() * sizeof(Line));
  }

  void Fill(Random& random, std::int64_t elems, bool special,
            bool positive = false) {
    for (std::int64_t i = 0; i < elems; ++i) {
      const float value = random.Float(special);
      Set(i, positive && value < 0 ? -value : value);
    }
  }
  void Set(std::int64_t i, float value) {
    if (dtype_ == Dtype::kFp32) {
      std::memcpy(data() + i * 4, &value, 4);
      return;
    }
    const std::uint16_t bits =
        dtype_ == Dtype::kFp16 ? FloatToFp16(value) : FloatToBf16(value);
    std::memcpy(data() + i * 2, &bits, 2);
  }

  std::byte* data() { return lines_[2].bytes + offset_bytes_; }
  float* floats() { return reinterpret_cast<float*>(data()); }

  friend bool operator==(const Array& a, const Array& b) {
    return a.lines_.size() == b.lines_.size() &&
           std::memcmp(a.lines_.data(), b.lines_.data(),
                       a.lines_.size() * sizeof(Line)) == 0;
  }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  Dtype dtype_;
  std::int64_t offset_bytes_;
  std::vector<Line> lines_;
};

// A gradient: `slot_count` slots, or an fp32 sum if kWithSum.
constexpr int kWithSum = -1;

class Gradient {
 public:
  Gradient(Random& random, Dtype dtype, int slot_count, std::int64_t elems,
           std::int64_t offset_bytes, bool special) {
    const bool with_sum = slot_count == kWithSum;
    dtype_ = with_sum ? Dtype::kFp32 : dtype;
    for (int s = 0; s < (with_sum ? 1 : slot_count); ++s) {
      arrays_.emplace_back(dtype_, elems, offset_bytes);
      arrays_.back().Fill(random, elems, special);
    }
    for (Array& array : arrays_) {
      if (with_sum) sum_ = array.floats();
      if (!with_sum) slots_.push_back(array.data());
    }
  }
  Gradient(const Gradient&) = delete;
  Gradient& operator=(const Gradient&) = delete;

  GradientSource source() const { return {slots_, dtype_, sum_}; }

 private:
  Dtype dtype_;
  std::vector<Array> arrays_;
  std::vector<const void*> slots_;
  const float* sum_ = nullptr;
};

struct AdamState {
  AdamState(Dtype copy_dtype, std::int64_t elems, std::int64_t offset_bytes)
      : p(Dtype::kFp32, elems, offset_bytes),
        m(Dtype::kFp32, elems, offset_bytes),
        v(Dtype::kFp32, elems, offset_bytes),
        copy(copy_dtype, elems, offset_bytes),
        dtype(copy_dtype) {}
  AdamRange Range(std::int64_t elems, bool with_copy) {
    return {elems,
            p.floats(),
            m.floats(),
            v.floats(),
            with_copy ? copy.data() : nullptr,
            dtype};
  }
  friend bool operator==(const AdamState& a, const AdamState& b) {
    return a.p == b.p && a.m == b.m && a.v == b.v && a.copy == b.copy;
  }
  Array p;
  Array m;
  Array v;
  Array copy;
  Dtype dtype;
};

// Around every block and line boundary, and odd lengths up to 200 elements.
std::vector<std::int64_t> Lengths() {
  std::vector<std::int64_t> lengths;
  for (std::int64_t n = 0; n <= 66; ++n) lengths.push_back(n);
  for (std::int64_t n = 67; n <= 200; n += 2) lengths.push_back(n);
  lengths.insert(lengths.end(), {4095, 4096, 5003});
  return lengths;
}

constexpr std::array<std::int64_t, 6> kOffsetsBytes = {0, 4, 32, 2, 1, 0};

// Calls fn(random, dtype, slot_count, elems, offset_bytes, special) over
// everything that selects a path in the kernels.
template <typename Fn>
void ForEachCase(Fn fn) {
  Random random(1);
  std::size_t turn = 0;
  for (const Dtype dtype : kDtypes) {
    for (int slot_count = kWithSum; slot_count <= 8; ++slot_count) {
      for (const std::int64_t elems : Lengths()) {
        const std::int64_t offset_bytes =
            kOffsetsBytes[turn++ % kOffsetsBytes.size()];
        const bool special = random.Bits() % 2 == 0;
        SCOPED_TRACE(
            absl::StrCat("seed ", Seed(), ", ", std::string(DtypeName(dtype)),
                         ", slots ", slot_count, ", elems ", elems, ", offset ",
                         offset_bytes, special ? ", special values" : ""));
        fn(random, dtype, slot_count, elems, offset_bytes, special);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(KernelIdentity, SumOfSquaresEqualsReferenceBits) {
  const std::vector<KernelCandidate> candidates = KernelCandidates();
  ForEachCase([&](Random& random, Dtype dtype, int slot_count,
                  std::int64_t elems, std::int64_t offset_bytes, bool special) {
    const Gradient gradient(random, dtype, slot_count, elems, offset_bytes,
                            special);
    const double expected = ReferenceSumOfSquares(gradient.source(), elems);
    for (const KernelCandidate& candidate : candidates) {
      const double got = candidate.set.sum_of_squares(gradient.source(), elems);
      EXPECT_EQ(std::bit_cast<std::uint64_t>(got),
                std::bit_cast<std::uint64_t>(expected))
          << candidate.name << ": " << got << " instead of " << expected;
    }
  });
}

TEST(KernelIdentity, SumOfSquaresIsNotFiniteExactlyWhenAnElementIs) {
  for (const KernelCandidate& candidate : KernelCandidates()) {
    for (const std::int64_t elems : {1, 31, 32, 33, 1000}) {
      for (const std::int64_t bad : {std::int64_t{0}, elems / 2, elems - 1}) {
        Array slot(Dtype::kFp32, elems, 0);
        for (std::int64_t i = 0; i < elems; ++i) slot.Set(i, 3.4e38F);
        const void* const slots[] = {slot.data()};
        const GradientSource source = {slots, Dtype::kFp32, nullptr};
        EXPECT_TRUE(std::isfinite(candidate.set.sum_of_squares(source, elems)));
        slot.Set(bad, std::bit_cast<float>(0xff800000U));
        EXPECT_FALSE(std::isfinite(candidate.set.sum_of_squares(source, elems)))
            << candidate.name << " elems " << elems << " bad " << bad;
      }
    }
  }
}

TEST(KernelIdentity, AccumulateEqualsReferenceBits) {
  const std::vector<KernelCandidate> candidates = KernelCandidates();
  ForEachCase([&](Random& random, Dtype dtype, int slot_count,
                  std::int64_t elems, std::int64_t offset_bytes, bool special) {
    if (slot_count == kWithSum) return;
    const Gradient gradient(random, dtype, slot_count, elems, offset_bytes,
                            special);
    Array start(Dtype::kFp32, elems, offset_bytes);
    start.Fill(random, elems, special);
    for (const bool first : {false, true}) {
      Array expected = start;
      ReferenceAccumulate(gradient.source(), first, expected.floats(), elems);
      for (const KernelCandidate& candidate : candidates) {
        Array got = start;
        candidate.set.accumulate(gradient.source().slots, dtype, first,
                                 got.floats(), elems);
        EXPECT_TRUE(got == expected) << candidate.name << " first " << first;
      }
    }
  });
}

// What differs between Adam, AdamW, with and without bias correction.
AdamConstants SomeConstants(Random& random) {
  AdamHyperparameters h;
  h.lr = 0.02;
  h.beta1 = 0.85;
  h.eps = random.Bits() % 4 == 0 ? 0 : 1e-8;
  h.weight_decay = random.Bits() % 3 == 0 ? 0 : 0.07;
  h.decoupled_weight_decay = random.Bits() % 2 == 0;
  h.bias_correction = random.Bits() % 4 != 0;
  return MakeAdamConstants(h, 1 + random.Bits() % 9, 0.37);
}

TEST(KernelIdentity, AdamEqualsReferenceBits) {
  const std::vector<KernelCandidate> candidates = KernelCandidates();
  ForEachCase([&](Random& random, Dtype dtype, int slot_count,
                  std::int64_t elems, std::int64_t offset_bytes, bool special) {
    const Gradient gradient(random, dtype, slot_count, elems, offset_bytes,
                            special);
    const Dtype copy_dtype = kDtypes[random.Bits() % kDtypes.size()];
    const bool with_copy = random.Bits() % 5 != 0;
    const AdamConstants constants = SomeConstants(random);
    AdamState start(copy_dtype, elems, offset_bytes);
    start.p.Fill(random, elems, special);
    start.m.Fill(random, elems, special);
    start.v.Fill(random, elems, special, /*positive=*/true);
    AdamState expected = start;
    ReferenceAdam(constants, gradient.source(),
                  expected.Range(elems, with_copy));
    for (const KernelCandidate& candidate : candidates) {
      AdamState got = start;
      candidate.set.adam(constants, gradient.source(),
                         got.Range(elems, with_copy));
      EXPECT_TRUE(got == expected)
          << candidate.name << ", copy "
          << (with_copy ? DtypeName(copy_dtype) : "none");
    }
  });
}

LambConstants SomeLambConstants(Random& random) {
  LambHyperparameters h;
  h.lr = 0.02;
  h.beta1 = 0.85;
  h.eps = random.Bits() % 4 == 0 ? 0 : 1e-8;
  h.weight_decay = random.Bits() % 3 == 0 ? 0 : 0.07;
  h.eps_inside_sqrt = random.Bits() % 2 == 0;
  if (random.Bits() % 8 == 0) h.beta1 = h.beta2 = 0;
  return MakeLambConstants(h, 1 + random.Bits() % 9, 0.37);
}

bool SameBits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

TEST(KernelIdentity, LambEqualsReferenceBits) {
  const std::vector<KernelCandidate> candidates = KernelCandidates();
  ForEachCase([&](Random& random, Dtype dtype, int slot_count,
                  std::int64_t elems, std::int64_t offset_bytes, bool special) {
    const Gradient gradient(random, dtype, slot_count, elems, offset_bytes,
                            special);
    const Dtype copy_dtype = kDtypes[random.Bits() % kDtypes.size()];
    const bool with_copy = random.Bits() % 5 != 0;
    const LambConstants constants = SomeLambConstants(random);
    const float step = static_cast<float>(constants.step_size * 1.37);
    AdamState start(copy_dtype, elems, offset_bytes);
    start.p.Fill(random, elems, special);
    start.m.Fill(random, elems, special);
    start.v.Fill(random, elems, special, /*positive=*/true);
    AdamState expected = start;
    const LambNorms norms = ReferenceLambNorms(
        constants, gradient.source(), expected.Range(elems, with_copy));
    ReferenceLamb(constants, step, gradient.source(),
                  expected.Range(elems, with_copy));
    for (const KernelCandidate& candidate : candidates) {
      AdamState got = start;
      const LambNorms found = candidate.set.lamb_norms(
          constants, gradient.source(), got.Range(elems, with_copy));
      EXPECT_TRUE(SameBits(found.weight, norms.weight) &&
                  SameBits(found.update, norms.update))
          << candidate.name << ": " << found.weight << ", " << found.update
          << " instead of " << norms.weight << ", " << norms.update;
      EXPECT_TRUE(got == start) << candidate.name << ": norms write";
      candidate.set.lamb(constants, step, gradient.source(),
                         got.Range(elems, with_copy));
      EXPECT_TRUE(got == expected)
          << candidate.name << ", copy "
          << (with_copy ? DtypeName(copy_dtype) : "none");
    }
  });
}

// One rank's momentum in, its signs out, and four ranks' signs back in.
TEST(KernelIdentity, OneBitRoundEqualsReferenceBits) {
  const std::vector<KernelCandidate> candidates = KernelCandidates();
  const OneBitMomentum momentum = {0.37F, 0.9F, 0.1F, 1.25F};
  ForEachCase([&](Random& random, Dtype dtype, int slot_count,
                  std::int64_t elems, std::int64_t offset_bytes, bool special) {
    const Gradient gradient(random, dtype, slot_count, elems, offset_bytes,
                            special);
    Array m(Dtype::kFp32, elems, offset_bytes);
    Array start(Dtype::kFp32, elems, offset_bytes);
    m.Fill(random, elems, special);
    start.Fill(random, elems, special);
    const float scale = std::abs(random.Float(false));
    const auto bytes = static_cast<std::size_t>((elems + 7) / 8);
    Array expected = start;
    const double squares = ReferenceCompensate(
        momentum, gradient.source(), m.floats(), expected.floats(), elems);
    const Array compensated = expected;
    std::vector<std::uint8_t> bits(bytes + 1, 0x5a);
    ReferencePack(scale, expected.floats(), bits.data(), elems);
    const std::vector<std::vector<std::uint8_t>> others = {
        bits, std::vector<std::uint8_t>(bytes, 0xc4),
        std::vector<std::uint8_t>(bytes, 0x3b)};
    std::vector<const std::uint8_t*> workers;
    for (const auto& other : others) workers.push_back(other.data());
    const std::vector<float> scales = {scale, 0.25F, 3.5F};
    Array served = start;
    const double served_squares =
        ReferenceServe(workers, scales, served.floats(), elems);
    for (const KernelCandidate& candidate : candidates) {
      SCOPED_TRACE(candidate.name);
      Array got = start;
      const double found = candidate.set.onebit_compensate(
          momentum, gradient.source(), m.floats(), got.floats(), elems);
      // A NaN may come out in any form: what is packed from it is the same.
      EXPECT_TRUE(special || got == compensated);
      EXPECT_TRUE(SameBits(found, squares)) << found << " " << squares;
      std::vector<std::uint8_t> got_bits(bytes + 1, 0x5a);
      candidate.set.onebit_pack(scale, got.floats(), got_bits.data(), elems);
      EXPECT_TRUE(special || got == expected);
      EXPECT_EQ(got_bits, bits);
      got = start;
      EXPECT_TRUE(SameBits(
          candidate.set.onebit_serve(workers, scales, got.floats(), elems),
          served_squares));
      EXPECT_TRUE(special || got == served);
      candidate.set.onebit_unpack(scale, bits.data(), got.floats(), elems);
      for (std::int64_t i = 0; i < elems; ++i) {
        const bool set =
            (bits[static_cast<std::size_t>(i / 8)] & (0x80U >> (i % 8))) != 0;
        float value = 0;
        std::memcpy(&value, got.data() + i * 4, 4);
        ASSERT_EQ(value, set ? scale : -scale) << "element " << i;
      }
    }
  });
}

TEST(KernelIdentity, FrozenUpdatesEqualReferenceBits) {
  const std::vector<KernelCandidate> candidates = KernelCandidates();
  ForEachCase([&](Random& random, Dtype dtype, int slot_count,
                  std::int64_t elems, std::int64_t offset_bytes, bool special) {
    if (slot_count > 1) return;
    const bool with_copy = slot_count != 0;
    const FrozenLambConstants c = {
        .beta1 = 0.9F,
        .one_minus_beta1 = 0.1F,
        .beta2 = 0.99F,
        .one_minus_beta2 = 0.01F,
        .eps = random.Bits() % 4 == 0 ? 0.0F : 1e-6F,
        .weight_decay = random.Bits() % 2 == 0 ? 0.0F : 0.05F};
    AdamState start(dtype, elems, offset_bytes);
    Array last(Dtype::kFp32, elems, offset_bytes);
    Array fresh(Dtype::kFp32, elems, offset_bytes);
    start.p.Fill(random, elems, special);
    start.m.Fill(random, elems, special);
    start.v.Fill(random, elems, special, /*positive=*/true);
    last.Fill(random, elems, special);
    fresh.Fill(random, elems, special, /*positive=*/true);
    AdamState expected = start;
    Array expected_fresh = fresh;
    ReferenceFrozen(c.eps, c.weight_decay, 0.02F,
                    expected.Range(elems, with_copy));
    const FrozenLambSums sums =
        ReferenceFrozenLamb(c, last.floats(), expected_fresh.floats(),
                            start.Range(elems, with_copy));
    for (const KernelCandidate& candidate : candidates) {
      SCOPED_TRACE(candidate.name);
      AdamState got = start;
      Array got_fresh = fresh;
      const FrozenLambSums found = candidate.set.frozen_lamb(
          c, last.floats(), got_fresh.floats(), got.Range(elems, with_copy));
      EXPECT_TRUE(got == start);
      EXPECT_TRUE(special || got_fresh == expected_fresh);
      EXPECT_TRUE(SameBits(found.direction, sums.direction) &&
                  SameBits(found.update, sums.update));
      EXPECT_EQ(found.factor_max, sums.factor_max);
      candidate.set.frozen(c.eps, c.weight_decay, 0.02F,
                           got.Range(elems, with_copy));
      EXPECT_TRUE(got == expected);
    }
  });
}

TEST(KernelIdentity, AdamIsTheSameHoweverARangeIsCut) {
  constexpr std::int64_t kElems = 100003;
  Random random(2);
  const Gradient gradient(random, Dtype::kBf16, 2, kElems, 0, false);
  const AdamConstants constants = SomeConstants(random);
  AdamState start(Dtype::kBf16, kElems, 0);
  start.p.Fill(random, kElems, false);
  start.m.Fill(random, kElems, false);
  start.v.Fill(random, kElems, false, true);
  AdamState expected = start;
  ReferenceAdam(constants, gradient.source(), expected.Range(kElems, true));
  for (const KernelCandidate& candidate : KernelCandidates()) {
    for (const std::int64_t cut :
         {kElems, std::int64_t{32768}, std::int64_t{4096}, std::int64_t{777}}) {
      AdamState got = start;
      for (std::int64_t begin = 0; begin < kElems; begin += cut) {
        AdamRange range = got.Range(std::min(cut, kElems - begin), true);
        range.master += begin;
        range.moment1 += begin;
        range.moment2 += begin;
        range.copy = got.copy.data() + begin * 2;
        range.copy_stays_cached = cut == 32768;
        std::vector<const void*> slots;
        for (const void* slot : gradient.source().slots) {
          slots.push_back(static_cast<const std::byte*>(slot) + begin * 2);
        }
        candidate.set.adam(constants, {slots, Dtype::kBf16, nullptr}, range);
      }
      EXPECT_TRUE(got == expected) << candidate.name << " cut " << cut;
    }
  }
}

TEST(KernelIdentity, ConvertEqualsReferenceBits) {
  const std::vector<KernelCandidate> candidates = KernelCandidates();
  ForEachCase([&](Random& random, Dtype dtype, int slot_count,
                  std::int64_t elems, std::int64_t offset_bytes, bool special) {
    if (slot_count > 1) return;
    Array source(Dtype::kFp32, elems, offset_bytes);
    source.Fill(random, elems, special);
    Array expected(dtype, elems, offset_bytes);
    ReferenceConvert(source.floats(), dtype, expected.data(), elems);
    for (const KernelCandidate& candidate : candidates) {
      Array got(dtype, elems, offset_bytes);
      candidate.set.convert(source.floats(), dtype, got.data(), elems);
      EXPECT_TRUE(got == expected) << candidate.name;
    }
  });
}

// All upper halves of an fp32 with the lower halves that decide a rounding.
TEST(KernelIdentity, ConvertRoundsAsCommonDtypeDoes) {
  constexpr std::array<std::uint32_t, 10> kLow = {
      0x0000, 0x0001, 0x0fff, 0x1000, 0x1001,
      0x2000, 0x7fff, 0x8000, 0x8001, 0xffff};
  std::vector<float> source;
  for (std::uint32_t high = 0; high < 0x10000; ++high) {
    for (const std::uint32_t low : kLow) {
      source.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  const auto elems = static_cast<std::int64_t>(source.size());
  for (const KernelCandidate& candidate : KernelCandidates()) {
    std::vector<std::uint16_t> bf16(source.size());
    std::vector<std::uint16_t> fp16(source.size());
    candidate.set.convert(source.data(), Dtype::kBf16, bf16.data(), elems);
    candidate.set.convert(source.data(), Dtype::kFp16, fp16.data(), elems);
    for (std::size_t i = 0; i < source.size(); ++i) {
      ASSERT_EQ(bf16[i], FloatToBf16(source[i]))
          << candidate.name << " of bits "
          << std::bit_cast<std::uint32_t>(source[i]);
      ASSERT_EQ(fp16[i], FloatToFp16(source[i]))
          << candidate.name << " of bits "
          << std::bit_cast<std::uint32_t>(source[i]);
    }
  }
}

TEST(KernelIdentity, EverySixteenBitValueWidensAsCommonDtypeDoes) {
  std::vector<std::uint16_t> slot(0x10000);
  for (std::size_t i = 0; i < slot.size(); ++i) {
    slot[i] = static_cast<std::uint16_t>(i);
  }
  const std::vector<const void*> slots = {slot.data()};
  for (const KernelCandidate& candidate : KernelCandidates()) {
    for (const Dtype dtype : {Dtype::kFp16, Dtype::kBf16}) {
      std::vector<float> sum(slot.size());
      candidate.set.accumulate(slots, dtype, true, sum.data(), 0x10000);
      for (std::size_t i = 0; i < slot.size(); ++i) {
        const float expected =
            dtype == Dtype::kFp16 ? Fp16ToFloat(slot[i]) : Bf16ToFloat(slot[i]);
        const auto got = std::bit_cast<std::uint32_t>(sum[i]);
        ASSERT_EQ(got, std::isnan(expected)
                           ? 0x7fc00000U
                           : std::bit_cast<std::uint32_t>(expected))
            << candidate.name << " " << DtypeName(dtype) << " bits " << i;
      }
    }
  }
}

}  // namespace
}  // namespace stowage::optim
