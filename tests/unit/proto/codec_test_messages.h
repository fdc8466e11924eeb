// Well-formed messages that the codec tests spoil one field at a time.

#pragma once

#include <string>

#include "common/job_spec.h"

namespace stowage::proto {

inline JobSpec GoodJob() {
  JobSpec job;
  job.name = "gpt-25m.run_1";
  job.layout.param_dtype = Dtype::kBf16;
  job.layout.groups = {{"decay", false}, {"frozen", true}};
  job.layout.units = {{"embed", {{"embed.weight", {50, 8}, 0}}},
                      {"block", {{"w", {8, 8}, 0}, {"scalar", {}, 1}}}};
  job.optimizer.decoupled_weight_decay = false;
  job.durability = Durability::kPower;
  return job;
}

inline RunSpec GoodRun() {
  RunSpec run;
  run.nonce = std::string("0123456789\0abcdef", 17);
  run.world_size = 4;
  run.local_ranks = 2;
  run.micro_steps = 3;
  return run;
}

inline AttachInfo GoodAttachInfo() {
  AttachInfo info;
  info.job_id = 7;
  info.epoch = 3;
  info.initialized = true;
  info.step = 12;
  info.applied_steps = 11;
  info.client_state = std::string("\0\xff", 2);
  info.slots_per_rank = 3;
  info.slots_are_ring = true;
  info.shm_dir = "/dev/shm/stowage";
  info.param_segment = "stowage-a-b.params";
  info.gradient_segment = "stowage-a-b.g0";
  return info;
}

inline ApplyArgs GoodApply() {
  ApplyArgs args;
  args.step = 5;
  args.gradient_factor = 1.0 / 1024;
  args.groups = {{1e-3, 0.9, 0.95, 1e-8, 0.1}, {2e-3, 0.8, 0.99, 0, 0}};
  args.client_state = "scaler";
  return args;
}

}  // namespace stowage::proto
