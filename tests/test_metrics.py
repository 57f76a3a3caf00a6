"""PSNR and SSIM against their formulas, and the control row: MATLAB's bicubic must land on the published figures."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

import metrics
import utils
from imresize import imresize


@pytest.fixture
def pair():
    hr = np.ascontiguousarray(data.astronaut()[100:164, 180:260])  # uint8 (64, 80, 3)
    noise = np.random.default_rng(0).integers(-20, 21, hr.shape)
    return (hr + noise).clip(0, 255).astype(np.uint8), hr


def test_luma_of_known_colours():
    colours = np.array(
        [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8
    )
    assert np.allclose(metrics.rgb_to_y(colours), [[16, 235, 81.481, 144.553, 40.966]], atol=1e-12)


def test_psnr_is_the_formula_inside_the_border(pair):
    sr, hr = pair
    weights = np.array([65.481, 128.553, 24.966]) / 255
    error = sr.astype(float) @ weights - hr.astype(float) @ weights
    assert metrics.psnr(sr, hr) == pytest.approx(
        10 * np.log10(255**2 / (error[4:-4, 4:-4] ** 2).mean()), abs=1e-9
    )
    assert metrics.psnr(sr, hr, border=0) == pytest.approx(
        10 * np.log10(255**2 / (error**2).mean()), abs=1e-9
    )


def test_ssim_is_wangs_formula_where_the_window_fits(pair):
    sr, hr = pair
    x, y = (metrics.rgb_to_y(image)[4:-4, 4:-4] for image in (sr, hr))
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def blur(values):
        return (np.lib.stride_tricks.sliding_window_view(values, (11, 11)) * window).sum(
            axis=(2, 3)
        )

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = (
        blur(x * x) - mean_x**2,
        blur(y * y) - mean_y**2,
        blur(x * y) - mean_x * mean_y,
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (
        (2 * mean_x * mean_y + c1)
        * (2 * cov + c2)
        / (mean_x**2 + mean_y**2 + c1)
        / (var_x + var_y + c2)
    ).mean()
    assert metrics.ssim(sr, hr) == pytest.approx(expected, abs=1e-10)


def test_what_happens_in_the_border_does_not_count(pair):
    sr, hr = pair
    changed = sr.copy()
    changed[:4], changed[-4:], changed[:, :4], changed[:, -4:] = 0, 0, 0, 0
    assert metrics.psnr(changed, hr) == metrics.psnr(sr, hr)
    assert metrics.ssim(changed, hr) == metrics.ssim(sr, hr)


def test_equal_images(pair):
    assert metrics.psnr(pair[1], pair[1]) == float("inf")
    assert metrics.ssim(pair[1], pair[1]) == pytest.approx(1)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_bad_input_is_named(metric, pair):
    sr, hr = pair
    with pytest.raises(ValueError, match="cut hr to a multiple"):
        metric(sr[:-1], hr)
    with pytest.raises(ValueError, match="too small"):
        metric(sr[:8], hr[:8])
    with pytest.raises(TypeError, match="uint8"):
        metric(sr / 255, hr / 255)
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        metric(sr[..., 0], hr[..., 0])


def test_ssim_needs_room_for_one_window(pair):
    sr, hr = pair
    assert -1 <= metrics.ssim(sr[:19, :19], hr[:19, :19]) <= 1
    with pytest.raises(ValueError, match="19 pixels"):
        metrics.ssim(sr[:18], hr[:18])


def test_evaluate_streams_and_averages(pair):
    sr, hr = pair
    alive = []

    def pairs():
        for name in ("a", "b"):
            alive.append(name)
            yield name, hr[::4, ::4], hr

    rows = metrics.evaluate(
        lambda lr: sr if alive == ["a"] else hr[:, ::-1], pairs(), progress=False
    )
    assert [row["name"] for row in rows] == ["a", "b"]
    assert rows[0]["psnr"] == metrics.psnr(sr, hr) and rows[1]["ssim"] == metrics.ssim(
        hr[:, ::-1], hr
    )
    average = metrics.mean(rows)
    assert average["psnr"] == pytest.approx((rows[0]["psnr"] + rows[1]["psnr"]) / 2)
    assert average["ssim"] == pytest.approx((rows[0]["ssim"] + rows[1]["ssim"]) / 2)


def test_evaluate_names_the_image_that_fails(pair):
    sr, hr = pair
    with pytest.raises(ValueError, match=r"lake\.png: sr is"):
        metrics.evaluate(lambda lr: sr[:-4], [("lake.png", hr[::4, ::4], hr)], progress=False)
    with pytest.raises(ValueError, match="no pairs"):
        metrics.evaluate(lambda lr: sr, [], progress=False)
    with pytest.raises(ValueError, match="no rows"):
        metrics.mean([])


def test_evaluate_adds_columns(pair):
    sr, hr = pair
    lr = hr[::4, ::4]
    extra = {
        "blobs": lambda *images: images[0] is lr and images[1] is sr and images[2] is hr,
        "one": lambda *images: 1,
    }
    (row,) = metrics.evaluate(lambda lr: sr, [("a", lr, hr)], progress=False, extra=extra)
    assert row == {
        "name": "a",
        "psnr": metrics.psnr(sr, hr),
        "ssim": metrics.ssim(sr, hr),
        "blobs": True,
        "one": 1,
    }


# --- what betrays a GAN ---

PHOTOGRAPHS = ["astronaut", "coffee", "chelsea", "rocket"]


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request):
    """(lr, hr) of a photograph from scikit-image."""
    hr = getattr(data, request.param)()
    hr = np.ascontiguousarray(hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4])
    return imresize(hr, 1 / 4), hr


def with_blob(image, top, left, side, colour):
    """A soft spot, as batch norms make them, added to an image."""
    image, across = image.astype(float), np.hanning(side + 2)[1:-1]
    image[top : top + side, left : left + side] += np.outer(across, across)[..., None] * colour
    return image.clip(0, 255).round().astype(np.uint8)


def test_no_blobs_in_photographs_and_bicubic(photograph):
    lr, hr = photograph
    assert metrics.find_artifacts(hr, lr) == []
    assert metrics.find_artifacts(imresize(lr, 4), lr) == []
    assert metrics.artifact_map(hr, lr).shape == lr.shape[:2]
    assert (
        metrics.artifact_map(hr, lr).max() < 1
        and metrics.artifact_map(imresize(lr, 4), lr).max() < 2
    )


@pytest.mark.parametrize("colour", [(80, 0, 0), (-70, 40, -70), (60, 60, 60)])
def test_a_blob_is_found_where_it_is(photograph, colour):
    lr, hr = photograph
    shift = (128 - hr[100:120, 60:80].mean((0, 1))) / 2  # so that the spot does not end at 0 or 255
    bright = (hr + shift).clip(0, 255).astype(np.uint8)
    lr = imresize(bright, 1 / 4)
    ((left, top, w, h), levels), *others = metrics.find_artifacts(
        with_blob(bright, 100, 60, 20, colour), lr
    )
    assert not others
    assert left <= 66 and left + w >= 74 and top <= 106 and top + h >= 114, (
        "it covers the spot's middle"
    )
    assert left >= 60 - 16 and left + w <= 80 + 16 and top >= 100 - 16 and top + h <= 120 + 16, (
        "and not much more"
    )
    assert metrics.BLOB_LEVELS <= levels <= 80
    utils.compare({"": hr}, box=(left, top, w, h))  # takes no box that leaves the image


def test_several_blobs_come_strongest_first_and_inside_the_image():
    lr = np.full((30, 40, 3), 120, np.uint8)
    sr = with_blob(
        with_blob(np.full((120, 160, 3), 120, np.uint8), 0, 0, 20, (50, 0, 0)),
        100,
        140,
        20,
        (0, 0, 99),
    )
    (first, strong), (second, weak) = metrics.find_artifacts(sr, lr)
    assert strong > weak
    assert first[0] + first[2] == 160 and first[1] + first[3] == 120 and second[:2] == (0, 0)


def test_a_shift_of_all_colours_and_invented_texture_are_no_blobs(photograph):
    lr, hr = photograph
    hr = (hr.astype(float) / 2 + 60).astype(np.uint8)
    lr = imresize(hr, 1 / 4)
    assert metrics.find_artifacts((hr + np.array([20, 0, 10])).astype(np.uint8), lr) == []
    texture = np.random.default_rng(0).integers(-40, 41, hr.shape)
    assert metrics.find_artifacts((hr + texture).clip(0, 255).astype(np.uint8), lr) == []


def test_artifacts_need_four_times_the_size(pair):
    with pytest.raises(ValueError, match="4 times"):
        metrics.find_artifacts(pair[0], pair[1])


def test_photographs_and_bicubic_have_no_checkerboard(photograph):
    lr, hr = photograph
    assert metrics.checkerboard(hr) < 1.5 < metrics.CHECKERBOARD
    assert metrics.checkerboard(imresize(lr, 4)) < 1.5


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
        metrics.checkerboard((sr + k * tiled).clip(0, 255).astype(np.uint8)) for k in (0, 1, 2)
    ]
    assert ratios[0] < metrics.CHECKERBOARD < ratios[1] < ratios[2]


def test_other_periods_are_no_checkerboard():
    rows, columns = np.mgrid[:128, :128]
    for period in (3, 5, 7, 8.5):
        stripes = (
            (128 + 20 * np.sin(2 * np.pi * (rows + columns) / period)).round().astype(np.uint8)
        )
        assert metrics.checkerboard(stripes[..., None].repeat(3, 2)) < metrics.CHECKERBOARD


def test_white_noise_and_a_flat_area_give_one():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    assert metrics.checkerboard(noise) == pytest.approx(1, abs=0.1)
    assert metrics.checkerboard(np.full((64, 64, 3), 9, np.uint8)) == pytest.approx(1)
    assert np.isnan(metrics.checkerboard(noise[:63]))


# --- LPIPS ---


def test_lpips_gets_both_images_in_its_range(pair, monkeypatch):
    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "alex"

        def forward(self, sr, hr):
            assert sr.shape == hr.shape == (1, 3, 64, 80) and not self.training
            assert sr.min() >= -1 and sr.max() <= 1 and hr.min() < -0.5 < 0.5 < hr.max()
            return (sr - hr).abs().mean().reshape(1, 1, 1, 1)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    sr, hr = pair
    expected = np.abs(sr.astype(float) - hr).mean() / 127.5
    assert metrics.lpips_or_reason()(sr, hr) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "error", [None, RuntimeError("operator torchvision::nms does not exist"), OSError("no network")]
)
def test_without_lpips_the_reason_and_the_way_are_told(error, monkeypatch):
    def fail(**settings):
        raise error

    monkeypatch.setitem(
        sys.modules, "lpips", error and types.SimpleNamespace(LPIPS=fail)
    )  # None: cannot be imported
    reason = metrics.lpips_or_reason()
    assert isinstance(reason, str) and "pip install lpips" in reason and "AlexNet" in reason
    assert error is None or str(error) in reason


@pytest.mark.parametrize(
    ("name", "psnr", "ssim"),
    [("Set5", 28.430, 0.8111), ("Set14", 26.091, 0.7048), ("B100", 25.962, 0.6681)],
)
def test_control_row(name, psnr, ssim):
    """MATLAB's bicubic x4 of the published LR files; Urban100 (23.141 / .6581) is left to the notebook for its size."""
    files = (
        sorted(Path("data", name, "HR").glob("*.png")) if Path("data", name, "LR").is_dir() else []
    )
    if not files:
        pytest.skip(f"data/{name} is not there; see the README")

    def pairs():
        for file in files:
            lr, hr = utils.read_image(file.parents[1] / "LR" / file.name), utils.read_image(file)
            yield file.name, lr, hr[: 4 * lr.shape[0], : 4 * lr.shape[1]]

    rows = metrics.evaluate(
        lambda lr: imresize(lr, 4, padding="replicate"), pairs(), progress=False
    )
    average = metrics.mean(rows)
    assert average["psnr"] == pytest.approx(psnr, abs=0.01)
    assert average["ssim"] == pytest.approx(ssim, abs=0.0005)
