"""MATLAB's imresize, value for value, on NumPy arrays and PyTorch tensors; it owns nothing else and imports none of ours.

The LR images of every super-resolution benchmark were made by this function. What other libraries call bicubic is not
it: they round once at the end, or resize the columns first, or treat the border otherwise, and up to 85 % of the 8-bit
values differ. This one file can be copied elsewhere: it needs NumPy, and PyTorch for tensors and for speed.
"""

import functools
import itertools
import math
import numbers
import sys
from types import SimpleNamespace

import numpy as np


def imresize(image, scale, *, kernel="bicubic", antialiasing=True, padding="symmetric"):
    """Resize an image as MATLAB's `imresize(image, scale, kernel)` does.

    image         array (H, W) or (H, W, C) of uint8, uint16, float16, float32 or float64; or tensor (C, H, W) or
                  (N, C, H, W) of these types or bfloat16, on any device. Any range: floats are never clipped
    scale         a number > 0, or the output size (height, width) in pixels
    kernel        "bicubic", "bilinear", "lanczos2", "lanczos3", "box", or "nearest" (the box without antialiasing)
    antialiasing  widen the kernel where the image is reduced
    padding       "symmetric": MATLAB of today (DIV2K); "replicate": MATLAB until about 2015, which made the LR
                  files of Set5, Set14, B100 and Urban100

    Returns a new array or tensor of the same kind, type and device; float tensors carry gradients.

    The rules; [m] marks what is in MATLAB's imresize.m, [d] in its documentation, [f] what only the published LR files
    show (Set5, Set14, B100, Urban100 and DIV2K, of which no value differs):
    1. Output size: ceil(scale * size). Given the size instead, scale = output size / size, per dimension. [m, d]
    2. One dimension after the other, the one with the smaller scale first, the rows first if both are equal. [m]
    3. Counting pixels from 1, output x lies at input u = x / scale + (1 - 1 / scale) / 2, with the nominal scale. [m]
    4. Its value is sum_i k(u - i) I(i) / sum_i k(u - i), k the kernel; i runs over the kernel's width: box 1, bilinear
       2, bicubic 4 (Keys 1981, a = -0.5), lanczos2 4, lanczos3 6. [m]
    5. Antialiasing: if scale < 1, k(scale * t) replaces k(t), 1 / scale times as wide. "nearest" never does. [m, d]
    6. Beyond the border: symmetric ... b a | a b c ... y z | z y ..., replicate ... a a | a b c ... y z | z z ... [m]
    7. Integer types are rounded, halves away from zero, and saturated after *each* dimension; floats never. [f]

    Memory, arrays: beside input and output one intermediate of the input's type (one dimension resized) and less than
    6 MiB. An array that is not contiguous may be copied first. Memory, tensors off the fast path (see below): the same,
    and sums over a few planes (H, W) at a time, in float64 for integers and float32 for half types.

    Raises TypeError or ValueError, saying what was given and what is accepted. An array with NaN or infinite values is a
    ValueError. A tensor is not searched for them: that would stall the GPU at each call, and in training the NaN must
    reach the loss, where a gradient scaler expects it. They spread to the outputs whose kernel covers them.
    """
    torch = sys.modules.get("torch")  # where nobody has imported it, there are no tensors
    is_tensor = torch is not None and isinstance(image, torch.Tensor)
    _check_image(image, is_tensor)
    if kernel not in _KERNELS:
        raise ValueError(f"kernel is {kernel!r}; accepted are {', '.join(_KERNELS)}")
    if padding not in ("symmetric", "replicate"):
        raise ValueError(f"padding is {padding!r}; accepted are symmetric and replicate")
    size = tuple(image.shape[-2:] if is_tensor else image.shape[:2])
    scales, out_size = _scales_and_size(scale, size)
    antialiasing = bool(antialiasing) and kernel != "nearest"
    if is_tensor and image.device.type == "mps" and not image.is_floating_point():
        # MPS has no float64, without which a sum close to a half could round the other way.
        return imresize(
            image.cpu(), scale, kernel=kernel, antialiasing=antialiasing, padding=padding
        ).to(image.device)

    # From here on always four dimensions (N, C, H, W) or three (H, W, C).
    x = (
        image
        if image.ndim == (4 if is_tensor else 3)
        else image[None]
        if is_tensor
        else image[:, :, None]
    )
    for axis in sorted(
        (0, 1), key=scales.__getitem__
    ):  # a stable sort: rows stay first when the scales are equal
        if (
            kernel == "bicubic"
            and (antialiasing or scales[axis] > 1)
            and _fast_applies(x, axis, scales[axis])
        ):
            x = _fast_pass(_to_tensor(x), axis, scales[axis], padding)
        else:
            taps = _contributions(
                size[axis], out_size[axis], scales[axis], kernel, antialiasing, padding
            )
            x = (
                _tensor_pass(x, axis, *taps)
                if is_tensor
                else _array_pass(_to_array(x), axis, *taps)
            )
    if is_tensor:
        return x if image.ndim == 4 else x[0]
    return _to_array(x) if image.ndim == 3 else _to_array(x)[:, :, 0]


