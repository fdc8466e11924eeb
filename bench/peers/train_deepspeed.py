#!/usr/bin/env python3
"""The GPT trained by DeepSpeed: ZeRO-3, optimizer and parameters on the CPU or NVMe.

The three sizes that a DeepSpeed file may leave "auto" have the values that the
usual trainer fills in from the model's width.
"""

import json
import os

import ranks


def offload(args) -> dict:
    if args.offload == "cpu":
        return {"offload_optimizer": {"device": "cpu", "pin_memory": True},
                "offload_param": {"device": "cpu", "pin_memory": True}, "sub_group_size": 1e9}
    nvme = {"device": "nvme", "nvme_path": args.nvme_path, "pin_memory": True}
    # A buffer must hold the largest partition of a parameter, and a unit's are
    # all in memory at once: a block has 12, two of them may be fetched.
    largest = max(4 * args.width ** 2 // args.ranks, 256 * args.width)
    return {"offload_optimizer": {**nvme, "buffer_count": args.buffer_count,
                                  "pipeline_read": args.pipeline in ("both", "read"),
                                  "pipeline_write": args.pipeline in ("both", "write")},
            "offload_param": {**nvme, "buffer_count": 60, "buffer_size": largest, "max_in_cpu": 0},
            "sub_group_size": args.sub_group_size}


def mend_parameter_prefetch():
    """DeepSpeed 0.19.8 reads parameters ahead from NVMe along the trace, where one that ends the forward and begins
    the backward stands twice in a row, asks for it twice, and stops with "already assigned swap buffer". Without
    the second it trains this model."""
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper as Swapper

    swap_in = Swapper.swap_in

    def swap_in_once(self, params, *more, **named):
        return swap_in(self, list({param.ds_id: param for param in params}.values()), *more, **named)

    Swapper.swap_in = swap_in_once


def deepspeed_config(args) -> dict:
    width = args.width
    config = cpu_config(args, width)
    config["zero_optimization"].update(offload(args))
    if args.offload == "nvme":
        config["aio"] = {"block_size": 1 << 20, "queue_depth": 16, "single_submit": False,
                         "overlap_events": True, "intra_op_parallelism": 1}
    return config


def cpu_config(args, width) -> dict:
    return {
        "train_micro_batch_size_per_gpu": args.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": args.precision == "bf16"},
        "optimizer": {"type": "AdamW",
                      "params": {"lr": args.lr, "betas": [0.9, 0.999], "eps": 1e-8,
                                 "weight_decay": 0.01}},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": width * width,
            "stage3_prefetch_bucket_size": int(0.9 * width * width),
            "stage3_param_persistence_threshold": 10 * width,
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
        },
        "steps_per_print": 1000000,
        "wall_clock_breakdown": False,
    }


def run_rank(args):
    import deepspeed
    import torch
    import torch.distributed as dist

    import gpt

    torch.set_num_threads(1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
    deepspeed.init_distributed("gloo")
    torch.manual_seed(args.seed)
    products = gpt.use_products(args.products)
    shape = gpt.Shape(args.layers, args.width, args.heads, args.context)
    config = deepspeed_config(args)
    if args.offload == "nvme":
        mend_parameter_prefetch()
    with deepspeed.zero.Init(config_dict_or_path=config, dtype=dtype):
        model = gpt.Gpt(shape)
    count = gpt.parameter_count(model)
    engine, _, _, _ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config)
    data = gpt.Windows(args.data, args.context, args.seed)
    clock = ranks.StepClock(args, ["forward", "backward", "optimizer"])

    def step(index, mark):
        tokens, targets = data.batch(
            (index * args.ranks + dist.get_rank()) * args.micro_batch, args.micro_batch)
        loss = engine(tokens, targets)
        mark()
        engine.backward(loss)
        mark()
        engine.step()
        mark()
        return loss.detach()

    dist.barrier()
    clock.run(step)
    clock.report(peer="deepspeed", version=deepspeed.__version__, torch=torch.__version__,
                 parameters=count,
                 products=products,
                 optimizer=type(engine.optimizer.optimizer).__name__)
    dist.barrier()
    os._exit(0)  # its threads do not always end by themselves


def add_arguments(parser):
    parser.add_argument("--offload", choices=["cpu", "nvme"], default="cpu")
    parser.add_argument("--nvme-path")
    parser.add_argument("--sub-group-size", type=int, default=10**9)
    parser.add_argument("--pipeline", choices=["both", "read", "write", "none"], default="both")
    parser.add_argument("--buffer-count", type=int, default=12, help="of the optimizer's swapper")


if __name__ == "__main__":
    arguments = ranks.arguments(__doc__, add_arguments)
    if ranks.is_rank():
        run_rank(arguments)
    else:
        print(json.dumps(ranks.launch(arguments)))
