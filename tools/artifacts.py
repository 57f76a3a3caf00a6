"""Detectors of the two artefacts that GANs draw, blobs and a checkerboard; judges no sharpness."""

import numpy as np
from scipy.ndimage import find_objects, label, maximum_filter, minimum_filter, uniform_filter

from imresize import imresize
from metrics import rgb_to_y
from utils import SCALE

# Blobs: means over 4 x 4 LR pixels, the size of the smallest blobs seen (16 HR pixels). At edges
# every method deviates, by up to a sixteenth of their contrast, and no eye sees it there. Beyond
# that HR, nearest, bicubic and SRResNet stay below 1.4 levels on Set5, Set14 and B100; 8 levels are
# seen where the image is flat.
BLOB_WINDOW = 4  # LR pixels
BLOB_CONTRAST = 1 / 16
BLOB_LEVELS = 8

# Checkerboard: HR, bicubic and SRResNet of Set5, Set14, B100, Urban100 and DIV2K stay below 1.4.
# In a flat area a pattern of +-1/4 level gives 3.6, one of +-1/2 gives 10, one of +-1, which is
# seen, 64; over structure it is less.
CHECKERBOARD = 2  # a ratio above it is a checkerboard
WINDOW_ROWS, WINDOW_LENGTH = 16, 64  # pixels
NOISE = 0.5  # standard deviation in levels: what is weaker is not seen


def artifact_map(sr: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """How far an SR image, reduced again, is from its LR image: float (h, w) in levels, 0 or more.

        D = imresize(SR, 1/4) - LR, less its median over the image, for each of R, G and B
        M = mean of D over 4 x 4 LR pixels
        C = largest over R, G and B of (maximum - minimum of LR over 6 x 6 pixels)
        map = max(0, largest over R, G and B of |M| - C / 16)

    The median takes out a shift of the whole image. What a method invents between the LR pixels
    does not count, because it leaves their mean as it is.

    sr, lr: uint8 RGB (4h, 4w, 3) and (h, w, 3). Raises ValueError for other sizes.
    """
    if sr.shape != (SCALE * lr.shape[0], SCALE * lr.shape[1], 3):
        raise ValueError(f"sr is {sr.shape}, lr is {lr.shape}; sr must be 4 times as high and wide")
    deviation = imresize(sr.astype(np.float32), 1 / SCALE) - lr
    deviation -= np.median(deviation, axis=(0, 1))
    means = uniform_filter(deviation, (BLOB_WINDOW, BLOB_WINDOW, 0), mode="nearest")
    around = (BLOB_WINDOW + 2, BLOB_WINDOW + 2, 1)
    contrast = (maximum_filter(lr, around) - minimum_filter(lr, around)).max(axis=2)
    return np.maximum(np.abs(means).max(axis=2) - BLOB_CONTRAST * contrast, 0)


def find_artifacts(sr: np.ndarray, lr: np.ndarray) -> list[tuple[tuple, float]]:
    """The blobs of an SR image, as batch norm makes them: [(box, levels)], the strongest first.

    A blob is a connected area where `artifact_map` is at least `BLOB_LEVELS`. box: (left, top,
    width, height) in HR pixels, as `plots.compare` takes it: the area and the LR pixels around
    it that its means took in. levels: the largest value in it. sr, lr: as for `artifact_map`.
    """
    deviation = artifact_map(sr, lr)
    areas, _ = label(deviation >= BLOB_LEVELS)
    found, reach = [], BLOB_WINDOW // 2
    for rows, columns in find_objects(areas):
        top, left = max(rows.start - reach, 0), max(columns.start - reach, 0)
        bottom, right = min(rows.stop + reach, lr.shape[0]), min(columns.stop + reach, lr.shape[1])
        box = (SCALE * left, SCALE * top, SCALE * (right - left), SCALE * (bottom - top))
        found.append((box, float(deviation[rows, columns].max())))
    return sorted(found, key=lambda blob: -blob[1])


def checkerboard(sr: np.ndarray) -> float:
    """How much stronger a pattern of exactly 4 or 2 pixels is than what lies beside it: 1 is none.

    Sub-pixel convolution can repeat such a pattern over the whole image; photographs have none.
    Along the rows, windows w of 16 rows x 64 pixels, each overlapping the next by half:

        P_w(f) = mean over the 16 rows of |FFT(hann * (row - its mean))(f)|^2
        L(f)   = mean over all w of log(P_w(f) + 0.5^2 * sum(hann^2))
        ratio of period p = exp(L(1/p) - mean of L at the frequencies 3 to 5 bins beside 1/p)

    A bin is 1/64. The neighbours are at least 3 bins off, because the Hann taper spreads a
    frequency over the next ones; for p = 2 they lie only below, as 1/2 is the highest frequency.
    The mean of logarithms lets flat areas, where a pattern is seen, count as much as busy ones. The
    term 0.5^2 (`NOISE`) keeps what is invisible from counting. The columns are treated alike.

    sr: uint8 RGB (H, W, 3); its luma counts. Returns the largest of the four ratios, above
    `CHECKERBOARD` where there is a pattern; nan for an image with less than 64 pixels a side.
    """
    luma = rgb_to_y(sr)
    if min(luma.shape) < WINDOW_LENGTH:
        return float("nan")
    fourth, half = WINDOW_LENGTH // 4, WINDOW_LENGTH // 2  # the bins of the periods 4 and 2
    ratios = []
    for image in (luma, luma.T):
        spectrum = _log_spectrum(image)
        beside_fourth = spectrum[[fourth + k for k in (-5, -4, -3, 3, 4, 5)]]
        beside_half = spectrum[[half - k for k in (3, 4, 5)]]
        ratios += [spectrum[fourth] - beside_fourth.mean(), spectrum[half] - beside_half.mean()]
    return float(np.exp(max(ratios)))


def _log_spectrum(image):
    """L of `checkerboard` at the frequencies 0, 1/64, ..., 1/2, along the rows of a gray image."""
    hann = np.hanning(WINDOW_LENGTH + 1)[:-1]
    logs = []
    for top in range(0, len(image) - WINDOW_ROWS + 1, WINDOW_ROWS // 2):
        rows = image[top : top + WINDOW_ROWS]
        windows = np.lib.stride_tricks.sliding_window_view(rows, WINDOW_LENGTH, axis=1)
        windows = windows[:, :: WINDOW_LENGTH // 2]  # (16, number of windows, 64)
        windows = (windows - windows.mean(axis=2, keepdims=True)) * hann
        power = (np.abs(np.fft.rfft(windows)) ** 2).mean(axis=0)
        logs.append(np.log(power + NOISE**2 * (hann**2).sum()))
    return np.concatenate(logs).mean(axis=0)
