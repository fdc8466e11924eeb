#!/usr/bin/env python3
"""OneBitAdam over a limited link: onebit_link in two network namespaces.

Makes two namespaces joined by a veth pair, limits both ends with tc (token
bucket), runs rank 0 and rank 1 in them and prints rank 0's JSON object. Needs
root, ip and tc; removes what it made.
"""

import argparse
import os
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
NAMES = (f"stowage-{os.getpid()}-0", f"stowage-{os.getpid()}-1")


def run(*command):
    subprocess.run(command, check=True)


def make_link(rate):
    run("ip", "netns", "add", NAMES[0])
    run("ip", "netns", "add", NAMES[1])
    run("ip", "link", "add", "stw0", "netns", NAMES[0], "type", "veth", "peer",
        "name", "stw1", "netns", NAMES[1])
    for i, name in enumerate(NAMES):
        inside = ("ip", "netns", "exec", name)
        run(*inside, "ip", "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"stw{i}")
        run(*inside, "ip", "link", "set", f"stw{i}", "up")
        run(*inside, "tc", "qdisc", "add", "dev", f"stw{i}", "root", "tbf", "rate",
            rate, "burst", "64kbit", "latency", "100ms")


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--rate", default="100mbit", help="tc's words")
    a.add_argument("--elements", type=int, default=4 << 20)
    a.add_argument("--steps", type=int, default=7)
    a.add_argument("--program",
                   default=os.path.join(ROOT, "build/release/bench/onebit_link"))
    args = a.parse_args()
    try:
        make_link(args.rate)
        ranks = [subprocess.Popen(
            ["ip", "netns", "exec", name, args.program, "--rank", str(rank),
             "--address", "10.77.0.1", "--elements", str(args.elements),
             "--steps", str(args.steps)]) for rank, name in enumerate(NAMES)]
        codes = [rank.wait(timeout=600) for rank in ranks]
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name],
                           stderr=subprocess.DEVNULL)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
