#!/usr/bin/env python3
"""The GPT trained by torch's FSDP2 with CPUOffloadPolicy, on Gloo."""

import json

import ranks


def run_rank(args):
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    import gpt

    torch.set_num_threads(1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
    dist.init_process_group("gloo")
    torch.manual_seed(args.seed)
    products = gpt.use_products(args.products)
    shape = gpt.Shape(args.layers, args.width, args.heads, args.context)
    model = gpt.Gpt(shape)
    count = gpt.parameter_count(model)
    mesh = init_device_mesh("cpu", (args.ranks,))
    how = dict(mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False),
               mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype))
    for block in model.blocks:
        fully_shard(block, **how)
    fully_shard(model, **how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01, fused=True)
    data = gpt.Windows(args.data, args.context, args.seed)
    clock = ranks.StepClock(args, ["forward", "backward", "optimizer"])

    def step(index, mark):
        tokens, targets = data.batch(
            (index * args.ranks + dist.get_rank()) * args.micro_batch, args.micro_batch)
        loss = model(tokens, targets)
        mark()
        loss.backward()
        mark()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mark()
        return loss.detach()

    dist.barrier()
    clock.run(step)
    clock.report(peer="fsdp2", version=torch.__version__, parameters=count,
                 products=products)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    arguments = ranks.arguments(__doc__)
    if ranks.is_rank():
        run_rank(arguments)
    else:
        print(json.dumps(ranks.launch(arguments)))
