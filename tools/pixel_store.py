"""Every image of a list decoded once, in one file that is checked when it is opened. No patches."""

import hashlib
import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tools.locks import locked
from utils import progress_bar

SPARE_DISK = 256 * 2**20  # bytes left free beside the store


def open_store(
    cache: Path, pairs: Sequence, sizes: Sequence[int], read_pair: Callable
) -> tuple[torch.Tensor, str]:
    """The pixels of all pairs, uint8, HR then LR, `sizes[i]` bytes a pair; and their checksum.

    The pixels are a memory-mapped file in a folder of `cache`. Beside it, `checksums.txt` has a
    line for each pair that is decoded: its index and its CRC-32. A pair without a line, or with
    other pixels than its line says, is decoded again: a run that was killed goes on where it was,
    and damage on the disk is repaired. Several processes may call this at once: one decodes, the
    others wait. Raises OSError if the disk is too full, and what `read_pair` raises.
    """
    # The folder's name tells the files and their dates: its pixels are never out of date.
    stats = [os.stat(path) for pair in pairs for path in (pair.hr, pair.lr)]
    files = json.dumps([pairs, [(stat.st_size, stat.st_mtime_ns) for stat in stats]])
    folder = cache / hashlib.sha256(files.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    pixels, checksums = folder / "pixels.bin", folder / "checksums.txt"
    starts = np.cumsum([0, *sizes]).tolist()

    def ensure(i):
        with open(pixels, "r+b") as file:
            file.seek(starts[i])
            if i in done:
                if zlib.crc32(file.read(sizes[i])) == done[i]:
                    return done[i]
                warnings.warn(f"{pixels}: {pairs[i].hr} is damaged, decoding again", stacklevel=1)
                file.seek(starts[i])
            lr, hr = read_pair(pairs[i])
            block = np.concatenate([hr.ravel(), lr.ravel()])
            file.write(block)
        return zlib.crc32(block)

    # Threads: Pillow, zlib and the disk work while Python does something else.
    with (
        locked(folder / "lock", f"is decoding into {folder}"),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        checksums.touch()
        lines = re.findall(rb"^(\d+) ([0-9a-f]{8})$", checksums.read_bytes(), re.MULTILINE)
        done = {int(i): int(crc, 16) for i, crc in lines}
        missing = [size for i, size in enumerate(sizes) if i not in done]
        if missing:
            free = shutil.disk_usage(folder).free
            need = f"{sum(missing) / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left"
            print(f"Decoding {len(missing)} images once into {folder.as_posix()}: {need}.")
            if sum(missing) + SPARE_DISK > free:
                raise OSError(f"{folder}: {need}; delete folders in {cache} that are not in use")
        pixels.touch()
        with open(checksums, "a", buffering=1) as log:  # each line is written at once
            results = progress_bar(
                pool.map(ensure, range(len(pairs))), "images", len(pairs), delay=2
            )
            for i, crc in enumerate(results):
                if crc != done.get(i):
                    log.write(f"{i} {crc:08x}\n")
                    done[i] = crc
    crcs = [done[i] for i in range(len(pairs))]
    checksum = hashlib.sha256(str(crcs).encode()).hexdigest()[:16]
    # shared: a private mapping would need as much free memory as the file is large.
    return torch.from_file(str(pixels), True, starts[-1], dtype=torch.uint8), checksum
