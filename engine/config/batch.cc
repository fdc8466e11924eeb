#include "engine/config/batch.h"

#include <limits>
#include <string>
#include <string_view>

#include "absl/status/status.h"
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

}  // namespace

absl::StatusOr<Batch> ResolveBatch(const BatchGiven& given,
                                   std::int64_t world_size) {
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
    if (const absl::Status status = MustBePositive(key, *value, "");
        !status.ok()) {
      return status;
    }
  }
  Batch batch;
  std::string micro_how;
  std::string accumulation_how;
  batch.accumulation = given.accumulation.value_or(1);
  if (given.train) {
    batch.train = *given.train;
    if (given.micro) {
      batch.micro = *given.micro;
      if (!given.accumulation) {
        batch.accumulation = batch.train / batch.micro / world_size;
        accumulation_how =
            Cat(", inferred as train_batch_size ", batch.train,
                " / train_micro_batch_size_per_gpu ", batch.micro,
                " / world size ", world_size, ", rounded down");
      }
    } else {
      batch.micro = batch.train / world_size / batch.accumulation;
      micro_how =
          Cat(", inferred as train_batch_size ", batch.train, " / world size ",
              world_size,
              given.accumulation
                  ? Cat(" / gradient_accumulation_steps ", batch.accumulation)
                  : "",
              ", rounded down");
    }
  } else {
    batch.micro = *given.micro;
  }
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
  for (const absl::Status& status :
       {MustBePositive("train_micro_batch_size_per_gpu", batch.micro,
                       micro_how),
        MustBePositive("gradient_accumulation_steps", batch.accumulation,
                       accumulation_how)}) {
    if (!status.ok()) return status;
  }
  if (batch.train != *product) {
    return absl::InvalidArgumentError(Cat(
        "train_batch_size does not factor: ", batch.train, " != ", batch.micro,
        " (train_micro_batch_size_per_gpu) * ", batch.accumulation,
        " (gradient_accumulation_steps", accumulation_how, ") * ", world_size,
        " (world size) = ", *product));
  }
  return batch;
}

}  // namespace stowage::engine::config
