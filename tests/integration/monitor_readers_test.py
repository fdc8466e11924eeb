"""What the monitors write, read by the programs it is meant for: TensorBoard's
own reader, Weights & Biases' own client (offline), and stowctl plot.

Needs the environment of `tools/setup --readers`; skips, with that reason, where
it is not there."""

import glob
import json
import os
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

CACHE = os.environ.get("XDG_CACHE_HOME",
                       os.path.join(os.path.expanduser("~"), ".cache"))
READERS = os.environ.get("STOWAGE_READERS_PYTHON") or os.path.join(
    CACHE, "stowage/readers-1/bin/python")
STEPS = 8

READ_TENSORBOARD = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)]
                  for tag in events.Tags()["scalars"]}))
"""

# The client's own messages; its log's framing is LevelDB's.
READ_WANDB = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2
data = open(sys.argv[1], "rb").read()
assert data[:4] == b":W&B"
at, record, rows, kinds, run = 7, b"", [], [], None
while at + 7 <= len(data):
    left = 32768 - at % 32768
    if left < 7:
        at += left
        continue
    size, kind = struct.unpack_from("<HB", data, at + 4)
    record = (b"" if kind in (1, 2) else record) + data[at + 7:at + 7 + size]
    at += 7 + size
    if kind not in (1, 4):
        continue
    message = wandb_internal_pb2.Record()
    message.ParseFromString(record)
    kinds.append(message.WhichOneof("record_type"))
    if kinds[-1] == "run":
        run = message.run
    if kinds[-1] == "history":
        rows.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json)
                     for i in message.history.item})
print(json.dumps({"project": run.project, "group": run.run_group,
                  "config": [i.key for i in run.config.update], "rows": rows,
                  "kinds": kinds}))
"""


def read(script, path):
    out = subprocess.run([READERS, "-c", script, path], capture_output=True,
                         text=True, timeout=120)
    if out.returncode != 0:
        raise AssertionError(out.stderr[-3000:])
    return json.loads(out.stdout.splitlines()[-1])


@unittest.skipUnless(os.path.exists(READERS),
                     f"no {READERS}: tools/setup --readers makes it")
class Readers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = p.Folder().__enter__()
        cls.out = cls.folder.file("out")
        config = cls.folder.config(
            fp16={"enabled": True, "initial_scale_power": 10,
                  "loss_scale_window": 3},
            csv_monitor={"enabled": True, "job_name": "csv"},
            tensorboard={"enabled": True, "job_name": "tb"},
            wandb={"enabled": True, "project": "stowage-test", "group": "g"},
            stowage={"wandb_python": READERS,
                     "jsonl_monitor": {"enabled": True, "job_name": "jsonl"}})
        out = p.train(config, cls.folder.file("text"), *p.TINY, "--steps",
                      str(STEPS), "--ranks", "2", "--out", cls.out,
                      "--micro-batch", "2",
                      env={"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
        assert out.returncode == 0, out.stderr
        with open(os.path.join(cls.out, "jsonl/events.jsonl")) as lines:
            cls.rows = [json.loads(line) for line in lines]

    @classmethod
    def tearDownClass(cls):
        cls.folder.__exit__()

    def test_jsonl_has_every_step(self):
        self.assertEqual([row["x"] for row in self.rows],
                         [4 * (i + 1) for i in range(STEPS)])
        for name in ("train_loss", "lr", "loss_scale", "grad_norm", "samples",
                     "tokens_per_second", "elapsed_time_ms_optimizer_exposed"):
            for row in self.rows:
                self.assertIn("Train/Samples/" + name, row)
        for name in ("bytes_server_params", "bytes_server_state",
                     "bytes_server_gradients", "bytes_rank_gathered_peak"):
            self.assertGreater(self.rows[0]["Train/Samples/" + name], 0)

    def test_tensorboards_own_reader_reads_our_files(self):
        files = glob.glob(os.path.join(self.out, "tb/events.out.tfevents.*"))
        self.assertEqual(len(files), 1)
        scalars = read(READ_TENSORBOARD, files[0])
        for name in ("train_loss", "lr", "loss_scale", "grad_norm"):
            tag = "Train/Samples/" + name
            self.assertEqual([x for x, _ in scalars[tag]],
                             [row["x"] for row in self.rows])
            for (_, value), row in zip(scalars[tag], self.rows):
                self.assertAlmostEqual(value, row[tag], delta=1e-6 *
                                       max(1, abs(row[tag])))

    def test_wandbs_own_client_made_an_offline_run_of_all_steps(self):
        # The helper finishes by itself after training.
        log = os.path.join(self.out, "wandb-helper.log")
        for _ in range(600):
            if os.path.exists(log) and f"wandb: {STEPS} rows" in p.read(log):
                break
            time.sleep(0.1)
        self.assertIn(f"wandb: {STEPS} rows", p.read(log))
        files = glob.glob(os.path.join(self.out, "wandb/offline-run-*/*.wandb"))
        self.assertEqual(len(files), 1, os.listdir(self.out))
        run = read(READ_WANDB, files[0])
        self.assertEqual((run["project"], run["group"]), ("stowage-test", "g"))
        self.assertIn("zero_optimization", run["config"])
        self.assertEqual(run["kinds"][-1], "exit", "the client ended the run")
        listed = subprocess.run(
            [os.path.join(os.path.dirname(READERS), "wandb"), "sync",
             "--dry-run", os.path.dirname(files[0])],
            capture_output=True, text=True, timeout=60)
        self.assertEqual(listed.returncode, 0, listed.stdout + listed.stderr)
        self.assertIn("offline-run-", listed.stdout + listed.stderr)
        self.assertEqual([row["_step"] for row in run["rows"]],
                         [row["x"] for row in self.rows])
        for got, want in zip(run["rows"], self.rows):
            self.assertAlmostEqual(got["Train/Samples/train_loss"],
                                   want["Train/Samples/train_loss"])
        plot = subprocess.run(
            [f"{p.BIN}/stowctl", "plot", self.out, "--from", "wandb", "--text"],
            capture_output=True, text=True, timeout=60)
        self.assertEqual(plot.returncode, 0, plot.stderr)
        self.assertIn(f"{STEPS} points", plot.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
