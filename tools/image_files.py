"""Image files: libvips for those of `super_resolve.py`, Pillow for images as 8-bit RGB.

Knows the formats and both libraries so that no other module has to; knows nothing of tensors.
"""

import functools
import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

# What may be decoded. Other plug-ins are left out: some start programs (EPS: Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA")
LIBVIPS_FORMATS = ("Png", "Jpeg", "Webp", "Heif", "Tiff", "Nsgif", "Raw")
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".heic", ".heif", ".tif",
    ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga",
)  # fmt: skip
WRITERS = {  # suffix: libvips' options
    ".png": {"compression": 2, "filter": "up"},  # more takes twice the time for a few percent
    ".tif": {"compression": "deflate", "level": 2, "predictor": "horizontal"},
    ".jpg": {"Q": 95}, ".webp": {"Q": 95, "effort": 1}, ".avif": {"Q": 85, "effort": 1},
}  # fmt: skip
LARGEST = {".jpg": 65535, ".webp": 16383, ".avif": 65535}  # pixels a side
METADATA = {"icc_profile": "icc-profile-data", "exif": "exif-data", "xmp": "xmp-data"}  # libvips'
ORIENTATION = 0x0112  # the EXIF tag
# Of a TIFF file's tags those that are EXIF data: description, camera, date, people, place.
TIFF_TEXTS = {270, 271, 272, 305, 306, 315, 33432, 34665, 34853}
CAUSES = {  # of errors while reading, beside what the decoder says
    UnidentifiedImageError: "not an image, or of a kind that is not read; save it as PNG or JPEG",
    PermissionError: "it may not be read; change its permissions",
    ModuleNotFoundError: "HEIC files need one more package: pip install pillow-heif",
    MemoryError: "not enough memory to decode it; cut it into parts or close other programs",
}
KINDS = ("b-w", "srgb", "grey16", "rgb16")  # of libvips' images: gray and RGB, 8 and 16 bits
UNKNOWN_RANGE = "32-bit or floating-point of unknown range; save it as 16 bits"


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Make OSError or ValueError of whatever a decoder raises: the file, the cause, the way out.

    Damaged files raise nearly anything, even AssertionError, SyntaxError and KeyError.
    """
    try:
        yield
    except Image.DecompressionBombError as error:
        way_out = "cut it or raise PIL.Image.MAX_IMAGE_PIXELS (super_resolve.py --large)"
        raise ValueError(f"{path}: {error}; {way_out}") from error
    except Exception as error:
        if isinstance(error, (OSError, ValueError)) and str(error).startswith(f"{path}: "):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        cause = f"damaged or incomplete, or of a kind that is not supported ({message})"
        cause = CAUSES.get(type(error), f"{cause}; copy it again, or save it as PNG")
        raise OSError(f"{path}: {cause}") from error


def _content(path):
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file (current folder: {Path.cwd()})")
    if not path.is_file():
        raise OSError(f"{path}: not a file, but a folder or device; name an image file")
    return path.read_bytes()


# --- Pillow: images as PIL images, and as arrays -------------------------------------------------


def open_image(path: str | Path) -> Image.Image:
    """Decode the file into a PIL image, turned upright by its EXIF orientation; CMYK becomes sRGB.

    Other modes and `info` (ICC profile, resolution) stay. Warns where 16 bits a channel are read
    as 8. Raises OSError or ValueError for what is missing, no image, damaged, animated, too large.
    """
    with naming(path):
        content, formats = _content(path), IMAGE_FORMATS
        if content[4:8] == b"ftyp" and content[8:12] not in (b"avif", b"avis"):
            import pillow_heif  # for HEIC only

            pillow_heif.register_heif_opener()
            formats += ("HEIF",)
        # From memory: of files, Pillow scrambles uncompressed TIFF images that are to be turned.
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if problem := _unsupported(image):
                raise ValueError(f"{path}: {problem}")
            layouts = " ".join(str(tile[3]) for tile in image.tile)  # such as RGB;16B
            tags = dict(image.tag_v2) if image.format == "TIFF" else {}
            image.load()
            if image.mode[0] != "I" and (";16" in layouts or ", 65535)" in layouts):
                limit = "16 bits a channel are read as 8, Pillow's limit"
                warnings.warn(f"{path}: {limit}", stacklevel=2)
            return prepare_image(_spread(image, tags))


def _unsupported(image):
    """Why an opened file cannot be read, and the way out; None if it can."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in ("MPO", "HEIF"):  # their previews come second
        return f"{frames} frames or pages, which is not supported; save the one you want as PNG"
    if image.format == "PNG" and image.mode == "P" and image.palette is None:
        return "a palette image without its palette: damaged; copy it again"
    tags = image.tag_v2 if image.format == "TIFF" else {}
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    if planes and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8:  # Pillow reads noise
        return "colours of 16 bits in separate planes, which is not supported; save it as PNG"
    return None


