"""The distance of two luma power spectra: sharpness without a reference network; sees no place."""

import numpy as np

from metrics import rgb_to_y

RINGS = 32  # of equal width, from 0 to 1/2 cycle per pixel (Nyquist)
SMALLEST = 2 * RINGS  # pixels a side: below that some rings hold no frequency
ROUNDING = 1 / 12  # levels squared, variance of rounding to 8 bits: what is weaker is not stored


def ring_spectrum(image: np.ndarray) -> np.ndarray:
    """Azimuthal average of the luma's power spectrum in levels squared: float (32,).

        P(fy, fx) = |FFT(hann * (Y - mean of Y))|^2 / sum(hann^2),  fy, fx in cycles per pixel
        S_k       = mean of P where k/64 <= sqrt(fy^2 + fx^2) < (k + 1)/64,  k = 0 to 31

    Frequencies are per pixel, so that images that are not square have the same rings. The Hann
    window keeps the jump from one edge to the opposite one out of the spectrum. White noise of
    variance v has S_k = v in every ring. The corners beyond 1/2 cycle per pixel are left out.

    image: uint8 RGB (H, W, 3). nan in every ring for an image with less than 64 pixels a side.
    """
    luma = rgb_to_y(image)
    height, width = luma.shape
    if min(height, width) < SMALLEST:
        return np.full(RINGS, np.nan)
    hann = np.outer(np.hanning(height + 1)[:-1], np.hanning(width + 1)[:-1])
    power = np.abs(np.fft.fft2(hann * (luma - luma.mean()))) ** 2 / (hann**2).sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring = (2 * RINGS * radius).astype(int)
    inside = ring < RINGS
    return np.bincount(ring[inside], power[inside]) / np.bincount(ring[inside])


def spectral_distance(sr: np.ndarray, hr: np.ndarray) -> float:
    """How far the power spectrum of SR is from that of HR, in dB; 0 for equal spectra.

        distance = mean over 32 rings k of |10 log10(S_k(sr) + 1/12) - 10 log10(S_k(hr) + 1/12)|

    with S_k of `ring_spectrum`. After Durall et al. 2020 (Watch your Up-Convolution, CVPR), who
    average the spectrum over rings; window, decibels and the term 1/12 are choices made here.

    It sees energy that is missing at a frequency (blur) or in excess (noise, a checkerboard), but
    not where in the image: the phase is ignored, and wrong details of the right strength cost
    nothing. It stands beside PSNR, which sees just that, and does not replace people.

    sr, hr: uint8 RGB (H, W, 3). nan for images with less than 64 pixels a side. Raises ValueError
    for different sizes, TypeError for another type.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"sr is {sr.shape}, hr is {hr.shape}; cut hr to 4 times the LR size")
    decibels = [10 * np.log10(ring_spectrum(image) + ROUNDING) for image in (sr, hr)]
    return float(np.abs(decibels[0] - decibels[1]).mean())
