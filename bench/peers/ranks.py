"""Runs a peer's trainer as N processes on this host and joins their reports.

Each rank is started with torchrun's environment variables and one thread. The
ranks time their own steps; the parent joins the times and prints one JSON
object as the last line of its output.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

# What stow-train sets for itself with mallopt: gradient buffers are kept by the
# allocator instead of being mapped and faulted in anew each step.
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def arguments(description: str, add=None) -> argparse.Namespace:
    """`add(parser)` adds what only one peer has."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--data", required=True, help="a text file")
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--heads", type=int, default=0, help="default: width / 64")
    p.add_argument("--context", type=int, default=128)
    p.add_argument("--micro-batch", type=int, default=1)
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--steps", type=int, default=20, help="timed steps")
    p.add_argument("--warmup", type=int, default=5, help="steps before them")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    p.add_argument("--products", choices=["auto", "torch", "wide"], default="auto",
                   help="how 16-bit matrices are multiplied: see gpt.py")
    p.add_argument("--malloc", choices=["default", "tuned"], default="default")
    if add is not None:
        add(p)
    args = p.parse_args()
    args.heads = args.heads or max(1, args.width // 64)
    return args


def is_rank() -> bool:
    return "STOWAGE_BENCH_REPORT" in os.environ


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def summary(values_ms) -> dict:
    return {"min": round(min(values_ms), 3), "median": round(statistics.median(values_ms), 3),
            "max": round(max(values_ms), 3)}


def die_with_parent():
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def launch(args: argparse.Namespace, timeout_s: float = 900) -> dict:
    """Starts this same script once per rank. Returns the joined report."""
    return join(args, launch_reports(args, timeout_s))


def launch_reports(args: argparse.Namespace, timeout_s: float = 900) -> list:
    """Starts this same script once per rank. Returns the ranks' reports."""
    with tempfile.TemporaryDirectory(prefix="stowage-peer-") as folder:
        port = free_port()
        ranks = []
        for rank in range(args.ranks):
            env = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank),
                       WORLD_SIZE=str(args.ranks), LOCAL_WORLD_SIZE=str(args.ranks),
                       MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                       OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", DS_ACCELERATOR="cpu",
                       TORCH_EXTENSIONS_DIR=os.path.join(sys.prefix, "extensions"),
                       PATH=os.path.join(sys.prefix, "bin") + ":" + os.environ["PATH"],
                       STOWAGE_BENCH_REPORT=f"{folder}/{rank}.json")
            if args.malloc == "tuned":
                env.update(TUNED_MALLOC)
            with open(f"{folder}/{rank}.log", "wb") as log:
                ranks.append(subprocess.Popen([sys.executable, "-W", "ignore"] + sys.argv,
                                              env=env, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL,
                                              stdout=log, stderr=subprocess.STDOUT))
        try:
            wait_for(ranks, folder, timeout_s)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                process.wait()
        reports = []
        for rank in range(args.ranks):
            with open(f"{folder}/{rank}.json") as f:
                reports.append(json.load(f))
    return reports


def wait_for(ranks, folder: str, timeout_s: float):
    deadline = time.monotonic() + timeout_s
    while any(p.poll() is None for p in ranks):
        failed = [i for i, p in enumerate(ranks) if p.poll() not in (None, 0)]
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for i, process in enumerate(ranks):
        if process.poll() != 0:
            with open(f"{folder}/{i}.log", errors="replace") as f:
                tail = f.read()[-3000:]
            state = "did not end" if process.poll() is None else f"exit {process.returncode}"
            raise SystemExit(f"rank {i}: {state}\n{tail}")


def join(args, reports) -> dict:
    """A step of the job takes as long as its slowest rank's."""
    steps = [max(r["step_ms"][i] for r in reports) for i in range(args.steps)]
    phases = {}
    for phase in reports[0]["phases_ms"]:
        phases[phase] = round(statistics.mean(
            statistics.median(r["phases_ms"][phase]) for r in reports), 3)
    out = {k: v for k, v in reports[0].items() if k not in ("step_ms", "phases_ms", "losses")}
    losses = [statistics.mean(r["losses"][i] for r in reports) for i in range(len(reports[0]["losses"]))]
    out.update(ranks=args.ranks, threads_per_rank=1, malloc=args.malloc,
               precision=args.precision, layers=args.layers, width=args.width, context=args.context,
               micro_batch=args.micro_batch, steps=args.steps, warmup=args.warmup,
               first_loss=round(losses[0], 5), final_loss=round(losses[-1], 5),
               step_ms=summary(steps), phases_ms=phases)
    return out


class StepClock:
    """Times the phases of one rank's steps: begin(), then mark() per phase."""

    def __init__(self, args, phases):
        self.args = args
        self.phases = phases
        self.marks = []
        self.losses = []

    def run(self, step):
        """step(index, mark) does one step; it calls mark() after each phase."""
        for index in range(self.args.warmup + self.args.steps):
            times = [time.perf_counter()]
            loss = step(index, lambda: times.append(time.perf_counter()))
            assert len(times) == len(self.phases) + 1, "a phase was not marked"
            self.marks.append(times)
            self.losses.append(float(loss))

    def report(self, **about):
        timed = self.marks[self.args.warmup:]
        about.update(
            step_ms=[(t[-1] - t[0]) * 1e3 for t in timed],
            phases_ms={name: [(t[i + 1] - t[i]) * 1e3 for t in timed]
                       for i, name in enumerate(self.phases)},
            losses=self.losses)
        with open(os.environ["STOWAGE_BENCH_REPORT"], "w") as f:
            json.dump(about, f)