def _spread(image, tags):
    """A gray TIFF image of 12 or 16 bits with 0 as black and 65535 as white."""
    top = 2 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if not image.mode.startswith("I;16") or not (inverted or top < 65535):
        return image
    values = np.asarray(image).astype(np.uint32) * 65535 // top
    spread = Image.fromarray((65535 - values if inverted else values).astype(np.uint16))
    spread.info = image.info
    return spread


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
        raise ValueError(f"{name}: {UNKNOWN_RANGE}")
    return values.astype(np.uint16)


def pil_to_array(image: Image.Image, name: str | Path = "image") -> tuple[np.ndarray, dict]:
    """A PIL image of any mode as an array, and what is known of it.

    The array is uint8 or uint16, (H, W) for gray or (H, W, C): gray and alpha, RGB, RGBA; the dict
    has "icc_profile", "exif", "xmp" and "dpi" where the image has them. Raises ValueError for
    several frames, an unknown range and a closed image, OSError for a damaged one; `name` begins
    the message.
    """
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "HEIF"):
        raise ValueError(f"{name}: {image.n_frames} frames or pages; choose one with .copy()")
    with naming(name):
        try:
            image.load()
        except ValueError as error:  # such as "Operation on closed image"
            raise ValueError(f"{name}: {error}; open it again, or give its path") from error
        image = prepare_image(image)
        if image.mode[0] in "IF":
            array = sixteen_bit_array(image, name)
        else:
            mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
            if image.has_transparency_data:  # alpha, or a transparent colour or palette entry
                mode += "A"
            array = np.asarray(image if image.mode == mode else image.convert(mode))
    info = {key: image.info[key] for key in METADATA if isinstance(image.info.get(key), bytes)}
    if image.mode == "LAB":  # its profile is not RGB's
        info.pop("icc_profile", None)
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):  # none, or nonsense
        dpi = tuple(float(value) for value in image.info["dpi"])
        if len(dpi) == 2 and all(0 < value < 1e6 for value in dpi):
            info["dpi"] = dpi
    return array, info


# --- libvips: from file to file ------------------------------------------------------------------


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


def read_picture(path: str | Path) -> tuple[np.ndarray, dict]:
    """Decode an image file, upright, as what `pil_to_array` returns, with all its bits.

    What libvips does not read, Pillow does. Raises OSError or ValueError as `open_image` does.
    """
    vips = _libvips()
    with naming(path):
        content = _content(path)
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

    info = {name: fields[key] for name, key in METADATA.items() if fields.get(key)}
    stored = "resolution-unit" in fields or b"pHYs" in chunks  # else it is libvips' own
    if stored and min(image.xres, image.yres) > 0:
        info["dpi"] = image.xres * 25.4, image.yres * 25.4
    if "xmp" in info:
        info["xmp"] = re.sub(rb"(tiff:Orientation(=.|>))[2-8]", rb"\g<1>1", info["xmp"])

    image = image.copy_memory().autorot()
    if image.interpretation == "cmyk":
        rgb = Image.fromarray(image[:4].cast("uchar", shift=True).numpy(), mode="CMYK")
        rgb.info = info
        return pil_to_array(rgb, path)
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
    try:
        with open(raw, "wb") as file:
            file.writelines(strips)
        kind = KINDS[2 * deep + (channels > 2)]
        form = {"format": "ushort" if deep else "uchar", "interpretation": kind}
        image = vips.Image.rawload(str(raw), width, height, channels, **form)
        x, y = info.get("dpi", (72, 72))
        image = image.copy(xres=x / 25.4, yres=y / 25.4)
        for name in METADATA.keys() & info.keys():
            image.set_type(vips.GValue.blob_type, METADATA[name], info[name])
        image.set_type(vips.GValue.gint_type, "orientation", 1)
        if "exif" not in info and (suffix != ".jpg" or "dpi" not in info):  # it would invent some
            options["keep"] = "xmp|icc|other"
        image.write_to_file(str(path), background=[65535 if deep else 255], **options)
    except vips.Error as error:
        raise OSError(f"cannot be written: {' '.join(str(error).split())}") from error
    finally:
        image = None  # Windows deletes no file that is open
        with suppress(OSError):
            raw.unlink()
    if "cicp" in info and suffix == ".png":
        content, chunk = path.read_bytes(), b"cICP" + info["cicp"]
        chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(content[:33] + chunk + content[33:])  # after the header
