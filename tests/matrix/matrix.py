"""The matrix of configurations: stage x offloads x precision x schedule x
accumulation x ranks, each trained for 20 steps beside plain LibTorch, or
refused with a reason.

What is refused is asked of the program (stowctl config explain), never listed
here: a build that learns something new trains it here without a change.
"""

import itertools
import json
import os
import re
import subprocess

STEPS = 20
MODEL = ["--layers", "2", "--width", "64", "--heads", "4", "--context", "32",
         "--seed", "7", "--sample-bytes", "0"]  # 0.12 M parameters
MICRO_BATCH = 2
LR = 5e-4
# Two orders of summation of fp32 part by this much within 20 steps; 16-bit
# products by the rounding of their type.
TOLERANCE = {"fp32": 5e-6, "bf16": 4e-3, "fp16": 2e-3}

FACTORS = {
    "stage": [0, 1, 2, 3],
    "optimizer": ["none", "cpu", "nvme"],
    "param": ["none", "cpu", "nvme"],
    "precision": ["fp32", "bf16", "fp16"],
    "schedule": ["constant", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR",
                 "LRRangeTest", "OneCycle"],
    "accumulation": [1, 2],
    "ranks": [1, 2],
}

SCHEDULES = {
    "constant": None,
    "WarmupLR": {"warmup_max_lr": LR, "warmup_num_steps": 8},
    "WarmupDecayLR": {"warmup_max_lr": LR, "warmup_num_steps": 4,
                      "total_num_steps": STEPS, "warmup_type": "linear"},
    "WarmupCosineLR": {"warmup_num_steps": 4, "total_num_steps": STEPS},
    "LRRangeTest": {"lr_range_test_min_lr": LR / 4,
                    "lr_range_test_step_size": 5},
    "OneCycle": {"cycle_min_lr": LR / 4, "cycle_max_lr": LR,
                 "cycle_first_step_size": 6, "decay_step_size": 4,
                 "decay_lr_rate": 0.5},
}


def every():
    return [dict(zip(FACTORS, values))
            for values in itertools.product(*FACTORS.values())]


def pairwise(candidates=None):
    """A small set in which every two values of two factors meet that meet in
    `candidates` (all): greedy, and the same each time."""
    names = list(FACTORS)
    candidates = every() if candidates is None else candidates
    open_pairs = {(a, row[a], b, row[b]) for row in candidates
                  for a, b in itertools.combinations(names, 2)}
    rows = []
    while open_pairs:
        def gain(row):
            return sum((a, row[a], b, row[b]) in open_pairs
                       for a, b in itertools.combinations(names, 2))
        best = max(candidates, key=gain)
        rows.append(best)
        open_pairs -= {(a, best[a], b, best[b])
                       for a, b in itertools.combinations(names, 2)}
    return rows


def name_of(case):
    return "-".join(str(case[factor]) for factor in FACTORS)


def config_of(case, disk):
    zero = {"stage": case["stage"]}
    for block, device in (("offload_optimizer", case["optimizer"]),
                          ("offload_param", case["param"])):
        if device != "none":
            zero[block] = {"device": device}
        if device == "nvme":
            zero[block]["nvme_path"] = disk
    if case["param"] == "nvme":
        zero["offload_param"]["max_in_cpu"] = 0
    config = {
        "train_micro_batch_size_per_gpu": MICRO_BATCH,
        "gradient_accumulation_steps": case["accumulation"],
        "gradient_clipping": 0.5,
        "optimizer": {"type": "AdamW",
                      "params": {"lr": LR, "weight_decay": 0.1}},
        "zero_optimization": zero,
    }
    if case["precision"] != "fp32":
        config[case["precision"]] = {"enabled": True}
    if case["precision"] == "fp16":
        config["fp16"]["initial_scale_power"] = 10
    if SCHEDULES[case["schedule"]] is not None:
        config["scheduler"] = {"type": case["schedule"],
                               "params": SCHEDULES[case["schedule"]]}
    return config


def reason_of(text):
    """The refusal without what differs from case to case: file, line, rank."""
    lines = [line for line in text.splitlines()
             if not re.search(r" [IW] (stow-train|stowd)\[", line)]
    line = lines[0] if lines else "nothing was said"
    line = re.sub(r"^(stow-train|stowctl): ", "", line)
    line = re.sub(r"^this build refuses the file: ", "", line)
    line = re.sub(r"^\S*\.json(:\d+:\d+)?: ", "", line)
    return re.sub(r"^rank \d+: (start: )?", "", line)


