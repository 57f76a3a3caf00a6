"""Why an NVIDIA card lies unused, and the command that cures it; it picks no device."""

import functools
import os
import subprocess
import sys

import torch


@functools.cache  # each cause once
def tell_unused_gpu(cause: str) -> None:
    """Print what `unused_gpu` says, if anything."""
    sentence = unused_gpu(cause)
    if sentence:
        print(sentence)


def unused_gpu(cause: str) -> str | None:
    """A sentence about the card that PyTorch cannot use; None where `nvidia-smi` sees no card.

    cause: what PyTorch says of it, such as "Torch not compiled with CUDA enabled".
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        name, driver, capability = listed.stdout.splitlines()[0].split(", ")
        major, capability = int(driver.split(".")[0]), tuple(map(int, capability.split(".")))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None  # hidden on purpose
    seen = f"{name} (driver {driver}) lies unused: PyTorch {torch.__version__} says: {cause}."
    wanted, built = build_for(major, capability), f"cu{torch.version.cuda}".replace(".", "")
    if wanted is None:
        return f"{seen} It needs a newer driver: https://www.nvidia.com/drivers"
    if wanted == built:
        return seen
    pip = f"{sys.executable} -m pip"
    return (
        f"{seen} What fits this card: {pip} uninstall -y torch torchvision, then {pip} install "
        f"torch torchvision --index-url https://download.pytorch.org/whl/{wanted}"
    )


def build_for(driver: int, capability: tuple[int, int]) -> str | None:
    """The builds of PyTorch's own index that a card computes with; None if its driver is too old.

    driver: the number before the point. A driver for CUDA 12.0 runs programs of every CUDA 12
    (NVIDIA's minor version compatibility); for the capabilities see PyTorch's RELEASE.md.
    """
    if driver >= 580 and capability >= (7, 5):
        return "cu130"
    if driver >= 570 and capability >= (10, 0):
        return "cu128"
    if driver >= 525 and capability < (10, 0):
        return "cu126"
    return None
