#!/usr/bin/env python3
"""The NVMe store against fio on the same files, in alternating pairs.

Each pair is: fio, ours, fio. fio's figure of a pair is the mean of the two, each
the best of its variants (one and two jobs, ordinary and huge-page buffers); a
ratio is made within a pair, and the median over the pairs is reported. fio
writes only where no kept step of the store lies. Called by tools/bench --nvme.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = ROOT / "build" / "release" / "bench" / "nvme_bench"
MIB = float(1 << 20)
HUGE_PAGES = pathlib.Path("/proc/sys/vm/nr_hugepages")


def say(text: str):
    print(f"bench: {time.strftime('%H:%M:%S')} {text}", flush=True)


def ours(options, mode: str, durability: str, *more: str) -> dict:
    command = [str(PROGRAM), "--path", options.path, "--mode", mode, "--elems", str(options.elems),
               "--rounds", str(options.rounds), *more]
    if durability == "power":
        command.append("--power")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout) if done.stdout else {}


def fio_once(options, kind: str, free: dict, jobs: int, huge: bool) -> dict:
    """MiB/s each way, and CPU seconds per GB, of one fio run in the free part of the store's file."""
    size = free["free_bytes"] // jobs // (1 << 20) * (1 << 20)
    command = ["fio", "--name=side", f"--filename={free['file']}", "--ioengine=io_uring", "--direct=1",
               "--bs=1M", "--iodepth=16", f"--numjobs={jobs}", f"--size={size}",
               f"--offset={free['free_offset_bytes']}", f"--offset_increment={size}",
               "--time_based", f"--runtime={options.fio_seconds}", "--output-format=json",
               "--group_reporting", "--allow_file_create=0", "--fallocate=none",
               f"--mem={'mmaphuge' if huge else 'mmap'}"]
    if kind == "mixed":
        # A reader and a writer side by side, as the pipeline is.
        half = free["free_bytes"] // 2 // (1 << 20) * (1 << 20)
        base = [a for a in command if not a.startswith(("--name", "--numjobs", "--size", "--offset"))]
        command = base + [f"--iodepth={16 * jobs}"]
        for name, rw, begin in (("r", "read", 0), ("w", "write", half)):
            command += [f"--name={name}", f"--filename={free['file']}", f"--rw={rw}", f"--size={half}",
                        f"--offset={free['free_offset_bytes'] + begin}"]
    else:
        command.append(f"--rw={kind}")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {}
    parts = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
    rates = {way: sum(j[way]["bw_bytes"] for j in parts) / MIB for way in ("read", "write")}
    moved = sum(j[way]["io_bytes"] for j in parts for way in ("read", "write"))
    busy = sum((j["usr_cpu"] + j["sys_cpu"]) / 100 * j["job_runtime"] / 1000 for j in parts)
    # Of a mix the slower way counts twice: the pipeline moves as much each way.
    rate = 2 * min(rates.values()) if kind == "mixed" else rates[kind]
    return {"rate": rate, **rates, "cpu_s_per_gb": busy / (moved / 1e9) if moved else None,
            "jobs": jobs, "huge": huge}


def fio(options, kind: str, free: dict) -> dict:
    runs = [fio_once(options, kind, free, jobs, huge)
            for jobs in (1, 2) for huge in ((False, True) if options.huge else (False,))]
    runs = [r for r in runs if r]
    if not runs:
        sys.exit("fio: no variant ran")
    return max(runs, key=lambda r: r["rate"])


def rate_of(result: dict, kind: str) -> list:
    """MiB/s of each round: all bytes for a mix, as fio's."""
    return [(r["read_bytes"] + r["written_bytes"]) / MIB / r["seconds"] for r in result["rounds"]]


def cpu_of(result: dict) -> float:
    moved = sum(r["read_bytes"] + r["written_bytes"] for r in result["rounds"])
    return sum(r["cpu_seconds"] for r in result["rounds"]) / (moved / 1e9)


