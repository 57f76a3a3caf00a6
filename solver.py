"""One training loop for every stage: optimizers, epochs, history, resuming; it is handed networks, data and a folder.

A stage is a subclass that writes `training_step`: `PretrainSolver` (SRResNet: mean squared error) and `GANSolver`
(SRGAN: discriminator and generator in turn; from pre-trained weights, or from random ones: the course's base mode).
What must survive a stop, and what several GPUs need, lives in `Solver` and is the same for all of them.

From the command line, both stages, on every GPU there is: accelerate launch solver.py checkpoints/afternoon/settings.json
"""

import argparse
import contextlib
import copy
import hashlib
import itertools
import json
import math
import os
import sys
import time
import warnings
from pathlib import Path

import accelerate
import torch
from tqdm import tqdm

from datasets import PairDataset, PatchDataset, PatchLoader
from losses import bce, content_loss, content_weight, health, mse
from metrics import evaluate, mean
from models import Discriminator, SRResNet, reestimate_batch_norm, save_generator
from tools import checkpoints as states
from tools.distributed import (
    deferred_signals,
    ignore_ended_children,
    on_first_process,
    share_batch_norm,
)
from tools.muon import Muon
from utils import (
    can_compile,
    computes_in_bf16,
    device_name,
    keep_freed_memory,
    seed_everything,
    to_array,
    to_tensor,
)

# Settings that change how a run is kept or shown, not what it computes: they may differ when it goes on.
BOOKKEEPING = {
    "num_workers",
    "log_every",
    "checkpoint_minutes",
    "keep_last",
    "keep_every",
    "tensorboard",
}
BOOKKEEPING.add("batch_norm_batches")  # of the generator for use, not of what is trained
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": None}
OPTIMIZERS = {
    "adam": lambda network, **how: torch.optim.Adam(network.parameters(), **how),
    "muon": Muon,
}
SCHEDULES = {  # factor of the learning rate where a part (0 to 1) of the training is done
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # to zero
    "tenth": lambda done: 1.0 if done < 0.5 else 0.1,  # the paper's for SRGAN
}


class TrainingDiverged(FloatingPointError):
    """A loss or a weight became infinite or not a number; nothing of it was saved."""


