"""Between process groups the trained state is the same bits from run to run at
the same number of ranks, and the same with units and gradients on a device (the
twin)."""

import json
import os
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import nvme_training as nvme
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
            self.check_twin(folder, zero, ranks, first)

    def check_twin(self, folder, zero, ranks, first):
        twin = self.train(folder, "twin", zero, ranks, "--device", "twin")
        self.assertEqual(first[1], twin[1], "losses and norms")
        self.assertEqual(first[0], twin[0], "weights")
        with open(folder.file("twin/summary.json")) as file:
            exchange = json.load(file)["exchange"]
        self.assertEqual(exchange["device"], "twin")
        self.assertEqual(exchange["name"], "c10d")
        # What crossed it is in c10d_keys_test and in the contract suite.
        self.assertGreater(exchange["copied_in_bytes"], 0)
        self.assertGreater(exchange["copied_out_bytes"], 0)

    def test_stage0(self):
        self.check({"stage": 0}, 3)

    def test_stage2_state_on_the_ranks(self):
        self.check({"stage": 2}, 2)

    def test_stage3_state_in_the_server(self):
        self.check({"stage": 3, "offload_optimizer": {"device": "cpu"},
                    "offload_param": {"device": "cpu"}}, 4)

    def test_stage3_parameters_on_a_device_of_one_rank(self):
        zero = {"stage": 3, "offload_optimizer": {"device": "cpu"},
                "offload_param": {"device": "none"}}
        with p.Folder() as folder:
            first = self.train(folder, "first", zero, 1, "--exchange", "c10d")
            self.check_twin(folder, zero, 1, first)

    def test_stage1_at_the_boundary_on_a_device(self):
        zero = {"stage": 1, "offload_optimizer": {"device": "cpu"}}
        with p.Folder() as folder:
            first = self.train(folder, "first", zero, 2, "--exchange", "c10d")
            self.check_twin(folder, zero, 2, first)

    def test_leased_parameters_and_gradient_regions_on_a_device(self):
        """State on NVMe and little memory: what the server lends comes and
        goes, so nothing of it is registered and leases are given back."""
        model = ["--layers", "4", "--width", "256", "--heads", "4", "--context",
                 "32", "--sample-bytes", "0", "--seed", "7"]
        losses = {}
        with p.Folder() as folder, nvme.Disk() as disk, p.Stowd(
                folder, "--nvme-root", disk.path, "--no-mlock") as server:
            config = folder.config(
                zero_optimization=nvme.zero(3, disk),
                stowage={"durability": "power", "memory_budget": 50_000_000},
                bf16={"enabled": True})
            for name, args in (("host", ["--exchange", "c10d"]),
                               ("twin", ["--device", "twin"])):
                trace = folder.file(name)
                process = p.start_train(
                    folder, config, folder.file("text"), *model, "--ranks", "2",
                    "--micro-batch", "1", "--accumulation", "2", "--steps", "4",
                    "--rank-threads", "1", "--no-weights", "--trace", trace,
                    "--server", server.address, "--job", name, "--keep", *args)
                gradients = 0
                while process.poll() is None:
                    gradients = max([gradients] + [
                        job["gradient_bytes"] for job in server.jobs()
                        if job["name"] == name])
                    time.sleep(0.02)
                self.assertEqual(process.returncode, 0,
                                 p.read(folder.file("train.log")))
                job = next(j for j in server.jobs() if j["name"] == name)
                self.assertTrue(job["params_leased"])
                slots = 2 * 2 * job["parameters"]  # of two bf16 micro steps
                self.assertGreater(gradients, 0)
                self.assertLess(gradients, 0.7 * slots, "regions, not slots")
                losses[name] = [(s["loss"], s["norm"]) for _, s in
                                sorted(p.trace(trace).items())]
                self.assertEqual(len(losses[name]), 4)
        self.assertEqual(losses["host"], losses["twin"])


if __name__ == "__main__":
    unittest.main()