class Runner:
    """Runs cases of a build; `folder` is a tests/support Folder."""

    def __init__(self, binaries, folder):
        self.binaries = binaries
        self.folder = folder
        self.references = {}

    def _write(self, case):
        path = self.folder.file(name_of(case) + ".json")
        with open(path, "w") as out:
            json.dump(config_of(case, self.folder.file("disk")), out)
        return path

    def refusal(self, case):
        """The reason why this build refuses the case, or None."""
        out = subprocess.run(
            [f"{self.binaries}/stowctl", "config", "explain",
             self._write(case), "--world-size", str(case["ranks"])],
            capture_output=True, text=True, timeout=60)
        if out.returncode != 0 or "this build refuses" in out.stderr:
            return reason_of(out.stderr)
        return None

    def accepted(self):
        """All combinations that this build trains; where state and parameters
        lie decides."""
        places = {}
        for case in every():
            place = (case["stage"], case["optimizer"], case["param"])
            if place not in places:
                places[place] = self.refusal(case) is None
        return [case for case in every()
                if places[case["stage"], case["optimizer"], case["param"]]]

    @staticmethod
    def _reference_key(case):
        return (case["precision"], case["schedule"],
                case["accumulation"] * case["ranks"])

    def compute_references(self, cases):
        """All that `cases` need, in one process."""
        wanted = {}
        for case in cases:
            key = self._reference_key(case)
            if key not in self.references:
                wanted[key] = case
        if not wanted:
            return
        arguments = []
        for case in wanted.values():
            # Where parameters and state lie is nothing to it.
            plain = dict(case, stage=0, optimizer="none", param="none")
            arguments += [self._write(plain), str(case["ranks"])]
        out = subprocess.run(
            [f"{self.binaries}/../tests/plain_train", self.folder.file("text"),
             str(STEPS), *arguments],
            capture_output=True, text=True, timeout=1800)
        if out.returncode != 0:
            raise AssertionError("plain_train: " + out.stderr)
        for key, line in zip(wanted, out.stdout.splitlines()):
            self.references[key] = [float(word) for word in line.split()]

    def train(self, case):
        """(worst relative difference of a loss, None) or (None, refusal)."""
        trace = self.folder.file(name_of(case) + ".trace")
        out = subprocess.run(
            [f"{self.binaries}/stow-train", "--config", self._write(case),
             "--data", self.folder.file("text"), *MODEL, "--steps", str(STEPS),
             "--ranks", str(case["ranks"]), "--rank-threads", "1", "--trace",
             trace],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=300)
        if out.returncode in (2, 4):
            return None, reason_of(out.stderr)
        if out.returncode != 0:
            raise AssertionError(
                f"{name_of(case)}: exit {out.returncode}: {out.stderr[-2000:]}")
        with open(trace) as lines:
            losses = [json.loads(line)["loss"] for line in lines]
        want = self.references[self._reference_key(case)]
        if len(losses) != STEPS or len(want) != STEPS:
            raise AssertionError(f"{name_of(case)}: {len(losses)} steps, "
                                 f"{len(want)} in the reference")
        return max(abs(a - b) / b for a, b in zip(losses, want)), None

    def run(self, cases, say=lambda case, result: None):
        """[(case, difference or None, reason or None)] in the order given."""
        os.makedirs(self.folder.file("disk"), exist_ok=True)
        refusals = [self.refusal(case) for case in cases]
        self.compute_references(
            [case for case, why in zip(cases, refusals) if why is None])
        results = []
        for case, why in zip(cases, refusals):
            difference = None
            if why is None:
                difference, why = self.train(case)
            results.append((case, difference, why))
            say(case, results[-1])
        return results


def faults(results):
    """What is wrong, in sentences."""
    out = []
    for case, difference, _ in results:
        if difference is None:
            continue
        limit = TOLERANCE[case["precision"]]
        if not difference <= limit:
            out.append(f"{name_of(case)}: losses part from plain training by "
                       f"{difference:.2e}, more than {limit:.0e}")
    return out


def table(results):
    """Markdown: refusals by reason, then a row for each trained place."""
    lines = []
    trained = [r for r in results if r[1] is not None]
    refused = [r for r in results if r[1] is None]
    lines.append(f"{len(results)} combinations: {len(trained)} trained, "
                 f"{len(refused)} refused.\n")
    lines.append("| stage | offload_optimizer | offload_param | precision | "
                 "trained | worst difference of a loss |")
    lines.append("|---|---|---|---|---|---|")
    places = {}
    for case, difference, _ in trained:
        key = tuple(case[f] for f in ("stage", "optimizer", "param",
                                      "precision"))
        places.setdefault(key, []).append(difference)
    for key, differences in sorted(places.items()):
        lines.append("| " + " | ".join(map(str, key)) +
                     f" | {len(differences)} | {max(differences):.1e} |")
    lines.append("\n| refused | stage, offload_optimizer, offload_param | "
                 "reason |")
    lines.append("|---|---|---|")
    reasons = {}
    for case, _, why in refused:
        reasons.setdefault(why, []).append(case)
    for why, cases in sorted(reasons.items(), key=lambda r: -len(r[1])):
        where = sorted({(c["stage"], c["optimizer"], c["param"])
                        for c in cases})
        shown = "; ".join(" ".join(map(str, w)) for w in where[:6])
        if len(where) > 6:
            shown += f"; and {len(where) - 6} more"
        lines.append(f"| {len(cases)} | {shown} | {why.replace('|', ' ')} |")
    return "\n".join(lines) + "\n"
