"""Where the weights of VGG16 and VGG19 come from: a file in checkpoints/, or a download."""

import os
import re
from pathlib import Path

import torch
from torch import nn

from tools.locks import locked
from tools.transfer import fetch, file_sha256, open_session
from tools.vgg16_weights import fetch_vgg16

FOLDER = Path("checkpoints")
URLS = {
    16: "https://download.pytorch.org/models/vgg16-397923af.pth",
    19: "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
}
LIMIT = 600_000_000  # bytes of a download; the files have 553 and 575 million
ORIGINAL_SCALE = 2  # root mean square of the first layer: original about 10, torchvision below 1


def load_vgg_weights(features: nn.Sequential, depth: int, weights: str) -> None:
    """Load the first layers of VGG16 or VGG19, numbered as torchvision's `vgg19().features`.

    weights: "torchvision", what its authors trained: a file checkpoints/vgg<depth>*.pth, else the
    download into it (about 550 MB; the addresses in the environment variable SRGAN_MIRRORS come
    first). "original", Simonyan and Zisserman's own, whose features are larger, so that other
    content weights belong to them: such a file, else for VGG16 the download into
    checkpoints/vgg16.pth, see `tools.vgg16_weights`. Or the path of any state dict with
    torchvision's key names. Raises FileNotFoundError if there are none, ValueError if the file
    lacks layers, holds others, or is no state dict.
    """
    names = [f"features.{name}" for name in features.state_dict()]
    if weights in ("torchvision", "original"):
        state = _find(depth, weights, names)
    else:
        state = _read(weights)
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{weights} lacks {missing[0]} and {len(missing) - 1} more layers")
    try:
        features.load_state_dict({name.removeprefix("features."): state[name] for name in names})
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit VGG{depth} ({error})") from error


def _find(depth, weights, names):
    """The state dict of the first file that holds these layers of this origin, or a download."""
    others = []
    for path in sorted(FOLDER.glob(f"vgg{depth}*.pth")):
        state = _read(path)
        if not set(names) <= set(state):
            others.append(f"{path.as_posix()} lacks layers")
            continue
        size = state["features.0.weight"].float().square().mean().sqrt()
        origin = "original" if size > ORIGINAL_SCALE else "torchvision"
        if origin == weights:
            return state
        others.append(f"{path.as_posix()} holds the {origin} weights")
    found = f" ({'; '.join(others)})" if others else ""
    folder, original = FOLDER.as_posix(), FOLDER / "vgg16.pth"
    try:
        if weights == "torchvision":
            return _read(_download(URLS[depth]))
        if depth == 16:
            fetch_vgg16(original)
            return _read(original)
        raise FileNotFoundError("no server is known that has the original ones")
    except Exception as error:  # no network, no disk, a proxy's page instead of the file
        if weights == "torchvision":
            way_out = f"Put {URLS[depth]} into {folder}/, or name a server that has it: "
            way_out += "SRGAN_MIRRORS, see README.md."
        else:
            way_out = f"Put the original ones into {folder}/ as vgg{depth}-original.pth, a state "
            way_out += "dict with torchvision's key names"
            if depth == 16:
                way_out += f": `python -m tools.vgg16_weights {folder}/vgg16-original.pth` does so"
            way_out += '. Or set vgg_weights="torchvision" and a content_weight that fits those.'
        raise FileNotFoundError(
            f"VGG{depth} weights cannot be downloaded ({error}){found}. {way_out} "
            'The content loss "mse" needs none.'
        ) from error


def _download(url):
    """Fetch a file into `FOLDER`, from the mirrors first; returns its path."""
    name = url.rsplit("/", 1)[1]
    mirrors = os.environ.get("SRGAN_MIRRORS", "").split()
    urls = [*(f"{mirror.rstrip('/')}/{name}" for mirror in mirrors), url]
    with locked(FOLDER / f".{name}.lock", f"is downloading {name}"), open_session() as session:
        fetch(session, urls, FOLDER / name, _problem, LIMIT)
    return FOLDER / name


def _problem(path):
    """What is wrong with a file that has the start of its SHA-256 in its name, as PyTorch's do."""
    said = re.search(r"-([0-9a-f]{8})\.pth", path.name)
    if said is None:
        return None
    good = file_sha256(path).startswith(said[1])
    return None if good else "its SHA-256 does not begin as its name says: damaged"


def _read(path):
    """A state dict from a file; with `weights_only` a file cannot run code."""
    try:
        if Path(path).is_file() and (problem := _problem(Path(path))):
            raise ValueError(problem)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
        return state
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such VGG weights file") from None
    except Exception as error:
        raise ValueError(f"{path} is no readable state dict ({error})") from error
