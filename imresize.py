"""MATLAB's imresize, value for value; it knows nothing of files, lists or networks.

MATLAB made the LR images of every super-resolution benchmark. Other libraries' bicubic differs in
up to 85 % of the 8-bit values. The rules are in MATLAB's imresize.m [m], in its documentation [d],
or visible only in the LR files of Set5, Set14, B100, Urban100 and DIV2K, all reproduced [f]:

1. Output size: ceil(scale * size). If the size is given, scale = output size / size. [m, d]
2. One dimension is resized after the other: the smaller scale first, rows first if equal. [m]
3. Counting pixels from 1, output pixel x lies at u = x / scale + (1 - 1 / scale) / 2. [m]
4. Its value is sum_i k(u - i) I(i) / sum_i k(u - i), where k is the kernel. Width of k: box 1,
   bilinear 2, bicubic 4 (Keys 1981, a = -0.5), lanczos2 4, lanczos3 6. [m]
5. Antialiasing: if scale < 1, k(scale * t) replaces k(t) and is 1 / scale times as wide. [m, d]
6. Beyond the border: symmetric (... b a | a b c ...) or replicate (... a a | a b c ...). [m]
7. Integers are rounded, halves away from zero, and saturate after *each* dimension. [f]
"""

import functools
import math
import numbers

import numpy as np
import torch

from tools.fast_imresize import fast_resize, memory_format


def imresize(
    image: np.ndarray | torch.Tensor,
    scale: float | tuple[int, int],
    *,
    kernel: str = "bicubic",
    antialiasing: bool = True,
    padding: str = "symmetric",
) -> np.ndarray | torch.Tensor:
    """Resize an image as MATLAB's `imresize(image, scale, kernel)` does, to a new one of its type.

    Args:
        image: array (H, W) or (H, W, C) of uint8, uint16, float16, float32 or float64; or tensor
            (C, H, W) or (N, C, H, W) of these types or bfloat16, on any device, with gradients.
        scale: a number > 0, or the output size (height, width) in pixels.
        kernel: a kernel of rule 4, or "nearest" (the box, never antialiased).
        antialiasing: apply rule 5.
        padding: "symmetric", as MATLAB today (DIV2K); or "replicate", as MATLAB until about 2015
            (the LR files of Set5, Set14, B100 and Urban100).

    Raises TypeError or ValueError for other arguments, or an array with NaN or infinite values (a
    tensor is not searched for them: that would force a GPU synchronisation).
    """
    x = _planes(image)
    if kernel not in _KERNELS:
        raise ValueError(f"kernel is {kernel!r}; accepted are {', '.join(_KERNELS)}")
    if padding not in ("symmetric", "replicate"):
        raise ValueError(f"padding is {padding!r}; accepted are symmetric and replicate")
    scales, out_size = _scales_and_size(scale, x.shape[2:])
    is_array = isinstance(image, np.ndarray)
    in_double = is_array or not x.is_floating_point()
    if in_double and x.device.type == "mps":
        x = x.cpu()  # MPS lacks float64, without which a sum close to a half could round wrongly
    sum_type = torch.float64 if in_double else torch.promote_types(x.dtype, torch.float32)
    layout = memory_format(x)
    for axis in sorted((0, 1), key=scales.__getitem__):  # stable: rows first if they are equal
        dim, rules = 2 + axis, (scales[axis], kernel, antialiasing, padding)
        fast = fast_resize(x, dim, *rules)  # the same values; None where it does not apply
        x = _resize_dimension(x, dim, out_size[axis], rules, sum_type) if fast is None else fast
    x = x.contiguous(memory_format=layout)
    if is_array:
        return x[0].permute(1, 2, 0).numpy().reshape(*out_size, *image.shape[2:])
    return x.reshape(*image.shape[:-2], *out_size).to(image.device)


def _planes(image):
    """Check an image and return it as a tensor (N, C, H, W)."""
    types = ["uint8", "uint16", "float16", "float32", "float64"]
    if isinstance(image, np.ndarray):
        given, dims, shapes = image.dtype.name, (2, 3), "(H, W) and (H, W, C)"
    elif isinstance(image, torch.Tensor):
        types.append("bfloat16")
        given, dims, shapes = str(image.dtype)[6:], (3, 4), "(C, H, W) and (N, C, H, W)"
    else:
        raise TypeError(f"image is a {type(image).__name__}, not a NumPy array or PyTorch tensor")
    if given not in types:
        raise TypeError(f"image is of type {given}; accepted are {', '.join(types)}")
    if image.ndim not in dims or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; accepted are {shapes}, without 0")
    if isinstance(image, torch.Tensor):
        return image.reshape(-1, *image.shape[-3:])
    if given.startswith("float") and not np.isfinite([image.min(), image.max()]).all():
        raise ValueError("image holds NaN or infinite values; accepted are finite values")
    # PyTorch warns of read-only arrays, such as Pillow's; `np.require` copies those.
    array = np.require(image, image.dtype.newbyteorder("="), ["C", "W"])
    return torch.from_numpy(array.reshape(1, *image.shape[:2], -1)).permute(0, 3, 1, 2)


