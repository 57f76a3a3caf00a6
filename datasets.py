"""From a CSV list to (LR, HR): pairs to test on, patches to train on. It makes no lists.

How a patch gets from its PNG file to the batch: `PatchDataset.pixels` holds every image, decoded
once; `PatchDataset.plan` draws the patches of an epoch; `PatchDataset.patches` cuts a batch of them
out of the pixels; `PatchLoader.epoch` yields the batches.
"""

import csv
import os
from collections.abc import Iterator
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from tools.acceleration import memory_format
from tools.image_files import no_such
from tools.pixel_store import open_store  # decoding that survives interruptions
from utils import SCALE, read_image

MAKE_LISTS = "make the lists (again): python create_data_lists.py"
SPARE_GPU_MEMORY = 4 * 2**30  # bytes, for networks and activations: enough for the paper's batches


class Pair(NamedTuple):
    """A line of a list: two paths, relative to the current folder, and HR's size in pixels."""

    hr: str
    lr: str
    width: int
    height: int

    @property
    def name(self) -> str:
        return Path(self.hr).stem.removesuffix("_HR")


def read_list(list_file: str | Path) -> list[Pair]:
    """The pairs of a CSV list, in its order.

    Raises FileNotFoundError for a missing list or image, ValueError for an empty or malformed list.
    """
    make_lists = _make_lists(list_file)
    if not Path(list_file).is_file():
        is_embedded = make_lists.endswith("--embedded")
        fetch = "" if is_embedded else " (first, for the official sets, with --download)"
        raise FileNotFoundError(f"{no_such('list', list_file)}; {make_lists}{fetch}")
    # -sig: spreadsheets put a byte order mark in front
    with open(list_file, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            pairs = [Pair(r["hr"], r["lr"], int(r["width"]), int(r["height"])) for r in rows]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{list_file}: is not UTF-8 (byte {error.object[error.start]:#x}); spreadsheets "
                f'save it so as "CSV UTF-8"; or {make_lists}'
            ) from None
        except (KeyError, TypeError, ValueError, csv.Error):
            raise ValueError(
                f"{list_file}, line {rows.line_num}: expected the columns hr, lr (paths), width "
                f"and height (whole numbers), separated by commas; {make_lists}"
            ) from None
    if not pairs:
        raise ValueError(f"{list_file}: lists no images; {make_lists}")
    for path in (path for pair in pairs for path in (pair.hr, pair.lr)):
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path}: no such file, though {list_file} lists it; paths are relative to the "
                f"folder that the list was made in (current folder: {Path.cwd()}); {make_lists}"
            )
    return pairs


