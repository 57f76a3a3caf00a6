"""What a training leaves in its folder: states to go on from, and a log to read; what belongs into them is the solver's.

State files are written whole or not at all, and checked when they are read. A state is named tensors and a few facts in
the safetensors format: reading one runs no code, whoever made it. Its name carries the step and a checksum of the
content, which that format lacks: a flipped bit must not pass for a weight.
"""

import hashlib
import json
import random
import re
import warnings
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from models import rebuild_generator
from utils import atomic_path

NAME = re.compile(
    r"state-(\d+)-(epoch\d+-)?([0-9a-f]{16})\.safetensors"
)  # step, whether it is kept for ever, checksum


def files(folder):
    """The states in a folder, the oldest step first."""
    return sorted(
        path for path in Path(folder).glob("state-*.safetensors") if NAME.fullmatch(path.name)
    )


def write(folder, step, tensors, facts, keep_last=2, keep_as=""):
    """Write a state and return its path; then remove the states that are no longer kept.

    Args:
        tensors: {name: tensor}. facts: anything that JSON can hold.
        keep_last: how many states to keep, this one counted.
        keep_as: "epoch<k>" to keep this one besides them, for ever.

    Raises:
        OSError: it could not be written. The states before it are still there then.
    """
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data = safetensors.torch.save(tensors, {"facts": json.dumps(facts)})
    checksum = hashlib.sha256(data).hexdigest()[:16]
    path = folder / f"state-{step:09d}-{keep_as and keep_as + '-'}{checksum}.safetensors"
    with atomic_path(path) as part:
        part.write_bytes(data)

    others = [old for old in files(folder) if old != path]
    superseded = [old for old in others if _step(old) == step]
    older = [old for old in others[::-1] if _step(old) < step][max(1, keep_last) - 1 :]
    for old in superseded + [old for old in older if not NAME.fullmatch(old.name)[2]]:
        old.unlink(missing_ok=True)
    for old in folder.glob(".tmp-*"):  # of a process that was killed while it wrote
        old.unlink(missing_ok=True)
    return path


def read(path):
    """(tensors, facts) of a state file. Raises ValueError if it is not, to the bit, what was written."""
    try:
        data = Path(path).read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] != NAME.fullmatch(Path(path).name)[3]:
            raise ValueError(f"{len(data)} bytes whose checksum is not the one in its name")
        length = int.from_bytes(
            data[:8], "little"
        )  # safetensors: length of the header, header in JSON, tensors
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["facts"])
        return safetensors.torch.load(data), facts
    except Exception as error:  # with a checksum of its own, even a forged file may come here
        raise ValueError(f"{path} is damaged or no state ({error})") from error


def read_newest(folder):
    """(path, tensors, facts) of the newest whole state in a folder, or None without any; warns of damaged ones.

    Raises:
        ValueError: there are states, and none is whole.
    """
    paths = files(folder)
    for path in reversed(paths):
        try:
            return path, *read(path)
        except ValueError as error:
            warnings.warn(f"{error}: it is skipped, and the state before it is used", stacklevel=2)
    if paths:
        raise ValueError(f"No state in {folder} is whole: move the folder away to start anew")
    return None


def _step(path):
    return int(NAME.fullmatch(path.name)[1])


# --- networks and optimizers in a state ------------------------------------------------------------------------------


def pack(name, network, optimizer=None):
    """{"<name>.<key>": tensor} of a network's state, and {"<name>.adam.<parameter>.<slot>": tensor} of its optimizer's."""
    tensors = {f"{name}.{key}": value for key, value in network.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items() if optimizer else ():
        tensors.update({f"{name}.adam.{index}.{slot}": value for slot, value in slots.items()})
    return tensors


def unpack(tensors, name, network, optimizer=None):
    """Load what `pack` made. Raises RuntimeError or KeyError if it belongs to another network."""
    tensors = under(f"{name}.", tensors)
    moments = under("adam.", tensors)
    network.load_state_dict(
        {key: value for key, value in tensors.items() if not key.startswith("adam.")}
    )
    if optimizer:
        slots, parameters = (
            {},
            [parameter for group in optimizer.param_groups for parameter in group["params"]],
        )
        for key, value in moments.items():
            index, slot = key.split(".")
            if value.dim():  # in its parameter's memory format: fused Adam goes through both as they lie in memory
                value = torch.empty_like(parameters[int(index)]).copy_(value)
            slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def under(prefix, tensors):
    """The tensors whose names begin with a prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def snapshots(folder):
    """[(step, averaged generator)] of the states in a folder, the oldest first: to look at them side by side.

    In eval mode on the CPU; their batch-norm statistics are averages as well, see `models.reestimate_batch_norm`. Reads
    nothing else of a state, so it is quick, and checks nothing; warns of files that cannot be read.
    """
    found = []
    for path in files(folder):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith("ema.")]  # noqa: SIM118  (it is no dict)
                weights = under("ema.", {name: file.get_tensor(name) for name in names})
            found.append((_step(path), rebuild_generator(weights)))
        except Exception as error:
            warnings.warn(f"{path} is damaged or no state ({error}): it is left out", stacklevel=2)
    return found


# --- the log ---------------------------------------------------------------------------------------------------------


class Log:
    """A training's rows, a JSON object a line in <folder>/log.jsonl; if wanted, for TensorBoard too, in <folder>/tensorboard."""

    def __init__(self, folder, tensorboard=False):
        self.folder, self.tensorboard, self._writer = Path(folder), None, None
        if tensorboard:  # imported here, because it is optional, and at once, because without it one wants to know now
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter

    def append(self, kind, row):
        """Log a row, a dict of numbers with its "step", under its kind, "train" or "valid"."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **row}) + "\n")
        if self.tensorboard:
            if self._writer is None:
                # What is there from this step on belongs to a run that was cut off: TensorBoard is to hide it.
                self._writer = self.tensorboard(self.folder / "tensorboard", purge_step=row["step"])
            for name in row.keys() - {"step"}:
                self._writer.add_scalar(f"{kind}/{name}", row[name], row["step"])
            self._writer.flush()

    def rewrite(self, history):
        """Keep the rows of `history`, {kind: rows}, and none of steps that were lost."""
        rows = [{"kind": kind, **row} for kind in history for row in history[kind]]
        with atomic_path(self.folder / "log.jsonl") as part:
            part.write_text(
                "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"]))
            )
        self._writer = None


# --- random states ---------------------------------------------------------------------------------------------------


def random_states():
    """Where the random generators of PyTorch, NumPy and Python stand: ({name: tensor}, Python's as JSON can hold it)."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    _, keys, position, has_gauss, gauss = np.random.get_state()
    states["numpy"] = torch.from_numpy(np.array([*keys, position, has_gauss], dtype=np.int64))
    states["numpy_gauss"] = torch.tensor(gauss, dtype=torch.float64)
    return states, random.getstate()


def set_random_states(states, python):
    """Put the random generators back to where `random_states` found them."""
    version, internal, gauss = python
    random.setstate((version, tuple(internal), gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(
        (
            "MT19937",
            np.array(keys, dtype=np.uint32),
            position,
            has_gauss,
            float(states["numpy_gauss"]),
        )
    )
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
