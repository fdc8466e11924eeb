"""Training with state on NVMe: the losses of a run in memory bit for bit, at
every stage and under a small budget; jobs that survive server and trainer.

Fault model: SIGKILL of stowd and of every rank at once.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

KEYS = ("loss", "norm", "lr", "scale", "skipped")
SMALL = ["--layers", "8", "--width", "256", "--heads", "4", "--context", "32",
         "--sample-bytes", "0", "--seed", "7"]
MIB = 1 << 20


class Disk:
    """A folder on the disk that the tests run on."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="nvme-test-", dir=os.getcwd())
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)


def zero(stage, disk, max_in_cpu=0):
    nvme = {"device": "nvme", "nvme_path": disk.path}
    block = {"stage": stage,
             "offload_optimizer": {**nvme, "pipeline_read": True,
                                   "pipeline_write": True}}
    if stage == 3:
        block["offload_param"] = {**nvme, "max_in_cpu": max_in_cpu}
    return block


def in_memory(stage):
    block = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
    if stage == 3:
        block["offload_param"] = {"device": "cpu"}
    return block


class Watch(threading.Thread):
    """The most memory of a server: its PSS and every byte of its segments."""

    def __init__(self, pid, shm):
        super().__init__(daemon=True)
        self.pid, self.shm = pid, shm
        self.most, self.samples, self.parts = 0, 0, None
        self.stop = threading.Event()

    def run(self):
        while not self.stop.is_set():
            try:
                with open(f"/proc/{self.pid}/smaps_rollup") as rollup:
                    lines = dict(line.split(":", 1) for line in
                                 rollup.read().splitlines()[1:])
                private = (int(lines["Pss"].split()[0]) -
                           int(lines["Pss_Shmem"].split()[0])) * 1024
                shared = int(lines["Pss_Shmem"].split()[0]) * 1024
                files = sum(os.stat(os.path.join(self.shm, name)).st_blocks
                            for name in os.listdir(self.shm)) * 512
            except OSError:
                continue  # a segment went in between
            self.samples += 1
            # Pages of segments are counted once, as files: all of them, also
            # what only ranks have touched.
            if private + files > self.most:
                self.most = private + files
                self.parts = (private, files, shared)
            self.stop.wait(0.002)


