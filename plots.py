"""Pictures for notebooks: images side by side, a training's curves and samples; trains nothing."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from IPython import get_ipython
from IPython.display import Image as NotebookImage
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imresize import imresize
from metrics import psnr, ssim
from models import SRResNet
from tools.diagnostics import HEALTHY_RATIO
from utils import SCALE, atomic_path, to_array, write_image

LOW, HIGH = HEALTHY_RATIO
WIDEST = 800  # pixels: more would be shrunk, or scrolled, in a notebook of 1000 pixels
GAP, LINE = 8, 18  # pixels: beside an image and below its label; each line of the label
PANELS = {  # of `plot_history`; title: columns of the history
    "losses of the generator, raw": ["content_loss", "adversarial_loss", "perceptual_loss"],
    "additions to the paper's loss, raw": ["grid_loss", "lr_consistency_loss", "texture_loss"],
    "loss of the discriminator": ["discriminator_loss"],
    "output of the discriminator\n(healthy: apart, but not 1 and 0)": ["d_real", "d_generated"],
    f"content : adversarial loss, weighted\n(healthy: {LOW} to {HIGH})": ["content_to_adversarial"],
    "validation PSNR in dB (Y)": ["psnr"],
    "validation SSIM (Y)": ["ssim"],
}
LOGARITHMIC = {"content_loss", "content_to_adversarial", "grid_loss"}
LABELS = {  # with the equations of the paper
    "content_loss": "content_loss (equation 4 or 5)",
    "adversarial_loss": "adversarial_loss (equation 6)",
    "perceptual_loss": "perceptual_loss (equation 3)",
    "discriminator_loss": "discriminator_loss (equation 2)",
    "d_real": "D(HR)",
    "d_generated": "D(G(LR))",
}


def compare(images: dict[str, np.ndarray], box: tuple | None = None, zoom: int = 1) -> Image.Image:
    """Images side by side below their labels, pixel by pixel: matplotlib would resample them.

    images: {label: uint8 (H, W, 3)}, all of one size. box: the part to show, (left, top, width,
    height) in pixels. zoom: the side of a shown pixel. As many in a row as fit into 800 pixels,
    at least one. ValueError for other sizes or boxes.
    """
    sizes = {image.shape[:2] for image in images.values()}
    if len(sizes) != 1:
        raise ValueError(f"expected images of one (H, W) to compare, got {sorted(sizes)}")
    ((image_height, image_width),) = sizes
    left, top, width, height = box or (0, 0, image_width, image_height)
    corners = (left, top, left + width, top + height)
    font = ImageFont.load_default(14)
    lines = [line for label in images for line in label.split("\n")]
    label_width = math.ceil(max(font.getlength(line) for line in lines))
    label_height = LINE * (1 + max(label.count("\n") for label in images)) + GAP
    across = max(zoom * width, label_width) + GAP  # from an image to the next one
    down = label_height + zoom * height + GAP
    columns = min(len(images), max(1, WIDEST // across))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * across, rows * down - GAP), "white")
    for k, (label, image) in enumerate(images.items()):
        left, top = k % columns * across, k // columns * down
        part = Image.fromarray(image).resize((zoom * width, zoom * height), Image.NEAREST, corners)
        ImageDraw.Draw(sheet).multiline_text((left, top), label, fill="black", font=font)
        sheet.paste(part, (left, top + label_height))
    return sheet


def on_checkerboard(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 (H, W, 1 to 4) as uint8 RGB (H, W, 3), what is transparent on a checkerboard.

    1 to 4 channels: gray, gray and alpha, RGB, RGBA.
    """
    values = image / np.iinfo(image.dtype).max
    colours, alpha = values, 1
    if image.shape[2] in (2, 4):
        colours, alpha = values[..., :-1], values[..., -1:]
    row, column = np.indices(image.shape[:2]) // GAP
    board = np.where((row + column) % 2, 0.6, 0.8)[..., None]
    rgb = np.broadcast_to(alpha * colours + (1 - alpha) * board, (*image.shape[:2], 3))
    return (255 * rgb + 0.5).astype(np.uint8)


def strip(images: dict, hr: np.ndarray, box: tuple | None = None, zoom: int = 1) -> Image.Image:
    """`compare` of {label: SR image} and HR; each label gets PSNR and SSIM of the whole image."""
    scores = {name: f"{psnr(sr, hr):.2f} dB, {ssim(sr, hr):.4f}" for name, sr in images.items()}
    images = {f"{name}\n{scores[name]}": sr for name, sr in images.items()}
    return compare(images | {"HR": hr}, box, zoom)


