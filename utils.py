"""Seeds, devices, reading and writing images, and pictures of results; knows nothing of networks or training.

Arrays are uint8 RGB, (H, W, 3); tensors are float RGB in [0, 1], (N, 3, H, W).
"""

import csv
import ctypes
import io
import os
import random
import secrets
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import (
    Image,
    ImageCms,
    ImageDraw,
    ImageFont,
    ImageOps,
    TiffImagePlugin,
    UnidentifiedImageError,
)

# What Pillow may decode. Its other plug-ins are left out: some start programs (EPS runs Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA")
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".tga",
)  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag


# ---------------------------------------------------------------------------------------------------------------------
# Reproducibility and devices


def seed_everything(seed):
    """Seed Python, NumPy and PyTorch (every device): the same numbers again on the same machine, on the CPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name=None):
    """The device called `name` ("cuda", "cuda:1", "mps", "cpu"), or the best there is: CUDA, then MPS, then the CPU.

    Raises ValueError for a device that this machine or this build of PyTorch does not have.
    """
    if name is None:
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(
            1, device=device
        )  # the only sure test: also fails for cuda:7 of 2 and for a broken driver
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"device '{name}' cannot be used here ({cause}); leave it out to get the best one"
        ) from error
    return device


def device_name(device):
    """What to call a device in a table: "NVIDIA H100 80GB HBM3", "CPU, 2 threads"."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type.upper()
    )


def computes_in_bf16(device):
    """Whether bfloat16 is faster than float32 there: GPUs with tensor cores for it, CPUs with AVX512_BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def can_compile(device):
    """Whether `torch.compile` works there, which needs a C++ compiler or Triton; warns if not, and takes a few seconds."""
    try:
        x = torch.ones(8, device=device, requires_grad=True)
        torch.compile(lambda x: (2 * x).relu().sum())(x).backward()
    except Exception as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"torch.compile does not work here ({cause}): going on without", stacklevel=2)
        return False
    return True


def keep_freed_memory():
    """Let glibc keep freed memory for the next step instead of returning it to the system; call once, before training.

    A training step on the CPU frees and asks for the same large blocks again and again. glibc maps each of them anew,
    and the system has to fill every page with zeros: that made training up to 5 times slower. Does nothing where there
    is no glibc.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h
    try:
        libc = ctypes.CDLL(None)  # the libraries this process has loaded already
        libc.gnu_get_libc_version  # noqa: B018  (absent in macOS's and in musl's C library)
    except (TypeError, OSError, AttributeError):
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


# ---------------------------------------------------------------------------------------------------------------------
# Files


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; what was written there becomes `path` when the block ends without an error.

    A reader sees the old file or the new one, never half a file, whenever the program is stopped. Makes the parent
    folder; the temporary file has the suffix of `path`, so that savers that go by the suffix still work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(
                file.fileno()
            )  # on the disk before it takes the name: survives a power cut, too
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_rows(path, rows):
    """Write `rows` (dicts with the same keys, at least one) as CSV with a header line, atomically."""
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path}: no rows to write")
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def open_image(path):
    """Decode the whole file at `path` into a PIL image, turned upright by its EXIF orientation; CMYK becomes sRGB.

    Every other mode stays as it is, and so does `info` (ICC profile, resolution). Raises FileNotFoundError, OSError or
    ValueError with the file, the cause and the way out in the message: missing, a folder, empty, no image, damaged,
    animated, too large. Warns where colours have 16 bits a channel, see `open_deep_image`.
    """
    image, rawmode = _decode(path)
    _warn_of_lost_bits(path, image, rawmode)
    return image


def _warn_of_lost_bits(path, image, rawmode):
    if ";16" in rawmode and image.mode[0] != "I":
        message = f"{path}: 16 bits a channel are read as 8, Pillow holds no more in colour"
        warnings.warn(message, stacklevel=3)  # where open_image was called


def open_deep_image(path):
    """As `open_image`, and of a PNG or TIFF file with 16 bits a colour also its pixels, uint16 (H, W, 3 or 4), else None.

    Pillow keeps the upper byte of each such number. Told that the bytes lie the other way round, it keeps the lower one.
    """
    image, rawmode = _decode(path)
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    kind, _, order = rawmode.partition(";16")
    if (
        kind == image.mode
        and kind in ("RGB", "RGBA")
        and order in swapped
        and "transparency" not in image.info
    ):
        lower, _ = _decode(path, rawmode=f"{kind};16{swapped[order]}")
        pixels = np.array(image).astype(np.uint16)
        pixels <<= 8
        pixels |= np.asarray(lower)
        return image, pixels
    _warn_of_lost_bits(
        path, image, rawmode
    )  # a layout without a counterpart: planes, premultiplied, gray and alpha
    return image, None


