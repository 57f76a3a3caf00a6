"""From a CSV list to (LR, HR): random patches to train on, whole pairs to test on. Makes no lists, trains nothing.

An epoch is 100 patches of every image of the list. Which ones, an `epoch_plan` says before the epoch begins: it depends
on the image sizes, the crop size, the seed and the epoch, so neither workers nor processes nor an interruption change
what is trained on. Every image is decoded once, into a memory-mapped store under data/cache; a GPU with room for the
pixels keeps them in its memory.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils import read_image

COLUMNS = ["hr", "lr", "width", "height"]
MAKE_LISTS = "python create_data_lists.py"
SPARE_DISK = 256 * 2**20  # bytes left free beside the store
SPARE_DEVICE_MEMORY = (
    4 * 2**30
)  # bytes left on the GPU for networks and activations: enough for the paper's batches


# ---------------------------------------------------------------------------------------------------------------------
# Lists


class Pair(NamedTuple):
    """One line of a list: two paths, relative to the current directory, and the size of the HR image in pixels."""

    hr: str
    lr: str
    width: int
    height: int

    @property
    def name(self):
        return Path(self.hr).stem.removesuffix("_HR")


def read_list(list_file):
    """The pairs of a CSV list, in its order.

    Raises FileNotFoundError for a list, or an image in it, that is not there; ValueError for an empty or malformed
    list.
    """
    list_file = Path(list_file)
    if not list_file.is_file():
        raise FileNotFoundError(
            f"{list_file}: no such list (current folder: {Path.cwd()}); make it: {MAKE_LISTS}"
        )
    with open(
        list_file, newline="", encoding="utf-8-sig"
    ) as file:  # -sig: spreadsheets put a byte order mark in front
        reader = csv.DictReader(file)
        if sorted(reader.fieldnames or []) != sorted(COLUMNS):
            raise ValueError(
                f"{list_file}: has the columns {reader.fieldnames}, expected {COLUMNS}; make it anew: {MAKE_LISTS}"
            )
        pairs = []
        for row in reader:
            try:
                if not (row["hr"] and row["lr"]) or None in row:
                    raise ValueError
                pairs.append(Pair(row["hr"], row["lr"], int(row["width"]), int(row["height"])))
            except (TypeError, ValueError):
                raise ValueError(
                    f"{list_file}, line {reader.line_num}: expected two paths and two whole numbers, got "
                    f"{list(row.values())}; make the list anew: {MAKE_LISTS}"
                ) from None
    if not pairs:
        raise ValueError(f"{list_file}: lists no images; make it anew: {MAKE_LISTS}")
    for path in (path for pair in pairs for path in (pair.hr, pair.lr)):
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path}: no such file, though {list_file} lists it (current folder: {Path.cwd()}; paths are relative to "
                f"the folder that the list was made in); make the list anew: {MAKE_LISTS}"
            )
    return pairs


def read_pair(pair, scale=4):
    """(lr, hr) of a list's line as uint8 RGB, (h, w, 3) and (scale h, scale w, 3): HR is cut at its bottom and right.

    Raises ValueError where a file has another size than the list says, else what `read_image` raises.
    """
    hr, lr = read_image(pair.hr), read_image(pair.lr)
    height, width = pair.height // scale, pair.width // scale
    for path, image, size in (
        (pair.hr, hr, (pair.height, pair.width)),
        (pair.lr, lr, (height, width)),
    ):
        if image.shape[:2] != size:
            raise ValueError(
                f"{path}: has {image.shape[1]} x {image.shape[0]} pixels, its list says {size[1]} x {size[0]}; "
                f"if the file was changed, make the lists anew: {MAKE_LISTS}"
            )
    return lr, hr[: height * scale, : width * scale]


class PairDataset(Dataset):
    """Whole images to validate and test on: item i is (name, lr, hr), uint8 RGB, (h, w, 3) and (4h, 4w, 3).

    Raises what `read_list` and `read_pair` raise.
    """

    def __init__(self, list_file, *, scale=4):
        self.list_file, self.scale = Path(list_file), scale
        self.pairs = read_list(list_file)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        pair = self.pairs[i]
        return (pair.name, *read_pair(pair, self.scale))


# ---------------------------------------------------------------------------------------------------------------------
# Plan: which patches make an epoch


class Plan(NamedTuple):
    """The patches of one epoch in their order: four int64 arrays of equal length."""

    image: np.ndarray  # index into the list
    top: np.ndarray  # position in the LR image; in the HR image it is scale times that
    left: np.ndarray
    flip: np.ndarray  # 0 to 7: bit 0 mirrors left-right, bit 1 top-bottom, then bit 2 transposes


def epoch_plan(sizes, crop, patches_per_image, seed, epoch, distinct):
    """Draw the patches of an epoch: `patches_per_image` of every image, all positions and orientations equally likely.

    sizes: (n, 2), height and width of the LR images; crop: side of a patch in LR pixels. An epoch consists of rounds,
    each of which visits every image once, in random order; `distinct` patches in a row, across rounds too, show as many
    images.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    n = len(sizes)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    image = _rounds(random, n, patches_per_image, min(distinct, n))
    top, left = random.integers(
        0, sizes[image] - crop + 1
    ).T  # the last row and column are reached, too
    return Plan(image, top, left, random.integers(0, 8, len(image)))


