"""A folder of pictures, read and written while others are enlarged, beside one after the other.

    python benchmarks/folder.py [checkpoints/.../srresnet.safetensors]

Bicubic, where reading and writing take most of the time, as they do with a network on a fast GPU;
and with weights that network, on the best device there is. Times are of the wall clock.
"""

import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # before this folder, where a file of the same name lies

from table import compare  # noqa: E402

from models import load_generator  # noqa: E402
from super_resolve import main as super_resolve_main  # noqa: E402
from super_resolve import super_resolve_file  # noqa: E402
from utils import SCALE, pick_device  # noqa: E402

COUNT, ROUNDS = 24, 5
SIZES = [(400, 600), (480, 640), (600, 800), (640, 960), (768, 1024), (866, 1155)]


def make_pictures(folder):
    """JPEG and PNG photographs with a camera's noise; returns the megapixels of the results."""
    random, pixels = np.random.default_rng(0), 0
    folder.mkdir()
    for k in range(COUNT):
        photo = (data.astronaut, data.coffee, data.chelsea, data.rocket)[k % 4]()
        height, width = SIZES[k % len(SIZES)]
        array = np.asarray(Image.fromarray(photo).resize((width, height)), np.float32)
        array = (array + random.normal(0, 3, array.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(array).save(folder / f"{k:02}.{('png', 'jpg')[k % 2]}")
        pixels += SCALE**2 * height * width
    return pixels / 1e6


def together(folder, weights):
    method = ["--weights", weights] if weights else ["--method", "bicubic"]
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        assert super_resolve_main([str(folder), "-o", f"{folder}-a", "--force", *method]) == 0


def one_after_the_other(folder, weights):
    generator = load_generator(weights, pick_device()) if weights else None
    for path in sorted(folder.iterdir()):
        super_resolve_file(generator, path, f"{folder}-b/{path.stem}.png", progress=False)


def main():
    weights = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "pictures")
        megapixels = make_pictures(folder)
        for used in [None, weights] if weights else [None]:
            speeds = {together: [], one_after_the_other: []}
            for number in range(1 + ROUNDS):
                for way, values in speeds.items():
                    start = time.perf_counter()
                    way(folder, used)
                    if number:  # the first warms up
                        values.append(megapixels / (time.perf_counter() - start))
            name = f"a folder of {COUNT} pictures, {Path(used).stem if used else 'bicubic'}"
            others = {"one after the other": speeds[one_after_the_other]}
            compare(name, "megapixels/s", speeds[together], others)


if __name__ == "__main__":
    main()
