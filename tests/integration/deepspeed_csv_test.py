"""The CSV monitor's files beside those that DeepSpeed itself writes here for the
same configuration: names, headers, columns, line ends; and the learning rate
and loss scale to the last digit.

Needs the peers' environment (`tools/setup --bench`); skips, with that reason,
where it is not there."""

import json
import os
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

CACHE = os.environ.get("XDG_CACHE_HOME",
                       os.path.join(os.path.expanduser("~"), ".cache"))
PEERS = os.path.join(CACHE, "stowage/peers-deepspeed-0.19.8")
STEPS = 9

JOB = """
import json, sys
import deepspeed, torch
torch.set_num_threads(1)
# DeepSpeed refuses fp16 on the CPU although torch computes it.
deepspeed.get_accelerator().is_fp16_supported = lambda: True
deepspeed.init_distributed("gloo")
config = json.load(open(sys.argv[1]))
model = torch.nn.Linear(8, 8)
engine, _, _, _ = deepspeed.initialize(
    model=model, model_parameters=model.parameters(), config=config)
dtype = next(engine.module.parameters()).dtype
for step in range(int(sys.argv[2])):
    for micro in range(engine.gradient_accumulation_steps()):
        x = torch.full((engine.train_micro_batch_size_per_gpu(), 8), 0.5,
                       dtype=dtype)
        loss = engine(x).float().square().mean()
        engine.backward(loss)
        engine.step()
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_deepspeed(folder, config):
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "RANK": "0",
           "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(free_port()), "CUDA_HOME": "",
           "TORCH_EXTENSIONS_DIR": PEERS + "/extensions",
           "PATH": PEERS + "/bin:" + os.environ["PATH"]}
    out = subprocess.run(
        [PEERS + "/bin/python", "-W", "ignore", "-c", JOB, config, str(STEPS)],
        cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    if out.returncode != 0:
        raise AssertionError(out.stderr[-3000:])


@unittest.skipUnless(os.path.exists(PEERS + "/complete"),
                     f"no {PEERS}: tools/setup --bench makes it")
class DeepSpeedCsv(unittest.TestCase):
    def setUp(self):
        self.folder = p.Folder().__enter__()
        self.addCleanup(self.folder.__exit__)

    def both(self, **changes):
        """File name -> bytes, of DeepSpeed and of ours."""
        config = self.folder.config(
            train_batch_size=None, train_micro_batch_size_per_gpu=2,
            gradient_accumulation_steps=2,
            optimizer={"type": "AdamW", "params": {"lr": 1e-3}},
            scheduler={"type": "WarmupLR", "params": {
                "warmup_max_lr": 1e-3, "warmup_num_steps": 4}},
            zero_optimization={"stage": 2,
                               "offload_optimizer": {"device": "cpu"}},
            # No output_path: below the working folder.
            csv_monitor={"enabled": True, "job_name": "job"}, **changes)
        sides = {}
        for side in ("theirs", "ours"):
            cwd = self.folder.file(side)
            os.makedirs(cwd)
            if side == "theirs":
                run_deepspeed(cwd, config)
            else:
                out = subprocess.run(
                    p.train_command(config, self.folder.file("text"), *p.TINY,
                                    "--steps", str(STEPS), "--ranks", "1"),
                    cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                    text=True, timeout=120)
                self.assertEqual(out.returncode, 0, out.stderr)
            files = {}
            for name in os.listdir(os.path.join(cwd, "job")):
                with open(os.path.join(cwd, "job", name), "rb") as file:
                    files[name] = file.read()
            sides[side] = files
        return sides["theirs"], sides["ours"]

    def compare(self, theirs, ours, equal):
        for name, bytes_ in sorted(theirs.items()):
            self.assertIn(name, ours)
            if name in equal:
                self.assertEqual(ours[name], bytes_, name)
                continue
            # Times differ: header, line ends, rows and x do not.
            def shape(data):
                rows = data.split(b"\r\n")
                return [rows[0]] + [row.split(b",")[0] for row in rows[1:]]
            self.assertEqual(shape(ours[name]), shape(bytes_), name)
        print(f"\nDeepSpeed writes {', '.join(sorted(theirs))}: "
              f"equal in {', '.join(sorted(equal))}")

    def test_fp16_with_a_growing_loss_scale(self):
        theirs, ours = self.both(fp16={"enabled": True,
                                       "initial_scale_power": 4,
                                       "loss_scale_window": 3})
        equal = {"Train_Samples_lr.csv", "Train_Samples_loss_scale.csv"}
        self.assertEqual(set(theirs), equal)
        self.compare(theirs, ours, equal)

    def test_wall_clock_breakdown(self):
        theirs, ours = self.both(wall_clock_breakdown=True)
        self.assertEqual(len(theirs), 6, sorted(theirs))
        self.compare(theirs, ours, {"Train_Samples_lr.csv"})


if __name__ == "__main__":
    unittest.main(verbosity=2)
