"""Pictures from file to file through libvips: all bits and metadata, in strips, in little memory.

Pillow reads what libvips does not. Knows libvips so that no other module has to; knows nothing of
tensors or networks. Training needs neither this module nor pyvips.
"""

import functools
import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from tools.image_files import (
    IMAGE_FORMATS,
    ORIENTATION,
    UNKNOWN_RANGE,
    file_content,
    naming,
    open_image,
    pil_to_array,
)

LIBVIPS_FORMATS = ("Png", "Jpeg", "Webp", "Heif", "Tiff", "Nsgif", "Raw")
WRITERS = {  # suffix: libvips' options
    ".png": {"compression": 2, "filter": "up"},  # more takes twice the time for a few percent
    ".tif": {"compression": "deflate", "level": 2, "predictor": "horizontal"},
    ".jpg": {"Q": 95}, ".webp": {"Q": 95, "effort": 1}, ".avif": {"Q": 85, "effort": 1},
}  # fmt: skip
LARGEST = {".jpg": 65535, ".webp": 16383, ".avif": 65535}  # pixels a side
# Of a TIFF file's tags those that are EXIF data: description, camera, date, people, place.
TIFF_TEXTS = {270, 271, 272, 305, 306, 315, 33432, 34665, 34853}
FIELDS = {"icc_profile": "icc-profile-data", "exif": "exif-data", "xmp": "xmp-data"}
KINDS = ("b-w", "srgb", "grey16", "rgb16")  # of libvips' images: gray and RGB, 8 and 16 bits


@functools.cache
def _libvips():
    """The module pyvips, which training does not need, with the decoders named above only."""
    import pyvips

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    pyvips.cache_set_max(0)  # else files stay open, even deleted ones
    pyvips.operation_block_set("VipsForeignLoad", True)
    for name in LIBVIPS_FORMATS:
        pyvips.operation_block_set(f"VipsForeignLoad{name}", False)
    return pyvips


def count_pixels(path: str | Path) -> int:
    """Width times height of an image file, from its header; 0 if that needs decoding, or fails."""
    vips = _libvips()
    with suppress(vips.Error):
        image = vips.Image.new_from_file(str(path), access="sequential")
        return image.width * image.height
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its size: that is said where the file is read
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return image.width * image.height
    return 0


def read_picture(path: str | Path) -> tuple[np.ndarray, dict]:
    """Decode an image file, upright, as what `pil_to_array` returns, with all its bits.

    What libvips does not read, Pillow does. Raises OSError or ValueError as `open_image` does.
    """
    vips = _libvips()
    with naming(path):
        content = file_content(path)
        try:
            array, info = _decode(vips, content, path)
        except vips.Error:  # it is BMP, PPM, TGA, JPEG 2000, a phone's HEIC, a rare TIFF or damaged
            array, info = pil_to_array(open_image(path), path)
        if "icc_profile" not in info and (cicp := _colour_space(content)):
            info["cicp"] = cicp
        return array, info


def _decode(vips, content, path):
    image = vips.Image.new_from_buffer(content, "", access="sequential", fail_on="error")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > 2 * limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    fields = {name: image.get(name) for name in image.get_fields()}
    loader, chunks = fields["vips-loader"], _png_chunks(content)
    is_tiff = loader == "tiffload_buffer"  # whose own format is that of EXIF data
    tags, kinds = Image.Exif(), {}
    with suppress(Exception):  # what Pillow cannot read stays as it is
        tags.load(content if is_tiff else fields.get("exif-data", b""))
        kinds = dict(tags) if is_tiff else {}
        for tag in set(tags) - TIFF_TEXTS if is_tiff else {ORIENTATION} & set(tags):
            del tags[tag]
        # Without the thumbnail, which may lie on its side.
        fields["exif-data"] = tags.tobytes() if tags else None
    pages = 1 if loader == "heifload_buffer" else fields.get("n-pages", 1)
    if pages > 1 or b"acTL" in chunks:  # an animated PNG
        raise ValueError(f"{path}: several frames or pages; save the one you want as PNG")
    if image.format not in ("uchar", "ushort"):
        raise ValueError(f"{path}: {UNKNOWN_RANGE}")

    info = {name: fields[key] for name, key in FIELDS.items() if fields.get(key)}
    stored = "resolution-unit" in fields or b"pHYs" in chunks  # else it is libvips' own
    if stored and min(image.xres, image.yres) > 0:
        info["dpi"] = image.xres * 25.4, image.yres * 25.4
    if "xmp" in info:
        info["xmp"] = re.sub(rb"(tiff:Orientation(=.|>))[2-8]", rb"\g<1>1", info["xmp"])

    image = image.copy_memory().autorot()
    if image.interpretation == "cmyk":
        cmyk = image[:4].cast("uchar", shift=True)
        cmyk = Image.frombytes("CMYK", (cmyk.width, cmyk.height), cmyk.write_to_memory())
        cmyk.info = info
        return pil_to_array(cmyk, path)
    if kinds.get(TiffImagePlugin.EXTRASAMPLES) == 0:  # of unknown meaning, not alpha
        image = image[: image.bands - 1]
    colours = image.bands - (image.bands in (2, 4))  # the rest is alpha
    # libvips takes YCbCr for RGB, and gray and alpha in separate planes for interleaved.
    misread = kinds.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 6
    misread |= kinds.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and image.bands == 2
    if colours > 3 or misread or image.interpretation not in KINDS:
        raise vips.Error(f"{image.bands} channels of {image.interpretation}")
    bits = fields.get("bits-per-sample", 16)
    if image.format == "ushort" and bits < 16:  # AVIF's 10 or 12 are the upper ones
        image = (image * (65535 / (65536 - 2 ** (16 - bits)))).rint().cast("ushort")
    array = image.numpy()
    if b"gAMA" in chunks and not {b"iCCP", b"sRGB", b"cICP"} & set(chunks):
        gamma = int.from_bytes(chunks[b"gAMA"], "big") / 100000 * 2.2  # 1 is that of sRGB
        top = np.iinfo(array.dtype).max
        if gamma > 0 and abs(gamma - 1) > 0.05:
            levels = np.round((np.arange(top + 1) / top) ** (1 / gamma) * top)
            array = array.reshape(*array.shape[:2], -1).copy()
            array[..., :colours] = levels[array[..., :colours]]
    return array, info


