"""Image files through Pillow: formats, modes, orientation, colour profiles, and what errors say.

Knows Pillow's internals so that no other module has to; knows nothing of tensors. What needs all
bits and metadata, from file to file, is in `tools/pictures.py`.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

# What may be decoded. Other plug-ins are left out: some start programs (EPS: Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA")
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".heic", ".heif", ".tif",
    ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga",
)  # fmt: skip
METADATA = ("icc_profile", "exif", "xmp")  # Pillow's names
ORIENTATION = 0x0112  # the EXIF tag
CAUSES = {  # of errors while reading, beside what the decoder says
    UnidentifiedImageError: "not an image, or of a kind that is not read; save it as PNG or JPEG",
    PermissionError: "it may not be read; change its permissions",
    ModuleNotFoundError: "HEIC files need one more package: pip install pillow-heif",
    MemoryError: "not enough memory to decode it; cut it into parts or close other programs",
}
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
        explained = isinstance(error, (OSError, ValueError)) and str(error).startswith(f"{path}: ")
        if explained or isinstance(error, FileNotFoundError):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        cause = f"damaged or incomplete, or of a kind that is not supported ({message})"
        cause = CAUSES.get(type(error), f"{cause}; copy it again, or save it as PNG")
        raise OSError(f"{path}: {cause}") from error


def no_such(kind: str, path: str | Path) -> str:
    """What to say where there is no file, list or folder of this name."""
    if str(path).isprintable():
        return f"{path}: no such {kind} (current folder: {Path.cwd()})"
    return f"{str(path)!r}: no such {kind}; Python reads \\ in quotes as a special letter: write /"


def file_content(path: str | Path) -> bytes:
    """The bytes of a file; OSError if there is none."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(no_such("file", path))
    if not path.is_file():
        raise OSError(f"{path}: not a file, but a folder or device; name an image file")
    return path.read_bytes()


def open_image(path: str | Path) -> Image.Image:
    """Decode the file into a PIL image, turned upright by its EXIF orientation; CMYK becomes sRGB.

    Other modes and `info` (ICC profile, resolution) stay. Warns where 16 bits a channel are read
    as 8. Raises OSError or ValueError for what is missing, no image, damaged, animated, too large.
    """
    with naming(path):
        content, formats = file_content(path), IMAGE_FORMATS
        if content[4:8] == b"ftyp" and content[8:12] not in (b"avif", b"avis"):
            import pillow_heif  # for HEIC only

            pillow_heif.register_heif_opener()
            formats += ("HEIF",)
        # From memory: of files, Pillow scrambles uncompressed TIFF images that are to be turned.
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if problem := _unsupported(image):
                raise ValueError(f"{path}: {problem}")
            layouts = [tile[3] for tile in image.tile]  # such as RGB;16B, or of PPM (RGB, 65535)
            deep = ";16" in str(layouts) or (
                image.format == "PPM" and isinstance(layouts[0], tuple) and layouts[0][1] > 255
            )
            tags = dict(image.tag_v2) if image.format == "TIFF" else {}
            image.load()
            if deep and image.mode[0] != "I":
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
