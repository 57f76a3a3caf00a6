"""4x super-resolution of any image of any size in bounded memory, and the command line for it; trains nothing.

    python super_resolve.py photo.jpg folder/ -o out/          # SRGAN; --method srresnet or bicubic
    python super_resolve.py --demo original.png -o out/        # reduce, enlarge again, score
    python super_resolve.py --export generator.onnx

Large images go through the network in pieces, and the result is that of the whole image: each piece is taken with as much
of its neighbourhood as the network looks at, and only at the borders of the image does the network see a border. The
residual blocks look 37 pixels far, but on small feature maps; the layers after them look 3 pixels far, on maps with 16
times the pixels. So the two halves of the network have pieces of their own: large ones for the first, which waste little
on the neighbourhood, and parts of them for the second, which take little memory.
"""

import argparse
import math
import os
import signal
import struct
import sys
import warnings
import zlib
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from imresize import imresize
from metrics import psnr, ssim
from models import SCALE, load_generator
from utils import (
    IMAGE_SUFFIXES,
    atomic_path,
    compare,
    open_deep_image,
    open_image,
    pick_device,
    prepare_image,
    read_image,
    sixteen_bit_array,
)

BICUBIC_RADIUS = 3  # LR pixels: 4 taps reach 2 far
BACK_PROJECTION_RADIUS = 4  # LR pixels: reducing looks 2 far, and so does enlarging the difference
SMALLEST_TILE = 16  # LR pixels
LARGEST_TILE = 1024  # beyond it the neighbourhood costs next to nothing
CPU_BUDGET = (
    0.8e9  # bytes for the network's feature maps; more would lose less time on neighbourhoods
)
# PyTorch gives a 3 x 3 convolution of at most so many input values to another library, which sums in another order
# (`use_mkldnn` in ATen/native/Convolution.cpp): a small piece of a larger image is taken with more around it.
SMALL_CONVOLUTION = 20480


# --- one image -------------------------------------------------------------------------------------------------------


def super_resolve(
    generator,
    image,
    *,
    tile="auto",
    device=None,
    ensemble=False,
    back_projection=True,
    progress=True,
):
    """Enlarge an image to 4 times its width and height.

    Args:
        generator: an `SRResNet`; or None for MATLAB's bicubic interpolation.
        image: an array (H, W, C) with 1 to 4 channels (gray, gray and alpha, RGB, RGBA) or (H, W), uint8 or uint16; a PIL
            image; or the path of an image file.
        tile: side of the pieces, in LR pixels: bounds memory, does not change the result. "auto" goes by the free memory;
            where it runs out all the same, the pieces are halved.
        device: where to compute; the generator is moved there. None: where the generator is.
        ensemble: average the results of the eight flips and rotations of the image, in eight times the time. Gains
            SRResNet about 0.1 dB; an SRGAN's gain is paid for with the texture, which is averaged away.
        back_projection: correct the network's enlargement so that, reduced again, it is `image` (`back_project`). In
            an SRGAN, flat areas can drift by ten levels, which the eye sees as stains; SRResNet hardly changes. False: the
            network alone, as in the paper.
        progress: show a progress bar, in megapixels of the result.

    Returns:
        An array of the same type and channels, (4H, 4W, C) or (4H, 4W), for an array; else a PIL image. Gray stays gray,
        transparency is kept (enlarged bicubically), a palette becomes RGB or RGBA, CMYK sRGB, black and white gray, 16-bit
        gray stays 16-bit (PIL has no 16-bit colour: pass an array, or go from file to file with `super_resolve_file`). PIL
        images are turned upright; their ICC profile is kept, `info["dpi"]` is multiplied by 4.

        On the CPU every value equals that of the whole image at once: without back-projection, of
        `to_array(generator(to_tensor(image)))`. A GPU's library may choose another algorithm for another shape, and single
        values may then differ by one level.

    Raises:
        TypeError, ValueError: what the image cannot be; OSError: a file that cannot be read, see `utils.open_image`;
        MemoryError: not even the smallest tile fits.
    """
    array, info, name = image, None, "the image"
    if isinstance(image, (str, os.PathLike)):
        image, name = open_image(image), image
    if isinstance(image, Image.Image):
        array, info = _pil_to_array(image, name)
    _check(array)
    pixels = array if array.ndim == 3 else array[..., None]  # (H, W, C)
    height, width, channels = pixels.shape
    out = np.empty((SCALE * height, SCALE * width, channels), pixels.dtype)
    for _ in _strips(generator, pixels, tile, device, ensemble, back_projection, progress, out):
        pass
    if info is None:
        return out.reshape(*out.shape[:2], *array.shape[2:])
    enlarged = Image.fromarray(out if channels > 1 else out[..., 0])
    enlarged.info.update(info)
    return enlarged


