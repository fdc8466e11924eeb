"""Whatever a user gets wrong: one clear line, a documented exit code, and
nothing left behind (no process, no segment)."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p


def processes_of(folder):
    """Processes that have the folder's name on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as f:
                line = f.read()
        except OSError:
            continue
        if folder.path in line or folder.shm in line:
            found.append((pid, line.replace("\0", " ")))
    return found


class BadInput(unittest.TestCase):
    def setUp(self):
        self.folder = p.Folder().__enter__()
        self.addCleanup(self.folder.__exit__)

    def tearDown(self):
        self.assertEqual(processes_of(self.folder), [], "orphans")
        self.assertEqual(self.folder.segments(), [], "segments")

    def expect(self, code, pattern, config, *args, data=None, env=None,
               lines_max=3):
        out = p.train(config, data or self.folder.file("text"), *p.TINY,
                      "--steps", "2", "--ranks", "2", *args, env=env)
        said = [line for line in out.stderr.splitlines()
                if not re.search(r" [IW] (stow-train|stowd)\[", line)]
        text = "\n".join(said)
        self.assertEqual(out.returncode, code, out.stderr)
        self.assertRegex(text, pattern)
        self.assertLessEqual(len(said), lines_max, text)
        return text

    def write(self, text):
        with open(self.folder.file("bad.json"), "w") as out:
            out.write(text)
        return self.folder.file("bad.json")

    def test_no_such_config(self):
        self.expect(2, r"/nowhere\.json.*[Nn]o such file", "/nowhere.json")

    def test_no_such_data(self):
        self.expect(2, r"/nowhere\.txt.*No such file", self.folder.config(),
                    data="/nowhere.txt")

    def test_data_shorter_than_a_context(self):
        with open(self.folder.file("short"), "w") as out:
            out.write("too short")
        self.expect(2, r"9 bytes.*needs 33", self.folder.config(),
                    data=self.folder.file("short"))

    def test_syntax_error_has_line_and_column(self):
        self.expect(2, r"bad\.json:2:\d+", self.write('{\n  "a" 1}'))

    def test_unknown_key_names_the_nearest(self):
        self.expect(2, r"gradient_clippin.*gradient_clipping",
                    self.folder.config(gradient_clippin=1.0))

    def test_wrong_type(self):
        self.expect(2, r"gradient_clipping.*\"lots\"",
                    self.folder.config(gradient_clipping="lots"))

    def test_batch_that_does_not_factor(self):
        text = self.expect(
            2, r"train_batch_size", self.folder.config(
                train_batch_size=7, train_micro_batch_size_per_gpu=2,
                gradient_accumulation_steps=1))
        for number in ("7", "2", "1"):
            self.assertIn(number, text)

    def test_offload_param_below_stage_3(self):
        self.expect(2, r"offload_param.*stage", self.folder.config(
            zero_optimization={"stage": 2,
                               "offload_optimizer": {"device": "cpu"},
                               "offload_param": {"device": "cpu"}}))

    def test_amp(self):
        self.expect(2, r"amp", self.folder.config(amp={"enabled": True}))

    def test_overflow_at_the_smallest_loss_scale_ends_the_run_with_its_cause(self):
        config = self.folder.config(fp16={
            "enabled": True, "initial_scale_power": 32, "min_loss_scale": 2**30,
            "hysteresis": 1})
        self.expect(6, r"not finite at the smallest loss scale.*fp16\.min_loss_scale.*"
                    r"first tensor that is not finite is \"embed\.token\"",
                    config, "--steps", "9", lines_max=8)

    def test_server_unreachable(self):
        self.expect(3, r"/nobody/here.*", self.folder.config(), "--server",
                    "unix:/nobody/here", lines_max=4)

    def test_something_else_answers(self):
        path = self.folder.file("other.sock")
        other = socket.socket(socket.AF_UNIX)
        other.bind(path)
        other.listen(4)
        self.addCleanup(other.close)
        self.expect(3, r"other\.sock", self.folder.config(), "--server",
                    "unix:" + path, lines_max=4)

    def test_server_out_of_memory_says_how_much(self):
        with p.Stowd(self.folder, "--memory-limit", "16MiB") as server:
            text = self.expect(4, r"16\.0 MiB", self.folder.config(),
                               "--server", server.address, "--layers", "6",
                               "--width", "256", lines_max=4)
            self.assertGreaterEqual(len(re.findall(r"[\d.]+ MiB", text)), 2,
                                    "the need and the limit")

    def test_job_name_in_use_and_other_layout(self):
        with p.Stowd(self.folder) as server:
            config = self.folder.config()
            running = p.start_train(
                self.folder, config, self.folder.file("text"), *p.TINY,
                "--steps", "100000", "--ranks", "2", "--server",
                server.address, "--job", "mine", "--trace",
                self.folder.file("trace"))
            while not p.trace(self.folder.file("trace")):
                self.assertIsNone(running.poll())
                time.sleep(0.05)
            self.expect(4, r"mine.*", config, "--server", server.address,
                        "--job", "mine", lines_max=4)
            running.send_signal(signal.SIGINT)
            self.assertEqual(running.wait(timeout=30), 130,
                             p.read(self.folder.file("train.log")))
            # Interrupted, not ended: the job is still there.
            self.assertEqual([j["name"] for j in server.jobs()], ["mine"])
            self.expect(2, r"layers|unit|parameters", config, "--server",
                        server.address, "--job", "mine", "--layers", "3",
                        lines_max=4)
            dropped = p.stowctl(server.address, "job", "drop", "mine")
            self.assertEqual(dropped.returncode, 0, dropped.stderr)

    def test_a_rank_that_dies_is_named_within_ten_seconds(self):
        config = self.folder.config()
        with p.Stowd(self.folder) as server:
            running = p.start_train(
                self.folder, config, self.folder.file("text"), *p.TINY,
                "--steps", "100000", "--ranks", "2", "--server",
                server.address, "--job", "mine", "--trace",
                self.folder.file("trace"))
            while not p.trace(self.folder.file("trace")):
                self.assertIsNone(running.poll())
                time.sleep(0.05)
            children = subprocess.run(
                ["ps", "--ppid", str(running.pid), "-o", "pid="],
                capture_output=True, text=True).stdout.split()
            begin = time.time()
            os.kill(int(children[1]), signal.SIGKILL)
            code = running.wait(timeout=20)
            self.assertLess(time.time() - begin, 10)
            self.assertEqual(code, 5)
            log = p.read(self.folder.file("train.log"))
            self.assertRegex(log, r"rank 0: training stopped: .*rank 1")
            self.assertRegex(log, r"rank 1 \(pid \d+\) was ended by Killed")
            p.stowctl(server.address, "job", "drop", "mine")

    def test_a_rank_that_dies_while_starting_is_named_too(self):
        config = self.folder.config()
        for delay in (0.0, 0.15, 0.4):
            running = p.start_train(
                self.folder, config, self.folder.file("text"), *p.TINY,
                "--steps", "100000", "--ranks", "2")
            children = []
            while len(children) < 2:
                self.assertIsNone(running.poll())
                children = subprocess.run(
                    ["ps", "--ppid", str(running.pid), "-o", "pid="],
                    capture_output=True, text=True).stdout.split()
            time.sleep(delay)
            begin = time.time()
            os.kill(int(children[1]), signal.SIGKILL)
            code = running.wait(timeout=20)
            self.assertLess(time.time() - begin, 10)
            self.assertEqual(code, 5)
            self.assertRegex(p.read(self.folder.file("train.log")),
                             r"rank 1 \(pid \d+\) was ended by Killed")

    def test_server_that_dies_is_named(self):
        config = self.folder.config()
        server = p.Stowd(self.folder)
        running = p.start_train(
            self.folder, config, self.folder.file("text"), *p.TINY, "--steps",
            "100000", "--ranks", "2", "--server", server.address, "--job",
            "mine", "--trace", self.folder.file("trace"))
        while not p.trace(self.folder.file("trace")):
            self.assertIsNone(running.poll())
            time.sleep(0.05)
        server.process.kill()
        server.process.wait()
        self.assertEqual(running.wait(timeout=20), 5)
        log = p.read(self.folder.file("train.log"))
        self.assertRegex(log, r"stowd")
        # The next server clears what the killed one left.
        with p.Stowd(self.folder):
            self.assertEqual(self.folder.segments(), [])

    def test_interrupt_in_any_phase_leaves_nothing(self):
        config = self.folder.config()
        for delay in (0.02, 0.2, 0.6, 1.2, 2.0, "a step", "the text before",
                      "the text after"):
            trace = self.folder.file(f"trace {delay}")
            steps = "3" if delay == "the text after" else "100000"
            text = "100000" if str(delay).startswith("the text") else "0"
            running = p.start_train(
                self.folder, config, self.folder.file("text"), *p.TINY,
                "--steps", steps, "--ranks", "2", "--trace", trace,
                "--sample-bytes", text if delay != "the text after" else "400")
            if isinstance(delay, float):
                time.sleep(delay)
            elif delay == "the text before":
                self.wait_for_log("job started", running)
                time.sleep(0.3)
            else:
                while len(p.trace(trace)) < (3 if steps == "3" else 1):
                    self.assertIsNone(running.poll())
                    time.sleep(0.002)
            # As a terminal does: to every process of the group.
            os.killpg(running.pid, signal.SIGINT)
            code = running.wait(timeout=40)
            self.assertIn(code, (130, -signal.SIGINT, 128 + signal.SIGINT),
                          p.read(self.folder.file("train.log")))
            # A server whose rank was killed at once ends by itself.
            for _ in range(100):
                left = subprocess.run(["pgrep", "-s", str(running.pid)],
                                      capture_output=True, text=True).stdout
                if left == "":
                    break
                time.sleep(0.05)
            self.assertEqual(left, "", f"after {delay} s")
            log = p.read(self.folder.file("train.log"))
            if not isinstance(delay, float):
                self.assertEqual(log.count("stow-train: interrupted after"), 1,
                                 f"{delay}: {log}")
            os.remove(self.folder.file("train.log"))

    def wait_for_log(self, text, running):
        while text not in p.read(self.folder.file("train.log")):
            self.assertIsNone(running.poll())
            time.sleep(0.01)


if __name__ == "__main__":
    unittest.main(verbosity=2)
