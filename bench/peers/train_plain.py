#!/usr/bin/env python3
"""Plain forward and backward of the GPT in N processes at once, nothing else.

The floor for any trainer of N ranks on these cores: no optimizer, no exchange.
Gradients are dropped after each step, as every trainer here drops them.
"""

import json

import ranks


def run_rank(args):
    import torch
    import torch.distributed as dist

    import gpt

    torch.set_num_threads(1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
    dist.init_process_group("gloo")  # only so that the ranks start together
    torch.manual_seed(args.seed)
    products = gpt.use_products(args.products)
    shape = gpt.Shape(args.layers, args.width, args.heads, args.context)
    model = gpt.Gpt(shape).to(dtype)
    data = gpt.Windows(args.data, args.context, args.seed)
    parameters = list(model.parameters())
    clock = ranks.StepClock(args, ["forward", "backward"])

    def step(index, mark):
        tokens, targets = data.batch(
            (index * args.ranks + dist.get_rank()) * args.micro_batch, args.micro_batch)
        loss = model(tokens, targets)
        mark()
        loss.backward()
        for p in parameters:
            p.grad = None
        mark()
        return loss.detach()

    dist.barrier()
    clock.run(step)
    # Whoever ends first keeps the cores as busy as they were for the other.
    done = dist.barrier(async_op=True)
    while not done.is_completed():
        step(0, lambda: None)
    clock.report(peer="plain", version=torch.__version__,
                 parameters=gpt.parameter_count(model),
                 products=products)
    dist.destroy_process_group()


if __name__ == "__main__":
    arguments = ranks.arguments(__doc__)
    if ranks.is_rank():
        run_rank(arguments)
    else:
        print(json.dumps(ranks.launch(arguments)))