def _check(array):
    accepted = "accepted are uint8 and uint16 arrays (H, W) and (H, W, C) with 1 to 4 channels, PIL images and paths"
    if not isinstance(array, np.ndarray) or array.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"the image is {getattr(array, 'dtype', type(array).__name__)}; {accepted}")
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] > 4):
        raise ValueError(f"the image has shape {array.shape}; {accepted}, none of them empty")


def _pil_to_array(image, name):
    """A PIL image of any mode -> array (H, W) or (H, W, C), and the `info` that its enlargement keeps."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError(
            f"{name}: {image.n_frames} frames or pages, which is not supported; choose one with .copy()"
        )
    image = prepare_image(image)
    if image.mode[0] in "IF":
        array = sixteen_bit_array(image, name)
    else:
        mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        if image.has_transparency_data:  # alpha, or a transparent colour or palette entry
            mode += "A"
        try:
            array = np.asarray(image if image.mode == mode else image.convert(mode))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{name}: cannot convert {image.mode} to {mode}; save it as RGB"
            ) from error
    info = {}
    if image.info.get("icc_profile") and image.mode != "LAB":  # what becomes RGB has another
        info["icc_profile"] = image.info["icc_profile"]
    try:
        dpi = [
            SCALE * float(value) for value in image.info["dpi"]
        ]  # so that it is printed at the same size
        if len(dpi) == 2 and all(0 < value < 1e6 for value in dpi):
            info["dpi"] = tuple(dpi)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        pass  # none, or nonsense
    return array, info


# --- in pieces -------------------------------------------------------------------------------------------------------
# Boxes are (top, left, bottom, right) in LR pixels of the whole image.


def _strips(generator, image, tile, device, ensemble, back_projection, progress, out=None):
    """Yield the enlargement of `image`, (H, W, C), from top to bottom as arrays (4h, 4W, C): parts of `out`, or new ones."""
    height, width, channels = image.shape
    tile = _tile_size(generator, tile, device)
    bar = tqdm(total=height * width * SCALE**2 / 1e6, disable=not progress, bar_format=_BAR)

    def advance(megapixels):
        bar.update(min(megapixels, bar.total - bar.n))  # floating-point sums must not pass the end

    with bar, _inference(generator, device):
        for top, _, bottom, _ in _grid((0, 0, height, width), tile, width):
            if out is None:
                strip = np.empty((SCALE * (bottom - top), SCALE * width, channels), image.dtype)
            else:
                strip = out[SCALE * top : SCALE * bottom]
            pending = [(top, 0, bottom, width)]
            while pending:
                core = pending.pop(0)
                pieces = _tiles(core, tile)
                if len(pieces) > 1:
                    pending = pieces + pending
                    continue
                done = bar.n
                try:
                    strip[_slices(core, (top, 0), SCALE)] = _enlarge(
                        generator, image, core, tile, ensemble, back_projection, advance
                    )
                    continue
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    if tile <= SMALLEST_TILE:
                        raise MemoryError(
                            f"out of memory even with tiles of {tile} pixels; close other programs, or use the CPU"
                        ) from error
                # Out of the except clause, where the error would keep its frames and their tensors alive.
                tile = max(SMALLEST_TILE, tile // 2)
                bar.n = done
                pending.insert(0, core)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            yield strip
        bar.update(bar.total - bar.n)  # what floating-point sums left over


_BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} MP [{elapsed}<{remaining}]"


def _enlarge(generator, image, core, tile, ensemble, back_projection, advance):
    """The enlarged piece `core` of `image` as an array (4h, 4w, C); values outside `core` are only looked at."""
    height, width, channels = image.shape
    area = (core[2] - core[0]) * (core[3] - core[1]) * SCALE**2 / 1e6
    colours = (
        0 if generator is None else channels - (channels in (2, 4))
    )  # the network's; the others are bicubic
    pieces = []
    if colours:
        peak = np.iinfo(image.dtype).max
        window = _grow(
            core, BACK_PROJECTION_RADIUS if back_projection else 0, (0, 0, height, width)
        )
        sr = _network(
            generator,
            image[..., :colours],
            window,
            tile,
            ensemble,
            lambda share: advance(area * share),
        )
        if colours == 1:
            sr = sr.mean(dim=0, keepdim=True)
        if not torch.isfinite(sr).all():
            raise ValueError(
                "the network's output is not finite: its weights are damaged or its training diverged"
            )
        sr.clamp_(0, 1)
        if back_projection:
            lr = _to_tensor(image[_slices(window)][..., :colours]).to(sr.device)
            sr = back_project(sr, lr)[(..., *_slices(core, window, SCALE))].clamp_(0, 1)
        levels = sr.mul_(peak).round_().to(torch.uint8 if peak == 255 else torch.int32)
        pieces.append(levels.permute(1, 2, 0).cpu().numpy().astype(image.dtype, copy=False))
    if colours < channels:
        window = _grow(core, BICUBIC_RADIUS, (0, 0, height, width))
        enlarged = imresize(np.ascontiguousarray(image[_slices(window)][..., colours:]), SCALE)
        pieces.append(enlarged[_slices(core, window, SCALE)])
        if not colours:
            advance(area)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=2)


def _network(generator, image, core, tile, ensemble, advance):
    """The network's enlargement of `core`: image (H, W, 1 or 3) -> float (3, 4h, 4w), not clamped, on the network's device."""
    height, width, _ = image.shape
    weight = generator.tail.weight
    near = _radius(generator.upsample, generator.tail)
    least = SMALL_CONVOLUTION // weight.shape[1]
    window = _grow(core, _reach(generator), (0, 0, height, width), least)
    lr = (
        _to_tensor(image[_slices(window)])[None]
        .expand(1, 3, -1, -1)
        .to(weight.device, weight.dtype)
    )

    sr = torch.zeros(
        3, SCALE * (core[2] - core[0]), SCALE * (core[3] - core[1]), device=weight.device
    )
    parts = _tiles(core, max(96, math.ceil(tile / 4)))
    views = range(8) if ensemble else range(1)
    for view in views:
        features = _turn_back(generator.trunk(_turn(lr, view)), view)  # (1, C, h, w)
        for part in parts:
            around = _grow(part, near, window, least)
            enlarged = generator.enlarge(_turn(features[(..., *_slices(around, window))], view))
            enlarged = _turn_back(enlarged, view)[0]
            sr[(..., *_slices(part, core, SCALE))] += enlarged[(..., *_slices(part, around, SCALE))]
            advance(
                (part[2] - part[0])
                * (part[3] - part[1])
                / (sr.shape[1] * sr.shape[2] / SCALE**2)
                / len(views)
            )
        del features
    return sr.div_(len(views))


def back_project(sr, lr):
    """An enlargement so corrected that, reduced again, it is the LR image: sr + up(lr - down(sr)), both bicubic.

    What a network invents between the LR pixels stays; the brightness and colour of areas become those of the LR image. One
    step of iterative back-projection (Irani and Peleg 1991; after a trained method: Timofte et al., "Seven ways to improve
    example-based single image super resolution", CVPR 2016). A second step changes next to nothing.

    sr, lr: float tensors (N, C, 4h, 4w) and (N, C, h, w), or both without N, of one range; the result may leave the range.
    """
    return sr + imresize(lr - imresize(sr, 1 / SCALE), SCALE)


def _to_tensor(image):
    """Whole numbers (H, W, C) -> float32 (C, H, W) in [0, 1]."""
    return (
        torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).contiguous()
        / np.iinfo(image.dtype).max
    )


def _reach(generator):
    """How many LR pixels the network looks far, or one more: what its halves look, each rounded up."""
    return _radius(generator.head, generator.blocks, generator.after_blocks) + _radius(
        generator.upsample, generator.tail
    )


def _radius(*layers):
    """How many pixels of their input these layers look far, at most."""
    radius, scale = 0, 1
    for module in nn.ModuleList(layers).modules():
        if isinstance(module, nn.Conv2d):
            radius += (module.kernel_size[0] // 2) / scale
        elif isinstance(module, nn.PixelShuffle):
            scale *= module.upscale_factor
    return math.ceil(radius)


def _turn(x, view):
    """One of the eight flips and rotations of (N, C, H, W); 0 changes nothing."""
    if view == 0:
        return x
    x = torch.rot90(x, view % 4, (2, 3))
    return x.flip(3) if view >= 4 else x


def _turn_back(x, view):
    if view == 0:
        return x
    x = x.flip(3) if view >= 4 else x
    return torch.rot90(x, -(view % 4), (2, 3))


def _tiles(box, side):
    """Cut `box` into boxes of at most side x side pixels; a panorama of a few rows into long ones of that area."""
    rows = min(side, box[2] - box[0])
    return _grid(box, rows, side * side // rows)


def _grid(box, rows, columns):
    """Cut `box` into nearly equal boxes of at most rows x columns, row by row."""
    top, left, bottom, right = box
    rows = math.ceil((bottom - top) / math.ceil((bottom - top) / rows))
    columns = math.ceil((right - left) / math.ceil((right - left) / columns))
    return [
        (y, x, min(y + rows, bottom), min(x + columns, right))
        for y in range(top, bottom, rows)
        for x in range(left, right, columns)
    ]


def _grow(box, margin, frame, least=0):
    """`box` and `margin` pixels around it, or more until there are more than `least`, as far as `frame` reaches."""
    while True:
        grown = (
            max(frame[0], box[0] - margin), max(frame[1], box[1] - margin),
            min(frame[2], box[2] + margin), min(frame[3], box[3] + margin),
        )  # fmt: skip
        if grown == frame or (grown[2] - grown[0]) * (grown[3] - grown[1]) > least:
            return grown
        margin += 4


def _slices(box, origin=(0, 0), scale=1):
    """Where `box` lies in an array that begins at `origin` and is enlarged by `scale`: slices of rows and columns."""
    top, left, bottom, right = (scale * (value - origin[i % 2]) for i, value in enumerate(box))
    return slice(top, bottom), slice(left, right)


@contextmanager
def _inference(generator, device):
    """Evaluation mode, no gradients, and on a GPU the precision in which pieces and whole agree."""
    if generator is None:
        yield
        return
    if device is not None:
        generator.to(device)
    was_training = generator.training
    generator.eval()
    # TF32 keeps 10 bits of each factor: results would change by a level here and there with the size of the pieces.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    try:
        with torch.inference_mode(), exact if torch.cuda.is_available() else nullcontext():
            yield
    finally:
        generator.train(was_training)


def _tile_size(generator, tile, device):
    if tile != "auto":
        if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
            raise ValueError(
                f'tile must be "auto" or a whole number of pixels of at least 1, got {tile!r}'
            )
        return tile
    if generator is None:
        return LARGEST_TILE
    device = torch.device(device) if device is not None else generator.tail.weight.device
    if device.type == "cuda":
        budget = torch.cuda.mem_get_info(device)[0] / 2
    else:
        budget = min(psutil.virtual_memory().available / 2, CPU_BUDGET)
    # In a residual block four sets of feature maps are alive: the block's input, two steps inside, the long skip.
    pixels = budget / (4 * generator.tail.in_channels * generator.tail.weight.element_size())
    return int(min(LARGEST_TILE, max(SMALLEST_TILE, math.sqrt(pixels) - 2 * _reach(generator))))


def _is_out_of_memory(error):
    """PyTorch has an exception for CUDA only; on the CPU and on Apple's GPUs the message tells."""
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in text
        or "not enough memory" in text
        or "can't allocate memory" in text
    )


