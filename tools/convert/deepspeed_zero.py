"""DeepSpeed's ZeRO checkpoints, stages 1 to 3, read whole: parameter -> state.

What is read is described in its own tools: deepspeed/utils/zero_to_fp32.py
(concatenation and padding) and deepspeed/checkpoint/ds_to_universal.py (fragments).
Ranks' files are held in memory together; parameters are put together one at a time.
"""

import dataclasses
import glob
import os
import re

import torch

import restricted_pickle

KEYS = {"master": "fp32", "moment1": "exp_avg", "moment2": "exp_avg_sq"}


class Unsupported(Exception):
    pass


@dataclasses.dataclass
class Hyper:
    lr: float = 0.0
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclasses.dataclass
class Facts:
    """What a checkpoint says beside its tensors."""
    stage: int
    ranks: int
    steps: int            # committed, skipped ones included
    skipped: int
    samples: int
    adam_step: int
    dtype: str            # of the 16-bit weights: fp32, fp16 or bf16
    scaler: object        # restricted_pickle.LossScaler or DynamicLossScaler
    groups: list          # Hyper of each parameter group
    version: str
    client_state: dict = dataclasses.field(default_factory=dict)


def tag_folder(path, tag=None):
    """The folder of the tag; of `latest` if none is given."""
    if glob.glob(os.path.join(path, "*_model_states.pt")):
        return path
    for name in ("latest", "latest_universal"):
        latest = os.path.join(path, name)
        if tag is None and os.path.exists(latest):
            with open(latest) as file:
                tag = file.read().strip()
    if tag is None:
        raise Unsupported(f"{path}: no file `latest`; give --tag")
    folder = os.path.join(path, tag)
    if not os.path.isdir(folder):
        raise Unsupported(f"{folder} is not there, though it is the tag that was asked for")
    return folder


def _by_rank(folder, ending):
    found = {}
    for path in glob.glob(os.path.join(folder, f"*zero_pp_rank_*_mp_rank_00_{ending}.pt")):
        rank = int(re.search(r"zero_pp_rank_(\d+)_", path).group(1))
        found[rank] = path
    if sorted(found) != list(range(len(found))):
        raise Unsupported(f"{folder}: the {ending} of ranks {sorted(found)}; some are missing")
    return [found[rank] for rank in sorted(found)]


def _numel(shape):
    count = 1
    for extent in shape:
        count *= extent
    return count