def _png_chunks(content):
    """{kind: data} of the chunks before a PNG's pixels; the format: https://www.w3.org/TR/png-3/"""
    chunks, file, kind = {}, io.BytesIO(content), None
    if file.read(8) == b"\x89PNG\r\n\x1a\n":
        while kind not in (b"IDAT", b""):
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            chunks[kind] = file.read(length)
            file.read(4)  # the checksum
    return chunks


def _colour_space(content):
    """The numbers of ITU-T H.273 by which a PNG, AVIF or HEIC file marks HDR or wide colours."""
    cicp = _png_chunks(content).get(b"cICP", b"")
    place = content.find(b"colrnclx") if content[4:8] == b"ftyp" else -1
    if place > 0:  # two bytes each: primaries, transfer function
        cicp = bytes([content[place + 9], content[place + 11], 0, 1])
    wide = len(cicp) == 4 and (cicp[0] in (9, 12) or cicp[1] in (16, 18))  # BT.2020, P3; PQ, HLG
    return cicp if wide else None


def write_picture(
    path: str | Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    info: dict,
    quality: int | None = None,
) -> None:
    """Write an image that comes in strips (h, W, C), from top to bottom, in the suffix's format.

    `shape` is (H, W, C) of the whole, `dtype` uint8 or uint16, `info` as from `read_picture`. The
    strips wait uncompressed in a file beside `path`. `quality` is 1 to 100 for JPEG, WebP and AVIF;
    PNG and TIFF lose nothing. Warns of what the format cannot hold. Raises ValueError for another
    suffix or quality and for too large an image, OSError for what cannot be written.
    """
    try:
        store_picture(path, strips, shape, dtype, info, quality)(path)
    finally:
        with suppress(OSError):
            Path(path).with_suffix(".raw").unlink()


def store_picture(
    path: str | Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    info: dict,
    quality: int | None = None,
) -> Callable[[str | Path], None]:
    """The first half of `write_picture`: store the strips in a file, `path` with the suffix .raw.

    Returns the second half, which another thread may call with the path of the image: it encodes
    them. The caller deletes the file. Raises ValueError and OSError as `write_picture` does.
    """
    vips, path, (height, width, channels) = _libvips(), Path(path), shape
    deep, suffix = dtype == np.uint16, path.suffix.lower()
    suffix = {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)
    if suffix not in WRITERS:
        accepted = "accepted are .png, .jpg, .webp, .avif and .tif"
        raise ValueError(f"images are not written as '{path.suffix}'; {accepted}")
    options, largest = dict(WRITERS[suffix]), LARGEST.get(suffix, 2**31)
    if max(shape) > largest:
        raise ValueError(f"{suffix} holds {largest} pixels a side, not {max(shape)}; choose .png")
    if quality is not None:
        if "Q" not in options or not 1 <= quality <= 100:
            accepted = "it is 1 to 100, for .jpg, .webp and .avif"
            raise ValueError(f"quality is {quality} for {suffix}; {accepted}")
        options["Q"] = quality
    if suffix == ".tif":
        options["bigtiff"] = math.prod(shape) * np.dtype(dtype).itemsize > 2**31
    lost = {
        "transparency (it is laid on white)": suffix == ".jpg" and channels in (2, 4),
        "16 bits": deep and suffix in (".jpg", ".webp"),
        "EXIF data": "exif" in info and suffix == ".tif",
        "HDR or wide colours": "cicp" in info and suffix != ".png",
    }
    if any(lost.values()):
        names = ", ".join(name for name, applies in lost.items() if applies)
        warnings.warn(f"{suffix} does not keep {names}; .png does", stacklevel=2)
    raw = path.with_suffix(".raw")
    with open(raw, "wb") as file:
        file.writelines(strips)
    kind = KINDS[2 * deep + (channels > 2)]
    form = {"format": "ushort" if deep else "uchar", "interpretation": kind}

    def encode(path):
        try:
            image = vips.Image.rawload(str(raw), width, height, channels, **form)
            x, y = info.get("dpi", (72, 72))
            image = image.copy(xres=x / 25.4, yres=y / 25.4)
            for name in FIELDS.keys() & info.keys():
                image.set_type(vips.GValue.blob_type, FIELDS[name], info[name])
            image.set_type(vips.GValue.gint_type, "orientation", 1)
            if "exif" not in info and (suffix != ".jpg" or "dpi" not in info):
                options["keep"] = "xmp|icc|other"  # else it would invent some
            image.write_to_file(str(path), background=[65535 if deep else 255], **options)
        except vips.Error as error:
            raise OSError(f"cannot be written: {' '.join(str(error).split())}") from error
        finally:
            image = None  # Windows deletes no file that is open
        if "cicp" in info and suffix == ".png":
            content, chunk = Path(path).read_bytes(), b"cICP" + info["cicp"]
            chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
            Path(path).write_bytes(content[:33] + chunk + content[33:])  # after the header

    return encode
