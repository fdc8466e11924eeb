"""Sends a run's numbers to Weights & Biases through its own client.

The engine starts this file beside training, with a SEQPACKET socket as
standard input. Each packet is one JSON object: first {"init": {...}}, then
{"x": samples, "values": {name: number}}. The end of the socket ends the run.
Nothing is ever sent back: training neither waits for this process nor cares
whether it lives. WANDB_MODE and wandb's other variables work as usual.
"""

import json
import os
import signal
import socket
import sys
import threading

PACKET_BYTES_MAX = 1 << 20
# After the last packet the client may take this long to write or upload.
FINISH_SECONDS_MAX = 600


def main():
    # Ctrl-C is for training; the end of the socket tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox = socket.socket(fileno=os.dup(0))
    packet = inbox.recv(PACKET_BYTES_MAX)
    if not packet:
        return 0
    asked = json.loads(packet)["init"]
    try:
        import wandb
    except ImportError as error:
        print(f"wandb: {sys.executable} has no wandb package: {error}")
        return 3
    run = wandb.init(
        project=asked["project"], group=asked["group"], entity=asked["team"],
        dir=asked["directory"], config=asked["config"])
    rows = 0
    while True:
        packet = inbox.recv(PACKET_BYTES_MAX)
        if not packet:
            break
        row = json.loads(packet)
        run.log(row["values"], step=row["x"])
        rows += 1
    watchdog = threading.Timer(FINISH_SECONDS_MAX, os._exit, (4,))
    watchdog.daemon = True
    watchdog.start()
    run.finish()
    print(f"wandb: {rows} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
