"""Host memory of one run: all its processes together, and their tmpfs files.

Counted from the outside, for ours and the peers alike: the proportional set
size (PSS) of every process of the run, so that a page that several map counts
once; and of shared memory whichever is larger, what the processes map of it
(PSS) or what the tmpfs files that they map or hold open occupy, so that pages
nobody has touched through a mapping yet are not forgotten.
"""

import os
import signal
import subprocess
import threading
import time


def all_processes():
    """pid -> (parent, session) of every process."""
    out = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as f:
                    fields = f.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            out[int(name)] = (int(fields[1]), int(fields[3]))
    return out


def processes_of(root: int) -> set:
    """The run's leader, its descendants, and whoever is in its session."""
    table = all_processes()
    found = {pid for pid, (_, session) in table.items() if session == root or pid == root}
    while True:
        more = {pid for pid, (parent, _) in table.items() if parent in found} - found
        if not more:
            return found
        found |= more


def tmpfs_devices() -> set:
    devices = set()
    with open("/proc/mounts") as f:
        for line in f:
            _, folder, kind = line.split()[:3]
            if kind in ("tmpfs", "devtmpfs"):
                try:
                    devices.add(os.stat(folder.encode().decode("unicode_escape")).st_dev)
                except OSError:
                    pass
    return devices


def tmpfs_bytes(pids, devices) -> int:
    """Blocks of the distinct tmpfs files that the processes map or hold open."""
    files = {}
    for pid in pids:
        for folder in (f"/proc/{pid}/map_files", f"/proc/{pid}/fd"):
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            for name in names:
                try:
                    s = os.stat(f"{folder}/{name}")
                except OSError:
                    continue
                if s.st_dev in devices:
                    files[(s.st_dev, s.st_ino)] = s.st_blocks * 512
    return sum(files.values())


def pss_bytes(pids):
    """(private and file pages, shared memory), summed over the processes."""
    rest = shared = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as f:
                for line in f:
                    if line.startswith(("Pss_Anon:", "Pss_File:")):
                        rest += int(line.split()[1]) * 1024
                    elif line.startswith("Pss_Shmem:"):
                        shared += int(line.split()[1]) * 1024
        except OSError:
            continue
    return rest, shared


def run_and_sample(command, env, log_path: str, period_s: float = 0.25, timeout_s: float = 900):
    """Runs `command` to its end. Returns (exit code, report in bytes)."""
    devices = tmpfs_devices()
    samples = []
    with open(log_path, "wb") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        timer = threading.Timer(timeout_s, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        try:
            while process.poll() is None:
                pids = processes_of(process.pid)
                rest, shared = pss_bytes(pids)
                samples.append(rest + max(shared, tmpfs_bytes(pids, devices)))
                time.sleep(period_s)
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    # The second half is training alone: start-up and teardown lie outside it.
    steady = sorted(samples[len(samples) // 2:]) or [0]
    return process.returncode, {"peak_bytes": max(samples, default=0),
                                "steady_bytes": steady[len(steady) // 2],
                                "samples": len(samples)}
