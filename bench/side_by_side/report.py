"""The table and the picture of one result; both say machine, date and command."""

import json
import pathlib
import statistics
import subprocess
import tempfile

import claims

SIDES = [("ours", "Stowage"), ("ours_peers_products", "Stowage, peers' products"),
         ("plain", "plain forward + backward"), ("deepspeed", "DeepSpeed 0.19.8"),
         ("deepspeed_tuned_malloc", "DeepSpeed, tuned malloc"), ("fsdp2", "torch FSDP2"),
         ("deepspeed_as_installed", "DeepSpeed 0.19.8, torch's own bf16 products")]


def step_medians(section) -> dict:
    """model -> side -> median over rounds of the median step, ms."""
    out = {}
    for model, entry in section.items():
        out[model] = {side: claims.median(claims.figures(
            entry.get(side), lambda r: r["step_ms"]["median"])) for side, _ in SIDES}
    return out


def number(value, digits=4) -> str:
    return "not measured" if value is None else f"{value:.{digits}g}"


def spread(values) -> str:
    return f"{min(values):.4g} / {statistics.median(values):.4g} / {max(values):.4g}"


def table(result) -> str:
    m = result["machine"]
    lines = [
        f"# Side by side, {m['date']}", "",
        f"`{result['command']}`", "",
        f"{m['cpu']}, {m['cores']} cores ({', '.join(m['instructions'])}), {m['memory_gib']} GiB, "
        f"Linux {m['kernel']}, transparent huge pages {m['transparent_huge_pages']}; commit {m['commit']}"
        + (" with uncommitted changes" if m["uncommitted_changes"] else "") + ". "
        f"Load average at the start: {m['load_before']:.2f}. "
        f"Rounds: {result['rounds']}, sides in turn; a ratio is made of two figures of one round, and its median decides. "
        f"Kernels and chains: {result['threads']['kernel']} threads; training: {result['threads']['training']}.",
    ]
    if result["quick"]:
        lines += ["", "**A smoke test (--quick): its figures are no measurements.**"]
    if result["products"] == "wide":
        lines += ["", "This CPU has no 16-bit matrix instructions, where torch multiplies bf16 in plain "
                  "loops. The peers' model is therefore given products in fp32, by torch, rounded once "
                  "(bench/peers/gpt.py); ours has the engine's own (engine/product), and with \"peers' "
                  "products\" those of the peers: the same arithmetic on both sides."]
    lines += ["", "| what | min / median / max over rounds | aim | met |", "|---|---|---|---|"]
    for c in result["claims"]:
        met = {True: "yes", False: "**no**", None: ""}[c["met"]]
        unit = f" {c['unit']}" if c["unit"] and c["value"] is not None else ""
        got = "not measured" if c["spread"] is None else " / ".join(number(v) for v in c["spread"])
        aim = f"{c['target']} {c['unit']}" if c["target"] else ""
        lines.append(f"| {c['what']} | {got}{unit} | {aim} | {met} |")
    training = result["sections"].get("training")
    if training:
        lines += ["", "Milliseconds a step (min / median / max over rounds), ZeRO-3, both offloads cpu, "
                  "2 ranks of 1 thread, bf16, clip 1.0, context 128:", "",
                  "| model | " + " | ".join(label for _, label in SIDES) + " |",
                  "|---" * (len(SIDES) + 1) + "|"]
        for model, entry in training.items():
            cells = []
            for side, _ in SIDES:
                values = claims.figures(entry.get(side), lambda r: r["step_ms"]["median"])
                cells.append(spread(values) if values else "not measured")
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
    exchange = result["sections"].get("exchange")
    if exchange:
        lines += ["", "Milliseconds a step by exchange (min / median / max over rounds), the same job:", "",
                  "| model | segments | c10d, Gloo | c10d, peers' products | DeepSpeed 0.19.8, Gloo |",
                  "|---|---|---|---|---|"]
        for model, entry in exchange.items():
            cells = [claims.figures(entry.get(side), lambda r: r["step_ms"]["median"])
                     for side in ("segments", "c10d", "c10d_peers_products", "deepspeed")]
            lines.append(f"| {model} | " + " | ".join(
                spread(values) if values else "not measured" for values in cells) + " |")
    remote = result["sections"].get("remote", {}).get("ours", {}).get("rounds")
    if remote:
        lines += ["", f"Payload of a rank without shared memory, GB/s (min / median / max over rounds), "
                  f"{remote[0]['bytes'] >> 20} MiB in chunks of {remote[0]['chunk_bytes'] >> 10} KiB over "
                  "a Unix socket:", "", "| | ours | a plain gRPC stream |", "|---|---|---|"]
        for way, what in (("send", "gradients to the server"), ("fetch", "parameters from it")):
            lines.append(f"| {what} | " + " | ".join(
                " / ".join(number(remote[0][way][side][k], 3) for k in ("min", "median", "max"))
                for side in ("ours_gb_s", "plain_gb_s")) + " |")
    reasons = list(not_measured(result["sections"], ""))
    if reasons:
        lines += ["", "Not measured:", ""] + [f"- {r}" for r in reasons]
    memory = result["sections"].get("memory")
    if memory:
        lines += ["", "| memory of a run, MiB | steady | peak |", "|---|---|---|"]
        for name, entry in memory.items():
            if "rounds" in entry:
                r = entry["rounds"][0]
                lines.append(f"| {name} | {r['steady_bytes'] / claims.MIB:.0f} | "
                             f"{r['peak_bytes'] / claims.MIB:.0f} |")
    return "\n".join(lines) + "\n"


