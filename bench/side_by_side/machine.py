"""What machine, commit and versions a measurement comes from."""

import datetime
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def git(*arguments) -> str:
    out = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return out.stdout.strip()


def first_field(path: str, key: str) -> str:
    with open(path) as f:
        for line in f:
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return "unknown"


def describe() -> dict:
    flags = first_field("/proc/cpuinfo", "flags").split()
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as f:
        huge_pages = f.read().split("[")[1].split("]")[0]
    return {
        "cpu": first_field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
                         if f in flags],
        "memory_gib": round(int(first_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "transparent_huge_pages": huge_pages,
        "load_before": os.getloadavg()[0],
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short=12", "HEAD") or "unknown",
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
    }
