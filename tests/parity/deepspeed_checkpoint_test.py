"""Checkpoints across programs: what DeepSpeed 0.19.8 wrote on this machine (2 ranks,
stages 2 and 3) goes on here with its losses, what was saved here goes on there, and
exported weights give the same losses in PyTorch.

Needs the peers' environment (tools/setup --bench); skips without it.
"""

import json
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "stowage"
PYTHON = CACHE / "peers-deepspeed-0.19.8" / "bin" / "python"
SOURCE = pathlib.Path(p.SOURCE)
CONVERT = SOURCE / "tools" / "stowage-convert"
SHAPE = ["--layers", "2", "--width", "64", "--heads", "4", "--context", "32", "--seed", "7"]
SAVED, STEPS = 6, 12


def run(*command, code=0):
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300,
                         stdin=subprocess.DEVNULL)
    if out.returncode != code:
        raise AssertionError(f"{command}: exit {out.returncode}\n{out.stdout}\n{out.stderr}")
    return out.stdout


def deepspeed(data, *args):
    out = run(PYTHON, "-W", "ignore", SOURCE / "bench/peers/checkpoint_deepspeed.py", "--data",
              data, *SHAPE, "--micro-batch", "2", *args)
    report = json.loads(out.splitlines()[-1])
    return {int(step): loss for step, loss in report["losses"].items()}


LOSS_IN_TORCH = """
import json, sys, torch
sys.path.insert(0, sys.argv[1] + "/bench/peers")
sys.path.insert(0, sys.argv[1] + "/tools/convert")
import checkpoint_deepspeed, gpt
from names import NameMap
from safetensors.torch import load_file
folder, text, steps = sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
try:
    index = json.load(open(folder + "/model.safetensors.index.json"))["weight_map"]
    files = sorted(set(index.values()))
except FileNotFoundError:
    files = ["model.safetensors"]
weights = {}
for file in files:
    weights.update(load_file(folder + "/" + file))
names = NameMap(["gpt-back"]).all(weights)
model = gpt.Gpt(gpt.Shape(2, 64, 4, 32))
model.load_state_dict({names[k]: v.float() for k, v in weights.items()})
data = checkpoint_deepspeed.StowTrainText(text, 32, 7)
rows = torch.tensor([list(data.window(steps * 4 + i)) for i in range(4)])
with torch.no_grad():
    print(json.dumps({"loss": float(model(rows[:, :-1], rows[:, 1:])), "files": len(files)}))
"""


