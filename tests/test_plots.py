"""Pictures: their pixels against the arrays they show, and the order of a training's samples."""

import io
import types

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import plots
from imresize import imresize
from metrics import psnr, ssim
from tools.diagnostics import HEALTHY_RATIO


@pytest.fixture
def photo():
    return np.ascontiguousarray(data.astronaut()[100:160, 180:260])  # uint8 (60, 80, 3)


def history(steps, gan=False):
    rows = [{"step": step, "epoch": step / 10, "content_loss": 1 / step} for step in steps]
    if gan:
        more = dict(adversarial_loss=0.7, perceptual_loss=0.1, discriminator_loss=1.2)
        more |= dict(d_real=0.6, d_generated=0.4, content_to_adversarial=20.0)
        rows = [row | more for row in rows]
    return {"train": rows, "valid": [{"step": steps[-1], "epoch": 1, "psnr": 27.5, "ssim": 0.8}]}


def test_compare_shows_pixels_one_to_one(photo):
    images = {"bicubic\n28.43 dB": photo, "SRGAN": 255 - photo}
    sheet = np.array(plots.compare(images))
    height, width = photo.shape[:2]
    second = width + plots.GAP
    assert np.array_equal(sheet[-height:, :width], photo)
    assert np.array_equal(sheet[-height:, second : second + width], 255 - photo)


def test_compare_crops_and_magnifies(photo):
    sheet = np.array(plots.compare({"a": photo}, box=(5, 7, 20, 10), zoom=3))
    part = photo[7:17, 5:25].repeat(3, 0).repeat(3, 1)
    assert np.array_equal(sheet[-30:, :60], part)


