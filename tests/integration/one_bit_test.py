"""OneBitAdam and OneBitLamb from the configuration file: state with the server
and on the ranks train alike, a run that was killed goes on bit for bit before
and after the freeze, and after it signs travel instead of gradients.
"""

import json
import os
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

STEPS, FREEZE = 16, 8
KINDS = ("OneBitAdam", "OneBitLamb")


class OneBit(unittest.TestCase):
    def config(self, folder, kind, device="cpu", freeze=FREEZE, lr=2e-3, **changes):
        zero = {"stage": 0}
        if device:
            zero["offload_optimizer"] = {"device": device}
        return folder.config(
            f"{kind}-{device}-{freeze}.json", zero_optimization=zero,
            optimizer={"type": kind, "params": {"lr": lr, "freeze_step": freeze,
                                                "weight_decay": 0.01}},
            **{"gradient_clipping": 0.0, **changes})

    def arguments(self, folder, config, name, *args, ranks=2, steps=STEPS):
        return [config, folder.file("text"), *p.TINY, "--ranks", str(ranks),
                "--train-batch", "12", "--steps", str(steps), "--trace",
                folder.file(name), "--out", folder.file(name + ".out"), *args]

    def train(self, folder, config, name, *args, **how):
        out = p.train(*self.arguments(folder, config, name, *args, **how))
        self.assertEqual(out.returncode, 0, out.stderr)
        return self.result(folder, name)

    def result(self, folder, name):
        with open(folder.file(name + ".out/model.safetensors"), "rb") as file:
            weights = file.read()
        with open(folder.file(name + ".out/summary.json")) as file:
            summary = json.load(file)
        losses = {k: s["loss"] for k, s in p.trace(folder.file(name)).items()}
        return weights, losses, summary

    def test_the_server_and_the_ranks_compute_the_same(self):
        for kind in KINDS:
            for ranks in (1, 2, 3):
                with self.subTest(kind=kind, ranks=ranks), p.Folder() as folder:
                    _, server, how = self.train(
                        folder, self.config(folder, kind), "server", ranks=ranks)
                    self.assertEqual(how["exchange"]["name"], "segments")
                    _, own, how = self.train(
                        folder, self.config(folder, kind, None), "ranks", ranks=ranks)
                    self.assertEqual(how["exchange"]["name"], "c10d")
                    self.assertEqual(len(own), STEPS)
                    self.assertLess(own[STEPS], own[1] - 0.1)
                    worst = [max(abs(server[s] / own[s] - 1) for s in steps) for steps in
                             (range(1, FREEZE + 2), range(FREEZE + 2, STEPS + 1))]
                    print(f"{kind}, {ranks} ranks: {own[1]:.3f} to {own[STEPS]:.3f}; server and "
                          f"ranks within {worst[0]:.1e} in the warm-up, {worst[1]:.1e} after it")
                    self.assertLess(worst[0], 2e-6)
                    # A momentum beside zero may have another sign.
                    self.assertLess(worst[1], 2e-3)

    def test_goes_on_after_a_kill_in_both_phases_as_if_never_stopped(self):
        for kind in KINDS:
            with self.subTest(kind=kind), p.Folder() as folder, p.Stowd(folder) as server:
                config = self.config(folder, kind)
                at = ["--server", server.address, "--keep"]
                want = self.train(folder, config, "whole", *at, "--job", "whole")
                arguments = self.arguments(folder, config, "killed", *at, "--job", "killed")
                for reached in (FREEZE // 2, FREEZE + (STEPS - FREEZE) // 2):
                    process = p.start_train(folder, *arguments)
                    deadline = time.time() + 60
                    while (len(p.trace(folder.file("killed"))) < reached and
                           process.poll() is None and time.time() < deadline):
                        time.sleep(0.002)
                    p.kill_all(process)
                    self.assertLess(len(p.trace(folder.file("killed"))), STEPS)
                out = p.train(*arguments)
                self.assertEqual(out.returncode, 0, out.stderr)
                got = self.result(folder, "killed")
                self.assertEqual(got[1], want[1])
                self.assertEqual(got[0], want[0])
                # Errors are as many as ranks: their number is the job's.
                out = p.train(*self.arguments(folder, config, "more", *at, "--job", "killed",
                                              ranks=3, steps=STEPS + 2))
                self.assertEqual(out.returncode, 2, out.stderr)
                self.assertIn("rank", out.stderr)

    def test_checkpoints_of_both_phases_go_on_bit_for_bit(self):
        for kind in KINDS:
            with self.subTest(kind=kind), p.Folder() as folder:
                config = self.config(folder, kind)
                save = folder.file("save")
                want = self.train(folder, config, "whole", "--save", save, "--save-every", "4")
                for step in (4, FREEZE, FREEZE + 4):
                    got = self.train(folder, config, f"from{step}", "--resume",
                                     f"{save}/step-{step:010d}")
                    self.assertEqual(min(got[1]), step + 1)
                    self.assertEqual(got[1], {s: want[1][s] for s in got[1]})
                    self.assertEqual(got[0], want[0])
                out = p.train(*self.arguments(folder, config, "three", "--resume", save, ranks=3,
                                              steps=STEPS + 2))
                self.assertEqual(out.returncode, 2, out.stderr)
                self.assertIn("goes on with the number of ranks that saved", out.stderr)

    def test_after_the_freeze_signs_travel(self):
        with p.Folder() as folder:
            half = {"bf16": {"enabled": True}}
            traffic = {}
            for freeze in (STEPS, STEPS // 2):
                _, _, how = self.train(folder, self.config(folder, "OneBitAdam", None, freeze,
                                                           **half), f"freeze{freeze}")
                traffic[freeze] = how["exchange"]["reduce_bytes"]
            whole = traffic[STEPS] / STEPS
            signs = (traffic[STEPS // 2] - whole * STEPS / 2) / (STEPS / 2)
            with open(folder.file(f"freeze{STEPS}.out/summary.json")) as file:
                parameters = json.load(file)["parameters"]
            tensors = 2 * 12 + 5
            # 2 ranks send half the bits to each other twice; 16 elements pad a
            # tensor, and scales are 4 bytes for each of a tensor's two messages.
            scales = tensors * 2 * 4
            print(f"{parameters} parameters in bf16: {whole:.0f} bytes a step in the warm-up, "
                  f"{signs:.0f} after it: 1/{whole / signs:.1f}")
            self.assertLessEqual(signs, whole / 16 + scales + tensors * 2)

    def test_monitors_tell_what_signs_lose(self):
        with p.Folder() as folder:
            config = self.config(
                folder, "OneBitLamb", None,
                csv_monitor={"enabled": True, "output_path": folder.file("csv"),
                             "job_name": "run"})
            self.train(folder, config, "trace")
            rows = p.read(folder.file(
                "csv/run/Train_Samples_compression_error.csv")).splitlines()[1:]
            errors = [float(row.split(",")[1]) for row in rows]
            self.assertEqual(len(errors), STEPS - FREEZE - 1)
            self.assertTrue(all(0 < error < 1.5 for error in errors), errors)

    def test_stages_and_disks_are_refused_with_the_reason(self):
        with p.Folder() as folder:
            for zero, said in (({"stage": 2}, "needs zero_optimization.stage 0"),
                               ({"stage": 0, "offload_optimizer": {
                                   "device": "nvme", "nvme_path": folder.path}},
                                "errors of its signs are kept in memory")):
                config = folder.config(zero_optimization=zero,
                                       optimizer={"type": "OneBitAdam",
                                                  "params": {"lr": 1e-3}})
                out = p.train(config, folder.file("text"), *p.TINY, "--steps", "2")
                self.assertEqual(out.returncode, 2, out.stderr)
                self.assertIn(said, out.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
