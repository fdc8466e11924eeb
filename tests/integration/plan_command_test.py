"""stowctl plan beside what a run really took, and its screens."""

import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

STAGE3 = os.path.join(p.SOURCE, "configs/stage3_test.json")


class Plan(unittest.TestCase):
    def setUp(self):
        self.folder = p.Folder().__enter__()
        self.addCleanup(self.folder.__exit__)

    def plan(self, *args):
        return subprocess.run(
            [f"{p.BIN}/stowctl", "plan", *args], capture_output=True, text=True,
            timeout=60, env={**os.environ,
                             "XDG_CACHE_HOME": self.folder.file("cache")})

    def beside(self, config, out):
        """Prediction and reality of the server's memory and the disk."""
        ran = self.plan(config, "--run", out, "--no-calibration", "--json")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        plan = json.loads(ran.stdout)
        memory, run = plan["memory_bytes"], plan["run"]
        for ours, theirs in (("server_state", "state_bytes"),
                             ("server_params", "param_bytes"),
                             ("server_gradients", "gradient_bytes")):
            self.assertLessEqual(abs(memory[ours] - run[theirs]),
                                 0.05 * run[theirs], ours)
        return plan

    def test_memory_is_what_the_server_takes(self):
        for changes in (
                {},
                {"zero_optimization": {"stage": 2, "offload_optimizer":
                                       {"device": "cpu"}}},
                {"stowage": {"exchange": "c10d"}},
                {"gradient_accumulation_steps": 8,
                 "bf16": {"enabled": True}}):
            config = self.folder.config(**changes)
            out = self.folder.file("out")
            ran = p.train(config, self.folder.file("text"), *p.TINY, "--steps",
                          "3", "--ranks", "2", "--out", out)
            self.assertEqual(ran.returncode, 0, ran.stderr)
            self.beside(config, out)

    def test_disk_is_what_the_server_takes(self):
        disk = self.folder.file("disk")
        os.makedirs(disk)
        device = {"device": "nvme", "nvme_path": disk}
        config = self.folder.config(zero_optimization={
            "stage": 3, "offload_optimizer": device,
            "offload_param": {**device, "max_in_cpu": 0}})
        out = self.folder.file("out")
        ran = p.train(config, self.folder.file("text"), *p.TINY, "--steps", "6",
                      "--ranks", "2", "--out", out)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        plan = self.beside(config, out)
        self.assertLessEqual(
            abs(plan["disk_bytes"]["space"] - plan["run"]["disk_bytes"]),
            0.05 * plan["run"]["disk_bytes"])

    def test_screen_fits_a_terminal(self):
        out = self.plan(STAGE3, "--parameters", "85000000", "--ranks", "2",
                        "--no-calibration")
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertIn("masters and moments", out.stdout)
        self.assertIn("are taken as a GPT of", out.stdout)
        for line in out.stdout.splitlines():
            if not line.startswith(("note:", "DOES NOT FIT:")):
                self.assertLessEqual(len(line), 110, line)

    def test_what_does_not_fit_says_what_to_change(self):
        out = self.plan(STAGE3, "--parameters", "175e9", "--no-calibration")
        self.assertEqual(out.returncode, 2, "a float is not a count")
        out = self.plan(STAGE3, "--parameters", "175000000000",
                        "--no-calibration")
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertIn("DOES NOT FIT: memory", out.stdout)
        self.assertIn('offload_optimizer.device "nvme"', out.stdout)

    def test_refusals_are_one_line(self):
        for args, words in (
                ([STAGE3], "how large is the model"),
                ([STAGE3, "--layers", "2"], "how large is the model"),
                ([STAGE3, "--run", "/nowhere"], "/nowhere"),
                (["/nowhere.json", "--parameters", "1000000"], "/nowhere"),
                ([STAGE3, "--parameters", "1000000", "--layers", "2"],
                 "not both")):
            out = self.plan(*args)
            self.assertEqual(out.returncode, 2, out.stdout)
            self.assertEqual(len(out.stderr.splitlines()), 1, out.stderr)
            self.assertIn(words, out.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
