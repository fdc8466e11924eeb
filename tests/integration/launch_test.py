"""However the ranks are started and wherever the server listens, the training
is the same: by --ranks, by torchrun's variables; over a Unix socket, over
loopback TCP; with a private server.
"""

import os
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

RANKS = 2
STEPS = 6


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Launch(unittest.TestCase):
    def setUp(self):
        self.folder = p.Folder().__enter__()
        self.addCleanup(self.folder.__exit__)
        self.config = self.folder.config(
            csv_monitor={"enabled": True, "job_name": "mine"})

    def arguments(self, name, *args):
        return [*p.TINY, "--steps", str(STEPS), "--out", self.folder.file(name),
                "--trace", self.folder.file(name + ".trace"), *args]

    def result(self, name):
        steps = p.trace(self.folder.file(name + ".trace"))
        self.assertEqual(len(steps), STEPS, name)
        return [(s["loss"], s["norm"]) for _, s in sorted(steps.items())]

    def launched(self, name, *args):
        out = p.train(self.config, self.folder.file("text"),
                      *self.arguments(name, "--ranks", str(RANKS), *args))
        self.assertEqual(out.returncode, 0, out.stderr)
        return self.result(name)

    def by_torchrun_variables(self, name, *args):
        """As `torchrun --nproc-per-node 2` would, without its agent."""
        port = free_port()
        ranks = []
        for rank in range(RANKS):
            env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank),
                   "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            ranks.append(subprocess.Popen(
                p.train_command(self.config, self.folder.file("text"),
                                *self.arguments(name, *args)),
                env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True))
        for rank in ranks:
            said, _ = rank.communicate(timeout=120)
            self.assertEqual(rank.returncode, 0, said)
        return self.result(name)

    def test_is_the_same_by_every_way(self):
        want = self.launched("private")
        self.assertEqual(self.by_torchrun_variables("torchrun"), want)
        with p.Stowd(self.folder) as server:
            self.assertEqual(
                self.launched("unix", "--server", server.address), want)
        port = free_port()
        with p.Stowd(self.folder, address=f"127.0.0.1:{port}"):
            address = f"127.0.0.1:{port}"
            self.assertEqual(self.launched("tcp", "--server", address), want)
            self.assertEqual(
                self.by_torchrun_variables("both", "--server", address), want)
        self.assertEqual(self.folder.segments(), [])
        for name in ("private", "torchrun", "unix", "tcp", "both"):
            losses = self.folder.file(
                name + "/mine/Train_Samples_train_loss.csv")
            self.assertEqual(len(p.read(losses).splitlines()), STEPS + 1, name)

    def test_a_variable_that_is_missing_or_wrong_is_named(self):
        for env, pattern in (
                ({"RANK": "0"}, r"WORLD_SIZE.*torchrun"),
                ({"RANK": "x", "WORLD_SIZE": "2"}, r"RANK=\"x\""),
                ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2 WORLD_SIZE=2"),
                ({"RANK": "0", "WORLD_SIZE": "2"}, r"MASTER_ADDR")):
            out = p.train(self.config, self.folder.file("text"), *p.TINY,
                          env=env)
            self.assertEqual(out.returncode, 2, out.stderr)
            said = [line for line in out.stderr.splitlines()
                    if line.startswith("stow-train:")]
            self.assertRegex("\n".join(said), pattern)
            self.assertLessEqual(len(said), 1, said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
