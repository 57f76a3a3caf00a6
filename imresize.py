"""MATLAB's imresize, value for value, on NumPy arrays and PyTorch tensors; it owns nothing else and needs no other file.

Every super-resolution benchmark was shrunk with this function, and other libraries' "bicubic" is another one: up to 85 % of
its 8-bit values differ. Take the file along: it needs NumPy, and PyTorch for tensors and for the fast path.
"""

import functools
import math
import numbers
import sys
from types import SimpleNamespace

import numpy as np

# Kernels as written in MATLAB's imresize.m, and their widths. All are even; "box" includes -0.5 but not 0.5.
_EPS = np.finfo(np.float64).eps  # keeps sin(x)/x defined at 0, as in imresize.m


def _box(x):
    return ((-0.5 <= x) & (x < 0.5)).astype(np.float64)


def _triangle(x):
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x):
    """Keys' cubic convolution with a = -0.5 (IEEE ASSP 29(6), 1981, equation 15)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return near * (x <= 1) + far * ((1 < x) & (x <= 2))


def _lanczos(x, lobes):
    sinc = (np.sin(np.pi * x) * np.sin(np.pi * x / lobes) + _EPS) / (np.pi**2 * x**2 / lobes + _EPS)
    return sinc * (np.abs(x) < lobes)


_KERNELS = {
    "nearest": (_box, 1),
    "box": (_box, 1),
    "bilinear": (_triangle, 2),
    "bicubic": (_cubic, 4),
    "lanczos2": (functools.partial(_lanczos, lobes=2), 4),
    "lanczos3": (functools.partial(_lanczos, lobes=3), 6),
}
_PADDINGS = ("symmetric", "replicate")
_STRIP = 1 << 16  # values summed at a time: 512 KiB of float64, which stays in the processor's cache


def imresize(image, scale, *, kernel="bicubic", antialiasing=True, padding="symmetric"):
    """Resize an image as MATLAB's `imresize(image, scale, kernel)` does.

    image         array (H, W) or (H, W, C) of uint8, uint16, float16, float32 or float64;
                  or tensor (C, H, W) or (N, C, H, W) of the same types or bfloat16, on any device
    scale         a number > 0, or the output size (height, width)
    kernel        "bicubic", "bilinear", "lanczos2", "lanczos3", "box", or "nearest" (the box without antialiasing)
    antialiasing  widen the kernel where the image is reduced
    padding       "symmetric" (MATLAB since about 2015, DIV2K) or "replicate" (older MATLAB: the LR files of Set5,
                  Set14, B100 and Urban100)

    Returns a new array or tensor of the same type, kind and device. Any float range will do: values are not clipped.
    """
    is_tensor = "torch" in sys.modules and isinstance(image, sys.modules["torch"].Tensor)
    height_axis = _check_image(image, is_tensor)
    size = image.shape[height_axis : height_axis + 2]
    scales, out_size = _scales_and_size(scale, size)
    if kernel not in _KERNELS:
        raise ValueError(f"kernel is {kernel!r}; accepted are {', '.join(map(repr, _KERNELS))}")
    if padding not in _PADDINGS:
        raise ValueError(f"padding is {padding!r}; accepted are 'symmetric' and 'replicate'")
    antialiasing = bool(antialiasing) and kernel != "nearest"

    if is_tensor and image.device.type == "mps" and not image.is_floating_point():
        # MPS has no float64, without which the general path could round a tie the other way.
        options = {"kernel": kernel, "antialiasing": antialiasing, "padding": padding}
        return imresize(image.cpu(), scale, **options).to(image.device)

    x = image
    # Stable sort: the dimension with the smaller scale goes first, the rows when both are equal.
    for axis in sorted((0, 1), key=lambda k: scales[k]):
        step = (size[axis], out_size[axis], scales[axis], kernel, antialiasing, padding)
        if _fast_applies(x, is_tensor, *step):
            x = _fast_pass(x, axis, out_size[axis], scales[axis], padding, is_tensor)
        elif is_tensor:
            x = _tensor_pass(x, axis - 2, *contributions(*step))
        else:
            x = _array_pass(x, axis, *contributions(*step))
    return x


def _check_image(image, is_tensor):
    """Raise TypeError or ValueError if `image` cannot be resized; return which axis the height is."""
    if is_tensor:
        kinds = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")
        given, shapes, ndims = str(image.dtype).removeprefix("torch."), "(C, H, W) or (N, C, H, W)", (3, 4)
    elif isinstance(image, np.ndarray):
        kinds = ("uint8", "uint16", "float16", "float32", "float64")
        given, shapes, ndims = image.dtype.name, "(H, W) or (H, W, C)", (2, 3)
    else:
        raise TypeError(f"image is a {type(image).__name__}; accepted are NumPy arrays and PyTorch tensors")
    if given not in kinds:
        raise TypeError(f"image has type {given}; accepted are {', '.join(kinds)}")
    if image.ndim not in ndims:
        raise ValueError(f"image has shape {tuple(image.shape)}; accepted are {shapes}")
    if 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}: it is empty")
    if not is_tensor and image.dtype.kind == "f" and not (np.isfinite(image.min()) and np.isfinite(image.max())):
        raise ValueError("image holds NaN or infinite values, which would spread over their neighbourhood")
    return image.ndim - 2 if is_tensor else 0


def _scales_and_size(scale, size):
    """Return (scale per axis, output size) as MATLAB derives them from a scale or from an output size."""
    accepted = "accepted are a number > 0 and an output size (height, width) of whole numbers >= 1"
    if isinstance(scale, numbers.Real) and not isinstance(scale, bool):
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale is {scale}; {accepted}")
        return (float(scale),) * 2, tuple(math.ceil(float(scale) * n) for n in size)
    if not isinstance(scale, (tuple, list)) or not all(isinstance(n, numbers.Integral) for n in scale):
        raise TypeError(f"scale is {scale!r}; {accepted}")
    if len(scale) != 2 or min(scale) < 1:
        raise ValueError(f"scale is {scale!r}; {accepted}")
    return tuple(out / n for out, n in zip(scale, size)), tuple(int(n) for n in scale)


def _source_index(index, length, padding):
    """Where a position beyond the border takes its value from."""
    if padding == "replicate":  # a a | a b c d | d d
        return np.clip(index, 0, length - 1)
    index = index % (2 * length)  # b a | a b c d | d c
    return np.where(index < length, index, 2 * length - 1 - index)


@functools.lru_cache(maxsize=64)
def contributions(length, out_length, scale, kernel, antialiasing, padding):
    """Return the weights and the source indices of one dimension, both (taps, out_length): MATLAB's `contributions`."""
    function, width = _KERNELS[kernel]
    stretch = scale if antialiasing and scale < 1 else 1.0  # reducing: the kernel widens by 1 / scale
    width = width / stretch
    if width > 1e6:
        raise ValueError(f"scale {scale} is too small: every value would be a mean of {width:.0f} others")
    # MATLAB's formulas in its order of operations, pixel centres at 1, 2, ...: the nominal scale counts, not
    # out_length / length.
    u = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    left = np.floor(u - width / 2)
    index = left + np.arange(math.ceil(width) + 2)[:, None]
    weights = stretch * function(stretch * (u - index))
    weights = weights / weights.sum(axis=0)
    used = weights.any(axis=1)
    index = _source_index(index[used].astype(np.int64) - 1, length, padding)
    return weights[used], index


