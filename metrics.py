"""PSNR, SSIM and LPIPS by the protocol of the published x4 results; reads and upscales nothing.

SR rounded to uint8, luma (Y) not rounded, 4 pixels shaved off each side, mean over images. Bicubic
comes first in every table: where it is not 28.43 dB / 0.811 on Set5 (MATLAB's), the images or their
reduction differ from the published ones. The command line scores images that any program made:

    python metrics.py SR_FOLDER HR_FOLDER    (or --set Set5)
"""

from collections.abc import Callable, Iterable
from numbers import Number

import numpy as np
from skimage.metrics import structural_similarity

from utils import progress_bar, to_tensor

SSIM_WINDOW = 11  # pixels a side: the Gaussian of sigma 1.5, cut at 3.5 sigma
SMALLEST = 2 * 4 + SSIM_WINDOW  # pixels a side of an image that can be scored
EXACT = 100.0  # dB, of equal images: infinity would make every mean infinite


def rgb_to_y(image: np.ndarray) -> np.ndarray:
    """MATLAB's rgb2ycbcr without rounding: uint8 RGB (H, W, 3) -> float64 (H, W) in [16, 235]."""
    if image.dtype != np.uint8:
        raise TypeError(f"expected uint8, got {image.dtype}; utils.to_array converts a tensor")
    return 16 + image @ np.array([65.481, 128.553, 24.966]) / 255


def psnr(sr: np.ndarray, hr: np.ndarray, border: int = 4) -> float:
    """Peak signal-to-noise ratio of the luma in dB, peak 255; at most 100, also for equal images.

    sr, hr: uint8 RGB (H, W, 3). Agrees with the MATLAB logs of EDSR and RCAN. Raises TypeError for
    another type, ValueError for different sizes or if nothing is left inside the border.
    """
    y_sr, y_hr = _shaved_luma(sr, hr, border, smallest=1)
    mean_squared_error = np.mean((y_sr - y_hr) ** 2)
    return float(10 * np.log10(255**2 / max(mean_squared_error, 255**2 / 10 ** (EXACT / 10))))


def ssim(sr: np.ndarray, hr: np.ndarray, border: int = 4) -> float:
    """Structural similarity of the luma (Wang et al. 2004): Gaussian window, sigma 1.5.

    sr, hr and errors as for `psnr`. The SRGAN paper's SSIM is daala's, about 0.01 higher.
    """
    y_sr, y_hr = _shaved_luma(sr, hr, border, smallest=SSIM_WINDOW)
    wang = dict(data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(structural_similarity(y_sr, y_hr, **wang))


def _shaved_luma(sr, hr, border, smallest):
    """Y of both without the border; ValueError if less than smallest x smallest pixels are left."""
    if sr.shape != hr.shape:
        raise ValueError(f"sr is {sr.shape}, hr is {hr.shape}; cut hr to 4 times the LR size")
    height, width = sr.shape[:2]
    needed = 2 * border + smallest
    if min(height, width) < needed:
        raise ValueError(f"{height} x {width} pixels are too few: at least {needed} a side")
    inside = slice(border, height - border), slice(border, width - border)
    return rgb_to_y(sr)[inside], rgb_to_y(hr)[inside]


def lpips_distance(device: str = "cpu") -> Callable[[np.ndarray, np.ndarray], float]:
    """LPIPS (Zhang et al. 2018, with AlexNet) as f(sr, hr) -> number; lower is more alike.

    sr, hr: uint8 RGB (H, W, 3), compared whole and in colour. Raises ImportError with the reason if
    the optional package or the weights that it downloads cannot be had.
    """
    try:
        import lpips

        network = lpips.LPIPS(net="alex", verbose=False).to(device).eval().requires_grad_(False)
    except Exception as error:  # also RuntimeError of a wrong torchvision, URLError of no network
        raise ImportError(
            f"LPIPS cannot be used ({type(error).__name__}: {error}). It needs `pip install lpips`,"
            " a torchvision that fits torch and, once, a network for AlexNet's weights (233 MB)."
        ) from error

    def distance(sr, hr):
        pair = [to_tensor(image).to(device) * 2 - 1 for image in (sr, hr)]  # LPIPS takes [-1, 1]
        return float(network(*pair))

    return distance


def evaluate(
    upscale: Callable,
    pairs: Iterable,
    progress: bool = True,
    extra: dict | None = None,
    title: str = "evaluate",
) -> list[dict]:
    """Score `upscale`, a function from uint8 (h, w, 3) to uint8 (4h, 4w, 3), on (name, lr, hr).

    progress: show a bar over the images while it lasts, with `title`, for instance "Set5, SRGAN".
    extra: more columns, {name: f(lr, sr, hr) -> number}. Returns [{"name", "psnr", "ssim", ...}].
    Raises ValueError for no pairs; errors of the metrics name the image.
    """
    rows = []
    bar = progress_bar(pairs, title, unit="image", leave=False, disable=not progress)
    for name, lr, hr in bar:
        sr = upscale(lr)
        try:
            row = {"name": name, "psnr": psnr(sr, hr), "ssim": ssim(sr, hr)}
            row |= {column: score(lr, sr, hr) for column, score in (extra or {}).items()}
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        rows.append(row)
    if not rows:
        raise ValueError("no pairs to evaluate; is the image list empty?")
    return rows


def mean(rows: list[dict]) -> dict:
    """Mean over images of every numeric column (KeyError if a row lacks one), as one more row."""
    if not rows:
        raise ValueError("no rows to average")
    columns = dict.fromkeys(k for row in rows for k in row if isinstance(row[k], Number))
    return {"name": "mean"} | {k: sum(row[k] for row in rows) / len(rows) for k in columns}


if __name__ == "__main__":
    from tools.scoring import main

    main()
