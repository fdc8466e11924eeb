#!/usr/bin/env python3
"""Stowage and its peers side by side on this machine, in one run.

All sides take turns: a round runs each side once, in an order that rotates from
round to round, and a ratio is made from two figures of the same round. What is
reported is the median over the rounds. Called by tools/bench.
"""

import argparse
import json
import pathlib
import sys
import time

import claims
import machine
import report
import sides
from sides import Length, Model, Unavailable

MODELS = [Model("25M", 8, 512, 1), Model("85M", 12, 768, 1), Model("25M micro batch 4", 8, 512, 4)]
SECTIONS = ["kernel", "chain", "service", "remote", "training", "exchange", "memory"]
TRAINING_SIDES = ["ours", "ours_peers_products", "plain", "deepspeed", "deepspeed_tuned_malloc",
                  "fsdp2", "deepspeed_as_installed"]
SIZES = {"64M": 64 << 20, "1M": 1 << 20}


def say(text: str):
    print(f"bench: {time.strftime('%H:%M:%S')} {text}", flush=True)


def rounds_of(section: str, programs: dict, rounds: int) -> dict:
    """Runs every program once a round. Returns name -> results or reason.

    A program that is Unavailable is not tried again.
    """
    results = {name: [] for name in programs}
    missing = {}
    names = list(programs)
    for round_index in range(rounds):
        turn = round_index % len(names)
        for name in names[turn:] + names[:turn]:
            if name in missing:
                continue
            begin = time.monotonic()
            try:
                results[name].append(programs[name]())
            except Unavailable as why:
                missing[name] = str(why)
                say(f"{section}: {name}: not measured: {why}")
                continue
            say(f"{section}: round {round_index + 1} of {rounds}: {name} "
                f"({time.monotonic() - begin:.0f} s)")
    return {name: {"not_measured": missing[name]} if name in missing else {"rounds": results[name]}
            for name in names}


def kernel(options) -> dict:
    repeats = {"64M": 5 if options.quick else 15, "1M": 50 if options.quick else 300}

    def ours():
        return sides.google_benchmark("optim_bench", "^(ceiling_|adam_1_slot)", 1 if options.quick else 3)

    def peers():
        return {size: sides.peer("kernels.py", "--elements", str(elements), "--threads",
                                 str(sides.KERNEL_THREADS), "--repeats", str(repeats[size]))["ms"]
                for size, elements in SIZES.items()}

    return rounds_of("kernel", {"ours": ours, "peers": peers}, options.rounds)


def chain(options) -> dict:
    repeats = "3" if options.quick else "9"

    def ours():
        return sides.google_benchmark("optim_bench", "^chain_._slots?/64M", 1 if options.quick else 3)

    programs = {"ours": ours}
    for gradients in (1, 2):
        programs[f"deepspeed_{gradients}"] = lambda g=gradients: sides.peer(
            "chain.py", "--gradients", str(g), "--threads", str(sides.KERNEL_THREADS),
            "--repeats", repeats)
    return rounds_of("chain", programs, options.rounds)


def service(options) -> dict:
    """Both sides are ours: the chain through stowd, and in one process."""
    return rounds_of("service", {"ours": lambda: sides.service_bench(
        1 if options.quick else 3)}, options.rounds)


def training(options) -> dict:
    out = {}
    for model in MODELS:
        if options.model and model.name not in options.model:
            continue
        big = model.width > 512
        ours = Length(3, 6) if options.quick else Length(10, 20 if big else 40)
        slow = Length(1, 3) if options.quick else Length(3, 6 if big else 12)
        data, wide = options.data, options.wide
        programs = {
            "ours": lambda: sides.ours_training(model, ours, data, wide),
            "ours_peers_products": lambda: sides.ours_training(model, ours, data, wide,
                                                               products="panels"),
            "plain": lambda: sides.peer_training("train_plain.py", model, ours, data, wide, "tuned"),
            "deepspeed": lambda: sides.peer_training("train_deepspeed.py", model, slow, data, wide),
            "deepspeed_tuned_malloc": lambda: sides.peer_training(
                "train_deepspeed.py", model, slow, data, wide, "tuned"),
            "fsdp2": lambda: sides.peer_training("train_fsdp2.py", model, slow, data, wide),
            # Tens of seconds a step: only when asked for.
            "deepspeed_as_installed": lambda: sides.peer_training(
                "train_deepspeed.py", model, Length(1, 2), data, False),
        }
        if not wide:  # all sides have LibTorch's own
            del programs["ours_peers_products"]
        if not options.side:
            del programs["deepspeed_as_installed"]
        else:
            programs = {name: run for name, run in programs.items() if name in options.side}
        out[model.name] = rounds_of(f"training {model.name}", programs, options.rounds)
    return out


