#!/usr/bin/env python3
"""NVMe: the store against fio on the same files, its CPU time against DeepSpeed's
aio handle, training against the disk's bound and DeepSpeed, and curves.

Each pair of the store's rows is: fio, ours, fio. fio's figure of a pair is the mean of the two, each
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
import nvme_curves as curves
import nvme_train as train
import sides

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


def fio_once(options, kind: str, free: dict, jobs: int, huge: bool, flush_mib: int = 0) -> dict:
    """MiB/s each way, and CPU seconds per GB, of one fio run in the free part of the store's file.

    `flush_mib`: it flushes whenever so much was written; 0: never."""
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
        if flush_mib:
            command.append(f"--fdatasync={flush_mib}")  # of the writer, whose blocks are of 1 MiB
    else:
        command.append(f"--rw={kind}")
        if flush_mib:
            command.append(f"--fdatasync={flush_mib // jobs}")
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


def fio(options, kind: str, free: dict, flush_mib: int = 0) -> dict:
    runs = [fio_once(options, kind, free, jobs, huge, flush_mib)
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


def store_row(options, mode: str, kind: str, durability: str, checksums: bool) -> dict:
    more = [] if checksums else ["--no-checksums"]
    # Flushed, or what was just written would still be on its way to the disk
    # beside the first pairs of a row with `memory`.
    ours(options, "prepare", "power", *more)
    free = ours(options, mode, durability, *more)
    # With `power` ours flushes at each round's end; so does fio then. A step is
    # held against the disk's rate itself.
    flush_mib = 0
    if durability == "power" and mode != "step":
        flush_mib = (12 if mode == "mixed" else 16) * options.elems >> 20
    pairs = []
    for pair in range(options.pairs):
        before = fio(options, kind, free, flush_mib)
        # As many variants as fio has, and the best of them, as for fio: on a disk
        # whose rate moves by half within minutes the best of four is well above
        # any one of them, whoever reads.
        tries = {}
        for variant in VARIANTS if options.huge else VARIANTS[2:]:
            result = ours(options, mode, durability, *more, *variant)
            free = {k: result[k] for k in ("file", "free_offset_bytes", "free_bytes")}
            tries[" ".join(variant)] = (statistics.median(rate_of(result, kind)), result)
        after = fio(options, kind, free, flush_mib)
        variant, (rate, result) = max(tries.items(), key=lambda t: t[1][0])
        theirs = (before["rate"] + after["rate"]) / 2
        pairs.append({"ours_mib_s": rate, "fio_before": before, "fio_after": after, "ratio": rate / theirs,
                      "variant": variant,
                      "tries_mib_s": {k: v[0] for k, v in tries.items()}, "cpu_s_per_gb": cpu_of(result), "raw": result})
        say(f"{mode} {durability} checksums {'on' if checksums else 'off'} pair {pair + 1}: ours {rate:.0f}, "
            f"fio {before['rate']:.0f} and {after['rate']:.0f} MiB/s, ratio {rate / theirs:.3f} ({variant})")
    ours(options, "remove", durability)
    return {"mode": mode, "durability": durability, "checksums": checksums,
            "ours_mib_s": statistics.median(p["ours_mib_s"] for p in pairs),
            "fio_mib_s": statistics.median((p["fio_before"]["rate"] + p["fio_after"]["rate"]) / 2 for p in pairs),
            "ratio": statistics.median(p["ratio"] for p in pairs),
            "cpu_s_per_gb": statistics.median(p["cpu_s_per_gb"] for p in pairs),
            "fio_cpu_s_per_gb": statistics.median(p["fio_before"]["cpu_s_per_gb"] for p in pairs),
            "pairs": pairs}


# What fio's one and two jobs are to it: requests under way (its mix has as many
# each way); and whether requests that lie side by side may become one.
VARIANTS = [("--queue-depth", depth, *single) for depth in ("16", "32") for single in ((), ("--single-submit",))]

ROWS = [("read", "read", "memory", True), ("write", "write", "memory", True), ("write", "write", "power", True), ("mixed", "mixed", "memory", True),
        ("mixed", "mixed", "memory", False), ("mixed", "mixed", "power", True), ("step", "mixed", "power", True)]


def again(options, report, section: str, rows, measure):
    """Measures rows (name, kind, durability, ...) of a section; with --row only those, beside what the file has."""
    def key(row: dict) -> tuple:
        return row.get("mode", row.get("model")), row["durability"], row.get("checksums")

    kept = {key(row): row for row in report.get(section, [])} if options.row else {}
    for row in rows:
        if not options.row or f"{row[0]} {row[2]}" in options.row:
            got = measure(row)
            kept[key(got)] = got
    report[section] = list(kept.values())


def aio(options) -> list:
    """CPU seconds per GB of DeepSpeed's aio handle and ours, in turns, reading and writing."""
    rows = []
    for way, durability in (("read", "memory"), ("write", "power")):
        for checksums in (False, True):
            more = [] if checksums else ["--no-checksums"]
            free = ours(options, "prepare", durability, *more)
            pairs = []
            for pair in range(options.pairs):
                theirs = sides.peer("aio_handle.py", "--file", free["file"], "--offset",
                                    str(free["free_offset_bytes"]), "--bytes", str(free["free_bytes"]),
                                    "--way", way, "--seconds", str(options.fio_seconds))
                result = ours(options, way, durability, *more)
                free = {k: result[k] for k in ("file", "free_offset_bytes", "free_bytes")}
                pairs.append({"ours": cpu_of(result), "theirs": theirs["cpu_s_per_gb"],
                              "ours_mib_s": statistics.median(rate_of(result, way)),
                              "theirs_mib_s": theirs["rate_mib_s"]})
            ours(options, "remove", durability)
            row = {"way": way, "checksums": checksums, "pairs": pairs,
                   **{k: statistics.median(p[k] for p in pairs) for k in pairs[0]},
                   "more": statistics.median(p["ours"] - p["theirs"] for p in pairs)}
            rows.append(row)
            say(f"{way} checksums {'on' if checksums else 'off'}: CPU s/GB ours {row['ours']:.3f}, DeepSpeed's "
                f"aio handle {row['theirs']:.3f}; MiB/s {row['ours_mib_s']:.0f}, {row['theirs_mib_s']:.0f}")
    return rows


