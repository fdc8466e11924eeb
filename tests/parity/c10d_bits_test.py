"""Between process groups the trained state is the same bits from run to run at
the same number of ranks; a file that the other exchange wrote is within
tolerance."""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p


class C10dBits(unittest.TestCase):
    def train(self, folder, name, zero, ranks, *args):
        config = folder.config(name + ".json", zero_optimization=zero,
                               bf16={"enabled": True})
        out = folder.file(name)
        result = p.train(
            config, folder.file("text"), *p.TINY, "--ranks", str(ranks),
            "--accumulation", "2", "--micro-batch", "2", "--steps", "8",
            "--rank-threads", "1", "--out", out, "--trace", out + ".trace",
            "--log-level", "warning", *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(out + "/model.safetensors", "rb") as file:
            weights = file.read()
        steps = [(s["loss"], s["norm"])
                 for _, s in sorted(p.trace(out + ".trace").items())]
        self.assertEqual(len(steps), 8)
        return weights, steps

    def check(self, zero, ranks):
        with p.Folder() as folder:
            first = self.train(folder, "first", zero, ranks, "--exchange",
                               "c10d")
            again = self.train(folder, "again", zero, ranks, "--exchange",
                               "c10d")
            self.assertEqual(first[1], again[1], "losses and norms")
            self.assertEqual(first[0], again[0], "weights")
            return first

    def test_stage0(self):
        self.check({"stage": 0}, 3)

    def test_stage2_state_on_the_ranks(self):
        self.check({"stage": 2}, 2)

    def test_stage3_state_in_the_server(self):
        self.check({"stage": 3, "offload_optimizer": {"device": "cpu"},
                    "offload_param": {"device": "cpu"}}, 4)


if __name__ == "__main__":
    unittest.main()
