#include "engine/config/batch.h"

#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

// The product, or nothing if it does not fit.
std::optional<std::int64_t> Product(std::int64_t a, std::int64_t b,
                                    std::int64_t c) {
  std::int64_t ab = 0;
  std::int64_t abc = 0;
  if (__builtin_mul_overflow(a, b, &ab) ||
      __builtin_mul_overflow(ab, c, &abc)) {
    return std::nullopt;
  }
  return abc;
}

absl::Status MustBePositive(std::string_view key, std::int64_t value,
                            const std::string& how) {
  if (value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat(key, " = ", value, how, ": it has to be greater than 0"));
}

// What was given is usable by itself.
absl::Status CheckGiven(const BatchGiven& given, std::int64_t world_size) {
  if (world_size < 1) {
    return absl::InvalidArgumentError(
        Cat("world size = ", world_size, ": expected at least 1"));
  }
  if (!given.train && !given.micro) {
    return absl::InvalidArgumentError(
        "train_batch_size or train_micro_batch_size_per_gpu has to be given "
        "(train_batch_size = train_micro_batch_size_per_gpu * "
        "gradient_accumulation_steps * world size)");
  }
  for (const auto& [key, value] :
       {std::pair{"train_batch_size", given.train},
        std::pair{"train_micro_batch_size_per_gpu", given.micro},
        std::pair{"gradient_accumulation_steps", given.accumulation}}) {
    if (!value) continue;
    STOWAGE_RETURN_IF_ERROR(MustBePositive(key, *value, ""));
  }
  return absl::OkStatus();
}

// How a value came about, for its error.
struct Inferred {
  std::string micro;
  std::string accumulation;
};

// Fills micro and accumulation; train only where it was given.
Batch Infer(const BatchGiven& given, std::int64_t world_size, Inferred* how) {
  Batch batch;
  batch.accumulation = given.accumulation.value_or(1);
  if (!given.train) {
    batch.micro = *given.micro;
    return batch;
  }
  batch.train = *given.train;
  if (!given.micro) {
    batch.micro = batch.train / world_size / batch.accumulation;
    how->micro = Cat(", inferred as train_batch_size ", batch.train,
                     " / world size ", world_size,
                     given.accumulation ? Cat(" / gradient_accumulation_steps ",
                                              batch.accumulation)
                                        : "",
                     ", rounded down");
    return batch;
  }
  batch.micro = *given.micro;
  if (!given.accumulation) {
    batch.accumulation = batch.train / batch.micro / world_size;
    how->accumulation = Cat(", inferred as train_batch_size ", batch.train,
                            " / train_micro_batch_size_per_gpu ", batch.micro,
                            " / world size ", world_size, ", rounded down");
  }
  return batch;
}

}  // namespace

absl::StatusOr<Batch> ResolveBatch(const BatchGiven& given,
                                   std::int64_t world_size) {
  STOWAGE_RETURN_IF_ERROR(CheckGiven(given, world_size));
  Inferred how;
  Batch batch = Infer(given, world_size, &how);
  const std::optional<std::int64_t> product =
      Product(batch.micro, batch.accumulation, world_size);
  if (!product) {
    return absl::InvalidArgumentError(
        Cat("train_micro_batch_size_per_gpu ", batch.micro,
            " * gradient_accumulation_steps ", batch.accumulation,
            " * world size ", world_size, " is more than ",
            std::numeric_limits<std::int64_t>::max()));
  }
  if (!given.train) batch.train = *product;
  STOWAGE_RETURN_IF_ERROR(
      MustBePositive("train_micro_batch_size_per_gpu", batch.micro, how.micro));
  STOWAGE_RETURN_IF_ERROR(MustBePositive("gradient_accumulation_steps",
                                         batch.accumulation, how.accumulation));
  if (batch.train != *product) {
    return absl::InvalidArgumentError(Cat(
        "train_batch_size does not factor: ", batch.train, " != ", batch.micro,
        " (train_micro_batch_size_per_gpu) * ", batch.accumulation,
        " (gradient_accumulation_steps", how.accumulation, ") * ", world_size,
        " (world size) = ", *product));
  }
  return batch;
}

}  // namespace stowage::engine::config
