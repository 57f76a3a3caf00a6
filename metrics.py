"""PSNR and SSIM by the protocol of the published x4 results; reads no files and knows no network.

Luma (Y, not rounded) of the uint8 images, 4 pixels shaved off each side, mean over images. Bicubic comes first in every table:
MATLAB's on Set5 gives 28.43 dB / 0.811 here. Another figure means that something before the metric differs.
"""

import numpy as np
from skimage.metrics import structural_similarity
from tqdm import tqdm

SSIM_WINDOW = 11


def rgb_to_y(image):
    """Luma of ITU-R BT.601 as MATLAB's rgb2ycbcr defines it: uint8 RGB (H, W, 3) -> float64 (H, W) in [16, 235], not rounded."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"expected a uint8 array, got {got}; utils.to_array converts and rounds a tensor")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an RGB image of shape (H, W, 3), got {image.shape}")
    return 16 + image @ np.array([65.481, 128.553, 24.966]) / 255


def _shaved_luma(sr, hr, border, smallest):
    """Y of both images without `border` pixels on each side; ValueError if less than smallest x smallest pixels are left."""
    y_sr, y_hr = rgb_to_y(sr), rgb_to_y(hr)
    if y_sr.shape != y_hr.shape:
        raise ValueError(
            f"sr is {y_sr.shape} and hr is {y_hr.shape} (height, width); cut hr to a multiple of the scale, at the top left"
        )
    height, width = y_sr.shape
    if min(height, width) < 2 * border + smallest:
        raise ValueError(
            f"a {height} x {width} image is too small: with a border of {border} it needs {2 * border + smallest} pixels a side"
        )
    return [y[border : height - border, border : width - border] for y in (y_sr, y_hr)]


def psnr(sr, hr, border=4):
    """Peak signal-to-noise ratio of the luma in dB, peak 255; infinite for equal images.

    sr, hr: uint8 RGB (H, W, 3). Agrees with the MATLAB logs of EDSR and RCAN. Raises TypeError for another type, ValueError for
    different sizes or if nothing is left without the border.
    """
    y_sr, y_hr = _shaved_luma(sr, hr, border, smallest=1)
    mean_squared_error = np.mean((y_sr - y_hr) ** 2)
    return float("inf") if mean_squared_error == 0 else float(10 * np.log10(255**2 / mean_squared_error))


def ssim(sr, hr, border=4):
    """Structural similarity of the luma (Wang et al. 2004): Gaussian window 11 x 11, sigma 1.5, where the window fits.

    sr, hr: uint8 RGB (H, W, 3). The SRGAN paper used another SSIM (daala's), whose values are about 0.01 higher. Raises TypeError
    for another type, ValueError for different sizes or if no window fits inside the border.
    """
    y_sr, y_hr = _shaved_luma(sr, hr, border, smallest=SSIM_WINDOW)
    return float(
        structural_similarity(y_sr, y_hr, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    )


def evaluate(upscale, pairs, progress=True):
    """Score `upscale`, a function from uint8 (h, w, 3) to uint8 (4h, 4w, 3), on an iterable of (name, lr, hr).

    Holds one pair at a time. Returns a list of {"name", "psnr" in dB, "ssim"}. Raises ValueError for no pairs, and ValueError or
    TypeError that names the image for one that cannot be scored.
    """
    rows = []
    for name, lr, hr in tqdm(pairs, desc="evaluate", unit="image", disable=not progress):
        sr = upscale(lr)
        try:
            rows.append({"name": name, "psnr": psnr(sr, hr), "ssim": ssim(sr, hr)})
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    if not rows:
        raise ValueError("no pairs to evaluate; is the image list empty?")
    return rows


def mean(rows):
    """The mean over images of what `evaluate` returned: {"name": "mean", "psnr", "ssim"}. Never the PSNR of a mean error."""
    if not rows:
        raise ValueError("no rows to average")
    return {"name": "mean"} | {key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim")}
