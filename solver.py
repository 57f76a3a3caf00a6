"""One training loop for every stage: optimizers, epochs, history, checkpoints; it is handed networks, data and a folder.

A stage is a subclass that writes `training_step`: `PretrainSolver` (SRResNet: mean squared error) and `GANSolver`
(SRGAN: discriminator and generator in turn; from pre-trained weights, or from random ones: the course's base mode).
What must survive a stop lives in `Solver` and is the same for all of them.
"""

import contextlib
import copy
import hashlib
import itertools
import json
import math
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import accelerate
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets import PatchLoader
from metrics import evaluate, mean
from models import VGGFeatures, save_generator
from utils import atomic_path, keep_freed_memory, to_array, to_tensor

# Settings that change how a run is kept or shown, not what it computes: they may differ when it goes on.
BOOKKEEPING = {"num_workers", "log_every", "checkpoint_minutes", "keep_last", "keep_every", "tensorboard"}


class TrainingDiverged(FloatingPointError):
    """A loss became infinite or not a number; nothing of it was saved."""


class Solver:
    """The loop. Trains `networks["generator"]` (and others) on patches, and keeps an average of the generator.

    Args:
        networks: {name: module}; "generator" is the one that is averaged, validated and saved for use.
        dataset: a `PatchDataset`, or anything else that `PatchLoader` takes.
        config: settings of this stage, a dict (or EasyDict) of literals; see `DEFAULTS` for the names and what they mean.
        folder: where the states and the log go, e.g. checkpoints/afternoon/srresnet. The averaged generator, the file
            that is for use, goes beside it: checkpoints/afternoon/srresnet.safetensors.
        valid_pairs: (name, lr, hr) of a few whole images, or None.

    Attributes:
        epoch, step: finished epochs (an epoch is 100 patches of every training image) and generator updates.
        generator, ema: the trained network, and its running average in eval mode.
        history: {"train": rows, "valid": rows}, each row a dict with its step.
    """

    DEFAULTS = dict(
        epochs=1,  # the schedule's length
        batch_size=16,  # over all processes
        learning_rate=1e-4,  # Adam's (paper, section 3.2)
        schedule="constant",  # "constant", "cosine" (to zero), "tenth" (a tenth in the second half; the paper's for SRGAN)
        warmup_steps=0,  # linear, from zero
        ema_decay=0.999,  # half-life of the averaged generator: 693 steps
        mixed_precision="no",  # "bf16" or "fp16" on GPUs that are faster with it
        num_workers=0,  # the patch store is faster than workers' queues
        log_every=20,  # steps between rows of the history; reading a loss makes a GPU wait
        checkpoint_minutes=10,  # besides one each epoch
        keep_last=2,  # states kept
        keep_every=0,  # also every k-th epoch's state, for ever; 0: none
    )

    def __init__(self, networks, dataset, config, folder, valid_pairs=None):
        unknown = set(config) - set(self.DEFAULTS)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no setting {sorted(unknown)}; it has {sorted(self.DEFAULTS)}")
        self.config = {**self.DEFAULTS, **config}
        self.folder, self.valid_pairs, self.dataset = Path(folder), valid_pairs, dataset
        self.accelerator = accelerate.Accelerator(
            mixed_precision=self.config["mixed_precision"],
            # Two forwards before a backward (real and generated images) fail if buffers are broadcast in between.
            kwargs_handlers=[accelerate.DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            keep_freed_memory()

        self.networks, self.optimizers = {}, {}
        for name, network in networks.items():
            network = network.to(self.device, memory_format=torch.channels_last).train()
            if self.accelerator.num_processes > 1 and self.device.type == "cuda":
                network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # statistics over the whole batch
            optimizer = torch.optim.Adam(
                network.parameters(), lr=self.config["learning_rate"], fused=self.device.type != "mps"
            )
            self.networks[name], self.optimizers[name] = self.accelerator.prepare(network, optimizer)
        self.generator = self.bare("generator")
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)

        self.loader = PatchLoader(
            dataset,
            self.config["batch_size"],
            device=self.device,
            num_workers=self.config["num_workers"],
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.total_steps = self.config["epochs"] * len(self.loader)
        self.epoch = self.step = 0
        self.seconds = 0.0  # spent training, over all sessions
        self.learning_rate_scale = 1.0  # halved by `retry`
        self.history = {"train": [], "valid": []}
        self._sums = {}  # of each loss since the last row, on the device: reading them there would make it wait
        self._first_bad_step = torch.tensor(-1, device=self.device)

    # --- what a stage is ---

    def training_step(self, lr, hr):
        """One update of the stage's networks by `self.update`; returns {name: scalar tensor} to be averaged into the history.

        lr: (N, 3, h, w), hr: (N, 3, 4h, 4w), float in [0, 1], on `self.device`.
        """
        raise NotImplementedError

    def update(self, name, loss):
        """One optimizer step of network `name` down the gradient of `loss`."""
        self.optimizers[name].zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.optimizers[name].step()

    def bare(self, name):
        """Network `name` without the wrapper of several processes."""
        return self.accelerator.unwrap_model(self.networks[name])

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
        """
        num_epochs = self.config["epochs"] if num_epochs is None else num_epochs
        with _deferred_signals() as stop:
            while self.epoch < num_epochs:
                self._train_epoch(stop, num_epochs, callback)
                self._validate()
                self.save()
                if callback and self.is_main:
                    callback(self)

    def _train_epoch(self, stop, num_epochs, callback):
        start = self.step - self.epoch * len(self.loader)
        saved = shown = clock = time.monotonic()
        bar = tqdm(
            self.loader.epoch(self.epoch, start),
            desc=f"epoch {self.epoch + 1}/{num_epochs}",
            initial=start,
            total=len(self.loader),
            unit="step",
            mininterval=2,
            file=sys.stdout,
            disable=not self.is_main,
        )
        for lr, hr in bar:
            self._step(lr, hr)
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            if self.step % self.config["log_every"] == 0 or self.step % len(self.loader) == 0:
                bar.set_postfix(self._log(), refresh=False)
                if callback and self.is_main and now - shown > 10:
                    callback(self)
                    shown = now
            stop_now, save_now = self._any_process(stop.requested, now - saved > 60 * self.config["checkpoint_minutes"])
            if stop_now:
                bar.close()
                self.save()
                if self.is_main:
                    print(
                        f"Stopped and saved at epoch {self.epoch + 1}, step {self.step}; run again to go on from here."
                    )
                raise stop.exception
            if save_now:
                self.save()
                saved = now
        self.epoch += 1

    def measure(self, steps=3):
        """Seconds per training step on this device: trains on the first batches, then puts everything back as it was."""
        tensors, facts = self._state()
        before = {name: value.clone() for name, value in tensors.items()}, copy.deepcopy(facts)
        times = []
        try:
            for lr, hr in itertools.islice(itertools.cycle(self.loader.epoch(self.epoch)), steps + 1):
                self._step(lr, hr)
                if self.device.type != "cpu":
                    torch.accelerator.synchronize()  # a GPU's steps are only queued by now
                times.append(time.monotonic())
        finally:
            self._load(*before)
            self._first_bad_step.fill_(-1)
        return (times[-1] - times[0]) / steps  # the first step, which also warms up, is where the clock starts

    def _step(self, lr, hr):
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(self.step)
        try:
            losses = self.training_step(lr, hr)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(self._out_of_memory(lr, hr)) from error
        self.step += 1
        self._average()
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double()
        # Remembered on the device and read with the next row: asking now would make a GPU wait at every step.
        finite = torch.stack([value.detach().float() for value in losses.values()]).isfinite().all()
        self._first_bad_step = torch.where(finite | (self._first_bad_step >= 0), self._first_bad_step, self.step)

    def learning_rate(self, step):
        """Of the update that follows `step` updates: a pure function, so that resuming cannot reset it."""
        config, progress = self.config, min(step / self.total_steps, 1)
        factor = {
            "constant": lambda: 1.0,
            "cosine": lambda: 0.5 * (1 + math.cos(math.pi * progress)),
            "tenth": lambda: 1.0 if progress < 0.5 else 0.1,
        }[config["schedule"]]()
        warmup = min(1.0, (step + 1) / (config["warmup_steps"] + 1))
        return config["learning_rate"] * self.learning_rate_scale * warmup * factor

    @torch.no_grad()
    def _average(self):
        # Early on a long average would still hold the initialisation; so it starts short and grows to ema_decay.
        decay = min(self.config["ema_decay"], (1 + self.step) / (10 + self.step))
        ours, theirs = list(self.ema.state_dict().values()), list(self.generator.state_dict().values())
        floats = [k for k, value in enumerate(ours) if value.is_floating_point()]  # weights and batch-norm statistics
        torch._foreach_lerp_([ours[k] for k in floats], [theirs[k] for k in floats], 1 - decay)

    def _log(self):
        """Close the interval: a row of means in the history and in log.jsonl. Returns it, short, for the progress bar."""
        self._check_finite()
        sums = self.accelerator.reduce(self._sums, reduction="mean")
        previous = self.history["train"][-1]["step"] if self.history["train"] else 0
        row = {"step": self.step, "epoch": self.step / len(self.loader), "seconds": round(self.seconds, 3)}
        row["learning_rate"] = self.learning_rate(self.step - 1)
        row.update({name: float(value) / (self.step - previous) for name, value in sums.items()})
        row.update(self.derived(row))
        self._sums = {}
        self._append("train", row)
        return {name: f"{row[name]:.4g}" for name in sums}

    def derived(self, row):
        """More columns of the history, computed from a row's means."""
        return {}

    def _validate(self):
        if self.valid_pairs is None or not self.is_main:
            return
        scores = mean(evaluate(self.upscale, self.valid_pairs, progress=False))
        row = {"step": self.step, "epoch": self.epoch, "psnr": scores["psnr"], "ssim": scores["ssim"]}
        self._append("valid", row)
        print(
            f"after epoch {self.epoch}: PSNR {row['psnr']:.3f} dB, SSIM {row['ssim']:.4f} on the validation images (Y)"
        )

    def upscale(self, lr):
        """The averaged generator on one whole image: uint8 (h, w, 3) -> uint8 (4h, 4w, 3)."""
        with torch.inference_mode():
            return to_array(self.ema(to_tensor(lr).to(self.device, memory_format=torch.channels_last)))

    def _append(self, kind, row):
        self.history[kind].append(row)
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, **row}) + "\n")

    # --- guards ---

    @property
    def is_main(self):
        """Whether this process is the one that writes and shows."""
        return self.accelerator.is_main_process

    def _any_process(self, *wishes):
        """Which of the wishes any process has: all must act on them at the same step, or they would wait for each other for ever."""
        if self.accelerator.num_processes == 1:
            return wishes
        if self.step % 10:  # asking costs a round trip
            return [False] * len(wishes)
        return (self.accelerator.reduce(torch.tensor(wishes, dtype=torch.float32, device=self.device)) > 0).tolist()

    def _check_finite(self):
        bad = int(self.accelerator.gather(self._first_bad_step.reshape(1)).max())
        if bad < 0:
            return
        epoch, batch = divmod(bad - 1, len(self.loader))
        good = self.states()
        raise TrainingDiverged(
            f"A loss is not finite at step {bad} (epoch {epoch + 1}, batch {batch + 1}). Nothing of it was saved. "
            + (f"The last good state is {good[-1]}: " if good else "There is no saved state yet: ")
            + "solver.retry() goes on from there with half the learning rate."
        )

    def retry(self):
        """After `TrainingDiverged`: back to the last good state (or to an error, if there is none), with half the learning rate."""
        scale = self.learning_rate_scale
        self._first_bad_step = torch.full_like(self._first_bad_step, -1)
        if not self.resume():
            raise FileNotFoundError(
                f"{self.folder} holds no state to go back to: build the solver anew with a smaller learning rate"
            )
        self.learning_rate_scale = min(scale, self.learning_rate_scale) / 2

    def _out_of_memory(self, lr, hr):
        """What to say: tries smaller batches. That spoils the networks, but the run has ended, and nothing more is saved."""
        size, processes = len(lr), self.accelerator.num_processes
        while processes == 1 and size > 1:
            size //= 2
            with contextlib.suppress(torch.OutOfMemoryError):
                self.training_step(lr[:size], hr[:size])
                return f"Out of memory with batch_size={self.config['batch_size']}; batch_size={size} fits."
        return f"Out of memory with batch_size={self.config['batch_size']}: take a smaller one, or a smaller crop_size."

    # --- states ---

    def states(self):
        """The saved states, oldest first."""
        return sorted(self.folder.glob("state-*.safetensors"))

    def save(self):
        """Write the state for resuming and the averaged generator for use; then drop the states that are no longer kept."""
        self._check_finite()
        if not self.is_main:
            return
        tensors, facts = self._state()
        data = safetensors.torch.save(tensors, {"facts": json.dumps(facts)})
        # The name carries a checksum of the content: safetensors has none, and a flipped bit must not pass for weights.
        path = self.folder / f"state-{self.step:09d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        older = self.states()
        try:
            with atomic_path(path) as part:
                part.write_bytes(data)
            save_generator(
                f"{self.folder}.safetensors", self.ema, stage=type(self).__name__, step=self.step, epoch=self.epoch,
                seconds=round(self.seconds), device=str(self.device), config=self.config, images=len(self.dataset.pairs),
            )  # fmt: skip
        except OSError as error:
            whole = f"the state before it is whole: {older[-1]}" if older else "there is no state before it"
            raise OSError(
                error.errno, f"The state of step {self.step} could not be written to {self.folder} ({error.strerror}); {whole}. "
                "Make room (or the folder writable) and run again."
            ) from error  # fmt: skip
        for position, old in enumerate(older):
            recent = position >= len(older) - (self.config["keep_last"] - 1)
            milestone = (
                self.config["keep_every"] and _step_of(old) % (self.config["keep_every"] * len(self.loader)) == 0
            )
            superseded = _step_of(old) == self.step or not (recent or milestone)
            if superseded and old != path:
                old.unlink(missing_ok=True)

    def resume(self, allow_changes=False):
        """Go on from the newest whole state in the folder. Returns whether there was one.

        Args:
            allow_changes: go on although settings or the training list are not those of the saved state.

        Raises:
            ValueError: they are not and it was not allowed, or the state is of another architecture, or no state is whole.
        """
        states = self.states()
        for path in reversed(states):
            try:
                tensors, facts = _read_state(path)
                break
            except ValueError as error:
                warnings.warn(f"{path} is damaged ({error}) and is skipped; the state before it is used", stacklevel=2)
        else:
            if states:
                raise ValueError(f"No state in {self.folder} is whole: move the folder away to start anew")
            return False
        self._compare(path, facts, allow_changes)
        try:
            self._load(tensors, facts)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} is the state of other networks ({error}): choose another folder, or those networks"
            ) from error
        if self.is_main:
            rows = [{"kind": kind, **row} for kind in self.history for row in self.history[kind]]
            with atomic_path(self.folder / "log.jsonl") as part:  # without the rows of steps that were lost
                part.write_text("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])))
            batch = self.step - self.epoch * len(self.loader)
            print(f"Going on from {path.name}: epoch {self.epoch + 1}, batch {batch + 1} of {len(self.loader)}.")
        return True

    def _compare(self, path, facts, allow_changes):
        now, then = self._identity(), facts["identity"]
        changed = [
            f"  {name}: {then.get(name, '-')} in the state, {now.get(name, '-')} now"
            for name in sorted({*now, *then} - BOOKKEEPING)
            if now.get(name) != then.get(name)
        ]
        if changed and not allow_changes:
            raise ValueError(
                f"{path} was trained with other settings:\n"
                + "\n".join(changed)
                + "\nSet them back, choose another folder, "
                "or go on all the same with resume(allow_changes=True)."
            )

    def _identity(self):
        """What must be the same for a run to go on as if it had never stopped."""
        data = self.dataset
        identity = {**self.config, "train_images": _fingerprint(data.pairs)}
        identity.update(crop_size=data.crop_size, patches_per_image=data.patches_per_image, seed=data.seed)
        return json.loads(json.dumps(identity))  # as it will be read back: tuples are lists there

    def _state(self):
        tensors, random_states = {}, _random_states()
        for name in self.networks:
            tensors.update({f"{name}.{key}": value for key, value in self.bare(name).state_dict().items()})
            for index, slots in self.optimizers[name].state_dict()["state"].items():
                tensors.update({f"{name}.adam.{index}.{slot}": value for slot, value in slots.items()})
        tensors.update({f"ema.{key}": value for key, value in self.ema.state_dict().items()})
        tensors.update({f"sums.{name}": value for name, value in self._sums.items()})
        tensors.update({f"random.{name}": value for name, value in random_states.items()})
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        facts = dict(
            epoch=self.epoch, step=self.step, seconds=self.seconds, learning_rate_scale=self.learning_rate_scale,
            history=self.history, identity=self._identity(), python_random=random.getstate(),
            scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            versions={"python": sys.version.split()[0], "torch": torch.__version__, "accelerate": accelerate.__version__},
        )  # fmt: skip
        return tensors, facts

    def _load(self, tensors, facts):
        def under(prefix):
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        for name in self.networks:
            weights = {key: value for key, value in under(f"{name}.").items() if not key.startswith("adam.")}
            self.bare(name).load_state_dict(weights)
            slots, parameters = {}, list(self.bare(name).parameters())
            for key, value in under(f"{name}.adam.").items():
                index, slot = key.split(".")
                if value.dim():  # in the parameter's memory format: fused Adam goes through both as they lie in memory
                    value = torch.empty_like(parameters[int(index)]).copy_(value)
                slots.setdefault(int(index), {})[slot] = value
            self.optimizers[name].load_state_dict({**self.optimizers[name].state_dict(), "state": slots})
        self.ema.load_state_dict(under("ema."))
        self._sums = {name: value.to(self.device) for name, value in under("sums.").items()}
        if self.accelerator.scaler and facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.step, self.seconds = facts["epoch"], facts["step"], facts["seconds"]
        self.learning_rate_scale, self.history = facts["learning_rate_scale"], facts["history"]
        _set_random_states(under("random."), facts["python_random"])


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
        content_weight: of the content loss, or None for one that fits the features' scale (`default_content_weight`).
        adversarial_weight: 1e-3 (paper, equation 3).
        vgg_weights: see `VGGFeatures`.
    """

    DEFAULTS = {
        **Solver.DEFAULTS,
        "content_loss": "vgg54",
        "content_weight": None,
        "adversarial_weight": 1e-3,
        "vgg_weights": None,
    }

    def __init__(self, generator, discriminator, dataset, config, folder, valid_pairs=None):
        super().__init__({"generator": generator, "discriminator": discriminator}, dataset, config, folder, valid_pairs)
        self.content_loss, source = content_loss(self.config["content_loss"], self.config["vgg_weights"], self.device)
        if self.config["content_weight"] is None:
            self.config["content_weight"] = default_content_weight(self.config["content_loss"], source)

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
        judge = self.bare("discriminator").requires_grad_(False)
        content = self.config["content_weight"] * self.content_loss(sr, hr)
        adversarial = self.config["adversarial_weight"] * bce(judge(sr), 1.0)  # -log D(G(LR)), paper, equation 6
        perceptual_loss = content + adversarial
        self.update("generator", perceptual_loss)
        judge.requires_grad_(True)

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


# --- the losses ------------------------------------------------------------------------------------------------------


def mse(sr, hr):
    """Mean squared error in the paper's range: images in [0, 1] differ by twice as much in [-1, 1]."""
    return 4 * F.mse_loss(sr, hr)


def bce(logits, target):
    """Binary cross-entropy of logits (N,) against one target for all: 1.0 real, 0.0 generated."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def content_loss(name, vgg_weights=None, device="cpu"):
    """A content loss by name, "mse" or "vgg<i><j>" (paper, equations 4 and 5), as (f(sr, hr) -> scalar, source of weights)."""
    if name == "mse":
        return mse, None
    if not (name.startswith("vgg") and name[3:].isdigit() and len(name) == 5):
        raise ValueError(f'content_loss is "mse" or "vgg" with i and j, such as "vgg54" or "vgg22"; not {name!r}')
    features = VGGFeatures(int(name[3]), int(name[4]), vgg_weights).to(device, memory_format=torch.channels_last)

    def vgg_loss(sr, hr):
        with torch.no_grad():
            wanted = features(hr)
        return F.mse_loss(features(sr), wanted)

    return vgg_loss, features.source


def default_content_weight(name, source):
    """The weight that brings content : adversarial to about 20 : 1 after pre-training.

    The paper's 1/12.75 (0.0061 for squared features, section 3.2) belongs to other VGG19 weights than torchvision's.
    """
    if name == "mse":
        return 1.0
    return 0.5 if source == "torchvision" else 0.015


# --- helpers ---------------------------------------------------------------------------------------------------------


def _fingerprint(pairs):
    """Tells one training set from another, wherever its folder lies: a hash of the images' names and sizes."""
    names = json.dumps([(pair.name, pair.width, pair.height) for pair in pairs])
    return f"{len(pairs)} images, {hashlib.sha256(names.encode()).hexdigest()[:16]}"


def _step_of(path):
    return int(path.name.split("-")[1])


def _read_state(path):
    """(tensors, facts) of a state file. Raises ValueError if it is not, to the bit, what was written."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != path.stem.split("-")[-1]:
        raise ValueError(f"{len(data)} bytes whose checksum is not the one in its name")
    length = int.from_bytes(data[:8], "little")  # the safetensors format: header length, JSON header, tensors
    return safetensors.torch.load(data), json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["facts"])


def _random_states():
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    _, keys, position, has_gauss, gauss = np.random.get_state()
    states["numpy"] = torch.from_numpy(np.array([*keys, position, has_gauss], dtype=np.int64))
    states["numpy_gauss"] = torch.tensor(gauss, dtype=torch.float64)
    return states


def _set_random_states(states, python_random):
    version, internal, gauss = python_random
    random.setstate((version, tuple(internal), gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, float(states["numpy_gauss"])))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class _Stop:
    requested, exception = False, None


@contextlib.contextmanager
def _deferred_signals():
    """Turns Ctrl-C and SIGTERM into a request that the loop honours after its step, so that no update is cut in two."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return

    def request(number, frame):
        if stop.requested:
            raise KeyboardInterrupt  # asked twice: now
        stop.requested = True
        stop.exception = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
