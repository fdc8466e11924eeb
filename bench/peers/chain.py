#!/usr/bin/env python3
"""DeepSpeed's way from bf16 gradients to bf16 parameters, as its stage 3 goes it.

Per optimizer step with clipping, over one flat sub-group: the norm of the bf16
gradients in fp64, the copy of the gradients to fp32, the multiplication by the
combined factor of clip and scale, DeepSpeedCPUAdam, the copy of the parameters
to bf16. The lines are those of deepspeed/runtime/zero/stage3.py
(`_offload_grad_partition_at_boundary`, `_constant_buffered_norm2`,
`unscale_and_clip_grads`, `step`), without its bookkeeping between them.

With --gradients 2 the two ranks' bf16 gradients are first summed and divided by
two. That is kind to DeepSpeed: its ranks each divide the whole gradient and then
reduce it through a socket.

The norm is taken by parameters of --norm-piece elements, since stage 3 takes it
parameter by parameter; a size whose fp64 temporary stays in cache is kind too.
"""

import argparse
import json
import statistics
import sys
import time

import kernels


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--elements", type=int, default=64 << 20)
    a.add_argument("--gradients", type=int, choices=[1, 2], default=1)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--warmup", type=int, default=2)
    a.add_argument("--repeats", type=int, default=9)
    a.add_argument("--norm-piece", type=int, default=1 << 20)
    args = a.parse_args()
    kernels.settings(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    import deepspeed
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(args.elements, generator=generator).to(torch.bfloat16)
                 for _ in range(args.gradients)]
    total = torch.empty_like(gradients[0]) if args.gradients == 2 else gradients[0]
    master = torch.randn(args.elements, generator=generator).requires_grad_()
    master.grad = torch.zeros(args.elements)
    parameters = master.detach().to(torch.bfloat16)
    adam = DeepSpeedCPUAdam([master], lr=1e-3, betas=(0.9, 0.999), eps=1e-8,
                            weight_decay=0.01, adamw_mode=True)
    max_norm = 1.0

    def reduce():
        if args.gradients == 2:
            torch.add(gradients[0], gradients[1], out=total)
            total.div_(2)

    def norm():
        squares = 0.0
        for piece in total.split(args.norm_piece):
            squares += float(piece.to(torch.double).norm(2)) ** 2
        state["norm"] = squares ** 0.5

    def to_fp32():
        master.grad.copy_(total)

    def scale():
        factor = max(1.0, (state["norm"] + 1e-6) / max_norm)
        master.grad.mul_(1.0 / factor)

    def to_bf16():
        parameters.copy_(master.data)

    state = {}
    stages = {"sum": reduce, "norm": norm, "to_fp32": to_fp32, "multiply": scale,
              "adam": adam.step, "to_bf16": to_bf16}
    times = {name: [] for name in stages}
    totals = []
    for repeat in range(args.warmup + args.repeats):
        marks = [time.perf_counter()]
        for stage in stages.values():
            stage()
            marks.append(time.perf_counter())
        if repeat >= args.warmup:
            totals.append((marks[-1] - marks[0]) * 1e3)
            for i, name in enumerate(stages):
                times[name].append((marks[i + 1] - marks[i]) * 1e3)
    print(json.dumps({
        "elements": args.elements, "gradients": args.gradients, "threads": args.threads,
        "repeats": args.repeats, "torch": torch.__version__, "deepspeed": deepspeed.__version__,
        "ms": {"min": round(min(totals), 3), "median": round(statistics.median(totals), 3),
               "max": round(max(totals), 3)},
        "stages_ms": {n: round(statistics.median(t), 3) for n, t in times.items()}}))


if __name__ == "__main__":
    sys.exit(main())