class Solver:
    """The loop. Trains `networks["generator"]` (and others) on patches, and keeps an average of the generator.

    Args:
        networks: {name: module}; "generator" is the one that is averaged, validated and saved for use.
        dataset: a `PatchDataset`, or anything else that `PatchLoader` takes.
        config: settings of this stage, a dict (or EasyDict) of literals; see `DEFAULTS` for names and meanings.
        folder: where the states and the log go, e.g. checkpoints/afternoon/srresnet. The averaged generator, the file
            that is for use, goes beside it: checkpoints/afternoon/srresnet.safetensors.
        valid_pairs: (name, lr, hr) of a few whole images, or None.

    Attributes:
        epoch, batch: finished epochs (one is 100 patches of every training image), and batches of the present one.
        step: generator updates so far.
        generator, ema: the trained network, and its running average in eval mode; `for_use` is what to use.
        history: {"train": rows, "valid": rows}, each row a dict with its step.
        seconds: spent in the loop, over all sessions.
        last_state: path of the newest whole state of this run, None before `resume` or `fit`.
    """

    DEFAULTS = dict(
        epochs=1,  # the schedule's length
        batch_size=16,  # over all processes
        learning_rate=1e-4,  # Adam's (paper, section 3.2)
        schedule="constant",  # one of SCHEDULES
        warmup_steps=0,  # linear, from zero
        optimizer="adam",  # the paper's; "muon": see optimizers.py
        ema_decay=0.999,  # half-life of the averaged generator: 693 steps
        batch_norm_batches=0,  # from how many its statistics are taken before it is used, see `for_use`; 0: averaged too
        mixed_precision="no",  # "bf16" or "fp16" where they are faster; "auto": bf16 on processors that compute in it
        compile=False,  # torch.compile: a minute to begin with, faster steps after it
        num_workers=0,  # the patch store is faster than workers' queues
        log_every=20,  # steps between rows of the history; reading a loss makes a GPU wait
        checkpoint_minutes=10,  # between states, besides one each epoch
        keep_last=2,  # states kept
        keep_every=0,  # also every k-th epoch's state, for ever; 0: none
        tensorboard=False,  # also log for TensorBoard (pip install tensorboard), into <folder>/tensorboard
    )

    def __init__(self, networks, dataset, config, folder, valid_pairs=None):
        unknown = set(config) - set(self.DEFAULTS)
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no setting {sorted(unknown)}; it has {sorted(self.DEFAULTS)}"
            )
        self.config = {**self.DEFAULTS, **config}
        for name, choices in (
            ("schedule", SCHEDULES),
            ("mixed_precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
        ):
            if self.config[name] not in choices:
                raise ValueError(
                    f"{name} is one of {', '.join(choices)}; not {self.config[name]!r}"
                )
        self.folder, self.valid_pairs, self.dataset = Path(folder), valid_pairs, dataset

        # Accelerate allows one mixed precision per process, and a notebook may hold two solvers: so the loop has its own.
        # Without CUDA, launched processes would each train alone, on the whole batch, unless told to meet on the CPU.
        on_cpu = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available()
        self.accelerator = accelerate.Accelerator(mixed_precision="no", cpu=on_cpu)
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process  # the process that writes and shows
        if self.device.type == "cpu":
            keep_freed_memory()
        precision = self.config["mixed_precision"]
        if precision == "auto":
            precision = "bf16" if computes_in_bf16(self.device) else "no"
        self.autocast = torch.autocast(
            self.device.type, PRECISIONS[precision], enabled=precision != "no"
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

        self.ema = copy.deepcopy(networks["generator"]).to(
            self.device, memory_format=torch.channels_last
        )
        self.ema.eval().requires_grad_(False)
        self.networks, self.optimizers = {}, {}
        for name, network in networks.items():
            network = network.to(self.device, memory_format=torch.channels_last).train()
            optimizer = OPTIMIZERS[self.config["optimizer"]]
            self.optimizers[name] = optimizer(network, fused=self.device.type != "mps")
            if self.config["compile"] and can_compile(self.device):
                # Each shape of batch in kernels of its own: by default the second one brings kernels for any shape, which
                # round otherwise, and a run that went on from another batch would not come to the same bits.
                network.compile(dynamic=False)
            if self.accelerator.num_processes > 1:
                network = self.accelerator.prepare(share_batch_norm(network, self.device))
                # Two forwards before a backward (real and generated images) fail if buffers are broadcast in between.
                network.broadcast_buffers = False
            self.networks[name] = network
        self.generator = self.bare("generator")

        mine = dict(rank=self.accelerator.process_index, world_size=self.accelerator.num_processes)
        workers = self.config["num_workers"]
        self.loader = PatchLoader(
            dataset, self.config["batch_size"], device=self.device, num_workers=workers, **mine
        )
        self.epoch = self.batch = self.step = 0
        self.seconds = 0.0
        self.learning_rate_scale = 1.0  # halved by `retry`
        self.history = {"train": [], "valid": []}
        self.log = states.Log(self.folder, self.config["tensorboard"])
        self.last_state = None
        self._for_use = None  # (step, network), see `for_use`
        self._sums = {}  # of each loss since the last row, on the device: reading them there would make it wait
        self._first_bad_step = torch.tensor(-1, device=self.device)

    # --- what a stage is ---

    def training_step(self, lr, hr):
        """One update of the stage's networks by `self.update`; returns {name: scalar tensor} for the history's means.

        lr: (N, 3, h, w), hr: (N, 3, 4h, 4w), float in [0, 1], on `self.device`; this process's part of the batch.
        """
        raise NotImplementedError

    def update(self, name, loss):
        """One optimizer step of network `name` down the gradient of `loss`."""
        self.optimizers[name].zero_grad(set_to_none=True)
        with torch.autocast(
            self.device.type, enabled=False
        ):  # each backward runs as its forward did
            self.scaler.scale(
                loss
            ).backward()  # keeps fp16's small gradients from vanishing; without fp16 it is idle
        self.scaler.step(self.optimizers[name])
        self.scaler.update()
        torch.clear_autocast_cache()  # it holds the weights from before

    def bare(self, name):
        """Network `name` without the wrapper of several processes."""
        return self.accelerator.unwrap_model(self.networks[name])

    def derived(self, row):
        """More columns of the history, computed from a row's means."""
        return {}

    # --- the loop ---

    def fit(self, num_epochs=None, callback=None):
        """Train *until* `num_epochs` epochs are done (default: `config["epochs"]`); what is done is not done again.

        Ctrl-C, the notebook's stop button and SIGTERM save the state and stop; `resume` goes on from within the epoch.

        Args:
            callback: called as callback(solver) after each epoch, and after a row of the history at most every 10 s.

        Raises:
            TrainingDiverged: a loss is not finite; says at which step. The saved states are all from before.
            torch.OutOfMemoryError: says which batch size fits.
            OSError: the state could not be written; says which one is whole.
            FileExistsError: the folder holds another run's states.
            RuntimeError: batches cannot be loaded; the state is saved.
        """
        num_epochs = self.config["epochs"] if num_epochs is None else num_epochs
        if self.last_state is None:
            self.save()  # a folder that cannot be written is told now, not after an hour
        with deferred_signals() as stop:
            while self.epoch < num_epochs:
                self._train_epoch(stop, num_epochs, callback)
                self._validate()
                self.save()
                if callback and self.is_main:
                    callback(self)

    def _train_epoch(self, stop, num_epochs, callback):
        saved = shown = clock = time.monotonic()
        title, total, quiet = (
            f"epoch {self.epoch + 1}/{num_epochs}",
            len(self.loader),
            not self.is_main,
        )
        look = dict(unit="step", mininterval=2, file=sys.stdout, disable=quiet)
        with tqdm(self._batches(stop), title, total, initial=self.batch, **look) as bar:
            for lr, hr in bar:
                self._step(lr, hr)
                self.batch += 1
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
                if self.step % self.config["log_every"] == 0 or self.batch == len(self.loader):
                    bar.set_postfix(self._log(), refresh=False)
                    if callback and self.is_main and now - shown > 10:
                        callback(self)
                        shown = now
                late = now - saved > 60 * self.config["checkpoint_minutes"]
                stop_now, save_now = self._any_process(stop.exception is not None, late)
                if stop_now or save_now:
                    self.save()
                    saved = now
                if stop_now:
                    bar.close()
                    self._say(
                        f"Stopped and saved in epoch {self.epoch + 1}, batch {self.batch}: run again to go on."
                    )
                    raise stop.exception or KeyboardInterrupt
        self.epoch, self.batch = self.epoch + 1, 0

    def _batches(self, stop):
        """The batches that this epoch has left. If they cannot be loaded, saves what was trained, and says so."""
        try:
            batches = self.loader.epoch(self.epoch, self.batch)
            with torch.random.fork_rng(
                devices=[]
            ):  # a DataLoader draws a number when it starts; resuming, once more
                first = list(itertools.islice(batches, 1))
            for batch in itertools.chain(first, batches):
                if self.config["num_workers"]:
                    ignore_ended_children()
                yield batch
        except Exception as error:
            if (
                self.accelerator.num_processes == 1
            ):  # alone, a process cannot save: its sums are in all of them
                self.save()
            if stop.exception:  # Ctrl-C in a terminal reaches the workers, too
                raise stop.exception from error
            raise RuntimeError(
                f"Batch {self.batch + 1} of epoch {self.epoch + 1} cannot be loaded ({error}). "
                f"{self.last_state} is saved: remove the cause, or set num_workers=0, and run again."
            ) from error

    def _step(self, lr, hr):
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(self.epoch * len(self.loader) + self.batch)
        try:
            with self.autocast:
                losses = self.training_step(lr, hr)
        except torch.OutOfMemoryError:
            losses = None  # handled below: in here, the error would keep the activations in memory
        if losses is None:
            raise torch.OutOfMemoryError(self._smaller_batch(lr, hr))
        self.step += 1
        self._average()
        self._sums = {
            name: self._sums.get(name, 0) + value.detach().float() for name, value in losses.items()
        }
        # Remembered on the device and read with the next row: asking now would make a GPU wait at every step.
        finite = torch.stack([value.detach().float() for value in losses.values()]).isfinite().all()
        self._first_bad_step = torch.where(
            finite | (self._first_bad_step >= 0), self._first_bad_step, self.step
        )

    def learning_rate(self, step):
        """Of the update after `step` batches of the schedule: a pure function, so that resuming cannot reset it."""
        config = self.config
        done = min(step / (config["epochs"] * len(self.loader)), 1)
        warmup = min(1.0, (step + 1) / (config["warmup_steps"] + 1))
        return (
            config["learning_rate"]
            * self.learning_rate_scale
            * warmup
            * SCHEDULES[config["schedule"]](done)
        )

    @torch.no_grad()
    def _average(self):
        # Early on a long average would still hold the initialisation; so it starts short and grows to ema_decay.
        decay = min(self.config["ema_decay"], (1 + self.step) / (10 + self.step))
        ours, theirs = (
            list(self.ema.state_dict().values()),
            list(self.generator.state_dict().values()),
        )
        floats = [
            k for k, value in enumerate(ours) if value.is_floating_point()
        ]  # weights, batch-norm statistics
        torch._foreach_lerp_([ours[k] for k in floats], [theirs[k] for k in floats], 1 - decay)

    def _log(self):
        """Close the interval: a row of means for the history and the log. Returns it, short, for the progress bar."""
        self._check_finite()
        sums = self.accelerator.reduce(self._sums, reduction="mean")
        previous = self.history["train"][-1]["step"] if self.history["train"] else 0
        row = dict(
            step=self.step,
            epoch=self.epoch + self.batch / len(self.loader),
            seconds=round(self.seconds, 3),
        )
        row["learning_rate"] = self.optimizers["generator"].param_groups[0]["lr"]
        row.update({name: float(value) / (self.step - previous) for name, value in sums.items()})
        row.update(self.derived(row))
        self._sums = {}
        self._append("train", row)
        return {name: f"{row[name]:.4g}" for name in sums}

    def _validate(self):
        if self.valid_pairs is None or not self.is_main:
            return
        scores = mean(evaluate(self.upscale, self.valid_pairs, progress=False))
        self._append(
            "valid",
            {
                "step": self.step,
                "epoch": self.epoch,
                "psnr": scores["psnr"],
                "ssim": scores["ssim"],
            },
        )
        psnr, ssim = f"PSNR {scores['psnr']:.3f} dB", f"SSIM {scores['ssim']:.4f}"
        self._say(f"after epoch {self.epoch}: {psnr}, {ssim} on the validation images (Y)")

    def for_use(self):
        """The averaged generator as it is validated and saved, in eval mode.

        With `batch_norm_batches` its batch norms' statistics are those of its own weights, see `reestimate_batch_norm`.
        Always from the same patches, the first of epoch 0, and on a copy: what is trained and averaged on is not touched,
        nor is any random state, and where a run was interrupted makes no difference.
        """
        if not self.config["batch_norm_batches"]:
            return self.ema
        if self._for_use is None or self._for_use[0] != self.step:
            patches, size = copy.copy(self.dataset), self.config["batch_size"]
            patches.set_epoch(0)  # of the copy: the loader is perhaps within another epoch
            count = min(len(patches), size * self.config["batch_norm_batches"])
            batches = (
                patches.__getitems__(range(k, min(k + size, count)))[0]
                for k in range(0, count, size)
            )
            self._for_use = self.step, reestimate_batch_norm(copy.deepcopy(self.ema), batches)
        return self._for_use[1]

    def upscale(self, lr):
        """The averaged generator on one whole image: uint8 (h, w, 3) -> uint8 (4h, 4w, 3)."""
        generator = self.for_use()
        with torch.inference_mode():
            return to_array(
                generator(to_tensor(lr).to(self.device, memory_format=torch.channels_last))
            )

    def measure(self, steps=3):
        """Seconds per training step on this device: trains on the first batches, then puts everything back as it was."""
        tensors, facts = self._state()
        before = {name: value.clone() for name, value in tensors.items()}, copy.deepcopy(facts)
        times = []
        try:
            for lr, hr in itertools.islice(
                itertools.cycle(self.loader.epoch(self.epoch)), steps + 1
            ):
                self._step(lr, hr)
                if self.device.type != "cpu":
                    torch.accelerator.synchronize()  # a GPU's steps are only queued by now
                times.append(time.monotonic())
        finally:
            self._load(*before)
        return (
            times[-1] - times[0]
        ) / steps  # the first step, which also warms up, is where the clock starts

    def _say(self, text):
        if self.is_main:
            print(text)

    # --- guards ---

    def _any_process(self, *wishes):
        """Which of the wishes any process has: all must act on them at the same step, or wait for each other for ever."""
        if self.accelerator.num_processes == 1:
            return wishes
        if self.step % 10:  # asking costs a round trip
            return [False] * len(wishes)
        return (
            self.accelerator.reduce(torch.tensor(wishes, device=self.device).float()) > 0
        ).tolist()

    def _check_finite(self):
        bad = int(self.accelerator.gather(self._first_bad_step.reshape(1)).max())
        if bad >= 0:
            raise self._diverged("A loss", bad)

    def _diverged(self, what, step):
        where = f"step {step} (epoch {self.epoch + 1}, batch {self.batch - (self.step - step)})"
        return TrainingDiverged(
            f"{what} is not finite at {where}. Nothing of it was saved; the last good state is {self.last_state}. "
            "solver.retry() goes on from there with half the learning rate."
        )

    def retry(self):
        """After `TrainingDiverged`: back to the last good state, with half the learning rate; then `fit` goes on.

        Raises:
            FileNotFoundError: there is none.
        """
        scale = self.learning_rate_scale
        if not self.resume(allow_changes=True):
            raise FileNotFoundError(
                f"{self.folder} holds no state to go back to: build the solver anew"
            )
        self.learning_rate_scale = min(scale, self.learning_rate_scale) / 2
        self.save()  # or a stop would forget it

    def _smaller_batch(self, lr, hr):
        """What to say when a batch was too large for the memory; puts the last saved state back."""
        message, size = f"Out of memory with batch_size={self.config['batch_size']}: ", len(lr)
        if self.accelerator.num_processes > 1:
            return message + "take a smaller one, or a smaller crop_size."
        while size > 1:
            size //= 2
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            with contextlib.suppress(torch.OutOfMemoryError), self.autocast:
                self.training_step(lr[:size], hr[:size])
                message += f"batch_size={size} fits."
                break
        else:
            message += "not even one patch fits; take a smaller crop_size."
        if self.last_state:
            self._load(*states.read(self.last_state))
        return message

    # --- the log and the states ---

    def _append(self, kind, row):
        """A row for the history, and for the log."""
        self.history[kind].append(row)
        if self.is_main:
            with self._explained():
                self.log.append(kind, row)

    @contextlib.contextmanager
    def _explained(self):
        """Says of a failed write what is lost (little) and what to do."""
        try:
            yield
        except OSError as error:
            text = f"{self.folder}: cannot be written ({error.strerror or error}) at step {self.step}. "
            text += f"The state before is whole: {self.last_state}. " if self.last_state else ""
            text += "Make room, or make the folder writable, and run again."
            raise type(error)(error.errno, text) from error

    def save(self):
        """Write the state for resuming and the averaged generator for use; then drop the states that are not kept.

        Raises:
            TrainingDiverged, OSError, FileExistsError: as `fit`. The states before are whole.
        """
        self._check_finite()
        # Each process has its own sums, and one state is written: from here on all go on from their mean.
        self._sums = self.accelerator.reduce(self._sums, reduction="mean")
        self.last_state = on_first_process(self._write)

    def _write(self):
        if self.last_state is None and states.files(self.folder):
            raise FileExistsError(
                f"{self.folder} holds the states of an earlier training. Call resume() before fit() to go on with it, "
                "or choose another folder."
            )
        tensors, facts = self._state()
        for name, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise self._diverged(name, self.step)
        every = self.config["keep_every"]
        keep_as = (
            f"epoch{self.epoch}"
            if every and self.epoch and self.batch == 0 and self.epoch % every == 0
            else ""
        )
        generator = self.for_use() if self.step else None
        with self._explained():
            if (
                self.step
            ):  # before the state: whoever finds a state of the end finds the generator of the end
                save_generator(
                    f"{self.folder}.safetensors", generator, stage=type(self).__name__, step=self.step,
                    epoch=self.epoch, seconds=round(self.seconds), device=device_name(self.device), config=self.config,
                    images=len(self.dataset.pairs),
                )  # fmt: skip
            return states.write(
                self.folder, self.step, tensors, facts, self.config["keep_last"], keep_as
            )

    def states(self):
        """The saved states, oldest first."""
        return states.files(self.folder)

    def resume(self, allow_changes=False):
        """Go on from the newest whole state in the folder. Returns whether there was one.

        Args:
            allow_changes: go on although settings or the training list are not those of the saved state.

        Raises:
            ValueError: they are not and it was not allowed; or the state is of other networks; or no state is whole.
        """
        found = on_first_process(states.read_newest, self.folder)
        if found is None:
            return False
        path, tensors, facts = found
        now = self._identity()
        then = {
            **self.DEFAULTS,
            **facts["identity"],
        }  # a setting that is younger than the state had its default
        names = [
            name for name in sorted({*then, *now} - BOOKKEEPING) if then.get(name) != now.get(name)
        ]
        if names and not allow_changes:
            changes = [
                f"\n  {name}: {then.get(name)} in the state, {now.get(name)} now" for name in names
            ]
            raise ValueError(
                f"{path} was trained with other settings:{''.join(changes)}\n"
                "Set them back, choose another folder, or go on all the same with resume(allow_changes=True)."
            )
        try:
            self._load(tensors, facts)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} is the state of other networks ({error}): choose another folder, or those networks"
            ) from error
        self.last_state = path
        if self.is_main:
            with self._explained():
                self.log.rewrite(self.history)
        self._say(
            f"Going on from {path.name}: {self.epoch} epochs and {self.batch} batches are done."
        )
        then, now = facts["versions"], self._versions()
        others = [
            f"{name} was {then[name]}, is {now[name]}"
            for name in now
            if then.get(name, now[name]) != now[name]
        ]
        if others:
            self._say(
                f"It may come to other last digits than it would have there: {'; '.join(others)}."
            )
        return True

    def _versions(self):
        """What, besides the settings, decides how sums are rounded: it may differ when a run goes on, which then says so."""
        here = dict(device=device_name(self.device), bf16=computes_in_bf16(self.device))
        here.update(processes=self.accelerator.num_processes)
        return {"python": sys.version.split()[0], "torch": torch.__version__, **here}

    def _identity(self):
        """What must be the same for a run to go on as if it had never stopped."""
        data = self.dataset
        names = json.dumps(
            [(pair.name, pair.width, pair.height) for pair in data.pairs]
        )  # wherever its folder lies
        train_images = (
            f"{len(data.pairs)} images, {hashlib.sha256(names.encode()).hexdigest()[:16]}"
        )
        identity = {**self.config, "train_images": train_images}
        identity.update(
            crop_size=data.crop_size, patches_per_image=data.patches_per_image, seed=data.seed
        )
        return json.loads(json.dumps(identity))  # as it will be read back: tuples are lists there

    def _state(self):
        """All that a run is, as (tensors, facts); on the CPU the tensors are the very ones that are trained."""
        tensors, (random_tensors, python_random) = {}, states.random_states()
        for name, optimizer in self.optimizers.items():
            tensors.update(states.pack(name, self.bare(name), optimizer))
        tensors.update(states.pack("ema", self.ema))
        tensors.update({f"sums.{name}": value for name, value in self._sums.items()})
        tensors.update({f"random.{name}": value for name, value in random_tensors.items()})
        # As a tensor, because a file's header has a limit, and a history grows.
        tensors["history"] = torch.frombuffer(
            bytearray(json.dumps(self.history).encode()), dtype=torch.uint8
        )
        facts = dict(
            epoch=self.epoch, batch=self.batch, batches_per_epoch=len(self.loader), step=self.step,
            seconds=self.seconds, learning_rate_scale=self.learning_rate_scale, identity=self._identity(),
            python_random=python_random, scaler=self.scaler.state_dict(),
            versions=self._versions(),
        )  # fmt: skip
        return {name: value.detach().cpu() for name, value in tensors.items()}, facts

    def _load(self, tensors, facts):
        # Another optimizer (`allow_changes`) begins anew: averages of the one before mean nothing to it.
        same_optimizer = facts["identity"].get("optimizer", "adam") == self.config["optimizer"]
        for name, optimizer in self.optimizers.items():
            states.unpack(tensors, name, self.bare(name), optimizer if same_optimizer else None)
        states.unpack(tensors, "ema", self.ema)
        self._for_use = None
        self._sums = {
            name: value.to(self.device) for name, value in states.under("sums.", tensors).items()
        }
        self._first_bad_step = torch.full_like(self._first_bad_step, -1)
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.step, self.seconds = facts["epoch"], facts["step"], facts["seconds"]
        # With another batch size or list (`allow_changes`) an epoch has other batches: go on after the same part of it.
        batches = facts.get("batches_per_epoch", len(self.loader))
        self.batch = (
            facts.get("batch", self.step - self.epoch * batches) * len(self.loader) // batches
        )
        self.learning_rate_scale = facts["learning_rate_scale"]
        self.history = facts.get("history") or json.loads(tensors["history"].numpy().tobytes())
        states.set_random_states(states.under("random.", tensors), facts["python_random"])


