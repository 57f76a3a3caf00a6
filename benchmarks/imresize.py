"""imresize and the usual bicubics, to a quarter of the size, on one CPU thread.

Measured are the time, and the share of values equal to those of MATLAB's files in data/.

    python benchmarks/imresize.py

Every method runs in every round, in turns. Libraries that are not installed are left out.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and PyTorch read it

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # before this folder, where a file of the same name lies

from table import compare  # noqa: E402

from imresize import imresize  # noqa: E402

ROUNDS = 15
SHORTEST = 0.02  # seconds a method runs in a round, at least: short calls are repeated
SETS = [  # name, HR, LR, what is added to the name of an LR file, border
    ("Set5", "Set5/HR", "Set5/LR", "", "replicate"),
    ("Set14", "Set14/HR", "Set14/LR", "", "replicate"),
    ("B100", "B100/HR", "B100/LR", "", "replicate"),
    ("Urban100", "Urban100/HR", "Urban100/LR", "", "replicate"),
    ("DIV2K", "DIV2K_valid_HR", "DIV2K_valid_LR_bicubic/X4", "x4", "symmetric"),
]


def as_tensor(image):
    """View an array (H, W, C) as a tensor (1, C, H, W), the layout that PyTorch resizes fastest."""
    return torch.from_numpy(image)[None].permute(0, 3, 1, 2)


def torchvision_method():
    """torchvision's resize, or where it cannot be imported the one call that it makes."""
    try:
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize
    except (ImportError, RuntimeError):  # RuntimeError: built for another PyTorch
        name = "torchvision's call, antialias"

        def call(x, size):
            return torch.nn.functional.interpolate(x, size=size, mode="bicubic", antialias=True)
    else:
        name = "torchvision resize, antialias"

        def call(x, size):
            return resize(x, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)

    return name, as_tensor, call, lambda out: out[0].permute(1, 2, 0).numpy()


def methods():
    """Return (name, prepare, call, finish) of each method; only `call` is timed.

    prepare turns an array (H, W, C) into the input of the call, finish its output into an array.
    """
    found = [
        ("imresize (ours)", lambda x: x, imresize, lambda out: out),
        torchvision_method(),
        (
            "Pillow bicubic",
            lambda x: Image.fromarray(x if x.shape[2] > 1 else x[:, :, 0]),
            lambda x, size: x.resize(size[::-1], Image.Resampling.BICUBIC),
            lambda out: np.asarray(out).reshape(out.height, out.width, -1),
        ),
    ]
    try:
        import cv2

        cv2.setNumThreads(1)
        found.append(
            (
                "OpenCV cubic",
                lambda x: x,
                lambda x, size: cv2.resize(x, size[::-1], interpolation=cv2.INTER_CUBIC),
                lambda out: out if out.ndim == 3 else out[:, :, None],
            )
        )
    except ImportError:
        pass
    try:
        from skimage.transform import resize

        found.append(
            (
                "scikit-image cubic, antialias",
                lambda x: x,
                lambda x, size: resize(x, size, order=3, anti_aliasing=True, preserve_range=True),
                lambda out: np.floor(out + 0.5).clip(0, 255).astype(np.uint8),
            )
        )
    except ImportError:
        pass
    return found


def pairs(hr_folder, lr_folder, suffix):
    for path in sorted((ROOT / "data" / hr_folder).glob("*.png")):
        lr_path = ROOT / "data" / lr_folder / f"{path.stem}{suffix}.png"
        if lr_path.is_file():
            hr, lr = (np.array(Image.open(p)) for p in (path, lr_path))
            hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
            yield np.ascontiguousarray(hr).reshape(*hr.shape[:2], -1), lr.reshape(*lr.shape[:2], -1)


def exactness():
    """Print the share of values equal to MATLAB's and the largest difference, by set and method.

    Returns {method: share of the values of all sets, in percent}, empty without the sets.
    """
    equal, total = Counter(), 0
    print("\nValues equal to those of MATLAB's files (largest difference), 1/4")
    for name, hr_folder, lr_folder, suffix, padding in SETS:
        found = list(pairs(hr_folder, lr_folder, suffix))
        if not found:
            print(f"\n{name}: not in data/")
            continue
        values = sum(lr.size for _, lr in found)
        total += values
        print(f"\n{name}: {len(found)} images, {values:,} values, {padding} border")
        for index, (method, prepare, call, finish) in enumerate(methods()):
            options = {"padding": padding} if index == 0 else {}
            differing = largest = 0
            for hr, lr in tqdm(found, desc=method, leave=False):
                sr = finish(call(prepare(hr), lr.shape[:2], **options)).astype(np.int16)
                difference = np.abs(sr - lr)
                differing += np.count_nonzero(difference)
                largest = max(largest, difference.max())
            share = 100 * (1 - differing / values)
            equal[method] += values - differing
            print(f"  {method:<54}{share:8.3f} %  ({largest}); {differing:,} differ")
    return {method: 100 * count / total for method, count in equal.items()}


def times(calls):
    """Return the seconds of each call in every round; the calls take turns."""
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(1 + int(SHORTEST / (time.perf_counter() - start)))
    seconds = [[] for _ in calls]
    for _ in tqdm(range(ROUNDS), desc="rounds", leave=False):
        for call, repeat, taken in zip(calls, repeats, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            taken.append((time.perf_counter() - start) / repeat)
    return seconds


def one_by_one(call, inputs, size):
    return lambda: [call(x, size) for x in inputs]


def speed(equal):
    """Print how many megapixels a second each method reduces, and ours beside it.

    equal: see `exactness`; it stands beside the speed.
    """
    rng = np.random.default_rng(0)
    found = methods()
    height, width = 1356, 2040
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    size = (height // 4, width // 4)
    calls = [one_by_one(call, [prepare(image)], size) for _, prepare, call, _ in found]
    title = f"resizing {width} x {height} to 1/4, one thread"
    report(title, found, image.size / 3e6, calls, equal)
    crops = [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(64)]
    batch = torch.cat([as_tensor(crop) for crop in crops]).contiguous()
    # The first two methods take a batch, the others one image at a time.
    calls = [one_by_one(call, [batch], (24, 24)) for _, _, call, _ in found[:2]]
    for _, prepare, call, _ in found[2:]:
        calls.append(one_by_one(call, [prepare(crop) for crop in crops], (24, 24)))
    title = "resizing 64 crops of 96 x 96 to 1/4, one thread"
    report(title, found, batch.numel() / 3e6, calls, equal)


def report(title, found, megapixels, calls, equal):
    speeds = [[megapixels / taken for taken in of_way] for of_way in times(calls)]
    names = [
        f"{name}: {equal[name]:.1f} % equal to MATLAB's" if name in equal else name
        for name, *_ in found
    ]
    others = dict(zip(names[1:], speeds[1:], strict=True))
    compare(title, "megapixels/s", speeds[0], others)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cpu = torch.backends.cpu.get_cpu_capability()
    print(f"one thread, PyTorch {torch.__version__}, {cpu}; {ROUNDS} rounds")
    speed(exactness())
