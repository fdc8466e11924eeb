#!/usr/bin/env python3
"""Final losses of the optimizers on real text, side by side.

Each comparison trains the same small GPT on the same bytes for the same number
of samples, with three learning rates for each side (every side gets as many
tries as the other) and takes each side's best; the final loss is the mean over
the last twentieth of a run's steps. Prints one JSON object.

  one_bit   OneBitAdam, frozen after a fifth of the steps, against Adam
  lamb      Lamb at 8 times the batch, in an eighth of the steps, against AdamW.
            AdamW's batch is small, so that eight times as large a one still
            leaves 1000 steps. With --lamb-steps 1000 --lamb-batch 8 it leaves
            125, and Lamb ends far behind (docs/optimizers.md).
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


def one_bit(args, folder):
    def make(kind, **more):
        return lambda lr: {"type": kind, "params": {"lr": lr, "betas": ONE_BIT_BETAS, **more}}

    adam = best(args, "adam", make("Adam"), 1, args.steps, args.batch, folder)
    signs = best(args, "one_bit_adam", make("OneBitAdam", freeze_step=args.steps // 5), 0,
                 args.steps, args.batch, folder)
    return {"adam": adam, "one_bit_adam": signs, "excess": excess(signs, adam)}


def lamb(args, folder):
    def make(kind):
        return lambda lr: {"type": kind, "params": {"lr": lr, "weight_decay": 0.01}}

    adamw = best(args, "adamw", make("AdamW"), 1, args.lamb_steps, args.lamb_batch, folder)
    large = best(args, "lamb", make("Lamb"), 1, args.lamb_steps // 8, 8 * args.lamb_batch, folder)
    return {"adamw": adamw, "lamb": large, "excess": excess(large, adamw)}


def excess(ours, theirs):
    return round(ours["best"] / theirs["best"] - 1, 4)


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--data", required=True, help="a text, e.g. tools/default_text's")
    a.add_argument("--bin", default=os.path.join(ROOT, "build/release/bin"))
    a.add_argument("--steps", type=int, default=1000)
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--lamb-steps", type=int, default=8000, help="of AdamW beside Lamb")
    a.add_argument("--lamb-batch", type=int, default=2, help="of AdamW beside Lamb")
    a.add_argument("--only", choices=("one_bit", "lamb", "both"), default="both")
    args = a.parse_args()
    args.rates = {"adam": (1e-3, 2e-3, 3e-3), "one_bit_adam": (1e-3, 2e-3, 3e-3),
                  "adamw": (5e-4, 1e-3, 2e-3), "lamb": (2e-2, 3e-2, 4e-2)}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "lamb":
            results["one_bit"] = one_bit(args, folder)
        if args.only != "one_bit":
            results["lamb"] = lamb(args, folder)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
