"""Training with state on NVMe: the losses of a run in memory bit for bit at
every stage, with every key, and under a small budget; jobs that survive server
and trainer; stowctl's view of them.

Fault model: SIGKILL of stowd, alone or with every rank at once.

STOWAGE_NVME_TRAIN_KILLS (3; 10 with STOWAGE_TEST_LONG=1) sets how often.
"""

import json
import os
import random
import re
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import nvme_training as nvme
import processes as p

LONG = os.environ.get("STOWAGE_TEST_LONG") == "1"
SMALL = ["--layers", "8", "--width", "256", "--heads", "4", "--context", "32",
         "--sample-bytes", "0", "--seed", "7"]
LARGE = ["--layers", "12", "--width", "768", "--heads", "12", "--context", "64",
         "--sample-bytes", "0", "--seed", "7"]
BF16 = {"bf16": {"enabled": "auto"}}


class NvmeTrain(unittest.TestCase):
    def train(self, folder, config, name, *args, model=tuple(p.TINY),
              timeout=120):
        path = folder.file(f"trace-{name}")
        out = p.train(config, folder.file("text"), *model, "--trace", path,
                      *args, timeout=timeout)
        self.assertEqual(out.returncode, 0, out.stderr)
        return p.trace(path)

    def assert_same(self, got, want):
        self.assertEqual(sorted(got), sorted(want))
        for step in want:
            for key in nvme.KEYS:
                self.assertEqual(got[step][key], want[step][key],
                                 f"step {step}: {key}")

    def test_every_stage_gives_the_losses_of_a_run_in_memory(self):
        with p.Folder() as folder, nvme.Disk() as disk:
            for stage in (1, 2, 3):
                args = ["--ranks", "2", "--train-batch", "8", "--steps", "8"]
                want = self.train(
                    folder, folder.config(
                        zero_optimization=nvme.in_memory(stage)),
                    f"memory-{stage}", *args)
                got = self.train(
                    folder, folder.config(
                        zero_optimization=nvme.zero(stage, disk),
                        stowage={"durability": "power" if stage != 2 else
                                 "memory", "shm_dir": folder.shm}),
                    f"nvme-{stage}", *args)
                self.assert_same(got, want)
                self.assertEqual(disk.files(), 0, "a closed job left files")

    def test_the_shipped_file_trains_as_it_is(self):
        shipped = os.path.join(os.environ["STOWAGE_SOURCE_DIR"], "configs",
                               "stage3_nvme.json")
        job = f"shipped-{os.getpid()}"
        with p.Folder() as folder:
            got = self.train(folder, shipped, "shipped", "--ranks", "2",
                             "--steps", "6", "--job", job, "--out",
                             folder.file("out"))
            self.assertEqual(sorted(got), list(range(1, 7)))
            path = json.loads(p.read(shipped))["zero_optimization"][
                "offload_optimizer"]["nvme_path"]
            self.assertFalse([n for n in os.listdir(path) if job in n])

    def test_a_private_server_finds_the_job_of_the_one_before(self):
        with p.Folder() as folder, nvme.Disk() as disk:
            args = ["--ranks", "2", "--train-batch", "8", "--job", "again",
                    "--warmup-steps", "3"]
            want = self.train(
                folder, folder.config(zero_optimization=nvme.in_memory(3)),
                "memory", *args, "--steps", "12")
            config = folder.config(zero_optimization=nvme.zero(3, disk),
                                   stowage={"durability": "power"})
            got = {}
            for steps in (5, 9, 12):
                got.update(self.train(
                    folder, config, f"nvme-{steps}", *args, "--steps",
                    str(steps), *(["--keep"] if steps < 12 else [])))
            self.assert_same(got, want)

    def check_budget(self, model, steps):
        """Losses as in memory, and never more than a tenth of the state and
        48 MiB: the server's PSS and all its bytes in tmpfs, each counted
        once."""
        with p.Folder() as folder, nvme.Disk() as disk:
            args = ["--ranks", "2", "--train-batch", "4", "--steps", str(steps),
                    "--precision", "bf16", "--no-weights"]
            with p.Stowd(folder, "--no-mlock") as server:
                want = self.train(
                    folder, folder.config(zero_optimization=nvme.in_memory(3),
                                          **BF16),
                    "memory", *args, "--server", server.address, "--job", "all",
                    "--keep", model=model, timeout=900)
                parameters = server.jobs()[0]["parameters"]
            budget = parameters * 12 // 10 + 48 * nvme.MIB
            with p.Stowd(folder, "--nvme-root", disk.path,
                         "--no-mlock") as server:
                watch = nvme.Watch(server.process.pid, folder.shm)
                watch.start()
                config = folder.config(
                    zero_optimization=nvme.zero(3, disk, 10**9),
                    stowage={"durability": "power", "memory_budget": budget},
                    **BF16)
                got = self.train(folder, config, "budget", *args, "--server",
                                 server.address, "--job", "budget", "--keep",
                                 model=model, timeout=900)
                job = server.jobs()[0]
                watch.stop()
            print(f"{parameters} parameters, {steps} steps, budget "
                  f"{budget / nvme.MIB:.1f} MiB, {watch.words()}; by the "
                  f"server: state {job['state_bytes'] / nvme.MIB:.1f}, "
                  f"parameters {job['param_bytes'] / nvme.MIB:.1f}, gradients "
                  f"{job['gradient_bytes'] / nvme.MIB:.1f} MiB")
            self.assert_same(got, want)
            self.assertTrue(job["params_leased"])
            self.assertGreater(watch.samples, 20)
            self.assertLessEqual(watch.most, budget)

    def test_a_budget_of_a_tenth_holds_and_changes_no_loss(self):
        self.check_budget(SMALL, 4)

    @unittest.skipUnless(LONG, "85 M parameters: STOWAGE_TEST_LONG=1")
    def test_a_budget_of_a_tenth_of_85_million_holds_and_changes_no_loss(self):
        self.check_budget(LARGE, 10)

    def test_killed_with_or_without_its_server_it_goes_on_bit_for_bit(self):
        seed = p.seed()
        kills = int(os.environ.get("STOWAGE_NVME_TRAIN_KILLS",
                                   "10" if LONG else "3"))
        print(f"seed {seed} (STOWAGE_TEST_SEED), {kills} kills "
              "(STOWAGE_NVME_TRAIN_KILLS)")
        rng = random.Random(seed)
        steps = 8 * (kills + 1)
        with p.Folder() as folder, nvme.Disk() as disk:
            args = ["--ranks", "2", "--train-batch", "8", "--steps", str(steps),
                    "--warmup-steps", "5"]
            want = self.train(
                folder, folder.config(zero_optimization=nvme.in_memory(3)),
                "memory", *args, timeout=300)
            config = folder.config(zero_optimization=nvme.zero(3, disk),
                                   stowage={"durability": "power"})
            path = folder.file("trace-killed")
            done = 0
            for start in range(kills + 1):
                server = p.Stowd(folder, "--nvme-root", disk.path)
                process = p.start_train(
                    folder, config, folder.file("text"), *p.TINY, *args,
                    "--server", server.address, "--job", "killed", "--keep",
                    "--trace", path)
                if start < kills:
                    before = len(p.trace(path))
                    more = rng.randrange(1, 5)
                    while (process.poll() is None and
                           len(p.trace(path)) <= before + more):
                        time.sleep(0.002)
                    time.sleep(rng.random() * 0.05)
                    server.process.kill()
                    if rng.random() < 0.5:
                        p.kill_all(process)
                    else:
                        # The ranks say what happened and end by themselves.
                        self.assertEqual(process.wait(timeout=60), 5,
                                         p.read(folder.file("train.log")))
                    server.process.wait()
                    done += 1
                else:
                    self.assertEqual(process.wait(timeout=300), 0,
                                     p.read(folder.file("train.log")))
                server.__exit__()
            got = p.trace(path)
            self.assertEqual(done, kills)
            self.assertEqual(max(got), steps)
            for step, entry in got.items():
                for key in nvme.KEYS:
                    self.assertEqual(entry[key], want[step][key],
                                     f"step {step}: {key}")

    def test_stowctl_shows_rewinds_checks_and_drops(self):
        with p.Folder() as folder, nvme.Disk() as disk:
            config = folder.config(
                zero_optimization=nvme.zero(3, disk),
                stowage={"durability": "power", "kept_steps": 3})
            with p.Stowd(folder, "--nvme-root", disk.path) as server:
                self.train(folder, config, "first", "--steps", "6", "--server",
                           server.address, "--job", "ctl", "--keep")

                def ctl(*args):
                    return p.stowctl(server.address, *args)

                shown = json.loads(ctl("job", "show", "ctl", "--json").stdout)
                self.assertEqual(shown["kept_steps"], [4, 5, 6])
                self.assertEqual(shown["durability"], "power")
                self.assertGreater(shown["disk_bytes"], 0)
                self.assertIn("kept steps", ctl("job", "show", "ctl").stdout)
                refused = ctl("job", "rewind", "ctl", "--step", "3")
                self.assertEqual(refused.returncode, 1)
                self.assertIn("4", refused.stderr)
                rewound = ctl("job", "rewind", "ctl", "--step", "4")
                self.assertEqual(rewound.returncode, 0, rewound.stderr)
                took = re.search(r"([0-9.]+) ms", rewound.stdout)
                self.assertIsNotNone(took, rewound.stdout)
                self.assertLess(float(took.group(1)), 200)
                self.assertEqual(
                    json.loads(ctl("job", "show", "ctl",
                                   "--json").stdout)["step"], 4)
            checked = p.stowctl("unix:/none", "fsck", disk.path)
            self.assertEqual(checked.returncode, 0, checked.stderr)
            self.assertIn("ctl", checked.stdout)
            self.assertIn("0 faults", checked.stdout)
            with p.Stowd(folder, "--nvme-root", disk.path) as server:
                dropped = p.stowctl(server.address, "job", "drop", "ctl")
                self.assertEqual(dropped.returncode, 0, dropped.stderr)
            self.assertEqual(disk.files(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
