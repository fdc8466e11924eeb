"""Two hosts of two ranks: the same losses as one host; a cable that is cut for
a while; ranks and servers killed at random instants, after which all nodes
stand at one step and nothing is lost.

Fault model: SIGKILL of any one process at any instant; a link that drops
everything for seconds. State in memory ends with its server, so servers are
killed where the state is on NVMe.
"""

import os
import random
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import hosts as h
import processes as p

LONG = bool(os.environ.get("STOWAGE_TEST_LONG"))
KILLS = int(os.environ.get("STOWAGE_TWO_HOSTS_KILLS", "200" if LONG else "5"))
# Long enough that most kills come before the last one.
STEPS_A_KILL = 12
BOTH = {"stage": 3, "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"}}


@unittest.skipIf(h.available(), h.available())
class TwoHosts(unittest.TestCase):
    def config(self, folder, zero=BOTH, **more):
        return folder.config(zero_optimization=zero, **more)

    def losses(self, path):
        return {step: s["loss"] for step, s in p.trace(path).items()}

    def one_host(self, folder, config, steps, name="one", *args):
        path = folder.file(name + ".trace")
        result = p.train(config, folder.file("text"), *p.TINY, "--ranks", "4",
                         "--train-batch", "8", "--steps", str(steps),
                         "--trace", path, *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return self.losses(path)

    def assert_close(self, got, want, tolerance=2e-6):
        self.assertEqual(sorted(got), sorted(want))
        for step, loss in want.items():
            self.assertLess(abs(got[step] - loss), tolerance * loss, step)

    def test_losses_are_those_of_one_host(self):
        for zero in (BOTH, {"stage": 2, "offload_optimizer": {"device": "cpu"}},
                     {"stage": 1}, {"stage": 0}):
            with self.subTest(zero=zero), h.Hosts() as hosts, \
                    p.Folder() as folder:
                config = self.config(folder, zero)
                path = folder.file("two.trace")
                begin = hosts.sent_bytes(0)
                ranks = h.Ranks(hosts, folder, config, None, "--train-batch",
                                "8", "--steps", "12", "--trace", path)
                codes = ranks.wait(180)
                self.assertEqual(codes, [0] * 4, ranks.text())
                print(f"{zero}: host 0 sent {hosts.sent_bytes(0) - begin} "
                      "bytes over the cable")
                self.assertIn("exchange=c10d", p.read(ranks.logs[0]))
                self.assert_close(self.losses(path),
                                  self.one_host(folder, config, 12))

    def test_a_cable_cut_for_5_s_costs_time_only(self):
        with h.Hosts() as hosts, p.Folder() as folder:
            config = self.config(folder)
            path = folder.file("two.trace")
            ranks = h.Ranks(hosts, folder, config, None, "--train-batch", "8",
                            "--steps", "60", "--trace", path)
            deadline = time.time() + 120
            while len(p.trace(path)) < 10 and time.time() < deadline:
                time.sleep(0.01)
            before = len(p.trace(path))
            self.assertGreaterEqual(before, 10, ranks.text())
            hosts.cut()
            time.sleep(5)
            during = len(p.trace(path))
            begin = time.monotonic()
            hosts.mend()
            while len(p.trace(path)) <= during and time.monotonic() - begin < 60:
                time.sleep(0.01)
            print(f"cut after step {before}, at step {during} when mended, the "
                  f"next step {time.monotonic() - begin:.1f} s later")
            self.assertLess(during, before + 6, "the cable was not cut")
            codes = ranks.wait(180)
            self.assertEqual(codes, [0] * 4, ranks.text())
            self.assert_close(self.losses(path),
                              self.one_host(folder, config, 60))

    def test_a_cable_that_stays_cut_ends_the_run_within_the_bound(self):
        with h.Hosts() as hosts, p.Folder() as folder:
            servers = [h.NodeServer(hosts, n, folder) for n in (0, 1)]
            try:
                config = self.config(folder)
                path = folder.file("two.trace")
                limit = {(n, r): {"STOWAGE_EXCHANGE_TIMEOUT": "6"}
                         for n in (0, 1) for r in (0, 1)}
                args = ("--train-batch", "8", "--steps", "60", "--job", "cut",
                        "--keep", "--trace", path)
                ranks = h.Ranks(hosts, folder, config, servers, *args,
                                extra_env=limit)
                while len(p.trace(path)) < 10:
                    time.sleep(0.01)
                hosts.cut()
                begin = time.monotonic()
                codes = ranks.wait(60)
                print(f"ended {time.monotonic() - begin:.1f} s after the cut, "
                      f"exit codes {codes}")
                self.assertEqual(set(codes), {5}, ranks.text())
                self.assertLess(time.monotonic() - begin, 6 + 14)
                hosts.mend()
                again = h.Ranks(hosts, folder, config, servers, *args,
                                port=29512)
                self.assertEqual(again.wait(180), [0] * 4, again.text())
                self.assert_close(self.losses(path),
                                  self.one_host(folder, config, 60))
            finally:
                for server in servers:
                    server.__exit__()

    def test_a_node_cut_off_before_its_apply_follows_the_other(self):
        with h.Hosts() as hosts, p.Folder() as folder:
            servers = [h.NodeServer(hosts, n, folder) for n in (0, 1)]
            try:
                config = self.config(folder)
                path = folder.file("two.trace")
                # Both ranks of host 1 end after the verdict of the 5th step.
                crash = {(1, r): {"STOWAGE_CRASH_AT": "before-apply:5"}
                         for r in (0, 1)}
                args = ("--train-batch", "8", "--steps", "12", "--job", "vote",
                        "--keep", "--trace", path)
                ranks = h.Ranks(hosts, folder, config, servers, *args,
                                extra_env=crash)
                ranks.wait(60)
                steps = [s.jobs()[0]["step"] for s in servers]
                self.assertEqual(steps, [5, 4], ranks.text())
                again = h.Ranks(hosts, folder, config, servers, *args,
                                port=29512)
                self.assertEqual(again.wait(180), [0] * 4, again.text())
                self.assertIn("this node ends the step that the others have",
                              again.text())
                self.assertEqual([s.jobs()[0]["step"] for s in servers],
                                 [12, 12])
                losses = self.losses(path)
                # The trace lacks at most the step that no rank lived to print.
                want = self.one_host(folder, config, 12)
                for step, loss in losses.items():
                    self.assertLess(abs(loss - want[step]), 2e-6 * loss)
                self.assertGreaterEqual(len(losses), 11)
            finally:
                for server in servers:
                    server.__exit__()

    def test_a_server_that_lost_its_state_is_refused_by_name(self):
        with h.Hosts() as hosts, p.Folder() as folder:
            servers = [h.NodeServer(hosts, n, folder) for n in (0, 1)]
            try:
                config = self.config(folder)
                path = folder.file("two.trace")
                args = ("--train-batch", "8", "--steps", "400", "--job", "gone",
                        "--keep", "--trace", path)
                ranks = h.Ranks(hosts, folder, config, servers, *args)
                while len(p.trace(path)) < 5:
                    time.sleep(0.01)
                servers[1].process.kill()
                servers[1].process.wait()
                self.assertEqual(set(ranks.wait(60)), {5}, ranks.text())
                servers[1].start()
                again = h.Ranks(hosts, folder, config, servers, *args,
                                port=29512)
                # One that looks for the others' store after they left takes its minute.
                self.assertNotIn(0, again.wait(150))
                self.assertIn(f"{servers[1].address} has no state of it",
                              again.text())
                self.assertIn(f"{servers[0].address} is at step", again.text())
            finally:
                for server in servers:
                    server.__exit__()

    def test_one_server_for_both_hosts(self):
        with h.Hosts() as hosts, p.Folder() as folder:
            # Beyond loopback only if somebody says so.
            out = subprocess.run([f"{p.BIN}/stowd", "--listen", "10.77.0.1:7777", "--shm-dir",
                                  folder.shm], capture_output=True, text=True, timeout=30)
            self.assertEqual(out.returncode, 3, out.stderr)
            self.assertIn("--insecure-tcp", out.stderr)
            server = h.NodeServer(hosts, 0, folder, "--insecure-tcp", address="10.77.0.1:7777")
            try:
                self.assertIn("insecure_tcp", p.read(folder.file("stowd0.log")))
                config = self.config(folder)
                path = folder.file("two.trace")
                ranks = h.Ranks(hosts, folder, config, [server, server], "--train-batch", "8",
                                "--steps", "12", "--job", "one", "--keep", "--trace", path,
                                hide_segments=(1,))
                self.assertEqual(ranks.wait(180), [0] * 4, ranks.text())
                self.assertEqual([(j["name"], j["step"]) for j in server.jobs()], [("one", 12)])
                self.assert_close(self.losses(path), self.one_host(folder, config, 12))
            finally:
                server.__exit__()

    def test_random_kills_leave_all_nodes_at_one_step(self):
        rng = random.Random(p.seed())
        print(f"seed {p.seed()} (STOWAGE_TEST_SEED), {KILLS} kills")
        with h.Hosts() as hosts, p.Folder() as folder:
            disks = [folder.file(f"disk{n}") for n in (0, 1)]
            servers = []
            for n in (0, 1):
                os.makedirs(disks[n], exist_ok=True)
                servers.append(h.NodeServer(hosts, n, folder, "--nvme-root",
                                            disks[n]))
            configs = [folder.config(
                f"config{n}.json", stowage={"kept_steps": 2},
                zero_optimization={
                    "stage": 3,
                    "offload_optimizer": {"device": "nvme",
                                          "nvme_path": disks[n]},
                    "offload_param": {"device": "cpu"}}) for n in (0, 1)]
            kinds = {"rank": 0, "server": 0}
            seen = {}
            try:
                self.kill_loop(hosts, folder, servers, configs, rng, kinds,
                               seen)
            finally:
                for server in servers:
                    server.__exit__()
            print(f"killed {kinds}; {len(seen)} steps traced")
            want = self.one_host(folder, self.config(folder), max(seen))
            for step, loss in seen.items():
                self.assertLess(abs(loss - want[step]), 1e-5 * loss, step)

    def kill_loop(self, hosts, folder, servers, configs, rng, kinds, seen):
        """Each round: a run is killed somewhere before its last step, the same
        command brings it there, and all nodes stand at that step."""
        path = folder.file("kills.trace")
        target = 0
        for kill in range(KILLS):
            target += STEPS_A_KILL
            port = 29520 + 2 * (kill % 400)
            ranks = self.start_each(hosts, folder, configs, servers, path, port, target)
            known = len(p.trace(path))
            deadline = time.time() + 60
            while len(p.trace(path)) <= known and time.time() < deadline:
                if any(q.poll() is not None for q in ranks.processes):
                    break
                time.sleep(0.005)
            self.assertGreater(len(p.trace(path)), known, ranks.text())
            time.sleep(rng.random() * 0.15)
            victim = rng.randrange(6)
            if victim < 4:
                kinds["rank"] += 1
                self.kill_inside(ranks.processes[victim])
            else:
                kinds["server"] += 1
                self.kill_inside(servers[victim - 4].process)
            begin = time.monotonic()
            ranks.wait(90)
            if time.monotonic() - begin > 30:
                print(f"kill {kill}: ranks took {time.monotonic() - begin:.0f} "
                      "s to end")
            if victim >= 4:
                servers[victim - 4].process.wait()
                servers[victim - 4].start()
            again = self.start_each(hosts, folder, configs, servers, path, port + 1, target)
            self.assertEqual(again.wait(90), [0] * 4, f"kill {kill}\n{again.text()}")
            self.assertEqual([s.jobs()[0]["step"] for s in servers], [target] * 2,
                             f"kill {kill}: nodes at different steps")
            if (kill + 1) % 20 == 0:
                print(f"{kill + 1} kills {kinds}: both nodes at step {target}", flush=True)
        seen.update(self.losses(path))

    def start_each(self, hosts, folder, configs, servers, path, port, steps):
        return h.Ranks(hosts, folder, configs, servers, "--train-batch", "8",
                       "--steps", str(steps), "--job", "kills", "--keep",
                       "--trace", path, port=port)

    @staticmethod
    def kill_inside(process):
        """`ip netns exec` has become the program: the same process."""
        process.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    unittest.main()
