"""Checkpoints and the log on disk: written whole, with a checksum; what is in them is the solver's.

A file is named tensors and a few facts in the safetensors format: reading it runs no code, whoever
made it. The header carries a SHA-256 of the whole file, which that format lacks: a flipped bit must
not pass for a weight.
"""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from utils import atomic_path, patiently

UNSIGNED = "the checksum of this file belongs in this place".ljust(64, ".")

Tensors = dict[str, Tensor]
Facts = dict[str, Any]  # anything JSON can hold


def write(path: str | Path, tensors: Tensors, facts: Facts) -> None:
    """Write tensors and facts as one file, whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data = safetensors.torch.save(tensors, {"facts": json.dumps(facts), "sha256": UNSIGNED})
    digest = hashlib.sha256(data).hexdigest()
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.replace(UNSIGNED.encode(), digest.encode(), 1))


def read(path: str | Path) -> tuple[Tensors, Facts]:
    """The tensors and facts of a file. Raises ValueError unless every bit is as written."""
    try:
        data = Path(path).read_bytes()
        length = int.from_bytes(data[:8], "little")  # of the header, which is JSON
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        digest = metadata["sha256"]
        unsigned = data.replace(digest.encode(), UNSIGNED.encode(), 1)
        if len(digest) != 64 or hashlib.sha256(unsigned).hexdigest() != digest:
            raise ValueError("its checksum differs")
        return safetensors.torch.load(data), json.loads(metadata["facts"])
    except Exception as error:  # a damaged header raises nearly anything
        raise ValueError(f"{path} is damaged, or not written by this program ({error})") from error


@contextlib.contextmanager
def explained(folder: str | Path, last: Path | None) -> Iterator[None]:
    """Say of a failed write what is lost (little) and what to do. `last`: the checkpoint before."""
    try:
        yield
    except BlockingIOError:  # of `locks.locked`, which says it all
        raise
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{folder}: cannot be written ({error.strerror or error}). Make room, or make the "
            f"folder writable, and run again. The last valid checkpoint is {last}",
        ) from error


def files(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(Path(folder).glob(f"checkpoint-{9 * '[0-9]'}.safetensors"))


def save(folder: Path, step: int, tensors: Tensors, facts: Facts, keep_last: int = 2) -> Path:
    """Write the checkpoint of a step, delete all but `keep_last` up to it; return its path."""
    path = folder / f"checkpoint-{step:09d}.safetensors"
    write(path, tensors, facts)
    # Those of later steps are damaged: `read_latest` skipped them. They do not count.
    for old in [old for old in files(folder) if old <= path][:-keep_last]:
        patiently(old.unlink, True)
    for leftover in folder.glob(".tmp-*"):  # of a process that was killed while it wrote
        patiently(leftover.unlink, True)
    return path


def read_latest(folder: str | Path) -> tuple[Path, Tensors, Facts] | None:
    """The latest valid checkpoint in a folder, None without any; warns of damaged ones.

    Raises ValueError if there are checkpoints, and none is valid.
    """
    paths = files(folder)
    for path in reversed(paths):
        try:
            return path, *read(path)
        except ValueError as error:
            warnings.warn(f"{error}: the checkpoint before it is used", stacklevel=2)
    if paths:
        raise ValueError(f"no checkpoint in {folder} is valid: move the folder away to start again")
    return None


def pack(name: str, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Tensors:
    """{"<name>.<key>": tensor} of a network, {"<name>.adam.<index>.<slot>"} of its optimizer."""
    tensors = {f"{name}.{key}": value for key, value in network.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items() if optimizer else ():
        tensors.update({f"{name}.adam.{index}.{slot}": value for slot, value in slots.items()})
    return tensors


def unpack(
    tensors: Tensors, name: str, network: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Load what `pack` made. Raises RuntimeError or KeyError if it belongs to another network."""
    tensors = under(f"{name}.", tensors)
    network.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("adam.")})
    if optimizer is None:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots = {}
    for key, value in under("adam.", tensors).items():
        index, slot = key.split(".")
        if value.dim():  # in the memory format of its parameter, as fused Adam requires
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def log_row(folder: str | Path, kind: str, row: dict[str, Any]) -> None:
    """Append a row, "train" or "valid", to <folder>/log.jsonl, one JSON object a line."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, **row}, allow_nan=False) + "\n")


def read_log(folder: str | Path, kind: str) -> list[dict[str, Any]]:
    """The rows of a kind; a line that was cut off is left out."""
    path, rows = Path(folder) / "log.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.pop("kind") == kind:
            rows.append(row)
    return rows


def rewrite_log(folder: str | Path, history: dict[str, list[dict[str, Any]]]) -> None:
    """Make <folder>/log.jsonl hold the rows of `history` and no others."""
    rows = [{"kind": kind, **row} for kind in history for row in history[kind]]
    with atomic_path(Path(folder) / "log.jsonl") as temporary:
        lines = [json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])]
        temporary.write_text("".join(lines), encoding="utf-8")
