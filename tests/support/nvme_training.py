"""What tests of training on NVMe share: a folder on the disk, the blocks of a
configuration, and a watch over a server's memory."""

import os
import shutil
import tempfile
import threading

KEYS = ("loss", "norm", "lr", "scale", "skipped")
MIB = 1 << 20


class Disk:
    """A folder on the disk that the tests run on."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="nvme-test-", dir=os.getcwd())
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)

    def files(self):
        return sum(len(names) for _, _, names in os.walk(self.path))


def zero(stage, disk, max_in_cpu=0, param=True, **optimizer):
    nvme = {"device": "nvme", "nvme_path": disk.path}
    block = {"stage": stage,
             "offload_optimizer": {**nvme, "pipeline_read": True,
                                   "pipeline_write": True, **optimizer}}
    if stage == 3 and param:
        block["offload_param"] = {**nvme, "max_in_cpu": max_in_cpu}
    return block


def in_memory(stage):
    block = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
    if stage == 3:
        block["offload_param"] = {"device": "cpu"}
    return block


def pss(pid):
    """PSS of a process, and of it what is shared memory; bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        lines = dict(line.split(":", 1)
                     for line in rollup.read().splitlines()[1:])
    return [int(lines[name].split()[0]) * 1024
            for name in ("Pss", "Pss_Shmem")]


class Watch(threading.Thread):
    """The most memory of a server over time: its PSS and every byte of its
    files in tmpfs together, whoever has touched them; what it maps of these
    files, and so has in its PSS as well, counts once."""

    def __init__(self, pid, shm, period_s=0.002):
        super().__init__(daemon=True)
        self.pid, self.shm, self.period_s = pid, shm, period_s
        self.most, self.samples, self.parts = 0, 0, None
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            try:
                whole, shared = pss(self.pid)
                files = sum(os.stat(os.path.join(self.shm, name)).st_blocks
                            for name in os.listdir(self.shm)) * 512
            except OSError:
                continue  # a segment went in between
            self.samples += 1
            if whole - shared + files > self.most:
                self.most = whole - shared + files
                self.parts = (whole - shared, files, shared)
            self.stopping.wait(self.period_s)

    def stop(self):
        self.stopping.set()
        self.join()

    def words(self):
        private, files, shared = (part / MIB for part in self.parts)
        return (f"most {self.most / MIB:.1f} MiB in {self.samples} samples "
                f"(private {private:.1f}, files in tmpfs {files:.1f}, of which "
                f"{shared:.1f} are in its PSS too)")
