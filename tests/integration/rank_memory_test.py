"""What a rank holds grows with the model as docs/architecture.md says, and no
more: the model is built unit by unit, so not even its start holds it whole.

Measured: the most anonymous memory (RssAnon) of the rank process at any time
from its start to its end, for a small and a large model of the same width; the
difference, over the difference in parameters, is bytes per parameter. Segments
are not anonymous, so what is read in place does not count.
"""

import os
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

WIDTH = 256
SMALL, LARGE = 2, 26
PARAMETERS = (LARGE - SMALL) * 12 * WIDTH * WIDTH  # biases and norms left out
MIB = 1 << 20
# The allocator's own: thread arenas and what one step's activations leave.
SLACK = 16 * MIB


def anonymous_bytes(pid):
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


class RankMemory(unittest.TestCase):
    def peak(self, folder, server, config, layers):
        command = p.train_command(
            config, folder.file("text"), "--layers", str(layers), "--width",
            str(WIDTH), "--heads", "4", "--context", "2", "--micro-batch", "1",
            "--sample-bytes", "0", "--precision", "bf16", "--steps", "3",
            "--rank-threads", "1", "--server", server.address, "--job",
            f"m{layers}")
        with open(folder.file("train.log"), "a") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log)
        most = 0
        while process.poll() is None:
            most = max(most, anonymous_bytes(process.pid))
            time.sleep(0.001)
        self.assertEqual(process.returncode, 0, p.read(folder.file("train.log")))
        return most

    def growth(self, stage):
        """Bytes by which the peak grows from the small to the large model."""
        zero = {"stage": stage, "offload_optimizer": {"device": "cpu"},
                "stage3_max_live_parameters": 1000000,
                "stage3_max_reuse_distance": 0,
                "stage3_prefetch_bucket_size": 0,
                "stage3_param_persistence_threshold": 0}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
        with p.Folder() as folder:
            config = folder.config(zero_optimization=zero,
                                   bf16={"enabled": True})
            with p.Stowd(folder) as server:
                small = self.peak(folder, server, config, SMALL)
                large = self.peak(folder, server, config, LARGE)
        print(f"stage {stage}: {small / MIB:.1f} MiB with {SMALL} layers, "
              f"{large / MIB:.1f} MiB with {LARGE}: "
              f"{(large - small) / PARAMETERS:.2f} bytes a parameter more")
        return large - small

    def test_stage_3_holds_no_model(self):
        self.assertLess(self.growth(3), SLACK)

    def test_stage_2_holds_its_16_bit_parameters(self):
        growth = self.growth(2)
        self.assertGreater(growth, 2 * PARAMETERS * 0.9)
        self.assertLess(growth, 2 * PARAMETERS + SLACK)

    def test_stage_1_holds_gradients_too(self):
        growth = self.growth(1)
        self.assertGreater(growth, 6 * PARAMETERS * 0.9)
        self.assertLess(growth, 6 * PARAMETERS + SLACK)


if __name__ == "__main__":
    unittest.main(verbosity=2)