def not_measured(node, path):
    if isinstance(node, dict):
        if "not_measured" in node:
            reason = " ".join(str(node["not_measured"]).split())
            yield f"{path}: {reason[:300]}"
            return
        for key, value in node.items():
            yield from not_measured(value, f"{path} {key}".strip())


def picture(result, path: pathlib.Path):
    """Two panels: time of a training step, time of the optimizer's chain."""
    steps = step_medians(result["sections"].get("training", {}))
    sides = [(s, label) for s, label in SIDES
             if s not in ("deepspeed_tuned_malloc", "deepspeed_as_installed")
             and any(row[s] for row in steps.values())]
    chain = result["sections"].get("chain", {})
    bars = []
    for gradients, key, word in ((1, "chain_1_slot/64M", "1 gradient"), (2, "chain_2_slots/64M", "2 gradients")):
        ours = claims.median(claims.figures(chain.get("ours"), lambda r: r[key]["ms"]))
        theirs = claims.median(claims.figures(chain.get(f"deepspeed_{gradients}"), lambda r: r["ms"]["median"]))
        if ours and theirs:
            bars.append((word, ours, theirs))
    panels = (1 if sides else 0) + (1 if bars else 0)
    if not panels:
        return
    m = result["machine"]
    with tempfile.TemporaryDirectory() as folder:
        script = [
            f"set terminal pngcairo size {560 * panels},460 font 'sans,11'", f"set output '{path}'",
            "set style data histograms", "set style histogram clustered gap 1",
            "set style fill solid 0.9 border -1", "set boxwidth 0.9", "set grid ytics lc rgb '#dddddd'",
            "set tics nomirror", "set border 3", "set yrange [0:*]", "set key below horizontal",
            f"set multiplot layout 1,{panels} title \"{m['cpu']}, {m['cores']} cores, "
            f"{m['date'][:10]}, commit {m['commit'][:8]}{' (smoke test)' if result['quick'] else ''}\" font ',10'"]
        if sides:
            rows = ["\t".join(["model"] + [label for _, label in sides])]
            for model, row in steps.items():
                rows.append("\t".join([model] + [str(row[s] or "?") for s, _ in sides]))
            pathlib.Path(f"{folder}/steps").write_text("\n".join(rows) + "\n")
            script += ["set title 'one training step, ZeRO-3 offloaded, 2 ranks'", "set ylabel 'ms (lower is better)'",
                       "set datafile separator '\\t'", "set datafile missing '?'",
                       f"plot for [i=2:{len(sides) + 1}] '{folder}/steps' using i:xtic(1) title columnheader(i)"]
        if bars:
            rows = ["what\tStowage\tDeepSpeed 0.19.8"] + [f"{w}\t{a}\t{b}" for w, a, b in bars]
            pathlib.Path(f"{folder}/chain").write_text("\n".join(rows) + "\n")
            script += ["set title 'optimizer chain, 64 M parameters, 2 threads'", "set ylabel 'ms (lower is better)'",
                       "set datafile separator '\\t'",
                       f"plot for [i=2:3] '{folder}/chain' using i:xtic(1) title columnheader(i)"]
        script.append("unset multiplot")
        pathlib.Path(f"{folder}/plot").write_text("\n".join(script) + "\n")
        subprocess.run(["gnuplot", f"{folder}/plot"], check=True)


def write(result, json_path: pathlib.Path):
    json_path.write_text(json.dumps(result, indent=1) + "\n")
    json_path.with_suffix(".md").write_text(table(result))
    picture(result, json_path.with_suffix(".png"))
