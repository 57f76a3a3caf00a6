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
) -> tuple[Path, list[int]]:
    """Check `folder/pixels.bin` and decode what it lacks: (its path, the CRC-32 of every image).

    The file holds decode(0), decode(1), ... one after the other: uint8 arrays of `sizes` bytes,
    called `names` in messages. `folder/checksums.txt` has a line for every image that is done: its
    index and its CRC-32. An image without a line, or with other pixels than its line says, is
    decoded again. So a run that was killed goes on where it was, and damage on the disk is
    repaired. Several processes may call this at once: one decodes, the others wait.

    Raises:
        OSError: the disk is too full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels, checksums = folder / "pixels.bin", folder / "checksums.txt"
    starts = np.cumsum([0, *sizes]).tolist()

    def checksum(i):
        with open(pixels, "rb") as file:
            file.seek(starts[i])
            return zlib.crc32(file.read(sizes[i]))

    def fill(i):
        block = decode(i)
        with open(pixels, "r+b") as file:
            file.seek(starts[i])
            file.write(block)
        return zlib.crc32(block)

    # Threads, because Pillow, zlib and the disk work while Python does something else.
    with FileLock(folder / "lock"), ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels.touch()
        if pixels.stat().st_size != starts[-1]:
            os.truncate(pixels, starts[-1])  # its full size from the start: every image has a place
        done = _read_checksums(checksums, len(sizes))
        found = tqdm(pool.map(checksum, done), "check", len(done), unit="image", delay=3)
        damaged = {i for i, crc in zip(done, found, strict=True) if crc != done[i]}
        for i in damaged:
            warnings.warn(
                f"{pixels}: the pixels of {names[i]} are damaged: decoding it again", stacklevel=2
            )
        missing = [i for i in range(len(sizes)) if i in damaged or i not in done]
        if missing:
            _check_space(folder, len(missing), sum(sizes[i] for i in missing))
            with open(checksums, "a") as lines:
                decoded = tqdm(pool.map(fill, missing), "decode", len(missing), unit="image")
                for i, crc in zip(missing, decoded, strict=True):
                    done[i] = crc
                    lines.write(f"{i} {crc:08x}\n")
                    lines.flush()
    return pixels, [done[i] for i in range(len(sizes))]


def _read_checksums(path, count):
    """{index: CRC-32}: the last line of each image; lines that are not whole are left out."""
    text = path.read_text() if path.exists() else ""
    lines = re.findall(r"^(\d+) ([0-9a-f]{8})$", text, re.MULTILINE)
    return {int(i): int(crc, 16) for i, crc in lines if int(i) < count}


def _check_space(folder, count, missing):
    free = shutil.disk_usage(folder).free
    print(
        f"Decoding {count} images once into {folder.as_posix()}: {missing / 1e9:.2f} GB, "
        f"{free / 1e9:.1f} GB free. Folders in {folder.parent.as_posix()} that are not in use "
        "may be deleted."
    )
    if missing + SPARE_DISK > free:
        raise OSError(
            f"{folder}: the decoded images need {missing / 1e9:.2f} GB and the disk has "
            f"{free / 1e9:.2f} GB left; delete old folders in {folder.parent}, or free some space"
        )
