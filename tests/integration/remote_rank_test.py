"""Ranks that cannot map the server's segments (the server's folder lies in a
mount of its own) train over the stream, with the same losses and weights."""

import os
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

NEEDS_ROOT = os.geteuid() != 0


class HiddenStowd(p.Stowd):
    """A stowd whose segment folder nobody else sees."""

    def __init__(self, folder):
        self.folder = folder
        run = folder.file("hidden")
        os.makedirs(run, mode=0o700, exist_ok=True)
        self.address = f"unix:{run}/stowd.sock"
        self.log = open(folder.file("hidden.log"), "a")
        mount = f"mount -t tmpfs -o mode=700 tmpfs {folder.shm}"
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c",
             f"{mount} && exec {p.BIN}/stowd --listen {self.address} "
             f"--shm-dir {folder.shm}"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        for _ in range(500):
            if p.stowctl(self.address, "info").returncode == 0:
                return
            time.sleep(0.02)
        raise AssertionError(p.read(folder.file("hidden.log")))


@unittest.skipIf(NEEDS_ROOT, "a mount namespace needs root")
class RemoteRank(unittest.TestCase):
    def train(self, folder, server, name, *args):
        out = folder.file(name)
        result = p.train(
            folder.config(), folder.file("text"), *p.TINY, "--ranks", "2",
            "--micro-batch", "2", "--steps", "6", "--rank-threads", "1",
            "--out", out, "--trace", out + ".trace", "--server",
            server.address, "--job", name, *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(out + "/model.safetensors", "rb") as file:
            weights = file.read()
        steps = [(s["loss"], s["norm"])
                 for _, s in sorted(p.trace(out + ".trace").items())]
        self.assertEqual(len(steps), 6)
        return weights, steps, result.stderr

    def test_the_stream_gives_the_same_bits(self):
        with p.Folder() as folder, p.Stowd(folder) as near, \
                HiddenStowd(folder) as far:
            for exchange in ("segments", "c10d"):
                # 8 micro steps: gradient slots are a ring.
                for accumulation in ("1", "8"):
                    args = ("--exchange", exchange, "--accumulation",
                            accumulation)
                    name = exchange + accumulation
                    want = self.train(folder, near, "near" + name, *args)
                    got = self.train(folder, far, "far" + name, *args)
                    self.assertIn('payload="through segments"', want[2])
                    self.assertIn('payload="over the stream, in chunks"',
                                  got[2])
                    self.assertEqual(got[1], want[1], name)
                    self.assertEqual(got[0], want[0], name)


if __name__ == "__main__":
    unittest.main()
