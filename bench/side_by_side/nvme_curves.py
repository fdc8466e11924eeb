"""Curves of training on NVMe: over the DRAM budget, over the model's size, and
what the cache's rule is worth. Each is measured; gnuplot draws them."""

import json
import pathlib
import statistics
import subprocess

import nvme_train as train
import sides

MIB = train.MIB
# The least that a job of 85 M can do with is 8.6 % and 48 MiB: three units, and two ranks' gradients of one.
SHARES = [1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.10, 0.087, 0.05]
SIZES = [sides.Model("11M", 6, 384, 1), train.SMALL, sides.Model("43M", 6, 768, 1),
         sides.Model("64M", 9, 768, 1), train.LARGE]


def over_budget(options, data, fio) -> list:
    """Step time of one model as its DRAM budget shrinks, beside the bound."""
    disk = pathlib.Path(options.path) / "train"
    model = train.SMALL if options.quick else train.LARGE
    probe = train.ours(model, train.Place("probe", "memory"), 1, data, disk, options.wide, leave_files=True)
    rate = fio(options, "mixed", train.files_of(disk))["rate"]
    rows = []
    for share in SHARES:
        budget = int(12 * probe["parameters"] * share) + (48 << 20)
        for durability in ("memory", "power"):
            try:
                run = train.ours(model, train.Place(f"{share:.0%}", durability, budget), options.steps, data,
                                 disk, options.wide, leave_files=True)
            except sides.Unavailable as why:
                rows.append({"share": share, "durability": durability, "refused": str(why)[-300:]})
                options.say(f"budget {share:.0%} {durability}: {rows[-1]['refused']}")
                continue
            after = fio(options, "mixed", train.files_of(disk))["rate"]
            mixed, rate = (rate + after) / 2, after
            rows.append({"share": share, "durability": durability, "budget_bytes": budget, "ms": run["ms"],
                         "bound_ms": train.bound_ms(run, mixed), "mixed_mib_s": mixed,
                         "moved_bytes": run["read_bytes"] + run["written_bytes"],
                         "cache_bytes": run["cache_bytes"]})
            options.say(f"budget {share:.0%} {durability}: step {run['ms']:.0f} ms, bound "
                        f"{rows[-1]['bound_ms']:.0f} ms, {rows[-1]['moved_bytes'] / MIB:.0f} MiB a step")
    return rows


def over_size(options, data) -> list:
    """Step time of models of several sizes at one DRAM budget."""
    disk = pathlib.Path(options.path) / "train"
    budget = 192 << 20
    rows = []
    for model in SIZES[:2] if options.quick else SIZES:
        run = train.ours(model, train.Place("fixed", "power", budget), options.steps, data, disk, options.wide)
        rows.append({"model": model.name, "parameters": run["parameters"], "budget_bytes": budget,
                     "ms": run["ms"], "moved_bytes": run["read_bytes"] + run["written_bytes"]})
        options.say(f"{model.name} at 192 MiB: step {run['ms']:.0f} ms, {rows[-1]['moved_bytes'] / MIB:.0f} MiB")
    # How far from a straight line through the points.
    xs, ys = [r["parameters"] for r in rows], [r["ms"] for r in rows]
    if len(rows) > 2:
        mx, my = statistics.mean(xs), statistics.mean(ys)
        slope = sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)
        for row in rows:
            row["line_ms"] = my + slope * (row["parameters"] - mx)
    return rows


def cache_rule(options, program) -> list:
    """Bytes that a step reads by our rule and by LRU, counted by nvme_bench."""
    done = subprocess.run([str(program), "--path", options.path, "--mode", "cache", "--elems",
                           str((8 if options.quick else 32) << 20)], capture_output=True, text=True)
    if done.returncode != 0:
        raise sides.Unavailable(f"nvme_bench --mode cache: {done.stderr[-300:]}")
    return json.loads(done.stdout)["rows"]


def draw(report: dict, picture: pathlib.Path) -> bool:
    """One picture of whatever curves the report has. Returns: true if any."""
    plots, blocks = [], []

    def block(rows):
        name = f"$d{len(blocks)}"
        blocks.append(f"{name} << EOD\n" + "\n".join(" ".join(map(str, row)) for row in rows) + "\nEOD")
        return name

    if report.get("budget_curve"):
        lines = []
        for durability, colour in (("memory", 1), ("power", 2)):
            rows = [r for r in report["budget_curve"] if r["durability"] == durability and "ms" in r]
            d = block((100 * r["share"], r["ms"], r["bound_ms"]) for r in rows)
            lines += [f"{d} using 1:2 with linespoints lc {colour} pt 7 title '{durability}'",
                      f"{d} using 1:3 with lines lc {colour} dt 2 title '{durability}: bound'"]
        plots.append("set title 'step time over DRAM budget'; set xlabel '% of the state (+ 48 MiB)'; "
                     "set ylabel 'ms'; set xrange [100:0]; set yrange [0:*]; plot " + ", ".join(lines))
    if report.get("size_curve"):
        d = block((r["parameters"] / 1e6, r["ms"], r.get("line_ms", r["ms"])) for r in report["size_curve"])
        plots.append("set title 'step time over model size, 192 MiB, power'; set xlabel 'million parameters'; "
                     "set ylabel 'ms'; set xrange [0:*]; set yrange [0:*]; "
                     f"plot {d} using 1:2 with points pt 7 title 'measured', {d} using 1:3 with lines title 'line'")
    if report.get("cache_rule"):
        lines = []
        for what, colour in (("state", 1), ("parameters", 2)):
            d = block((100 * r["share"], r["belady_bytes"] / MIB, r["lru_bytes"] / MIB)
                      for r in report["cache_rule"] if r["what"] == what)
            lines += [f"{d} using 1:2 with linespoints lc {colour} pt 7 title '{what}: ours'",
                      f"{d} using 1:3 with linespoints lc {colour} dt 2 pt 6 title '{what}: LRU'"]
        plots.append("set title 'bytes read in a step'; set xlabel '% kept in memory'; set ylabel 'MiB'; "
                     "set xrange [0:100]; set yrange [0:*]; plot " + ", ".join(lines))
    if not plots:
        return False
    script = "\n".join(blocks) + (f"\nset terminal pngcairo size {620 * len(plots)},460\nset output '{picture}'\n"
                                  f"set multiplot layout 1,{len(plots)}\nset key top\nset grid\n" +
                                  "\n".join(plots) + "\nunset multiplot\n")
    subprocess.run(["gnuplot", "-"], input=script, text=True, check=True)
    return True
