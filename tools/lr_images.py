"""LR images made with imresize, which remember their HR image; and how far others are from that.

Knows one HR file and one LR file; which belong together is create_data_lists.py's.
"""

import os
import re
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imresize import imresize
from utils import SCALE, atomic_path, read_image

EXACT = 60.0  # dB: what `psnr_to_imresize` gives for equal images, instead of infinity
# A text in the PNG file itself, so that it is written, moved and lost together with the pixels.
RECORD = "imresize of the HR file with CRC-32 {:08x}, to pixels with CRC-32 {:08x}"


class CannotWriteError(Exception):
    """An LR image cannot be written: the folder's fault, not that of the HR image."""


def update_lr(hr: Path, lr: Path) -> bool:
    """Make `lr` from `hr` if it is absent, or again if it was made here from another file.

    "Another" goes by a CRC-32 of the HR file's bytes, whatever its name and date: equal bytes are
    equal pixels, and reading is much faster than decoding. An LR image that was not made here, or
    was changed since, stays. Returns whether `lr` is made here. Raises CannotWriteError, and what
    `read_image` raises.
    """
    made_from = _made_from(lr) if os.path.lexists(lr) else "nothing yet"
    if made_from is None:
        return False
    checksum = zlib.crc32(hr.read_bytes())
    if checksum != made_from:
        pixels = np.ascontiguousarray(imresize(_cut(read_image(hr)), 1 / SCALE))
        text = PngInfo()
        text.add_text("Source", RECORD.format(checksum, zlib.crc32(pixels)))
        try:
            with atomic_path(lr) as temporary:
                Image.fromarray(pixels).save(temporary, pnginfo=text)
        except OSError as error:
            raise CannotWriteError(
                f"{lr.parent}: LR images cannot be made there ({error})"
            ) from error
    return True


def is_made_here(lr: Path) -> bool:
    """Whether `update_lr` made this file and nobody changed its pixels since."""
    return _made_from(lr) is not None


def _made_from(lr):
    """CRC-32 of the HR file that an LR image was made from; None: not made here, or changed."""
    with suppress(Exception), Image.open(lr, formats=["PNG"]) as image:
        pattern = RECORD.replace("{:08x}", "([0-9a-f]{8})")
        if record := re.fullmatch(pattern, image.info.get("Source", "")):
            source, checksum = (int(digits, 16) for digits in record.groups())
            with suppress(OSError):
                return source if zlib.crc32(read_image(lr)) == checksum else None
            return -1  # made here and damaged since: to be made again
    return None


def psnr_to_imresize(hr: Path, lr: Path) -> float:
    """PSNR in dB of an LR file against imresize of its HR file, over R, G and B; at most EXACT.

    Of imresize's two borders (MATLAB's old and new) the one that is nearer counts. Raises what
    `read_image` raises.
    """
    large, small = _cut(read_image(hr)), read_image(lr).astype(np.float64)
    borders = "symmetric", "replicate"
    made = [imresize(large, 1 / SCALE, padding=border) for border in borders]
    error = min(np.mean((image - small) ** 2) for image in made)
    return min(EXACT, float(10 * np.log10(255**2 / error))) if error else EXACT


def _cut(hr):
    """HR without the rows and columns at the bottom and right that give no whole LR pixel."""
    return hr[: len(hr) // SCALE * SCALE, : hr.shape[1] // SCALE * SCALE]
