"""Training patches a second: PNG files opened for every patch against the pixel store; and memory.

    python benchmarks/data.py [list.csv]

Takes data/lists/train.csv if no list is named, and makes images if there is none. The ways run in
turn on the same patches, so that what else the machine does hits them alike.
"""

import argparse
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

from table import compare  # noqa: E402

from datasets import PatchDataset, PatchLoader, read_list  # noqa: E402
from imresize import imresize  # noqa: E402
from models import VGG_COUNTS, VGG_WIDTHS  # noqa: E402
from utils import device_name, pick_device, write_image, write_rows  # noqa: E402

CROP, BATCH = 96, 16


class OpenedPerPatch(torch.utils.data.Dataset):
    """The usual tutorial's way to the same patches: open both PNG files, crop, flip, convert."""

    def __init__(self, dataset):
        self.dataset, self.plan = dataset, dataset.plan(0)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        image, top, left, flip = self.plan[i]
        pair, patches = self.dataset.pairs[image], []
        for path, scale in ((pair.lr, 1), (pair.hr, 4)):
            x, y, side = left * scale, top * scale, CROP // 4 * scale
            patch = np.array(Image.open(path).convert("RGB").crop((x, y, x + side, y + side)))
            patch = patch[:, ::-1] if flip & 1 else patch
            patch = patch[::-1] if flip & 2 else patch
            patch = patch.swapaxes(0, 1) if flip & 4 else patch
            patch = torch.from_numpy(np.ascontiguousarray(patch))
            patches.append(patch.permute(2, 0, 1).float().div(255))
        return tuple(patches)


def made_list(folder, count, height, width):
    """A list of `count` images in `folder`: a photograph, tiled, with noise so that its PNG is as
    large as a real one.
    """
    random = np.random.default_rng(0)
    tiled = np.tile(skimage_data.astronaut(), (3, 4, 1))[:height, :width]
    rows = []
    for k in range(count):
        hr = np.clip(tiled + random.integers(-3, 4, tiled.shape), 0, 255).astype(np.uint8)
        paths = {"hr": f"{folder}/{k}.png", "lr": f"{folder}/{k}x4.png"}
        write_image(paths["hr"], hr)
        write_image(paths["lr"], imresize(hr, 0.25))
        rows.append({**paths, "width": width, "height": height})
    write_rows(f"{folder}/list.csv", rows)
    return f"{folder}/list.csv"


def random_vgg(depth, path):
    """Write random weights of VGG16 or VGG19 under torchvision's names to `path`; returns it.

    They are as fast as the right ones, and there without a network.
    """
    weights, index, previous = {}, 0, 3
    for width, count in zip(VGG_WIDTHS, VGG_COUNTS[depth], strict=True):
        for _ in range(count):
            size = (2 / (9 * previous)) ** 0.5  # features stay as large as the image
            weights[f"features.{index}.weight"] = size * torch.randn(width, previous, 3, 3)
            weights[f"features.{index}.bias"] = torch.zeros(width)
            previous, index = width, index + 2  # a ReLU follows
        index += 1  # pooling
    torch.save(weights, path)
    return path


def patches_per_second(batches, patches):
    begin, seen = time.perf_counter(), 0
    while seen < patches:
        _, hr = next(batches)
        seen += len(hr)
    if hr.is_cuda:
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - begin)


def measure(list_file, cache, rounds=10):
    count = 10_000 // len(read_list(list_file)) + 1
    dataset = PatchDataset(list_file, crop_size=CROP, cache=cache, patches_per_image=count)
    opened = torch.utils.data.DataLoader(OpenedPerPatch(dataset), BATCH)
    devices = dict.fromkeys(map(str, ("cpu", pick_device())))
    ways = {"PNG files opened for every patch": (iter(opened), 2 * BATCH)}
    for device in devices:
        batches = PatchLoader(dataset, BATCH, device=device).epoch(0)
        ways[f"store, {device_name(device)}"] = (batches, 50 * BATCH)
    for batches, _ in ways.values():
        next(batches)
    rates = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (batches, patches) in ways.items():
            rates[way].append(patches_per_second(batches, patches))
    megapixels = len(dataset.pixels) / 1e6
    print(
        f"\n{CROP} x {CROP} HR and LR patches of {len(dataset.pairs)} images, {megapixels:.0f} "
        f"megapixels, as float batches of {BATCH}; median of {rounds} rounds, in turn:"
    )
    opened = {way: rates.pop(way) for way in list(rates)[:1]}
    for way, of_way in rates.items():
        compare(f"reading patches, {way}", "patches/s", of_way, opened)
    if Path("/proc/self/status").exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        own, mapped = (
            next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))
            for kind in ("RssAnon", "RssFile")
        )
        print(
            f"memory: {own:.0f} MiB of the process's own, {mapped:.0f} MiB of mapped files (the "
            "store, libraries), which the system takes back when memory is short"
        )


def main():
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", nargs="?", default="data/lists/train.csv")
    list_file = parser.parse_args().list
    with tempfile.TemporaryDirectory() as folder:
        if not Path(list_file).exists():
            list_file = made_list(folder, 20, 1020, 1020)
        measure(list_file, f"{folder}/cache")


if __name__ == "__main__":
    main()
