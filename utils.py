"""Seeds, devices, files, images as arrays and tensors; knows nothing of networks or training.

Arrays are uint8 RGB, (H, W, 3); tensors are float RGB in [0, 1], (N, 3, H, W).
"""

import csv
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from tools.image_files import naming, open_image, sixteen_bit_array
from tools.unused_gpu import tell_unused_gpu

SCALE = 4  # HR is 4 times as high and as wide as LR


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (every device): the same numbers again on the same CPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name` ("cuda", "cuda:1", "mps", "cpu"); None: CUDA, else MPS, else CPU.

    Raises ValueError for a named device that cannot compute here. Without a name it is passed over;
    a sentence is printed, once, about an NVIDIA card that lies unused.
    """
    for choice in [name] if name else ["cuda", "mps"]:
        try:
            device = torch.device(choice)
            # Only this finds cuda:7 of 2, a broken driver, and a card that is too old.
            image = torch.ones(1, 1, 3, 3, device=device)
            F.conv2d(image, image).item()
            return device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            cause = str(error).splitlines()[0].split(". ")[0].rstrip(".")
            if name:
                raise ValueError(
                    f"device '{name}' cannot be used here ({cause}); leave it out"
                ) from error
            if choice == "cuda":
                tell_unused_gpu(cause)
    return torch.device("cpu")


def device_name(device: torch.device | str) -> str:
    """What to call a device in a table: "NVIDIA H100 80GB HBM3", "CPU, 2 threads"."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return device.type.upper()


def progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """tqdm's bar on stdout, where all that is printed goes: a notebook makes stderr a red box."""
    return tqdm(*arguments, file=sys.stdout, **options)


def patiently(operation: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that replaces or removes a file; on Windows again for two seconds.

    There it fails with PermissionError while a virus scanner or Excel holds the file.
    """
    for pause in (0.1, 0.2, 0.4, 1.3):
        try:
            return operation(*arguments)
        except PermissionError:
            if sys.platform != "win32":
                raise
            time.sleep(pause)
    return operation(*arguments)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` when the block ends without error.

    A reader sees the old file or the new one, never half a file, whenever the program is stopped.
    Makes the parent folder. The temporary file has the suffix of `path`, for savers that go by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())  # on the disk before it takes the name: survives a power cut
        patiently(os.replace, temporary, path)
    finally:
        patiently(temporary.unlink, True)


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """Write rows with the same keys as CSV with a header line, atomically; ValueError for none."""
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path}: no rows to write")
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as uint8 RGB, (H, W, 3), turned upright by its EXIF orientation.

    Gray is copied to the three channels, palettes and CMYK are converted, 16 bits are scaled to
    8, alpha is dropped. Raises what `tools.image_files.open_image` raises, and ValueError for
    floating-point and 32-bit images, whose range is unknown.
    """
    with naming(path):
        image = open_image(path)
        if image.mode[0] in "IF":
            values = sixteen_bit_array(image, path).astype(np.uint32)
            gray = ((values + 128) // 257).astype(np.uint8)  # 257 = 65535 / 255; + 128 rounds
            return np.repeat(gray[..., None], 3, axis=2)
        # Through RGBA: transparent palettes and premultiplied alpha have no direct way to RGB.
        return np.array(image.convert("RGBA").convert("RGB"))


def write_image(path: str | Path, array: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) as a PNG file, atomically; ValueError for anything else."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: images are written without loss, as PNG; use the suffix .png")
    array = np.ascontiguousarray(array)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"{path}: expected uint8 RGB (H, W, 3), got {array.dtype} {array.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """uint8 or uint16 (H, W, C) -> float32 in [0, 1], (1, C, H, W); ValueError for another type."""
    if array.dtype not in (np.uint8, np.uint16) or array.ndim != 3:
        raise ValueError(f"expected uint8 or uint16 (H, W, C), got {array.dtype} {array.shape}")
    tensor = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None]  # (1, C, H, W)
    return tensor.contiguous() / np.iinfo(array.dtype).max


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Float RGB, (1, 3, H, W) or (3, H, W) -> uint8 RGB (H, W, 3): clamped to [0, 1], rounded."""
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or len(tensor) != 3:
        raise ValueError(f"expected one RGB image, (1, 3, H, W) or (3, H, W), got {tensor.shape}")
    levels = tensor.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())
