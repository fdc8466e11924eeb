"""The trainer's part of a checkpoint: engine/checkpoint/client_state.h and
engine/precision/loss_scaler.h, as bytes."""

import dataclasses
import struct

STATIC, DYNAMIC = 1, 2


@dataclasses.dataclass
class LossScale:
    kind: int = STATIC
    scale: float = 1.0
    hysteresis: int = 1
    iteration: int = 0
    last_overflow: int = -1
    is_integer: bool = False

    def pack(self):
        return struct.pack("<BBB5xdqqqq", 1, self.kind, self.is_integer, self.scale,
                           self.hysteresis, self.iteration, self.last_overflow, 0)

    @staticmethod
    def unpack(data):
        version, kind, is_integer, scale, hysteresis, iteration, last, _ = struct.unpack(
            "<BBB5xdqqqq", data)
        if version != 1:
            raise ValueError(f"loss scaler of version {version}")
        return LossScale(kind, scale, hysteresis, iteration, last, bool(is_integer))


@dataclasses.dataclass
class ClientState:
    skipped_steps: int = 0
    global_samples: int = 0
    loss_scale: LossScale = dataclasses.field(default_factory=LossScale)
    trace: list = dataclasses.field(default_factory=list)
    user: bytes = b""

    def pack(self):
        scaler = self.loss_scale.pack()
        # Version 1: without a seed, so that the run's own flag counts.
        return (b"SWCS" + struct.pack("<Iqq", 1, self.skipped_steps, self.global_samples) +
                struct.pack("<I", len(scaler)) + scaler +
                struct.pack(f"<I{len(self.trace)}i", len(self.trace), *self.trace) +
                struct.pack("<I", len(self.user)) + self.user)

    @staticmethod
    def unpack(data):
        if not data:
            return ClientState()
        if data[:4] != b"SWCS":
            raise ValueError("the client state was not written by Stowage's engine")
        version, skipped, samples = struct.unpack_from("<Iqq", data, 4)
        if version not in (1, 2):
            raise ValueError(f"client state of version {version}")
        at = 24
        length, = struct.unpack_from("<I", data, at)
        scaler = LossScale.unpack(data[at + 4:at + 4 + length])
        at += 4 + length
        count, = struct.unpack_from("<I", data, at)
        trace = list(struct.unpack_from(f"<{count}i", data, at + 4))
        at += 4 + 4 * count
        length, = struct.unpack_from("<I", data, at)
        return ClientState(skipped, samples, scaler, trace, data[at + 4:at + 4 + length])
