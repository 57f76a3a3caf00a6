"""How a solver is saved and resumed: to the bit, from the latest valid checkpoint.

What a checkpoint holds; `checkpoints.py` says how it lies on disk, `Solver` when it is written.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import presets
from models import save_generator
from tools import checkpoints
from tools.locks import locked
from utils import device_name


class TrainingDiverged(FloatingPointError):
    """A loss or a weight is infinite or not a number. No checkpoint contains it."""


class Resumable:
    """The part of `Solver` that saves and resumes. Its attributes are the solver's."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: no other process may train in it, nor may one have trained since."""
        lock = locked(self.folder / ".lock", f"is training in {self.folder}", wait=False)
        with contextlib.ExitStack() as stack:
            with checkpoints.explained(self.folder, self.last_checkpoint):
                self.processes.on_main(stack.enter_context, lock)
            self.processes.on_main(self.refuse_others)
            yield

    def save(self) -> None:
        """Write the checkpoint and the inference generator. Raises as `fit`."""
        self.check_finite()
        # Each process has its own sums, and one checkpoint is written: all go on from their mean.
        self.sums = self.processes.mean(self.sums)
        self.last_checkpoint = self.processes.on_main(self.write)
        self.saved = time.monotonic()

    def refuse_others(self) -> None:
        """Raise FileExistsError if the folder holds checkpoints that are not of this training."""
        if others := set(checkpoints.files(self.folder)) - self.own_files:
            way_out = "call resume() before fit(), or choose another folder"
            raise FileExistsError(
                f"{self.folder} holds another training's {min(others).name}: {way_out}"
            )

    def write(self) -> Path:
        self.refuse_others()
        tensors, facts = self.state()
        for name, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise self.diverged(name, self.step)
        generator_files = [Path(f"{self.folder}.safetensors")] if self.step else []
        every = self.settings["keep_every"]
        if every and self.epoch and self.batch == 0 and self.epoch % every == 0:
            generator_files.append(self.folder / f"epoch-{self.epoch:03d}.safetensors")
        with checkpoints.explained(self.folder, self.last_checkpoint):
            # The generator first: where there is a checkpoint of the end, its generator is there.
            for path in generator_files:
                save_generator(
                    path, self.inference_generator(), stage=self.folder.name, step=self.step,
                    epoch=self.epoch, seconds=round(self.seconds), settings=self.settings,
                    device=device_name(self.device), images=len(self.dataset.pairs),
                )  # fmt: skip
            keep = self.settings["keep_last"]
            path = checkpoints.save(self.folder, self.step, tensors, facts, keep)
        self.own_files = set(checkpoints.files(self.folder))
        return path

    def resume(self, allow_changes: bool = False) -> bool:
        """Resume from the latest valid checkpoint in the folder. Returns whether there was one.

        Raises ValueError if settings or training images have changed (unless `allow_changes`), if
        it is of other networks, and if no checkpoint is valid.
        """
        there = set(checkpoints.files(self.folder))
        found = self.processes.on_main(checkpoints.read_latest, self.folder)
        if found is None:
            return False
        path, tensors, facts = found
        then, now = facts["identity"], self.identity()
        names = sorted({*then, *now} - presets.BOOKKEEPING)
        changed = [name for name in names if then.get(name) != now.get(name)]
        if changed and not allow_changes:
            lines = [f"\n  {name}: {then.get(name)} then, {now.get(name)} now" for name in changed]
            raise ValueError(
                f"{path} was trained with other settings:{''.join(lines)}\n"
                'Set them back, or give this run a folder of its own: run = "a-name" in the first '
                "cell of all three notebooks. allow_changes=True goes on with the new ones."
            )
        try:
            self.load(tensors, facts)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} is of other networks ({error}): choose another run or folder"
            ) from error
        self.last_checkpoint, self.own_files = path, there
        part = f" and {self.batch} batches" if self.batch else ""
        self.say(f"Resumed from {path.name}, after epoch {self.epoch}{part}.")
        then, now = facts["versions"], self.versions()
        if then != now:
            self.say(f"It may not be bit-identical: {then} then, {now} now.")
        return True

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to resume as if it had never stopped."""
        data = self.dataset
        identity = {**self.settings, "seed": data.seed, "crop_size": data.crop_size}
        identity["patches_per_image"] = data.patches_per_image
        identity["train_images"] = f"{len(data.pairs)} images, {data.checksum}"
        return json.loads(json.dumps(identity))  # as it is read back: tuples become lists

    def versions(self) -> dict[str, Any]:
        """What, besides the settings, decides how sums are rounded."""
        return dict(
            torch=torch.__version__, device=device_name(self.device),
            precision=str(self.precision.dtype), processes=self.processes.count,
        )  # fmt: skip

    def state(self) -> tuple[checkpoints.Tensors, dict[str, Any]]:
        """All that a run is, as (tensors, facts)."""
        tensors = checkpoints.pack("ema", self.ema)
        for name, optimizer in self.optimizers.items():
            tensors.update(checkpoints.pack(name, self.unwrapped[name], optimizer))
        tensors.update({f"sums.{name}": value for name, value in self.sums.items()})
        # As a tensor, because the header of a file has a limit, and a history grows.
        history = json.dumps(self.history).encode()
        tensors["history"] = torch.frombuffer(bytearray(history), dtype=torch.uint8)
        facts = dict(
            epoch=self.epoch, batch=self.batch, batches_per_epoch=len(self.loader), step=self.step,
            warmup_step=self.warmup_step, seconds=self.seconds, identity=self.identity(),
            versions=self.versions(), scaler=self.precision.scaler.state_dict(),
        )  # fmt: skip
        return tensors, facts

    def load(self, tensors: checkpoints.Tensors, facts: dict[str, Any]) -> None:
        """Take over what `state` returned. Raises KeyError or RuntimeError for other networks."""
        # The averages of another optimizer (`allow_changes`) mean nothing: a new one starts.
        same = facts["identity"]["optimizer"] == self.settings["optimizer"]
        for name, optimizer in self.optimizers.items():
            checkpoints.unpack(tensors, name, self.unwrapped[name], optimizer if same else None)
        checkpoints.unpack(tensors, "ema", self.ema)
        sums = checkpoints.under("sums.", tensors)
        self.sums = {name: value.to(self.device) for name, value in sums.items()}
        if facts["scaler"]:
            self.precision.scaler.load_state_dict(facts["scaler"])
        for name in ("epoch", "step", "warmup_step", "seconds"):
            setattr(self, name, facts[name])
        # With another batch size or list (`allow_changes`): after the same part of the epoch.
        self.batch = facts["batch"] * len(self.loader) // facts["batches_per_epoch"]
        self.history = json.loads(tensors["history"].numpy().tobytes())
        # Validation comes after saving: the log may have a row that the checkpoint lacks.
        rows = [*self.history["valid"], *checkpoints.read_log(self.folder, "valid")]
        by_step = {row["step"]: row for row in rows if row["step"] <= self.step}
        self.history["valid"] = [by_step[step] for step in sorted(by_step)]

    def check_finite(self) -> None:
        bad = self.processes.accelerator.gather(self.first_bad_step.reshape(1)).max()
        if bad >= 0:
            raise self.diverged("a loss", int(bad))

    def diverged(self, what: str, step: int) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what} is not finite at step {step} (epoch {self.epoch + 1}). Halve learning_rate, "
            f"rebuild the solver with allow_changes=True: it resumes from {self.last_checkpoint}"
        )