def _make_lists(list_file):
    """The way out of errors of a list, as a command."""
    return MAKE_LISTS + (" --embedded" if "embedded" in Path(list_file).parts else "")


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr), uint8 RGB, (h, w, 3) and (4h, 4w, 3): HR is cut to that at its bottom and right.

    Raises ValueError if a file has another size than its list says, else what `read_image` raises.
    """
    hr, lr = read_image(pair.hr), read_image(pair.lr)
    h, w = pair.height // SCALE, pair.width // SCALE
    for path, image, size in ((pair.hr, hr, (pair.height, pair.width)), (pair.lr, lr, (h, w))):
        if image.shape[:2] != size:
            raise ValueError(
                f"{path}: has {image.shape[1]} x {image.shape[0]} pixels, its list says "
                f"{size[1]} x {size[0]}; if the file was changed, {MAKE_LISTS}"
            )
    return lr, hr[: h * SCALE, : w * SCALE]


class PairDataset(Dataset):
    """Whole images to validate and test on: item i is (name, lr, hr), see `read_pair`."""

    def __init__(self, list_file: str | Path):
        self.pairs = read_list(list_file)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[str, np.ndarray, np.ndarray]:
        return (self.pairs[i].name, *read_pair(self.pairs[i]))


class PatchDataset(Dataset):
    """Random patches to train on: an epoch is `patches_per_image` of every image of the list.

    Item i is patch i of epoch 0: (lr, hr), float32 RGB in [0, 1], (3, c/4, c/4) and (3, c, c) for
    crop_size c. The images are decoded into `cache` when pixels are first asked for.

    Raises as `read_list`, and ValueError if crop_size is no multiple of 4 or larger than an image.
    """

    def __init__(
        self, list_file: str | Path, *, crop_size: int = 96, patches_per_image: int = 100,
        seed: int = 0, cache: str | Path = "data/cache",
    ):  # fmt: skip
        self.crop_size, self.patches_per_image, self.seed = crop_size, patches_per_image, seed
        self.pairs, self.cache = read_list(list_file), Path(cache)
        if crop_size < SCALE or crop_size % SCALE:
            raise ValueError(f"crop_size must be a positive multiple of {SCALE}, got {crop_size}")
        for pair in self.pairs:
            if min(pair.width, pair.height) < crop_size:
                raise ValueError(
                    f"{pair.hr}: {pair.width} x {pair.height} pixels are too few for patches of "
                    f"{crop_size}; take a smaller crop_size, or leave it out of {list_file}, "
                    f"{_make_lists(list_file)} --crop-size {crop_size}"
                )
        self.lr_sizes = np.array([(p.height // SCALE, p.width // SCALE) for p in self.pairs])
        lr_pixels = self.lr_sizes.prod(axis=1)
        self.num_pixels = lr_pixels * (SCALE**2 + 1)  # of HR and LR together, per image
        hr_start = self.num_pixels.cumsum() - self.num_pixels
        self.starts = {SCALE: hr_start, 1: hr_start + lr_pixels * SCALE**2}  # where in `pixels`

    def __len__(self) -> int:
        return self.patches_per_image * len(self.pairs)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.plan(0)[[i]]
        lr, hr = (self.patches(plan, self.pixels, scale) for scale in (1, SCALE))
        return lr[0], hr[0]

    @cached_property
    def store(self) -> tuple[torch.Tensor, str]:
        return open_store(self.cache, self.pairs, (3 * self.num_pixels).tolist(), read_pair)

    @property
    def pixels(self) -> torch.Tensor:
        """All pixels, uint8 (number of pixels, 3): HR then LR, row by row, image after image."""
        return self.store[0].view(-1, 3)

    @property
    def checksum(self) -> str:
        """Identifies the images by their pixels, not by paths or dates: 16 hexadecimal digits."""
        return self.store[1]

    def plan(self, epoch: int) -> np.ndarray:
        """The patches of an epoch (0, 1, ...): int64, a row (image, top, left, flip) for each.

        top and left are LR pixels. flip is 0 to 7: bit 0 mirrors left-right, bit 1 top-bottom, then
        bit 2 transposes. All positions and flips are equally likely. An epoch consists of rounds;
        each visits every image once, in random order. The plan depends on the list, the seed and
        the epoch only, so neither processes nor interruptions change what is trained on.
        """
        random = np.random.Generator(np.random.Philox([self.seed, epoch]))
        n, crop = len(self.pairs), self.crop_size // SCALE
        image = np.concatenate([random.permutation(n) for _ in range(self.patches_per_image)])
        top, left = random.integers(0, self.lr_sizes[image] - crop, endpoint=True).T
        return np.stack([image, top, left, random.integers(0, 8, len(image))], axis=1)

    def patches(self, plan: np.ndarray, pixels: torch.Tensor, scale: int) -> torch.Tensor:
        """Cut N rows of a plan out of `pixels`, on their device: LR patches (scale 1) or HR (4).

        Returns float32 RGB in [0, 1], (N, 3, side, side), channels last in memory.
        """
        image, top, left, flip = plan.T
        side = self.crop_size // SCALE * scale
        width = self.lr_sizes[image, 1] * scale
        start = self.starts[scale][image] + top * scale * width + left * scale
        # Row i of `runs` is the run of `side` pixels from pixel i on: a view that copies nothing. A
        # patch is `side` of these rows, a whole image row apart.
        runs = pixels.as_strided((len(pixels) - side + 1, 3 * side), (3, 1))
        rows = torch.from_numpy((start[:, None] + width[:, None] * np.arange(side)).ravel())
        rows = rows.to(pixels.device, non_blocking=True)  # the CPU waits for no GPU
        patches = runs.index_select(0, rows).view(-1, side, side, 3)
        flipped = []
        for patch, bits in zip(patches, flip.tolist(), strict=True):
            axes = [axis for axis, bit in ((1, 1), (0, 2)) if bits & bit]
            patch = patch.flip(axes) if axes else patch
            flipped.append(patch.transpose(0, 1) if bits & 4 else patch)
        return torch.stack(flipped).permute(0, 3, 1, 2) / 255


class PatchLoader:
    """The batches of an epoch: `for lr, hr in loader.epoch(epoch)`; `len(loader)` is their number.

    batch_size counts over all processes, and world_size must divide it: process `rank` gets every
    world_size-th patch of each batch, so that together they train on what one process would. Every
    process gets equally many patches; the last batch of an epoch may be smaller.
    """

    def __init__(
        self, dataset: PatchDataset, batch_size: int, *, device: str | torch.device = "cpu",
        rank: int = 0, world_size: int = 1,
    ):  # fmt: skip
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size must be a multiple of {world_size}, got {batch_size}")
        self.dataset, self.batch_size, self.device = dataset, batch_size, torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.num_patches = len(dataset) // world_size * world_size

    def __len__(self) -> int:
        return ceil(self.num_patches / self.batch_size)

    @cached_property
    def pixels(self) -> torch.Tensor:
        """The dataset's pixels: in the GPU's memory if there is room, else where they are."""
        pixels = self.dataset.pixels
        if self.device.type != "cuda":
            return pixels
        size, (free, _) = pixels.numel(), torch.cuda.mem_get_info(self.device)
        fits = size + SPARE_GPU_MEMORY <= free
        way = "they are kept there" if fits else "patches are cut on the CPU"
        print(f"The images take {size / 1e9:.2f} GB, {self.device} has {free / 1e9:.1f} GB: {way}.")
        return pixels.to(self.device) if fits else pixels

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of an epoch (0, 1, ...) from batch `start` on, on the device.

        Each is (lr, hr), float32 RGB in [0, 1], (N, 3, c/4, c/4) and (N, 3, c, c).
        """
        plan = self.dataset.plan(epoch)
        for first in range(start * self.batch_size, self.num_patches, self.batch_size):
            last = min(first + self.batch_size, self.num_patches)
            mine = plan[first + self.rank : last : self.world_size]
            lr, hr = (self.dataset.patches(mine, self.pixels, scale) for scale in (1, SCALE))
            place = dict(device=self.device, memory_format=memory_format(self.device))
            yield lr.to(**place), hr.to(**place)
