"""What each part of the SRGAN's loss does: short trainings that differ in one thing.

    python benchmarks/controls.py                 all rows, into results/controls.csv and .png
    python benchmarks/controls.py paper grid      trains only these; no table

All rows start from checkpoints/laptop/srresnet.safetensors and one discriminator, warmed up on its
images, and train with the preset `laptop`'s settings but for what the row says, 510 steps on 291
images. A stopped training goes on. Each is scored on Set5 and Set14, the network alone: PSNR (Y),
the strength of a checkerboard (1: none), blobs, the spectral distance in dB, and local contrast:
SR's standard deviation to HR's in windows of 16 x 16 pixels, of luma less its Gaussian blur (sigma
of one pixel), the median over windows where HR has detail.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import presets  # noqa: E402
from datasets import PairDataset  # noqa: E402
from metrics import evaluate, mean, rgb_to_y  # noqa: E402
from models import load_generator  # noqa: E402
from plots import strip  # noqa: E402
from solver import build_solver  # noqa: E402
from super_resolve import super_resolve  # noqa: E402
from tools.artifacts import checkerboard, find_artifacts  # noqa: E402
from tools.spectrum import spectral_distance  # noqa: E402
from utils import pick_device, write_rows  # noqa: E402

START = "checkpoints/laptop/srresnet.safetensors"
FOLDER = Path("runs/controls")  # not below checkpoints/, whose newest SRGAN is the one for use
ALL = ("grid_weight", "lr_consistency_weight", "texture_weight")
PAPER = dict.fromkeys(ALL, 0.0)
LAPTOP = {name: presets.get_settings("laptop")["stages"]["srgan"][name] for name in ALL}
BOTH = dict(LAPTOP, texture_weight=0.0)
ROWS = {  # name: (what, what differs from the preset)
    "paper": ("the paper's loss", PAPER),
    "grid": ("+ grid loss", dict(PAPER, grid_weight=LAPTOP["grid_weight"])),
    "consistency": (
        "+ LR consistency",
        dict(PAPER, lr_consistency_weight=LAPTOP["lr_consistency_weight"]),
    ),
    "both": ("+ both", BOTH),
    "texture": ("+ both and texture loss: the preset", {}),
    # Content weights that leave the content loss what it was at first: features differ in scale.
    "phi 22": ("+ both, phi_22", dict(BOTH, content_loss="vgg16_22", content_weight=4e-7)),
    "max pooling": ("+ both, maximum pooling", dict(BOTH, vgg_pooling="max", content_weight=4e-4)),
    "no judge": ("+ both, no adversarial loss", dict(BOTH, adversarial_weight=0.0)),
}
PATCHES = 14  # of each image: 510 steps of 8 with 291 images
SHOWN, BOX = "butterfly", (70, 30, 120, 120)  # left, top, width, height in HR pixels
WINDOW, DETAILED = 16, 2.0  # pixels; levels of HR's standard deviation


def local_contrast(sr, hr):
    """Median over windows with detail of SR's standard deviation (Y) to HR's; 1 is as sharp."""
    height, width = (side // WINDOW * WINDOW for side in hr.shape[:2])
    deviations = []
    for image in (sr, hr):
        luma = rgb_to_y(image)
        fine = (luma - gaussian_filter(luma, 1))[:height, :width]
        windows = fine.reshape(height // WINDOW, WINDOW, width // WINDOW, WINDOW)
        deviations.append(windows.std(axis=(1, 3)).ravel())
    detailed = deviations[1] > DETAILED
    return float(np.median(deviations[0][detailed] / deviations[1][detailed]))


def folder_of(name):
    return FOLDER / name.replace(" ", "_")


def build(name, changes, epochs=1):
    """The adversarial stage of a run that has the finished SRResNet; resumed where it stopped."""
    run = presets.get_settings("laptop")
    values = dict(run["stages"]["srgan"], epochs=epochs, patches_per_image=PATCHES)
    run["stages"]["srgan"] = values | changes
    run["folder"] = folder_of(name).as_posix()
    Path(run["folder"]).mkdir(parents=True, exist_ok=True)
    shutil.copy(START, run["folder"])
    # What the rows change has no part in the warm-up that they resume.
    return build_solver(run, "srgan", allow_changes=True)


def train(name):
    """Train a row to its end."""
    target = folder_of(name) / "srgan"
    if not target.exists():
        warm = folder_of("warm up")
        if not (warm / "done").exists():
            build("warm up", {}).fit(0)
            (warm / "done").touch()
        shutil.copytree(warm / "srgan", target)
    build(name, ROWS[name][1]).fit()


def score(generator):
    """{set: means over its images; blobs are those of all together}."""
    extra = {
        "checkerboard": lambda lr, sr, hr: checkerboard(sr),
        "blobs": lambda lr, sr, hr: len(find_artifacts(sr, lr)),
        "spectral": lambda lr, sr, hr: spectral_distance(sr, hr),
        "contrast": lambda lr, sr, hr: local_contrast(sr, hr),
    }
    found = {}
    for name in ("Set5", "Set14"):
        pairs = PairDataset(f"data/lists/{name}.csv")
        rows = evaluate(
            lambda lr: super_resolve(generator, lr, progress=False),
            pairs,
            progress=False,
            extra=extra,
        )
        found[name] = {**mean(rows), "blobs": sum(row["blobs"] for row in rows)}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; none: all, and the table")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    os.chdir(ROOT)
    for name in arguments.rows or ROWS:
        train(name)
    if arguments.rows:
        return
    shown = next(pair for pair in PairDataset("data/lists/Set5.csv") if pair[0] == SHOWN)
    rows, images = [], {}
    paths = {"SRResNet": START} | {n: folder_of(n) / "srgan.safetensors" for n in ROWS}
    for name, path in paths.items():
        generator = load_generator(path, pick_device())
        for set_name, scores in score(generator).items():
            what = ROWS[name][0] if name in ROWS else "the start"
            values = {k: round(v, 4) for k, v in scores.items() if k != "name"}
            row = {"row": name, "what": what, "device": generator.info["device"], "set": set_name}
            rows.append(row | values)
            print(rows[-1], flush=True)
        images[name] = super_resolve(generator, shown[1], progress=False)
    write_rows("results/controls.csv", rows)
    strip(images, shown[2], BOX).save("results/controls.png")


if __name__ == "__main__":
    main()