def _rounds(random, n, rounds, distinct):
    """`rounds` random orders of n images, one after the other; an image comes again `distinct` places later or more.

    So the images of one round enter, one after the other, the pool from which the next round's order is drawn. The
    pool's size does not depend on what was drawn before: all allowed orders are equally likely.
    """
    waiting = n - distinct + 1  # size of the pool at a round's start
    pool_sizes = np.minimum(waiting, n - np.arange(n))
    draws = random.integers(0, pool_sizes, (rounds - 1, n)).tolist()
    order = random.permutation(n).tolist()
    image = order.copy()
    for round_draws in draws:
        pool, entering, order = order[:waiting], iter(order[waiting:]), []
        for draw in round_draws:
            order.append(pool[draw])
            last = pool.pop()
            newcomer = next(entering, None)
            if draw < len(pool):
                pool[draw] = last
            if newcomer is not None:
                pool.append(newcomer)
        image += order
    return np.array(image, dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Store: every image decoded once


def open_store(pairs, scale=4, folder="data/cache"):
    """Path of the file with the pixels of all pairs, HR then LR, image after image, as uint8; decodes them if need be.

    The file lies in a folder named by what was decoded (each file's path, size and time of change), so it is never
    stale, and gets its name when it is whole. Stopped at any moment, the next call goes on from the images already
    there. Several processes may call this at once: one decodes, the others wait. Raises OSError where the disk is too
    full, and what `read_pair` raises.
    """
    store = Path(folder) / _store_key(pairs, scale)
    pixels = store / "pixels.bin"
    size = int(_offsets(pairs, scale)[-1])
    if pixels.is_file() and pixels.stat().st_size == size:
        return pixels
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(store / "lock"):
        if not (pixels.is_file() and pixels.stat().st_size == size):
            _decode_all(pairs, scale, store, pixels)
    return pixels


def _store_key(pairs, scale):
    files = [(path, os.stat(path)) for pair in pairs for path in (pair.hr, pair.lr)]
    content = [
        "1",
        scale,
        pairs,
        [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files],
    ]  # "1": layout
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _offsets(pairs, scale):
    """(2n + 1,) int64: where HR and LR of each pair begin in the store, and, last, its size in bytes."""
    lr_pixels = np.array(
        [(pair.height // scale) * (pair.width // scale) for pair in pairs], dtype=np.int64
    )
    sizes = np.stack([lr_pixels * scale**2 * 3, lr_pixels * 3], axis=1).ravel()
    return np.concatenate([[0], np.cumsum(sizes)])


def _decode_all(pairs, scale, store, pixels):
    """Fill the store: pixels go into a partial file; the journal lists the images that are there, with their CRC-32."""
    offsets = _offsets(pairs, scale)
    size = int(offsets[-1])
    partial, journal = store / "pixels.partial", store / "journal.txt"
    done = _verified(partial, journal, offsets)
    missing = int(
        sum(offsets[2 * i + 2] - offsets[2 * i] for i in range(len(pairs)) if i not in done)
    )
    free = shutil.disk_usage(store).free
    print(
        f"Decoding {len(pairs)} images once into {store.as_posix()}: {size / 1e9:.2f} GB, of which {missing / 1e9:.2f} to "
        f"go, {free / 1e9:.1f} GB free. Folders in {store.parent.as_posix()} that are not in use may be deleted."
    )
    if missing + SPARE_DISK > free:
        raise OSError(
            f"{store}: the decoded images need {missing / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB left; delete "
            f"old folders in {store.parent}, free some space, or pass cache=False (slower: decodes for every patch)"
        )

    def decode(i):
        lr, hr = read_pair(pairs[i], scale)
        block = np.concatenate([hr.ravel(), lr.ravel()])
        with open(partial, "r+b") as file:
            file.seek(offsets[2 * i])
            file.write(block)
        return i, zlib.crc32(block)

    with open(partial, "ab") as file:
        file.truncate(size)  # at its full size from the start: each image has its place
    with (
        open(journal, "w") as log,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):  # Pillow decodes outside Python's lock
        log.writelines(f"{i} {crc:08x}\n" for i, crc in done.items())
        tasks = [pool.submit(decode, i) for i in range(len(pairs)) if i not in done]
        try:
            for task in tqdm(
                as_completed(tasks), "decode", len(pairs), initial=len(done), unit="image"
            ):
                i, crc = task.result()
                log.write(f"{i} {crc:08x}\n")
                log.flush()
        finally:
            pool.shutdown(
                cancel_futures=True
            )  # an error or Ctrl-C does not wait for hundreds of images
    with open(partial, "r+b") as file:
        os.fsync(file.fileno())
    journal.unlink()
    os.replace(partial, pixels)


def _verified(partial, journal, offsets):
    """{index: CRC-32} of the images that an interrupted run finished: in the journal, and with those very bytes."""
    if not (partial.is_file() and journal.is_file()):
        return {}
    done = {}
    with open(partial, "rb") as file:
        for line in re.findall(r"^(\d+) ([0-9a-f]{8})\n", journal.read_text(), re.MULTILINE):
            i, crc = int(line[0]), int(line[1], 16)
            if 2 * i + 2 < len(offsets):
                file.seek(offsets[2 * i])
                if zlib.crc32(file.read(int(offsets[2 * i + 2] - offsets[2 * i]))) == crc:
                    done[i] = crc
    return done


# ---------------------------------------------------------------------------------------------------------------------
# Patches to train on


class PatchDataset(Dataset):
    """Random patches: `patches_per_image` of every image of the list an epoch, as float32 RGB in [0, 1].

    `dataset[i]` is patch i of the current epoch: (lr, hr), of shape (3, c/4, c/4) and (3, c, c) for crop_size c.
    `set_epoch` draws other patches; `crop_size` may be changed before it. cache: True decodes every image once into
    data/cache (a path: into that folder), False decodes the files anew for every patch. Raises ValueError for images
    smaller than the crop, and what `read_list` and `open_store` raise.

    `PatchLoader` makes batches of it; so does a DataLoader with `collate_fn=lambda batch: batch`. A DataLoader's
    workers keep the epoch that they were started in, so make a new DataLoader after `set_epoch`.
    """

    def __init__(
        self, list_file, *, crop_size=96, scale=4, patches_per_image=100, seed=0, cache=True
    ):
        self.list_file = Path(list_file)
        self.scale, self.patches_per_image, self.seed = scale, patches_per_image, seed
        self.crop_size = crop_size
        self.batch_size = 0  # set by PatchLoader, see set_epoch
        self.pairs = read_list(list_file)
        self.lr_sizes = np.array(
            [(pair.height // scale, pair.width // scale) for pair in self.pairs]
        )
        self.offsets = _offsets(self.pairs, scale)
        self.set_epoch(0)  # a crop that does not fit is told before the images are decoded
        self.store = (
            open_store(self.pairs, scale, "data/cache" if cache is True else cache)
            if cache
            else None
        )
        self._pixels = None

    def set_epoch(self, epoch):
        """Draw the patches of this epoch (0, 1, ...), at the present `crop_size`."""
        if self.crop_size < self.scale or self.crop_size % self.scale:
            raise ValueError(
                f"crop_size must be a positive multiple of {self.scale}, got {self.crop_size}"
            )
        crop = self.crop_size // self.scale
        too_small = self.lr_sizes.min(axis=1) < crop
        if too_small.any():
            pair = self.pairs[too_small.argmax()]
            raise ValueError(
                f"{pair.hr}: {pair.width} x {pair.height} pixels are too few for patches of {self.crop_size}; take a "
                f"smaller crop_size, or leave the image out of {self.list_file}"
            )
        # A batch holds distinct images (the paper, section 3.2). n / 2 in a row leave the order of a round random
        # enough, 64 cover the usual batches of a small list; a PatchLoader with larger batches than that asks for more.
        n = len(self.pairs)
        distinct = max(1, n // 2, min(n - 1, 64), self.batch_size if self.batch_size < n else 0)
        self.epoch = epoch
        self.plan = epoch_plan(
            self.lr_sizes, crop, self.patches_per_image, self.seed, epoch, distinct
        )

    def __len__(self):
        return self.patches_per_image * len(self.pairs)

    def __getitem__(self, i):
        lr, hr = self.__getitems__([i])
        return lr[0], hr[0]

    def __getitems__(self, indices):
        """A batch: (lr, hr), float32 in [0, 1], (N, 3, c/4, c/4) and (N, 3, c, c), channels last in memory."""
        return tuple(to_float(images) for images in self.patches(indices))

    def patches(self, indices):
        """The same batch as it is stored: (lr, hr), uint8, (N, c/4, c/4, 3) and (N, c, c, 3)."""
        c, s = self.crop_size // self.scale, self.scale
        lr, hr = np.empty((len(indices), c, c), "V3"), np.empty((len(indices), c * s, c * s), "V3")
        for k, i in enumerate(indices):
            image, top, left, flip = (int(column[i]) for column in self.plan)
            lr_image, hr_image = self.image_pair(image)
            for batch, source, scale in ((lr, lr_image, 1), (hr, hr_image, s)):
                y, x, side = top * scale, left * scale, c * scale
                # A pixel as one item of three bytes: mirrored and transposed patches are copied twice as fast.
                patch = source.view("V3")[y : y + side, x : x + side, 0]
                patch = patch[:, ::-1] if flip & 1 else patch
                patch = patch[::-1] if flip & 2 else patch
                batch[k] = patch.T if flip & 4 else patch
        return tuple(
            torch.from_numpy(batch.view(np.uint8).reshape(*batch.shape, 3)) for batch in (lr, hr)
        )

    def image_pair(self, image):
        """(lr, hr) of one image, uint8 (h, w, 3) and (scale h, scale w, 3): views of the store where there is one."""
        if self.store is None:
            return tuple(
                np.ascontiguousarray(array) for array in read_pair(self.pairs[image], self.scale)
            )
        if (
            self._pixels is None
        ):  # opened where it is used: each process maps the file, nothing is copied
            self._pixels = np.memmap(self.store, dtype=np.uint8, mode="r")
        (h, w), (hr, lr, end) = (
            self.lr_sizes[image].tolist(),
            self.offsets[2 * image : 2 * image + 3].tolist(),
        )
        return self._pixels[lr:end].reshape(h, w, 3), self._pixels[hr:lr].reshape(
            h * self.scale, w * self.scale, 3
        )

    def __getstate__(self):
        return {
            **self.__dict__,
            "_pixels": None,
        }  # pickled for a worker: the path of the pixels, never the pixels


def to_float(images):
    """uint8 (N, H, W, 3) -> float32 in [0, 1], (N, 3, H, W), channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


class _AsStored(Dataset):
    """The patches of a dataset as uint8: a quarter of the bytes to carry from a worker and to the GPU."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitems__(self, indices):
        return self.dataset.patches(indices)


def _same(batch):
    return batch


class PatchLoader:
    """The batches of an epoch on a device, from any batch on: `for lr, hr in loader.epoch(epoch, start=0)`.

    batch_size counts over all processes: process `rank` of `world_size` gets every world_size-th patch of each batch,
    so that together they train on what one process would. The last batch of an epoch may be smaller. resident: True
    keeps all pixels in the memory of the device and cuts whole batches there, without workers; "auto" does so on a GPU
    where they fit. Either way the batches are the same. Raises ValueError for a batch_size that world_size does not
    divide.
    """

    def __init__(
        self,
        dataset,
        batch_size,
        *,
        device="cpu",
        num_workers=0,
        rank=0,
        world_size=1,
        resident="auto",
    ):
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size must be a positive multiple of the {world_size} processes, got {batch_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        dataset.batch_size = batch_size
        self._pixels = None
        if self._fits() if resident == "auto" else resident:
            self._pixels = self._upload()

    def __len__(self):
        """Batches of an epoch."""
        return ceil(self._num_patches() / self.batch_size)

    def _num_patches(self):
        return (
            len(self.dataset) // self.world_size * self.world_size
        )  # every process has equally many

    def epoch(self, epoch, start=0):
        """Iterate over the batches of an epoch (0, 1, ...) from batch `start` on.

        Each is (lr, hr), float32 in [0, 1] on the device, (N, 3, c/4, c/4) and (N, 3, c, c), channels last in memory.
        """
        self.dataset.set_epoch(epoch)
        first = start * self.batch_size
        mine = np.arange(first + self.rank, max(first, self._num_patches()), self.world_size)
        share = self.batch_size // self.world_size
        batches = [mine[k : k + share] for k in range(0, len(mine), share)]
        return (
            self._resident_batches(batches)
            if self._pixels is not None
            else self._loaded_batches(batches)
        )

    def _loaded_batches(self, batches):
        cuda = self.device.type == "cuda"
        loader = DataLoader(
            _AsStored(self.dataset),
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=_same,
            pin_memory=cuda,
        )
        for batch in loader:
            yield tuple(to_float(images.to(self.device, non_blocking=cuda)) for images in batch)

    # The resident way finds the pixels of a patch by arithmetic. Mirroring and transposing it only change where its
    # first pixel lies and how far off the next ones to the right and below are: a patch is three numbers, a batch one
    # gather.

    def _fits(self):
        if self.device.type != "cuda":
            return False
        size, (free, _) = int(self.dataset.offsets[-1]), torch.cuda.mem_get_info(self.device)
        fits = size + SPARE_DEVICE_MEMORY <= free
        print(
            f"The images take {size / 1e9:.2f} GB and {self.device} has {free / 1e9:.1f} GB free: "
            + (
                "they are kept there."
                if fits
                else f"they are loaded from the store, with {self.num_workers} workers."
            )
        )
        return fits

    def _upload(self):
        """All pixels on the device, (number of pixels, 3) uint8."""
        pixels = torch.empty(int(self.dataset.offsets[-1]), dtype=torch.uint8, device=self.device)
        for image in range(len(self.dataset.pairs)):
            hr_offset, lr_offset, end = self.dataset.offsets[2 * image : 2 * image + 3].tolist()
            lr, hr = self.dataset.image_pair(image)
            pixels[hr_offset:lr_offset] = torch.tensor(hr.ravel())
            pixels[lr_offset:end] = torch.tensor(lr.ravel())
        return pixels.view(-1, 3)

    def _resident_batches(self, batches):
        dataset = self.dataset
        image, top, left, flip = dataset.plan
        chosen = np.concatenate(batches) if batches else np.empty(0, np.int64)
        sources = []
        for scale, first in ((1, 1), (dataset.scale, 0)):  # LR lies behind its HR in the store
            side = dataset.crop_size // dataset.scale * scale
            width = dataset.lr_sizes[image, 1] * scale
            start = dataset.offsets[first::2][image] // 3 + top * scale * width + left * scale
            mirror, upside_down, transpose = flip & 1 > 0, flip & 2 > 0, flip & 4 > 0
            start += mirror * (side - 1) + upside_down * (side - 1) * width
            right, down = np.where(mirror, -1, 1), np.where(upside_down, -width, width)
            right, down = np.where(transpose, down, right), np.where(transpose, right, down)
            # Uploaded once an epoch: nothing in the loop below waits for the device. 32 bits halve its arithmetic.
            dtype = torch.int32 if len(self._pixels) < 2**31 else torch.int64
            table = torch.from_numpy(np.stack([start, down, right])[:, chosen]).to(
                self.device, dtype
            )
            sources.append(
                (table[:, :, None, None], torch.arange(side, dtype=dtype, device=self.device))
            )
        end = 0
        for batch in batches:
            begin, end = end, end + len(batch)
            yield tuple(self._gather(*table[:, begin:end], steps) for table, steps in sources)

    def _gather(self, start, down, right, steps):
        index = start + down * steps[:, None] + right * steps  # (N, side, side)
        patches = self._pixels.index_select(0, index.flatten())
        return to_float(patches.view(*index.shape, 3))
