"""The fast path of `imresize` for uint8 images on the CPU, exact; the rules are in `imresize.py`.

PyTorch's antialiased uint8 interpolation sums integers, with weights rounded to 14 binary digits or
more, and rounds halves up. The weights of 1/4, 1/2, 2 and 4 are n/4096, n/256, n/128 and n/1024,
which are held exactly; those of 1/3 are n/81 (16 digits), of 3 n/27 (14 digits). There a sum is at
least 1/162 or 1/54 away from a half, and its error is at most 0.0052 or 0.0156. So one dimension at
a time comes out exact, except near the border, where PyTorch leaves out the pixels beyond.
"""

import functools
import itertools

import numpy as np
import torch
import torch.nn.functional as F

# The image is cut into units: the smallest groups of pixels that become whole output pixels.
UNITS = {1 / 4: (4, 1), 1 / 3: (3, 1), 1 / 2: (2, 1), 2.0: (1, 2), 3.0: (1, 3), 4.0: (1, 4)}
SMALL = 2**21  # bytes of an image that is copied without hesitation


def fast_resize(
    x: torch.Tensor, dim: int, scale: float, kernel: str, antialiasing: bool, padding: str
) -> torch.Tensor | None:
    """Resize dimension 2 or 3 of (N, C, H, W) as `imresize` does; None where that is not exact."""
    # With more channels or fewer pixels, not all of PyTorch's routines are exact.
    if x.dtype != torch.uint8 or x.device.type != "cpu" or x.shape[1] > 4 or min(x.shape[2:]) < 4:
        return None
    if kernel != "bicubic" or scale not in UNITS or not (antialiasing or scale > 1):
        return None
    is_exact = _is_exact(scale, x.shape[1], memory_format(x))
    return _resize(x, dim, scale, padding) if is_exact else None


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """Return whether the channels of (N, C, H, W) lie last in memory."""
    is_last = x.stride(1) == 1 and x.shape[1] > 1
    return torch.channels_last if is_last else torch.contiguous_format


@functools.cache
def _is_exact(scale, channels, layout):
    """Compare PyTorch's uint8 rounding, which differs between processors, with float64 (few ms)."""
    for size, dim in itertools.product((96, 94, 5), (2, 3)):
        noise = np.random.default_rng(0).integers(-128, 384, (1, channels, size, size))
        x = torch.from_numpy(noise.clip(0, 255)).contiguous(memory_format=layout)
        exact = (_resize(x.double(), dim, scale, "symmetric") + 0.5).clamp(0, 255).byte()
        if not torch.equal(_resize(x.byte(), dim, scale, "symmetric"), exact):
            return False
    return True


def _resize(x, dim, scale, padding):
    """Resize one dimension by a scale of `UNITS`. A unit needs two others on either side."""
    unit, out_unit = UNITS[scale]
    length = x.shape[dim]
    whole, units = length // unit, -(-length // unit)  # without and with one that sticks out
    x = x.contiguous(memory_format=memory_format(x))
    if x.numel() <= SMALL or units < 3:
        before = _take(x, dim, padding, (-2 * unit, 0))
        after = _take(x, dim, padding, (length, (units + 2) * unit))
        out = _interpolate(torch.cat([before, x, after], dim), dim, (units + 4) * out_unit)
        return out.narrow(dim, 2 * out_unit, units * out_unit)

    # A large image is not copied. The three outer units of each border, which come out wrong at
    # first, are replaced by those of two strips of seven units, resized together.
    out = _interpolate(x.narrow(dim, 0, whole * unit), dim, whole * out_unit)
    if units > whole:
        out = torch.cat([out, out.narrow(dim, 0, out_unit)], dim)  # room for one more unit
    first, last = (-2 * unit, 5 * unit), ((units - 5) * unit, (units + 2) * unit)
    strips = _interpolate(_take(x, dim, padding, first, last), dim, 14 * out_unit)
    border = 3 * out_unit
    out.narrow(dim, 0, border).copy_(strips.narrow(dim, 2 * out_unit, border))
    out.narrow(dim, (units - 3) * out_unit, border).copy_(strips.narrow(dim, 9 * out_unit, border))
    return out


def _take(x, dim, padding, *ranges):
    """Return the rows or columns of x in these ranges, which may lie beyond the border."""
    index = _positions(x.shape[dim], padding, ranges)
    if memory_format(x) == torch.channels_last:  # which `index_select` alone would not keep
        return x.permute(0, 2, 3, 1).index_select(dim - 1, index).permute(0, 3, 1, 2)
    return x.index_select(dim, index)


@functools.lru_cache(maxsize=64)
def _positions(length, padding, ranges):
    """Return the pixels that stand for the positions in these ranges (rule 6)."""
    mode = "edge" if padding == "replicate" else "symmetric"
    padded = np.pad(np.arange(length), 16, mode)  # no range leaves these 16 positions
    return torch.from_numpy(np.concatenate([padded[16 + a : 16 + b] for a, b in ranges]))


def _interpolate(x, dim, out_length):
    """Resize one dimension as PyTorch does."""
    n, c, h, w = x.shape
    if dim == 2 and w % 4 == 0 and x.is_contiguous():
        # Columns do not mix: four neighbours may pose as four channels, PyTorch's fastest case.
        x = x.view(n * c, h, w // 4, 4).permute(0, 3, 1, 2)
        x = F.interpolate(x, size=(out_length, w // 4), mode="bicubic", antialias=True)
        return x.permute(0, 2, 3, 1).reshape(n, c, out_length, w)
    size = (out_length, w) if dim == 2 else (h, out_length)
    return F.interpolate(x, size=size, mode="bicubic", antialias=True)
