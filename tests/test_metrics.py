"""PSNR and SSIM against their formulas, and the control row, MATLAB's bicubic, as published."""

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
    black_white_rgb = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    luma = metrics.rgb_to_y(np.array([black_white_rgb], np.uint8))
    assert np.allclose(luma, [[16, 235, 81.481, 144.553, 40.966]], atol=1e-12)


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_is_the_formula_inside_the_border(pair, border):
    sr, hr = pair
    error = (sr.astype(float) - hr) @ np.array([65.481, 128.553, 24.966]) / 255
    error = error[border : 64 - border, border : 80 - border]
    expected = 10 * np.log10(255**2 / (error**2).mean())
    assert metrics.psnr(sr, hr, border) == pytest.approx(expected, abs=1e-9)


def test_ssim_is_wangs_formula_where_the_window_fits(pair):
    sr, hr = pair
    x, y = (metrics.rgb_to_y(image)[4:-4, 4:-4] for image in (sr, hr))
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def blur(values):
        views = np.lib.stride_tricks.sliding_window_view(values, (11, 11))
        return (views * window).sum(axis=(2, 3))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    expected = (luminance * structure).mean()
    assert metrics.ssim(sr, hr) == pytest.approx(expected, abs=1e-10)


def test_what_happens_in_the_border_does_not_count(pair):
    sr, hr = pair
    changed = sr.copy()
    changed[:4], changed[-4:], changed[:, :4], changed[:, -4:] = 0, 0, 0, 0
    assert metrics.psnr(changed, hr) == metrics.psnr(sr, hr)
    assert metrics.ssim(changed, hr) == metrics.ssim(sr, hr)


def test_equal_images(pair):
    assert metrics.psnr(pair[1], pair[1]) == 100  # a mean over images stays finite
    assert metrics.ssim(pair[1], pair[1]) == pytest.approx(1)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_bad_input_is_named(metric, pair):
    sr, hr = pair
    with pytest.raises(ValueError, match="cut hr to 4 times"):
        metric(sr[:-1], hr)
    with pytest.raises(ValueError, match="too few"):
        metric(sr[:8], hr[:8])
    with pytest.raises(TypeError, match="uint8"):
        metric(sr / 255, hr / 255)
    with pytest.raises(TypeError, match="uint8"):
        metric(torch.from_numpy(sr), torch.from_numpy(hr))


def test_ssim_needs_room_for_one_window(pair):
    sr, hr = pair
    assert -1 <= metrics.ssim(sr[:19, :19], hr[:19, :19]) <= 1
    with pytest.raises(ValueError, match="at least 19 a side"):
        metrics.ssim(sr[:18], hr[:18])


def test_evaluate_holds_one_pair_at_a_time_and_scores_each(pair):
    sr, hr = pair
    alive = []

    def pairs():
        for name in ("a", "b"):
            alive.append(name)
            yield name, hr[::4, ::4], hr

    def upscale(lr):
        return sr if alive == ["a"] else hr[:, ::-1]  # the second pair is not taken before

    first, second = metrics.evaluate(upscale, pairs(), progress=False)
    assert first["name"] == "a" and first["psnr"] == metrics.psnr(sr, hr)
    assert second["name"] == "b" and second["ssim"] == metrics.ssim(hr[:, ::-1], hr)


def test_evaluate_names_the_image_that_fails(pair):
    sr, hr = pair
    with pytest.raises(ValueError, match=r"lake\.png: sr is"):
        metrics.evaluate(lambda lr: sr[:-4], [("lake.png", hr[::4, ::4], hr)], progress=False)
    with pytest.raises(ValueError, match="no pairs"):
        metrics.evaluate(lambda lr: sr, [], progress=False)


def test_mean_averages_every_numeric_column():
    rows = [
        {"name": "a", "set": "x", "psnr": 30.0, "ssim": 0.9, "lpips": np.float32(0.25), "blobs": 1},
        {"name": "b", "set": "x", "psnr": 20.0, "ssim": 0.7, "lpips": np.float32(0.75), "blobs": 4},
    ]
    expected = {"name": "mean", "psnr": 25.0, "ssim": 0.8, "lpips": 0.5, "blobs": 2.5}
    assert metrics.mean(rows) == pytest.approx(expected)


def test_mean_refuses_rows_that_lack_a_column():
    rows = [{"name": "a", "psnr": 30.0}, {"name": "b", "psnr": 20.0, "lpips": 0.5}]
    with pytest.raises(KeyError, match="lpips"):
        metrics.mean(rows)
    with pytest.raises(ValueError, match="no rows"):
        metrics.mean([])


def test_evaluate_adds_columns(pair):
    sr, hr = pair
    lr = hr[::4, ::4]
    received = []
    extra = {"taken": lambda *images: received.extend(images), "one": lambda *images: 1}
    (row,) = metrics.evaluate(lambda lr: sr, [("a", lr, hr)], progress=False, extra=extra)
    assert received[0] is lr and received[1] is sr and received[2] is hr
    scores = {"psnr": metrics.psnr(sr, hr), "ssim": metrics.ssim(sr, hr)}
    assert row == {"name": "a", **scores, "taken": None, "one": 1}


def test_lpips_gets_both_images_in_its_range(pair, monkeypatch):
    class LPIPS(torch.nn.Module):  # the package's interface, with a distance that is easy to check
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, sr, hr):
            assert hr.min() < -0.5 and hr.max() > 0.5  # [-1, 1], not [0, 1]
            return (sr - hr).abs().mean().reshape(1, 1, 1, 1)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    sr, hr = pair
    expected = np.abs(sr.astype(float) - hr).mean() / 127.5
    assert metrics.lpips_distance()(sr, hr) == pytest.approx(expected, rel=1e-5)


def test_without_the_lpips_package_the_error_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # cannot be imported
    with pytest.raises(ImportError, match=r"pip install lpips.*AlexNet"):
        metrics.lpips_distance()


def test_lpips_that_cannot_load_its_network_raises_import_error_with_the_cause(monkeypatch):
    def offline(**settings):
        raise OSError("no connection")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=offline))
    with pytest.raises(ImportError, match="OSError: no connection"):
        metrics.lpips_distance()


@pytest.mark.parametrize(
    ("name", "psnr", "ssim"),
    [("Set5", 28.430, 0.8111), ("Set14", 26.091, 0.7048), ("B100", 25.962, 0.6681)],
)
def test_bicubic_has_the_published_scores(name, psnr, ssim):
    """MATLAB's bicubic x4 of the published LR files. Urban100, 23.141 / .6581, takes too long."""
    folder = Path("data", name)
    files = sorted((folder / "HR").glob("*.png"))
    if not files or not (folder / "LR").is_dir():
        pytest.skip(f"{folder} is not there: python create_data_lists.py --download {name}")

    def pairs():
        for file in files:
            lr, hr = utils.read_image(folder / "LR" / file.name), utils.read_image(file)
            yield file.name, lr, hr[: 4 * lr.shape[0], : 4 * lr.shape[1]]

    def upscale(lr):
        return imresize(lr, 4, padding="replicate")

    average = metrics.mean(metrics.evaluate(upscale, pairs(), progress=False))
    assert average["psnr"] == pytest.approx(psnr, abs=0.01)
    assert average["ssim"] == pytest.approx(ssim, abs=0.0005)
