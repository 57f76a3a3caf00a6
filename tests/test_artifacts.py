"""The detectors of GAN artefacts against their formulas, and on good and spoilt images."""

import numpy as np
import pytest
from skimage import data

import plots
from imresize import imresize
from metrics import rgb_to_y
from tools import artifacts

PHOTOGRAPHS = ["astronaut", "coffee", "chelsea", "rocket"]


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request):
    """(lr, hr) of a photograph from scikit-image."""
    hr = getattr(data, request.param)()
    hr = np.ascontiguousarray(hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4])
    return imresize(hr, 1 / 4), hr


def test_the_map_of_artifacts_is_its_formula():
    rng = np.random.default_rng(0)
    lr = rng.integers(100, 130, (12, 15, 3)).astype(np.uint8)
    sr = rng.integers(0, 256, (48, 60, 3)).astype(np.uint8)
    deviation = imresize(sr.astype(np.float32), 1 / 4) - lr
    deviation -= np.median(deviation.reshape(-1, 3), axis=0)
    expected = np.zeros((12, 15))
    for y in range(3, 10):  # where no window reaches beyond the image
        for x in range(3, 13):
            means = deviation[y - 2 : y + 2, x - 2 : x + 2].mean(axis=(0, 1))
            around = lr[y - 3 : y + 3, x - 3 : x + 3].astype(int)
            contrast = (around.max(axis=(0, 1)) - around.min(axis=(0, 1))).max()
            expected[y, x] = max(0, np.abs(means).max() - contrast / 16)
    found = artifacts.artifact_map(sr, lr)
    assert found.shape == (12, 15) and expected.max() > 5
    assert np.allclose(found[3:10, 3:13], expected[3:10, 3:13], atol=1e-3)


def with_blob(image, top, left, side, colour):
    """A soft spot, as batch norms make them, added to an image."""
    image, across = image.astype(float), np.hanning(side + 2)[1:-1]
    image[top : top + side, left : left + side] += np.outer(across, across)[..., None] * colour
    return image.clip(0, 255).round().astype(np.uint8)


def test_no_blobs_in_photographs_and_bicubic(photograph):
    lr, hr = photograph
    assert artifacts.find_artifacts(hr, lr) == []
    assert artifacts.find_artifacts(imresize(lr, 4), lr) == []
    assert artifacts.artifact_map(hr, lr).max() < 1
    assert artifacts.artifact_map(imresize(lr, 4), lr).max() < 2


@pytest.mark.parametrize("colour", [(80, 0, 0), (-70, 40, -70), (60, 60, 60)])
def test_a_blob_is_found_where_it_is(photograph, colour):
    lr, hr = photograph
    shift = (128 - hr[100:120, 60:80].mean((0, 1))) / 2  # so that the spot does not end at 0 or 255
    bright = (hr + shift).clip(0, 255).astype(np.uint8)
    lr = imresize(bright, 1 / 4)
    spoilt = with_blob(bright, 100, 60, 20, colour)
    (((left, top, w, h), levels),) = artifacts.find_artifacts(spoilt, lr)
    # The box covers the middle of the spot and not much more than the spot.
    assert 60 - 16 <= left <= 66 and 74 <= left + w <= 80 + 16
    assert 100 - 16 <= top <= 106 and 114 <= top + h <= 120 + 16
    assert artifacts.BLOB_LEVELS <= levels <= 80


def test_several_blobs_come_strongest_first_and_inside_the_image():
    lr = np.full((30, 40, 3), 120, np.uint8)
    one_blob = with_blob(np.full((120, 160, 3), 120, np.uint8), 0, 0, 20, (50, 0, 0))
    two_blobs = with_blob(one_blob, 100, 140, 20, (0, 0, 99))
    (first, strong), (second, weak) = artifacts.find_artifacts(two_blobs, lr)
    assert strong > weak
    assert first[0] + first[2] == 160 and first[1] + first[3] == 120 and second[:2] == (0, 0)
    plots.compare({"": two_blobs}, box=first)  # would raise for a box that leaves the image