class ZeroCheckpoint:
    """`names` in order; tensor(kind, name); frozen(name)."""

    def __init__(self, path, tag=None):
        self.folder = tag_folder(path, tag)
        if glob.glob(os.path.join(self.folder, "*mp_rank_01*")):
            raise Unsupported(f"{self.folder}: tensor parallelism is not converted")
        if os.path.isdir(os.path.join(self.folder, "offloaded_tensors")):
            raise Unsupported(f"{self.folder}: the optimizer was on NVMe; DeepSpeed left the state "
                              "in swap files, which only the same run can read")
        optim_files = _by_rank(self.folder, "optim_states")
        if not optim_files:
            raise Unsupported(f"{self.folder}: no *_optim_states.pt; only ZeRO checkpoints have "
                              "the state that a run needs")
        self._optim = [restricted_pickle.load(p)["optimizer_state_dict"] for p in optim_files]
        stage = int(self._optim[0]["zero_stage"])
        model_files = (_by_rank(self.folder, "model_states") if stage == 3 else
                       [os.path.join(self.folder, "mp_rank_00_model_states.pt")])
        self._model = [restricted_pickle.load(p) for p in model_files]
        model = self._model[0]
        self.shapes = {}
        self.group_of = {}
        for index, shapes in enumerate(model["param_shapes"]):
            for name, shape in shapes.items():
                self.shapes[name] = tuple(shape)
                self.group_of[name] = index
        self.names = list(self.shapes)
        self.frozen_shapes = {n: tuple(s) for n, s in (model.get("frozen_param_shapes") or {}).items()}
        self.shared = dict(model.get("shared_params") or {})
        base = (self._optim[0]["optimizer_state_dict"] if stage == 3
                else self._optim[0]["base_optimizer_state"])
        if not isinstance(base, dict):
            raise Unsupported(f"{self.folder}: saved with elastic_checkpoint, which is not converted")
        self._flat = []  # by rank: kind -> list of flat tensors
        for optim in self._optim:
            state = (optim["optimizer_state_dict"] if stage == 3
                     else optim["base_optimizer_state"])["state"]
            fp32 = (optim["fp32_flat_groups"] if stage == 3
                    else optim["single_partition_of_fp32_groups"])
            self._flat.append({
                "master": list(fp32),
                "moment1": [state[i]["exp_avg"] for i in sorted(state)],
                "moment2": [state[i]["exp_avg_sq"] for i in sorted(state)]})
        if stage == 3:
            # Sub-groups are one behind the other; a group of parameters may be several.
            self._flat = [{k: [torch.cat([t.view(-1) for t in v])] for k, v in rank.items()}
                          for rank in self._flat]
            self._offsets = {}
            at = 0
            for name in self.names:
                self._offsets[name] = at
                at += -(-_numel(self.shapes[name]) // len(self._flat))
            self.group_of = {name: 0 for name in self.names} if len(base["param_groups"]) == 1 \
                else self.group_of
        first = base["state"][min(base["state"])]
        step = first.get("step", base["param_groups"][0].get("step", 0))
        self.facts = Facts(
            stage=stage, ranks=len(self._flat), steps=int(model["global_steps"]),
            skipped=int(model["skipped_steps"]), samples=int(model["global_samples"]),
            adam_step=int(step), dtype=self._dtype(model),
            scaler=self._optim[0].get("loss_scaler"),
            groups=[Hyper(float(g["lr"]), tuple(float(b) for b in g["betas"]), float(g["eps"]),
                          float(g["weight_decay"])) for g in base["param_groups"]],
            version=str(model.get("ds_version", "?")))

    def _dtype(self, model):
        config = model.get("ds_config") or {}
        for key, name in (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16")):
            if (config.get(key) or {}).get("enabled") in (True, "true"):
                return name
        return "fp32"

    def tensor(self, kind, name):
        """fp32, in the parameter's shape."""
        numel = _numel(self.shapes[name])
        if self.facts.stage == 3:
            part = -(-numel // len(self._flat))
            at = self._offsets[name]
            pieces = [rank[kind][0][at:at + part] for rank in self._flat]
        else:
            pieces = []
            for rank, optim in zip(self._flat, self._optim):
                for group, fragments in enumerate(optim["param_slice_mappings"]):
                    if name in fragments:
                        fragment = fragments[name]
                        pieces.append(rank[kind][group].view(-1)
                                      [fragment.start:fragment.start + fragment.numel])
        flat = torch.cat([p.reshape(-1) for p in pieces])
        if flat.numel() < numel:
            raise Unsupported(f"{self.folder}: the ranks hold {flat.numel()} elements of {name}, "
                              f"its shape {self.shapes[name]} has {numel}")
        return flat[:numel].view(self.shapes[name]).float()

    def frozen(self, name):
        fragments = [m["frozen_param_fragments"][name].view(-1) for m in self._model]
        shape = self.frozen_shapes[name]
        return torch.cat(fragments)[:_numel(shape)].view(shape) if self.facts.stage == 3 \
            else fragments[0].view(shape)


class UniversalCheckpoint:
    """The layout that ds_to_universal.py writes; as ZeroCheckpoint."""

    def __init__(self, path):
        self.folder = path
        zero = os.path.join(path, "zero")
        if not os.path.isdir(zero):
            raise Unsupported(f"{path}: no folder `zero`: not a universal checkpoint")
        models = glob.glob(os.path.join(path, "*mp_rank_00_model_states.pt"))
        if not models:
            raise Unsupported(f"{path}: no model states")
        model = restricted_pickle.load(sorted(models)[0])
        optim = restricted_pickle.load(os.path.join(zero, "optimizer_state.pt"))
        self.shapes = {}
        self.group_of = {}
        for index, shapes in enumerate(model["param_shapes"]):
            for name, shape in shapes.items():
                self.shapes[name] = tuple(shape)
                self.group_of[name] = index
        self.names = list(self.shapes)
        self.frozen_shapes = {}
        self.shared = dict(model.get("shared_params") or {})
        groups = optim["param_groups"]
        if len(groups) == 1:
            self.group_of = {name: 0 for name in self.names}
        step_file = os.path.join(zero, self.names[0], "step.pt")
        if os.path.exists(step_file):
            step = restricted_pickle.load(step_file)
        else:
            state = optim.get("optimizer_state_dict", {}).get("state", {})
            step = state[min(state)]["step"] if state else groups[0].get("step", 0)
        self.facts = Facts(
            stage=int(optim.get("zero_stage", 2)), ranks=1, steps=int(model["global_steps"]),
            skipped=int(model["skipped_steps"]), samples=int(model["global_samples"]),
            adam_step=int(step), dtype=ZeroCheckpoint._dtype(self, model),
            scaler=optim.get("loss_scaler"),
            groups=[Hyper(float(g["lr"]), tuple(float(b) for b in g["betas"]), float(g["eps"]),
                          float(g["weight_decay"])) for g in groups],
            version=str(model.get("ds_version", "?")))

    def tensor(self, kind, name):
        value = restricted_pickle.load(
            os.path.join(self.folder, "zero", name, KEYS[kind] + ".pt"))
        if isinstance(value, dict):
            value = value["param"]
        return value.reshape(-1)[:_numel(self.shapes[name])].view(self.shapes[name]).float()

    def frozen(self, name):
        raise Unsupported(f"{self.folder}: a universal checkpoint holds no frozen {name}")


def open_checkpoint(path, tag=None):
    for folder in (path, tag_folder(path, tag)):
        if os.path.isdir(os.path.join(folder, "zero")):
            return UniversalCheckpoint(folder)
    return ZeroCheckpoint(path, tag)
