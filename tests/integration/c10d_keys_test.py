"""Keys of the exchange between ranks: each changes messages, their sizes or
what travels, as counted by the ranks, and the training stays the same."""

import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

STEPS = 4


class C10dKeys(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = p.Folder().__enter__()
        cls.cache = {}

    @classmethod
    def tearDownClass(cls):
        cls.folder.__exit__()

    def run_with(self, stage=2, ranks=2, top=None, **zero):
        key = json.dumps([stage, ranks, top, zero], sort_keys=True)
        if key in self.cache:
            return self.cache[key]
        name = f"run{len(self.cache)}"
        offload = {"offload_optimizer": {"device": "cpu"}}
        if stage == 3:
            offload["offload_param"] = {"device": "cpu"}
        config = self.folder.config(
            name + ".json", zero_optimization={"stage": stage, **offload,
                                               **zero}, **(top or {}))
        out = self.folder.file(name)
        result = p.train(
            config, self.folder.file("text"), *p.TINY, "--ranks", str(ranks),
            "--micro-batch", "2", "--steps", str(STEPS), "--exchange", "c10d",
            "--rank-threads", "1", "--no-weights", "--out", out, "--trace",
            out + ".trace", "--log-level", "warning")
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(out + "/summary.json") as file:
            traffic = json.load(file)["exchange"]
        self.assertEqual(traffic["name"], "c10d")
        losses = [s["loss"] for _, s in sorted(p.trace(out + ".trace").items())]
        self.assertEqual(len(losses), STEPS)
        self.cache[key] = (traffic, losses)
        return self.cache[key]

    def assert_same_training(self, a, b, tolerance=1e-6):
        for x, y in zip(a, b):
            self.assertLess(abs(x - y), tolerance * abs(x))

    def test_reduce_bucket_size(self):
        joined, losses = self.run_with(reduce_bucket_size=10**8)
        self.assertEqual(joined["reduces"], STEPS)
        cut, cut_losses = self.run_with(reduce_bucket_size=20000)
        self.assertGreater(cut["reduces"], 4 * STEPS)
        self.assertLessEqual(cut["largest_reduce_bytes"], 20000 * 4)
        self.assertGreater(joined["largest_reduce_bytes"],
                           cut["largest_reduce_bytes"])
        self.assertEqual(joined["reduce_bytes"], cut["reduce_bytes"])
        self.assert_same_training(losses, cut_losses)

    def test_reduce_scatter(self):
        scatter, losses = self.run_with(reduce_bucket_size=10**8)
        reduce_all, all_losses = self.run_with(reduce_bucket_size=10**8,
                                               reduce_scatter=False)
        # Two ranks: an all-reduce sends as much again.
        self.assertAlmostEqual(reduce_all["reduce_bytes"] /
                               scatter["reduce_bytes"], 2, delta=0.1)
        self.assert_same_training(losses, all_losses)

    def test_allgather_partitions(self):
        gather, losses = self.run_with(ranks=3)
        broadcast, other = self.run_with(ranks=3, allgather_partitions=False)
        self.assertEqual(broadcast["gathers"], 3 * gather["gathers"])
        self.assertEqual(losses, other)

    def test_allgather_bucket_size(self):
        whole, losses = self.run_with()
        cut, other = self.run_with(allgather_bucket_size=10000)
        self.assertGreater(cut["gathers"], 3 * whole["gathers"])
        self.assertLessEqual(cut["largest_gather_bytes"], 10000 * 4)
        self.assertLess(cut["gathered_bytes_peak"],
                        whole["gathered_bytes_peak"])
        self.assertEqual(losses, other)

    def test_overlap_comm(self):
        overlap, losses = self.run_with(reduce_bucket_size=20000)
        alone, other = self.run_with(reduce_bucket_size=20000,
                                     overlap_comm=False)
        self.assertEqual(overlap["reduces_under_way_max"], 2)
        self.assertEqual(alone["reduces_under_way_max"], 1)
        self.assertEqual(losses, other)

    def test_communication_data_type(self):
        wide, losses = self.run_with()
        narrow, other = self.run_with(
            top={"communication_data_type": "bf16"})
        self.assertEqual(narrow["reduce_bytes"] * 2, wide["reduce_bytes"])
        self.assertNotEqual(losses, other)
        self.assert_same_training(losses, other, 1e-2)

    def test_prescale(self):
        _, losses = self.run_with()
        for top in ({"prescale_gradients": True},
                    {"gradient_predivide_factor": 3.0}):
            _, other = self.run_with(top=top)
            self.assert_same_training(losses, other)

    def test_prefetch_bucket_size(self):
        small = {"stage3_max_live_parameters": 10**5,
                 "stage3_max_reuse_distance": 0,
                 "stage3_param_persistence_threshold": 0}
        none, losses = self.run_with(stage=3, stage3_prefetch_bucket_size=0,
                                     **small)
        ahead, other = self.run_with(stage=3, stage3_prefetch_bucket_size=10**5,
                                     **small)
        # What is fetched ahead is there together with what is in use.
        self.assertGreater(ahead["gathered_bytes_peak"],
                           none["gathered_bytes_peak"])
        self.assertEqual(ahead["gather_bytes"], none["gather_bytes"])
        self.assertEqual(losses, other)

    def test_volume_is_three_times_the_parameters(self):
        """ZeRO-3: forward gathers once, backward once, gradients travel once,
        each (ranks - 1) / ranks of the padded parameters from every rank."""
        for ranks in (2, 3):
            traffic, _ = self.run_with(
                stage=3, ranks=ranks, stage3_max_live_parameters=0,
                stage3_max_reuse_distance=0, stage3_prefetch_bucket_size=0,
                stage3_param_persistence_threshold=0)
            per_step = ((traffic["gather_bytes"] + traffic["reduce_bytes"]) /
                        STEPS)
            # TINY: 2 layers of width 64, vocabulary 256, context 32, fp32.
            params = 256 * 64 + 32 * 64 + 2 * (12 * 64 * 64 + 13 * 64) + \
                2 * 64 + 256 * 64
            formula = 3 * params * 4 * (ranks - 1) / ranks
            print(f"{ranks} ranks: {per_step:.0f} bytes a step and rank, "
                  f"3 x parameters x (ranks - 1) / ranks = {formula:.0f}")
            self.assertAlmostEqual(per_step / formula, 1, delta=0.08)


if __name__ == "__main__":
    unittest.main()
