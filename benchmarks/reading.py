"""What one reads to follow one step: lines and functions of this repository that a GAN step runs.

    python benchmarks/reading.py

One training step inside `fit`: its patches, the learning rate, both updates, the running average
and the record of the losses; without construction, saving and rows of the history. Libraries and
this script do not count. The content loss is that of VGG features, with random weights.
"""

import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import random_vgg  # noqa: E402
from datasets import PatchDataset, PatchLoader  # noqa: E402
from models import Discriminator, SRResNet  # noqa: E402
from solver import GANSolver  # noqa: E402
from utils import write_image, write_rows  # noqa: E402

CROP = 32


class Reading:
    """Traces the lines of the repository between the first and the second batch of an epoch."""

    def __init__(self, batches):
        self.batches = batches  # the code of the generator that yields them
        self.asked = 0  # how often it was asked for one
        self.lines, self.functions = defaultdict(set), set()

    def trace(self, frame, event, argument):
        code = frame.f_code
        if event == "call" and code is self.batches:
            self.asked += 1
        path = Path(code.co_filename)
        if not path.is_relative_to(ROOT) or ".venv" in path.parts or path == Path(__file__):
            return None
        if self.asked == 1:
            if event == "line":
                self.lines[path.relative_to(ROOT).as_posix()].add(frame.f_lineno)
            elif event == "call" and not code.co_name.startswith("<"):  # <listcomp> is no function
                self.functions.add(code)
        return self.trace


def make_solver(folder):
    """A small GAN on four images of noise, and VGG16 with random weights."""
    random, rows = np.random.default_rng(0), []
    for k in range(4):
        row = {"hr": f"{folder}/{k}.png", "lr": f"{folder}/{k}x4.png", "width": 64, "height": 64}
        write_image(row["hr"], random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        write_image(row["lr"], random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        rows.append(row)
    write_rows(f"{folder}/list.csv", rows)
    random_vgg(16, f"{folder}/vgg16.pth")
    dataset = PatchDataset(
        f"{folder}/list.csv", crop_size=CROP, patches_per_image=1, cache=f"{folder}/cache"
    )
    dataset.pixels  # noqa: B018  (decoded once, which is no part of a step)
    networks = {"generator": SRResNet(2, 8), "discriminator": Discriminator(4)}
    settings = dict(batch_size=2, batch_norm_batches=0)
    settings.update(content_loss="vgg16_53", vgg_weights=f"{folder}/vgg16.pth")
    return GANSolver(networks, dataset, settings, f"{folder}/run")


def main():
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        solver = make_solver(folder)
        reading = Reading(PatchLoader.epoch.__code__)
        sys.settrace(reading.trace)
        try:
            solver.fit()
        finally:
            sys.settrace(None)
        del solver  # Windows removes no folder with a mapped file
    assert reading.asked == 3, "two batches, and the end of the epoch"
    count = sum(map(len, reading.lines.values()))
    print(
        f"One GAN step runs {count} distinct lines in {len(reading.functions)} functions of "
        f"{len(reading.lines)} files:"
    )
    for path, lines in sorted(reading.lines.items(), key=lambda item: -len(item[1])):
        print(f"  {len(lines):4}  {path}")


if __name__ == "__main__":
    main()
