"""Killed at a random instant and started again, training goes on as if never
stopped: bit for bit on the same number of ranks, and on another with the same
micro-batches; within tolerance where the micro-batches are other ones.

Fault model: SIGKILL of every rank (and the launcher) at once, at any instant;
the server lives.
"""

import os
import random
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

STEPS = int(os.environ.get("STOWAGE_REATTACH_STEPS", "60"))
KILLS = int(os.environ.get("STOWAGE_REATTACH_KILLS", "5"))


class Reattach(unittest.TestCase):
    def arguments(self, server, ranks, job, micro_batch, path):
        """A global batch of 12 on any number of ranks."""
        args = [*p.TINY, "--ranks", str(ranks), "--train-batch", "12",
                "--steps", str(STEPS), "--server", server.address, "--job", job,
                "--trace", path]
        if micro_batch > 0:
            args += ["--micro-batch", str(micro_batch), "--accumulation",
                     str(12 // (ranks * micro_batch)), "--rank-threads", "1"]
        return args

    def run_whole(self, folder, server, config, ranks, job, micro_batch):
        path = folder.file(f"trace-{job}")
        out = p.train(config, folder.file("text"),
                      *self.arguments(server, ranks, job, micro_batch, path))
        self.assertEqual(out.returncode, 0, out.stderr)
        return p.trace(path)

    def run_killed(self, folder, server, config, ranks_of, job, rng,
                   micro_batch):
        path = folder.file(f"trace-{job}")
        kills = 0
        starts = 0
        slowest = 0.0
        deadline = time.time() + 300
        while time.time() < deadline:
            ranks = ranks_of(starts)
            starts += 1
            known = len(p.trace(path))
            begin = time.monotonic()
            process = p.start_train(
                folder, config, folder.file("text"), "--keep",
                *self.arguments(server, ranks, job, micro_batch, path))
            if 0 < kills < KILLS and rng.random() < 0.3:
                # At any instant of its start, too.
                time.sleep(rng.random() * 0.8)
                p.kill_all(process)
                kills += 1
                continue
            while process.poll() is None and len(p.trace(path)) <= known:
                time.sleep(0.002)
            if starts > 1 and process.poll() is None:
                slowest = max(slowest, time.monotonic() - begin)
            if kills < KILLS:
                before = len(p.trace(path))
                # Wait until it trains, then a random part of some steps more.
                while (process.poll() is None and
                       len(p.trace(path)) <= before + rng.randrange(1, 6)):
                    time.sleep(0.005)
                time.sleep(rng.random() * 0.05)
                if process.poll() is None:
                    p.kill_all(process)
                    kills += 1
                    continue
            code = process.wait(timeout=120)
            self.assertEqual(code, 0, p.read(folder.file("train.log")))
            if max(p.trace(path)) >= STEPS:
                self.check_restart(slowest)
                return p.trace(path), kills
        self.fail("did not finish in time")

    def check_restart(self, slowest):
        """The next step came within 2 s plus LibTorch's own start, which the
        launcher pays once and the ranks beside each other once more."""
        begin = time.monotonic()
        p.train("none", "none", "--help")
        start = time.monotonic() - begin
        print(f"the next step came at most {slowest:.2f} s after a start; "
              f"the program's own start takes {start:.2f} s")
        self.assertLess(slowest, 2 + 3 * start)

    def check(self, ranks_of, exact, micro_batch=0):
        seed = p.seed()
        print(f"seed {seed} (STOWAGE_TEST_SEED)")
        rng = random.Random(seed)
        with p.Folder() as folder:
            config = folder.config(
                fp16={"enabled": True, "initial_scale_power": 14,
                      "loss_scale_window": 7} if exact else {"enabled": False})
            with p.Stowd(folder) as server:
                want = self.run_whole(folder, server, config, ranks_of(0),
                                      "whole", micro_batch)
                got, kills = self.run_killed(folder, server, config, ranks_of,
                                             "killed", rng, micro_batch)
                self.assertGreaterEqual(kills, 1)
                self.assertEqual(max(got), STEPS)
                compared = 0
                for step, entry in got.items():
                    for key in ("loss", "norm", "lr", "scale", "skipped"):
                        if exact:
                            self.assertEqual(entry[key], want[step][key],
                                             f"step {step}: {key}")
                        elif entry[key] is not None and key in ("loss", "norm"):
                            self.assertLess(
                                abs(entry[key] - want[step][key]),
                                1e-4 * abs(want[step][key]),
                                f"step {step}: {key}")
                    compared += 1
                self.assertGreater(compared, STEPS * 3 // 4)
                print(f"{kills} kills, {compared} of {STEPS} steps compared, "
                      f"{'bit for bit' if exact else 'to 1e-4'}")
                self.assertEqual([job["name"] for job in server.jobs()],
                                 ["killed"], "a normal end closes its job")
            self.assertEqual(folder.segments(), [], "segments left behind")

    def test_same_ranks_go_on_bit_for_bit(self):
        self.check(lambda start: 2, exact=True)

    def test_one_two_and_three_ranks_go_on(self):
        self.check(lambda start: (2, 1, 3)[start % 3], exact=False)

    def test_the_same_micro_batches_on_other_ranks_go_on_bit_for_bit(self):
        self.check(lambda start: (2, 1, 3)[start % 3], exact=True,
                   micro_batch=1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
