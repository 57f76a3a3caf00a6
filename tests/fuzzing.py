"""Enlarge damaged pictures of every format: `python fuzzing.py FOLDER FIRST LAST`.

A process of its own, so that a crash of a decoder can be counted. Prints how many were read.
"""

import random
import struct
import sys
import warnings
import zlib
from pathlib import Path

from PIL import Image
from test_pictures import heic_files, lossy_files, other_files, png_files, tiff_files

from super_resolve import super_resolve_file

FAMILIES = png_files, tiff_files, lossy_files, other_files, heic_files


def mutate(content, choose):
    """A copy with some bytes changed, or a piece cut out, repeated or blanked."""
    content = bytearray(content)
    for _ in range(choose.choice((1, 1, 2, 8))):
        start = min(int(choose.expovariate(1 / 60)), len(content) - 1)  # headers come first
        start = start if choose.random() < 0.7 else choose.randrange(len(content))
        length = choose.choice((1, 2, 4, 30))
        kind = choose.random()
        if kind < 0.5:
            content[start] = choose.choice((0, 1, 127, 128, 255, choose.randrange(256)))
        elif kind < 0.7:
            content[start] ^= 1 << choose.randrange(8)
        elif kind < 0.8:
            content[start : start + length] = bytes(length)
        elif kind < 0.9:
            content[start : start + length] = b"" if len(content) > 40 else bytes(1)
        elif kind < 0.95:
            content[start:start] = content[start : start + length]
        else:
            del content[max(start, 1) :]
    return bytes(content)


def with_checksums(content):
    """The PNG file with right checksums, without which its decoders look no further."""
    place, content = 8, bytearray(content)
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[place + 4 : end]))
        place = end + 4
    return bytes(content)


def main(folder, first, last):
    """Enlarge the damaged files `first` to `last`; raises for what is handled wrongly."""
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = 10_000  # larger ones take long, and are refused
    families = [[file for file in family() if len(file[1]) < 5000] for family in FAMILIES]
    read = 0
    for seed in range(first, last):
        choose = random.Random(seed)
        name, content, _, _ = choose.choice(choose.choice(families))
        content = mutate(content, choose)
        if name.endswith(".png") and choose.random() < 0.8:
            content = with_checksums(content)
        path, out = folder / f"{seed}-{name}", folder / "out"
        path.write_bytes(content)
        try:
            super_resolve_file(None, path, out / "result.png", progress=False)
        except (OSError, ValueError) as error:
            assert str(error).startswith(f"{path}: "), f"{path}: {error!r}"
            assert not out.exists() or not any(out.iterdir()), f"{path}: something was left"
        else:
            assert [file.name for file in out.iterdir()] == ["result.png"], path
            assert (out / "result.png").read_bytes().endswith(b"IEND\xaeB`\x82"), path
            (out / "result.png").unlink()
            read += 1
        path.unlink()
    print(read)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
