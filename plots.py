"""Pictures of a training, for notebooks: curves of its history, samples of its progress; trains and measures nothing."""

import io
import math

import numpy as np
from IPython.display import Image, display
from matplotlib.figure import Figure
from PIL import Image as PillowImage

from imresize import imresize
from losses import HEALTHY_RATIO
from utils import atomic_path, compare, to_array

LOW, HIGH = HEALTHY_RATIO

# What belongs into one panel: (title, columns of the history's rows, logarithmic?)
PANELS = [
    ("losses", ["content_loss", "adversarial_loss"], True),
    ("discriminator's loss", ["discriminator_loss"], False),
    (
        "D(x) of photographs, D(G(z)) of generated images\n(healthy: apart, and not at 1 and 0 for long)",
        ["d_real", "d_generated"],
        False,
    ),
    (
        f"content : adversarial\n(healthy: {LOW} to {HIGH}, about 20 after pre-training)",
        ["content_to_adversarial"],
        True,
    ),
    ("validation PSNR in dB (Y)", ["psnr"], False),
]


def plot_history(history, title=""):
    """Curves of a `Solver.history` over its steps, one panel for each kind of quantity there is, as a matplotlib figure."""
    rows = history["train"] + history["valid"]
    panels = [
        (name, [c for c in columns if any(c in row for row in rows)], log)
        for name, columns, log in PANELS
    ]
    panels = [panel for panel in panels if panel[1]]
    across = max(1, min(3, len(panels)))
    down = max(1, math.ceil(len(panels) / across))
    figure = Figure(
        figsize=(4.6 * across, 3.2 * down), layout="constrained"
    )  # not pyplot's: no windows, no state
    figure.suptitle(title)
    for k, (name, columns, log) in enumerate(panels):
        axes = figure.add_subplot(down, across, k + 1)
        for column in columns:
            steps, values = np.array(
                [(row["step"], row[column]) for row in rows if column in row]
            ).T
            line = axes.plot(
                steps,
                values,
                alpha=0.3 if len(values) > 50 else 1,
                marker="." if len(values) < 50 else "",
            )[0]
            if (
                len(values) > 50
            ):  # a running mean over a twentieth of the run, so that the eye sees the trend
                window = len(values) // 20
                smooth = np.convolve(values, np.ones(window) / window, mode="valid")
                axes.plot(
                    steps[window // 2 : window // 2 + len(smooth)], smooth, color=line.get_color()
                )
            axes.lines[-1].set_label(column)
        axes.set(title=name, xlabel="step", yscale="log" if log else "linear")
        axes.title.set_fontsize(9)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def save_figure(figure, path):
    """Save a matplotlib figure as PNG, atomically; returns it as a picture that a notebook's cell shows."""
    picture = as_png(figure)
    with atomic_path(path) as part:
        part.write_bytes(picture.data)
    return picture


def as_png(figure):
    """A matplotlib figure for a notebook's output, without pyplot's windows and state."""
    data = io.BytesIO()
    figure.savefig(data, dpi=100)
    return Image(data.getvalue(), format="png")


def batch_sheet(lr, hr, most=8):
    """A batch as a picture: the LR patches, each pixel enlarged to 4 x 4, above their HR patches.

    lr: (N, 3, h, w), hr: (N, 3, 4h, 4w), float in [0, 1]; shows the first `most` of N.
    """
    top = [to_array(patch).repeat(4, axis=0).repeat(4, axis=1) for patch in lr[:most]]
    bottom = [to_array(patch) for patch in hr[:most]]
    return PillowImage.fromarray(np.vstack([np.hstack(top), np.hstack(bottom)]))


def as_jpeg(sheet):
    """A PIL image for a notebook's output in a tenth of a PNG's bytes: to look over, not to judge pixels by."""
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=90)
    return Image(data.getvalue(), format="jpeg")


class LiveView:
    """A callback for `Solver.fit`: curves that are redrawn in place, and after each epoch bicubic, now, and HR side by side.

    Args:
        pairs: (name, lr, hr) of a few whole images, uint8; of each the middle is shown.
        size: side of the shown part in HR pixels.
        folder: each epoch's picture is also kept there, as epoch-001.png and so on; None keeps none.
    """

    def __init__(self, pairs, size=192, folder=None):
        self.folder, self.epoch = folder, None
        self.crops = [_middle(lr, hr, size) for _, lr, hr in pairs]
        self.curves = self.samples = None  # places in the notebook's output; made when first needed

    def __call__(self, solver):
        figure = plot_history(
            solver.history, f"{solver.folder.name}: epoch {solver.epoch}, step {solver.step}"
        )
        self.curves = _show(as_png(figure), self.curves)
        if solver.epoch != self.epoch and solver.step % len(solver.loader) == 0:
            self.epoch = solver.epoch
            sheet = self.sheet(solver)
            self.samples = _show(sheet, self.samples)
            if self.folder:
                with atomic_path(f"{self.folder}/epoch-{solver.epoch:03d}.png") as part:
                    sheet.save(part)

    def sheet(self, solver):
        """The samples as they are now, one row for each image."""
        rows = [
            compare(
                {"bicubic": imresize(lr, 4), f"epoch {solver.epoch}": solver.upscale(lr), "HR": hr}
            )
            for lr, hr in self.crops
        ]
        sheet = PillowImage.new(
            "RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white"
        )
        for k, row in enumerate(rows):
            sheet.paste(row, (0, sum(above.height for above in rows[:k])))
        return sheet


def _middle(lr, hr, size):
    """The middle of a pair: (lr, hr), at most size x size HR pixels."""
    h, w = (min(size // 4, side) for side in lr.shape[:2])
    top, left = (lr.shape[0] - h) // 2, (lr.shape[1] - w) // 2
    return lr[top : top + h, left : left + w], hr[
        4 * top : 4 * (top + h), 4 * left : 4 * (left + w)
    ]


def _show(picture, place):
    """Show a picture where the one before it was; returns the place."""
    if place is None:
        return display(picture, display_id=True)
    place.update(picture)
    return place
