"""A server that is killed at a random instant of a step ends its ranks with exit
code 5 and the reason, by an orderly exit: what was under way between the ranks,
many small messages, must not outlive the buffers that it uses.
"""

import os
import random
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import processes as p

KILLS = int(os.environ.get("STOWAGE_LOST_SERVER_KILLS", "8"))
LONG = 100000


class LostServer(unittest.TestCase):
    def lose(self, rng, exchange):
        with p.Folder() as folder:
            config = folder.config(zero_optimization={
                "stage": 3, "reduce_bucket_size": 1000,
                "offload_optimizer": {"device": "cpu"},
                "offload_param": {"device": "cpu"}})
            path = folder.file("trace")
            with p.Stowd(folder) as server:
                ranks = p.start_train(
                    folder, config, folder.file("text"), *p.TINY, "--ranks",
                    "2", "--steps", str(LONG), "--server", server.address,
                    "--exchange", exchange, "--trace", path)
                try:
                    end = time.monotonic() + 60
                    while len(p.trace(path)) < 3 and ranks.poll() is None:
                        self.assertLess(time.monotonic(), end, "no step")
                        time.sleep(0.01)
                    time.sleep(rng.random() * 0.1)
                    server.process.kill()
                    code = ranks.wait(timeout=30)
                finally:
                    p.kill_all(ranks)
            said = p.read(folder.file("train.log"))
            self.assertEqual(code, 5, said)
            self.assertIn("training stopped: ", said)
            # Not by a signal: of each rank the launcher says so.
            self.assertNotIn("was ended by", said)

    def check(self, exchange):
        seed = p.seed()
        print(f"seed {seed} (STOWAGE_TEST_SEED), {KILLS} kills "
              "(STOWAGE_LOST_SERVER_KILLS)")
        rng = random.Random(seed)
        for _ in range(KILLS):
            self.lose(rng, exchange)

    def test_ranks_of_process_groups_end_in_order(self):
        self.check("c10d")

    def test_ranks_of_segments_end_in_order(self):
        self.check("segments")


if __name__ == "__main__":
    unittest.main(verbosity=2)
