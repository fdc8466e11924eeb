"""The trained state is the same bits whatever the server's threads, the kernel
set, the run, and however a step's micro-batches are dealt to ranks and
accumulation steps; the losses and norms of every step with it.
"""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p


class Bits(unittest.TestCase):
    def train(self, folder, precision, batch, ranks, accumulation, name,
              *args, env=None):
        out = folder.file(name)
        result = p.train(
            folder.config(), folder.file("text"), *p.TINY, "--ranks",
            str(ranks), "--accumulation", str(accumulation), "--micro-batch",
            str(batch // (ranks * accumulation)), "--steps", "12",
            "--rank-threads", "1", "--precision", precision, "--out", out,
            "--trace", out + ".trace", "--log-level", "warning", *args,
            env=env)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(out + "/model.safetensors", "rb") as file:
            weights = file.read()
        steps = [(s["loss"], s["norm"], s["scale"])
                 for _, s in sorted(p.trace(out + ".trace").items())]
        self.assertEqual(len(steps), 12)
        return weights, steps

    def check(self, precision, micros):
        with p.Folder() as folder:
            folder_config = folder.config
            auto = {"enabled": "auto"}
            folder.config = lambda: folder_config(fp16=auto, bf16=auto)
            batch = 2 * micros
            want = self.train(folder, precision, batch, 2, micros // 2, "base")
            variants = [("rerun", 2, micros // 2, [], None)]
            for ranks in (1, 4):
                variants.append((f"{ranks}x{micros // ranks}", ranks,
                                 micros // ranks, [], None))
            for threads in ("1", "2", "4"):
                variants.append(("threads" + threads, 2, micros // 2,
                                 ["--server-threads", threads], None))
            for isa in ("portable", "avx2", "avx512"):
                variants.append((isa, 2, micros // 2, [],
                                 {"STOWAGE_ISA": isa}))
            compared = 0
            for name, ranks, accumulation, args, env in variants:
                if name == "avx512" and "avx512bw" not in p.read(
                        "/proc/cpuinfo"):
                    print("avx512 not compared: this processor lacks it")
                    continue
                got = self.train(folder, precision, batch, ranks, accumulation,
                                 name, *args, env=env)
                self.assertEqual(got[1], want[1], f"{name}: losses and norms")
                self.assertEqual(got[0], want[0], f"{name}: weights")
                compared += 1
            print(f"{precision}, {micros} micro-batches: "
                  f"{compared} variants, equal bits")

    def test_bf16_slots_kept(self):
        self.check("bf16", 4)

    def test_fp32_ring_of_slots(self):
        self.check("fp32", 8)


if __name__ == "__main__":
    unittest.main(verbosity=2)
