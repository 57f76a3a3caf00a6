"""Image files through Pillow: formats, modes, 16 bits, colour profiles, and PNG written in strips.

Knows Pillow's internals so that no other module has to; knows nothing of tensors or networks.
"""

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

# What Pillow may decode. Its other plug-ins are left out: some start programs (EPS: Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA")
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm",
    ".jp2", ".tga",
)  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag
CAUSES = {  # of errors while reading, beside damage
    UnidentifiedImageError: "not an image, or of a kind that is not read; save it as PNG or JPEG",
    PermissionError: "it may not be read; change its permissions",
    MemoryError: "not enough memory to decode it; cut it into parts or close other programs",
}


def open_image(path: str | Path) -> Image.Image:
    """Decode the file into a PIL image, turned upright by its EXIF orientation; CMYK becomes sRGB.

    Other modes and `info` (ICC profile, resolution) stay. Warns where 16 bits a channel are read
    as 8. Raises OSError or ValueError for what is missing, no image, damaged, animated, too large.
    """
    image, layout = _decode(path)
    _warn_of_lost_bits(path, image, layout)
    return image


def open_deep_image(path: str | Path) -> tuple[Image.Image, np.ndarray | None]:
    """As `open_image`, and of PNG and TIFF files with 16-bit colours also uint16 (H, W, 3 or 4).

    Pillow keeps the upper byte of each 16-bit number. Told the other byte order, it keeps the
    lower byte, so two decodings give both.
    """
    image, layout = _decode(path)
    mode, _, order = layout.partition(";16")
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    readable = mode == image.mode and mode in ("RGB", "RGBA") and order in swapped
    if not readable or "transparency" in image.info:
        _warn_of_lost_bits(path, image, layout)
        return image, None
    lower, _ = _decode(path, f"{mode};16{swapped[order]}")
    return image, (np.array(image).astype(np.uint16) << 8) | np.asarray(lower)


def _warn_of_lost_bits(path, image, layout):
    if ";16" in layout and image.mode[0] != "I":
        warnings.warn(f"{path}: 16 bits a channel are read as 8, Pillow's limit", stacklevel=3)


def _decode(path, read_as=None):
    """The upright image, and Pillow's name for the layout of the file's pixels (its "raw mode").

    "RGB;16B" are big-endian 16-bit colours. `read_as` is a layout to decode instead of the file's.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file (current folder: {Path.cwd()})")
    if not path.is_file():
        raise OSError(f"{path}: not a file, but a folder or device; name an image file")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            problem = _unsupported(image)
            if problem is None:
                layout = " ".join(sorted({_layout(tile) for tile in image.tile}))
                if read_as:
                    image.tile = [_with_layout(tile, read_as) for tile in image.tile]
                image.load()
                return prepare_image(image), layout
    except Image.DecompressionBombError as error:
        way_out = "cut it or raise PIL.Image.MAX_IMAGE_PIXELS (super_resolve.py --large)"
        raise ValueError(f"{path}: {error}; {way_out}") from error
    except Exception as error:  # damaged files raise nearly anything, even SyntaxError and KeyError
        damaged = f"damaged or incomplete ({error}); copy or download it again"
        raise OSError(f"{path}: {CAUSES.get(type(error), damaged)}") from error
    raise ValueError(f"{path}: {problem}")


def _unsupported(image):
    """Why an opened file cannot be read, and the way out; None if it can."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG, its previews come second
        return f"{frames} frames or pages, which is not supported; save the one you want as PNG"
    tags = image.tag_v2 if image.format == "TIFF" else {}
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    if planes and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8:  # Pillow reads noise
        return "colours of 16 bits in separate planes, which is not supported; save it as PNG"
    return None


def _layout(tile):
    """The raw mode of a Pillow tile: its first argument."""
    args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if tile.codec_name == "ppm":
        return f"{args[0]};16" if args[1] > 255 else args[0]
    return args[0] if args and isinstance(args[0], str) else ""


