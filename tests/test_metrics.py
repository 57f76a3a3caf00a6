"""PSNR and SSIM against their formulas, and the control row, MATLAB's bicubic, as published."""

import csv
import subprocess
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
from tools import scoring


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


def test_the_bar_of_evaluate_has_a_title_is_on_stdout_and_goes_away(pair, capsys):
    sr, hr = pair
    metrics.evaluate(lambda lr: sr, [("a", hr[::4, ::4], hr)], title="Set5, SRGAN")
    printed = capsys.readouterr()
    assert "Set5, SRGAN:   0%" in printed.out and "0/1" in printed.out and not printed.err
    assert not printed.out.split("\r")[-1].strip()  # what stands in its line at the end


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


# --- the command line: images that any program made ---


@pytest.fixture
def folders(tmp_path):
    """(sr, hr): folders with two HR images, one with a size that is no multiple of 4, and SR."""
    sr, hr = tmp_path / "SR", tmp_path / "HR"
    photos = {"baby": data.astronaut()[:96, :120], "bird": data.astronaut()[100:203, 100:226]}
    for name, photo in photos.items():
        utils.write_image(hr / f"{name}.png", photo)
        cut = photo[: len(photo) // 4 * 4, : photo.shape[1] // 4 * 4]
        noise = np.random.default_rng(0).integers(-9, 10, cut.shape)
        utils.write_image(sr / f"{name}.png", (cut + noise).clip(0, 255).astype(np.uint8))
    return sr, hr


def score(*arguments):
    """The exit code of the command line: 0, or the text that it ends with."""
    try:
        scoring.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code
    return 0


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_folders_are_scored_beside_bicubic_of_the_reduced_hr(folders, capsys):
    sr, hr = folders
    out = sr.parent / "tables" / "scores.csv"
    assert score(sr, hr, "-o", out) == 0
    rows = read_csv(out)
    assert [(r["set"], r["method"], r["name"]) for r in rows] == [
        ("HR", method, name) for method in ("bicubic", "SR") for name in ("baby", "bird")
    ]
    photo = utils.read_image(hr / "bird.png")[:100, :124]
    bicubic = imresize(imresize(photo, 1 / 4, padding="replicate"), 4, padding="replicate")
    for row, image in zip(rows[1::2], (bicubic, utils.read_image(sr / "bird.png")), strict=True):
        assert float(row["psnr"]) == metrics.psnr(image, photo)
        assert float(row["ssim"]) == metrics.ssim(image, photo)
    printed = capsys.readouterr().out
    assert "of HR reduced to a quarter by imresize" in printed
    assert "2 of 2 images" in printed
    assert "bird: HR cut at right and bottom from 126 x 103 pixels to 124 x 100" in printed
    means = [sum(float(r["psnr"]) for r in rows[k : k + 2]) / 2 for k in (0, 2)]
    last = next(line for line in printed.splitlines() if line.startswith("mean"))
    assert [float(word) for word in last.split()[1::3]] == pytest.approx(means, abs=5e-4)


def test_a_set_is_scored_beside_bicubic_of_its_own_lr(folders, monkeypatch, capsys):
    sr = folders[0]
    monkeypatch.chdir(sr.parent)
    lr = np.full((24, 30, 3), 77, np.uint8)  # not what a reduction of HR gives
    utils.write_image("LR/baby.png", lr)
    row = {"hr": "HR/baby.png", "lr": "LR/baby.png", "width": 120, "height": 96}
    utils.write_rows("data/lists/Tiny.csv", [row])
    (sr / "bird.png").unlink()
    assert score(sr, "--set", "Tiny", "-o", "a.csv") == 0
    assert score(sr, "--set", "data/lists/Tiny.csv", "-o", "b.csv") == 0
    assert read_csv("a.csv") == read_csv("b.csv")
    control = read_csv("a.csv")[0]
    assert (control["set"], control["method"], control["name"]) == ("Tiny", "bicubic", "baby")
    expected = metrics.psnr(imresize(lr, 4), utils.read_image("HR/baby.png"))
    assert float(control["psnr"]) == pytest.approx(expected)
    assert "of the set's own LR images" in capsys.readouterr().out
    assert "data/lists/Absent.csv: no such list" in score(sr, "--set", "Absent")


@pytest.mark.parametrize(
    "names",
    [("baby_SR", "baby"), ("babyx4", "baby_HR"), ("Baby_x4_SR", "baby"), ("baby_out", "baby_GT")],
)
def test_suffixes_of_other_programs_are_paired_and_said(names, folders, capsys):
    sr, hr = folders
    (sr / "baby.png").rename(sr / f"{names[0]}.png")
    (hr / "baby.png").rename(hr / f"{names[1]}.png")
    assert score(sr, hr) == 0
    assert f"{names[0]}.png is paired with {names[1]}" in capsys.readouterr().out


def test_an_equal_name_goes_before_one_with_a_suffix(folders, capsys):
    sr, hr = folders
    utils.write_image(hr / "baby_x4.png", utils.read_image(hr / "baby.png")[:, ::-1])
    utils.write_image(sr / "baby_x4.png", utils.read_image(sr / "baby.png")[:, ::-1])
    assert score(sr, hr) == 0
    assert "is paired with" not in capsys.readouterr().out


def test_an_image_with_its_own_original_is_no_other_ones(folders, capsys):
    sr, hr = folders
    utils.write_image(hr / "baby_HR.png", utils.read_image(hr / "baby.png"))
    assert score(sr, hr) == (
        "error: baby_HR: no SR image of this name; name each SR image as its HR image"
    )
    assert "2 of 3 images" in capsys.readouterr().out


def test_images_without_a_partner_are_named_and_the_others_scored(folders, capsys):
    sr, hr = folders
    (sr / "bird.png").rename(sr / "vogel.png")
    error = score(sr, hr)
    assert "bird: no SR image of this name" in error
    assert f"{sr / 'vogel.png'}: no HR image" in error
    assert "1 of 2 images" in capsys.readouterr().out


def test_two_images_that_fit_one_original_are_not_guessed(folders):
    sr, hr = folders
    (sr / "bird.png").rename(sr / "bird_SR.png")
    utils.write_image(sr / "bird_x4.png", utils.read_image(sr / "bird_SR.png"))
    assert "bird: not clear which is whose: bird_SR.png, bird_x4.png" in score(sr, hr)
    (sr / "bird_x4.png").unlink()
    utils.write_image(hr / "bird_HR.png", utils.read_image(hr / "bird.png"))
    error = score(sr, hr)
    assert "bird: not clear" in error and "bird_HR: not clear" in error


@pytest.mark.parametrize(
    ("size", "cause"),
    [
        ((103, 126), "HR is cut at right and bottom to a multiple of 4"),
        ((104, 128), "LR was made of HR before HR was cut"),
        ((25, 31), "the size of LR"),
        ((50, 62), "enlarged 2 times instead of 4"),
        ((400, 496), "HR was enlarged"),
        ((124, 100), "turned by 90 degrees"),
        ((92, 116), "are 4 pixels cut off each side"),
        ((77, 33), "another image"),
    ],
)
def test_another_size_is_said_with_its_likely_cause(size, cause, folders):
    sr, hr = folders
    utils.write_image(sr / "bird.png", np.zeros((*size, 3), np.uint8))
    error = score(sr, hr)
    assert error.startswith(f"error: bird: {size[1]} x {size[0]} pixels, not 124 x 100")
    assert cause in error and "\n" not in error  # baby was scored


def test_a_frame_is_noted_and_a_good_border_is_not(folders, capsys):
    sr, hr = folders
    framed = utils.read_image(sr / "baby.png")
    framed[:6], framed[-6:] = 0, 0
    utils.write_image(sr / "baby.png", framed)
    assert score(sr, hr) == 0
    printed = capsys.readouterr().out
    assert "note: baby: " in printed and "is there a frame?" in printed
    assert "bird: HR cut" in printed and printed.count("bird:") == 1


def test_an_image_with_more_detail_at_its_border_has_no_frame(folders, capsys):
    sr, hr = folders
    photo = np.full((96, 120, 3), 128, np.uint8)
    photo[:12] = np.random.default_rng(0).integers(0, 256, (12, 120, 3))
    bicubic = imresize(imresize(photo, 1 / 4), 4)
    utils.write_image(hr / "baby.png", photo)
    utils.write_image(sr / "baby.png", (photo // 2 + bicubic // 2))  # half its errors everywhere
    assert score(sr, hr) == 0
    assert "frame" not in capsys.readouterr().out


def test_damaged_and_tiny_images_are_named_and_nothing_scored_writes_no_table(folders):
    sr, hr = folders
    (sr / "baby.png").write_bytes(b"no image")
    for folder in folders:
        utils.write_image(folder / "bird.png", np.zeros((16, 16, 3), np.uint8))
    error = score(sr, hr, "-o", sr.parent / "scores.csv")
    assert f"baby: {sr / 'baby.png'}: " in error and "not an image" in error
    assert "bird: 16 x 16 pixels are too few" in error
    assert not (sr.parent / "scores.csv").exists()


def test_folders_that_cannot_be_scored_are_named(folders):
    sr, hr = folders
    assert "absent: no such folder" in score(hr.parent / "absent", hr)
    assert "absent: no such folder" in score(sr, hr.parent / "absent")
    assert "no images in this folder" in score(hr.parent, hr)
    Path(hr / "baby.jpg").write_bytes((hr / "baby.png").read_bytes())
    assert "two originals have the same name" in score(sr, hr)
    assert score(sr) == score(sr, hr, "--set", "Set5") == 2  # the usage


def test_other_files_and_folders_are_named_and_not_scored(folders, capsys):
    sr, hr = folders
    (sr / "notes.txt").write_text("")
    (sr / "old.png").mkdir()
    (sr / ".DS_Store").write_text("")
    assert score(sr, hr) == 0
    assert f"note: {sr}: no images, not looked at: notes.txt, old.png\n" in capsys.readouterr().out


def test_a_folder_called_bicubic_is_not_taken_for_the_control(folders):
    sr, hr = folders
    sr = sr.rename(sr.with_name("bicubic"))
    assert score(sr, hr, "-o", sr.parent / "scores.csv") == 0
    methods = {row["method"] for row in read_csv(sr.parent / "scores.csv")}
    assert methods == {"bicubic", sr.resolve().as_posix()}


def test_the_command_is_python_metrics_py(folders):
    command = [sys.executable, "metrics.py", *map(str, folders)]
    root = Path(metrics.__file__).parent
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "2 of 2 images" in result.stdout


def test_the_committed_pictures_have_the_committed_scores(tmp_path):
    root = Path(metrics.__file__).parent / "results"
    assert score(root / "Set5" / "SRGAN", root / "Set5" / "HR", "-o", tmp_path / "a.csv") == 0
    wanted = {
        (row["method"], row["name"]): float(row["psnr"])
        for row in read_csv(root / "metrics.csv")
        if row["set"] == "Set5" and row["method"] in ("bicubic", "SRGAN")
    }
    found = {
        (row["method"], row["name"]): float(row["psnr"]) for row in read_csv(tmp_path / "a.csv")
    }
    assert found == pytest.approx(wanted, abs=1e-6)  # this imresize makes the sets' own LR
