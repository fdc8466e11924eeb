"""Lamb from the configuration file to the weights: the same bits in every
stage and tier and after a kill, trust ratios in the monitors, and what another
Lamb under the same name is told.
"""

import json
import os
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

LAMB = {"type": "Lamb", "params": {"lr": 0.02, "weight_decay": 0.01}}
STEPS = 12


class Lamb(unittest.TestCase):
    def config(self, folder, stage=3, device="cpu", nvme=None, **changes):
        zero = {"stage": stage, "offload_optimizer": {"device": device}}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
        if nvme:
            zero["offload_optimizer"]["nvme_path"] = nvme
        return folder.config(optimizer=LAMB, zero_optimization=zero, **changes)

    def arguments(self, folder, config, name, *args):
        return [config, folder.file("text"), *p.TINY, "--ranks", "2",
                "--train-batch", "8", "--steps", str(STEPS), "--trace",
                folder.file(name), "--out", folder.file(name + ".out"), *args]

    def train(self, folder, config, name, *args):
        out = p.train(*self.arguments(folder, config, name, *args))
        self.assertEqual(out.returncode, 0, out.stderr)
        return self.result(folder, name)

    def result(self, folder, name):
        with open(folder.file(name + ".out/model.safetensors"), "rb") as file:
            return file.read(), {k: s["loss"] for k, s in
                                 p.trace(folder.file(name)).items()}

    def test_same_bits_in_every_stage_and_tier(self):
        with p.Folder() as folder, tempfile.TemporaryDirectory(
                dir=p.BIN) as disk:
            want = self.train(folder, self.config(folder, 3), "stage3")
            self.assertEqual(len(want[1]), STEPS)
            self.assertLess(want[1][STEPS], want[1][1] - 0.3)
            for stage in (1, 2):
                got = self.train(folder, self.config(folder, stage),
                                 f"stage{stage}")
                self.assertEqual(got[1], want[1], f"stage {stage}: losses")
                self.assertEqual(got[0], want[0], f"stage {stage}: weights")
            got = self.train(folder, self.config(folder, 3, "nvme",
                                                 os.path.realpath(disk)), "nvme")
            self.assertEqual(got[1], want[1], "nvme: losses")
            self.assertEqual(got[0], want[0], "nvme: weights")

    def test_state_on_the_ranks_trains_alike(self):
        with p.Folder() as folder:
            want = self.train(folder, self.config(folder, 3), "server")[1]
            for stage in (0, 1, 2, 3):
                config = folder.config(f"ranks{stage}.json", optimizer=LAMB,
                                       zero_optimization={"stage": stage})
                got = self.train(folder, config, f"ranks{stage}")[1]
                worst = max(abs(got[s] / want[s] - 1) for s in want)
                print(f"stage {stage}, nothing offloaded: losses within "
                      f"{worst:.1e} of the server's")
                self.assertLess(worst, 1e-5)

    def test_goes_on_after_a_kill_as_if_never_stopped(self):
        with p.Folder() as folder, p.Stowd(folder) as server:
            config = self.config(folder)
            want = self.train(folder, config, "whole", "--server",
                              server.address, "--job", "whole")
            arguments = self.arguments(folder, config, "killed", "--server",
                                       server.address, "--job", "killed",
                                       "--keep")
            process = p.start_train(folder, *arguments)
            deadline = time.time() + 60
            while (len(p.trace(folder.file("killed"))) < STEPS // 2 and
                   process.poll() is None and time.time() < deadline):
                time.sleep(0.002)
            p.kill_all(process)
            self.assertLess(len(p.trace(folder.file("killed"))), STEPS)
            out = p.train(*arguments)
            self.assertEqual(out.returncode, 0, out.stderr)
            got = self.result(folder, "killed")
            self.assertEqual(got[1], want[1])
            self.assertEqual(got[0], want[0])
            job = [j for j in server.jobs() if j["name"] == "killed"][0]
            self.assertGreater(job["trust_ratios"]["tensors"], 10)
            # Another Lamb is not this job.
            other = self.config(folder, name="other.json")
            with open(other) as file:
                changed = json.load(file)
            changed["optimizer"]["params"]["max_coeff"] = 5
            with open(other, "w") as file:
                json.dump(changed, file)
            arguments[0] = other
            out = p.train(*arguments)
            self.assertNotEqual(out.returncode, 0)
            self.assertIn("trust ratios within [0.01, 5], the job's within "
                          "[0.01, 10]", out.stderr)

    def test_trust_ratios_reach_the_monitors(self):
        with p.Folder() as folder:
            config = self.config(
                folder, csv_monitor={"enabled": True, "output_path":
                                     folder.file("csv"), "job_name": "run"})
            self.train(folder, config, "trace")
            values = {}
            for what in ("min", "mean", "max"):
                path = folder.file(
                    f"csv/run/Train_Samples_trust_ratio_{what}.csv")
                rows = p.read(path).splitlines()[1:]
                self.assertEqual(len(rows), STEPS - 1)
                values[what] = [float(row.split(",")[1]) for row in rows]
            for low, mean, high in zip(*(values[k] for k in
                                         ("min", "mean", "max"))):
                self.assertTrue(0 < low < mean < high <= 10)


if __name__ == "__main__":
    unittest.main(verbosity=2)
