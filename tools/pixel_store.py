"""Images decoded once into one file, checked whenever it is opened. Knows nothing of patches."""

import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

SPARE_DISK = 256 * 2**20  # bytes left free beside the store


def open_store(
    folder: Path, names: Sequence[str], sizes: Sequence[int], decode: Callable[[int], np.ndarray]
) -> list[int]:
    """Check `folder/pixels.bin`, decode what it lacks, and return the CRC-32 of every image.

    The file holds decode(0), decode(1), ... one after the other, each `sizes[i]` bytes; `names`
    are for messages. Beside it, `checksums.txt` has a line for every image that is done: index and
    CRC-32. An image without a line, or with other pixels than its line says, is decoded again. So
    a run that was killed goes on where it was, and damage on the disk is repaired. Several
    processes may call this at once: one decodes, the others wait.

    Raises OSError if the disk is too full, and what `decode` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels, checksums = folder / "pixels.bin", folder / "checksums.txt"
    starts = np.cumsum([0, *sizes]).tolist()

    def ensure(i):
        with open(pixels, "r+b") as file:
            file.seek(starts[i])
            if i in done:
                if zlib.crc32(file.read(sizes[i])) == done[i]:
                    return done[i]
                warnings.warn(
                    f"{pixels}: {names[i]} is damaged there: decoding it again", stacklevel=1
                )
                file.seek(starts[i])
            block = decode(i)
            file.write(block)
        return zlib.crc32(block)

    # Threads: Pillow, zlib and the disk work while Python does something else.
    with FileLock(folder / "lock"), ThreadPoolExecutor(os.cpu_count()) as pool:
        checksums.touch()
        lines = re.findall(r"^(\d+) ([0-9a-f]{8})$", checksums.read_text(), re.MULTILINE)
        done = {int(i): int(crc, 16) for i, crc in lines}
        missing = [size for i, size in enumerate(sizes) if i not in done]
        if missing:
            _check_disk(folder, len(missing), sum(missing))
        pixels.touch()
        if pixels.stat().st_size != starts[-1]:
            os.truncate(pixels, starts[-1])  # the full size at once: every image has its place
        crcs = []
        with open(checksums, "a") as log:
            images = tqdm(pool.map(ensure, range(len(sizes))), "images", len(sizes), delay=2)
            for i, crc in enumerate(images):
                crcs.append(crc)
                if crc != done.get(i):
                    log.write(f"{i} {crc:08x}\n")
                    log.flush()
    return crcs


def _check_disk(folder, count, size):
    free = shutil.disk_usage(folder).free
    needs = f"{size / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB left"
    print(f"Decoding {count} images once into {folder.as_posix()}: {needs}.")
    if size + SPARE_DISK > free:
        raise OSError(
            f"{folder}: the decoded images need {needs}; delete folders in {folder.parent} that "
            "are not in use, or free some space elsewhere"
        )
