#!/usr/bin/env python3
"""The real faults of docs/nvme-faults.md, tried on DeepSpeed's NVMe path.

Two layers are tried: the aio handle that its swappers call, and training with
its swappers (ZeRO-3, one rank). For each fault it says whether an error was
seen, and what the bytes were afterwards. Nothing is mended or retried.

  nvme_faults.py --path FOLDER [--json FILE] [--only NAME]...

A full file system needs a mount of its own (root); otherwise that case says so.
"""

import argparse
import contextlib
import glob
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

MIB = 1 << 20


# --- The handle: each case in a process of its own ----------------------------

def handle_and_buffer(nbytes):
    import torch
    from deepspeed.ops.op_builder import AsyncIOBuilder
    handle = AsyncIOBuilder().load(verbose=False).aio_handle(MIB, 16, False, True, 1)
    buffer = handle.new_cpu_locked_tensor(nbytes, torch.empty(0, dtype=torch.uint8))
    return handle, buffer


def written(path, nbytes, value):
    with open(path, "rb") as f:
        got = f.read()
    return f"{got.count(bytes([value]))} of {nbytes} bytes are in the file"


def case_file_size_limit(folder):
    """An 8 MiB write under a file size limit of 4 MiB."""
    handle, buffer = handle_and_buffer(8 * MIB)
    buffer.fill_(7)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, resource.RLIM_INFINITY))
    result = handle.sync_pwrite(buffer, f"{folder}/limited", 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return f"sync_pwrite returned {result}; " + written(f"{folder}/limited", 8 * MIB, 7)


def case_full_file_system(folder):
    """An 8 MiB write to a file system with 4 MiB free."""
    handle, buffer = handle_and_buffer(8 * MIB)
    buffer.fill_(7)
    with small_file_system(folder, 32) as small:
        keep = shutil.disk_usage(small).free - 4 * MIB
        with open(f"{small}/rest", "wb") as f:
            os.posix_fallocate(f.fileno(), 0, keep)
        result = handle.sync_pwrite(buffer, f"{small}/full", 0)
        return f"sync_pwrite returned {result}; " + written(f"{small}/full", 8 * MIB, 7)


def case_truncated_file(folder):
    """A read of 8 MiB from a file cut to 4 MiB."""
    handle, buffer = handle_and_buffer(8 * MIB)
    with open(f"{folder}/short", "wb") as f:
        f.write(b"\7" * 4 * MIB)
    buffer.fill_(1)
    result = handle.sync_pread(buffer, f"{folder}/short", 0)
    right = int((buffer == 7).sum())
    return f"sync_pread returned {result}; {right} of {8 * MIB} bytes were read"


def case_flipped_bit(folder):
    """A bit of a written file flips, then it is read."""
    handle, buffer = handle_and_buffer(8 * MIB)
    buffer.fill_(7)
    handle.sync_pwrite(buffer, f"{folder}/flipped", 0)
    with open(f"{folder}/flipped", "r+b") as f:
        f.seek(12345)
        f.write(b"\x87")
    buffer.fill_(0)
    result = handle.sync_pread(buffer, f"{folder}/flipped", 0)
    return f"sync_pread returned {result}; byte 12345 is {int(buffer[12345])}, 7 was written"


HANDLE_CASES = {f.__name__[5:]: f for f in
                (case_file_size_limit, case_full_file_system, case_truncated_file, case_flipped_bit)}


@contextlib.contextmanager
def small_file_system(folder, mib):
    """ext4 in a file: direct I/O works there, as on a disk."""
    image, mount = f"{folder}/image", f"{folder}/small"
    os.makedirs(mount)
    subprocess.run(["truncate", "-s", f"{mib}M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=False)


# --- The swappers: training that is disturbed after some steps ----------------

def swap_files(folder, kind):
    """DeepSpeed's files of fp32 masters or moments, largest first."""
    files = [f for f in glob.glob(f"{folder}/**/optimizer/**/*.swp", recursive=True)
             if os.path.basename(f).startswith("exp_avg-") == (kind == "moment")
             and "gradient" not in f and "exp_avg_sq" not in f]
    return sorted(files, key=os.path.getsize, reverse=True)


def disturb_nothing(folder):
    del folder


def disturb_flip(folder):
    with open(swap_files(folder, "master")[0], "r+b") as f:
        f.seek(4 * 1000 + 3)  # the exponent of one fp32 master
        byte = f.read(1)[0]
        f.seek(4 * 1000 + 3)
        f.write(bytes([byte ^ 0x40]))


def disturb_swap(folder):
    files = swap_files(folder, "master")
    a, b = files[0], next(f for f in files[1:] if os.path.getsize(f) == os.path.getsize(files[0]))
    os.rename(a, a + ".x")
    os.rename(b, a)
    os.rename(a + ".x", b)


def disturb_truncate(folder):
    file = swap_files(folder, "moment")[0]
    os.truncate(file, os.path.getsize(file) // 2)


def disturb_limit(folder):
    del folder
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))


SWAPPER_CASES = {"undisturbed": (disturb_nothing, "nothing is done"),
                 "flipped_bit": (disturb_flip, "a bit of a master's exponent flips between two steps"),
                 "swapped_files": (disturb_swap, "the files of two sub-groups' masters change places"),
                 "truncated_file": (disturb_truncate, "a file of moments is cut in half"),
                 "file_size_limit": (disturb_limit, "a file size limit of 1 MiB from then on")}


def train(folder, case):
    """Steps on one batch; prints one loss a line. Runs in a child."""
    import deepspeed
    import torch
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(29000 + os.getpid() % 2000)}.items():
        os.environ[name] = value
    deepspeed.init_distributed("gloo")
    torch.manual_seed(1)
    torch.set_num_threads(1)
    nvme = {"device": "nvme", "nvme_path": folder}
    config = {"train_micro_batch_size_per_gpu": 8,
              "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
              "zero_optimization": {"stage": 3, "sub_group_size": 1024 * 1024,
                                    "offload_optimizer": {**nvme, "buffer_count": 12, "pipeline_read": True,
                                                          "pipeline_write": True}},
              "aio": {"block_size": MIB, "queue_depth": 16}, "steps_per_print": 10**9}
    model = torch.nn.Sequential(*[layer for _ in range(4) for layer in
                                  (torch.nn.Linear(1024, 1024), torch.nn.Tanh())])
    engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    x = torch.randn(8, 1024)
    y = torch.tanh(torch.randn(8, 1024))
    for step in range(6):
        if step == 3:
            SWAPPER_CASES[case][0](folder)
        loss = (engine(x) - y).pow(2).mean()
        print(f"loss {step} {float(loss):.9g}", flush=True)
        engine.backward(loss)
        engine.step()
    os._exit(0)


# --- The report ---------------------------------------------------------------

def child(folder, layer, case):
    env = dict(os.environ, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1",
               TORCH_EXTENSIONS_DIR=os.path.join(sys.prefix, "extensions"),
               PATH=os.path.join(sys.prefix, "bin") + ":" + os.environ["PATH"])
    try:
        return subprocess.run([sys.executable, "-W", "ignore", __file__, "--path", folder, "--child", layer, case],
                              env=env, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess([], -1, (late.stdout or b"").decode(), "did not end in 180 s")


def outcome(done) -> str:
    if done.returncode == 0:
        return "no error"
    last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1:]
    name = signal.Signals(-done.returncode).name if done.returncode < -1 else done.returncode
    return f"ended with {name}: {last[0][:200] if last else ''}"


def report(options) -> list:
    rows = []
    reference = None
    for layer, cases in (("handle", HANDLE_CASES), ("swapper", SWAPPER_CASES)):
        for case in cases:
            if options.only and case not in options.only and case != "undisturbed":
                continue
            with tempfile.TemporaryDirectory(prefix="faults-", dir=options.path) as folder:
                done = child(folder, layer, case)
            row = {"layer": layer, "case": case, "outcome": outcome(done),
                   "what": cases[case].__doc__ if layer == "handle" else cases[case][1]}
            if layer == "handle":
                row["seen"] = done.stdout.strip().splitlines()[-1:] or [""]
                row["seen"] = row["seen"][0]
            else:
                losses = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("loss")]
                reference = reference or losses
                row["losses"] = losses
                same = sum(a == b for a, b in zip(losses, reference))
                row["seen"] = f"{len(losses)} of 6 losses, {same} as undisturbed"
            rows.append(row)
            print(f"{layer:8} {case:18} {row['outcome']}; {row['seen']}", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--path", required=True, help="folder on the disk")
    p.add_argument("--json")
    p.add_argument("--only", action="append")
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = p.parse_args()
    os.makedirs(options.path, exist_ok=True)
    if options.child:
        layer, case = options.child
        if layer == "handle":
            print(HANDLE_CASES[case](options.path), flush=True)
            os._exit(0)
        train(options.path, case)
    rows = report(options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
