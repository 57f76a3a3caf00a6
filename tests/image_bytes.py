"""PNG and TIFF files by the book, of every depth and layout, with no image library."""

import struct
import zlib

import numpy as np

# Adam7 of https://www.w3.org/TR/png-3/: first row, first column, step down, step right.
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1)]  # fmt: skip


def pack_rows(values, bits, order=">"):
    """Each row of (H, W, C) as bytes: `bits` a value, the first value in the highest bits."""
    rows = values.reshape(len(values), -1)
    if bits in (8, 16):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    binary = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1)).tobytes() for row in binary]


def png(values, bits, colour_type, *chunks, interlaced=False):
    """A PNG file of `values`, (H, W, C); `chunks` are pairs (kind, data)."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width = values.shape[:2]
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    parts = [values[y::down, x::right] for y, x, down, right in passes]
    rows = [row for part in parts if part.size for row in pack_rows(part, bits)]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))  # filter type 0
    body = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body)


def tiff(values, bits, photometric, order="<", compression=1, planes=False, tags=()):
    """A TIFF file of `values`, (H, W, C), in one strip, or a strip a plane.

    photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette. compression: 1 none, 8 deflate,
    32773 PackBits. `tags` are triples (tag, type, list of values).
    """
    height, width, channels = values.shape
    parts = [values[..., [i]] for i in range(channels)] if planes else [values]
    strips = [b"".join(pack_rows(part, bits, order)) for part in parts]
    if compression == 8:
        strips = [zlib.compress(strip) for strip in strips]
    elif compression == 32773:  # runs of up to 128 bytes as they are
        runs = [[strip[i : i + 128] for i in range(0, len(strip), 128)] for strip in strips]
        strips = [b"".join(bytes([len(run) - 1]) + run for run in part) for part in runs]
    entries = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [compression]),
        262: (3, [photometric]), 277: (3, [channels]), 278: (4, [height]),
        279: (4, [len(strip) for strip in strips]), 284: (3, [2 if planes else 1]),
        273: (4, [0] * len(strips)), **{tag: (kind, content) for tag, kind, content in tags},
    }  # fmt: skip
    place = 8 + 2 + 12 * len(entries) + 4  # of what does not fit into the directory
    extras, directory = b"", b""
    data = {}
    for tag, (kind, content) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(content)}{ {3: 'H', 4: 'I'}[kind] }", *content)
        data[tag] = packed
    place_of_strips = place + sum(len(packed) for packed in data.values() if len(packed) > 4)
    starts = np.cumsum([place_of_strips, *map(len, strips[:-1])])
    data[273] = struct.pack(f"{order}{len(strips)}I", *starts)
    for tag, packed in data.items():
        kind, content = entries[tag]
        directory += struct.pack(f"{order}HHI", tag, kind, len(content))
        if len(packed) > 4:
            directory += struct.pack(f"{order}I", place + len(extras))
            extras += packed
        else:
            directory += packed.ljust(4, b"\0")
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    return header + directory + bytes(4) + extras + b"".join(strips)
