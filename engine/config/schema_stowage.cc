#include "engine/config/schema.h"

namespace stowage::engine::config {
namespace {

using enum KeyType;

constexpr Key kKeys[] = {
    {.path = "stowage",
     .type = kBlock,
     .effect = "settings of our own, which DeepSpeed does not have",
     .difference = "ours; DeepSpeed ignores the block"},
    {.path = "stowage.server",
     .type = kString,
     .def = "\"\"",
     .effect = "address, \"unix:/path\" or \"host:port\"; empty: a private "
               "server"},
    {.path = "stowage.job",
     .type = kString,
     .def = "\"\"",
     .effect = "name of the job in the server; empty: the trainer chooses"},
    {.path = "stowage.durability",
     .type = kEnum,
     .def = "\"memory\"",
     .choices = "memory|process|power",
     .effect = "what each committed step survives: memory: the trainer, and "
               "on nvme the server's orderly end; power: a power loss at any "
               "instant, which needs nvme; process: not there yet",
     .tests = "CheckSupported.NamesWhatIsNotThereYet"},
    {.path = "stowage.memory_budget",
     .type = kBytes,
     .def = "0",
     .min = 0,
     .effect = "hard limit of the memory for this job, the server's own 32 "
               "MiB and its segments in tmpfs included; with nvme what is left "
               "over becomes cache; 0: the server's own limit, and no cache"},
    {.path = "stowage.nvme_budget",
     .type = kBytes,
     .def = "0",
     .min = 0,
     .needs = Needs::kAnyNvme,
     .effect = "bytes of disk the job may use; 0: what is free"},
    {.path = "stowage.kept_steps",
     .type = kInt,
     .def = "1",
     .min = 1,
     .max = 63,
     .needs = Needs::kAnyNvme,
     .effect = "committed steps kept on disk, to which stowctl job rewind can "
               "return"},
    {.path = "stowage.nvme_paths",
     .type = kStrings,
     .needs = Needs::kAnyNvme,
     .effect = "more folders, one a disk, over which the state is striped "
               "beside nvme_path"},
    {.path = "stowage.exchange",
     .type = kEnum,
     .def = "\"auto\"",
     .choices = "auto|segments|c10d",
     .effect = "how ranks exchange parameters and gradients; auto: segments "
               "on one host",
     .tests = "CheckSupported.NamesWhatIsNotThereYet"},
    {.path = "stowage.server_threads",
     .type = kInt,
     .def = "0",
     .min = 0,
     .max = 1024,
     .effect = "compute threads of a private server; 0: one a core"},
    {.path = "stowage.shm_dir",
     .type = kString,
     .def = "\"\"",
     .effect = "tmpfs folder of a private server's segments; empty: its own "
               "choice"},
    {.path = "stowage.jsonl_monitor",
     .type = kBlock,
     .effect = "one JSON object per step in events.jsonl"},
    {.path = "stowage.jsonl_monitor.enabled",
     .type = kBool,
     .def = "false",
     .effect = "rank 0 writes the file",
     .tests = "JsonlMonitor.OneObjectPerX"},
    {.path = "stowage.jsonl_monitor.output_path",
     .type = kString,
     .def = "\"\"",
     .needs = Needs::kJsonl,
     .effect = "folder of job_name; empty: the working folder"},
    {.path = "stowage.jsonl_monitor.job_name",
     .type = kString,
     .def = "\"DeepSpeedJobName\"",
     .needs = Needs::kJsonl,
     .effect = "folder of the file"},
    {.path = "stowage.wandb_python",
     .type = kString,
     .def = "\"python3\"",
     .needs = Needs::kWandb,
     .effect = "the Python interpreter that has the wandb package",
     .tests = "WandbMonitor.AnInterpreterThatIsNotThereCostsOnlyTheNumbers"},
    {.path = "stowage.compat",
     .type = kBlock,
     .effect = "which of DeepSpeed's versions to follow where they differ"},
    {.path = "stowage.compat.gradient_clipping_default",
     .type = kEnum,
     .def = "\"1.0\"",
     .choices = "1.0|0.0",
     .effect = "what an absent gradient_clipping means: \"1.0\" as since "
               "0.19.3, \"0.0\" as before",
     .tests = "Resolve.AbsentClippingIsOneUnlessCompatSaysZero"},
    {.path = "stowage.compat.steps_per_print_default",
     .type = kEnum,
     .def = "\"never\"",
     .choices = "never|10",
     .effect = "what an absent steps_per_print means: \"never\" as since "
               "0.15.3, \"10\" as before",
     .tests = "Resolve.CompatChoosesTheOlderRelease"},
    {.path = "stowage.compat.warmup_num_steps_below_one",
     .type = kEnum,
     .def = "\"error\"",
     .choices = "error|2",
     .effect = "what a warmup_num_steps below 1 is: \"error\" as since 0.19.6, "
               "\"2\" as before",
     .tests = "Resolve.CompatChoosesTheOlderRelease"},
    {.path = "stowage.compat.cosine_past_total",
     .type = kEnum,
     .def = "\"clamp\"",
     .choices = "clamp|oscillate",
     .effect = "WarmupCosineLR past total_num_steps: \"clamp\" stays at "
               "cos_min_ratio as since 0.19, \"oscillate\" goes up again as "
               "before",
     .tests = "Schedule.OlderReleasesOscillateAndIgnoreStairs"},
    {.path = "stowage.compat.one_cycle_stairs",
     .type = kEnum,
     .def = "\"floor\"",
     .choices = "floor|ignore",
     .effect = "OneCycle's stair counts: \"floor\" as since 0.19, \"ignore\" "
               "as before",
     .tests = "Schedule.OlderReleasesOscillateAndIgnoreStairs"},
};

}  // namespace

std::span<const Key> StowageKeys() { return kKeys; }

}  // namespace stowage::engine::config