def middle_box(image: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the middle size x size pixels, or of what the image has."""
    height, width = (min(size, side) for side in image.shape[:2])
    return (image.shape[1] - width) // 2, (image.shape[0] - height) // 2, width, height


def middle(lr: np.ndarray, hr: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a pair, at most size x size HR pixels: (lr, hr)."""
    left, top, width, height = middle_box(lr, size // SCALE)
    hr = hr[SCALE * top : SCALE * (top + height), SCALE * left : SCALE * (left + width)]
    return lr[top : top + height, left : left + width], hr


def batch_sheet(lr: Tensor, hr: Tensor) -> Image.Image:
    """The first 8 pairs of a batch, lr (N, 3, h, w) above hr (N, 3, 4h, 4w), floats in [0, 1]."""
    above = np.hstack([to_array(patch).repeat(SCALE, 0).repeat(SCALE, 1) for patch in lr[:8]])
    below = np.hstack([to_array(patch) for patch in hr[:8]])
    return Image.fromarray(np.vstack([above, below]))


def plot_history(history: dict[str, list[dict]], title: str = "") -> Figure:
    """Values of `Solver.history` over the steps and their running means, a panel for each kind."""
    rows = history["train"] + history["valid"]
    present = {column for row in rows for column in row}
    last_step = max((row["step"] for row in rows), default=1)
    panels = [name for name, columns in PANELS.items() if present.intersection(columns)]
    figure, all_axes = _panels(panels, title)
    for name, axes in zip(panels, all_axes, strict=True):
        values = [row[column] for row in rows for column in PANELS[name] if column in row]
        wide = min(values) > 0 and max(values) > 10 * min(values)  # else a log axis lacks ticks
        if wide and LOGARITHMIC.intersection(PANELS[name]):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        for column in [column for column in PANELS[name] if column in present]:
            points = np.array([(row["step"], row[column]) for row in rows if column in row])
            window = max(1, len(points) // 20)  # 1: the line joins the points
            means = np.lib.stride_tricks.sliding_window_view(points, window, axis=0).mean(axis=2)
            (line,) = axes.plot(*means.T, label=LABELS.get(column, column))
            marker = dict(markersize=6) if len(points) < 20 else dict(markersize=3, alpha=0.4)
            axes.plot(*points.T, ".", color=line.get_color(), **marker)
        below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
        axes.legend(fontsize=8, **below)  # beside the curves: it would cover some
        axes.set_xlim(0, 1.03 * last_step)
    return figure


def _panels(names, title):
    """A figure 900 pixels wide and its axes, one for each name, two in a row."""
    rows = math.ceil(len(names) / 2)
    # Not by pyplot, which would keep it open.
    figure = Figure(figsize=(9, 0.4 + 3.2 * rows), layout="constrained")
    figure.suptitle(title)
    all_axes = [figure.add_subplot(rows, 2, k + 1, xlabel="step") for k in range(len(names))]
    for name, axes in zip(names, all_axes, strict=True):
        axes.set_title(name, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.ticklabel_format(useOffset=False)  # 35.36001, not 1e-5 + 3.536e1
        axes.grid(alpha=0.3)
    return figure, all_axes


def compare_histories(histories: dict[tuple[str, str], dict[str, list[dict]]]) -> Figure:
    """Validation PSNR over the steps, a panel for each stage, a line for each run.

    histories: {(run, stage): {"valid": rows with step and psnr}}, as `tools.runs.read_runs` has
    them. A run without validation rows is in the legend, with no line.
    """
    stages = list(dict.fromkeys(stage for _, stage in histories))
    runs = list(dict.fromkeys(run for run, _ in histories))
    figure, all_axes = _panels(stages, "validation PSNR in dB (Y)")
    for stage, axes in zip(stages, all_axes, strict=True):
        for run in [run for run in runs if (run, stage) in histories]:
            rows = [row for row in histories[run, stage]["valid"] if "psnr" in row]
            steps, values = [row["step"] for row in rows], [row["psnr"] for row in rows]
            axes.plot(steps, values, "o-", markersize=3, label=run, color=f"C{runs.index(run)}")
        axes.set_xlim(left=0)
        axes.legend(fontsize=8)
    return figure


def perception_distortion(
    points: dict[str, tuple[float, float]], curve: dict[str, tuple[float, float]] | None = None
) -> Figure:
    """Methods in the plane of distortion and perception (Blau and Michaeli, CVPR 2018).

    points: {method: (PSNR in dB, spectral distance in dB)}, means over images. curve: the same for
    the generators between two of them, joined by a line in their order. Right and down is better.
    """
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("PSNR in dB (Y): further right is better")
    axes.set_ylabel("spectral distance to HR in dB: further down is better")
    if curve:
        axes.plot(*zip(*curve.values(), strict=True), "o-", color="0.6", markersize=4)
    ends = [pair for k, pair in enumerate((curve or {}).items()) if k in (0, len(curve) - 1)]
    for label, point in ends:  # those between may lie close together
        left = dict(xytext=(-6, -2), textcoords="offset points", ha="right", fontsize=7)
        axes.annotate(label, point, **left)
    for k, (label, point) in enumerate(points.items()):  # in a legend: labels would overlap
        axes.plot(*point, "osD^vPX"[k % 7], color=f"C{k}", markersize=7, label=label)
    axes.legend()
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    return figure


def as_png(figure: Figure) -> NotebookImage:
    """A matplotlib figure for a notebook's output."""
    data = io.BytesIO()
    figure.savefig(data, dpi=100, format="png")
    return NotebookImage(data.getvalue(), format="png")


def as_jpeg(sheet: Image.Image) -> NotebookImage:
    """A PIL image for a notebook's output in a tenth of a PNG's bytes; not to judge pixels by.

    A pixel is a pixel of the page: a window too narrow for it scrolls, where a figure would shrink.
    """
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=90)
    return NotebookImage(data.getvalue(), format="jpeg", unconfined=True)


def save_figure(figure: Figure, path: str | Path) -> NotebookImage:
    """Save a matplotlib figure as PNG, atomically; returns the file for a notebook's output."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(as_png(figure).data)
    return NotebookImage(path)


class LiveView:
    """A callback for `Solver.fit`: curves and, below them, samples, redrawn in place.

    It shows them before the training's bar appears, then redraws the curves as rows come and the
    samples after each epoch. Outside a notebook it shows nothing.

    pairs: [(name, lr, hr)], uint8, of which the middle size x size HR pixels are shown, as they are
    in the whole image's SR. folder: keeps the samples, as epoch-001.png after one epoch; None keeps
    none. beside: a generator, SRResNet, to show between bicubic and the one in training.
    """

    def __init__(
        self, pairs: list[tuple], size: int = 192, folder: str | Path | None = None,
        beside: SRResNet | None = None,
    ):  # fmt: skip
        self.size = min(size, *(side for _, _, hr in pairs for side in hr.shape[:2]))  # one for all
        self.pairs, self.folder, self.beside = pairs, folder, beside
        self.places: dict[str, Any] = {}  # output areas of the notebook
        self.rows_drawn, self.step_drawn = 0, None  # rows in the curves; step of the samples

    def __call__(self, solver: Any) -> None:
        rows, first = len(solver.history["train"]), self.step_drawn is None
        if not first and solver.batch > 0 and rows < 1.02 * self.rows_drawn:
            return  # so few new points are not seen, and drawing them may take longer than steps
        self.rows_drawn = rows
        title = f"{solver.folder.name}: {solver.epoch} epochs done, step {solver.step:,}"
        self._show("curves", as_png(plot_history(solver.history, title)))
        if first or (solver.batch == 0 and solver.step != self.step_drawn):  # an epoch has ended
            self.step_drawn = solver.step
            sheet = self.sheet(solver)
            self._show("samples", as_jpeg(sheet))
            if self.folder and solver.batch == 0:
                write_image(f"{self.folder}/epoch-{solver.epoch:03d}.png", np.asarray(sheet))

    def sheet(self, solver: Any) -> Image.Image:
        """Bicubic, `beside`, what the generator makes now, and HR side by side, a row a pair."""
        from super_resolve import receptive_field_radii, super_resolve  # which imports this module

        networks = [network for network in (self.beside, solver.generator) if network]
        around = max(sum(receptive_field_radii(network.num_blocks)) for network in networks)
        now, rows = f"{solver.folder.name}, step {solver.step:,}", []
        for _, lr, hr in self.pairs:
            # What the middle's SR depends on, of which the middle is cut again.
            lr, hr = middle(lr, hr, self.size + 2 * SCALE * around)
            images = {"bicubic": imresize(lr, SCALE)}
            if self.beside:
                images["SRResNet"] = super_resolve(self.beside, lr, progress=False)
            images |= {now: solver.upscale(lr), "HR": hr}
            rows.append(
                compare({k: middle(lr, image, self.size)[1] for k, image in images.items()})
            )
        return Image.fromarray(np.vstack(rows))

    def _show(self, name, picture):
        if name in self.places:
            self.places[name].update(picture)
        elif hasattr(get_ipython(), "kernel"):  # a notebook; elsewhere `display` prints
            self.places[name] = display(picture, display_id=True)