# --- the stages ------------------------------------------------------------------------------------------------------


class PretrainSolver(Solver):
    """SRResNet: the generator alone, by mean squared error (paper, equation 4), in the paper's range [-1, 1]."""

    def __init__(self, generator, dataset, config, folder, valid_pairs=None):
        super().__init__({"generator": generator}, dataset, config, folder, valid_pairs)

    def training_step(self, lr, hr):
        content_loss = mse(self.networks["generator"](lr), hr)
        self.update("generator", content_loss)
        return {"content_loss": content_loss}


class GANSolver(Solver):
    """SRGAN: discriminator and generator in turn. The generator comes pre-trained, or (the base mode) as initialised.

    Settings besides the solver's:
        content_loss: "mse", or "vgg54", "vgg22", ...: the squared distance of VGG19's features phi_ij.
        content_weight: of the content loss, or None for one that fits the features' scale (`losses.CONTENT_WEIGHTS`), or
            "paper" for the paper's 1/12.75, squared, which does not (`PAPER_CONTENT_WEIGHT`).
        adversarial_weight: 1e-3 (paper, equation 3).
        vgg_weights, vgg_pooling: see `VGGFeatures`; with "avg" the content loss draws no checkerboard of its own.
        frozen_layers: names of the generator's modules that stay as they come; ["upsample", "tail"], the layers that make
            pixels of features, are not taught to draw a grid then.
    """

    DEFAULTS = {
        **Solver.DEFAULTS,
        "content_loss": "vgg54",
        "content_weight": None,
        "adversarial_weight": 1e-3,
        "vgg_weights": None,
        "vgg_pooling": "max",
        "frozen_layers": [],
        "batch_norm_batches": 32,
    }

    def __init__(self, generator, discriminator, dataset, config, folder, valid_pairs=None):
        for name in config.get(
            "frozen_layers", ()
        ):  # before several processes agree on what to exchange
            if name not in dict(generator.named_modules()):
                raise ValueError(
                    f'frozen_layers: the generator has no module "{name}"; it has "upsample", "tail", ...'
                )
            generator.get_submodule(name).requires_grad_(False)
        super().__init__(
            {"generator": generator, "discriminator": discriminator},
            dataset,
            config,
            folder,
            valid_pairs,
        )
        name, weights, pooling = (
            self.config[key] for key in ("content_loss", "vgg_weights", "vgg_pooling")
        )
        self.content_loss, source = content_loss(name, weights, self.device, pooling)
        self.config["content_weight"] = content_weight(self.config["content_weight"], name, source)
        self._warned = set()

    def training_step(self, lr, hr):
        sr = self.networks["generator"](lr)

        # Discriminator: call the photographs real and the generator's images generated. Each kind goes through on its
        # own, for batch norm's statistics; `detach` because this paragraph must not move the generator.
        real = self.networks["discriminator"](hr)
        generated = self.networks["discriminator"](sr.detach())
        discriminator_loss = bce(real, 1.0) + bce(generated, 0.0)
        self.update("discriminator", discriminator_loss)

        # Generator: be called real, and keep the content. The discriminator has just changed, so it looks again; its own
        # weights need no gradient here, and the bare module none of the synchronisation that goes with one.
        content = self.config["content_weight"] * self.content_loss(sr, hr)
        with frozen(self.bare("discriminator")) as judge:
            adversarial = self.config["adversarial_weight"] * bce(
                judge(sr), 1.0
            )  # -log D(G(LR)), paper, equation 6
        perceptual_loss = content + adversarial
        self.update("generator", perceptual_loss)

        return {
            "perceptual_loss": perceptual_loss,
            "content_loss": content,
            "adversarial_loss": adversarial,
            "discriminator_loss": discriminator_loss,
            "d_real": real.sigmoid().mean(),  # D(x)
            "d_generated": generated.sigmoid().mean(),  # D(G(z))
        }

    def derived(self, row):
        return {"content_to_adversarial": row["content_loss"] / max(row["adversarial_loss"], 1e-12)}

    def _log(self):
        shown = super()._log()
        for cause, message in health(self.history["train"]).items():
            if self.is_main and cause not in self._warned:  # once each
                self._warned.add(cause)
                warnings.warn(message, stacklevel=2)
        return shown