def test_compare_gives_a_long_label_room(photo):
    label = "a label that is wider than its image\nand has a second line"
    longer = np.array(plots.compare({label: photo, "SRGAN": photo}))
    alone = np.array(plots.compare({label: photo}))
    assert alone.shape[1] > photo.shape[1] + plots.GAP
    assert np.array_equal(longer[:, : alone.shape[1]], alone)  # the neighbour covers none of it
    ink = (alone[:-60] < 128).any(axis=2)
    assert ink.any() and not ink[:, -plots.GAP :].any() and not ink[-plots.GAP // 2 :].any()


@pytest.mark.parametrize("box", [(70, 0, 20, 10), (-1, 0, 20, 10), (0, 55, 20, 10)])
def test_compare_refuses_a_box_outside_the_images(photo, box):
    with pytest.raises(ValueError, match=r"(?i)box"):
        plots.compare({"hr": photo}, box)


def test_compare_refuses_images_of_several_sizes(photo):
    with pytest.raises(ValueError, match=r"\(15, 20\), \(60, 80\)"):
        plots.compare({"lr": photo[::4, ::4], "hr": photo})
    with pytest.raises(ValueError, match=r"got \[\]"):
        plots.compare({})


def test_strip_captions_are_the_scores_of_the_whole_images(photo):
    sr = imresize(imresize(photo, 1 / 4), 4)
    box = (10, 10, 40, 30)
    caption = f"bicubic\n{psnr(sr, photo):.2f} dB, {ssim(sr, photo):.4f}"
    expected = plots.compare({caption: sr, "HR": photo}, box, zoom=2)
    assert np.array_equal(plots.strip({"bicubic": sr}, photo, box, zoom=2), expected)


def test_the_middle_of_lr_and_hr_is_the_same_place():
    hr = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    lr, cut = plots.middle(hr[::4, ::4], hr, 64)
    assert np.array_equal(cut, hr[8:72, 28:92])
    assert np.array_equal(lr, cut[::4, ::4])
    assert plots.middle_box(hr, 100) == (10, 0, 100, 80)  # as much as there is


def test_batch_sheet_shows_lr_above_hr():
    rng = np.random.default_rng(0)
    hr = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    lr = rng.integers(0, 256, (3, 4, 4, 3), np.uint8)
    batch = [torch.from_numpy(images).permute(0, 3, 1, 2) / 255 for images in (lr, hr)]
    sheet = np.array(plots.batch_sheet(*batch))
    assert sheet.shape == (32, 48, 3)
    for k in range(3):
        columns = slice(16 * k, 16 * (k + 1))
        assert np.array_equal(sheet[:16, columns], lr[k].repeat(4, 0).repeat(4, 1))
        assert np.array_equal(sheet[16:, columns], hr[k])


@pytest.mark.parametrize(("gan", "panels"), [(False, 3), (True, 6)])
def test_each_kind_of_quantity_has_its_panel(gan, panels):
    figure = plots.plot_history(history([1, 2, 3], gan))
    assert len(figure.axes) == panels
    labels = [text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()]
    assert len(labels) == len(set(labels)) == (9 if gan else 3)  # each column of the rows once
    assert ("D(x) on real images" in labels) == gan


def test_the_healthy_ratio_stands_above_its_curve():
    axes = plots.plot_history(history([1, 2, 3], gan=True)).axes[3]
    assert "{} to {}".format(*HEALTHY_RATIO) in axes.get_title()
    assert axes.lines[0].get_ydata().tolist() == [20, 20, 20]


def test_short_curves_join_the_rows():
    for line in plots.plot_history(history([2, 4, 8])).axes[0].lines:
        assert line.get_xdata().tolist() == [2, 4, 8]
        assert line.get_ydata().tolist() == [1 / 2, 1 / 4, 1 / 8]


def test_long_curves_are_running_means_around_the_rows():
    means, points = plots.plot_history(history(range(1, 401))).axes[0].lines
    assert np.array_equal(points.get_ydata(), 1 / np.arange(1, 401))
    assert len(means.get_xdata()) == 400 - 20 + 1
    assert means.get_xdata()[100] == np.mean(range(101, 121))
    assert means.get_ydata()[100] == pytest.approx(np.mean(1 / np.arange(101, 121)))


def test_an_empty_history_is_a_figure_without_panels():
    figure = plots.plot_history({"train": [], "valid": []})
    assert figure.axes == []
    assert Image.open(io.BytesIO(plots.as_png(figure).data)).format == "PNG"


def test_save_figure_writes_the_picture_it_returns(tmp_path):
    figure = plots.plot_history(history([1, 2, 3]), "a title")
    picture = plots.save_figure(figure, tmp_path / "curves" / "srresnet.png")
    (file,) = (tmp_path / "curves").iterdir()
    assert file.name == "srresnet.png" and file.read_bytes() == picture.data
    assert picture.data == plots.as_png(figure).data
    image = Image.open(file)
    assert image.format == "PNG" and image.size == (1380, 320)
    assert np.asarray(image.convert("L")).min() < 50  # something is drawn


def test_as_jpeg_shows_nearly_the_same_in_fewer_bytes():
    photo = Image.fromarray(data.astronaut())
    picture = plots.as_jpeg(photo)
    image = Image.open(io.BytesIO(picture.data))
    png = io.BytesIO()
    photo.save(png, "PNG")
    assert image.format == "JPEG" and image.size == photo.size
    assert psnr(np.asarray(image), np.asarray(photo)) > 30
    assert len(picture.data) < len(png.getvalue()) / 4


class FakeSolver:
    """Calls the callback as `Solver.fit` does; `upscale` gives gray of the level `trained`."""

    def __init__(self, folder):
        self.epoch = self.batch = self.step = self.trained = 0
        self.folder, self.history = folder, {"train": [], "valid": []}

    def upscale(self, lr):
        return np.full((4 * lr.shape[0], 4 * lr.shape[1], 3), self.trained, np.uint8)

    def fit(self, num_epochs, callback):
        for _ in range(num_epochs):
            for self.batch in range(1, 6):
                self.step, self.trained = self.step + 1, self.trained + 10
                self.history["train"] += history([self.step])["train"]
                callback(self)  # also after the last batch, before the epoch counts as done
            self.epoch, self.batch = self.epoch + 1, 0
            callback(self)


@pytest.fixture
def notebook(monkeypatch):
    """{output area: pictures shown in it}, in place of a notebook's display."""
    areas = []

    def display(picture, display_id):
        areas.append([picture])
        return types.SimpleNamespace(update=areas[-1].append)

    monkeypatch.setattr(plots, "display", display)
    return areas


def some_pairs():
    rng = np.random.default_rng(0)
    shapes = [(20, 30), (24, 17)]
    lrs = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    return [("name", lr, lr.repeat(4, axis=0).repeat(4, axis=1)) for lr in lrs]


def test_the_samples_of_epoch_k_are_of_the_network_after_k_epochs(tmp_path, notebook):
    solver = FakeSolver(tmp_path / "srresnet")
    view = plots.LiveView(some_pairs(), size=64, folder=tmp_path / "samples")
    solver.fit(2, view)
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["epoch-001.png", "epoch-002.png"]
    for trained, file in zip((50, 100), files, strict=True):
        sheet = np.asarray(Image.open(file))
        left = 64 + plots.GAP  # the second of three images of 64 x 64
        assert (sheet[-64:, left : left + 64] == trained).all()


def test_curves_and_samples_are_redrawn_in_place(tmp_path, notebook):
    solver = FakeSolver(tmp_path / "srresnet")
    solver.fit(3, plots.LiveView(some_pairs(), size=64))
    curves, samples = notebook
    assert len(curves) == 3 * 6 and len(samples) == 3
    assert list(tmp_path.iterdir()) == []  # without a folder nothing is kept


def test_curves_are_not_redrawn_for_few_new_rows(tmp_path, notebook):
    solver = FakeSolver(tmp_path / "srresnet")
    solver.history = history(range(1, 101))
    solver.batch = 1
    view = plots.LiveView(some_pairs(), size=64)
    for _ in range(10):
        view(solver)
        solver.history["train"].append(solver.history["train"][-1])
    (curves,) = notebook
    assert len(curves) == 4  # 100 rows, then at least 2 % more: 102, 105, 108


def test_samples_show_bicubic_now_and_hr_of_the_middles(notebook):
    pairs = some_pairs()
    solver = FakeSolver(None)
    sheet = plots.LiveView(pairs, size=64).sheet(solver)
    rows = []
    for _, lr, hr in pairs:
        lr, hr = plots.middle(lr, hr, 64)
        images = {"bicubic": imresize(lr, 4), "epoch 0": solver.upscale(lr), "HR": hr}
        rows.append(np.asarray(plots.compare(images)))
    assert np.array_equal(sheet, np.vstack(rows))


def test_samples_of_a_small_image_make_all_samples_small(notebook):
    view = plots.LiveView(some_pairs())  # 192 pixels, where the smallest side has 68
    assert [hr.shape for _, hr in view.crops] == [(68, 68, 3)] * 2


def test_outside_a_notebook_pictures_are_only_announced(tmp_path, capsys):
    FakeSolver(tmp_path).fit(1, plots.LiveView(some_pairs(), size=64, folder=tmp_path))
    assert "Image" in capsys.readouterr().out
    assert (tmp_path / "epoch-001.png").exists()
