"""Run by test_checkpoint_load in a process of its own: load a checkpoint and report anonymous memory as JSON.

python memory_probe.py FOLDER
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch
from dsv4_kernels.placement import HOST

from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.model.weights import Loader, load_weights

STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    line = next(line for line in STATUS.read_text("ascii").splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Sampler(threading.Thread):
    """Keeps the largest value seen, as often as it gets to run and whenever it is called."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.is_over = threading.Event()

    def sample(self) -> None:
        self.peak = max(self.peak, anonymous_bytes())

    def run(self) -> None:
        while not self.is_over.wait(0.001):
            self.sample()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.zeros(64, 64) @ torch.zeros(64, 64)  # what torch allocates once
    checkpoint = Checkpoint.open(folder)
    with checkpoint.source(lambda _done, _total: sampler.sample()) as source:
        sampler = Sampler()
        before = anonymous_bytes()
        sampler.start()
        weights = load_weights(checkpoint.config, Loader(source, HOST))
        source.finish()
    sampler.is_over.set()
    sampler.join()
    held = anonymous_bytes() - before
    largest = max(entry.num_bytes for entry in checkpoint.index.tensors.values())
    report = {"peak": sampler.peak - before, "held": held, "largest": largest, "stored": checkpoint.index.num_bytes}
    sys.stdout.write(json.dumps(report) + "\n")
    del weights


if __name__ == "__main__":
    main(Path(sys.argv[1]))
