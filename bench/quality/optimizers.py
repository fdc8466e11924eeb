#!/usr/bin/env python3
"""Final losses of the optimizers on real text, side by side.

Each comparison trains the same small GPT on the same bytes for the same number
of samples, with two learning rates for each side (every side gets as many
tries as the other) and takes each side's best; the final loss is the mean over
the last twentieth of a run's steps. Prints one JSON object.

  one_bit   OneBitAdam, frozen after a fifth of the steps, against Adam
  lamb      Lamb at 8 times the batch and an eighth of the steps against AdamW
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")

# What is frozen after a fifth of the steps is to be a variance: with the usual
# 0.999 and no bias correction it has seen a fifth of itself by then.
ONE_BIT_BETAS = [0.9, 0.97]

MODEL = ["--layers", "2", "--width", "128", "--heads", "4", "--context", "64",
         "--sample-bytes", "0", "--seed", "7"]


def final_loss(args, optimizer, stage, steps, batch, folder):
    config = os.path.join(folder, "config.json")
    with open(config, "w") as file:
        json.dump({"train_batch_size": "auto",
                   "train_micro_batch_size_per_gpu": "auto",
                   "gradient_accumulation_steps": "auto",
                   "gradient_clipping": 1.0,
                   "optimizer": optimizer,
                   "scheduler": {"type": "WarmupCosineLR",
                                 "params": {"total_num_steps": steps,
                                            "warmup_num_steps":
                                                max(2, steps // 20)}},
                   "zero_optimization": {
                       "stage": stage,
                       "offload_optimizer": {"device": "cpu"}}}, file)
    trace = os.path.join(folder, "trace")
    if os.path.exists(trace):
        os.remove(trace)
    out = subprocess.run(
        [os.path.join(args.bin, "stow-train"), "--config", config, "--data",
         args.data, *MODEL, "--ranks", "2", "--train-batch", str(batch),
         "--steps", str(steps), "--trace", trace, "--log-level", "warning"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if out.returncode != 0:
        sys.exit(f"optimizers.py: {optimizer}: {out.stderr.strip()}")
    with open(trace) as file:
        losses = [json.loads(line)["loss"] for line in file]
    tail = max(5, steps // 20)
    return statistics.mean(losses[-tail:]), losses[0]


def best(args, name, make, stage, steps, batch, folder):
    tries = []
    for lr in args.rates[name]:
        loss, first = final_loss(args, make(lr), stage, steps, batch, folder)
        tries.append({"lr": lr, "loss": round(loss, 4)})
        print(f"{name}: lr {lr}: {first:.3f} -> {loss:.4f}", file=sys.stderr,
              flush=True)
    return {"best": min(t["loss"] for t in tries), "tries": tries,
            "steps": steps, "batch": batch}


def compare(args, names, folder):
    one_bit = names[0] == "adam"
    steps = args.steps if one_bit else args.lamb_steps
    batch = args.batch if one_bit else args.lamb_batch
    makes = {
        "adam": lambda lr: {"type": "Adam",
                            "params": {"lr": lr, "betas": ONE_BIT_BETAS}},
        "one_bit_adam": lambda lr: {
            "type": "OneBitAdam",
            "params": {"lr": lr, "betas": ONE_BIT_BETAS,
                       "freeze_step": steps // 5}},
        "adamw": lambda lr: {"type": "AdamW",
                             "params": {"lr": lr, "weight_decay": 0.01}},
        "lamb": lambda lr: {"type": "Lamb",
                            "params": {"lr": lr, "weight_decay": 0.01}},
    }
    sides = []
    for name in names:
        large = name == "lamb"
        sides.append(best(args, name, makes[name],
                          0 if name == "one_bit_adam" else 1,
                          steps // 8 if large else steps,
                          batch * 8 if large else batch, folder))
    excess = sides[1]["best"] / sides[0]["best"] - 1
    return {names[0]: sides[0], names[1]: sides[1],
            "excess": round(excess, 4), "within_2_percent": excess <= 0.02}


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--data", required=True, help="a text, e.g. tools/default_text's")
    a.add_argument("--bin", default=os.path.join(ROOT, "build/release/bin"))
    a.add_argument("--steps", type=int, default=1000)
    a.add_argument("--batch", type=int, default=8)
    # A small batch, whose noise is what a larger one wins by.
    a.add_argument("--lamb-steps", type=int, default=3000, help="of AdamW; Lamb has an eighth")
    a.add_argument("--lamb-batch", type=int, default=2, help="of AdamW; Lamb's is 8 times it")
    a.add_argument("--only", choices=("one_bit", "lamb", "both"), default="both")
    args = a.parse_args()
    args.rates = {"adam": (1e-3, 3e-3), "one_bit_adam": (1e-3, 3e-3),
                  "adamw": (1e-3, 2e-3), "lamb": (2e-2, 4e-2)}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "lamb":
            results["one_bit"] = compare(args, ("adam", "one_bit_adam"), folder)
        if args.only != "one_bit":
            results["lamb"] = compare(args, ("adamw", "lamb"), folder)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
