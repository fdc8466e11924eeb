#!/usr/bin/env python3
"""The GPT trained by DeepSpeed on stow-train's own samples, saved and loaded.

Starts its ranks itself and prints one JSON object: the mean loss of every step,
and how long saving and loading took.
"""

import argparse
import json
import os
import time

import ranks

MASK = (1 << 64) - 1


def mix(value):
    value = ((value ^ (value >> 30)) * 0xbf58476d1ce4e5b9) & MASK
    value = ((value ^ (value >> 27)) * 0x94d049bb133111eb) & MASK
    return value ^ (value >> 31)


class StowTrainText:
    """examples/gpt/text_data.cc: windows in the order of a keyed permutation."""

    def __init__(self, path, context, seed):
        with open(path, "rb") as file:
            self.text = file.read()
        self.context = context
        self.windows = (len(self.text) - 1) // context
        self.seed = seed

    def window(self, index):
        key = mix((self.seed * 0x9e3779b97f4a7c15 + index // self.windows + 1) & MASK)
        half = ((self.windows - 1).bit_length() + 1) // 2
        low = (1 << half) - 1
        value = index % self.windows
        while True:
            left, right = value >> half, value & low
            for turn in range(4):
                mixed = mix((right + key + turn * 0x9e3779b97f4a7c15) & MASK) & low
                left, right = right, left ^ mixed
            value = (left << half) | right
            if value < self.windows:
                begin = value * self.context
                return self.text[begin:begin + self.context + 1]


def config(args):
    return {
        "train_micro_batch_size_per_gpu": args.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": args.precision == "bf16"},
        "optimizer": {"type": "AdamW", "params": {"lr": args.lr, "betas": [0.9, 0.999],
                                                  "eps": 1e-8, "weight_decay": args.decay}},
        "zero_optimization": {"stage": args.stage, "offload_optimizer": {"device": "cpu"},
                              "reduce_bucket_size": 1 << 20,
                              "stage3_param_persistence_threshold": 0},
        "checkpoint": {"load_universal": args.universal},
        "steps_per_print": 1000000}


def run_rank(args):
    import deepspeed
    import torch
    import torch.distributed as dist

    import gpt

    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    torch.manual_seed(args.seed)
    gpt.use_products("auto")
    model = gpt.Gpt(gpt.Shape(args.layers, args.width, args.heads, args.context))
    engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(),
                                           config=config(args))
    out = {"losses": {}, "save_ms": [], "load_ms": [], "step_ms": []}
    if args.load:
        begin = time.perf_counter()
        path, _ = engine.load_checkpoint(args.load)
        dist.barrier()
        out["load_ms"].append((time.perf_counter() - begin) * 1e3)
        if path is None:
            raise SystemExit(f"nothing was loaded from {args.load}")
    text = StowTrainText(args.data, args.context, args.seed)
    while engine.global_steps < args.steps:
        step = engine.global_steps
        first = (step * args.ranks + dist.get_rank()) * args.micro_batch
        rows = torch.tensor([list(text.window(first + i)) for i in range(args.micro_batch)])
        begin = time.perf_counter()
        loss = engine(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        engine.backward(loss)
        engine.step()
        out["step_ms"].append((time.perf_counter() - begin) * 1e3)
        mean = loss.detach().float().clone()
        dist.all_reduce(mean)
        out["losses"][engine.global_steps] = float(mean) / args.ranks
        if args.save and engine.global_steps in args.save_at:
            dist.barrier()
            begin = time.perf_counter()
            engine.save_checkpoint(args.save)
            dist.barrier()
            out["save_ms"].append((time.perf_counter() - begin) * 1e3)
    out["optimizer"] = type(engine.optimizer).__name__
    out["version"] = deepspeed.__version__
    with open(os.environ["STOWAGE_BENCH_REPORT"], "w") as file:
        json.dump(out, file)
    dist.barrier()
    os._exit(0)  # its threads do not always end by themselves


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", required=True)
    p.add_argument("--stage", type=int, default=2)
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--context", type=int, default=32)
    p.add_argument("--micro-batch", type=int, default=2)
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--steps", type=int, default=12, help="until so many are done, loaded ones too")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--decay", type=float, default=0.0)
    p.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    p.add_argument("--save", help="folder")
    p.add_argument("--save-at", type=int, nargs="*", default=[])
    p.add_argument("--load", help="folder")
    p.add_argument("--universal", action="store_true")
    args = p.parse_args()
    if ranks.is_rank():
        run_rank(args)
        return
    args.malloc = "default"
    reports = ranks.launch_reports(args)
    out = reports[0]
    for key in ("save_ms", "load_ms", "step_ms"):
        out[key] = [max(values) for values in zip(*(r[key] for r in reports))]
    print(json.dumps(out))


if __name__ == "__main__":
    main()
