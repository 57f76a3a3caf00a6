"""Tiny trainings for the tests: networks of a few channels, four batches an epoch, on the CPU."""

import json
import os

os.environ["ACCELERATE_USE_CPU"] = "true"  # before the first solver, on every machine

import torch

import presets
from datasets import PairDataset, PatchDataset
from models import Discriminator, SRResNet
from solver import GANSolver, PretrainSolver
from tools import checkpoints
from utils import seed_everything

KINDS = {"pretrain": PretrainSolver, "gan": GANSolver}
STAGES = list(KINDS)
SETTINGS = dict(batch_size=4, epochs=3, learning_rate=1e-3, log_every=3, schedule="cosine")


def make(
    stage, images, folder, *, kind=None, generator=None, seed=0, blocks=1, patches=4, valid=False,
    crop=16, **settings,
):  # fmt: skip
    """A new solver, as a notebook's cell builds it each time it is run.

    Args:
        stage: "pretrain" or "gan". images: a list of images.
        kind: a subclass to use in place of the stage's own. generator: in place of a new SRResNet.
        patches: of each image; four images give as many batches an epoch. crop: HR pixels of one.
        settings: of the stage.
    """
    dataset = PatchDataset(
        images, crop_size=crop, patches_per_image=patches, cache=images.parent / "cache"
    )
    seed_everything(seed)
    networks = {"generator": generator or SRResNet(blocks, 4)}
    if stage == "gan":
        networks["discriminator"] = Discriminator(2)
        settings = {"content_loss": "mse", **settings}
    pairs = [PairDataset(images)[0]] if valid else []
    return (kind or KINDS[stage])(networks, dataset, {**SETTINGS, **settings}, folder, pairs)


def run_settings(images, **changes):
    """Settings of a run of three stages, two epochs of two batches each, as `presets` has them."""
    stage = dict(epochs=2, patches_per_image=2, crop_size=32, batch_size=4, log_every=1)
    gan = dict(stage, content_loss="mse", content_weight=1.0)
    run = dict(
        folder="checkpoints/tiny",
        train_list=str(images),
        valid_list=str(images),
        num_valid_images=1,
        generator=dict(num_blocks=1, num_channels=4, init="interpolator"),
        discriminator=dict(num_channels=2),
        stages=dict(srresnet=stage, srgan=gan, base=dict(gan, start="")),
    )
    return {**run, **changes}


def a_batch(images, count=4):
    """(lr, hr): the first patches of an epoch, (count, 3, 4, 4) and (count, 3, 16, 16)."""
    dataset = PatchDataset(images, crop_size=16, patches_per_image=4, cache=images.parent / "cache")
    lr, hr = zip(*[dataset[i] for i in range(count)], strict=True)
    return torch.stack(lr), torch.stack(hr)


def last_checkpoint(folder):
    """({name: tensor}, facts with the history) of the latest checkpoint, without clock times."""
    _, tensors, facts = checkpoints.read_latest(folder)
    facts["history"] = json.loads(tensors.pop("history").numpy().tobytes())
    for row in (facts, *facts["history"]["train"]):
        del row["seconds"]
    return tensors, facts


def assert_same(folder, other):
    """Both folders' latest checkpoints are equal to the bit, clock times excepted."""
    (tensors, facts), (other_tensors, other_facts) = last_checkpoint(folder), last_checkpoint(other)
    assert tensors.keys() == other_tensors.keys()
    assert not [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])]
    for name in presets.BOOKKEEPING:
        del facts["identity"][name], other_facts["identity"][name]
    assert facts == other_facts


def at_step(solver, number, action):
    """Call action(losses) after the `number`-th step from now; it may return other losses."""
    training_step, count = solver.training_step, 0

    def observed(lr, hr):
        nonlocal count
        losses = training_step(lr, hr)
        count += 1
        return (count == number and action(losses)) or losses

    solver.training_step = observed
