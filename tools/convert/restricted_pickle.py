"""torch.load() for files of others: builds tensors and plain values, runs nothing.

A pickle names the classes and functions that it wants; here it gets exactly those
of ALLOWED, and holders without behaviour for DeepSpeed's own classes. Anything
else is an error that says what was asked for.
"""

import collections
import enum
import pickle
import types

import torch


class Refused(Exception):
    pass


class Holder:
    """Stands for an object of a class that is not imported: its attributes only."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.__dict__.update(state)


class LossScaler(Holder):
    pass


class DynamicLossScaler(Holder):
    pass


class FragmentAddress(Holder):
    pass


class ZeroStage(enum.IntEnum):
    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3


_STAGES = {stage.name: stage for stage in ZeroStage}


def _stage(of, name):
    """What `getattr` becomes: Python 3.11 pickles a member of an enumeration as
    getattr(class, name). Gives ZeRO's stages, no attribute of anything."""
    if of is not ZeroStage or type(name) is not str or name not in _STAGES:
        raise Refused("it asks for getattr of something that is not a ZeRO stage, which no "
                      "checkpoint needs")
    return _STAGES[name]


def _tensor_of_type(rebuild, kind, arguments, state=None):
    """torch._tensor._rebuild_from_type_v2 for plain tensors; the attributes that
    stage 3 hangs onto one are left out."""
    if rebuild is not torch._utils._rebuild_tensor_v2 or kind is not torch.Tensor:
        raise Refused("it asks for a tensor of a kind that is not torch's own, which no "
                      "checkpoint needs")
    return rebuild(*arguments)


ALLOWED = {
    ("builtins", "getattr"): _stage,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("torch", "Size"): torch.Size,
    ("torch", "Tensor"): torch.Tensor,
    ("torch", "device"): torch.device,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_type,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"): LossScaler,
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): DynamicLossScaler,
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): ZeroStage,
    ("deepspeed.utils.tensor_fragment", "fragment_address"): FragmentAddress,
}
for _name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"):
    ALLOWED[("torch", _name)] = getattr(torch, _name)
for _name in ("FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage", "LongStorage",
              "IntStorage", "ByteStorage", "BoolStorage"):
    ALLOWED[("torch", _name)] = getattr(torch, _name)


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        # Up to protocol 2 the module has its name of Python 2.
        found = ALLOWED.get(("builtins" if module == "__builtin__" else module, name))
        if found is None:
            raise Refused(f"it asks for {module}.{name}, which is not on the list of what a "
                          "checkpoint needs")
        return found


# What torch.load() wants of a pickle module.
_MODULE = types.ModuleType("restricted_pickle_module")
_MODULE.Unpickler = Unpickler
_MODULE.UnpicklingError = pickle.UnpicklingError
_MODULE.load = lambda file, **kwargs: Unpickler(file, **kwargs).load()
_MODULE.__name__ = "restricted_pickle_module"


def load(path):
    """Raises Refused naming file and class; OSError; RuntimeError for a broken file."""
    try:
        return torch.load(path, map_location="cpu", pickle_module=_MODULE, weights_only=False)
    except Refused as error:
        raise Refused(f"{path}: {error}") from None