# --- files -----------------------------------------------------------------------------------------------------------


def super_resolve_file(
    generator,
    source,
    target,
    *,
    tile="auto",
    device=None,
    ensemble=False,
    back_projection=True,
    progress=True,
):
    """Enlarge the image file `source` into the PNG file `target`, holding a strip of the result at a time.

    Beyond the decoded source and a strip of the result this takes about 1 GB, whatever the size. The rest is as in
    `super_resolve`, but 16 bits a channel stay 16 in colour, too. The file `target` is made whole or not at all, and
    replaced if there is one.
    """
    image, deep = open_deep_image(source)
    array, info = _pil_to_array(image, source)
    array = array if deep is None else deep
    pixels = array if array.ndim == 3 else array[..., None]
    strips = _strips(generator, pixels, tile, device, ensemble, back_projection, progress)
    with atomic_path(target) as temporary, closing(strips):
        _write_png(
            temporary,
            strips,
            [SCALE * side for side in pixels.shape[:2]],
            pixels.shape[2],
            pixels.dtype,
            info,
        )


def _write_png(path, strips, size, channels, dtype, info):
    """Write strips (h, W, C) from top to bottom as a PNG file; Pillow would need all of them at once.

    The format: https://www.w3.org/TR/png-3/. Rows are stored as differences from the row above (filter 2).
    """
    height, width = size
    bits = 8 * np.dtype(dtype).itemsize
    with open(path, "wb") as file:

        def chunk(kind, data):
            file.write(
                struct.pack(">I", len(data))
                + kind
                + data
                + struct.pack(">I", zlib.crc32(kind + data))
            )

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
                data = packer.compress(filtered)
                if data:
                    chunk(b"IDAT", data)
                above = rows[-1:]
        chunk(b"IDAT", packer.flush())
        chunk(b"IEND", b"")


