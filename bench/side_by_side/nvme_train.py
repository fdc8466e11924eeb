"""Training with state on NVMe: ours against the disk's bound and DeepSpeed.

A run of ours is a fresh stowd and a fresh job; what it moved is what the server
counted over the timed steps. Between runs fio measures the mixed rate in the
files that the last job left (the job is dropped afterwards), so each run has a
figure of the disk from just before and just after it.

The bound of a step is backward + max(forward, disk bytes / mixed rate): the
optimizer's bytes can hide behind the next forward and behind nothing else.
Forward and backward are the run's own, what they waited for the disk taken off
the forward; the same two of a run in memory are printed beside them.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

import sides

MIB = float(1 << 20)
SMALL = sides.Model("25M", 8, 512, 1)
LARGE = sides.Model("85M", 12, 768, 1)
WARMUP = 3
WINDOWS = 8  # of sub_group_size elements, 12 MB each
SERVER_OWN_BYTES = 32 << 20  # kServerOwnBytes of server/core/memory_plan.h


class Place:
    """What a run keeps where. `budget`: bytes, or None for slots only."""

    def __init__(self, name, durability="power", budget=None, memory=False):
        self.name, self.durability = name, durability
        self.budget, self.memory = budget, memory

    def config(self, disk) -> dict:
        optimizer, param, stowage = {"device": "cpu"}, {"device": "cpu"}, {"durability": "memory"}
        if not self.memory:
            nvme = {"device": "nvme", "nvme_path": str(disk)}
            optimizer = {**nvme, "buffer_count": WINDOWS, "pipeline_read": True, "pipeline_write": True}
            param = {**nvme, "buffer_count": 5, "max_in_cpu": 0 if self.budget is None else 10**9}
            stowage = {"durability": self.durability, "kept_steps": 1}
            if self.budget is not None:
                stowage["memory_budget"] = self.budget
        return {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto", "gradient_clipping": 1.0,
                "bf16": {"enabled": "auto"},
                "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "weight_decay": 0.01}},
                "zero_optimization": {"stage": 3, "sub_group_size": 1e6, "offload_optimizer": optimizer,
                                      "offload_param": param},
                "aio": {"block_size": 1 << 20, "queue_depth": 32, "overlap_events": True},
                "stowage": stowage}


@contextlib.contextmanager
def server(folder, disk):
    """A stowd of its own; yields (address, function that returns its only job)."""
    shm = tempfile.mkdtemp(prefix="stowage-bench-", dir="/dev/shm")
    os.makedirs(f"{folder}/run", mode=0o700, exist_ok=True)
    address = f"unix:{folder}/run/s"
    log = open(f"{folder}/stowd.log", "ab")
    process = subprocess.Popen([sides.BUILD / "bin" / "stowd", "--listen", address, "--shm-dir", shm,
                                "--nvme-root", str(disk), "--log-level", "error"],
                               stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ctl(*arguments):
        return subprocess.run([sides.BUILD / "bin" / "stowctl", "--server", address, *arguments],
                              capture_output=True, text=True)

    def job():
        return json.loads(ctl("jobs", "--json").stdout)[0]

    try:
        for _ in range(500):
            if ctl("info").returncode == 0:
                break
            time.sleep(0.02)
        yield address, job, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(shm, ignore_errors=True)
        log.close()


def ours(model, place, steps, data, disk, wide, leave_files=False) -> dict:
    """Medians over `steps` timed steps, and the bytes a step moved."""
    shutil.rmtree(disk, ignore_errors=True)
    pathlib.Path(disk).mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="stowage-bench-") as folder, \
            server(folder, disk) as (address, job, _):
        config, trace = f"{folder}/config.json", f"{folder}/trace"
        pathlib.Path(config).write_text(json.dumps(place.config(disk)))

        def train(until):
            sides.run([sides.BUILD / "bin" / "stow-train", "--config", config, "--data", data,
                       "--precision", "bf16", "--lr", 3e-4, "--max-grad-norm", 1, "--warmup-steps", 5,
                       "--steps", until, "--sample-bytes", 0, "--no-weights", "--log-level", "error",
                       "--server", address, "--job", "bench", "--keep", "--trace", trace,
                       *sides.training_flags(model)], sides.training_environment(wide))
            return job()

        before = train(WARMUP)
        after = train(WARMUP + steps + WARMUP)
        lines = [json.loads(line) for line in open(trace)][-steps:]
    moved = {way: (after[f"disk_bytes_{way}"] - before[f"disk_bytes_{way}"]) / (steps + WARMUP)
             for way in ("read", "written")}
    mid = {k: statistics.median(line[k] for line in lines)
           for k in ("ms", "forward_ms", "backward_ms", "wait_params_ms", "step_ms")}
    if not leave_files:
        shutil.rmtree(disk, ignore_errors=True)
    return {"model": model.name, "place": place.name, "parameters": after["parameters"], **mid,
            "ms_all": [line["ms"] for line in lines], "read_bytes": moved["read"],
            "written_bytes": moved["written"], "final_loss": lines[-1]["loss"],
            "state_bytes": after["state_bytes"], "param_bytes": after["param_bytes"],
            "gradient_bytes": after["gradient_bytes"], "cache_bytes": after["cache_bytes"],
            "io": after["io"]}


def files_of(disk) -> dict:
    """The largest file of the job that a run left: fio may have it."""
    file = max(pathlib.Path(disk).rglob("state.*"), key=lambda f: f.stat().st_size)
    return {"file": str(file), "free_offset_bytes": 0, "free_bytes": file.stat().st_size}


def bound_ms(run, rate_mib_s) -> float:
    disk_ms = (run["read_bytes"] + run["written_bytes"]) / MIB / rate_mib_s * 1e3
    forward = max(0.0, run["forward_ms"] - run["wait_params_ms"])
    return run["backward_ms"] + max(forward, disk_ms)


def budget_with(run, state_share) -> int:
    """Bytes with which a job of that run keeps this share of its state in memory."""
    return int(SERVER_OWN_BYTES + run["gradient_bytes"] + 2 * run["parameters"] + (8 << 20) +
               run["state_bytes"] - run["cache_bytes"] + state_share * 12 * run["parameters"])


def against_bound(options, model, durability, data, fio) -> dict:
    """fio, ours, fio, ours, ...: each run of ours has the mean of its two."""
    disk = pathlib.Path(options.path) / "train"
    place = Place(f"slots only, {durability}", durability)
    ours(model, place, 1, data, disk, options.wide, leave_files=True)
    rate = fio(options, "mixed", files_of(disk))["rate"]
    runs = []
    for pair in range(options.pairs):
        run = ours(model, place, options.steps, data, disk, options.wide, leave_files=True)
        after = fio(options, "mixed", files_of(disk))["rate"]
        mixed = (rate + after) / 2
        rate = after
        run.update(mixed_mib_s=mixed, bound_ms=bound_ms(run, mixed))
        run["ratio"] = run["ms"] / run["bound_ms"]
        runs.append(run)
        options.say(f"{model.name} {durability} pair {pair + 1}: step {run['ms']:.0f} ms (forward "
                    f"{run['forward_ms']:.0f}, of it waiting {run['wait_params_ms']:.0f}; backward "
                    f"{run['backward_ms']:.0f}), {(run['read_bytes'] + run['written_bytes']) / MIB:.0f} MiB, "
                    f"mixed {mixed:.0f} MiB/s, bound {run['bound_ms']:.0f} ms, ratio {run['ratio']:.3f}")
    shutil.rmtree(disk, ignore_errors=True)
    return {"model": model.name, "durability": durability, "windows": WINDOWS, "runs": runs,
            **{k: statistics.median(r[k] for r in runs)
               for k in ("ms", "forward_ms", "backward_ms", "wait_params_ms", "bound_ms", "mixed_mib_s", "ratio")}}


# --- DeepSpeed ---------------------------------------------------------------

PIPELINES = {"both": 12, "read": 8, "write": 8, "none": 4}  # buffers that each needs


def peer(model, steps, data, disk, wide, sub_group, pipeline="both", malloc="default") -> dict:
    shutil.rmtree(disk, ignore_errors=True)
    pathlib.Path(disk).mkdir(parents=True)
    got = sides.peer("train_deepspeed.py", *sides.peer_arguments(
        model, sides.Length(WARMUP, steps), data, wide, malloc),
        "--offload", "nvme", "--nvme-path", str(disk), "--sub-group-size", str(int(sub_group)),
        "--pipeline", pipeline, "--buffer-count", str(PIPELINES[pipeline]))
    shutil.rmtree(disk, ignore_errors=True)
    return got


def tune(options, model, data) -> dict:
    """The best of sub_group_size and pipelining for DeepSpeed; all that was tried."""
    disk = pathlib.Path(options.path) / "peer"
    per_rank = model.layers * 12 * model.width ** 2 / 2
    tried = []
    for pipeline in PIPELINES:
        for share in options.tune_shares:
            sub_group = per_rank * share
            try:
                run = peer(model, 3 if options.quick else 5, data, disk, options.wide, sub_group, pipeline)
                tried.append({"pipeline": pipeline, "sub_group_size": int(sub_group),
                              "step_ms": run["step_ms"]["median"]})
            except sides.Unavailable as why:
                tried.append({"pipeline": pipeline, "sub_group_size": int(sub_group), "failed": str(why)[-300:]})
            options.say(f"DeepSpeed {model.name}: {tried[-1]}")
    best = min((t for t in tried if "step_ms" in t), key=lambda t: t["step_ms"])
    return {"model": model.name, "best": best, "tried": tried}


def against_peer(options, model, tuned, data) -> dict:
    disk = pathlib.Path(options.path) / "train"
    peer_disk = pathlib.Path(options.path) / "peer"
    slots = Place("slots only, power", "power")
    probe = ours(model, Place("probe", "memory"), 1, data, disk, options.wide)
    half = Place("half the state in memory, memory", "memory", budget_with(probe, 0.5))
    rounds = []
    for pair in range(options.pairs):
        sides_ms = {}
        order = [("slots", lambda: ours(model, slots, options.steps, data, disk, options.wide)["ms"]),
                 ("half", lambda: ours(model, half, options.steps, data, disk, options.wide)),
                 ("peer", lambda: peer(model, max(4, options.steps // 2), data, peer_disk, options.wide,
                                       tuned["sub_group_size"], tuned["pipeline"])["step_ms"]["median"])]
        for name, run in order[pair % 3:] + order[:pair % 3]:
            got = run()
            if name == "half":
                sides_ms["half_cached"] = got["cache_bytes"] / 12 / got["parameters"]
                got = got["ms"]
            sides_ms[name] = got
        rounds.append(sides_ms)
        options.say(f"{model.name} round {pair + 1}: DeepSpeed {sides_ms['peer']:.0f} ms, slots only "
                    f"{sides_ms['slots']:.0f} ms ({sides_ms['peer'] / sides_ms['slots']:.2f}x), half in memory "
                    f"({sides_ms['half_cached']:.2f} cached) {sides_ms['half']:.0f} ms "
                    f"({sides_ms['peer'] / sides_ms['half']:.2f}x)")
    return {"model": model.name, "deepspeed": tuned, "rounds": rounds,
            "slots_ratio": statistics.median(r["peer"] / r["slots"] for r in rounds),
            "half_ratio": statistics.median(r["peer"] / r["half"] for r in rounds),
            **{k: statistics.median(r[k] for r in rounds) for k in ("peer", "slots", "half")}}
