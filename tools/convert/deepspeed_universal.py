"""Writes DeepSpeed's universal layout, for engines of stages 1 to 3 and any number
of ranks: load_checkpoint() with `checkpoint.load_universal`.

DeepSpeed is not imported: the one object of its own that a file holds, the loss
scaler, is pickled by name.
"""

import contextlib
import os
import sys
import types

import torch

# The release whose reader was tested; its loader asks for a version.
DS_VERSION = "0.19.8"


@contextlib.contextmanager
def _scaler_class(dynamic):
    """A class that pickle writes as DeepSpeed's own."""
    name = "DynamicLossScaler" if dynamic else "LossScaler"
    parts = "deepspeed.runtime.fp16.loss_scaler".split(".")
    modules = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    before = {m: sys.modules.get(m) for m in modules}
    for module in modules:
        sys.modules[module] = types.ModuleType(module)
    made = type(name, (), {"__module__": modules[-1]})
    setattr(sys.modules[modules[-1]], name, made)
    try:
        yield made
    finally:
        for module, old in before.items():
            if old is None:
                sys.modules.pop(module, None)
            else:
                sys.modules[module] = old


def _scaler(made, state, config):
    scaler = made()
    scaler.cur_scale = state.scale
    scaler.dynamic = state.kind != 1
    scaler.dtype = torch.float16
    if scaler.dynamic:
        scaler.cur_iter = state.iteration
        scaler.last_overflow_iter = state.last_overflow
        scaler.scale_factor = 2.0
        scaler.scale_window = config.get("loss_scale_window", 1000)
        scaler.min_scale = config.get("min_loss_scale", 1)
        scaler.delayed_shift = config.get("hysteresis", 2)
        scaler.cur_hysteresis = state.hysteresis
        scaler.consecutive_hysteresis = config.get("consecutive_hysteresis", False)
        scaler.raise_error_at_min_scale = True
    return scaler


def write(folder, tag, source, names, fp16_config=None):
    """`source`: a stowage_checkpoint.Checkpoint; `names`: ours -> DeepSpeed's."""
    from client_state import ClientState
    state = ClientState.unpack(source.client_state)
    body = source.body
    out = os.path.join(folder, tag)
    zero = os.path.join(out, "zero")
    os.makedirs(zero)
    params = list(source.params())
    trainable = [(n, shape, group) for n, shape, frozen, group in params if not frozen]
    if len(trainable) != len(params):
        raise ValueError("frozen parameters have no place in DeepSpeed's universal layout")
    groups = sorted({group for _, _, group in trainable})
    hyper = body["groups"] or [None] * len(body["layout"]["groups"])
    shapes = []
    for group in groups:
        shapes.append({names[n]: torch.Size(shape) for n, shape, g in trainable if g == group})
    dtype = {"fp32": torch.float32, "fp16": torch.float16,
             "bf16": torch.bfloat16}[body["layout"]["param_dtype"]]
    module = {}
    for name, _, _ in trainable:
        theirs = names[name]
        os.makedirs(os.path.join(zero, theirs))
        for kind, key in (("master", "fp32"), ("moment1", "exp_avg"), ("moment2", "exp_avg_sq")):
            tensor = source.tensor(kind, name)
            torch.save({"param": tensor}, os.path.join(zero, theirs, key + ".pt"))
            if kind == "master":
                module[theirs] = tensor.to(dtype)
        torch.save(body["applied_steps"], os.path.join(zero, theirs, "step.pt"))
    param_groups = []
    for index, group in enumerate(groups):
        h = hyper[group] or {"lr": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
                             "weight_decay": 0.0}
        param_groups.append({
            "lr": h["lr"], "betas": (h["beta1"], h["beta2"]), "eps": h["eps"],
            "weight_decay": h["weight_decay"], "amsgrad": False,
            "bias_correction": body["optimizer"]["bias_correction"], "params": [index]})
    fp16 = body["layout"]["param_dtype"] == "fp16"
    dynamic = fp16 and state.loss_scale.kind != 1
    with _scaler_class(dynamic) as made:
        # No clip_grad: stages 1 and 2 would take it in place of the run's own.
        optimizer = {
            "dynamic_loss_scale": dynamic, "overflow": False,
            "ds_version": DS_VERSION, "partition_count": 1, "param_groups": param_groups,
            "optimizer_state_dict": {
                "state": {i: {"step": body["applied_steps"]} for i in range(len(groups))},
                "param_groups": param_groups}}
        if fp16:
            optimizer["loss_scaler"] = _scaler(made, state.loss_scale, fp16_config or {})
        torch.save(optimizer, os.path.join(zero, "optimizer_state.pt"))
    model = {
        "module": module, "buffer_names": [], "optimizer": None, "param_shapes": shapes,
        "frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": {},
        "lr_scheduler": {"last_batch_iteration": body["applied_steps"] - 1}, "data_sampler": None,
        "random_ltd": None, "sparse_tensor_module_names": [], "skipped_steps": state.skipped_steps,
        "global_steps": body["step"], "global_samples": state.global_samples,
        "dp_world_size": 1, "mp_world_size": 1, "ds_config": {}, "ds_version": DS_VERSION,
        "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
    # Stages 1 and 2 look for the first name, stage 3 for the second.
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        torch.save(model, os.path.join(out, name))
    for name in ("latest_universal", "latest"):
        with open(os.path.join(folder, name), "w") as file:
            file.write(tag)
    return out
