"""PSNR and SSIM by the protocol of the published x4 results, and what betrays a GAN; reads no files.

Luma (Y, not rounded) of the uint8 images, 4 pixels shaved off each side, mean over images. Bicubic comes first in every table:
MATLAB's on Set5 gives 28.43 dB / 0.811 here. Another figure means that something before the metric differs.
"""

import numpy as np
from scipy.ndimage import find_objects, label, maximum_filter, minimum_filter, uniform_filter
from skimage.metrics import structural_similarity
from tqdm import tqdm

from imresize import imresize

SSIM_WINDOW = 11

# Blobs: means over 4 x 4 LR pixels, the size of the smallest blobs seen (16 HR pixels). Every method deviates at edges, by
# up to a sixteenth of their contrast, and there no eye sees it. Beyond that HR, nearest, bicubic and SRResNet stay below 1.4
# levels on Set5, Set14 and B100; 8 are seen where the image is flat.
BLOB_WINDOW = 4
BLOB_CONTRAST = 1 / 16
BLOB_LEVELS = 8

# Checkerboard: HR, bicubic and SRResNet of Set5, Set14, B100, Urban100 and DIV2K stay below 1.4. In a flat area a pattern
# of +-1/4 level gives 3.6, one of +-1/2 gives 10, one of +-1, which is seen, 64; over structure it is less.
CHECKERBOARD = 2
CHECKERBOARD_WINDOW = (16, 64)  # rows, columns
NOISE = (
    0.5  # standard deviation, in levels, below which nothing is seen: what is weaker does not count
)


