"""4x super-resolution of images of any size in tiles, and its command line; trains nothing.

    python super_resolve.py photo.jpg folder/ -o out/     # SRGAN; --method srresnet or bicubic

Tiles, padded by the network's receptive-field radius, give the result of the whole image. Its first
half, up to the last residual block, has a radius of 37 LR pixels and small feature maps; the second
3, and 16 times the pixels. Each has its own tiles: large ones waste little time on padding, small
ones take little memory.
"""

import argparse
import math
import os
import signal
import sys
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt

import plots
from imresize import imresize
from metrics import psnr, ssim
from models import SRResNet, load_generator
from tools.acceleration import (
    MixedPrecision,
    fastest_precision,
    is_out_of_memory,
    keep_freed_memory,
)
from tools.batch import check_target, make_all, new_file, pipes, plan
from tools.image_files import pil_to_array
from tools.openvino_engine import compile_halves, import_openvino, write_onnx
from tools.pictures import count_pixels, read_picture, store_picture, write_picture
from utils import SCALE, atomic_path, pick_device, progress_bar, read_image, to_tensor, write_image

TILE, SMALLEST_TILE = 400, 16  # LR pixels a side; the residual blocks take 0.25 GB for 400
ENLARGE_TILE = 128  # LR pixels a side, in the second half; takes 0.3 GB
# OpenVINO, unlike PyTorch, is as fast with large tiles, which waste less on padding; 1.5 GB in all.
OPENVINO_TILE, OPENVINO_ENLARGE_TILE = 900, 300
BICUBIC_RADIUS = 4  # LR pixels: enlarging has 2, back-projection also reduces: 2 more
# PyTorch convolves small images (3 x 3 kernels, up to 20,480 input values) with another library,
# which sums in another order. So tiles are padded to more input values than that.
SMALL_CONVOLUTION = 20480


def super_resolve(
    generator: SRResNet | None,
    image: np.ndarray | Image.Image | str | Path,
    *,
    tile: int | None = None,
    ensemble: bool = False,
    back_projection: bool = False,
    fast: bool = False,
    engine: str = "torch",
    progress: bool = True,
) -> np.ndarray | Image.Image:
    """Enlarge an image to 4 times its width and height.

    Args:
        generator: None for MATLAB's bicubic interpolation.
        image: uint8 or uint16 array, (H, W) or (H, W, 1 to 4): gray, gray and alpha, RGB, RGBA; or
            a PIL image; or the path of an image file.
        tile: side of the tiles in LR pixels, halved where memory runs out; changes no result. None
            for what is fast: 400, with OpenVINO 900.
        ensemble: average over the eight flips and rotations of the image, in eight times the time:
            about 0.1 dB more for SRResNet, but less texture for an SRGAN.
        back_projection: correct the result so that, reduced again, it is `image`: `back_project`.
        fast: compute in half precision where the device is fast in it. Values differ from the exact
            ones by half a level on average, single ones by some levels, and so do tiles.
        engine: what computes the network: "torch", or on the CPU "openvino", which may be faster.
            It sums in another order: one value in tens of thousands differs by a level, between
            tiles and the whole, too. It compiles a generator the first time (0.3 s), and again when
            the weights have changed. Needs the packages openvino and onnx.

    Returns:
        For an array one of the same type and channels, (4H, 4W) or (4H, 4W, C); else a PIL image
        (gray, 16-bit gray or RGB; alpha), upright, with the ICC profile and 4 times the dpi. On the
        CPU it equals `to_array(generator(to_tensor(image)))` to the bit; a GPU may choose other
        algorithms for tiles, which can change values by a level. Three equal channels stay equal.
        Alpha is enlarged bicubically; the colours of fully transparent pixels have no influence.
        On Linux's CPUs the process keeps the memory it took, for the next image.

    Raises TypeError or ValueError for what is no such image and for a network whose output is not
    finite, OSError for an unreadable file, MemoryError if not even the smallest tile fits; for
    OpenVINO ValueError if the generator is not on the CPU, ImportError if a package is missing.
    """
    if isinstance(image, (str, Path)):
        pixels, info = read_picture(image)
    elif isinstance(image, Image.Image):
        pixels, info = pil_to_array(image, "the PIL image")
    else:
        pixels, info = image, None
    pixels = _checked(pixels)
    strips = _strips(generator, pixels, tile, ensemble, back_projection, fast, engine, progress)
    enlarged = np.concatenate(list(strips))
    if info is None:
        return enlarged if image.ndim == 3 else enlarged[..., 0]
    if enlarged.dtype == np.uint16 and enlarged.shape[2] > 1:
        warnings.warn("16 bits a channel are returned as 8, Pillow's limit", stacklevel=2)
        enlarged = ((enlarged.astype(np.uint32) + 128) // 257).astype(np.uint8)
    result = Image.fromarray(enlarged if enlarged.shape[2] > 1 else enlarged[..., 0])
    info = _enlarged_info(info)
    result.info.update({key: info[key] for key in ("icc_profile", "dpi") if key in info})
    return result


def super_resolve_file(
    generator: SRResNet | None,
    source: str | Path,
    target: str | Path,
    *,
    quality: int | None = None,
    **options: object,
) -> None:
    """Enlarge the image file `source` into `target`; `options` as of `super_resolve`.

    The suffix of `target` says the format: .png, .jpg, .webp, .avif or .tif; `quality`, 1 to 100,
    is of .jpg, .webp and .avif. 16 bits, profile, EXIF and XMP data are kept where the format can.
    Takes about 1 GB, with OpenVINO 2, beside the decoded source and a strip of tiles.
    Raises as `super_resolve` does.
    """
    picture = read_picture(source)
    with atomic_path(target) as temporary:
        write_picture(temporary, *_enlarged(generator, picture, options), quality)


def _enlarged(generator, picture, options):
    """What `write_picture` wants of the enlarged image: strips, shape, type and info."""
    pixels, info = picture
    pixels = _checked(pixels)
    height, width, channels = pixels.shape
    shape = SCALE * height, SCALE * width, channels
    return _strips(generator, pixels, **options), shape, pixels.dtype, _enlarged_info(info)


def _enlarged_info(info):
    """What is known of the enlarged image, which shall be printed at the same size."""
    dpi = {"dpi": tuple(SCALE * value for value in info["dpi"])} if "dpi" in info else {}
    return info | dpi


def _checked(array):
    """An array of pixels as (H, W, C)."""
    accepted = "accepted are uint8 and uint16 arrays (H, W) or (H, W, 1 to 4), PIL images and paths"
    if not isinstance(array, np.ndarray) or array.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"the image is {getattr(array, 'dtype', type(array).__name__)}; {accepted}")
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] > 4:
        raise ValueError(f"the image has shape {array.shape}; {accepted}, none of them empty")
    return pixels


