"""A hostile client beside a training job: the job's losses stay the same bits,
and its steps lose no more time than the cores that the flood takes.

Fault model: tests/support/hostile_client.cc. Bounded in time by STOWAGE_HOSTILE_S
(default 8 s a round; `tools/test --full` makes it 60).
"""

import os
import resource
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

LONG = os.environ.get("STOWAGE_TEST_LONG") == "1"
SECONDS = float(os.environ.get("STOWAGE_HOSTILE_S", "60" if LONG else "8"))
# Beyond its share of the cores; judged in the long tier only, on a machine that
# does nothing else: the default tier prints it.
SLOWER_MAX = 1.05
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    fields = p.read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def children_cpu_seconds():
    """Of children that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class HostileTraining(unittest.TestCase):
    def steps(self, folder, server, job, steps, during=None):
        """Trains; returns its trace and the seconds of each step."""
        path = folder.file(f"trace-{job}")
        process = p.start_train(
            folder, folder.config(), folder.file("text"), *p.TINY, "--ranks", "1",
            "--rank-threads", "1", "--micro-batch", "4", "--steps", str(steps),
            "--server", server.address, "--job", job, "--trace", path)
        try:
            end = time.monotonic() + 300
            while process.poll() is None and len(p.trace(path)) < 3:
                self.assertLess(time.monotonic(), end)
                time.sleep(0.01)
            if during is not None:
                during(path)
            process.wait(timeout=300)
        finally:
            if process.poll() is None:
                p.kill_all(process)
        self.assertEqual(process.returncode, 0, p.read(folder.file("train.log")))
        return p.trace(path)

    def test_losses_and_steps(self):
        seed = p.seed()
        print(f"seed {seed}, {SECONDS} s of hostility, {os.cpu_count()} cores")
        with p.Folder() as folder, p.Stowd(folder, "--max-sessions", "16") as server:
            pid = server.process.pid
            calm = {}

            def watch_calm(path):
                begin, first, used = time.monotonic(), len(p.trace(path)), cpu_seconds(pid)
                time.sleep(SECONDS / 2)
                calm["seconds"] = time.monotonic() - begin
                calm["steps"] = len(p.trace(path)) - first
                calm["server"] = (cpu_seconds(pid) - used) / calm["seconds"]

            def attack(path):
                begin, first, used = time.monotonic(), len(p.trace(path)), cpu_seconds(pid)
                hostile = subprocess.Popen(
                    [f"{p.BIN}/../tests/hostile_client", server.address, str(SECONDS),
                     str(seed)], stdout=subprocess.PIPE, text=True)
                before = children_cpu_seconds()
                out, _ = hostile.communicate(timeout=SECONDS + 120)
                self.assertEqual(hostile.returncode, 0)
                storm["seconds"] = time.monotonic() - begin
                storm["steps"] = len(p.trace(path)) - first
                storm["hostile"] = (children_cpu_seconds() - before) / storm["seconds"]
                storm["server"] = (cpu_seconds(pid) - used) / storm["seconds"]
                print(out.strip())

            storm = {}
            # As many steps as fill both watches on a fast machine.
            steps = int(400 * max(1.0, SECONDS / 8))
            want = self.steps(folder, server, "calm", steps, watch_calm)
            got = self.steps(folder, server, "victim", steps, attack)
            self.assertEqual(
                [(s["loss"], s["norm"]) for _, s in sorted(got.items())],
                [(s["loss"], s["norm"]) for _, s in sorted(want.items())])
            print(f"{len(got)} steps: losses and norms are the same bits")
            self.assertIsNone(server.process.poll(), "stowd ended")
            self.assertEqual(folder.segments(), [], "segments were left behind")

            if storm["steps"] < 20 or calm["steps"] < 20:
                print(f"not timed: {calm['steps']} and {storm['steps']} steps while watched")
                return
            calm_ms = 1e3 * calm["seconds"] / calm["steps"]
            storm_ms = 1e3 * storm["seconds"] / storm["steps"]
            # The flood's cores: its own process, and what the server does for it.
            taken = storm["hostile"] + max(0.0, storm["server"] - calm["server"])
            busy = 1.0 + calm["server"]  # of one rank and the server
            cores = float(os.cpu_count())
            fair = max(1.0, (busy + taken) / cores)
            print(f"step {calm_ms:.2f} ms alone, {storm_ms:.2f} ms beside it; the flood takes "
                  f"{taken:.2f} of {cores:.0f} cores, which alone makes {fair:.2f}x; "
                  f"beyond that {storm_ms / calm_ms / fair:.3f}x")
            if LONG:
                self.assertLessEqual(storm_ms / calm_ms / fair, SLOWER_MAX)


if __name__ == "__main__":
    unittest.main(verbosity=2)
