#!/usr/bin/env python3
"""Prints which GoogleTest cases skipped themselves, and why.

usage: ctest_report.py PRESET path/to/LastTest.log
"""

import re
import sys


def main():
    preset, path = sys.argv[1:]
    try:
        with open(path, errors="replace") as f:
            lines = f.read().splitlines()
    except OSError:
        return
    why = []
    seen = set()
    for line in lines:
        if line.startswith("[ RUN "):
            why = []
        elif found := re.match(r"\[  SKIPPED \] (\S+) \(", line):
            reason = " ".join(w for w in why if w.strip()) or "no reason given"
            entry = f"skipped ({preset}): {found.group(1)}: {reason}"
            if entry not in seen:
                seen.add(entry)
                print(entry)
        elif re.search(r":\d+: Skipped$", line):
            why = []
        else:
            why.append(line.strip())


if __name__ == "__main__":
    main()