# A tile is a pair of slices, rows and columns, in LR pixels of the whole image.
def _cut(tile, *sides):
    """Nearly equal tiles of at most so many rows and columns, row by row."""
    spans = []
    for span, side in zip(tile, sides, strict=True):
        length = span.stop - span.start
        step = math.ceil(length / math.ceil(length / side))
        starts = range(span.start, span.stop, step)
        spans.append([slice(start, min(start + step, span.stop)) for start in starts])
    return [(rows, columns) for rows in spans[0] for columns in spans[1]]


def _size(tile):
    return [span.stop - span.start for span in tile]


def _pad(tile, margin, bounds, least=0):
    """The tile with `margin` more pixels a side within `bounds`; more, up to `least` pixels."""
    while True:
        padded = tuple(
            slice(max(bound.start, span.start - margin), min(bound.stop, span.stop + margin))
            for span, bound in zip(tile, bounds, strict=True)
        )
        if padded == bounds or math.prod(_size(padded)) > least:
            return padded
        margin += 4


def _within(tile, padded, scale=1):
    """Where `tile` lies in an array that holds `padded`, enlarged by `scale`."""
    return tuple(
        slice(scale * (span.start - outer.start), scale * (span.stop - outer.start))
        for span, outer in zip(tile, padded, strict=True)
    )


def _whole(image):
    return slice(0, image.shape[0]), slice(0, image.shape[1])