def remote(options) -> dict:
    """Its rounds, each with both sides, are its own."""
    return rounds_of("remote", {"ours": lambda: sides.remote_payload(
        2 if options.quick else 7)}, 1)


def exchange(options) -> dict:
    """Ranks that gather and reduce among themselves: the same job through segments, with c10d over
    Gloo, and DeepSpeed over Gloo."""
    out = {}
    for model in MODELS[:2]:
        if options.model and model.name not in options.model:
            continue
        big = model.width > 512
        ours = Length(2, 4) if options.quick else Length(6, 10 if big else 20)
        slow = Length(1, 3) if options.quick else Length(3, 6 if big else 12)
        data, wide = options.data, options.wide
        programs = {
            "segments": lambda: sides.ours_training(model, ours, data, wide, "segments"),
            "c10d": lambda: sides.ours_training(model, ours, data, wide, "c10d"),
            "c10d_peers_products": lambda: sides.ours_training(model, ours, data, wide, "c10d",
                                                               "panels"),
            "deepspeed": lambda: sides.peer_training("train_deepspeed.py", model, slow, data, wide),
        }
        if not wide:
            del programs["c10d_peers_products"]
        out[model.name] = rounds_of(f"exchange {model.name}", programs, options.rounds)
        out[model.name].update(rounds_of(f"exchange {model.name}", {
            "volume": lambda: sides.exchange_volume(model, data, wide)}, 1))
    return out


def memory(options) -> dict:
    out = {}
    length = Length(2, 6) if options.quick else Length(4, 12)
    for side in ("ours", "train_deepspeed.py"):
        for model in MODELS[:2]:
            name = f"{side.removeprefix('train_').removesuffix('.py')} {model.name}"
            out.update(rounds_of("memory", {name: lambda: sides.memory_of(
                side, model, length, options.data, options.wide)}, 1))
    return out


def main():
    p = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    p.add_argument("--json", required=True, type=pathlib.Path, metavar="F",
                   help="the result; a table and a picture go beside it as .md and .png")
    p.add_argument("--quick", action="store_true", help="one round, few steps: a smoke test")
    p.add_argument("--rounds", type=int, help="default 5 (1 with --quick)")
    p.add_argument("--only", action="append", choices=SECTIONS, help="default: all sections")
    p.add_argument("--model", action="append", choices=[m.name for m in MODELS],
                   help="training: only these models")
    p.add_argument("--side", action="append", choices=TRAINING_SIDES,
                   help="training: only these sides")
    p.add_argument("--data", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    p.add_argument("--products", choices=["auto", "torch", "wide"], default="auto",
                   help="16-bit matrix products: torch's own on all sides, or summed in fp32 (wide: "
                        "the peers' by torch, ours by the engine); auto: wide where the CPU has no "
                        "16-bit instructions")
    options = p.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    about = machine.describe()
    options.wide = options.products == "wide" or (
        options.products == "auto" and "avx512_bf16" not in about["instructions"])
    # tools/bench puts the text in front of what its caller wrote.
    written = [a for a in sys.argv[1:] if a not in ("--data", str(options.data))]
    result = {"machine": about, "command": "tools/bench " + " ".join(written),
              "rounds": options.rounds, "quick": options.quick,
              "threads": {"kernel": sides.KERNEL_THREADS, "training": "2 ranks of 1 thread"},
              "products": "wide" if options.wide else "torch", "sections": {}}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for section in options.only or SECTIONS:
        say(f"{section} …")
        result["sections"][section] = globals()[section](options)
        result["claims"] = claims.evaluate(result["sections"])
        # Written after each section: what was measured is kept if a later one is cut off.
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    report.write(result, options.json)
    say(f"wrote {options.json}, {options.json.with_suffix('.md')} and "
        f"{options.json.with_suffix('.png')}")


if __name__ == "__main__":
    main()
