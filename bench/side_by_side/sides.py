"""How each side is run: one function per program, each returns plain numbers.

Every function starts a fresh process and waits for it. A side that cannot run
here raises Unavailable with the reason, which goes into the report; nothing is
estimated in its place.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import tempfile

import process_memory
from machine import ROOT

BUILD = pathlib.Path(os.environ.get("STOWAGE_BUILD_DIR", ROOT / "build" / "release"))
PEERS = ROOT / "bench" / "peers"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "stowage"
PEER_PYTHON = CACHE / "peers-deepspeed-0.19.8" / "bin" / "python"
KERNEL_THREADS = 2
STEP_TIMEOUT_S = 1200


class Unavailable(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    layers: int
    width: int
    micro_batch: int
    context: int = 128

    @property
    def heads(self) -> int:
        return self.width // 64


@dataclasses.dataclass(frozen=True)
class Length:
    warmup: int
    steps: int


def last_json(text: str, what: str) -> dict:
    for line in reversed(text.strip().splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise Unavailable(f"{what} printed no result: {text.strip()[-300:]}")


def run(command, env=None) -> str:
    try:
        done = subprocess.run([str(c) for c in command], env=env, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=STEP_TIMEOUT_S)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} does not exist")
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} did not end in {STEP_TIMEOUT_S} s")
    if done.returncode != 0:
        raise Unavailable(f"{pathlib.Path(str(command[0])).name} ended with {done.returncode}: "
                          f"{(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def peer(script: str, *arguments) -> dict:
    if not PEER_PYTHON.exists():
        raise Unavailable("the peers' environment is missing: tools/setup --bench")
    return last_json(run([PEER_PYTHON, "-W", "ignore", PEERS / script, *arguments]), script)


def google_benchmark(name: str, pattern: str, repetitions: int) -> dict:
    """name/size -> {"ms": median wall time, "bytes_per_second": …} of our bench."""
    program = BUILD / "bench" / name
    if not program.exists():
        raise Unavailable(f"build/release/bench/{name} does not exist")
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        run([program, f"--benchmark_filter={pattern}", f"--benchmark_repetitions={repetitions}",
             "--benchmark_report_aggregates_only=true", f"--benchmark_out={out.name}",
             "--benchmark_out_format=json"])
        text = open(out.name).read()
    if not text.strip():
        raise Unavailable(f"{name} has no benchmark that matches {pattern}")
    to_ms = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
    results = {}
    for b in json.loads(text)["benchmarks"]:
        # One repetition has no aggregates: it is its own median.
        if b.get("aggregate_name", "median") != "median":
            continue
        key = re.match(r"[\w]+(/(64M|1M))?", b["run_name"]).group(0)
        results[key] = {"ms": b["real_time"] * to_ms[b["time_unit"]],
                        "bytes_per_second": b.get("bytes_per_second"), "label": b.get("label")}
    return results


def service_bench(pairs: int) -> dict:
    """The chain through a stowd process and in this one, in turns."""
    program = BUILD / "bench" / "service_bench"
    if not program.exists():
        raise Unavailable("build/release/bench/service_bench does not exist")
    got = json.loads(run(["env", f"STOWAGE_STOWD={BUILD}/bin/stowd", program, "--pairs", pairs,
                          "--threads", KERNEL_THREADS]))
    # A stream of the same gRPC without anything of ours behind it, the same messages.
    latency = run(["env", f"STOWAGE_STOWD={BUILD}/bin/stowd",
                   BUILD / "tests" / "client_server_latency_test"])
    bare = re.search(r"^bare stream .* median ([\d.]+)", latency, re.MULTILINE)
    out = {"service_empty_step": {"ms": got["prepare_apply_us"]["median"] / 1e3},
           "bare_stream": {"ms": float(bare.group(1)) / 1e3 if bare else None},
           "socket_round_trip": {"ms": got["socket_round_trip_us"]["median"] / 1e3}}
    for size, side in (("64M", "large"), ("1M", "small")):
        for name, key in (("service_chain", "service_ms"), ("in_process_chain", "in_process_ms")):
            out[f"{name}/{size}"] = {"ms": got[side][key]["median"]}
    return out


def training_flags(model: Model) -> list:
    return ["--layers", model.layers, "--width", model.width, "--heads", model.heads,
            "--context", model.context, "--micro-batch", model.micro_batch, "--ranks", 2]


STAGE3 = ROOT / "configs" / "stage3_test.json"


def stow_train_command(model: Model, length: Length, data, out, config=STAGE3) -> list:
    return [BUILD / "bin" / "stow-train", "--config", config, "--data", data, "--out", out,
            "--precision", "bf16", "--max-grad-norm", 1, "--lr", 3e-4,
            "--steps", length.warmup + length.steps, "--sample-bytes", 0,
            "--no-weights", "--log-level", "error", *training_flags(model)]


def ours_training(model: Model, length: Length, data, wide: bool, exchange: str = "auto",
                  products: str = "1") -> dict:
    """`products` of 16-bit matrices, if `wide`: "1" the engine's choice for this CPU, "panels"
    LibTorch's in fp32, as the peers have them."""
    with tempfile.TemporaryDirectory(prefix="stowage-bench-") as out:
        run(stow_train_command(model, length, data, out) + ["--exchange", exchange],
            training_environment(wide, products))
        with open(f"{out}/summary.json") as f:
            summary = json.load(f)
    return {k: summary.get(k) for k in ("step_ms", "phases_ms", "parameters", "first_loss",
                                        "final_loss", "server", "exchange")}


