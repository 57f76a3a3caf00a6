"""One training loop for every stage, the two stages, and the command line.

`Solver` owns the loop and what must survive a stop. A stage is a subclass with a `training_step`:
`PretrainSolver` (SRResNet, mean squared error) and `GANSolver` (SRGAN, discriminator and generator
in turn). `build_solver` puts a stage together from the settings. One process per GPU:

    accelerate launch --multi_gpu solver.py afternoon    (a preset, or a settings.json)
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

import presets
from datasets import PairDataset, PatchDataset, PatchLoader
from losses import bce, grid_loss, lr_consistency_loss, make_content_loss, make_texture_loss, mse
from metrics import SMALLEST, evaluate, mean
from models import Discriminator, SRResNet, interpolate, load_generator
from super_resolve import super_resolve
from tools import checkpoints  # the log
from tools.acceleration import (
    GraphedStep,
    MixedPrecision,
    can_compile,
    is_out_of_memory,
    keep_freed_memory,
    speed_up,
)
from tools.diagnostics import diagnose
from tools.distributed import STOPPED, Processes, deferred_signals
from tools.muon import Muon
from tools.resumable import Resumable  # what must survive a stop
from utils import atomic_path, pick_device, progress_bar, seed_everything

Losses = dict[str, Tensor]
Callback = Callable[["Solver"], None]
ValidPairs = list[tuple[str, np.ndarray, np.ndarray]]  # (name, lr, hr) of whole images, uint8

SCHEDULES = {  # factor of the learning rate where a part (0 to 1) of the training is done
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "tenth": lambda done: 1.0 if done < 0.5 else 0.1,
}
ALPHAS = (0, 0.25, 0.5, 0.75, 1)  # from the first of two generators to the second


class Solver(Resumable):
    """Trains networks on patches; keeps a running average of the generator, and everything saved.

    What is saved when: a checkpoint, from which training resumes to the bit, before the first step,
    every `checkpoint_minutes`, at a stop and after each epoch; with it, from the first step on, the
    inference generator, as <folder>.safetensors; every row of the history, in <folder>/log.jsonl.

    Args:
        networks: {name: module}; "generator" is the one that is averaged, validated and saved.
        dataset: where the patches come from.
        settings: of this stage, see `presets.STAGE`. A wrong one raises ValueError.
        folder: for checkpoints and the log, such as checkpoints/laptop/srresnet.
        valid_pairs: validated after each epoch; [] for none.

    Attributes:
        epoch, batch: finished epochs, and finished batches of the present one.
        step: generator updates. warmup_step: updates of the discriminator alone, before them.
        generator, ema: the trained network, and its running average in eval mode.
        history: {"train": rows, "valid": rows, "warmup": rows}, each row a dict with its step.
            Losses are raw.
        seconds: of training, over all starts.
    """

    DEFAULTS = presets.STAGE

    def __init__(
        self, networks: dict[str, nn.Module], dataset: PatchDataset, settings: dict[str, Any],
        folder: str | Path, valid_pairs: ValidPairs = (),
    ):  # fmt: skip
        self.settings = presets.check(settings, self.DEFAULTS, type(self).__name__)
        self.dataset, self.folder, self.valid_pairs = dataset, Path(folder), valid_pairs
        self.processes = Processes()
        self.device, self.is_main = self.processes.device, self.processes.is_main
        self.precision = MixedPrecision(self.settings["mixed_precision"], self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.loader = PatchLoader(
            dataset, self.settings["batch_size"], device=self.device, rank=self.processes.rank,
            world_size=self.processes.count,
        )  # fmt: skip
        self.processes.require_same(self.identity)
        self.prepare(networks)

        # Networks, optimizers, average
        self.ema = copy.deepcopy(networks["generator"]).eval().requires_grad_(False)
        self.ema = speed_up(self.ema, self.device)
        self.networks, self.unwrapped, self.optimizers = {}, {}, {}
        self.graphed = self.settings["compile"] and self.can_graph()
        compiles = self.settings["compile"] and not self.graphed and can_compile(self.device)
        for name, network in networks.items():
            network = speed_up(network, self.device).train()
            self.optimizers[name] = self.make_optimizer(network)
            # A CPU spends more on a compiled discriminator: each forward casts its weights anew.
            if compiles and (name == "generator" or self.device.type != "cpu"):
                # Kernels for any batch size would round differently in a resumed run.
                network.compile(dynamic=False)
            self.networks[name], self.unwrapped[name] = self.processes.wrap(network), network
        self.generator = self.unwrapped["generator"]
        self.averaged = [
            [value for value in network.state_dict().values() if value.is_floating_point()]
            for network in (self.ema, self.generator)
        ]
        self.step_once = self.graph(lambda lr, hr: self.training_step(lr, hr))

        # Progress
        self.epoch = self.batch = self.step = self.warmup_step = 0
        self.seconds, self.clock, self.saved = 0.0, 0.0, time.monotonic()
        self.history: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "warmup": []}
        self.sums: Losses = {}  # of the losses since the last row, on the device
        self.first_bad_step = torch.tensor(-1, device=self.device)
        self.last_checkpoint: Path | None = None
        self.own_files: set[Path] = set()  # the checkpoints that this training wrote or resumed
        self.inference: tuple[int, SRResNet] | None = None  # (step, generator)
        self.told: set[str] = set()  # diagnostics, once each
        self.callback: Callback | None = None

    def make_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        rate, fused = self.settings["learning_rate"], self.device.type != "mps"
        if self.settings["optimizer"] == "muon":
            return Muon(network, lr=rate, fused=fused)
        if self.graphed:  # a graph reads the rate from the GPU's memory
            rate = torch.tensor(rate, device=self.device)
        adam = torch.optim.Adam(network.parameters(), lr=rate, fused=fused, capturable=self.graphed)
        adam._warned_capturable_if_run_uncaptured = True  # some steps run without the graph
        return adam

    def can_graph(self) -> bool:
        """Whether `GraphedStep` applies: one NVIDIA GPU, and nothing read from it in a step."""
        reads = self.settings["optimizer"] != "adam" or self.precision.scaler.is_enabled()
        return self.device.type == "cuda" and self.processes.count == 1 and not reads

    def graph(self, step: Callable[[Tensor, Tensor], Losses]) -> Callable:
        """`step`, launched at once where that is possible."""
        return GraphedStep(step) if self.graphed else step

    # --- what a stage is ---

    def prepare(self, networks: dict[str, nn.Module]) -> None:
        """What the stage needs besides its networks; called before anything else is built."""

    def training_step(self, lr: Tensor, hr: Tensor) -> Losses:
        """Update the stage's networks by `self.update`; returns scalars for the history.

        lr and hr are this process's part of a batch, (N, 3, h, w) and (N, 3, 4h, 4w) in [0, 1].
        """
        raise NotImplementedError

    def warm_up(self, stop: Any) -> None:
        """What the stage trains before the generator's first step; nothing by default."""

    def update(self, name: str, loss: Tensor) -> None:
        """One optimizer step of network `name` on the gradient of `loss`."""
        self.precision.update(self.optimizers[name], loss)

    # --- the loop ---

    def fit(self, num_epochs: int | None = None, callback: Callback | None = None) -> None:
        """Train until `num_epochs` epochs are done; by default the setting `epochs`.

        `callback` is called with the solver before the first step, also if none is left to do,
        after each row of the history and after each epoch. Ctrl-C, the notebook's stop button,
        SIGTERM and a lost terminal save and stop. A resumed run goes on within the epoch.

        Raises:
            TrainingDiverged: a loss is not finite. No checkpoint contains it.
            torch.OutOfMemoryError: the batch is too large.
            OSError: a checkpoint could not be written; the one before is valid.
            FileExistsError: the folder holds another run's checkpoints.
            BlockingIOError: another process trains in the folder.
        """
        num_epochs = self.settings["epochs"] if num_epochs is None else num_epochs
        self.callback = callback
        with self.locked():
            self.begin()
            self.train_until(num_epochs)

    def train_until(self, num_epochs: int) -> None:
        """The loop over epochs and batches."""
        with deferred_signals() as stop:
            if self.step == 0:
                self.warm_up(stop)
            steps = len(self.loader)
            done = self.epoch * steps + self.batch
            with self.bar(num_epochs * steps, done, self.folder.name) as bar:
                while self.epoch < num_epochs:
                    title = f"{self.folder.name}: epoch {self.epoch + 1}/{num_epochs}"
                    bar.set_description(title, refresh=False)
                    self.clock = time.monotonic()
                    for lr, hr in self.loader.epoch(self.epoch, start=self.batch):
                        self.set_learning_rate()
                        losses = self.guarded_step(lr, hr, self.step_once)
                        self.update_ema()
                        self.record(losses)
                        self.save_or_stop(stop, bar)
                    self.epoch, self.batch = self.epoch + 1, 0
                    self.save()  # before validation, which may fail
                    self.validate()
                    self.show()

    def save_or_stop(self, stop: Any, bar: tqdm) -> None:
        """After a step: save and stop where that is due."""
        save_now, stop_now = self.requests(stop.exception is not None)
        if save_now:
            self.save()
        bar.update()  # after saving: it fails where the terminal is lost
        if stop_now:
            bar.close()
            if isinstance(stop.exception, SystemExit):  # which shows no text
                self.say(STOPPED)
            raise stop.exception or KeyboardInterrupt(STOPPED)

    def begin(self) -> None:
        """Write the first checkpoint, or make up for what a killed run left undone."""
        if self.last_checkpoint is None:
            self.save()  # fail early if the folder is not writable
        elif self.is_main:
            with checkpoints.explained(self.folder, self.last_checkpoint):
                checkpoints.rewrite_log(self.folder, self.history)
        self.show()  # before anything is printed: a notebook keeps what it shows in this order
        if self.batch == 0 and self.validate():
            self.show()

    def set_learning_rate(self) -> None:
        """Set the rate of this step: a function of the step alone, so that resuming keeps it."""
        settings, step = self.settings, self.epoch * len(self.loader) + self.batch
        done = min(step / (settings["epochs"] * len(self.loader)), 1)
        warmup = min((step + 1) / (settings["warmup_steps"] + 1), 1)
        self.rate = settings["learning_rate"] * warmup * SCHEDULES[settings["schedule"]](done)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                if self.graphed:
                    group["lr"].fill_(self.rate)
                else:
                    group["lr"] = self.rate

    def guarded_step(self, lr: Tensor, hr: Tensor, step: Callable) -> Losses:
        """`step` in the chosen precision, with a way out where memory ends."""
        try:
            with self.precision.autocast():
                return step(lr, hr)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise torch.OutOfMemoryError(
                f"out of memory with batch_size={self.settings['batch_size']}: halve it "
                f"(or crop_size). {self.last_checkpoint} is valid"
            ) from error

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the average, weights and batch-norm statistics, towards the generator."""
        # Early on a long average would hold the initialisation: it starts short.
        decay = min(self.settings["ema_decay"], (2 + self.step) / (11 + self.step))
        torch._foreach_lerp_(*self.averaged, 1 - decay)

    def record(self, losses: Losses) -> None:
        """Count the step and add its losses; every `log_every` steps, a row of means."""
        self.step, self.batch = self.step + 1, self.batch + 1
        self.add(losses)
        if self.step % self.settings["log_every"] == 0 or self.batch == len(self.loader):
            before = self.history["train"][-1]["step"] if self.history["train"] else 0
            row = self.means(self.step - before)
            epoch, seconds = self.epoch + self.batch / len(self.loader), round(self.seconds, 3)
            self.log("train", epoch=epoch, seconds=seconds, learning_rate=self.rate, **row)
            for cause, message in diagnose(self.history["train"]).items():
                if cause not in self.told:
                    self.told.add(cause)
                    self.say(f"warning: {message}")
            self.show()

    def add(self, losses: Losses) -> None:
        """Add a step's losses to the sums, and its time."""
        values = {name: value.detach().float() for name, value in losses.items()}
        self.sums = {name: self.sums.get(name, 0) + value for name, value in values.items()}
        # Noted on the device and read with the next row: reading it here would synchronise a GPU.
        good = torch.stack(list(values.values())).isfinite().all() | (self.first_bad_step >= 0)
        self.first_bad_step = torch.where(good, self.first_bad_step, self.step)
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def means(self, count: int) -> dict[str, float]:
        """The means of the losses of the last `count` steps; the sums start again."""
        sums = self.processes.mean(self.sums)
        # One transfer for all of them: the only time that the program waits for a GPU.
        values = torch.stack(list(sums.values())).tolist()
        if not all(map(math.isfinite, values)):
            self.check_finite()
        self.sums = {}
        return {name: value / count for name, value in zip(sums, values, strict=True)}

    def log(self, kind: str, **row: float) -> None:
        """Add a row to the history and to the log."""
        self.history[kind].append({"step": self.step, **row})
        if self.is_main:
            with checkpoints.explained(self.folder, self.last_checkpoint):
                checkpoints.log_row(self.folder, kind, self.history[kind][-1])

    def requests(self, stop: bool) -> list[bool]:
        """[save now?, stop now?], the same on all processes."""
        stop = stop or self.processes.launcher_is_gone()
        due = time.monotonic() - self.saved > 60 * self.settings["checkpoint_minutes"]
        return self.processes.any(stop or due, stop)

    def bar(self, total: int, done: int, title: str) -> tqdm:
        """A bar over steps, with the time left; none where nothing is left to do."""
        return progress_bar(
            desc=title, total=total, initial=done, unit="step", mininterval=2,
            disable=not self.is_main or done >= total,
        )  # fmt: skip

    def say(self, text: str) -> None:
        """Print a line once, not in each process, above the bar if there is one."""
        if self.is_main:
            tqdm.write(text)

    def show(self) -> None:
        if self.callback and self.is_main:
            self.callback(self)

    # --- after an epoch ---

    def inference_generator(self) -> SRResNet:
        """The averaged generator in eval mode: what is validated, shown and saved for use.

        With `batch_norm_batches` its batch-norm statistics come from the first patches of epoch 0:
        averaged ones are not those of averaged weights, which an SRGAN shows as coloured blobs.
        """
        count = self.settings["batch_norm_batches"]
        if not count or not self.step:
            return self.ema
        if self.inference is None or self.inference[0] != self.step:
            generator = copy.deepcopy(self.ema)
            update_bn(islice(self.loader.epoch(0), count), generator)
            self.inference = self.step, generator
        return self.inference[1]

    def upscale(self, lr: np.ndarray) -> np.ndarray:
        """The inference generator's SR of one image: uint8 (h, w, 3) -> uint8 (4h, 4w, 3)."""
        return super_resolve(self.inference_generator(), lr, progress=False)

    def validate(self) -> bool:
        """Log PSNR and SSIM of the validation images; False if this step has its row already."""
        last = self.history["valid"][-1]["step"] if self.history["valid"] else 0
        if not self.is_main or not self.valid_pairs or self.step == last:
            return False
        scores = mean(evaluate(self.upscale, self.valid_pairs, progress=False))
        self.log("valid", epoch=self.epoch, psnr=scores["psnr"], ssim=scores["ssim"])
        psnr, ssim = f"PSNR {scores['psnr']:.3f} dB", f"SSIM {scores['ssim']:.4f}"
        self.say(f"after epoch {self.epoch}: {psnr}, {ssim} on the validation images (Y)")
        return True