@unittest.skipUnless(PYTHON.exists(), f"no {PYTHON}: tools/setup --bench installs it")
class DeepSpeedCheckpoints(unittest.TestCase):
    def config(self, folder, gather=False):
        # As checkpoint_deepspeed.py: fp32, one group, no warm-up.
        return folder.config(gradient_clipping=1.0, optimizer={
            "type": "AdamW", "params": {"lr": 2e-3, "betas": [0.9, 0.999], "eps": 1e-8,
                                        "weight_decay": 0.0}},
            zero_optimization={"stage": 3, "offload_optimizer": {"device": "cpu"},
                               "offload_param": {"device": "cpu"},
                               "stage3_gather_16bit_weights_on_model_save": gather})

    def train(self, folder, config, *args, steps=STEPS, ranks=2):
        trace = folder.file(f"trace-{len(os.listdir(folder.path))}")
        out = p.train(config, folder.file("text"), *SHAPE, "--sample-bytes", "0", "--no-weights",
                      "--precision", "fp32", "--ranks", str(ranks), "--micro-batch",
                      str(4 // ranks), "--steps", str(steps), "--trace", trace, *args)
        self.assertEqual(out.returncode, 0, out.stderr)
        return {step: entry["loss"] for step, entry in p.trace(trace).items()}

    def near(self, got, want, first, last):
        self.assertEqual(sorted(got)[-1], last)
        worst = max(abs(got[s] / want[s] - 1) for s in range(first, last + 1))
        self.assertLess(worst, 2e-5, f"{got}\n{want}")
        return worst

    def test_what_deepspeed_wrote_goes_on_here_and_back(self):
        with p.Folder() as folder:
            config = self.config(folder)
            for stage in (2, 3):
                theirs = folder.file(f"ds{stage}")
                want = deepspeed(folder.file("text"), "--stage", stage, "--steps", STEPS, "--save",
                                 theirs, "--save-at", SAVED)
                ours = folder.file(f"ours{stage}")
                print(run(PYTHON, CONVERT, "from-deepspeed", theirs, ours, "--names", "gpt").strip())
                for ranks in (2, 1):
                    got = self.train(folder, config, "--save", folder.file(f"more{stage}{ranks}"),
                                     "--resume", f"{ours}/step-{SAVED:010d}", ranks=ranks)
                    self.assertEqual(min(got), SAVED + 1)
                    worst = self.near(got, want, SAVED + 1, STEPS)
                    print(f"stage {stage}, {ranks} ranks here: losses within {worst:.1e} of "
                          "DeepSpeed's own")
                # Back: the step that was reached here, converted, goes on there.
                back = folder.file(f"back{stage}")
                run(PYTHON, CONVERT, "to-deepspeed", folder.file(f"more{stage}2"), back, "--names",
                    "gpt-back")
                whole = self.train(folder, config, "--resume", f"{ours}/step-{SAVED:010d}",
                                   steps=STEPS + 4)
                for other in (2, 3):
                    got = deepspeed(folder.file("text"), "--stage", other, "--steps", STEPS + 4,
                                    "--load", back, "--universal")
                    self.assertEqual(min(got), STEPS + 1)
                    worst = self.near(got, whole, STEPS + 1, STEPS + 4)
                    print(f"back to DeepSpeed, stage {other}: within {worst:.1e}")

    def test_exported_weights_give_the_same_losses_in_torch(self):
        with p.Folder() as folder:
            config = self.config(folder, gather=True)
            save = folder.file("save")
            whole = self.train(folder, config, "--save", save, "--save-every", "4", steps=6)
            script = folder.file("loss.py")
            with open(script, "w") as out:
                out.write(LOSS_IN_TORCH)
            run(f"{p.BIN}/stowctl", "export", save, folder.file("sharded"), "--step", "4",
                "--shard-bytes", "100000")
            for path, files in ((f"{save}/step-{4:010d}", 1), (folder.file("sharded"), 2)):
                got = json.loads(run(PYTHON, script, SOURCE, path, folder.file("text"), 4))
                self.assertGreaterEqual(got["files"], files)
                self.assertLess(abs(got["loss"] / whole[5] - 1), 2e-6, got)
            print(f"loss of step 5: {whole[5]} here, {got['loss']} in torch from {got['files']} files")

    def test_transformers_loads_them(self):
        probe = subprocess.run([PYTHON, "-c", "import transformers"], capture_output=True)
        if probe.returncode != 0:
            self.skipTest("no transformers in the peers' environment")
        with p.Folder() as folder:
            config = self.config(folder)
            save = folder.file("save")
            whole = self.train(folder, config, "--save", save, "--save-every", "4", steps=6)
            run(PYTHON, CONVERT, "to-gpt2", f"{save}/step-{4:010d}", folder.file("gpt2"), "--heads", 4)
            script = folder.file("loss.py")
            with open(script, "w") as out:
                out.write("""
import sys, torch
sys.path.insert(0, sys.argv[1] + "/bench/peers")
import checkpoint_deepspeed
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[2]).eval()
data = checkpoint_deepspeed.StowTrainText(sys.argv[3], 32, 7)
rows = torch.tensor([list(data.window(16 + i)) for i in range(4)])
with torch.no_grad():
    logits = model(rows[:, :-1]).logits
print(float(torch.nn.functional.cross_entropy(logits.reshape(-1, 256), rows[:, 1:].reshape(-1))))
""")
            got = float(run(PYTHON, script, SOURCE, folder.file("gpt2"), folder.file("text")).split()[-1])
            self.assertLess(abs(got / whole[5] - 1), 2e-6)
            print(f"loss of step 5: {whole[5]} here, {got} in transformers")

    def test_a_pickle_that_wants_to_run_something_is_refused(self):
        # The second asks for what the file of a member of an enumeration asks for.
        for made, said in (("(os.system, (command,))", "system, which is not on the list"),
                           ("(getattr, (torch.Size, '__subclasses__'))",
                            "getattr of something that is not a ZeRO stage")):
            with self.subTest(made), p.Folder() as folder:
                theirs = folder.file("ds")
                os.makedirs(f"{theirs}/global_step1")
                with open(f"{theirs}/latest", "w") as file:
                    file.write("global_step1")
                run(PYTHON, "-c", f"""
import os, torch
command = "touch {folder.file('ran')}"
class Evil:
    def __reduce__(self):
        return {made}
torch.save({{"optimizer_state_dict": Evil()}},
           "{theirs}/global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt")
""")
                out = subprocess.run([PYTHON, CONVERT, "from-deepspeed", theirs,
                                      folder.file("out")],
                                     capture_output=True, text=True, timeout=120)
                self.assertEqual(out.returncode, 1)
                self.assertIn(said, out.stderr)
                self.assertFalse(os.path.exists(folder.file("ran")))
                self.assertFalse(os.path.exists(folder.file("out")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