def _with_layout(tile, layout):
    args = (layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout
    return tile._replace(args=args)


def prepare_image(image: Image.Image) -> Image.Image:
    """Turn a PIL image upright by its EXIF orientation and convert CMYK to sRGB."""
    with suppress(Exception):  # viewers, too, show an image with unreadable EXIF data as it is
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode != "CMYK":
        return image
    if profile := image.info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, OSError):  # it is damaged, or not for CMYK
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            rgb = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            rgb.info = image.info | rgb.info  # keeps the resolution; the profile is now sRGB's
            return rgb
    rgb = image.convert("RGB")  # by Pillow's plain formula
    rgb.info.pop("icc_profile", None)  # it described CMYK
    return rgb


def sixteen_bit_array(image: Image.Image, name: str | Path = "image") -> np.ndarray:
    """A gray PIL image of mode I;16... or I as uint16 (H, W); ValueError for an unknown range."""
    values = np.array(image)
    if image.mode == "F" or (values.size and not 0 <= values.min() <= values.max() <= 65535):
        raise ValueError(f"{name}: 32-bit or floating-point of unknown range; save it as 16 bits")
    return values.astype(np.uint16)


def pil_to_array(image: Image.Image, name: str | Path = "image") -> tuple[np.ndarray, dict]:
    """A PIL image of any mode as an array, and its "icc_profile" and "dpi" where it has them.

    The array is uint8 or uint16, (H, W) for gray or (H, W, C): gray and alpha, RGB, RGBA. Raises
    ValueError for several frames and for an unknown range; `name` begins the message.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError(f"{name}: {image.n_frames} frames or pages; choose one with .copy()")
    image = prepare_image(image)
    if image.mode[0] in "IF":
        array = sixteen_bit_array(image, name)
    else:
        mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        if image.has_transparency_data:  # alpha, or a transparent colour or palette entry
            mode += "A"
        array = np.asarray(image if image.mode == mode else image.convert(mode))
    info = {}
    if image.info.get("icc_profile") and image.mode != "LAB":  # LAB's profile is not RGB's
        info["icc_profile"] = image.info["icc_profile"]
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):  # none, or nonsense
        dpi = tuple(float(value) for value in image.info["dpi"])
        if len(dpi) == 2 and all(0 < value < 1e6 for value in dpi):
            info["dpi"] = dpi
    return array, info


def write_png(
    path: Path, strips: Iterable, size: tuple, channels: int, dtype: np.dtype, info: dict
) -> None:
    """Write an image in strips (h, W, C), from top to bottom; Pillow would need all at once.

    `size` is (H, W) of the whole, `dtype` uint8 or uint16, `info` as from `pil_to_array`. The
    format: https://www.w3.org/TR/png-3/. Rows are stored minus the row above (filter type 2).
    """
    height, width = size
    bits = 8 * np.dtype(dtype).itemsize
    with open(path, "wb") as file:

        def chunk(kind, data):
            checksum = struct.pack(">I", zlib.crc32(kind + data))
            file.write(struct.pack(">I", len(data)) + kind + data + checksum)

        file.write(b"\x89PNG\r\n\x1a\n")
        colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
        if "icc_profile" in info:
            chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(info["icc_profile"]))
        if "dpi" in info:
            per_metre = [round(value / 0.0254) for value in info["dpi"]]
            chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
        packer = zlib.compressobj()
        above = np.zeros((1, width * channels * bits // 8), np.uint8)
        for strip in strips:
            for first in range(0, len(strip), 64):
                rows = strip[first : first + 64].astype(strip.dtype.newbyteorder(">"))
                rows = rows.view(np.uint8).reshape(len(rows), -1)
                filtered = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)
                np.subtract(rows, np.concatenate([above, rows[:-1]]), out=filtered[:, 1:])
                if data := packer.compress(filtered):
                    chunk(b"IDAT", data)
                above = rows[-1:]
        chunk(b"IDAT", packer.flush())
        chunk(b"IEND", b"")