def rgb_to_y(image):
    """Luma of ITU-R BT.601 as MATLAB's rgb2ycbcr defines it: uint8 RGB (H, W, 3) -> float64 (H, W) in [16, 235], not rounded."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(
            f"expected a uint8 array, got {got}; utils.to_array converts and rounds a tensor"
        )
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
    return (
        float("inf")
        if mean_squared_error == 0
        else float(10 * np.log10(255**2 / mean_squared_error))
    )


def ssim(sr, hr, border=4):
    """Structural similarity of the luma (Wang et al. 2004): Gaussian window 11 x 11, sigma 1.5, where the window fits.

    sr, hr: uint8 RGB (H, W, 3). The SRGAN paper used another SSIM (daala's), whose values are about 0.01 higher. Raises TypeError
    for another type, ValueError for different sizes or if no window fits inside the border.
    """
    y_sr, y_hr = _shaved_luma(sr, hr, border, smallest=SSIM_WINDOW)
    return float(
        structural_similarity(
            y_sr,
            y_hr,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def artifact_map(sr, lr):
    """How far an SR image, reduced again, is from the LR image it was made from: float (h, w), in levels, 0 or more.

    sr, lr: uint8 RGB (4h, 4w, 3) and (h, w, 3). The largest deviation of the means over 4 x 4 LR pixels among R, G and B,
    less a sixteenth of the contrast around them, and less a shift of the whole image (its median). What a method invents
    between the LR pixels does not count: their mean has to stay. Raises ValueError for other sizes.
    """
    if sr.shape != (4 * lr.shape[0], 4 * lr.shape[1], 3):
        raise ValueError(
            f"sr is {sr.shape} and lr is {lr.shape}; sr has to be 4 times as high and wide"
        )
    deviation = imresize(sr.astype(np.float32), 1 / 4) - lr
    deviation -= np.median(deviation, axis=(0, 1))
    means = uniform_filter(deviation, (BLOB_WINDOW, BLOB_WINDOW, 0), mode="nearest")
    around = (BLOB_WINDOW + 2, BLOB_WINDOW + 2, 1)
    contrast = (maximum_filter(lr, around) - minimum_filter(lr, around)).max(axis=2)
    return np.maximum(np.abs(means).max(axis=2) - BLOB_CONTRAST * contrast, 0)


def find_artifacts(sr, lr):
    """The blobs of an SR image, as batch norms make them: [(box, levels)], the strongest first, or [].

    sr, lr: as `artifact_map` takes them. box: (left, top, width, height) in HR pixels, as `utils.compare` takes it; levels:
    the largest deviation in it, at least `BLOB_LEVELS`.
    """
    deviation = artifact_map(sr, lr)
    spots, _ = label(deviation >= BLOB_LEVELS)
    found, reach = [], BLOB_WINDOW // 2
    for rows, columns in find_objects(spots):
        top, left = max(rows.start - reach, 0), max(columns.start - reach, 0)
        bottom, right = min(rows.stop + reach, lr.shape[0]), min(columns.stop + reach, lr.shape[1])
        box = (4 * left, 4 * top, 4 * (right - left), 4 * (bottom - top))
        found.append((box, float(deviation[rows, columns].max())))
    return sorted(found, key=lambda blob: -blob[1])


def checkerboard(sr):
    """How much stronger a pattern of exactly 4 or 2 pixels is in an image than what lies beside it: 1 is none.

    Sub-pixel convolutions can repeat such a pattern over the whole image, photographs do not. In windows of 16 x 64 pixels
    and of 64 x 16, the power spectrum of the luma along the longer side, at periods 4 and 2 against the frequencies next to
    them: the geometric mean over all windows, so that flat areas, where a pattern is seen, count as much as busy ones.

    sr: uint8 RGB (H, W, 3). Returns the largest ratio of the two periods and the two directions, see `CHECKERBOARD`; nan
    for an image with less than 64 pixels a side.
    """
    luma, (rows, length) = rgb_to_y(sr), CHECKERBOARD_WINDOW
    if min(luma.shape) < length:
        return float("nan")
    taper = np.hanning(length + 1)[:-1]
    ratios = []
    for image in (luma, luma.T):
        logs = []
        for top in range(0, len(image) - rows + 1, rows // 2):
            strip = np.lib.stride_tricks.sliding_window_view(
                image[top : top + rows], length, axis=1
            )[:, :: length // 2]
            strip = (strip - strip.mean(axis=2, keepdims=True)) * taper
            power = (np.abs(np.fft.rfft(strip)) ** 2).mean(axis=0)
            logs.append(np.log(power + NOISE**2 * (taper**2).sum()))
        spectrum = np.concatenate(logs).mean(axis=0)  # of frequencies 0, 1/64, ..., 1/2
        fourth, half = length // 4, length // 2
        # Two bins away, because the taper spreads a frequency over its neighbours. Nothing lies above 1/2.
        ratios.append(
            spectrum[fourth] - spectrum[[fourth + k for k in (-5, -4, -3, 3, 4, 5)]].mean()
        )
        ratios.append(spectrum[half] - spectrum[[half - k for k in (3, 4, 5)]].mean())
    return float(np.exp(max(ratios)))


def evaluate(upscale, pairs, progress=True, extra=None):
    """Score `upscale`, a function from uint8 (h, w, 3) to uint8 (4h, 4w, 3), on an iterable of (name, lr, hr).

    extra: more columns, as {name: f(lr, sr, hr) -> number}. Holds one pair at a time. Returns a list of {"name", "psnr" in dB,
    "ssim", ...}. Raises ValueError for no pairs, and ValueError or TypeError that names the image for one that cannot be scored.
    """
    rows = []
    for name, lr, hr in tqdm(pairs, desc="evaluate", unit="image", disable=not progress):
        sr = upscale(lr)
        try:
            row = {"name": name, "psnr": psnr(sr, hr), "ssim": ssim(sr, hr)}
            rows.append(
                row | {column: score(lr, sr, hr) for column, score in (extra or {}).items()}
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    if not rows:
        raise ValueError("no pairs to evaluate; is the image list empty?")
    return rows


def lpips_or_reason(device="cpu"):
    """LPIPS (Zhang et al. 2018, with AlexNet) as f(sr, hr) -> number, lower is more alike; or a sentence, why it cannot be had.

    sr, hr: uint8 RGB (H, W, 3), compared whole and in colour. Optional, because its library brings a download of its own.
    """
    try:
        import lpips
        import torch

        network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
    except (
        Exception
    ) as error:  # no library, a torchvision that does not fit the installed torch, no network
        return (
            f"LPIPS is left out ({type(error).__name__}: {error}). It needs `pip install lpips`, a torchvision that fits the "
            "installed torch, and, once, a network: torchvision downloads AlexNet's weights (233 MB)."
        )

    def distance(sr, hr):
        pair = (
            torch.from_numpy(image).to(device).permute(2, 0, 1)[None] / 127.5 - 1
            for image in (sr, hr)
        )
        with torch.inference_mode():
            return float(network(*pair))

    return distance


def mean(rows):
    """The mean over images of what `evaluate` returned: {"name": "mean", "psnr", "ssim"}. Never the PSNR of a mean error."""
    if not rows:
        raise ValueError("no rows to average")
    return {"name": "mean"} | {
        key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim")
    }
