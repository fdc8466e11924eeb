"""Real stowd and stow-train processes for tests, in a folder of their own."""

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time

BIN = os.environ["STOWAGE_BIN_DIR"]
SOURCE = os.environ["STOWAGE_SOURCE_DIR"]

TINY = ["--layers", "2", "--width", "64", "--heads", "4", "--context", "32",
        "--sample-bytes", "0", "--seed", "7"]


class Folder:
    """A temporary folder with a text and room for sockets and traces."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="stowage-test-")
        self.shm = tempfile.mkdtemp(prefix="stowage-test-", dir="/dev/shm")
        rng = random.Random(1)
        with open(self.file("text"), "w") as text:
            text.write("".join(rng.choice("etaoin shrdlu\n")
                               for _ in range(20000)))
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.rmtree(self.shm, ignore_errors=True)

    def file(self, name):
        return os.path.join(self.path, name)

    def config(self, name="config.json", **changes):
        config = {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": 0.5,
            "optimizer": {"type": "AdamW",
                          "params": {"lr": 2e-3, "weight_decay": 0.1}},
            "zero_optimization": {
                "stage": 3,
                "offload_optimizer": {"device": "cpu"},
                "offload_param": {"device": "cpu"}},
        }
        for key, value in changes.items():
            if value is None:
                config.pop(key, None)
            else:
                config[key] = value
        with open(self.file(name), "w") as out:
            json.dump(config, out)
        return self.file(name)

    def segments(self):
        return [n for n in os.listdir(self.shm) if not n.endswith(".lock")]


class Stowd:
    """A running server; killed (with what it left behind checked) at exit."""

    def __init__(self, folder, *args, address=None):
        self.folder = folder
        os.makedirs(folder.file("run"), mode=0o700, exist_ok=True)
        self.address = address or "unix:" + folder.file("run/stowd.sock")
        self.log = open(folder.file("stowd.log"), "a")
        self.process = subprocess.Popen(
            [f"{BIN}/stowd", "--listen", self.address, "--shm-dir", folder.shm,
             *args], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        for _ in range(500):
            if stowctl(self.address, "info").returncode == 0:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError("stowd did not start:\n" +
                             read(folder.file("stowd.log")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=20)
        self.log.close()

    def jobs(self):
        out = stowctl(self.address, "jobs", "--json")
        return json.loads(out.stdout)


def stowctl(address, *args):
    return subprocess.run([f"{BIN}/stowctl", "--server", address, *args],
                          capture_output=True, text=True, timeout=60)


def train_command(config, data, *args):
    return [f"{BIN}/stow-train", "--config", config, "--data", data, *args]


def train(config, data, *args, timeout=120, env=None):
    return subprocess.run(train_command(config, data, *args),
                          stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=timeout,
                          env={**os.environ, **(env or {})})


def start_train(folder, config, data, *args):
    """Starts in a session of its own, so that kill_all reaches every rank."""
    with open(folder.file("train.log"), "a") as log:
        return subprocess.Popen(train_command(config, data, *args),
                                stdin=subprocess.DEVNULL, stdout=log,
                                stderr=log, start_new_session=True)


def kill_all(process, number=signal.SIGKILL):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
    process.wait(timeout=30)


def trace(path):
    """Step -> the line's values (a step printed twice must be equal)."""
    steps = {}
    if not os.path.exists(path):
        return steps
    for line in read(path).splitlines(keepends=True):
        if not line.endswith("\n"):
            continue  # killed while writing
        entry = json.loads(line)
        steps[entry["step"]] = entry
    return steps


def read(path):
    with open(path) as file:
        return file.read()


def seed(default=20261123):
    return int(os.environ.get("STOWAGE_TEST_SEED", default))
