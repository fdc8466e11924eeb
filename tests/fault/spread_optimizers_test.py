"""Lamb and the 1-bit optimizers with their state in the servers of two hosts:
they train as on one host, and a host that is cut off around the rounds in
which nodes tell each other what they need (server/core/step_rounds.h) ends the
step by itself or does it again, bit for bit.

Fault model: SIGKILL of a host's ranks before, between and after the rounds.
"""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import hosts as h
import processes as p

STEPS, FREEZE = 16, 8
CPU = {"device": "cpu"}
STAGE3 = {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}


def losses(path):
    return {step: s["loss"] for step, s in p.trace(path).items()}


def worst(got, want, steps):
    return max(abs(got[s] / want[s] - 1) for s in steps)


@unittest.skipIf(h.available(), h.available())
class SpreadOptimizers(unittest.TestCase):
    def one_host(self, folder, config):
        path = folder.file("one.trace")
        out = p.train(config, folder.file("text"), *p.TINY, "--ranks", "4",
                      "--train-batch", "8", "--steps", str(STEPS), "--trace", path)
        self.assertEqual(out.returncode, 0, out.stderr)
        return losses(path)

    def arguments(self, path, job):
        return ("--train-batch", "8", "--steps", str(STEPS), "--job", job, "--keep",
                "--trace", path)

    def two_hosts(self, hosts, folder, config, servers=None, job="spread", **how):
        path = folder.file(f"{job}.trace")
        ranks = h.Ranks(hosts, folder, config, servers, *self.arguments(path, job), **how)
        return ranks.wait(180), losses(path), ranks.text()

    def lamb(self, folder, zero):
        return folder.config(
            "lamb.json", zero_optimization=zero,
            optimizer={"type": "Lamb", "params": {"lr": 0.02, "weight_decay": 0.01}})

    def one_bit(self, folder, kind):
        return folder.config(
            f"{kind}.json", gradient_clipping=0.0,
            zero_optimization={"stage": 0, "offload_optimizer": CPU},
            optimizer={"type": kind, "params": {"lr": 2e-3, "freeze_step": FREEZE,
                                                "weight_decay": 0.01}})

    def test_lamb_takes_the_norms_of_all_hosts(self):
        for zero in (STAGE3, {"stage": 1, "offload_optimizer": CPU}):
            with self.subTest(zero=zero), h.Hosts() as hosts, p.Folder() as folder:
                config = self.lamb(folder, zero)
                codes, got, text = self.two_hosts(hosts, folder, config)
                self.assertEqual(codes, [0] * 4, text)
                want = self.one_host(folder, config)
                self.assertEqual(sorted(got), sorted(want))
                print(f"{zero}: {want[1]:.3f} to {want[STEPS]:.3f}; two hosts within "
                      f"{worst(got, want, want):.1e} of one")
                self.assertLess(worst(got, want, want), 5e-6)

    def test_signs_of_two_hosts_are_those_of_one(self):
        for kind in ("OneBitAdam", "OneBitLamb"):
            with self.subTest(kind=kind), h.Hosts() as hosts, p.Folder() as folder:
                config = self.one_bit(folder, kind)
                codes, got, text = self.two_hosts(hosts, folder, config)
                self.assertEqual(codes, [0] * 4, text)
                want = self.one_host(folder, config)
                warm_up, after = range(1, FREEZE + 2), range(FREEZE + 2, STEPS + 1)
                print(f"{kind}: {want[1]:.3f} to {want[STEPS]:.3f}; two hosts within "
                      f"{worst(got, want, warm_up):.1e} of one in the warm-up, "
                      f"{worst(got, want, after):.1e} after it")
                self.assertLess(worst(got, want, warm_up), 5e-6)
                # A momentum beside zero may have another sign.
                self.assertLess(worst(got, want, after), 2e-3)

    def test_a_host_cut_off_around_the_rounds_goes_on_bit_for_bit(self):
        # (where the second host's ranks end, steps of the two servers then)
        cut = 12
        cases = ((f"before-apply:{cut}", [cut - 1, cut - 1]), ("rounds-held", None))
        for kind in ("Lamb", "OneBitAdam", "OneBitLamb"):
            with self.subTest(kind=kind), h.Hosts() as hosts, p.Folder() as folder:
                config = (self.lamb(folder, STAGE3) if kind == "Lamb" else
                          self.one_bit(folder, kind))
                servers = [h.NodeServer(hosts, n, folder) for n in (0, 1)]
                try:
                    codes, want, text = self.two_hosts(hosts, folder, config, servers, "whole")
                    self.assertEqual(codes, [0] * 4, text)
                    for n, (where, stand) in enumerate(cases):
                        # Rounds come with every Lamb step, and after the freeze.
                        if where == "rounds-held":
                            passes = cut if kind == "Lamb" else cut - FREEZE
                            where, stand = f"{where}:{passes}", [cut, cut - 1]
                        job = f"cut{n}"
                        crash = {(1, r): {"STOWAGE_CRASH_AT": where} for r in (0, 1)}
                        codes, first, text = self.two_hosts(
                            hosts, folder, config, servers, job, extra_env=crash,
                            port=29530 + 4 * n)
                        self.assertNotIn(0, codes, text)
                        steps = [{j["name"]: j["step"] for j in s.jobs()}[job] for s in servers]
                        self.assertEqual(steps, stand, f"{kind}, {where}: {text}")
                        codes, _, text = self.two_hosts(hosts, folder, config, servers, job,
                                                        port=29532 + 4 * n)
                        self.assertEqual(codes, [0] * 4, text)
                        if stand == [cut, cut - 1]:
                            self.assertIn("this node ends the step that the others have", text)
                        got = losses(folder.file(f"{job}.trace"))
                        self.assertGreaterEqual(len(got), STEPS - 1)
                        self.assertEqual(got, {s: want[s] for s in got})
                        print(f"{kind}, the second host's ranks ended at {where}: servers at "
                              f"{steps}, then {len(got)} of {STEPS} losses the same bits")
                finally:
                    for server in servers:
                        server.__exit__()


if __name__ == "__main__":
    unittest.main(verbosity=2)
