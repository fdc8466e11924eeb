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

    def test_trains_as_plain_or_is_refused_with_a_documented_reason(self):
        documented = p.read(os.path.join(p.SOURCE, "docs/config-matrix.md"))
        begin = time.monotonic()
        results = []
        cases = matrix.pairwise()
        # Most pairs are of refused cases: those that train are few, so add the
        # places that the demo's files use.
        cases += [dict(stage=stage, optimizer="cpu",
                       param="cpu" if stage == 3 else "none", precision="fp16",
                       schedule="WarmupLR", accumulation=1, ranks=2)
                  for stage in (2, 3)]
        with p.Folder() as folder:
            runner = matrix.Runner(p.BIN, folder)
            refusals = [runner.refusal(case) for case in cases]
            runner.compute_references(
                [c for c, why in zip(cases, refusals) if why is None])
            os.makedirs(folder.file("disk"), exist_ok=True)
            left = 0
            for case, why in zip(cases, refusals):
                if why is None and time.monotonic() - begin > SECONDS_MAX:
                    left += 1
                    continue
                difference = None
                if why is None:
                    difference, why = runner.train(case)
                results.append((case, difference, why))
        print(matrix.table(results))
        if left:
            print(f"{left} cases were left out after {SECONDS_MAX} s")
        self.assertEqual(matrix.faults(results), [])
        self.assertGreaterEqual(
            sum(1 for _, difference, _ in results if difference is not None), 8)
        for case, _, why in results:
            if why is not None:
                self.assertIn(why.replace("|", " "), documented,
                              matrix.name_of(case))


if __name__ == "__main__":
    unittest.main(verbosity=2)