def _weighted_sum(x, weights, index):
    """Sum the taps along axis 0 of `x` in float64, in MATLAB's order, so that no library's summation decides a tie."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    total = 0
    for w, i in zip(weights, index):
        total += w.reshape(shape) * x[i]
    return total


def _array_pass(x, axis, weights, index):
    """Resize one axis of an array (H, W) or (H, W, C), strip by strip: no float copy of the image is made."""
    shape = list(x.shape)
    shape[axis] = weights.shape[1]
    out = np.empty(shape, x.dtype)
    rows = max(1, _STRIP // math.prod(shape[1:]))
    for top in range(0, shape[0], rows):
        strip = slice(top, top + rows)
        if axis == 0:
            total = _weighted_sum(x, weights[:, strip], index[:, strip])
        else:  # turned over, so that a tap is again a gather of whole rows
            total = _weighted_sum(np.ascontiguousarray(np.moveaxis(x[strip], 0, -1)), weights, index)
            total = np.moveaxis(total, -1, 0)
        if x.dtype.kind == "u":
            # Half away from zero and saturation, after every pass. (Negative values all become 0.)
            total = np.clip(np.floor(total + 0.5), 0, np.iinfo(x.dtype).max)
        out[strip] = total
    return out


def _tensor_pass(x, dim, weights, index):
    """Resize one dimension of a tensor on its device; differentiable for float types."""
    import torch

    integer = not x.is_floating_point()
    dtype = torch.float64 if integer else torch.promote_types(x.dtype, torch.float32)
    weights = torch.as_tensor(weights).to(x.device, dtype)
    index = torch.as_tensor(index).to(x.device)
    shape = (-1,) + (1,) * (-1 - dim)
    total = 0
    for w, i in zip(weights, index):
        total = total + w.reshape(shape) * x.index_select(dim, i).to(dtype)
    if integer:
        total = (total + 0.5).floor().clamp(0, torch.iinfo(x.dtype).max)
    return total.to(x.dtype)


def _fast_applies(*_):
    return False