def _decode(path, rawmode=None):
    """-> (the upright image, Pillow's name for the layout of its pixels in the file: "RGB;16B"); or read as `rawmode`."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file (current folder: {Path.cwd()})")
    if not path.is_file():
        raise OSError(f"{path}: not a file, but a folder or device; name an image file")
    if path.stat().st_size == 0:
        raise OSError(f"{path}: the file is empty; copy or download it again")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            # MPO is a camera's JPEG with previews behind the photograph, which comes first.
            if frames > 1 and image.format != "MPO":
                problem = f"{frames} frames or pages, which is not supported; save the one you want as PNG"
            elif _has_deep_planes(image):
                problem = (
                    "colours of 16 bits in separate planes, which is not supported; save it as PNG"
                )
            else:
                layouts = {_layout(tile) for tile in image.tile}
                if rawmode:
                    image.tile = [
                        tile._replace(args=_with_layout(tile.args, rawmode)) for tile in image.tile
                    ]
                image.load()
                return prepare_image(image), " ".join(sorted(layouts))
    except UnidentifiedImageError as error:
        raise OSError(
            f"{path}: not an image, or of a kind that is not read; save it as PNG or JPEG"
        ) from error
    except PermissionError as error:
        raise OSError(
            f"{path}: it may not be read ({error.strerror}); change its permissions"
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: {error}; cut it into parts or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS before reading "
            "it (super_resolve.py --large)"
        ) from error
    except MemoryError as error:
        raise OSError(
            f"{path}: not enough memory to decode it; cut it into parts or close other programs"
        ) from error
    except Exception as error:  # a damaged file makes decoders raise nearly anything, SyntaxError and KeyError included
        raise OSError(
            f"{path}: damaged or incomplete ({error}); copy or download it again"
        ) from error
    raise ValueError(f"{path}: {problem}")


def _has_deep_planes(image):
    """Whether this is a TIFF file with more than 8 bits, red after green after blue: Pillow takes noise from those."""
    if image.format != "TIFF":
        return False
    tags = image.tag_v2
    return (
        tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2
        and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    )


def _layout(tile):
    """The "raw mode" of a Pillow tile: its arguments, or the first of them."""
    args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if tile.codec_name == "ppm":
        return f"{args[0]};16" if args[1] > 255 else args[0]
    return args[0] if args and isinstance(args[0], str) else ""


def _with_layout(args, rawmode):
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode


def prepare_image(image):
    """A PIL image turned upright by its EXIF orientation, CMYK converted to sRGB; the image itself if nothing is to do."""
    try:
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except (
        Exception
    ):  # an unreadable EXIF block tells no orientation; viewers show the pixels as they are
        pass
    return _cmyk_to_rgb(image) if image.mode == "CMYK" else image


def _cmyk_to_rgb(image):
    """By the image's ICC profile where it has a usable one, else by Pillow's plain formula."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            rgb = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            rgb.info = image.info | rgb.info  # keeps the resolution; the profile is now sRGB's
            return rgb
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one that is not for CMYK
    rgb = image.convert("RGB")
    rgb.info.pop("icc_profile", None)  # it described CMYK
    return rgb