class PretrainSolver(Solver):
    """SRResNet: the generator alone, by mean squared error (equation 4)."""

    def training_step(self, lr: Tensor, hr: Tensor) -> Losses:
        content_loss = mse(self.networks["generator"](lr), hr)
        self.update("generator", content_loss)
        return {"content_loss": content_loss}


class GANSolver(Solver):
    """SRGAN: discriminator and generator in turn. More settings: `presets.ADVERSARIAL`."""

    DEFAULTS = {**presets.STAGE, **presets.ADVERSARIAL}

    def prepare(self, networks: dict[str, nn.Module]) -> None:
        for name in self.settings["frozen_layers"]:
            if name not in dict(networks["generator"].named_modules()):
                raise ValueError(f"frozen_layers: the generator has no module {name!r}")
            networks["generator"].get_submodule(name).requires_grad_(False)
        names = ("content_loss", "vgg_pooling", "vgg_weights")
        vgg = [self.settings[name] for name in names]
        self.content_loss = make_content_loss(*vgg, self.device)
        if self.settings["texture_weight"]:
            self.texture_loss = make_texture_loss(*vgg, self.device)

    def training_step(self, lr: Tensor, hr: Tensor) -> Losses:
        settings, sr = self.settings, self.networks["generator"](lr)

        # `detach`, so that the generator gets no gradient from the discriminator's loss.
        discriminator_losses = self.discriminator_step(sr.detach(), hr)

        # Generator: fool the discriminator, keep the content. The discriminator has changed, so it
        # runs again. Its own weights need no gradient here, nor the exchange between processes.
        discriminator = self.unwrapped["discriminator"].requires_grad_(False)
        adversarial_loss = bce(discriminator(sr), 1.0)  # -log D(G(LR)), equation 6
        discriminator.requires_grad_(True)
        content_loss = self.content_loss(sr, hr)  # equation 4 or 5
        content = settings["content_weight"] * content_loss
        adversarial = settings["adversarial_weight"] * adversarial_loss
        perceptual_loss = content + adversarial  # equation 3
        added = {}
        if settings["grid_weight"]:
            added["grid_loss"] = grid_loss(sr, hr)
        if settings["lr_consistency_weight"]:
            added["lr_consistency_loss"] = lr_consistency_loss(sr, lr)
        if settings["texture_weight"]:
            added["texture_loss"] = self.texture_loss(sr, hr)
        weights = {name: settings[name.replace("_loss", "_weight")] for name in added}
        total = sum((weights[name] * loss for name, loss in added.items()), perceptual_loss)
        self.update("generator", total)

        return {
            "perceptual_loss": perceptual_loss,
            "content_loss": content_loss,
            "adversarial_loss": adversarial_loss,
            **added,
            **discriminator_losses,
            "content_to_adversarial": content.detach() / adversarial.detach().clamp_min(1e-12),
        }

    def discriminator_step(self, sr: Tensor, hr: Tensor) -> Losses:
        """Teach the discriminator that real images are real and generated ones are not."""
        discriminator = self.networks["discriminator"]
        # Two forwards, so that batch norm takes the statistics of each kind.
        real, generated = discriminator(hr), discriminator(sr)
        discriminator_loss = bce(real, 1.0) + bce(generated, 0.0)
        self.update("discriminator", discriminator_loss)
        return {
            "discriminator_loss": discriminator_loss,
            "d_real": real.sigmoid().mean(),  # D(HR)
            "d_generated": generated.sigmoid().mean(),  # D(G(LR))
        }

    def warm_up(self, stop: Any) -> None:
        """Train the discriminator alone for `discriminator_warmup_steps`; the generator stays."""
        total, rows = self.settings["discriminator_warmup_steps"], self.history["warmup"]
        step = self.graph(self.warm_up_step)
        batches = chain.from_iterable(map(self.loader.epoch, count()))
        self.clock = time.monotonic()
        with self.bar(total, self.warmup_step, f"{self.folder.name}: discriminator alone") as bar:
            for lr, hr in islice(batches, self.warmup_step, total):
                losses = self.guarded_step(lr, hr, step)
                self.warmup_step += 1
                self.add(losses)
                if self.warmup_step % self.settings["log_every"] == 0 or self.warmup_step == total:
                    before = rows[-1]["warmup_step"] if rows else 0
                    row = self.means(self.warmup_step - before)
                    self.log("warmup", warmup_step=self.warmup_step, **row)
                self.save_or_stop(stop, bar)
                if self.warmup_step == total:
                    self.save()

    def warm_up_step(self, lr: Tensor, hr: Tensor) -> Losses:
        """`discriminator_step` on what the generator makes before its own first step."""
        with torch.no_grad():
            sr = self.ema(lr)  # equal to the generator, whose statistics would move with use
        return self.discriminator_step(sr, hr)


