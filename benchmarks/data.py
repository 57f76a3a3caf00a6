"""Training patches a second: PNG files opened for every patch, the store, the resident sampler; and memory.

    python benchmarks/data.py

Uses the lists in data/lists where they are (DIV2K_valid for the speed, train for the memory), else makes images of the same size.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as skimage_data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets import PatchDataset, PatchLoader, open_store, read_list  # noqa: E402
from imresize import imresize  # noqa: E402
from utils import write_image, write_rows  # noqa: E402

CROP, BATCH = 96, 16
MEMORY = """
import sys
from datasets import PatchDataset, PatchLoader
loader = PatchLoader(PatchDataset(sys.argv[1], cache=sys.argv[2]), 16)
batches = loader.epoch(0)
for _ in range(60):
    next(batches)
print({line.split(":")[0]: int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("Rss")})
"""


class OpenedPerPatch(torch.utils.data.Dataset):
    """The usual tutorial's way to the same patches: open both PNG files, crop, flip, convert."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        image, top, left, flip = (int(column[i]) for column in self.dataset.plan)
        pair, patches = self.dataset.pairs[image], []
        for path, scale in ((pair.lr, 1), (pair.hr, 4)):
            x, y, side = left * scale, top * scale, CROP // 4 * scale
            patch = np.array(Image.open(path).convert("RGB").crop((x, y, x + side, y + side)))
            patch = patch[:, ::-1] if flip & 1 else patch
            patch = patch[::-1] if flip & 2 else patch
            patch = patch.swapaxes(0, 1) if flip & 4 else patch
            patches.append(
                torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1).float().div(255)
            )
        return tuple(patches)


def made_list(folder, count, height, width):
    """A list of `count` images in `folder`: a photograph, tiled, with noise so that its PNG is as large as a real one."""
    random = np.random.default_rng(0)
    tiled = np.tile(skimage_data.astronaut(), (3, 4, 1))
    rows = []
    for k in range(count):
        hr = np.clip(
            tiled[:height, :width] + random.integers(-3, 4, (height, width, 3)), 0, 255
        ).astype(np.uint8)
        write_image(f"{folder}/{k}.png", hr)
        write_image(f"{folder}/{k}x4.png", imresize(hr, 0.25))
        rows.append(
            {
                "hr": f"{folder}/{k}.png",
                "lr": f"{folder}/{k}x4.png",
                "width": width,
                "height": height,
            }
        )
    write_rows(f"{folder}/list.csv", rows)
    return f"{folder}/list.csv"


def seconds_per_patch(batches, patches):
    """Of an iterator over batches, after one batch to warm up."""
    next(batches)
    begin, seen = time.perf_counter(), 0
    while seen < patches:
        seen += len(next(batches)[0])
    return (time.perf_counter() - begin) / seen


def speed(list_file, cache):
    dataset = PatchDataset(
        list_file, crop_size=CROP, patches_per_image=20000 // len(read_list(list_file)), cache=cache
    )
    opened = torch.utils.data.DataLoader(OpenedPerPatch(dataset), BATCH)
    ways = {
        "PNG files opened for every patch": (lambda: iter(opened), 32),
        "store, 0 workers": (lambda: PatchLoader(dataset, BATCH).epoch(0), 8000),
        "store, 2 workers": (lambda: PatchLoader(dataset, BATCH, num_workers=2).epoch(0), 8000),
        "resident": (lambda: PatchLoader(dataset, BATCH, resident=True).epoch(0), 8000),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(3):  # the ways in turn, so that what else the machine does hits them alike
        for way, (batches, patches) in ways.items():
            best[way] = min(best[way], seconds_per_patch(batches(), patches))
    width, height = max((pair.width, pair.height) for pair in dataset.pairs)
    print(
        f"\n{CROP} x {CROP} HR and LR patches of images of up to {width} x {height}, augmented, as float batches of {BATCH}, "
        f"{torch.get_num_threads()} thread(s), best of 3:"
    )
    first = next(iter(best.values()))
    for way, taken in best.items():
        print(f"  {way:34} {1 / taken:9,.0f} patches/s  {first / taken:8.1f} x")


def memory(list_file, cache, folder):
    lines = Path(list_file).read_text().splitlines()
    print(
        "\nMemory of a process after 60 batches, in MiB (anonymous: its own; file: pages of the mapped store, given back"
    )
    print("when memory is short):")
    for count in (10, 100, len(lines) - 1):
        part = Path(folder) / f"{count}.csv"
        part.write_text("\n".join(lines[: count + 1]) + "\n")
        with contextlib.redirect_stdout(None):
            open_store(
                read_list(part), folder=cache
            )  # decoded beforehand: only reading it is measured
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", MEMORY, str(part), cache]
        out = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        rss = eval(out[-1])
        size = sum(pair.width * pair.height * 3 * 17 / 16 for pair in read_list(part)) / 2**20
        print(
            f"  {count:4} images, {size:6.0f} MiB of pixels: anonymous {rss['RssAnon']:6.0f}, "
            f"file and libraries {rss['RssFile'] + rss['RssShmem']:6.0f}"
        )


def main():
    os.chdir(ROOT)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        large, many = Path("data/lists/DIV2K_valid.csv"), Path("data/lists/train.csv")
        speed(
            large if large.exists() else made_list(f"{folder}/large", 3, 1356, 2040),
            f"{folder}/cache",
        )
        if Path("/proc/self/status").exists():
            memory(
                many if many.exists() else made_list(f"{folder}/many", 290, 512, 512),
                f"{folder}/cache",
                folder,
            )


if __name__ == "__main__":
    main()
