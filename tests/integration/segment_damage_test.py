"""What a trainer does to its own segment hurts its own job alone.

Fault model: another process of the same user truncates a rank's gradient
segment, or fills it with garbage, while its job and a neighbour's train in one
stowd. Neighbour and server must not notice: same losses, bit for bit, as alone.
"""

import os
import random
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

STEPS = 40


class SegmentDamage(unittest.TestCase):
    def setUp(self):
        self.folder = p.Folder().__enter__()
        self.addCleanup(self.folder.__exit__)
        self.config = self.folder.config()

    def start(self, server, job, steps):
        return p.start_train(
            self.folder, self.config, self.folder.file("text"), *p.TINY,
            "--steps", str(steps), "--ranks", "1", "--server", server.address,
            "--job", job, "--trace", self.folder.file("trace-" + job))

    def wait_steps(self, process, job, count):
        end = time.time() + 60
        while len(p.trace(self.folder.file("trace-" + job))) < count:
            self.assertIsNone(process.poll(),
                              p.read(self.folder.file("train.log")))
            self.assertLess(time.time(), end)
            time.sleep(0.01)

    def damage(self, do):
        """Trains `victim` and `neighbour`, calls do(path of the victim's
        gradient segment). Returns: the victim's process, server running."""
        alone = p.train(self.config, self.folder.file("text"), *p.TINY,
                        "--steps", str(STEPS), "--ranks", "1", "--trace",
                        self.folder.file("trace-alone"))
        self.assertEqual(alone.returncode, 0, alone.stderr)
        with p.Stowd(self.folder) as server:
            victim = self.start(server, "victim", 1000000)
            self.wait_steps(victim, "victim", 3)
            segments = [os.path.join(self.folder.shm, name)
                        for name in self.folder.segments()]
            # The parameters are the server's, the gradients the rank's: of two
            # files the latter is the one that the rank maps writable.
            with open(f"/proc/{self.rank_of(victim)}/maps") as maps:
                lines = maps.read().splitlines()
            mine = {line.split()[-1] for line in lines
                    if " rw-s " in line and line.split()[-1] in segments}
            self.assertEqual(len(mine), 1, lines)
            neighbour = self.start(server, "neighbour", STEPS)
            self.wait_steps(neighbour, "neighbour", 3)
            do(mine.pop(), victim)
            self.assertEqual(neighbour.wait(timeout=120), 0,
                             p.read(self.folder.file("train.log")))
            got = p.trace(self.folder.file("trace-neighbour"))
            want = p.trace(self.folder.file("trace-alone"))
            self.assertEqual(len(got), STEPS)
            for step, entry in got.items():
                for key in ("loss", "norm"):
                    self.assertEqual(entry[key], want[step][key], step)
            self.assertIsNone(server.process.poll(), "the server lives")
            if victim.poll() is None:
                p.kill_all(victim)
            end = time.time() + 10
            while True:
                dropped = p.stowctl(server.address, "job", "drop", "victim")
                if dropped.returncode == 0 or time.time() > end:
                    break
                time.sleep(0.1)
            self.assertEqual(dropped.returncode, 0, dropped.stderr)
            self.assertEqual(server.jobs(), [])
            self.assertEqual(self.folder.segments(), [])

    @staticmethod
    def rank_of(launcher):
        with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as f:
            return f.read().split()[0]

    def test_a_truncated_gradient_segment(self):
        def truncate(path, victim):
            os.truncate(path, 4096)
            # A rank that writes where its own file ended dies of SIGBUS, one
            # that does not hears of it from the server: lost either way.
            self.assertEqual(victim.wait(timeout=20), 5,
                             p.read(self.folder.file("train.log")))
            self.assertRegex(p.read(self.folder.file("train.log")),
                             r"truncated|was ended by Bus error")

        self.damage(truncate)

    def test_a_gradient_segment_full_of_garbage(self):
        rng = random.Random(p.seed())

        def fill(path, victim):
            size = os.path.getsize(path)
            for _ in range(20):
                with open(path, "r+b") as segment:
                    segment.write(rng.randbytes(size))
                if victim.poll() is not None:
                    break
                time.sleep(0.02)

        self.damage(fill)


if __name__ == "__main__":
    unittest.main(verbosity=2)
