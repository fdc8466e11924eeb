#!/usr/bin/env python3
"""One Lamb step over one flat tensor with torch's own operations on the CPU.

DeepSpeed's FusedLamb runs on GPUs only and torch has no Lamb, so this is what a
user can write: in place, with as few passes as torch's operations allow
(`lerp_`, `addcmul_`, one buffer for the update). Prints one JSON object with the
milliseconds of a step; fp32 gradient, and with `--copy` a bf16 copy after it,
which is what a trainer needs and what ours does in the same pass.
"""

import argparse
import json

from kernels import settings, timed_ms


def make_step(elements: int, copy: bool):
    import torch

    generator = torch.Generator().manual_seed(1)
    p = torch.randn(elements, generator=generator)
    g = torch.randn(elements, generator=generator)
    m = torch.zeros(elements)
    v = torch.zeros(elements)
    u = torch.empty(elements)
    half = torch.empty(elements, dtype=torch.bfloat16)
    beta1, beta2, eps, decay, lr = 0.9, 0.999, 1e-8, 0.01, 1e-3

    def step():
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        torch.sqrt(v, out=u)
        u.add_(eps)
        torch.div(m, u, out=u)
        u.add_(p, alpha=decay)
        weight, update = p.norm().item(), u.norm().item()
        ratio = 1.0
        if weight and update:
            ratio = min(max(weight / update, 0.01), 10.0)
        p.add_(u, alpha=-lr * ratio)
        if copy:
            half.copy_(p)

    return step


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--elements", type=int, default=64 << 20)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--warmup", type=int, default=2)
    a.add_argument("--repeats", type=int, default=9)
    args = a.parse_args()
    settings(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    with torch.no_grad():
        results = {name: timed_ms(make_step(args.elements, copy), args.warmup,
                                  args.repeats)
                   for name, copy in (("torch_lamb", False),
                                      ("torch_lamb_copy", True))}
    print(json.dumps({"elements": args.elements, "threads": args.threads,
                      "repeats": args.repeats, "torch": torch.__version__,
                      "ms": results}))


if __name__ == "__main__":
    main()
