"""stowctl config explain and config schedule: what they print, and how
they refuse."""

import csv
import glob
import io
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

STAGE3 = os.path.join(p.SOURCE, "configs/stage3_test.json")
ASKED = ["--world-size", "2", "--hidden-size", "512", "--micro-batch", "4",
         "--lr", "1e-3", "--steps", "100"]
REFERENCE = os.environ.get("STOWAGE_REFERENCE_DIR",
                           os.path.join(p.SOURCE, "tests/parity/reference"))


def stowctl(*args):
    return subprocess.run([f"{p.BIN}/stowctl", *args], capture_output=True,
                          text=True, timeout=60)


class Explain(unittest.TestCase):
    def test_json_has_value_origin_and_source(self):
        out = stowctl("config", "explain", STAGE3, *ASKED, "--json")
        self.assertEqual(out.returncode, 0, out.stderr)
        explained = json.loads(out.stdout)
        keys = {entry["key"]: entry for entry in explained["keys"]}
        for key, value, origin, source in (
                ("zero_optimization.stage", 3, "file", "stage3_test.json:"),
                ("zero_optimization.stage3_prefetch_bucket_size", 235929,
                 "auto", "width 512"),
                ("zero_optimization.stage3_param_persistence_threshold", 5120,
                 "auto", "10 h"),
                ("optimizer.params.lr", 1e-3, "auto", "--lr"),
                ("train_batch_size", 8, "auto", "micro batch"),
                ("fp16.enabled", True, "auto", "--precision"),
                ("scheduler.params.warmup_num_steps", 20, "auto",
                 "--warmup-steps"),
                ("gradient_clipping", 1.0, "auto", "--max-grad-norm"),
                ("fp16.hysteresis", 2, "file", "stage3_test.json:"),
                ("fp16.consecutive_hysteresis", False, "default", "")):
            self.assertEqual(keys[key]["value"], value, key)
            self.assertEqual(keys[key]["origin"], origin, key)
            self.assertIn(source, keys[key]["source"], key)
        self.assertNotIn("refuses", out.stderr)

    def test_text_is_narrow_enough_for_a_terminal(self):
        out = stowctl("config", "explain", STAGE3, *ASKED)
        self.assertEqual(out.returncode, 0, out.stderr)
        table = out.stdout.split("\nwarnings\n")[0].splitlines()
        self.assertLessEqual(max(map(len, table)), 110)
        self.assertIn("\nzero_optimization.offload_param\n", out.stdout)

    def test_auto_without_a_value_names_the_flag(self):
        out = stowctl("config", "explain", STAGE3, "--world-size", "2")
        self.assertEqual(out.returncode, 2)
        for flag in ("--lr", "--hidden-size"):
            self.assertIn(flag, out.stderr)
        # The batch is looked at once the others are there.
        out = stowctl("config", "explain", STAGE3, "--hidden-size", "8", "--lr",
                      "1")
        self.assertEqual(out.returncode, 2)
        self.assertIn("--micro-batch", out.stderr)

    def test_what_this_build_refuses_is_said_beside_it(self):
        with p.Folder() as folder:
            config = folder.config(train_micro_batch_size_per_gpu=1,
                                   train_batch_size=None,
                                   gradient_accumulation_steps=1,
                                   stowage={"durability": "process"})
            out = stowctl("config", "explain", config)
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertIn("this build refuses the file: stowage.durability", out.stderr)
        self.assertIn("\noptimizer\n  type ", out.stdout)

    def test_what_is_wrong_is_one_line_and_exit_2(self):
        for file in ("/nowhere.json", __file__):
            out = stowctl("config", "explain", file)
            self.assertEqual(out.returncode, 2)
            self.assertEqual(len(out.stderr.splitlines()), 1, out.stderr)
            self.assertIn(file, out.stderr)


class Schedule(unittest.TestCase):
    def rows(self, config, steps):
        with p.Folder() as folder:
            path = folder.file("c.json")
            with open(path, "w") as file:
                json.dump(config, file)
            out = stowctl("config", "schedule", path, "--steps", str(steps))
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertTrue(out.stdout.startswith("step,lr,beta1\n"))
        return list(csv.DictReader(io.StringIO(out.stdout)))

    # Through the file and the command, as tests/parity does in the library.
    def test_reference_tables(self):
        with open(os.path.join(REFERENCE, "lr_index.json")) as file:
            index = json.load(file)
        self.assertTrue(index)
        for entry in index:
            with open(os.path.join(REFERENCE, entry["file"])) as file:
                want = list(csv.DictReader(file))
            got = self.rows(
                {"train_batch_size": 1,
                 "optimizer": {"type": "AdamW",
                               "params": {"lr": entry["optimizer_lr"]}},
                 "scheduler": {"type": entry["scheduler"],
                               "params": entry["params"]}}, len(want))
            for a, b in zip(got, want):
                self.assertEqual(a["step"], b["step"])
                for ours, theirs in (("lr", "lr_in_force"),
                                     ("beta1", "beta1_in_force")):
                    if not b[theirs]:
                        continue
                    self.assertLessEqual(
                        abs(float(a[ours]) - float(b[theirs])),
                        1e-12 * abs(float(b[theirs])),
                        f"{entry['file']} step {a['step']} {ours}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
