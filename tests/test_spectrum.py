"""The spectral distance against its formula where that is known, and on the committed pictures."""

from pathlib import Path

import numpy as np
import pytest
from skimage import data

import plots
from tools.spectrum import RINGS, ring_spectrum, spectral_distance
from utils import read_image

SET5 = Path(__file__).parents[1] / "results" / "Set5"
LUMA = (219 / 255) ** 2  # variance of Y for gray levels of variance 1


def gray(values):
    return np.repeat(np.round(values).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def noise(height, width, deviation, seed=0):
    return np.random.default_rng(seed).normal(0, deviation, (height, width))


def test_equal_images_have_distance_zero():
    assert spectral_distance(data.astronaut(), data.astronaut()) == 0


@pytest.mark.parametrize("size", [(256, 256), (130, 400), (601, 64)])
def test_white_noise_has_its_variance_in_every_ring(size):
    spectrum = ring_spectrum(gray(128 + noise(*size, 20)))
    assert spectrum.shape == (RINGS,)
    assert spectrum[4:] == pytest.approx(np.full(RINGS - 4, 400 * LUMA), rel=0.3)
    assert spectrum.mean() == pytest.approx(400 * LUMA, rel=0.1)


@pytest.mark.parametrize("size", [(256, 256), (150, 420)])
def test_a_gaussian_blur_has_the_distance_of_its_transfer_function(size):
    sigma, hr = 0.5, noise(*size, 30)
    fy, fx = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])
    transfer = np.exp(-2 * np.pi**2 * sigma**2 * (fy**2 + fx**2))
    sr = np.fft.ifft2(np.fft.fft2(hr) * transfer).real
    # In decibels the blur takes 10 log10(e) 4 pi^2 sigma^2 f^2: its mean over 0 <= f <= 1/2.
    expected = 10 * np.log10(np.e) * 4 * np.pi**2 * sigma**2 / 12
    assert spectral_distance(gray(128 + sr), gray(128 + hr)) == pytest.approx(expected, rel=0.03)


def test_excess_counts_as_much_as_what_is_missing():
    hr = gray(128 + noise(128, 160, 10))
    twice = gray(128 + 2 * noise(128, 160, 10))
    assert spectral_distance(twice, hr) == pytest.approx(20 * np.log10(2), rel=0.02)
    assert spectral_distance(hr, twice) == spectral_distance(twice, hr)


def test_a_pattern_of_four_pixels_is_excess_in_its_own_rings():
    hr = gray(128 + noise(128, 128, 2))
    pattern = 6.0 * (np.arange(128) % 4 < 2)
    sr = gray(128 + noise(128, 128, 2) + pattern)
    excess = 10 * np.log10(ring_spectrum(sr) / ring_spectrum(hr))
    assert excess.argmax() in (RINGS // 2 - 1, RINGS // 2)  # 1/4 cycle per pixel
    assert spectral_distance(sr, hr) > 0.5


def test_a_jump_between_opposite_edges_is_not_in_the_spectrum():
    ramp = np.linspace(0, 255, 256) * np.ones((256, 1))
    # All that a ramp has beyond the lowest rings is the rounding to 8 bits.
    assert ring_spectrum(gray(ramp))[4:].max() < 1


def test_what_is_not_stored_does_not_count():
    flat = np.full((80, 80, 3), 100, np.uint8)
    assert spectral_distance(flat, flat + np.uint8(1)) == 0
    assert np.isfinite(spectral_distance(flat, gray(100 + noise(80, 80, 5))))


def test_noise_as_weak_as_rounding_counts_beside_rounding():
    flat = gray(np.full((256, 256), 100))
    noisy = gray(100 + (np.random.default_rng(0).random((256, 256)) < 0.1))
    expected = 10 * np.log10((0.1 * 0.9 * LUMA + 1 / 12) / (1 / 12))
    assert spectral_distance(noisy, flat) == pytest.approx(expected, rel=0.05)


def test_where_things_are_is_not_seen():
    hr = data.astronaut()
    assert spectral_distance(hr[::-1, ::-1], hr) < 0.05


@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
def test_sharper_methods_are_closer(name):
    """The order that eyes see in Set5: bicubic, SRResNet, SRGAN."""
    hr = read_image(SET5 / "HR" / f"{name}.png")
    bicubic, srresnet, srgan = (
        spectral_distance(read_image(SET5 / method / f"{name}.png"), hr)
        for method in ("bicubic", "SRResNet", "SRGAN")
    )
    assert bicubic > srresnet > srgan > 0


def test_too_small_an_image_has_no_number_and_other_sizes_are_refused():
    small = data.astronaut()[:63, :200]
    assert np.isnan(spectral_distance(small, small))
    assert not np.isnan(spectral_distance(data.astronaut()[:64], data.astronaut()[:64]))
    with pytest.raises(ValueError, match="cut hr to 4 times"):
        spectral_distance(data.astronaut()[1:], data.astronaut())
    with pytest.raises(TypeError, match="uint8"):
        spectral_distance(small / 255, small / 255)


def test_the_plot_has_a_point_for_each_method_and_the_curve_in_its_order():
    points = {"bicubic": (28.4, 15.4), "SRResNet": (31.7, 5.4), "SRGAN": (30.7, 3.6)}
    curve = {"0": (31.7, 5.4), "0.5": (31.4, 4.2), "1": (30.7, 3.6)}
    (axes,) = plots.perception_distortion(points, curve).axes
    line, *markers = axes.lines
    assert line.get_xydata().tolist() == [list(point) for point in curve.values()]
    assert [tuple(m.get_xydata()[0]) for m in markers] == list(points.values())
    assert [m.get_label() for m in markers] == list(points)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(points)
    ends = {"0": curve["0"], "1": curve["1"]}  # those between may lie close together
    assert {text.get_text(): tuple(text.xy) for text in axes.texts} == ends
    assert axes.get_xlabel() == "PSNR in dB (Y): further right is better"
    assert axes.get_ylabel() == "spectral distance to HR in dB: further down is better"


def test_the_plot_needs_no_curve():
    (axes,) = plots.perception_distortion({"bicubic": (28.4, 15.4)}).axes
    assert len(axes.lines) == 1
