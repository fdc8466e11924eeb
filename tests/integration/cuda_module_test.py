"""The CUDA module compiles, links and loads where the toolkit is.

In the ordinary build it is a target that nothing depends on (STOWAGE_CUDA=AUTO);
this builds it, so that a change which breaks it is seen without a GPU. What it
does on a GPU is not tested here: tests/contract has the suites for that.
Skips, with the reason, where the toolkit or LibTorch's CUDA half is missing.
"""

import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

MISSING = os.environ.get("STOWAGE_CUDA_MISSING", "not said")
HAS_GPU = os.path.exists("/dev/nvidiactl")
MODULE = os.path.join(p.BIN, "libstowage_cuda.so")


@unittest.skipIf(MISSING, f"no CUDA module in this build: {MISSING}")
class CudaModule(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        built = subprocess.run(
            ["cmake", "--build", os.environ["STOWAGE_BUILD_DIR"], "--target",
             "stowage_cuda"], capture_output=True, text=True)
        if built.returncode != 0:
            raise AssertionError("the CUDA module does not build:\n" +
                                 (built.stdout + built.stderr)[-4000:])

    def test_is_linked_with_what_it_uses(self):
        needed = subprocess.run(["readelf", "-d", MODULE], check=True,
                                capture_output=True, text=True).stdout
        for library in ("libtorch_cuda", "libc10_cuda", "libcudart",
                        "libnccl"):
            self.assertIn(library, needed)
        # The program must not need any of it.
        needed = subprocess.run(["readelf", "-d", f"{p.BIN}/stow-train"],
                                check=True, capture_output=True,
                                text=True).stdout
        for library in ("torch_cuda", "c10_cuda", "nccl"):
            self.assertNotIn(library, needed)

    def test_has_all_its_symbols(self):
        # Bound now, so that a missing one is an error here.
        script = ("import ctypes, os; ctypes.CDLL("
                  f"{MODULE!r}, mode=os.RTLD_NOW).StowageCudaModule()")
        loaded = subprocess.run([sys.executable, "-c", script],
                                capture_output=True, text=True)
        self.assertEqual(loaded.returncode, 0, loaded.stderr)

    @unittest.skipIf(HAS_GPU, "there is a GPU: tests/contract uses it")
    def test_the_trainer_says_that_there_is_no_gpu(self):
        with p.Folder() as folder:
            result = p.train(folder.config(), folder.file("text"), *p.TINY,
                             "--steps", "1", "--device", "cuda")
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn("--device cuda: cuda device 0: there are 0",
                          result.stderr)
            # Where there is none, auto is the CPU.
            result = p.train(folder.config(), folder.file("text"), *p.TINY,
                             "--steps", "1", "--device", "auto")
            self.assertEqual(result.returncode, 0, result.stderr)


class WithoutTheModule(unittest.TestCase):
    def test_the_trainer_says_what_to_build(self):
        with p.Folder() as folder:
            result = p.train(folder.config(), folder.file("text"), *p.TINY,
                             "--steps", "1", "--device", "cuda:1",
                             env={"STOWAGE_CUDA_MODULE": "/nowhere/module.so"})
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn("/nowhere/module.so", result.stderr)
            self.assertIn("tools/build cuda", result.stderr)

    def test_a_file_that_is_no_module(self):
        with p.Folder() as folder:
            result = p.train(folder.config(), folder.file("text"), *p.TINY,
                             "--steps", "1", "--device", "cuda",
                             env={"STOWAGE_CUDA_MODULE": folder.file("text")})
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn("cuda: load", result.stderr)


if __name__ == "__main__":
    unittest.main()