def _strips(
    generator,
    image,
    tile=None,
    ensemble=False,
    back_projection=False,
    fast=False,
    engine="torch",
    progress=True,
    bar=None,
):
    """Yield the enlarged image, (H, W, C), from top to bottom in strips (4h, 4W, C).

    Its pixels are counted on `bar`, or with `progress` on one of its own.
    """
    halves = None if generator is None else _halves(generator, engine, fast)
    if tile is None:
        tile = OPENVINO_TILE if engine == "openvino" else TILE
    if generator is not None and next(generator.parameters()).device.type == "cpu":
        keep_freed_memory()  # else a third of the time goes into pages that the kernel zeroes
    height, width, channels = image.shape
    colours = channels - (channels in (2, 4))  # the rest is alpha
    # Opaque alpha stays opaque; three equal channels are enlarged as one: they stay equal.
    opaque = np.iinfo(image.dtype).max
    translucent = colours < channels and image[..., colours].min() < opaque
    if translucent and generator is not None:
        image = _fill_hidden(image)
    gray = colours == 3 and (image[..., :1] == image[..., 1:3]).all()
    needed = ([0] if gray else list(range(colours))) + ([colours] if translucent else [])
    image = np.take(image, needed, axis=2)
    if not isinstance(tile, int) or tile < 1:
        raise ValueError(f"tile is a whole number of at least 1, not {tile!r}")
    pixels = SCALE**2 * height * width
    with _bar(pixels, not progress) if bar is None else nullcontext(bar) as bar:
        for strip in _cut(_whole(image), tile, width):
            shape = SCALE * _size(strip)[0], SCALE * width, channels
            enlarged = np.full(shape, opaque, image.dtype)
            tiles = _cut(strip, tile, tile)
            while tiles:
                try:
                    result = _enlarge(
                        generator, halves, image, tiles[0], ensemble, back_projection, fast
                    )
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if tile <= SMALLEST_TILE:
                        raise MemoryError("out of memory; close other programs") from error
                    tile = max(SMALLEST_TILE, tile // 2)
                    tiles = [small for large in tiles for small in _cut(large, tile, tile)]
                else:
                    part = enlarged[_within(tiles.pop(0), strip, SCALE)]
                    part[..., :colours] = result[..., : 1 if gray else colours]
                    if translucent:
                        part[..., colours] = result[..., -1]
                    bar.update(result.shape[0] * result.shape[1])
            yield enlarged
            del enlarged, part  # before memory is taken for the next strip


def _bar(pixels, disable):
    return progress_bar(total=pixels, unit="px", unit_scale=True, leave=False, disable=disable)


def _fill_hidden(image):
    """Give fully transparent pixels the colours of the nearest visible ones.

    Their own, of any kind, would colour what a network makes of the visible pixels beside them.
    """
    hidden = image[..., -1] == 0
    if hidden.all():
        return image
    nearest = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    filled = image[tuple(nearest)]
    filled[..., -1] = image[..., -1]
    return filled


def _halves(generator, engine, fast):
    """The network's halves as functions of a tensor, and the side of the second one's tiles."""
    halves = extract_features, enlarge_features
    if engine == "torch":
        return *(partial(half, generator) for half in halves), ENLARGE_TILE
    if engine == "openvino":
        return *compile_halves(generator, *halves, fast), OPENVINO_ENLARGE_TILE
    raise ValueError(f'engine is "torch" or "openvino", not {engine!r}')


def _enlarge(generator, halves, image, tile, ensemble, back_projection, fast):
    """The enlarged `tile` of `image` as an array (4h, 4w, C)."""
    channels = image.shape[2]
    colours = 0 if generator is None else channels - (channels in (2, 4))  # the rest is bicubic
    parts = []
    if colours:
        padded = _pad(tile, BICUBIC_RADIUS, _whole(image)) if back_projection else tile
        device = next(generator.parameters()).device
        precision = MixedPrecision("auto" if fast else "no", device)
        with _inference(generator):
            with precision.autocast():
                sr = _network(generator, halves, image[..., :colours], padded, ensemble)
                sr.clamp_(0, 1)
            if back_projection:
                lr = to_tensor(image[padded][..., :colours])[0].to(sr)
                sr = back_project(sr, lr).clamp(0, 1)
            levels = sr.mul_(np.iinfo(image.dtype).max).round_().permute(1, 2, 0).cpu().numpy()
        parts.append(levels[_within(tile, padded, SCALE)].astype(image.dtype))
    if colours < channels:
        padded = _pad(tile, BICUBIC_RADIUS, _whole(image))
        enlarged = _bicubic(np.ascontiguousarray(image[padded][..., colours:]))
        parts.append(enlarged[_within(tile, padded, SCALE)])
    return np.concatenate(parts, axis=2)


def _bicubic(image):
    """Enlarge (h, w, C) bicubically, colours weighted by alpha: by how much is seen of them."""
    channels, top = image.shape[2], np.iinfo(image.dtype).max
    if channels in (1, 3):
        return imresize(image, SCALE)
    alpha = image[..., -1].astype(np.float32)
    weights = imresize(alpha, SCALE)
    planes = np.empty((*weights.shape, channels), image.dtype)
    planes[..., -1] = weights.clip(0, top) + 0.5
    np.maximum(weights, 0.5, out=weights)  # alpha of less is rounded to none
    for channel in range(channels - 1):
        plane = imresize(image[..., channel] * alpha, SCALE)
        plane /= weights
        planes[..., channel] = plane.clip(0, top, out=plane) + 0.5
    return planes


def back_project(sr: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
    """Correct an enlargement so that, reduced again, it is the LR image; may leave [0, 1].

    sr, lr: float (N, C, 4h, 4w) and (N, C, h, w), or both without N. A step of iterative
    back-projection (Irani and Peleg, "Improving resolution by image registration", 1991): detail
    between the LR pixels stays; the brightness and colour of areas, which may drift by ten levels
    in an SRGAN, become those of LR.
    """
    return sr + imresize(lr - imresize(sr, 1 / SCALE), SCALE)


def extract_features(generator: SRResNet, lr: torch.Tensor) -> torch.Tensor:
    """The first half of `SRResNet.forward`: (N, 3, h, w) in [0, 1] -> feature maps (N, C, h, w)."""
    features = generator.head(lr)
    return features + generator.after_blocks(generator.blocks(features))


def enlarge_features(generator: SRResNet, features: torch.Tensor) -> torch.Tensor:
    """The second half: feature maps (N, C, h, w) -> SR (N, 3, 4h, 4w), nominally in [0, 1]."""
    sr = generator.tail(generator.upsample(features))
    # In half precision the sum would be rounded to steps of a level.
    return (sr.to(torch.promote_types(sr.dtype, torch.float32)) + 1) / 2


def receptive_field_radii(num_blocks: int) -> tuple[int, int]:
    """Receptive-field radii of the two halves in LR pixels, the second rounded up."""
    features = 4 + 2 * num_blocks + 1  # 9 x 9; two 3 x 3 a block; 3 x 3
    enlarge = 1 + 1 / 2 + 4 / 4  # 3 x 3; 3 x 3 at twice the size; 9 x 9 at 4 times the size
    return features, math.ceil(enlarge)


def _network(generator, halves, image, tile, ensemble):
    """The enlarged `tile` of an image (H, W, 1 or 3): float (1 or 3, 4h, 4w), not clamped."""
    features_radius, enlarge_radius = receptive_field_radii(generator.num_blocks)
    least = SMALL_CONVOLUTION // generator.num_channels
    padded = _pad(tile, features_radius + enlarge_radius, _whole(image), least)
    lr = to_tensor(image[padded]).to(next(generator.parameters())).expand(1, 3, -1, -1)
    sr = torch.zeros(3, *(SCALE * length for length in _size(tile)), device=lr.device)
    extract, enlarge, side = halves
    views = 8 if ensemble else 1
    for view in range(views):
        back = view if view >= 4 else -view  # reflections (4 to 7) undo themselves
        features = _turn(extract(_turn(lr, view)), back)
        for small in _cut(tile, side, side):
            small_padded = _pad(small, enlarge_radius, padded, least)
            part = _turn(features[(..., *_within(small_padded, padded))], view)
            part = _turn(enlarge(part), back)[0]
            part = part[(..., *_within(small, small_padded, SCALE))]
            sr[(..., *_within(small, tile, SCALE))] += part / views
        del features  # before those of the next view are computed
    if not sr.sum().isfinite():  # each value, without a mask as large as the image
        raise ValueError("the network's output is not finite: damaged weights or diverged training")
    return sr if image.shape[2] == 3 else sr.mean(dim=0, keepdim=True)


def _turn(x, view):
    """View 0 to 7 of the eight flips and rotations of (N, C, H, W); 0 changes nothing."""
    x = torch.rot90(x, view % 4, (2, 3)) if view else x
    return x.flip(3) if view >= 4 else x


@contextmanager
def _inference(generator):
    """Evaluation mode, no gradients, and on a GPU the precision in which tiles equal the whole."""
    was_training = generator.training
    generator.eval()
    # TF32 keeps 10 bits of each factor: some values would change by a level with the tiles' size.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    try:
        with torch.inference_mode(), exact:
            yield
    finally:
        generator.train(was_training)


def export_onnx(generator: SRResNet, path: str | Path) -> None:
    """Write ONNX: "lr" (N, 3, h, w) -> "sr" (N, 3, 4h, 4w), float32 in [0, 1], any N, h and w."""
    clamped = torch.nn.Sequential(generator, torch.nn.Hardtanh(0, 1)).train(generator.training)
    axes = {"lr": {0: "N", 2: "h", 3: "w"}, "sr": {0: "N", 2: "4h", 3: "4w"}}
    with atomic_path(path) as temporary:
        write_onnx(clamped, (1, 3, 16, 24), str(temporary), axes)


def _demo(generator, source, label, options):
    """Reduce an image file to 1/4, enlarge it again, print scores; the middle side by side."""
    hr = read_image(source)
    hr = hr[: hr.shape[0] // SCALE * SCALE, : hr.shape[1] // SCALE * SCALE]
    lr = imresize(hr, 1 / SCALE)
    images = {"bicubic": imresize(lr, SCALE), label: super_resolve(generator, lr, **options)}
    for name, sr in images.items():
        print(f"{name:>10}: {psnr(sr, hr):.2f} dB, SSIM {ssim(sr, hr):.4f} (Y, border 4)")
    return np.asarray(plots.strip(images, hr, plots.middle_box(hr, 440)))


def _compare(generator, label, options, image, picture, target):
    """A sheet: the middle of an image, 110 LR pixels, bicubic and by the network, side by side.

    Returns what `make_all` wants of it: the function that writes it, and its pixels.
    """
    pixels = _checked(picture[0])
    left, top, width, height = plots.middle_box(pixels, 110 + 2 * 40)  # 40: the receptive field
    lr = pixels[top : top + height, left : left + width]
    bicubic = super_resolve(None, lr, progress=False)
    images = {"bicubic": bicubic, label: super_resolve(generator, lr, **options)}
    images = {name: plots.on_checkerboard(sr) for name, sr in images.items()}
    sheet = np.asarray(plots.compare(images, plots.middle_box(images[label], 440)))
    return partial(write_image, target, sheet), sheet.shape[0] * sheet.shape[1]


def _enlarge_all(generator, results, originals, args, options):
    """Enlarge the images of a batch, with one bar for all; returns how many failed."""
    starts, total = {}, 0  # of each image on the bar, in pixels
    for image, target in results.items():
        starts[image] = total
        if options["progress"] and (args.force or not os.path.lexists(target)):
            total += SCALE**2 * count_pixels(image)

    def make(image, picture, target):
        bar.set_postfix_str(image.name, refresh=False)
        bar.update(starts[image] - bar.n)  # those before may have failed
        enlarged = _enlarged(generator, picture, options | {"bar": bar})
        encode = store_picture(target, *enlarged, args.quality)

        def write():
            with atomic_path(target) as temporary:  # which is on the disk before it takes the name
                encode(temporary)

        return write, SCALE**2 * picture[0].shape[0] * picture[0].shape[1]

    with _bar(total, not options["progress"]) as bar:
        return make_all(results, read_picture, make, originals, args.force)


def _arguments(argv):
    parser = argparse.ArgumentParser(description="Enlarge images 4 times into files NAME.png.")
    add = parser.add_argument
    add("inputs", nargs="*", metavar="IMAGE", help="image files, folders of them, - for stdin")
    output_help = "default: %(default)s; - is stdout, for one image"
    add("-o", "--output", default="super_resolved", metavar="FOLDER", help=output_help)
    add("--recursive", action="store_true", help="also the subfolders of folders")
    formats = ("png", "jpg", "webp", "avif", "tiff")
    add("--format", choices=formats, default="png", help="of the results; default: %(default)s")
    add("--quality", type=int, metavar="1-100", help="of the results in jpg, webp and avif")
    add("--method", choices=("srgan", "srresnet", "bicubic"), default="srgan")
    add("--weights", metavar="FILE", help="default: the newest checkpoints/**/METHOD.safetensors")
    add("--device", help="cuda, mps or cpu; default: the best there is")
    tile_help = f"smaller ones take less memory; default: {TILE}, with OpenVINO {OPENVINO_TILE}"
    add("--tile", type=int, metavar="PIXELS", help=tile_help)
    add("--ensemble", action="store_true", help="average 8 flips and rotations: smoother, slower")
    add("--back-projection", action="store_true", help="keep the input's brightness and colour")
    add("--fast", action="store_true", help="half precision where the device is fast in it")
    engine_help = "openvino is faster on many processors; it needs: pip install openvino onnx"
    add("--engine", choices=("torch", "openvino"), default="torch", help=engine_help)
    add("--force", action="store_true", help="replace results that exist, not skip them")
    add("--large", action="store_true", help="also read images of more than 179 megapixels")
    add("--demo", metavar="IMAGE", help="reduce this image to 1/4, enlarge it again and score it")
    add("--compare", action="store_true", help="beside bicubic: their middles in FOLDER/compare/")
    add("--export", metavar="FILE.onnx", help="write the generator as ONNX")
    args = parser.parse_intermixed_args(argv)
    if not (args.inputs or args.demo or args.export):
        parser.error("name images or folders to enlarge, or --demo IMAGE, or --export FILE.onnx")
    if args.export and args.method == "bicubic":
        parser.error("bicubic has no network to export")
    if args.engine == "openvino":
        if args.method == "bicubic" or args.device not in (None, "cpu"):
            parser.error("--engine openvino computes a network, on the CPU alone")
        args.device = "cpu"
    if args.quality is not None and not (
        1 <= args.quality <= 100 and args.format in ("jpg", "webp", "avif")
    ):
        parser.error("--quality is 1 to 100 and goes with --format jpg, webp or avif")
    if args.output == "-" and (args.demo or args.compare or not args.inputs):
        parser.error("-o - is for one image to enlarge")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 if anything failed, 130 if stopped."""
    args = _arguments(argv)
    sys.stdout.reconfigure(errors="replace")  # for names that the terminal cannot show
    try:
        with pipes(args.inputs, args.output) as (inputs, output):
            return _run(args, inputs, output)
    except KeyboardInterrupt:
        without = " without --force" if args.force else ""
        print(f"\nstopped; the same command{without} resumes", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(args, inputs, output):
    """All that the arguments ask for, once it is sure that no write lands on an original."""
    if args.large:
        Image.MAX_IMAGE_PIXELS = None
    generator, label, weights = None, args.method, None
    if args.method != "bicubic":
        pattern = f"checkpoints/**/{args.method}.safetensors"
        newest = max(Path().glob(pattern), key=os.path.getmtime, default=pattern)
        weights = args.weights or newest  # if there is none, `load_generator` says what to do
    keep = [path for path in (weights, args.demo) if path]
    suffix = f".{args.format}"
    results, originals = plan(inputs, output, suffix, args.recursive, keep)
    if args.output == "-" and len(results) > 1:
        raise ValueError(f"-o - is for one image, not for {len(results)}; choose -o FOLDER")
    demo = output / "demo" / f"{Path(args.demo).stem}.png" if args.demo else None
    for target in filter(None, (args.export, demo)):
        check_target(target, originals, args.force)
    sheets = {}
    if args.compare:
        names = {source: result.relative_to(output) for source, result in results.items()}
        sheets = {k: output / "compare" / name.with_suffix(".png") for k, name in names.items()}
    for target in sheets.values():
        check_target(target, originals)

    device = pick_device(args.device)
    if weights:
        generator, label = load_generator(weights, device), Path(weights).stem
        print(f"{weights} on {device}")
    names = ("tile", "ensemble", "back_projection", "fast", "engine")
    options = {name: getattr(args, name) for name in names}
    if args.engine == "openvino":
        version = import_openvino().__version__.split("-")[0]
        print(f"OpenVINO {version}: a value in tens of thousands differs by a level from PyTorch's")
    options["progress"] = sys.stdout.isatty()
    if args.fast and weights:
        precision = fastest_precision(device)
        apart = "half a level from exact on average, single values some levels"
        print(f"{precision}: {apart}" if precision != "no" else "no half precision: exact")
    if args.export:
        with new_file(args.export, originals, args.force) as temporary:
            export_onnx(generator, temporary)
        print(f"wrote {args.export}")
    if demo:
        sheet = _demo(generator, args.demo, label, options)
        with new_file(demo, originals, args.force) as temporary:
            write_image(temporary, sheet)
        print(f"the middle side by side: {demo}")
    failed = _enlarge_all(generator, results, originals, args, options)
    compare = partial(_compare, generator, label, options)
    failed += make_all(sheets, read_picture, compare, originals, args.force)
    return min(1, failed)


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):  # tidy up as after Ctrl-C
        number = getattr(signal, name, None)  # Windows has no SIGHUP; under `nohup` it is ignored
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    sys.exit(main())