def _check_image(image, is_tensor):
    """Raise TypeError or ValueError if `image` cannot be resized."""
    types = ["uint8", "uint16", "float16", "float32", "float64"]
    if is_tensor:
        types.append("bfloat16")
        given, shapes, dims = (
            str(image.dtype).removeprefix("torch."),
            "(C, H, W) and (N, C, H, W)",
            (3, 4),
        )
    elif isinstance(image, np.ndarray):
        given, shapes, dims = image.dtype.name, "(H, W) and (H, W, C)", (2, 3)
    else:
        raise TypeError(
            f"image is a {type(image).__name__}; accepted are NumPy arrays and PyTorch tensors"
        )
    if given not in types:
        raise TypeError(f"image is of type {given}; accepted are {', '.join(types)}")
    if image.ndim not in dims or 0 in image.shape:
        raise ValueError(
            f"image has shape {tuple(image.shape)}; accepted are {shapes}, none of them 0"
        )
    # The extremes are NaN if any value is, and need no array of truth values as large as the image.
    if (
        not is_tensor
        and image.dtype.kind == "f"
        and not (math.isfinite(image.min()) and math.isfinite(image.max()))
    ):
        raise ValueError(
            "image holds NaN or infinite values, which would spread; accepted are finite values"
        )


def _scales_and_size(scale, size):
    """Return the scale of each dimension and the output size (rule 1)."""
    accepted = "accepted are a number > 0 and an output size (height, width) of whole numbers > 0"
    if isinstance(scale, numbers.Real) and not isinstance(scale, bool):
        scale = float(scale)
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale is {scale}; {accepted}")
        return (scale, scale), tuple(math.ceil(scale * n) for n in size)
    if not isinstance(scale, (tuple, list)) or not all(
        isinstance(n, numbers.Integral) for n in scale
    ):
        raise TypeError(f"scale is {scale!r}; {accepted}")
    if len(scale) != 2 or min(scale) < 1:
        raise ValueError(f"scale is {scale!r}; {accepted}")
    return (scale[0] / size[0], scale[1] / size[1]), (int(scale[0]), int(scale[1]))


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
    "nearest": (lambda t: ((t >= -0.5) & (t < 0.5)).astype(np.float64), 1),
    "box": (lambda t: ((t >= -0.5) & (t < 0.5)).astype(np.float64), 1),
    "lanczos2": (functools.partial(_lanczos, lobes=2), 4),
    "lanczos3": (functools.partial(_lanczos, lobes=3), 6),
}


def _inside(index, length, padding):
    """Return the pixel that stands for each position `index` (from 0; any integer) beyond the border (rule 6)."""
    if padding == "replicate":
        return np.clip(index, 0, length - 1)
    index = index % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


@functools.lru_cache(maxsize=64)
def _contributions(length, out_length, scale, kernel, antialiasing, padding):
    """Return the weights and the input pixels, both (taps, out_length), of one dimension (rules 3 to 6)."""
    function, width = _KERNELS[kernel]
    shrink = min(scale, 1.0) if antialiasing else 1.0
    width /= shrink
    if width * out_length > 2**27:
        raise ValueError(
            f"scale {scale:g} is too small: each output pixel would take {width:.0f} input pixels"
        )
    centre = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    index = np.floor(centre - width / 2) + np.arange(math.ceil(width) + 2)[:, None]
    weights = shrink * function(shrink * (centre - index))
    weights /= weights.sum(axis=0)
    used = weights.any(axis=1)
    return weights[used], _inside(index[used].astype(np.int64) - 1, length, padding)