def mark(good: bool) -> str:
    return "met" if good else "MISSED"


def spread(values) -> str:
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


def store_table(rows) -> list:
    lines = ["## The store against fio", "",
             "| what | durability | checksums | ours MiB/s | fio MiB/s | ratio min / median / max | aim | "
             "ours CPU s/GB | fio CPU s/GB |", "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        aim = 0.90 if row["mode"] == "step" else 0.95
        said = f"{aim} {mark(row['ratio'] >= aim)}" if row["checksums"] else ""
        lines.append(f"| {row['mode']} | {row['durability']} | {'on' if row['checksums'] else 'off'} | "
                     f"{row['ours_mib_s']:.0f} | {row['fio_mib_s']:.0f} | "
                     f"{spread([p['ratio'] for p in row['pairs']])} | {said} | "
                     f"{row['cpu_s_per_gb']:.3f} | {row['fio_cpu_s_per_gb']:.3f} |")
    return lines


def aio_table(rows) -> list:
    lines = ["## CPU seconds per GB against DeepSpeed's aio handle", "",
             "| what | checksums | ours | DeepSpeed | ours MiB/s | DeepSpeed MiB/s | aim |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        limit = 0.1 if row["checksums"] else 0.0
        lines.append(f"| {row['way']} | {'on' if row['checksums'] else 'off'} | {row['ours']:.3f} | "
                     f"{row['theirs']:.3f} | {row['ours_mib_s']:.0f} | {row['theirs_mib_s']:.0f} | "
                     f"{'at most 0.1 more' if limit else 'fewer'}: {mark(row['more'] <= limit)} |")
    return lines


def train_table(rows) -> list:
    lines = ["## A training step against the disk's bound (slots only, 2 ranks)", "",
             "| model | durability | windows of 12 MB | step ms min / median / max | forward (of it waiting) | "
             "backward | bound ms | fio mixed MiB/s | ratio min / median / max | aim |", "|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['model']} | {row['durability']} | {row['windows']} | "
                     f"{spread([r['ms'] for r in row['runs']])} | "
                     f"{row['forward_ms']:.0f} ({row['wait_params_ms']:.0f}) | {row['backward_ms']:.0f} | "
                     f"{row['bound_ms']:.0f} | {row['mixed_mib_s']:.0f} | "
                     f"{spread([r['ratio'] for r in row['runs']])} | 1.15 {mark(row['ratio'] <= 1.15)} |")
    return lines


def peer_table(row) -> list:
    best = row["deepspeed"]
    lines = ["## End to end against DeepSpeed (max_in_cpu 0)", "",
             f"{row['model']}, DeepSpeed with the best that was tried: sub_group_size {best['sub_group_size']}, "
             f"pipelining {best['pipeline']}.", "",
             "| side | step ms min / median / max | DeepSpeed / ours min / median / max | aim |", "|---|---|---|---|",
             f"| DeepSpeed | {spread([r['peer'] for r in row['rounds']])} | | |"]
    for name, words, aim in (("slots", "slots only, power", 2.0), ("half", "half the state in DRAM, memory", 3.0)):
        ratios = [r["peer"] / r[name] for r in row["rounds"]]
        lines.append(f"| {words} | {spread([r[name] for r in row['rounds']])} | {spread(ratios)} | "
                     f"{aim:g}x {mark(statistics.median(ratios) >= aim)} |")
    return lines


def tried_table(tuned) -> list:
    return [f"What was tried for DeepSpeed ({tuned['model']}):", "",
            "| pipelining | sub_group_size | step ms |", "|---|---|---|"] + [
        f"| {t['pipeline']} | {t['sub_group_size']} | "
        f"{'%.0f' % t['step_ms'] if 'step_ms' in t else 'failed: ' + t['failed'].splitlines()[-1][:120]} |"
        for t in tuned["tried"]]


def curve_tables(report) -> list:
    lines = []
    if report.get("budget_curve"):
        lines += ["## Step time over the DRAM budget", "",
                  "| share of the state + 48 MiB | durability | step ms | bound ms | MiB moved a step |", "|---|---|---|---|---|"]
        lines += [f"| {r['share']:.0%} | {r['durability']} | " +
                  (f"{r['ms']:.0f} | {r['bound_ms']:.0f} | {r['moved_bytes'] / MIB:.0f} |" if "ms" in r
                   else "refused: needs more | | |") for r in report["budget_curve"]] + [""]
    if report.get("size_curve"):
        lines += ["## Step time over the model's size (192 MiB, power)", "",
                  "| parameters | step ms | on a straight line | MiB moved a step |", "|---|---|---|---|"]
        lines += [f"| {r['parameters'] / 1e6:.1f} M | {r['ms']:.0f} | {r.get('line_ms', r['ms']):.0f} | "
                  f"{r['moved_bytes'] / MIB:.0f} |" for r in report["size_curve"]] + [""]
    if report.get("cache_rule"):
        lines += ["## Bytes read in a step, by the cache's rule", "",
                  "| what | kept in memory | ours MiB | LRU MiB |", "|---|---|---|---|"]
        lines += [f"| {r['what']} | {r['share']:.0%} | {r['belady_bytes'] / MIB:.1f} | {r['lru_bytes'] / MIB:.1f} |"
                  for r in report["cache_rule"]] + [""]
    return lines


def table(report: dict) -> str:
    m = report["machine"]
    lines = [f"# NVMe, {m['date']}", "",
             f"`tools/bench --nvme`, commit {m['commit']}, {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Linux "
             f"{m['kernel']}; {report['pairs']} pairs, medians; fio with huge pages: {report['fio_huge_pages']}. "
             f"Sections ran at: {', '.join(f'{k} {v}' for k, v in report['ran'].items())}.", ""]
    for key, make in (("store", store_table), ("aio", aio_table), ("train", train_table),
                      ("peer", peer_table), ("tuned", tried_table)):
        if report.get(key):
            lines += make(report[key]) + [""]
    return "\n".join(lines + curve_tables(report)) + "\n"


SECTIONS = ["store", "aio", "train", "tune", "peer", "budget", "size", "cache"]


def run_section(options, section, report, data):
    if section == "store":
        again(options, report, "store", ROWS, lambda row: store_row(options, *row))
    elif section == "aio":
        report["aio"] = aio(options)
    elif section == "train":
        rows = [(model.name, "train", durability, model)
                for model in ([train.SMALL] if options.quick else [train.SMALL, train.LARGE])
                for durability in ("power", "memory")]
        again(options, report, "train", rows, lambda row: train.against_bound(options, row[3], row[2], data, fio))
    elif section == "tune":
        report["tuned"] = train.tune(options, train.SMALL, data)
    elif section == "peer":
        if not report.get("tuned"):
            sys.exit("--only peer needs --only tune before it, with the same --json")
        report["peer"] = train.against_peer(options, train.SMALL, report["tuned"]["best"], data)
    elif section == "budget":
        report["budget_curve"] = curves.over_budget(options, data, fio)
    elif section == "size":
        report["size_curve"] = curves.over_size(options, data)
    elif section == "cache":
        report["cache_rule"] = curves.cache_rule(options, PROGRAM)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True,
                        help="where the results go, beside those of other sections that are there; a table (.md) and "
                             "a picture (.png) beside it")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="these sections (default: all)")
    parser.add_argument("--row", action="append", metavar="ROW",
                        help="of sections store and train: this row only, as 'write memory' or '25M power'; the file "
                             "keeps the others")
    parser.add_argument("--path", default=None, help="folder on the device (default: build/)")
    parser.add_argument("--data", help="text to train on (default: the demo's)")
    parser.add_argument("--elems", type=int, default=64 << 20, help="parameters (24 bytes of disk each)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of ours in a pair")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a training run")
    parser.add_argument("--fio-seconds", type=int, default=3)
    parser.add_argument("--tune-shares", type=float, nargs="+", default=[0.1, 0.2, 0.34, 1.01],
                        help="sub_group_size to try for DeepSpeed, as shares of a rank's parameters")
    parser.add_argument("--products", choices=["auto", "torch", "wide"], default="auto", help="as in bench/README.md")
    parser.add_argument("--quick", action="store_true", help="does it run? No figures to quote")
    options = parser.parse_args()
    options.say = say
    options.wide = options.products == "wide" or (options.products == "auto" and "avx512_bf16" not in machine.describe()["instructions"])
    if options.quick:
        options.pairs, options.rounds, options.fio_seconds, options.elems = 1, 1, 1, 16 << 20
        options.steps, options.tune_shares = 3, [0.2]
    folder = pathlib.Path(options.path or ROOT / "build" / "nvme-bench")
    folder.mkdir(parents=True, exist_ok=True)
    options.path = str(folder)
    data = options.data
    if data is None:
        data = str(folder / "text")
        pathlib.Path(data).write_bytes(subprocess.run([ROOT / "tools" / "default_text"], capture_output=True,
                                                      check=True).stdout)
    out = pathlib.Path(options.json)
    report = json.loads(out.read_text()) if out.exists() else {"ran": {}}
    report.update(machine=machine.describe(), pairs=options.pairs, elems=options.elems)
    # fio's huge-page buffers come from a pool that only root can fill.
    pool_before = HUGE_PAGES.read_text().strip()
    options.huge = False
    try:
        HUGE_PAGES.write_text("48")
        options.huge = int(HUGE_PAGES.read_text()) >= 40
    except OSError as why:
        say(f"fio with huge-page buffers: not measured: {why}")
    report["fio_huge_pages"] = options.huge
    try:
        for section in options.only or SECTIONS:
            say(f"section {section}")
            try:
                run_section(options, section, report, data)
                report["ran"][section] = time.strftime("%H:%M")
            except sides.Unavailable as why:
                say(f"section {section} did not run: {why}")
    finally:
        if options.huge:
            HUGE_PAGES.write_text(pool_before)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1))
    curves.draw(report, out.with_suffix(".png").absolute())
    out.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
