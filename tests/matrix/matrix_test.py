"""A pairwise covering set of the configuration matrix (matrix.py): each case
trains to plain LibTorch's losses or is refused with a reason that
docs/config-matrix.md has."""

import os
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import matrix
import processes as p

# On two cores that others use too. What is left over is reported, and the whole
# matrix (tools/matrix) has it.
SECONDS_MAX = 240


class Pairwise(unittest.TestCase):
    def test_covers_every_pair(self):
        rows = matrix.pairwise()
        self.assertLess(len(rows), 60)
        names = list(matrix.FACTORS)
        for i, a in enumerate(names):
            for b in names[i + 1:]:
                met = {(row[a], row[b]) for row in rows}
                self.assertEqual(len(met), len(matrix.FACTORS[a]) *
                                 len(matrix.FACTORS[b]), (a, b))

    def test_trains_as_plain_or_is_refused_with_a_reason(self):
        begin = time.monotonic()
        with p.Folder() as folder:
            runner = matrix.Runner(p.BIN, folder)
            os.makedirs(folder.file("disk"), exist_ok=True)
            # Every pair of values, most of them refused somewhere; then every
            # pair that this build trains.
            for case in matrix.pairwise():
                why = runner.refusal(case)
                if why is not None:
                    self.assertRegex(why, r"^[a-z_.]+ = .*: \w+",
                                     matrix.name_of(case))
            cases = matrix.pairwise(runner.accepted())
            runner.compute_references(cases)
            results = []
            for case in cases:
                if time.monotonic() - begin > SECONDS_MAX:
                    break
                difference, why = runner.train(case)
                self.assertIsNone(why, f"{matrix.name_of(case)}: explain lets "
                                  "it pass, the trainer does not")
                results.append((case, difference, None))
        print(matrix.table(results))
        if len(results) < len(cases):
            print(f"{len(cases) - len(results)} cases were left out after "
                  f"{SECONDS_MAX} s")
        self.assertEqual(matrix.faults(results), [])
        self.assertGreaterEqual(len(results), 5)


if __name__ == "__main__":
    unittest.main(verbosity=2)