class NvmeTrain(unittest.TestCase):
    def train(self, folder, config, name, *args, model=tuple(p.TINY)):
        path = folder.file(f"trace-{name}")
        out = p.train(config, folder.file("text"), *model, "--trace", path,
                      *args)
        self.assertEqual(out.returncode, 0, out.stderr)
        return p.trace(path)

    def assert_same(self, got, want):
        self.assertEqual(sorted(got), sorted(want))
        for step in want:
            for key in KEYS:
                self.assertEqual(got[step][key], want[step][key],
                                 f"step {step}: {key}")

    def test_every_stage_gives_the_losses_of_a_run_in_memory(self):
        with p.Folder() as folder, Disk() as disk:
            for stage in (1, 2, 3):
                args = ["--ranks", "2", "--train-batch", "8", "--steps", "8"]
                want = self.train(
                    folder, folder.config(zero_optimization=in_memory(stage)),
                    f"memory-{stage}", *args)
                got = self.train(
                    folder, folder.config(
                        zero_optimization=zero(stage, disk),
                        stowage={"durability": "power" if stage != 2 else
                                 "memory", "shm_dir": folder.shm}),
                    f"nvme-{stage}", *args)
                self.assert_same(got, want)
                self.assertEqual(sum(len(f) for _, _, f in os.walk(disk.path)),
                                 0, "a closed job left files")

    def test_a_private_server_finds_the_job_of_the_one_before(self):
        with p.Folder() as folder, Disk() as disk:
            args = ["--ranks", "2", "--train-batch", "8", "--job", "again"]
            want = self.train(
                folder, folder.config(zero_optimization=in_memory(3)),
                "memory", *args, "--steps", "12", "--warmup-steps", "3")
            config = folder.config(zero_optimization=zero(3, disk),
                                   stowage={"durability": "power"})
            got = {}
            for steps in (5, 9, 12):
                got.update(self.train(
                    folder, config, f"nvme-{steps}", *args, "--steps",
                    str(steps), "--warmup-steps", "3",
                    *(["--keep"] if steps < 12 else [])))
            self.assert_same(got, want)

    def test_a_budget_of_a_tenth_holds_and_changes_no_loss(self):
        with p.Folder() as folder, Disk() as disk:
            args = ["--ranks", "2", "--train-batch", "8", "--steps", "4",
                    "--precision", "bf16"]
            changes = {"bf16": {"enabled": "auto"}}
            want = self.train(
                folder, folder.config(zero_optimization=in_memory(3), **changes),
                "memory", *args, model=SMALL)
            with p.Stowd(folder, "--nvme-root", disk.path,
                         "--no-mlock") as server:
                # 12 bytes of state a parameter; the model is asked for them by
                # a first run without a budget.
                config = folder.config(zero_optimization=zero(3, disk),
                                       stowage={"durability": "power"},
                                       **changes)
                self.train(folder, config, "probe", *args[:-4], "--steps", "1",
                           "--precision", "bf16", "--server", server.address,
                           "--job", "probe", "--keep", model=SMALL)
                job = server.jobs()[0]
                self.assertTrue(job["params_leased"])
                budget = job["parameters"] * 12 // 10 + 48 * MIB
                self.assertEqual(
                    p.stowctl(server.address, "job", "drop",
                              "probe").returncode, 0)
            with p.Stowd(folder, "--nvme-root", disk.path,
                         "--no-mlock") as server:
                watch = Watch(server.process.pid, folder.shm)
                watch.start()
                config = folder.config(
                    zero_optimization=zero(3, disk, 10**9),
                    stowage={"durability": "power", "memory_budget": budget},
                    **changes)
                got = self.train(folder, config, "budget", *args, "--server",
                                 server.address, "--job", "budget", model=SMALL)
                watch.stop.set()
                watch.join()
            self.assert_same(got, want)
            print(f"{job['parameters']} parameters, budget {budget / MIB:.1f} "
                  f"MiB, most {watch.most / MIB:.1f} MiB in {watch.samples} "
                  f"samples (private {watch.parts[0] / MIB:.1f}, segments "
                  f"{watch.parts[1] / MIB:.1f}, of them mapped by the server "
                  f"{watch.parts[2] / MIB:.1f})")
            self.assertGreater(watch.samples, 20)
            self.assertLessEqual(watch.most, budget)

    def test_killed_with_its_server_it_goes_on_bit_for_bit(self):
        seed = p.seed()
        print(f"seed {seed} (STOWAGE_TEST_SEED)")
        rng = random.Random(seed)
        steps = 30
        kills = int(os.environ.get("STOWAGE_NVME_TRAIN_KILLS", "3"))
        with p.Folder() as folder, Disk() as disk:
            args = ["--ranks", "2", "--train-batch", "8", "--steps", str(steps),
                    "--warmup-steps", "5"]
            want = self.train(
                folder, folder.config(zero_optimization=in_memory(3)), "memory",
                *args)
            config = folder.config(zero_optimization=zero(3, disk),
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
                    while (process.poll() is None and
                           len(p.trace(path)) <= before + rng.randrange(1, 5)):
                        time.sleep(0.002)
                    time.sleep(rng.random() * 0.05)
                    server.process.kill()
                    p.kill_all(process)
                    server.process.wait()
                    done += 1
                else:
                    self.assertEqual(process.wait(timeout=120), 0,
                                     p.read(folder.file("train.log")))
                server.__exit__()
            got = p.trace(path)
            self.assertEqual(done, kills)
            self.assertEqual(max(got), steps)
            for step, entry in got.items():
                for key in KEYS:
                    self.assertEqual(entry[key], want[step][key],
                                     f"step {step}: {key}")

    def test_stowctl_shows_rewinds_checks_and_drops(self):
        with p.Folder() as folder, Disk() as disk:
            config = folder.config(
                zero_optimization=zero(3, disk),
                stowage={"durability": "power", "kept_steps": 3})
            with p.Stowd(folder, "--nvme-root", disk.path) as server:
                self.train(folder, config, "first", "--steps", "6", "--server",
                           server.address, "--job", "ctl", "--keep")
                ctl = lambda *args: p.stowctl(server.address, *args)
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
                self.assertIn("ms", rewound.stdout)
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
            self.assertEqual(sum(len(f) for _, _, f in os.walk(disk.path)), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