def section(options, mode: str, kind: str, durability: str, checksums: bool) -> dict:
    more = [] if checksums else ["--no-checksums"]
    free = ours(options, "prepare", durability, *more)
    pairs = []
    for pair in range(options.pairs):
        before = fio(options, kind, free)
        result = ours(options, mode, durability, *more)
        free = {k: result[k] for k in ("file", "free_offset_bytes", "free_bytes")}
        after = fio(options, kind, free)
        rate = statistics.median(rate_of(result, kind))
        theirs = (before["rate"] + after["rate"]) / 2
        pairs.append({"ours_mib_s": rate, "fio_before": before, "fio_after": after, "ratio": rate / theirs,
                      "cpu_s_per_gb": cpu_of(result), "raw": result})
        say(f"{mode} {durability} checksums {'on' if checksums else 'off'} pair {pair + 1}: ours {rate:.0f}, "
            f"fio {before['rate']:.0f} and {after['rate']:.0f} MiB/s, ratio {rate / theirs:.3f}")
    ours(options, "remove", durability)
    return {"mode": mode, "durability": durability, "checksums": checksums,
            "ours_mib_s": statistics.median(p["ours_mib_s"] for p in pairs),
            "fio_mib_s": statistics.median((p["fio_before"]["rate"] + p["fio_after"]["rate"]) / 2 for p in pairs),
            "ratio": statistics.median(p["ratio"] for p in pairs),
            "cpu_s_per_gb": statistics.median(p["cpu_s_per_gb"] for p in pairs),
            "fio_cpu_s_per_gb": statistics.median(p["fio_before"]["cpu_s_per_gb"] for p in pairs),
            "pairs": pairs}


ROWS = [("read", "read", "memory", True), ("write", "write", "power", True), ("mixed", "mixed", "memory", True),
        ("mixed", "mixed", "memory", False), ("mixed", "mixed", "power", True), ("step", "mixed", "power", True)]


def table(report: dict) -> str:
    lines = [f"The NVMe store against fio, {report['machine']['date']}, commit {report['machine']['commit']}, "
             f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {report['pairs']} pairs, "
             f"{report['elems']} parameters; medians", "",
             "| what | durability | checksums | ours MiB/s | fio MiB/s | ratio | aim | ours CPU s/GB | fio CPU s/GB |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in report["rows"]:
        aim = 0.90 if row["mode"] == "step" else 0.95
        lines.append(f"| {row['mode']} | {row['durability']} | {'on' if row['checksums'] else 'off'} | "
                     f"{row['ours_mib_s']:.0f} | {row['fio_mib_s']:.0f} | {row['ratio']:.3f} | {aim} "
                     f"{'met' if row['ratio'] >= aim else 'MISSED'} | {row['cpu_s_per_gb']:.3f} | "
                     f"{row['fio_cpu_s_per_gb']:.3f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True, help="where the results go; a table beside it (.md)")
    parser.add_argument("--path", default=None, help="folder on the device (default: build/)")
    parser.add_argument("--elems", type=int, default=64 << 20, help="parameters (24 bytes of disk each)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of ours in a pair")
    parser.add_argument("--fio-seconds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="does it run? No figures to quote")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.rounds, options.fio_seconds, options.elems = 1, 1, 1, 16 << 20
    folder = pathlib.Path(options.path or ROOT / "build" / "nvme-bench")
    folder.mkdir(parents=True, exist_ok=True)
    options.path = str(folder)
    # fio's huge-page buffers come from a pool that only root can fill.
    pool_before = HUGE_PAGES.read_text().strip()
    options.huge = False
    try:
        HUGE_PAGES.write_text("48")
        options.huge = int(HUGE_PAGES.read_text()) >= 40
    except OSError as why:
        say(f"fio with huge-page buffers: not measured: {why}")
    try:
        rows = [section(options, *row) for row in ROWS]
    finally:
        if options.huge:
            HUGE_PAGES.write_text(pool_before)
    report = {"machine": machine.describe(), "pairs": options.pairs, "elems": options.elems,
              "fio_huge_pages": options.huge, "rows": rows}
    out = pathlib.Path(options.json)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    out.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
