#!/usr/bin/env python3
"""What a save costs: Stowage's and DeepSpeed's of the same GPT, in the same run.

Ours: stow-train saves every few steps while it trains on. The pause of a save is
the request and what the job stood still for between two steps; steps that ran
beside a save are counted apart. DeepSpeed's: save_checkpoint() between two steps,
on all ranks, from call to return. Loading is from the call (ours: the server's
reading of the files) to the end, files in the page cache on both sides. Export is
measured by the peak of its own memory. Prints one JSON object.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import machine
import sides


def summary(values) -> dict:
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3),
            "max": round(max(values), 3), "count": len(values)}


def shape(options) -> list:
    return ["--layers", options.layers, "--width", options.width, "--heads", options.heads,
            "--context", options.context, "--ranks", 2, "--micro-batch", 1, "--seed", 7]


def run(command, log) -> str:
    env = sides.training_environment(True)
    with open(log, "w") as out:
        done = subprocess.run([str(c) for c in command], env=env, stdin=subprocess.DEVNULL,
                              stdout=out, stderr=subprocess.STDOUT, timeout=900)
    text = pathlib.Path(log).read_text()
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}: {text[-600:]}")
    return text


def ours(options, folder) -> dict:
    config = f"{folder}/config.json"
    with open(config, "w") as out:
        json.dump({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
                   "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
                   "bf16": {"enabled": True},
                   "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "weight_decay": 0.0}},
                   "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, out)
    save = f"{folder}/ours"
    trace = f"{folder}/trace"
    begin = time.perf_counter()
    log = run([sides.BUILD / "bin" / "stow-train", "--config", config, "--data", options.data,
               *shape(options), "--steps", options.steps, "--sample-bytes", 0, "--no-weights",
               "--trace", trace, "--save", save, "--save-every", options.save_every, "--save-keep",
               1, "--warmup-steps", 1], f"{folder}/ours.log")
    wall = time.perf_counter() - begin
    pauses, lengths = [], []
    for match in re.finditer(r"step \d+ saved to .*? in ([\d.]+) s, .*?still for ([\d.]+) ms; updates "
                             r"copied (.*?) and waited ([\d.]+) s", log):
        lengths.append(float(match.group(1)) * 1e3)
        pauses.append(float(match.group(2)))
    steps = [json.loads(line) for line in open(trace)]
    beside, alone = [], []
    for entry in steps[options.warmup:]:
        # A save begins after the step that it is of, and may last for some.
        since = entry["step"] % options.save_every
        (beside if since == 1 and entry["step"] > options.save_every else alone).append(entry["ms"])
    # Ours are written past the page cache, DeepSpeed's are still in it.
    for file in pathlib.Path(find(save)).iterdir():
        file.read_bytes()
    server_log = f"{folder}/stowd.log"
    with open(server_log, "w") as out:
        server = subprocess.Popen([sides.BUILD / "bin" / "stowd", "--listen",
                                   f"unix:{folder}/run/s", "--export-root", folder],
                                  stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        while "ready address" not in pathlib.Path(server_log).read_text():
            time.sleep(0.05)
        run([sides.BUILD / "bin" / "stow-train", "--config", config, "--data", options.data,
             *shape(options), "--steps", options.steps + 1, "--sample-bytes", 0, "--no-weights",
             "--resume", find(save), "--warmup-steps", 1, "--server", f"unix:{folder}/run/s",
             "--job", "loaded"], f"{folder}/ours-load.log")
    finally:
        server.terminate()
        server.wait()
    loaded = re.search(r"checkpoint_loaded.*?seconds=([\d.]+)", pathlib.Path(server_log).read_text())
    exported = f"{folder}/exported"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    export = subprocess.run(["/usr/bin/time", "-f", "%M", str(sides.BUILD / "bin" / "stowctl"),
                             "export", save, exported], capture_output=True, text=True)
    peak = int(export.stderr.split()[-1]) * 1024 if export.returncode == 0 else before
    size = sum(f.stat().st_size for f in pathlib.Path(find(save)).iterdir())
    return {"pause_ms": summary(pauses), "save_ms": summary(lengths), "bytes": size,
            "step_ms_beside_a_save": summary(beside), "step_ms_alone": summary(alone),
            "load_ms": float(loaded.group(1)) * 1e3 if loaded else None,
            "export_peak_bytes": peak,
            "largest_tensor_bytes": 4 * options.width * options.width * 4,
            "wall_s": round(wall, 1)}


def find(folder) -> str:
    return str(max(p for p in pathlib.Path(folder).iterdir() if p.name.startswith("step-")))


def deepspeed(options, folder) -> dict:
    saves = list(range(options.save_every, options.steps + 1, options.save_every))
    common = ["--data", options.data, *shape(options), "--precision", "bf16", "--stage", 2,
              "--lr", "3e-4"]
    first = sides.peer("checkpoint_deepspeed.py", *map(str, [
        *common, "--steps", options.steps, "--save", f"{folder}/ds", "--save-at", *saves]))
    second = sides.peer("checkpoint_deepspeed.py", *map(str, [
        *common, "--steps", options.steps + 1, "--load", f"{folder}/ds"]))
    size = sum(f.stat().st_size for f in pathlib.Path(f"{folder}/ds").rglob("*") if f.is_file())
    return {"pause_ms": summary(first["save_ms"]), "load_ms": second["load_ms"][0],
            "step_ms_alone": summary(first["step_ms"][options.warmup:]),
            "bytes_a_save": size // len(saves), "version": first["version"]}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--json", type=pathlib.Path, metavar="F", help="the result, too")
    p.add_argument("--data", required=True, help=argparse.SUPPRESS)
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--heads", type=int, default=12)
    p.add_argument("--context", type=int, default=64)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--warmup", type=int, default=3)
    p.add_argument("--save-every", type=int, default=5)
    p.add_argument("--folder", default=None, help="where both save; default: a temporary one")
    options = p.parse_args()
    folder = tempfile.mkdtemp(prefix="stowage-bench-", dir=options.folder)
    try:
        out = {"machine": machine.describe(),
               "shape": [options.layers, options.width, options.context],
               "ours": ours(options, folder)}
        try:
            out["deepspeed"] = deepspeed(options, folder)
            out["pause_ratio_of_medians"] = round(
                out["deepspeed"]["pause_ms"]["median"] / out["ours"]["pause_ms"]["median"], 1)
        except sides.Unavailable as why:
            out["deepspeed"] = {"unavailable": str(why)}
        text = json.dumps(out, indent=1)
        print(text)
        if options.json:
            options.json.write_text(text + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