def _array_pass(x, axis, weights, index):
    """Resize one axis of an array (H, W, C), in strips of rows: no float copy of the image is made."""
    shape = list(x.shape)
    shape[axis] = weights.shape[1]
    out = np.empty(shape, x.dtype)
    rows = max(1, 2**16 // math.prod(shape[1:]))  # 512 KiB of float64 stay in the cache
    for top in range(0, shape[0], rows):
        strip = slice(top, top + rows)
        # For the columns the strip is turned, so that here, too, whole rows of memory are summed.
        source = x if axis == 0 else np.ascontiguousarray(x[strip].transpose(1, 2, 0))
        taps = (weights[:, strip], index[:, strip]) if axis == 0 else (weights, index)
        total = 0
        for w, i in zip(
            *taps, strict=True
        ):  # term after term: no library's order of summation decides a tie
            total += w[:, None, None] * source[i]
        if (
            x.dtype.kind == "u"
        ):  # rule 7; what is negative saturates to 0 whichever way it is rounded
            total = np.clip(np.floor(total + 0.5), 0, np.iinfo(x.dtype).max)
        out[strip] = total if axis == 0 else total.transpose(2, 0, 1)
    return out


def _tensor_pass(x, axis, weights, index):
    """Resize axis 0 or 1 of the planes of a tensor (N, C, H, W), on its device."""
    import torch

    integer = not x.dtype.is_floating_point
    dtype = torch.float64 if integer else torch.promote_types(x.dtype, torch.float32)
    weights = torch.as_tensor(weights, device=x.device, dtype=dtype)[:, :, None]
    index = torch.as_tensor(index, device=x.device)
    planes = x.flatten(0, 1) if axis == 0 else x.flatten(0, 1).transpose(1, 2)
    out = []
    # A matrix product would be shorter, but TF32 and autocast could take its precision away.
    for part in planes.split(max(1, 2**20 // planes[0].numel())):
        part = part.to(dtype).contiguous()
        total = 0
        for w, i in zip(weights, index, strict=True):
            total = total + w * part.index_select(1, i)
        if integer:
            total = (total + 0.5).floor().clamp(0, torch.iinfo(x.dtype).max)
        out.append(total.to(x.dtype))
    out = torch.cat(out) if axis == 0 else torch.cat(out).transpose(1, 2)
    return out.unflatten(0, x.shape[:2]).contiguous()


# The fast path: uint8, bicubic, these scales, on the CPU. PyTorch's antialiased uint8 interpolation, like Pillow's, sums
# integers with weights rounded to 14 binary digits or more, and rounds halves up. The weights of these scales are
# n/4096, n/256, n/128 and n/1024, which are held exactly, or n/81 (16 digits) and n/27 (14): there sums are at least
# 1/162 and 1/54 away from a half, and the errors at most 0.0052 and 0.0156. So one dimension at a time comes out exact
# but for the border, beyond which PyTorch sees nothing: what lies there is attached.
_FAST = {
    1 / 4: (4, 1),
    1 / 3: (3, 1),
    1 / 2: (2, 1),
    2.0: (1, 2),
    3.0: (1, 3),
    4.0: (1, 4),
}  # pixels in, out: a unit
_SMALL = 2**21  # bytes


def _fast_applies(x, axis, scale):
    """Whether the fast path can resize this axis of an array (H, W, C) or a tensor (N, C, H, W)."""
    if scale not in _FAST or str(x.dtype).removeprefix("torch.") != "uint8":
        return False
    is_array = isinstance(x, np.ndarray)
    height, width, channels = x.shape if is_array else (*x.shape[2:], x.shape[1])
    # Beyond this PyTorch has other routines, of which one at least (5 channels, 1 pixel wide) is not exact.
    if min(height, width) < 4 or channels > 4 or not (is_array or x.device.type == "cpu"):
        return False
    return _fast_is_exact(scale, channels, is_array or x.stride(1) == 1)


@functools.cache
def _fast_is_exact(scale, channels, channels_last):
    """Compare the fast path with the general one, once per process, scale and layout (2 ms).

    How PyTorch rounds is not documented, and each kind of processor has its own routine: where one works otherwise (or
    PyTorch is missing, or too old for it), the general path gives the right values.
    """
    for n, axis in itertools.product(
        (96, 94, 5), (0, 1)
    ):  # PyTorch has several routines, for some lengths each
        noise = (
            np.random.default_rng(0)
            .integers(-128, 384, (n, n, channels))
            .clip(0, 255)
            .astype(np.uint8)
        )
        taps = _contributions(n, math.ceil(n * scale), scale, "bicubic", True, "symmetric")
        try:
            x = _to_tensor(noise) if channels_last else _to_tensor(noise).contiguous()
            fast = _to_array(_fast_pass(x, axis, scale, "symmetric"))
        except (ImportError, RuntimeError):
            return False
        if not np.array_equal(fast, _array_pass(noise, axis, *taps)):
            return False
    return True


def _to_tensor(x):
    """View an array (H, W, C) as a tensor (1, C, H, W); leave a tensor as it is."""
    import torch

    if isinstance(x, torch.Tensor):
        return x
    x = np.ascontiguousarray(x)
    if not x.flags.writeable:
        # Pillow's arrays are read-only, of which PyTorch warns. Nothing here writes, so a writable view does no harm.
        x = np.asarray(
            SimpleNamespace(
                __array_interface__=x.__array_interface__ | {"data": (x.ctypes.data, False)}
            )
        )
    return torch.from_numpy(x)[None].permute(0, 3, 1, 2)


def _to_array(x):
    """Turn a tensor (1, C, H, W) into an array (H, W, C); leave an array as it is."""
    return x if isinstance(x, np.ndarray) else np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())


def _fast_pass(x, axis, scale, padding):
    """Resize axis 0 or 1 of the planes of a uint8 tensor (N, C, H, W) by one of the scales of _FAST."""
    import torch

    step_in, step_out = _FAST[scale]
    dim, length = axis + 2, x.shape[axis + 2]
    units = -(-length // step_in)
    order = torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format
    x = x.contiguous(memory_format=order)
    # A unit comes out right with two others on either side.
    if (
        x.numel() <= _SMALL or units < 3 or x.shape[5 - dim] == 1
    ):  # small: two more are attached to each border
        before, after = (-2 * step_in, 0), (length, (units + 2) * step_in)
        x = torch.cat([_take(x, dim, padding, before), x, _take(x, dim, padding, after)], dim)
        out = _interpolate(x, dim, (units + 4) * step_out).narrow(
            dim, 2 * step_out, units * step_out
        )
        return out.contiguous(memory_format=order)
    if (
        length % step_in
    ):  # the unit that sticks out would have to be attached to a copy: instead, small strips
        shape = list(x.shape)
        shape[dim] = units * step_out
        out = torch.empty(shape, dtype=x.dtype, memory_format=order)
        strips = min(-(-x.numel() // _SMALL), x.shape[5 - dim])
        for source, goal in zip(
            x.tensor_split(strips, 5 - dim), out.tensor_split(strips, 5 - dim), strict=True
        ):
            goal.copy_(_fast_pass(source, axis, scale, padding))
        return out
    # Large: no second copy of the image. The three outer units of each border come from strips of seven.
    out = _interpolate(x, dim, units * step_out)
    first, last = (-2 * step_in, 5 * step_in), ((units - 5) * step_in, (units + 2) * step_in)
    strips = _interpolate(_take(x, dim, padding, first, last), dim, 14 * step_out)
    out.narrow(dim, 0, 3 * step_out).copy_(strips.narrow(dim, 2 * step_out, 3 * step_out))
    out.narrow(dim, (units - 3) * step_out, 3 * step_out).copy_(
        strips.narrow(dim, 9 * step_out, 3 * step_out)
    )
    return out


def _take(x, dim, padding, *ranges):
    """Return the rows or columns of `x` at these ranges of positions, which may lie beyond the border."""
    index = _range_index(x.shape[dim], padding, ranges)
    if x.stride(1) == 1:  # keeps the channels last
        return x.permute(0, 2, 3, 1).index_select(dim - 1, index).permute(0, 3, 1, 2)
    return x.index_select(dim, index)


@functools.lru_cache(maxsize=64)
def _range_index(length, padding, ranges):
    import torch

    return torch.from_numpy(
        _inside(np.concatenate([np.arange(*r) for r in ranges]), length, padding)
    )


def _interpolate(x, dim, out_length):
    """Resize one dimension as PyTorch does."""
    from torch.nn.functional import interpolate

    n, c, h, w = x.shape
    if dim == 2 and w % 4 == 0 and x.is_contiguous():
        # Columns do not mix, so four neighbours may pose as four channels, for which PyTorch has its fastest routine.
        x = x.view(n * c, h, w // 4, 4).permute(0, 3, 1, 2)
        x = interpolate(x, size=(out_length, w // 4), mode="bicubic", antialias=True)
        return x.permute(0, 2, 3, 1).reshape(n, c, out_length, w)
    size = (out_length, w) if dim == 2 else (h, out_length)
    return interpolate(x, size=size, mode="bicubic", antialias=True)
