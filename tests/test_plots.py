"""Pictures of a training: what they show, not how they look."""

import types

import numpy as np
import pytest
import torch

import losses
import plots
from imresize import imresize


def history(steps, gan=False):
    rows = [
        {"step": s, "epoch": s / 10, "seconds": 1.0, "learning_rate": 1e-4, "content_loss": 1 / s}
        for s in steps
    ]
    if gan:
        extra = dict(
            adversarial_loss=1e-3,
            discriminator_loss=1.2,
            d_real=0.6,
            d_generated=0.4,
            content_to_adversarial=20.0,
        )
        rows = [{**row, **extra} for row in rows]
    return {"train": rows, "valid": [{"step": steps[-1], "epoch": 1, "psnr": 27.5, "ssim": 0.8}]}


@pytest.mark.parametrize(("gan", "panels"), [(False, 2), (True, 5)])
def test_each_kind_of_quantity_has_its_panel(gan, panels):
    assert len(plots.plot_history(history([1, 2, 3], gan)).axes) == panels


def test_what_is_healthy_stands_above_the_curves():
    titles = [axes.get_title() for axes in plots.plot_history(history([1, 2, 3], gan=True)).axes]
    assert sum("healthy" in title for title in titles) == 2
    low, high = losses.HEALTHY_RATIO
    assert any(f"{low} to {high}" in title for title in titles)


def test_curves_show_the_rows():
    axes = plots.plot_history(history([2, 4, 8])).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [2, 4, 8]
    assert axes.lines[0].get_ydata().tolist() == [1 / 2, 1 / 4, 1 / 8]


def test_long_curves_are_smoothed_around_themselves():
    axes = plots.plot_history(history(list(range(1, 401)))).axes[0]
    raw, smooth = axes.lines
    steps, values = smooth.get_data()
    middle = len(values) // 2
    assert values[middle] == pytest.approx(raw.get_ydata()[int(steps[middle]) - 1], rel=0.01)


def test_an_empty_history_is_no_error():
    plots.plot_history({"train": [], "valid": []})


def test_batch_sheet_shows_lr_above_hr():
    hr = torch.rand(3, 3, 16, 16)
    lr = torch.rand(3, 3, 4, 4)
    sheet = np.array(plots.batch_sheet(lr, hr))
    assert sheet.shape == (32, 48, 3)
    assert (
        np.abs(sheet[16:, 16:32] / 255 - hr[1].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    )
    assert (
        np.abs(sheet[0:16:4, 0:16:4] / 255 - lr[0].permute(1, 2, 0).numpy()).max()
        <= 0.5 / 255 + 1e-6
    )


def test_live_view_shows_each_epoch_once_and_keeps_its_picture(tmp_path, monkeypatch):
    shown, updated = [], []
    place = types.SimpleNamespace(update=updated.append)
    monkeypatch.setattr(
        plots, "display", lambda picture, display_id: shown.append(picture) or place
    )
    rng = np.random.default_rng(0)
    pairs = [
        (
            "a",
            rng.integers(0, 256, (20, 30, 3), np.uint8),
            rng.integers(0, 256, (80, 120, 3), np.uint8),
        )
    ]
    solver = types.SimpleNamespace(
        history=history([5, 10]),
        folder=tmp_path / "srresnet",
        loader=range(10),
        upscale=lambda lr: imresize(lr, 4),
    )
    view = plots.LiveView(pairs, size=64, folder=tmp_path)
    for solver.step, solver.epoch in [(5, 0), (10, 1), (10, 1), (15, 1), (20, 2)]:
        view(solver)
    assert len(shown) == 2  # one place for the curves, one for the samples
    assert len(updated) == 4 + 1
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "epoch-001.png",
        "epoch-002.png",
    ]