def export_onnx(generator, path):
    """Write `generator` as ONNX: input "lr" (N, 3, h, w), output "sr" (N, 3, 4h, 4w), float32 in [0, 1], any N, h and w."""
    try:
        import onnx  # noqa: F401  (PyTorch's exporter needs it)
    except ImportError as error:
        raise ImportError(
            'the export needs the package "onnx": python -m pip install onnx'
        ) from error
    names = {"input_names": ["lr"], "output_names": ["sr"]}
    axes = {"lr": {0: "N", 2: "h", 3: "w"}, "sr": {0: "N", 2: "4h", 3: "4w"}}
    example = torch.rand(1, 3, 16, 24, device=generator.tail.weight.device)
    with atomic_path(path) as temporary, open(temporary, "wb") as file, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # the newer exporter (dynamo=True) needs another package
        torch.onnx.export(
            generator.eval(), (example,), file, dynamic_axes=axes, dynamo=False, **names
        )


# --- command line ----------------------------------------------------------------------------------------------------


def find_weights(method):
    """The newest checkpoints/**/<method>.safetensors."""
    files = sorted(
        Path("checkpoints").rglob(f"{method}.safetensors"), key=lambda path: path.stat().st_mtime
    )
    if not files:
        raise FileNotFoundError(
            f"no {method}.safetensors under checkpoints/: train one with train.ipynb, name one with --weights, "
            "or use --method bicubic"
        )
    return files[-1]