def test_a_shift_of_all_colours_and_invented_texture_are_no_blobs(photograph):
    lr, hr = photograph
    hr = (hr.astype(float) / 2 + 60).astype(np.uint8)
    lr = imresize(hr, 1 / 4)
    assert artifacts.find_artifacts((hr + np.array([20, 0, 10])).astype(np.uint8), lr) == []
    texture = np.random.default_rng(0).integers(-40, 41, hr.shape)
    assert artifacts.find_artifacts((hr + texture).clip(0, 255).astype(np.uint8), lr) == []


def test_artifacts_need_four_times_the_size():
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="4 times"):
        artifacts.find_artifacts(image, image)


def test_checkerboard_is_its_formula():
    image = np.random.default_rng(0).integers(0, 256, (72, 100, 3), np.uint8)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(33), np.arange(64)) / 64)

    def log_spectrum(luma):
        logs = []
        for top in range(0, luma.shape[0] - 15, 8):
            for left in range(0, luma.shape[1] - 63, 32):
                power = np.zeros(33)
                for row in luma[top : top + 16, left : left + 64]:
                    power += np.abs(fourier @ (hann * (row - row.mean()))) ** 2 / 16
                logs.append(np.log(power + 0.5**2 * (hann**2).sum()))
        return np.mean(logs, axis=0)

    ratios = []
    for luma in (rgb_to_y(image), rgb_to_y(image).T):
        L = log_spectrum(luma)
        ratios.append(np.exp(L[16] - np.mean([L[16 + k] for k in (-5, -4, -3, 3, 4, 5)])))
        ratios.append(np.exp(L[32] - np.mean([L[32 - k] for k in (3, 4, 5)])))
    assert artifacts.checkerboard(image) == pytest.approx(max(ratios), rel=1e-9)


def test_photographs_and_bicubic_have_no_checkerboard(photograph):
    lr, hr = photograph
    assert artifacts.checkerboard(hr) < 1.5 < artifacts.CHECKERBOARD
    assert artifacts.checkerboard(imresize(lr, 4)) < 1.5


@pytest.mark.parametrize(
    "pattern",
    [
        [[1, -1, 1, -1], [-1, 1, -1, 1]] * 2,
        [[1, 1, -1, -1], [1, 1, -1, -1], [-1, -1, 1, 1], [-1, -1, 1, 1]],
        [[1, 1, -1, -1]] * 4,
        [[1] * 4, [-1] * 4] * 2,
        [[3, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1]],
    ],
)
def test_patterns_of_four_or_two_pixels_are_found(photograph, pattern):
    lr, _ = photograph
    sr = imresize(lr, 4)  # smooth, as SRResNet's images are
    height, width = sr.shape[:2]
    tiled = np.tile(pattern, (height // 4, width // 4))[..., None]
    ratios = [
        artifacts.checkerboard((sr + k * tiled).clip(0, 255).astype(np.uint8)) for k in (0, 1, 2)
    ]
    assert ratios[0] < artifacts.CHECKERBOARD < ratios[1] < ratios[2]


def test_other_periods_are_no_checkerboard():
    rows, columns = np.mgrid[:128, :128]
    for period in (3, 5, 7, 8.5):
        stripes = 128 + 20 * np.sin(2 * np.pi * (rows + columns) / period)
        image = stripes.round().astype(np.uint8)[..., None].repeat(3, axis=2)
        assert artifacts.checkerboard(image) < artifacts.CHECKERBOARD


def test_white_noise_and_a_flat_area_give_one():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    assert artifacts.checkerboard(noise) == pytest.approx(1, abs=0.1)
    assert artifacts.checkerboard(np.full((64, 64, 3), 9, np.uint8)) == pytest.approx(1)
    assert np.isnan(artifacts.checkerboard(noise[:63]))
