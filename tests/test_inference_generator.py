"""The inference weights of a solver: the average, with batch-norm statistics of its own."""

import copy
from itertools import islice

import torch
from conftest import trained_generator
from torch.optim.swa_utils import update_bn
from training import assert_same, make

from datasets import PairDataset, PatchDataset, PatchLoader
from models import interpolate, load_generator
from solver import generators_between
from utils import to_array, to_tensor


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_a_gan_is_saved_with_statistics_of_the_averaged_weights(images, tmp_path):
    solver = make("gan", images, tmp_path / "run", batch_norm_batches=3)
    solver.fit()
    expected = copy.deepcopy(solver.ema)
    update_bn(islice(solver.loader.epoch(0), 3), expected)
    saved = load_generator(tmp_path / "run.safetensors")
    assert same(saved, expected) and not same(saved, solver.ema)
    _, lr, _ = PairDataset(images)[0]
    sr = to_array(saved(to_tensor(lr)))
    assert abs(solver.upscale(lr).astype(int) - sr).max() <= 1  # what is validated is what is saved


def test_what_is_trained_does_not_depend_on_how_often_it_is_asked_for(images, tmp_path):
    never = make("gan", images, tmp_path / "never", batch_norm_batches=0)
    often = make("gan", images, tmp_path / "often", batch_norm_batches=2)
    update_ema, asked = often.update_ema, []

    def update_and_ask():
        update_ema()
        asked.append(often.inference_generator())

    often.update_ema = update_and_ask
    never.fit()
    often.fit()
    assert len(asked) == often.step > 0
    assert_same(tmp_path / "never", tmp_path / "often")


def test_a_resumed_solver_has_the_same_inference_weights(images, tmp_path):
    solver = make("gan", images, tmp_path / "run", batch_norm_batches=2)
    solver.fit()
    again = make("gan", images, tmp_path / "run", batch_norm_batches=2)
    again.resume()
    saved = load_generator(tmp_path / "run.safetensors")
    assert same(again.inference_generator(), saved) and same(solver.inference_generator(), saved)


def test_a_stage_without_batches_for_it_uses_the_plain_average(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", epochs=1)
    solver.fit()
    assert solver.inference_generator() is solver.ema
    assert same(load_generator(tmp_path / "run.safetensors"), solver.ema)


def test_generators_between_two_have_mean_weights_and_statistics_of_their_own_features(images):
    first, second = trained_generator(seed=0), trained_generator(seed=1)
    dataset = PatchDataset(images, crop_size=16, patches_per_image=2, cache=images.parent / "cache")
    family = generators_between(first, second, dataset, (0, 0.5, 1))
    assert list(family) == ["alpha 0", "alpha 0.5", "alpha 1"]
    assert same(family["alpha 0"], first) and same(family["alpha 1"], second)
    middle, mixture = family["alpha 0.5"], interpolate(first, second, 0.5)
    for mean, a, b in zip(
        middle.parameters(), first.parameters(), second.parameters(), strict=True
    ):
        assert torch.allclose(mean, (a + b) / 2)
    lr = next(PatchLoader(dataset, 16).epoch(0))[0]
    with torch.no_grad():
        convolution, norm = middle.blocks[0].body[:2]
        values = convolution(middle.head(lr))
    assert torch.allclose(norm.running_mean, values.mean((0, 2, 3)), atol=1e-5)
    assert not same(middle, mixture) and not middle.training
