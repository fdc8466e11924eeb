"""Keys of the exchange between ranks: each changes messages, their sizes or
what travels, as counted by the ranks, and the training stays the same."""

import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

STEPS = 4
# Of TINY: 2 layers of width 64, vocabulary 256, context 32.
PARAMS = (256 * 64 + 32 * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64 + 256 * 64)
NOTHING_KEPT = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
                "stage3_prefetch_bucket_size": 0,
                "stage3_param_persistence_threshold": 0}


class C10dKeys(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = p.Folder().__enter__()
        cls.cache = {}
        cls.names = {}

    @classmethod
    def tearDownClass(cls):
        cls.folder.__exit__()

    def run_with(self, stage=2, ranks=2, top=None, device="cpu", **zero):
        key = json.dumps([stage, ranks, top, device, zero], sort_keys=True)
        if key in self.cache:
            return self.cache[key]
        name = self.names.setdefault(key, f"run{len(self.cache)}")
        offload = {"offload_optimizer": {"device": "cpu"}} if stage else {}
        if stage == 3:
            offload["offload_param"] = {"device": "cpu"}
        config = self.folder.config(
            name + ".json", zero_optimization={"stage": stage, **offload,
                                               **zero}, **(top or {}))
        out = self.folder.file(name)
        result = p.train(
            config, self.folder.file("text"), *p.TINY, "--ranks", str(ranks),
            "--micro-batch", "2", "--steps", str(STEPS), "--exchange", "c10d",
            "--rank-threads", "1", "--no-weights", "--device", device, "--out",
            out, "--trace",
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
        self.assertGreaterEqual(overlap["reduces_under_way_max"], 2)
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

    def volume(self, ranks, **zero):
        """What rank 0 sent, all steps together: (parameters, gradients)."""
        traffic, _ = self.run_with(ranks=ranks, **zero)
        return traffic["gather_bytes"], traffic["reduce_bytes"]

    def test_volume_is_three_times_the_parameters(self):
        """ZeRO-3: forward gathers once, backward once, gradients travel once,
        each (ranks - 1) / ranks of the parameters from every rank: to the byte
        with the padding of units and parts, which gradients do without."""
        for ranks in (2, 3):
            sent = sum(self.volume(
                ranks, stage=3, stage3_max_live_parameters=0,
                stage3_max_reuse_distance=0, stage3_prefetch_bucket_size=0,
                stage3_param_persistence_threshold=0))
            formula = 0
            for unit in units(width=64, layers=2, context=32):
                part = up(-(-up(unit, 2048) // ranks), 64)
                # Two gathers, and its gradient but for rank 0's own part.
                formula += 4 * (2 * (ranks - 1) * part + unit - part)
            bare = 3 * 4 * parameters(64, 2, 32) * (ranks - 1) // ranks
            print(f"{ranks} ranks: {sent // STEPS} bytes a step and rank, "
                  f"{formula} by the formula, 3 x parameters without padding "
                  f"{bare}")
            self.assertEqual(sent, STEPS * formula)

    def test_volume_is_what_the_plan_says(self):
        """stowctl plan --run: what the ranks' counters have, to the byte, in
        every stage, and where units stay gathered until backward."""
        small = {"stage3_max_live_parameters": 60000,
                 "stage3_prefetch_bucket_size": 20000,
                 "stage3_param_persistence_threshold": 1000}
        for ranks, stage, zero in (
                (2, 0, {}), (3, 1, {}), (2, 2, {}),
                (3, 2, {"reduce_bucket_size": 20000,
                        "allgather_bucket_size": 10000}),
                (3, 2, {"allgather_partitions": False}),
                (2, 3, {}), (3, 3, {}), (2, 3, small), (3, 3, small),
                (3, 3, {"stage3_max_reuse_distance": 0})):
            with self.subTest(ranks=ranks, stage=stage, zero=zero):
                traffic, _ = self.run_with(stage=stage, ranks=ranks, **zero)
                key = json.dumps([stage, ranks, None, "cpu", zero],
                                 sort_keys=True)
                name = self.folder.file(self.names[key])
                out = subprocess.run(
                    [f"{p.BIN}/stowctl", "plan", name + ".json", "--run", name,
                     "--no-calibration", "--json"], capture_output=True,
                    text=True, timeout=60)
                self.assertEqual(out.returncode, 0, out.stderr)
                sent = json.loads(out.stdout)["sent_bytes_per_step"]
                self.assertEqual(
                    (traffic["gather_bytes"], traffic["reduce_bytes"]),
                    (sent["params_first_step"] + (STEPS - 1) * sent["params"],
                     STEPS * sent["gradients"]))

    def test_volume_to_and_from_a_device(self):
        """A rank's part of the parameters for every gather, and of the
        gradients for every reduction; messages between ranks as without."""
        for ranks in (1, 2):
            host, losses = self.run_with(stage=3, ranks=ranks, **NOTHING_KEPT)
            self.assertEqual(host["copied_in_bytes"], 0)
            traffic, other = self.run_with(stage=3, ranks=ranks, device="twin",
                                           **NOTHING_KEPT)
            self.assertEqual(losses, other)
            for key in ("gather_bytes", "reduce_bytes", "gathers", "reduces"):
                self.assertEqual(traffic[key], host[key], key)
            part = PARAMS * 4 / ranks
            copied_in = traffic["copied_in_bytes"] / STEPS
            copied_out = traffic["copied_out_bytes"] / STEPS
            print(f"{ranks} ranks: {copied_in:.0f} bytes in and "
                  f"{copied_out:.0f} out a step and rank, "
                  f"parameters / ranks = {part:.0f}")
            self.assertAlmostEqual(copied_in / (2 * part), 1, delta=0.08)
            self.assertAlmostEqual(copied_out / part, 1, delta=0.08)


def up(value, multiple):
    return -(-value // multiple) * multiple


def units(width, layers, context, vocabulary=256):
    """Elements of each unit of stow-train's model, each parameter padded to
    64; parameters travel with the padding of units to 2048, gradients not."""
    block = [width, width, 3 * width * width, 3 * width, width * width, width,
             width, width, 4 * width * width, 4 * width, 4 * width * width,
             width]
    shapes = [[vocabulary * width, context * width], *([block] * layers),
              [width, width, vocabulary * width]]
    return [sum(up(elems, 64) for elems in shape) for shape in shapes]


def parameters(width, layers, context, vocabulary=256):
    return (2 * vocabulary * width + context * width +
            layers * (12 * width * width + 13 * width) + 2 * width)


if __name__ == "__main__":
    unittest.main()