def build_solver(
    settings: dict[str, Any], stage: str, valid_pairs: ValidPairs = (), allow_changes: bool = False
) -> Solver:
    """A stage of a run, resumed where it stopped: `build_solver(...).fit()` trains it to its end.

    settings: of the run, see `presets.get_settings`; they are written to <folder>/settings.json.
    stage: one of settings["stages"]; the one it starts from must be trained. Raises ValueError for
    wrong settings, FileNotFoundError without lists or weights, and what `Solver.resume` raises.
    """
    run = presets.check_settings(settings)
    if stage not in run["stages"]:
        raise ValueError(f"there is no stage {stage!r}; there are {', '.join(run['stages'])}")
    config, folder = run["stages"][stage], Path(run["folder"])
    seed_everything(run["seed"])
    dataset = PatchDataset(
        run["train_list"], crop_size=config["crop_size"], seed=run["seed"],
        patches_per_image=config["patches_per_image"],
    )  # fmt: skip
    try:
        if stage == "srresnet":
            networks, kind = {"generator": SRResNet(**run["generator"])}, PretrainSolver
        else:
            if config["start"]:
                generator = load_generator(folder / f"{config['start']}.safetensors")
            else:
                generator = SRResNet(**{**run["generator"], "init": "default"})
            discriminator = Discriminator(**run["discriminator"])
            networks, kind = {"generator": generator, "discriminator": discriminator}, GANSolver
    except TypeError as error:  # an unknown name, or a value of another type
        raise ValueError(f"the settings generator and discriminator: {error}") from error
    solver = kind(networks, dataset, config, folder / stage, valid_pairs)
    solver.resume(allow_changes)
    if solver.is_main:
        with atomic_path(folder / "settings.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return solver


def validation_pairs(settings: dict[str, Any]) -> ValidPairs:
    """The first `num_valid_images` of the validation list; ValueError if one cannot be scored."""
    pairs = list(islice(PairDataset(settings["valid_list"]), settings["num_valid_images"]))
    for name, _, hr in pairs:
        if min(hr.shape[:2]) < SMALLEST:
            raise ValueError(
                f"{name}: {hr.shape[1]} x {hr.shape[0]} pixels are too few to score, {SMALLEST} a "
                f"side are needed; leave it out of {settings['valid_list']}"
            )
    return pairs


def load_generators(settings: dict[str, Any]) -> dict[str, SRResNet]:
    """{method: inference generator} of the trained stages; prints which are not trained."""
    generators = {}
    for stage in settings["stages"]:
        method = presets.METHODS.get(stage, stage)
        path = Path(settings["folder"], f"{stage}.safetensors")
        if path.is_file():
            generators[method] = load_generator(path, pick_device())
        else:
            print(f"{method}: {path.as_posix()} is not there; train.ipynb makes it")
    return generators


def generators_between(
    first: SRResNet, second: SRResNet, dataset: PatchDataset, alphas: Sequence[float] = ALPHAS
) -> dict[str, SRResNet]:
    """{"alpha 0.5": generator}: weighted means of two generators' weights, see `interpolate`.

    second must have been trained from first: SRResNet and SRGAN. Those between the two get their
    batch-norm statistics from the first 256 patches of the dataset.
    """
    loader = PatchLoader(dataset, 16, device=next(first.parameters()).device)
    batches = list(islice(loader.epoch(0), 16))
    family = {}
    for alpha in alphas:
        generator = family[f"alpha {alpha:g}"] = interpolate(first, second, alpha)
        if 0 < alpha < 1:
            update_bn(batches, generator)
    return family


def train(settings: dict[str, Any], allow_changes: bool = False) -> None:
    """All stages of a run, one after the other, in each process that a launcher started."""
    run, count = presets.check_settings(settings), Processes().count
    for stage, values in run["stages"].items():  # now, not when the stages before are done
        if values["batch_size"] % count:
            raise ValueError(f"{stage}: {count} processes need a batch_size that {count} divides")
    valid_pairs = validation_pairs(run)
    for stage in run["stages"]:
        build_solver(settings, stage, valid_pairs, allow_changes).fit()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train all stages of a preset.")
    parser.add_argument("settings", help="a preset, or a file such as checkpoints/x/settings.json")
    parser.add_argument("--allow-changes", action="store_true", help="resume with other settings")
    arguments = parser.parse_args()
    try:
        train(presets.read_settings(arguments.settings), arguments.allow_changes)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        accelerate.PartialState().print(str(stopped) or "stopped")
        sys.exit(130)
    finally:
        accelerate.PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
