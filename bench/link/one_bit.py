#!/usr/bin/env python3
"""A training step over a limited link: OneBitAdam after its freeze against Adam.

Two network namespaces joined by a veth pair, both ends limited with tc (token
bucket), a rank of stow-train in each: stage 0, nothing offloaded, bf16, so that
a step of Adam sends whole gradients. Sides take turns; prints one JSON object
with the steps' times and what rank 0 counted as sent. Needs root, ip and tc;
removes what it made.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NAMES = (f"stowage-{os.getpid()}-0", f"stowage-{os.getpid()}-1")
FREEZE = 3


def run(*command):
    subprocess.run(command, check=True)


def make_link(rate):
    run("ip", "netns", "add", NAMES[0])
    run("ip", "netns", "add", NAMES[1])
    run("ip", "link", "add", "stw0", "netns", NAMES[0], "type", "veth", "peer",
        "name", "stw1", "netns", NAMES[1])
    for i, name in enumerate(NAMES):
        inside = ("ip", "netns", "exec", name)
        run(*inside, "ip", "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"stw{i}")
        run(*inside, "ip", "link", "set", "lo", "up")
        run(*inside, "ip", "link", "set", f"stw{i}", "up")
        run(*inside, "tc", "qdisc", "add", "dev", f"stw{i}", "root", "tbf", "rate",
            rate, "burst", "64kbit", "latency", "100ms")


def train(options, kind, steps, folder):
    """Times of the steps after the freeze, in ms, and rank 0's counts of all."""
    params = {"lr": 1e-3}
    if kind != "Adam":
        params["freeze_step"] = FREEZE
    config = f"{folder}/{kind}.json"
    with open(config, "w") as file:
        json.dump({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
                   "gradient_accumulation_steps": 1, "bf16": {"enabled": True},
                   "optimizer": {"type": kind, "params": params},
                   "zero_optimization": {"stage": 0}}, file)
    trace = f"{folder}/trace"
    if os.path.exists(trace):
        os.unlink(trace)
    ranks = []
    for rank, name in enumerate(NAMES):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2",
               "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29700",
               "GLOO_SOCKET_IFNAME": f"stw{rank}", "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen(
            ["ip", "netns", "exec", name, str(ROOT / "build/release/bin/stow-train"),
             "--config", config, "--data", options.data, "--layers", str(options.layers),
             "--width", str(options.width), "--heads", str(options.width // 64), "--context", "64",
             "--micro-batch", "1", "--steps", str(steps), "--sample-bytes", "0", "--no-weights",
             "--log-level", "error", "--trace", trace, "--out", f"{folder}/{kind}"],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
    if any([rank.wait(timeout=900) for rank in ranks]):
        sys.exit(f"one_bit.py: {kind}: a rank failed")
    with open(trace) as file:
        ms = [json.loads(line)["ms"] for line in file]
    with open(f"{folder}/{kind}/summary.json") as file:
        summary = json.load(file)
    return ms[FREEZE + 1:], summary["exchange"]["reduce_bytes"], summary["parameters"]


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--data", required=True, help="a text, e.g. tools/default_text's")
    a.add_argument("--rate", default="100mbit", help="tc's words")
    a.add_argument("--layers", type=int, default=6)
    a.add_argument("--width", type=int, default=256)
    a.add_argument("--steps", type=int, default=14)
    a.add_argument("--rounds", type=int, default=3)
    options = a.parse_args()
    times, bytes_a_step = {}, {}
    try:
        make_link(options.rate)
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(options.rounds):
                for kind in ("Adam", "OneBitAdam"):
                    ms, sent, parameters = train(options, kind, options.steps, folder)
                    times.setdefault(kind, []).append(statistics.median(ms))
                    # What the warm-up sent is Adam's a step.
                    if kind == "Adam":
                        bytes_a_step[kind] = sent / options.steps
                    else:
                        warm = bytes_a_step["Adam"] * FREEZE
                        bytes_a_step[kind] = (sent - warm) / (options.steps - FREEZE)
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
    ratios = [x / y for x, y in zip(times["Adam"], times["OneBitAdam"])]
    print(json.dumps({
        "rate": options.rate, "parameters": parameters, "rounds": options.rounds,
        "step_ms": {k: [round(v, 1) for v in values] for k, values in times.items()},
        "sent_bytes_a_step": {k: round(v) for k, v in bytes_a_step.items()},
        "less_bytes": round(bytes_a_step["Adam"] / bytes_a_step["OneBitAdam"], 2),
        "faster": {"min": round(min(ratios), 2), "median": round(statistics.median(ratios), 2),
                   "max": round(max(ratios), 2)}}))


if __name__ == "__main__":
    main()
