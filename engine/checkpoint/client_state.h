// What a trainer keeps with each committed step so that a restart goes on as
// if never stopped: the bytes of ApplyArgs::client_state.
//
// Little-endian: "SWCS", version, then fields in the order below, strings and
// lists with a 32-bit length. Version 2 has random_seed at the end, version 1
// has not. The server stores them without looking inside.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/job_spec.h"

namespace stowage::engine {

struct ClientState {
  std::int64_t skipped_steps = 0;
  std::int64_t global_samples = 0;  // seen, skipped steps included
  std::string loss_scaler;          // precision::LossScaler::Serialize()
  std::vector<std::int32_t> trace;  // unit uses of one pass; may be empty
  std::string user;                 // the trainer's own (data position, ...)
  // What ended the step that this state is kept with, without the state itself;
  // a node that was cut off before it ends the step so, too. No groups: not
  // told (version 1).
  ApplyArgs last_apply;
  // Of the draws in forwards (dropout); absent in version 1.
  std::optional<std::uint64_t> random_seed;

  std::string Serialize() const;
  // Errors: kDataLoss for bytes that are not a client state of a known
  //   version, or end early.
  static absl::StatusOr<ClientState> Parse(std::string_view bytes);
};

}  // namespace stowage::engine
