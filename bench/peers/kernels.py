#!/usr/bin/env python3
"""One optimizer step over one flat tensor: torch's fused AdamW, DeepSpeedCPUAdam.

Prints one JSON object: per peer the milliseconds of a step, all threads given.
`deepspeed_copy` is DeepSpeedCPUAdam and then the copy of the parameters to
bf16, which is what a trainer needs and what ours does in the same pass.
"""

import argparse
import json
import os
import statistics
import sys
import time

PEERS = ("torch_fused", "deepspeed", "deepspeed_copy")


def timed_ms(step, warmup: int, repeats: int) -> dict:
    for _ in range(warmup):
        step()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        times.append((time.perf_counter() - begin) * 1e3)
    return {"min": round(min(times), 4), "median": round(statistics.median(times), 4),
            "max": round(max(times), 4)}


def make_step(peer: str, elements: int):
    import torch

    generator = torch.Generator().manual_seed(1)
    p = torch.randn(elements, generator=generator).requires_grad_()
    p.grad = torch.randn(elements, generator=generator)
    how = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    if peer == "torch_fused":
        return torch.optim.AdamW([p], fused=True, **how).step
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    adam = DeepSpeedCPUAdam([p], adamw_mode=True, **how)
    if peer == "deepspeed":
        return adam.step
    copy = torch.empty(elements, dtype=torch.bfloat16)

    def step():
        adam.step()
        copy.copy_(p.data)

    return step


def settings(threads: int):
    """Before torch is imported: threads, and huge pages for its large tensors."""
    os.environ.update(OMP_NUM_THREADS=str(threads), DS_ACCELERATOR="cpu",
                      THP_MEM_ALLOC_ENABLE="1",
                      TORCH_EXTENSIONS_DIR=os.path.join(sys.prefix, "extensions"),
                      PATH=os.path.join(sys.prefix, "bin") + ":" + os.environ["PATH"])


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--elements", type=int, default=64 << 20)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--warmup", type=int, default=3)
    a.add_argument("--repeats", type=int, default=15)
    a.add_argument("--peer", choices=PEERS, action="append", help="default: all")
    args = a.parse_args()
    settings(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    results = {peer: timed_ms(make_step(peer, args.elements), args.warmup, args.repeats)
               for peer in args.peer or PEERS}
    import deepspeed

    print(json.dumps({"elements": args.elements, "threads": args.threads,
                      "repeats": args.repeats, "torch": torch.__version__,
                      "deepspeed": deepspeed.__version__, "ms": results}))


if __name__ == "__main__":
    main()