def _scales_and_size(scale, size):
    """Return the scale of each dimension and the output size (rule 1)."""
    accepted = "accepted are a number > 0 and an output size (height, width) of whole numbers > 0"
    if isinstance(scale, numbers.Real) and not isinstance(scale, bool):
        if 0 < scale < math.inf:
            return (float(scale), float(scale)), tuple(math.ceil(float(scale) * n) for n in size)
    elif isinstance(scale, (tuple, list)) and all(isinstance(n, numbers.Integral) for n in scale):
        if len(scale) == 2 and min(scale) > 0:
            return (scale[0] / size[0], scale[1] / size[1]), (int(scale[0]), int(scale[1]))
    else:
        raise TypeError(f"scale is {scale!r}; {accepted}")
    raise ValueError(f"scale is {scale!r}; {accepted}")


# The kernels (rule 4), in the order of operations of imresize.m.
def _cubic(t):
    t = np.abs(t)
    inner = 1.5 * t**3 - 2.5 * t**2 + 1
    outer = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return inner * (t <= 1) + outer * ((t > 1) & (t <= 2))


def _lanczos(t, lobes):
    eps = np.finfo(np.float64).eps  # makes 0 / 0 a 1
    product = np.sin(np.pi * t) * np.sin(np.pi * t / lobes)
    return (product + eps) / (np.pi**2 * t**2 / lobes + eps) * (np.abs(t) < lobes)


_KERNELS = {  # name: (function, width)
    "bicubic": (_cubic, 4),
    "bilinear": (lambda t: np.maximum(1 - np.abs(t), 0), 2),
    "box": (lambda t: (t >= -0.5) & (t < 0.5), 1),
    "lanczos2": (functools.partial(_lanczos, lobes=2), 4),
    "lanczos3": (functools.partial(_lanczos, lobes=3), 6),
}
_KERNELS["nearest"] = _KERNELS["box"]


@functools.lru_cache(maxsize=64)
def _contributions(length, out_length, scale, kernel, antialiasing, padding):
    """Return the weights and the input pixels, both (taps, out_length) (rules 3 to 6)."""
    function, width = _KERNELS[kernel]
    shrink = min(scale, 1.0) if antialiasing and kernel != "nearest" else 1.0
    width /= shrink
    if width * out_length > 2**27:
        raise ValueError(f"scale {scale:g} is too small: an output pixel needs {width:.0f} pixels")
    centre = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    index = np.floor(centre - width / 2) + np.arange(math.ceil(width) + 2)[:, None]
    weights = shrink * function(shrink * (centre - index))
    weights /= weights.sum(axis=0)
    used = weights.any(axis=1)
    weights, index = weights[used], index[used].astype(np.int64) - 1  # index from 0
    if padding == "replicate":
        return weights, np.clip(index, 0, length - 1)
    index %= 2 * length
    return weights, np.where(index < length, index, 2 * length - 1 - index)


def _resize_dimension(x, dim, out_length, rules, sum_type):
    """Resize dimension `dim` of (N, C, H, W): the weighted sums of rule 4, rounded by rule 7."""
    weights, index = _contributions(x.shape[dim], out_length, *rules)
    weights = torch.as_tensor(weights, device=x.device, dtype=sum_type)[:, :, None]
    index = torch.as_tensor(index, device=x.device)
    x = x.movedim(dim, 0)
    lines = x.flatten(1)  # each line is one row (or column) of all planes
    if x.requires_grad:
        lines = lines.to(sum_type)  # so that the gradients, too, are summed in this type
    strip = max(1, 2**17 // lines.shape[1])  # lines; 1 MiB of float64 stays in the cache
    out = []
    for w, i in zip(weights.split(strip, 1), index.split(strip, 1), strict=True):
        # In a matrix product, order of summation, TF32 and autocast would decide the rounding.
        total = 0
        for weight, pixel in zip(w, i, strict=True):
            total += weight * lines.index_select(0, pixel).to(sum_type)
        if not x.is_floating_point():
            total = (total + 0.5).clamp(0, torch.iinfo(x.dtype).max)
        out.append(total.to(x.dtype))  # cuts off what follows the point of an integer
    return torch.cat(out).unflatten(1, x.shape[1:]).movedim(0, dim)