def find_images(inputs):
    """The files that `inputs`, files and folders, name; of a folder the images directly in it, in the order of names."""
    for path in map(Path, inputs):
        files = []
        if not path.is_dir():
            files = [path]  # whether it is an image shows when it is opened
        elif os.access(path, os.R_OK | os.X_OK):
            files = [
                file
                for file in sorted(path.iterdir())
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not file.name.startswith(".")
                and file.is_file()
            ]
        yield from files or [path]  # an empty folder fails by name, like a file that cannot be read


def compare_middle(generator, source, label, options, side=128):
    """The middle of an image file three ways, side x side LR pixels: its pixels enlarged, bicubic, and the network."""
    lr = read_image(source)
    top, left = (max(0, (length - side) // 2) for length in lr.shape[:2])
    core = (top, left, min(lr.shape[0], top + side), min(lr.shape[1], left + side))
    reach = BICUBIC_RADIUS if generator is None else max(BICUBIC_RADIUS, _reach(generator))
    window = _grow(core, reach, (0, 0, *lr.shape[:2]))
    middle = np.ascontiguousarray(lr[_slices(window)])
    crop = _slices(core, window, SCALE)
    return compare(
        {
            "input": middle.repeat(SCALE, axis=0).repeat(SCALE, axis=1)[crop],
            "bicubic": imresize(middle, SCALE)[crop],
            label: super_resolve(generator, middle, progress=False, **options)[crop],
        }
    )


def demo(generator, source, folder, label, options, force=False, side=480):
    """Reduce an image to 1/4, enlarge it again, score both enlargements, and keep a sheet of the middle in `folder`."""
    hr = read_image(source)
    height, width = (length - length % SCALE for length in hr.shape[:2])
    if min(height, width) < 20:
        raise ValueError(
            f"{source}: too small to be reduced to 1/4 and scored; take one of at least 20 x 20 pixels"
        )
    hr = np.ascontiguousarray(hr[:height, :width])
    lr = imresize(hr, 1 / SCALE)
    results = {"bicubic": imresize(lr, SCALE)}
    if generator is not None:
        results[label] = super_resolve(generator, lr, **options)
    sheet = {}
    for name, sr in results.items():
        scores = f"{psnr(sr, hr):.2f} dB, SSIM {ssim(sr, hr):.4f}"
        print(f"{name:>10}: {scores} (Y, border 4)")
        sheet[f"{name}\n{scores}"] = sr
    top, left = (max(0, (length - side) // 2) for length in hr.shape[:2])
    box = (left, top, min(side, width), min(side, height))
    target = Path(folder, "demo", f"{Path(source).stem}.png")
    if target.exists() and not force:
        print(f"{target} exists, not written again (--force replaces it)")
        return
    with atomic_path(target) as temporary:
        compare(
            {"input, 1/4": lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1), **sheet, "original": hr},
            box,
        ).save(temporary)
    print(f"the middle side by side: {target}")


def _arguments(argv):
    parser = argparse.ArgumentParser(
        description="Enlarge images to 4 times their width and height. Results are PNG files, <name>.png; those that are "
        "there already are skipped, so a stopped run goes on where it was. Originals are never touched."
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="IMAGE", help="image files, and folders of them")
    add(
        "-o",
        "--output",
        default="super_resolved",
        metavar="FOLDER",
        help="where results go (default: %(default)s)",
    )
    add(
        "--method",
        choices=("srgan", "srresnet", "bicubic"),
        default="srgan",
        help="default: %(default)s",
    )
    add("--weights", metavar="FILE", help="default: the newest checkpoints/**/<method>.safetensors")
    add("--device", help="cuda, mps or cpu (default: the best there is)")
    add(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="side of the pieces (default: by the free memory)",
    )
    add(
        "--ensemble",
        action="store_true",
        help="average over 8 flips and rotations: smoother, 8 times slower",
    )
    add(
        "--network-alone",
        action="store_true",
        help="as in the paper: no back-projection, which keeps brightness and colour",
    )
    add(
        "--compare",
        action="store_true",
        help="also write compare/<name>.png: the middle beside input and bicubic",
    )
    add("--force", action="store_true", help="replace results that are there already")
    add(
        "--large",
        action="store_true",
        help="also read images of more than 179 megapixels, which could be a trap",
    )
    add(
        "--demo",
        metavar="IMAGE",
        help="reduce this image to 1/4, enlarge it again, show and score that",
    )
    add("--export", metavar="FILE.onnx", help="write the generator as ONNX and stop")
    args = parser.parse_args(argv)
    if not (args.inputs or args.demo or args.export):
        parser.error("name images or folders to enlarge, or --demo IMAGE, or --export FILE.onnx")
    if args.tile is not None and args.tile < 1:
        parser.error(f"--tile takes a whole number of pixels of at least 1, not {args.tile}")
    if args.export and args.method == "bicubic":
        parser.error("bicubic has no network to export")
    return args


def main(argv=None):
    """Run the command line; returns the exit code: 0, 1 if anything failed, 130 if it was stopped."""
    args = _arguments(argv)
    if args.large:
        Image.MAX_IMAGE_PIXELS = None
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="replace"
            )  # a name that the terminal cannot show must not stop the run
    try:
        device = pick_device(args.device)
        generator, label = None, args.method
        if args.method != "bicubic":
            weights = args.weights or find_weights(args.method)
            generator, label = load_generator(weights, device), Path(weights).stem
            print(f"{weights} on {device}")
        options = {
            "tile": "auto" if args.tile is None else args.tile,
            "ensemble": args.ensemble,
            "back_projection": not args.network_alone,
        }
        if args.export:
            if Path(args.export).exists() and not args.force:
                raise FileExistsError(f"{args.export} exists: choose another name, or --force")
            export_onnx(generator, args.export)
            print(f"wrote {args.export}")
        if args.demo:
            demo(generator, args.demo, args.output, label, options, args.force)
        failures = _enlarge_all(generator, args, label, options) if args.inputs else 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failures else 0


def _enlarge_all(generator, args, label, options):
    """Enlarge all inputs into the output folder, going on after failures; returns how many failed."""
    try:
        os.makedirs(args.output, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{args.output}: cannot be the folder for results ({error.strerror}); name another with -o"
        ) from error
    # Each name once; a link and what it points to are two names.
    sources = list(
        {
            source.parent.resolve() / source.name: source for source in find_images(args.inputs)
        }.values()
    )
    originals = {source.resolve() for source in sources}
    made, skipped, failed, taken = 0, 0, [], {}
    for number, source in enumerate(sources, start=1):
        print(f"[{number}/{len(sources)}] {source}")
        target = Path(args.output, f"{source.stem}.png")
        try:
            if source.is_dir():
                os.listdir(source)  # says so if that is not allowed
                raise ValueError(
                    f"{source}: no images in this folder; its subfolders have to be named themselves"
                )
            if target.resolve() in originals:
                raise ValueError(
                    f"{source}: the result {target} would replace an original; choose another folder with -o"
                )
            if target in taken:
                raise ValueError(
                    f"{source}: the result {target} is that of {taken[target]}; give one of them another folder with -o"
                )
            taken[target] = source
            if target.exists() and not args.force:
                print(f"  {target} exists, skipped (--force replaces it)")
                skipped += 1
            else:
                super_resolve_file(generator, source, target, **options)
                made += 1
            sheet = target.parent / "compare" / target.name
            if args.compare and (args.force or not sheet.exists()):
                with atomic_path(sheet) as temporary:
                    compare_middle(generator, source, label, options).save(temporary)
        except (OSError, ValueError, MemoryError) as error:
            # The system's own errors (disk full, no permission) do not name the image.
            message = str(error) if str(error).startswith(f"{source}:") else f"{source}: {error}"
            print(f"  failed: {message}", file=sys.stderr)
            failed.append(
                message
            )  # not the error, which would keep the image and its strips in memory
    print(f"{made} enlarged, {skipped} skipped, {len(failed)} failed; results in {args.output}")
    for message in failed:
        print(f"  {message}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ended from outside: tidied up as after Ctrl-C
    sys.exit(main())
