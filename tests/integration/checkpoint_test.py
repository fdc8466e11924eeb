"""stow-train saves while it trains and begins from what was saved: losses are those
of the run that never stopped, bit for bit at the same layout of micro-batches, on
another number of ranks, and between state in memory and on NVMe.

Whatever is killed during a save (a rank, the server, both), what `stowctl checkpoint
list` shows loads and verifies, and nothing else is offered.

Fault model: SIGKILL at any instant of ranks, server or both. STOWAGE_TEST_LONG=1
does it 100 times.
"""

import json
import os
import random
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

KILLS = 100 if os.environ.get("STOWAGE_TEST_LONG") == "1" else 9
STEPS = 16


def checkpoints(folder):
    out = subprocess.run([f"{p.BIN}/stowctl", "checkpoint", "list", folder, "--json"],
                         capture_output=True, text=True, timeout=60)
    return [c["step"] for c in json.loads(out.stdout)] if out.returncode == 0 else []


class Checkpoints(unittest.TestCase):
    def train(self, folder, config, *args, steps=STEPS, ranks=2, micro=6, code=0):
        trace = folder.file(f"trace-{random.random()}")
        out = p.train(config, folder.file("text"), *p.TINY, "--ranks", str(ranks),
                      "--micro-batch", "2", "--accumulation", str(micro // ranks),
                      "--steps", str(steps), "--no-weights", "--warmup-steps", "4", "--rank-threads", "1",
                      "--trace", trace, *args, timeout=300)
        self.assertEqual(out.returncode, code, out.stderr + out.stdout)
        self.output = out.stderr + out.stdout
        return p.trace(trace)

    def expect_same(self, got, want, first, last):
        self.assertEqual(sorted(got), list(range(first, last + 1)))
        for step, entry in got.items():
            for key in ("loss", "norm", "lr", "scale", "skipped"):
                self.assertEqual(entry[key], want[step][key], f"step {step}: {key}")

    def test_goes_on_bit_for_bit_on_one_two_and_three_ranks(self):
        with p.Folder() as folder:
            config = folder.config(fp16={"enabled": True, "initial_scale_power": 14,
                                         "loss_scale_window": 5})
            want = self.train(folder, config)
            save = folder.file("checkpoints")
            # Saved while it trains on; the rest of this run is thrown away.
            self.train(folder, config, "--save", save, "--save-every", "7", "--save-keep", "2")
            self.assertIn("saved to", self.output)
            self.assertEqual(checkpoints(save), [14, 16])
            for ranks in (2, 1, 3):
                got = self.train(folder, config, "--save", save, "--resume", "14", ranks=ranks)
                self.expect_same(got, want, 15, STEPS)
            # Nothing was changed by resuming at the end.
            self.train(folder, config, "--save", save, "--resume")
            info = subprocess.run([f"{p.BIN}/stowctl", "checkpoint", "info", save, "--json"],
                                  capture_output=True, text=True, timeout=60)
            self.assertEqual(json.loads(info.stdout)["step"], STEPS)
            verify = subprocess.run([f"{p.BIN}/stowctl", "checkpoint", "verify", save],
                                    capture_output=True, text=True, timeout=60)
            self.assertEqual(verify.returncode, 0, verify.stdout)

    def test_moves_between_memory_and_nvme(self):
        with p.Folder() as folder:
            memory = folder.config()
            nvme = folder.config("nvme.json", zero_optimization={
                "stage": 3,
                "offload_optimizer": {"device": "nvme", "nvme_path": folder.file("nvme"),
                                      "pipeline_read": True, "pipeline_write": True},
                "offload_param": {"device": "nvme", "nvme_path": folder.file("nvme")}},
                stowage={"memory_budget": "200MiB"})
            want = self.train(folder, memory)
            a, b, c = (folder.file(n) for n in ("a", "b", "c"))
            self.train(folder, memory, "--save", a, steps=5)
            got = self.train(folder, nvme, "--save", b, "--save-every", "4", "--resume", a, steps=11)
            self.expect_same(got, want, 6, 11)
            self.assertEqual(checkpoints(b), [8, 11])
            # Of a step in the middle, taken while NVMe steps went on.
            got = self.train(folder, memory, "--save", c, "--resume",
                             os.path.join(b, "step-0000000008"), ranks=3)
            self.expect_same(got, want, 9, STEPS)

    def test_says_what_is_wrong(self):
        with p.Folder() as folder:
            config = folder.config()
            save = folder.file("checkpoints")
            self.train(folder, config, "--save", save, steps=2)
            self.train(folder, config, "--save", save, "--resume", "7", code=2)
            self.assertIn("no checkpoint of step 7", self.output)
            self.assertIn("those of steps 2", self.output)
            self.train(folder, config, "--save", save, "--resume", "2", "--width", "32", code=2)
            self.assertIn("has shape", self.output)
            self.train(folder, config, "--resume", "2", code=2)
            self.assertIn("needs --save", self.output)
            moment = os.path.join(save, "step-0000000002", "moment1.safetensors")
            with open(moment, "r+b") as file:
                file.seek(100000)
                file.write(b"\x55\xaa")
            self.train(folder, config, "--save", save, "--resume", "2", code=2)
            self.assertIn("moment1.safetensors is damaged", self.output)
            with p.Stowd(folder) as server:
                self.train(folder, config, "--save", save, "--server", server.address, "--job", "j",
                           steps=1, code=4)
                self.assertIn("--export-root", self.output)

    def test_kills_during_saves_leave_only_whole_ones(self):
        seed = p.seed()
        print(f"seed {seed} (STOWAGE_TEST_SEED), {KILLS} kills")
        rng = random.Random(seed)
        with p.Folder() as folder:
            config = folder.config()
            save = folder.file("checkpoints")
            os.mkdir(save)
            kills = {"ranks": 0, "server": 0, "both": 0}
            inside = 0
            resumed = 0
            for round_index in range(KILLS):
                whom = ("ranks", "server", "both")[round_index % 3]
                known = checkpoints(save)
                server = p.Stowd(folder, "--export-root", save)
                trainer = p.start_train(
                    folder, config, folder.file("text"), *p.TINY, "--ranks", "2",
                    "--micro-batch", "1", "--steps", "1000000", "--no-weights",
                    "--warmup-steps", "4", "--server", server.address, "--job", "killed",
                    "--save", save, "--save-every", "3", "--save-keep", "3", "--resume", "latest")
                try:
                    deadline = time.time() + 60
                    while checkpoints(save) == known and time.time() < deadline:
                        self.assertIsNone(trainer.poll(), p.read(folder.file("train.log"))[-2000:])
                        time.sleep(0.01)
                    self.assertLess(time.time(), deadline, "no checkpoint came")
                    # One was saved; now in the middle of one of the next.
                    until = time.time() + rng.random() * 0.5
                    while time.time() < until or not any(
                            n.endswith(".partial") for n in os.listdir(save)):
                        if time.time() > until + 1:
                            break
                    inside += any(n.endswith(".partial") for n in os.listdir(save))
                finally:
                    if whom in ("server", "both"):
                        server.process.kill()
                    if whom in ("ranks", "both"):
                        p.kill_all(trainer)
                    else:
                        trainer.wait(timeout=60)
                    kills[whom] += 1
                    server.__exit__()
                listed = checkpoints(save)
                self.assertTrue(listed, "all checkpoints are gone")
                self.assertLessEqual(len(listed), 4)
                verify = subprocess.run([f"{p.BIN}/stowctl", "checkpoint", "verify", save],
                                        capture_output=True, text=True, timeout=60)
                self.assertEqual(verify.returncode, 0, verify.stdout + verify.stderr)
                log = p.read(folder.file("stowd.log"))
                resumed = log.count("checkpoint_loaded")
                self.assertNotIn("DAMAGED", verify.stdout)
            self.assertEqual(resumed, KILLS - 1, "each start but the first began from one")
            print(f"{kills}, {inside} of them while a save was being written; "
                  f"{resumed} starts loaded one; at the end {checkpoints(save)}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
