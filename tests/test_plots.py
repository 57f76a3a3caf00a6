"""Pictures: their pixels against the arrays they show, and the order of a training's samples."""

import io
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_images, trained_generator
from jupyter_client.manager import start_new_kernel
from PIL import Image
from skimage import data
from training import make

import plots
from imresize import imresize
from metrics import psnr, ssim
from models import SRResNet
from super_resolve import super_resolve
from tools.diagnostics import HEALTHY_RATIO
from tools.distributed import STOPPED


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
    assert longer.shape[1] == 2 * alone.shape[1]
    assert alone.shape[1] > photo.shape[1] + plots.GAP
    assert np.array_equal(longer[:, : alone.shape[1]], alone)  # the neighbour covers none of it
    ink = (alone[:-60] < 128).any(axis=2)
    assert ink.any() and not ink[:, -plots.GAP :].any() and not ink[-plots.GAP // 2 :].any()


def test_compare_wraps_into_rows_of_800_pixels_and_keeps_the_order(photo):
    images = {f"{k}": np.full((60, 240, 3), 10 * k, np.uint8) for k in range(5)}
    sheet = np.array(plots.compare(images))
    height = plots.LINE + plots.GAP + 60
    assert sheet.shape == (2 * height + plots.GAP, 3 * (240 + plots.GAP), 3)
    for k in range(5):
        top, left = (height + plots.GAP) * (k // 3), (240 + plots.GAP) * (k % 3)
        assert (sheet[top + height - 60 : top + height, left : left + 240] == 10 * k).all()
    assert plots.compare({"a": photo, "b": photo}, zoom=12).width == 12 * 80 + plots.GAP


def test_pictures_of_pixels_are_never_shrunk_and_figures_may_be(photo):
    metadata = plots.as_jpeg(Image.fromarray(photo))._repr_mimebundle_()[1]
    assert metadata["image/jpeg"]["unconfined"] is True
    assert not plots.as_png(plots.plot_history(history([1])))._repr_mimebundle_()[1]


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
    named = {"D(HR)", "D(G(LR))", "perceptual_loss (equation 3)", "adversarial_loss (equation 6)"}
    assert named <= set(labels) if gan else not named & set(labels)


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


@pytest.mark.parametrize("gan", [False, True])
@pytest.mark.parametrize("last", [1, 3, 400])
def test_curves_are_at_most_900_pixels_wide_and_two_in_a_row(gan, last):
    figure = plots.plot_history(history(range(1, last + 1), gan))
    image = Image.open(io.BytesIO(plots.as_png(figure).data))
    assert image.width <= 900 and figure.dpi == 100
    lefts = {round(axes.get_position().x0, 2) for axes in figure.axes}
    assert len(lefts) == 2


@pytest.mark.parametrize("psnrs", [[35.36001], [35.36001, 35.36003], [27, 28.5]])
def test_ticks_of_one_or_two_points_are_whole_steps_and_plain_numbers(psnrs):
    valid = [dict(step=k, epoch=k, psnr=psnr, ssim=0.8) for k, psnr in enumerate(psnrs, 1)]
    figure = plots.plot_history({"train": [], "valid": valid})
    plots.as_png(figure)  # sets the ticks
    axes = figure.axes[0]
    steps = [text.get_text() for text in axes.get_xticklabels()]
    assert all(step.isdigit() for step in steps) and len(steps) >= len(psnrs)
    assert axes.yaxis.get_offset_text().get_text() == ""
    values = [float(text.get_text()) for text in axes.get_yticklabels()]
    assert len(values) == len(set(values)) > 2
    low, high = axes.get_ylim()
    assert low < min(psnrs) and max(psnrs) < high
    assert any(line.get_marker() == "." for line in axes.lines)  # one point has no line


def test_a_legend_covers_no_curve():
    figure = plots.plot_history(history([1, 2, 3], gan=True))
    plots.as_png(figure)
    for axes in figure.axes:
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


def test_an_empty_history_is_a_figure_without_panels():
    figure = plots.plot_history({"train": [], "valid": []})
    assert figure.axes == []
    assert Image.open(io.BytesIO(plots.as_png(figure).data)).format == "PNG"


def test_save_figure_writes_the_picture_it_returns(tmp_path):
    figure = plots.plot_history(history([1, 2, 3]), "a title")
    picture = plots.save_figure(figure, tmp_path / "curves" / "srresnet.png")
    (file,) = (tmp_path / "curves").iterdir()
    assert file.name == "srresnet.png" and file.read_bytes() == picture.data
    again = plots.plot_history(history([1, 2, 3]), "a title")
    assert picture.data == plots.as_png(again).data
    image = Image.open(file)
    assert image.format == "PNG" and image.size == (900, 680)
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
        self.generator = SRResNet(1, 4)

    def upscale(self, lr):
        return np.full((4 * lr.shape[0], 4 * lr.shape[1], 3), self.trained, np.uint8)

    def fit(self, num_epochs, callback):
        callback(self)
        while self.epoch < num_epochs:
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
    monkeypatch.setattr(plots, "get_ipython", lambda: types.SimpleNamespace(kernel=None))
    return areas


def some_pairs():
    rng = np.random.default_rng(0)
    shapes = [(20, 30), (24, 17)]
    lrs = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    return [("name", lr, lr.repeat(4, axis=0).repeat(4, axis=1)) for lr in lrs]


def test_the_samples_of_epoch_k_are_of_the_network_after_k_epochs(tmp_path, notebook):
    solver = FakeSolver(tmp_path / "s")
    view = plots.LiveView(some_pairs(), size=64, folder=tmp_path / "samples")
    solver.fit(2, view)
    files = sorted((tmp_path / "samples").iterdir())
    names = ["epoch-000.png", "epoch-001.png", "epoch-002.png"]
    assert [file.name for file in files] == names
    for trained, file in zip((0, 50, 100), files, strict=True):
        sheet = np.asarray(Image.open(file))
        left = sheet.shape[1] // 3  # the second of three images of 64 x 64
        assert (sheet[-64:, left : left + 64] == trained).all()


def test_curves_and_samples_are_redrawn_in_place(tmp_path, notebook):
    solver = FakeSolver(tmp_path / "srresnet")
    view = plots.LiveView(some_pairs(), size=64)
    assert notebook == []
    solver.fit(3, view)
    curves, samples = notebook  # in this order
    assert curves[0].format == "png" and samples[0].format == "jpeg"
    assert len(curves) == 1 + 3 * 6 and len(samples) == 1 + 3
    assert list(tmp_path.iterdir()) == []  # without a folder nothing is kept


@pytest.mark.parametrize("batch", [0, 3])
def test_a_resumed_training_shows_its_curves_and_samples_at_once(batch, tmp_path, notebook):
    solver = FakeSolver(tmp_path / "srresnet")
    solver.history, solver.epoch, solver.batch, solver.step = history(range(1, 101)), 2, batch, 100
    plots.LiveView(some_pairs(), size=64, folder=tmp_path)(solver)
    assert [len(area) for area in notebook] == [1, 1]
    # Samples within an epoch are not those after it.
    assert [path.name for path in tmp_path.iterdir()] == ([] if batch else ["epoch-002.png"])


def test_curves_are_not_redrawn_for_few_new_rows(tmp_path, notebook):
    solver = FakeSolver(tmp_path / "srresnet")
    solver.history = history(range(1, 101))
    solver.batch = 1
    view = plots.LiveView(some_pairs(), size=64)
    for _ in range(10):
        view(solver)
        solver.history["train"].append(solver.history["train"][-1])
    curves, samples = notebook
    assert len(curves) == 4  # 100 rows, then at least 2 % more: 102, 105, 108
    assert len(samples) == 1


@pytest.mark.parametrize("size", [16, 32])
def test_samples_are_parts_of_the_whole_images_enlarged(size, images, tmp_path):
    rng = np.random.default_rng(0)
    lr = rng.integers(0, 256, (71, 90, 3), np.uint8)  # larger than the part and what it depends on
    hr = rng.integers(0, 256, (284, 360, 3), np.uint8)
    solver = make("gan", images, tmp_path / "srgan", generator=trained_generator(1, 2))
    solver.ema.load_state_dict(solver.generator.state_dict())
    beside = trained_generator(2, 3)  # depends on more
    sheet = np.asarray(plots.LiveView([("a", lr, hr)], size=size, beside=beside).sheet(solver))
    whole = {
        "bicubic": imresize(lr, 4),
        "SRResNet": super_resolve(beside, lr, progress=False),
        "srgan, step 0": super_resolve(solver.ema, lr, progress=False),
        "HR": hr,
    }
    parts = {name: plots.middle(lr, image, size)[1] for name, image in whole.items()}
    assert np.array_equal(sheet, plots.compare(parts))
    assert len({part.tobytes() for part in parts.values()}) == 4


def test_samples_need_no_more_of_a_large_image_than_they_depend_on(tmp_path):
    sizes, solver = [], FakeSolver(tmp_path / "srgan")
    solver.upscale = lambda lr: sizes.append(lr.shape) or lr.repeat(4, 0).repeat(4, 1)
    lr = np.zeros((500, 400, 3), np.uint8)
    plots.LiveView([("a", lr, lr.repeat(4, 0).repeat(4, 1))], size=64).sheet(solver)
    assert sizes == [(16 + 2 * 10, 16 + 2 * 10, 3)]


def test_samples_of_a_small_image_make_all_samples_small(tmp_path):
    sheet = plots.LiveView(some_pairs()).sheet(FakeSolver(tmp_path / "s"))
    # 192 pixels, where the smallest side has 68: two rows of a line of text and samples
    assert sheet.height == 2 * (plots.LINE + plots.GAP + 68)


def test_outside_a_notebook_nothing_is_printed(tmp_path, capsys):
    FakeSolver(tmp_path / "s").fit(1, plots.LiveView(some_pairs(), size=64, folder=tmp_path))
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    assert (tmp_path / "epoch-001.png").exists()


# --- in a kernel ----------------------------------------------------------------------------------

SETUP = """
%xmode Minimal
import pathlib, time
from datasets import PairDataset
from plots import LiveView
from training import make

images = pathlib.Path("list.csv")
"""
FIT = """
solver = make("gan", images, "run", epochs=2, log_every=1, valid=True)
solver.resume()
solver.fit(callback=LiveView(solver.valid_pairs, size=16))
"""
SLOW = """
def slow(solver):
    shown(solver)
    time.sleep(0.2 * bool(solver.step))

solver, shown = make("gan", images, "run", epochs=2, log_every=1), None
shown = LiveView([PairDataset(images)[0]], size=16)
solver.fit(callback=slow)
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Runs a cell; returns what it shows, in order: (kind, text)."""
    paths = [str(path) for path in (Path(plots.__file__).parent, Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_images(tmp_path)
    manager, client = start_new_kernel(cwd=str(tmp_path))

    def run(code, interrupt=False):
        sent, shown = client.execute(code), []
        while True:
            message = client.get_iopub_msg(timeout=120)
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != sent:
                continue
            if kind == "status" and content["execution_state"] == "idle":
                return shown
            if interrupt and kind == "update_display_data":  # trained a step
                manager.interrupt_kernel()
                interrupt = False
            if kind == "error":
                shown.append((kind, "\n".join(content["traceback"])))
            elif kind == "stream":
                shown.append((content["name"], content["text"]))
            elif kind.endswith("display_data"):
                shown.append((kind, next(iter(content["data"]))))

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.skipif(sys.platform == "win32", reason="the solver's handlers are for POSIX signals")
def test_in_a_notebook_the_order_stays_and_stopping_is_one_line(kernel):
    places = [("display_data", "image/png"), ("display_data", "image/jpeg")]
    kernel(SETUP)
    shown = kernel(SLOW, interrupt=True)
    assert [s for s in shown if s[0] == "display_data"] == places
    assert {kind for kind, _ in shown} == {"display_data", "update_display_data", "stdout", "error"}
    kind, text = shown[-1]
    text = re.sub(r"\x1b\[[\d;]*m", "", text).strip()
    assert (kind, text) == ("error", f"KeyboardInterrupt: {STOPPED}")

    for _ in range(2):  # goes on; then nothing is left to do
        shown = [s for s in kernel(FIT) if "Resumed" not in s[1]]
        assert shown[:2] == places  # before the bar and the lines
        kinds = {kind for kind, _ in shown[2:]}
        assert kinds <= {"update_display_data", "stdout"}  # no further place, and no red box
        printed = "".join(text for kind, text in shown if kind == "stdout")
        said = [line for line in printed.splitlines() if "PSNR" in line]
        assert all(line.startswith("after epoch") for line in said)
        assert bool(said) == (kinds != set())