def exchange_volume(model: Model, data, wide: bool) -> dict:
    """Bytes that rank 0 sent in a step of ZeRO-3 with nothing kept gathered between forward and
    backward, as its counters have them, beside what `stowctl plan` makes of the layout."""
    steps = 4
    with tempfile.TemporaryDirectory(prefix="stowage-bench-") as out:
        config = json.loads(STAGE3.read_text())
        config["zero_optimization"].update(
            stage3_max_live_parameters=0, stage3_max_reuse_distance=0,
            stage3_prefetch_bucket_size=0, stage3_param_persistence_threshold=0)
        path = pathlib.Path(out) / "config.json"
        path.write_text(json.dumps(config))
        run(stow_train_command(model, Length(0, steps), data, out, path) + ["--exchange", "c10d"],
            training_environment(wide))
        plan = json.loads(run([BUILD / "bin" / "stowctl", "plan", path, "--run", out, "--lr", 3e-4,
                               "--no-calibration", "--json"]))
    counted, sent = plan["run"], plan["sent_bytes_per_step"]
    return {"parameters": plan["model"]["parameters"],
            "counted": (counted["sent_params"] + counted["sent_gradients"]) / steps,
            "formula": (sent["params_first_step"] + (steps - 1) * sent["params"]) / steps +
                       sent["gradients"]}


def training_environment(wide: bool, products: str = "1") -> dict:
    return dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1",
                STOWAGE_WIDE_PRODUCTS=products if wide else "0")


def peer_arguments(model: Model, length: Length, data, wide: bool, malloc: str) -> list:
    return [str(a) for a in training_flags(model)] + [
        "--data", str(data), "--steps", str(length.steps), "--warmup", str(length.warmup),
        "--malloc", malloc, "--products", "wide" if wide else "torch"]


def peer_training(script: str, model: Model, length: Length, data, wide: bool,
                  malloc: str = "default") -> dict:
    return peer(script, *peer_arguments(model, length, data, wide, malloc))


def remote_payload(rounds: int) -> dict:
    """A rank without shared memory against a plain gRPC stream, in turns."""
    program = BUILD / "bench" / "remote_bench"
    if not program.exists():
        raise Unavailable("build/release/bench/remote_bench does not exist")
    return json.loads(run(["env", f"STOWAGE_STOWD={BUILD}/bin/stowd", program, "--rounds", rounds]))


def memory_of(side: str, model: Model, length: Length, data, wide: bool) -> dict:
    """Host memory of one training run of `side`: "ours" or a peer's script."""
    with tempfile.TemporaryDirectory(prefix="stowage-bench-") as out:
        if side == "ours":
            command = stow_train_command(model, length, data, out)
            env = training_environment(wide)
        else:
            if not PEER_PYTHON.exists():
                raise Unavailable("the peers' environment is missing: tools/setup --bench")
            command = [PEER_PYTHON, "-W", "ignore", PEERS / side,
                       *peer_arguments(model, length, data, wide, "default")]
            env = dict(os.environ)
        if not pathlib.Path(command[0]).exists():
            raise Unavailable(f"{command[0]} does not exist")
        code, report = process_memory.run_and_sample([str(c) for c in command], env,
                                                     f"{out}/log")
        if code != 0:
            raise Unavailable(f"{side} ended with {code}: {open(f'{out}/log').read()[-300:]}")
    return report