@contextlib.contextmanager
def frozen(network):
    """The network with constant weights: gradients go through it, and none to them."""
    network.requires_grad_(False)
    try:
        yield network
    finally:
        network.requires_grad_(True)


# --- the command line ------------------------------------------------------------------------------------------------


def train(settings, allow_changes=False):
    """The stages of train.ipynb one after the other; in one process, or in each of those that accelerate launched.

    In a notebook with several GPUs: accelerate.notebook_launcher(train, (settings,), num_processes=...).

    Args:
        settings: dict of seed, crop_size, patches_per_image, train_list, valid_list, num_valid_images, folder; pretrain
            (into <folder>/srresnet); gan and, if wanted, gan_mse (another content loss, for comparison) and base (the
            base mode): settings for a `GANSolver` and, if they are other than usual, name (into <folder>/<name>),
            start ("pretrained" or "random") and patches_per_image.
            generator, discriminator: arguments for `SRResNet` and `Discriminator`.
        allow_changes: see `Solver.resume`.
    """
    shape, valid_set = settings.get("generator", {}), PairDataset(settings["valid_list"])
    valid_pairs = [valid_set[i] for i in range(min(settings["num_valid_images"], len(valid_set)))]

    def run(kind, networks, name, config):
        config, patches = (
            dict(config),
            {key: settings[key] for key in ("crop_size", "patches_per_image", "seed")},
        )
        patches["patches_per_image"] = config.pop("patches_per_image", patches["patches_per_image"])
        train_set = PatchDataset(settings["train_list"], **patches)
        solver = kind(*networks, train_set, config, Path(settings["folder"]) / name, valid_pairs)
        solver.resume(allow_changes)
        solver.fit()
        return solver.for_use()

    seed_everything(settings["seed"])
    if "pretrain" in settings:
        pretrained = run(PretrainSolver, [SRResNet(**shape)], "srresnet", settings["pretrain"])
    usually = dict(
        gan=dict(name="srgan", start="pretrained"),
        gan_mse=dict(name="srgan_mse", start="pretrained"),
        base=dict(name="base", start="random"),
    )
    for stage, usual in usually.items():
        if stage in settings:
            seed_everything(settings["seed"])
            config = {**usual, **settings[stage]}
            name, start = config.pop("name"), config.pop("start")
            random = SRResNet(**{**shape, "init": "default"})
            generator = (
                copy.deepcopy(pretrained).requires_grad_() if start == "pretrained" else random
            )
            run(
                GANSolver,
                [generator, Discriminator(**settings.get("discriminator", {}))],
                name,
                config,
            )


def main():
    parser = argparse.ArgumentParser(
        description="Train SRResNet, then SRGAN, by the settings that train.ipynb wrote."
    )
    parser.add_argument(
        "settings", type=Path, help="a JSON file, such as checkpoints/afternoon/settings.json"
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="go on although settings or images have changed",
    )
    arguments = parser.parse_args()
    train(json.loads(arguments.settings.read_text(encoding="utf-8")), arguments.allow_changes)
    accelerate.PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
