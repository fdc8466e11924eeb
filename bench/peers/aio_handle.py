#!/usr/bin/env python3
"""DeepSpeed's aio handle on one file: rate and CPU seconds per GB.

Reads or writes a range of an existing file over and over, as its swappers do: a
pinned buffer, O_DIRECT, one synchronous call for each buffer.
"""

import argparse
import json
import os
import resource
import sys
import time

# What tools/setup --bench has compiled.
os.environ.update(DS_ACCELERATOR="cpu", CUDA_HOME="", TORCH_EXTENSIONS_DIR=os.path.join(sys.prefix, "extensions"),
                  PATH=os.path.join(sys.prefix, "bin") + ":" + os.environ["PATH"])


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--file", required=True)
    p.add_argument("--offset", type=int, default=0)
    p.add_argument("--bytes", type=int, required=True, help="of the range")
    p.add_argument("--way", choices=["read", "write"], required=True)
    p.add_argument("--buffer-bytes", type=int, default=64 << 20)
    p.add_argument("--seconds", type=float, default=3)
    p.add_argument("--block-size", type=int, default=1 << 20)
    p.add_argument("--queue-depth", type=int, default=16)
    p.add_argument("--parallelism", type=int, default=1)
    args = p.parse_args()

    import torch
    from deepspeed.ops.op_builder import AsyncIOBuilder
    handle = AsyncIOBuilder().load(verbose=False).aio_handle(
        args.block_size, args.queue_depth, False, True, args.parallelism)
    buffer = handle.new_cpu_locked_tensor(args.buffer_bytes, torch.empty(0, dtype=torch.uint8))
    buffer.fill_(1)
    move = handle.sync_pread if args.way == "read" else handle.sync_pwrite
    places = range(args.offset, args.offset + args.bytes - args.buffer_bytes + 1, args.buffer_bytes)
    if not places:
        raise SystemExit("the range is shorter than a buffer")
    move(buffer, args.file, places[0])  # the first call starts its threads
    begin, cpu, moved = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - begin < args.seconds:
        for place in places:
            move(buffer, args.file, place)
            moved += args.buffer_bytes
            if time.perf_counter() - begin >= args.seconds:
                break
    seconds = time.perf_counter() - begin
    print(json.dumps({"way": args.way, "bytes": moved, "seconds": seconds,
                      "rate_mib_s": moved / seconds / (1 << 20),
                      "cpu_s_per_gb": (cpu_seconds() - cpu) / (moved / 1e9)}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
