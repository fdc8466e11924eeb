"""Stowage's own checkpoints, read and written tensor by tensor.

The bytes are those of storage/checkpoint/FORMAT.md: a manifest beside safetensors
files, each with a CRC-32 for every 4 MiB.
"""

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import struct
import time
import zlib

import torch
from safetensors import safe_open

FORMAT = 1
BLOCK_BYTES = 4 << 20
FILE_BYTES = 5_000_000_000
MANIFEST = "checkpoint.json"
STATE_KINDS = ("master", "moment1", "moment2")
DTYPES = {"fp32": ("F32", torch.float32), "fp16": ("F16", torch.float16),
          "bf16": ("BF16", torch.bfloat16)}


class Broken(Exception):
    """The checkpoint is not whole, or not of a kind that is known."""


def folder_name(step):
    return f"step-{step:010d}"


def find(path):
    """The checkpoint in `path`, or the one saved last below it."""
    if os.path.exists(os.path.join(path, MANIFEST)):
        return path
    found = []
    for name in os.listdir(path):
        if name.startswith("step-") and name[5:].isdigit():
            with contextlib.suppress(Broken, OSError):
                checkpoint = Checkpoint(os.path.join(path, name))
                found.append((checkpoint.body["time"], checkpoint.body["step"], checkpoint.path))
    if not found:
        raise Broken(f"{path}: no complete checkpoint")
    return max(found)[2]


class Checkpoint:
    """One checkpoint, open for reading."""

    def __init__(self, path):
        self.path = path
        with open(os.path.join(path, MANIFEST), "rb") as file:
            first = file.readline()
            text = file.read()
        head = json.loads(first)
        if head.get("stowage_checkpoint") != FORMAT:
            raise Broken(f"{path}: format {head.get('stowage_checkpoint')}, this program reads "
                         f"{FORMAT}")
        if len(text) != head["bytes"] or zlib.crc32(text) != head["crc32"]:
            raise Broken(f"{path}/{MANIFEST}: length or checksum is wrong")
        self.body = json.loads(text)
        if self.body["nodes"] != 1:
            raise Broken(f"{path}: made of the parts of {self.body['nodes']} nodes; bring them to "
                         "one checkpoint first (load and save it on one node)")
        self.client_state = base64.b64decode(self.body["client_state"])
        self._where = {}
        for file in self.body["files"]:
            name = os.path.join(path, file["name"])
            if os.path.getsize(name) != file["bytes"]:
                raise Broken(f"{name}: {os.path.getsize(name)} bytes, written were {file['bytes']}")
            if file["kind"] != "index":
                with safe_open(name, framework="pt") as opened:
                    for tensor in opened.keys():
                        self._where[file["kind"], tensor] = name

    def verify(self):
        for file in self.body["files"]:
            name = os.path.join(self.path, file["name"])
            with open(name, "rb") as opened:
                for block, written in enumerate(file["crc32"]):
                    if zlib.crc32(opened.read(BLOCK_BYTES)) != written:
                        raise Broken(f"{name} is damaged: bytes from {block * BLOCK_BYTES} on")

    def names(self, kind):
        return [name for k, name in self._where if k == kind]

    def tensor(self, kind, name):
        with safe_open(self._where[kind, name], framework="pt") as opened:
            return opened.get_tensor(name)

    def params(self):
        """(name, shape, frozen, group index) in the order of the layout."""
        groups = self.body["layout"]["groups"]
        for unit in self.body["layout"]["units"]:
            for param in unit["params"]:
                yield (param["name"], param["shape"], groups[param["group"]]["frozen"],
                       param["group"])


def _header(tensors, kind):
    at = 0
    entries = {"__metadata__": {"format": "pt", "stowage_kind": kind}}
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": DTYPES[dtype][0], "shape": list(shape),
                         "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class _BlockFile:
    def __init__(self, path):
        self.file = open(path, "xb")
        self.crcs = []
        self.pending = 0
        self.crc = 0
        self.bytes = 0

    def write(self, data):
        view = memoryview(data).cast("B")
        self.file.write(view)
        self.bytes += len(view)
        while len(view):
            part = view[:BLOCK_BYTES - self.pending]
            self.crc = zlib.crc32(part, self.crc)
            self.pending += len(part)
            view = view[len(part):]
            if self.pending == BLOCK_BYTES:
                self._end_block()

    def _end_block(self):
        self.crcs.append(self.crc)
        self.crc = self.pending = 0

    def close(self):
        if self.pending:
            self._end_block()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def raw_bytes(tensor):
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


class Writer:
    """Writes folder/step-N by way of step-N.partial; nothing is left on an error."""

    def __init__(self, folder, step):
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.final = os.path.join(folder, folder_name(step))
        self.partial = self.final + ".partial"
        if os.path.exists(self.final):
            raise FileExistsError(f"{self.final} is there already")
        shutil.rmtree(self.partial, ignore_errors=True)
        os.mkdir(self.partial)
        self.lock = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.files = []
        self.step = step

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        os.close(self.lock)
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, kind, tensors, load):
        """`tensors`: (name, dtype, shape); load(name) gives each when its turn comes."""
        files, size = [[]], 0
        for name, dtype, shape in tensors:
            count = 1
            for extent in shape:
                count *= extent
            need = count * DTYPES[dtype][1].itemsize
            if files[-1] and size + need > FILE_BYTES:
                files.append([])
                size = 0
            files[-1].append((name, dtype, shape, need))
            size += need
        for index, members in enumerate(files):
            name = (f"{kind}.safetensors" if len(files) == 1 else
                    f"{kind}-{index + 1:05d}-of-{len(files):05d}.safetensors")
            out = _BlockFile(os.path.join(self.partial, name))
            out.write(_header(members, kind))
            for tensor_name, dtype, shape, need in members:
                data = raw_bytes(load(tensor_name).to(DTYPES[dtype][1]))
                if len(data) != need:
                    raise ValueError(f"{tensor_name}: {len(data)} bytes, its shape {list(shape)} "
                                     f"takes {need}")
                if need:
                    out.write(data)
            out.close()
            self.files.append({"name": name, "kind": kind, "bytes": out.bytes, "crc32": out.crcs})

    def publish(self, *, job, applied_steps, client_state, layout, optimizer, groups):
        body = {"program": "stowage-convert", "time": int(time.time() * 1000),
                "save_id": secrets.token_hex(16), "node": 0, "nodes": 1, "job": job,
                "step": self.step, "applied_steps": applied_steps,
                "client_state": base64.b64encode(client_state).decode(),
                "optimizer": optimizer, "groups": groups, "layout": layout,
                "forward_order": [], "trace": [], "files": self.files}
        text = (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()
        with open(os.path.join(self.partial, MANIFEST), "xb") as file:
            file.write(json.dumps({"stowage_checkpoint": FORMAT, "bytes": len(text),
                                   "crc32": zlib.crc32(text)}).encode() + b"\n" + text)
            file.flush()
            os.fsync(file.fileno())
        os.fsync(self.lock)
        os.rename(self.partial, self.final)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
        return self.final
