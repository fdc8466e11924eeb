"""stowctl plot from what each monitor wrote, and how it refuses."""

import json
import os
import shutil
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p


def plot(*args, env=None):
    return subprocess.run([f"{p.BIN}/stowctl", "plot", *args],
                          capture_output=True, text=True, timeout=60,
                          env={**os.environ, **(env or {})})


@unittest.skipUnless(shutil.which("gnuplot"), "no gnuplot on this machine")
class Plot(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = p.Folder().__enter__()
        cls.out = cls.folder.file("it's a run")
        config = cls.folder.config(
            fp16={"enabled": True, "initial_scale_power": 10,
                  "loss_scale_window": 3},
            csv_monitor={"enabled": True, "job_name": "csv"},
            tensorboard={"enabled": True, "job_name": "tb"},
            stowage={"jsonl_monitor": {"enabled": True, "job_name": "jsonl"}})
        out = p.train(config, cls.folder.file("text"), *p.TINY, "--steps", "9",
                      "--ranks", "1", "--out", cls.out)
        assert out.returncode == 0, out.stderr

    @classmethod
    def tearDownClass(cls):
        cls.folder.__exit__()

    def test_a_picture_is_drawn(self):
        out = plot(self.out)
        self.assertEqual(out.returncode, 0, out.stderr)
        picture = os.path.join(self.out, "loss.png")
        self.assertIn(picture, out.stdout)
        self.assertIn("9 points", out.stdout)
        with open(picture, "rb") as file:
            head = file.read(24)
        self.assertEqual(head[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(struct.unpack(">II", head[16:24]), (960, 540))

    def test_every_format_says_the_same(self):
        said = []
        for source in ("csv", "tensorboard", "jsonl"):
            out = plot(self.out, "--from", source, "--text")
            self.assertEqual(out.returncode, 0, out.stderr)
            self.assertIn(f"({source})", out.stdout)
            said.append([line for line in out.stdout.splitlines()
                         if " points, " in line])
        self.assertEqual(len(said[0]), 2, said)
        self.assertEqual(said[0], said[1])
        self.assertEqual(said[0], said[2])

    def test_curves_of_two_runs_are_not_mixed(self):
        both = self.folder.file("both")
        for name in ("a", "b"):
            shutil.copytree(self.out, os.path.join(both, name))
        out = plot(both)
        self.assertEqual(out.returncode, 2, out.stdout)
        self.assertIn("several runs", out.stderr)
        for name in ("a", "b"):
            self.assertIn(os.path.join(both, name, "csv"), out.stderr)
        out = plot(os.path.join(both, "a"))
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertIn("from       " + os.path.join(both, "a", "csv"),
                      out.stdout)

    def test_refusals_are_one_line(self):
        for args, words in (([self.folder.file("none")], "no such folder"),
                            ([self.folder.shm], "csv_monitor"),
                            ([self.out, "--from", "wandb"], "of wandb")):
            out = plot(*args)
            self.assertEqual(out.returncode, 1, out.stdout)
            self.assertEqual(len(out.stderr.splitlines()), 1, out.stderr)
            self.assertIn(words, out.stderr)
        out = plot(self.out, env={"PATH": "/nowhere"})
        self.assertIn("gnuplot-nox", out.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