def read_image(path):
    """Read the image file at `path` as uint8 RGB, (H, W, 3), upright.

    Gray is copied to the three channels, palettes and CMYK are converted, 16 bits are scaled to 8, alpha is dropped.
    Raises what `open_image` raises, and ValueError for floating-point and 32-bit images, whose range is unknown.
    """
    image = open_image(path)
    if image.mode.startswith(("I", "F")):
        values = sixteen_bit_array(image, path)
        gray = ((values.astype(np.uint32) + 128) // 257).astype(
            np.uint8
        )  # 65535 / 255 = 257, rounded
        return np.repeat(gray[..., None], 3, axis=2)
    try:
        # Over RGBA: a palette's transparent entries and premultiplied alpha have no direct way to RGB.
        return np.array(image.convert("RGBA").convert("RGB"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot convert {image.mode} to RGB; save it as RGB") from error


def sixteen_bit_array(image, name="image"):
    """A PIL image of mode I;16..., or I with 16-bit values, as uint16 (H, W). ValueError for another range or mode F."""
    if image.mode == "F":
        raise ValueError(
            f"{name}: floating-point pixels of unknown range; save it with 8 or 16 bits a channel"
        )
    values = np.array(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(
            f"{name}: 32-bit pixels of unknown range; save it with 8 or 16 bits a channel"
        )
    return values.astype(np.uint16)


def write_image(path, array):
    """Write uint8 RGB (H, W, 3) as a PNG file, atomically. Raises ValueError for another suffix, shape or type."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"{path}: images are written without loss, as PNG; give the name the suffix .png"
        )
    _check_array(array)
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(array)).save(temporary)


# ---------------------------------------------------------------------------------------------------------------------
# Arrays and tensors


def _check_array(array):
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != np.uint8
        or array.ndim != 3
        or array.shape[2] != 3
    ):
        got = (
            f"{array.dtype} {array.shape}"
            if isinstance(array, np.ndarray)
            else type(array).__name__
        )
        raise ValueError(f"expected a uint8 RGB array of shape (H, W, 3), got {got}")


def to_tensor(array):
    """uint8 RGB (H, W, 3) -> float32 RGB in [0, 1], (1, 3, H, W)."""
    _check_array(array)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float().contiguous() / 255


def to_array(tensor):
    """Float RGB, (1, 3, H, W) or (3, H, W), on any device -> uint8 RGB (H, W, 3): clamped to [0, 1], then rounded."""
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or len(tensor) != 3:
        raise ValueError(
            f"expected one RGB image, (1, 3, H, W) or (3, H, W), got {tuple(tensor.shape)}"
        )
    levels = tensor.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of results


def compare(images, box=None, zoom=1):
    """Images side by side with their labels above, pixel by pixel (matplotlib would resample them), as a PIL image.

    images: {label: uint8 (H, W, 3)}, all of one size. box: (left, top, width, height) in pixels, the part to show of
    each. zoom: each pixel becomes zoom x zoom equal ones. Raises ValueError for images of several sizes and for a box
    that leaves them.
    """
    if not images:
        raise ValueError("no images to compare")
    sizes = {label: array.shape[:2] for label, array in images.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"images of several (H, W) cannot be compared pixel by pixel, enlarge them first: {sizes}"
        )
    if zoom != int(zoom) or zoom < 1:
        raise ValueError(f"zoom must be a whole number of at least 1, got {zoom}")
    left, top, width, height = _check_box(box, *next(iter(sizes.values())))

    gap = 8
    font = ImageFont.load_default(14)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    captions = {label: ruler.multiline_textbbox((0, 0), str(label), font=font) for label in images}
    caption_height = max(bottom for _, _, _, bottom in captions.values()) + gap
    widths = [max(width * int(zoom), int(right) + 1) for _, _, right, _ in captions.values()]
    sheet = Image.new(
        "RGB",
        (sum(widths) + gap * (len(widths) - 1), int(caption_height) + height * int(zoom)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    x = 0
    for (label, array), column in zip(images.items(), widths, strict=True):
        _check_array(array)
        part = (
            array[top : top + height, left : left + width]
            .repeat(int(zoom), axis=0)
            .repeat(int(zoom), axis=1)
        )
        draw.multiline_text((x, 0), str(label), fill="black", font=font)
        sheet.paste(Image.fromarray(part), (x, int(caption_height)))
        x += column + gap
    return sheet


def mark_box(image, box, color=(255, 0, 0)):
    """A copy of `image`, uint8 (H, W, 3), with `box` = (left, top, width, height) outlined: where `compare` looked."""
    _check_array(image)
    left, top, width, height = _check_box(box, *image.shape[:2])
    marked = Image.fromarray(image)
    thickness = max(1, min(image.shape[:2]) // 200)
    ImageDraw.Draw(marked).rectangle(
        (left, top, left + width - 1, top + height - 1), outline=color, width=thickness
    )
    return np.array(marked)


def _check_box(box, image_height, image_width):
    left, top, width, height = box or (0, 0, image_width, image_height)
    if (
        min(left, top) < 0
        or min(width, height) < 1
        or left + width > image_width
        or top + height > image_height
    ):
        raise ValueError(
            f"box {box} (left, top, width, height) is not inside the {image_width} x {image_height} image"
        )
    return left, top, width, height
