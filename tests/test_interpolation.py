"""Generators between two, and batch-norm statistics taken anew: against plain averages over the batches."""

import copy

import pytest
import torch
from test_solver import assert_same, images, make  # noqa: F401  (a fixture)
from torch import nn

import solver as solver_module
from datasets import PairDataset
from models import (
    SRResNet,
    interpolate,
    load_generator,
    rebuild_generator,
    reestimate_batch_norm,
    save_generator,
)
from tools.checkpoints import snapshots
from utils import to_array, to_tensor


def trained(seed, blocks=2, channels=8, **info):
    """A generator in eval mode whose batch norms have seen something."""
    torch.manual_seed(seed)
    generator = SRResNet(blocks, channels)
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    generator(torch.rand(3, 3, 8, 8))
    generator.info = info
    return generator.eval()


def some_batches(count=3, size=4):
    torch.manual_seed(9)
    return [torch.rand(size, 3, 12, 12) * (k + 1) / count for k in range(count)]


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- between two generators ---


@pytest.mark.parametrize("alpha", [0, 0.0, 1, 1.0])
def test_the_ends_are_the_two_generators_to_the_bit(alpha):
    a, b = trained(0), trained(1)
    assert equal(interpolate(a, b, alpha), b if alpha else a)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_every_weight_and_statistic_is_mixed(alpha):
    a, b = trained(0, step=1), trained(1, step=2)
    before = copy.deepcopy(a), copy.deepcopy(b)
    mixture = interpolate(a, b, alpha)
    for key, value in mixture.state_dict().items():
        if value.is_floating_point():
            expected = (1 - alpha) * a.state_dict()[key].double() + alpha * b.state_dict()[
                key
            ].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    assert not mixture.training
    assert mixture.info == {"alpha": alpha, "a": {"step": 1}, "b": {"step": 2}}
    with torch.no_grad():
        for p in mixture.parameters():
            p.fill_(7)
    assert equal(a, before[0]) and equal(b, before[1]), "they share memory with the mixture"


def test_other_architectures_and_other_alphas_are_refused():
    with pytest.raises(
        ValueError, match=r"'num_blocks': 2, 'num_channels': 8.*'num_blocks': 3, 'num_channels': 8"
    ):
        interpolate(trained(0), trained(0, blocks=3), 0.5)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha is 0"):
            interpolate(trained(0), trained(1), alpha)


def test_the_mixture_takes_its_own_statistics():
    a, b = trained(0), trained(1)
    mixture = interpolate(a, b, 0.5, some_batches())
    assert equal(mixture, reestimate_batch_norm(interpolate(a, b, 0.5), some_batches()))
    assert not torch.equal(
        mixture.after_blocks[1].running_mean, interpolate(a, b, 0.5).after_blocks[1].running_mean
    )


# --- statistics ---


def test_statistics_are_plain_averages_over_the_batches():
    generator, batches, inputs = trained(0), some_batches(), []
    norm = generator.blocks[1].body[4]
    hook = norm.register_forward_hook(
        lambda module, x, y: inputs.append(x[0].detach().transpose(0, 1).flatten(1))
    )
    assert reestimate_batch_norm(generator, iter(batches)) is generator
    hook.remove()
    assert len(inputs) == 3
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(1) for x in inputs]).mean(0))
    unbiased = torch.stack([x.var(1, correction=1) for x in inputs]).mean(0)
    torch.testing.assert_close(norm.running_var, unbiased, rtol=1e-4, atol=1e-8)


def test_with_one_batch_eval_mode_computes_what_train_mode_does():
    generator = trained(0)
    (lr,) = some_batches(1, size=32)
    as_trained = copy.deepcopy(generator).train()(lr)
    assert (generator(lr) - as_trained).abs().max() > 1e-2
    # What remains: running variances are unbiased, n / (n - 1) times the batch's, n being 32 x 12 x 12.
    torch.testing.assert_close(
        reestimate_batch_norm(generator, [lr])(lr), as_trained, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("training", [False, True])
def test_only_statistics_change(training):
    generator = trained(0).train(training)
    generator.blocks[0].eval()
    modes = [module.training for module in generator.modules()]
    before = copy.deepcopy(generator.state_dict())
    reestimate_batch_norm(generator, some_batches())
    assert [module.training for module in generator.modules()] == modes
    assert all(
        module.momentum == 0.1
        for module in generator.modules()
        if isinstance(module, nn.BatchNorm2d)
    )
    changed = {
        key for key, value in generator.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {
        key
        for key in before
        if key.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert all(p.grad is None for p in generator.parameters())


def test_without_batches_the_generator_stays_as_it_is():
    generator = trained(0)
    before = copy.deepcopy(generator)
    with pytest.raises(ValueError, match="no batches"):
        reestimate_batch_norm(generator, [])
    assert equal(generator, before)


def test_it_is_saved_and_loaded_as_usual(tmp_path):
    mixture = interpolate(trained(0), trained(1), 0.3, some_batches())
    save_generator(tmp_path / "mixture.safetensors", mixture, **mixture.info)
    again = load_generator(tmp_path / "mixture.safetensors")
    assert equal(again, mixture) and again.info == mixture.info


# --- in the solver ---


def test_a_gan_is_saved_with_statistics_of_its_own_weights(images, tmp_path):  # noqa: F811
    solver = make("gan", images, tmp_path / "run", valid=True, batch_norm_batches=3)
    solver.fit()
    patches = copy.copy(solver.dataset)
    patches.set_epoch(0)
    batches = [patches.__getitems__(range(4 * k, 4 * k + 4))[0] for k in range(3)]
    expected = reestimate_batch_norm(copy.deepcopy(solver.ema), batches)
    saved = load_generator(tmp_path / "run.safetensors")
    assert equal(saved, expected) and not equal(saved, solver.ema)
    lr = PairDataset(images)[0][1]
    assert (
        solver.upscale(lr) == to_array(saved(to_tensor(lr)))
    ).all()  # what is validated is what is saved


def test_what_is_trained_does_not_depend_on_it(images, tmp_path):  # noqa: F811
    """Nor on how often it was asked for; and every way to the same step gives the same generator."""
    never, often = (
        make("gan", images, tmp_path / name, batch_norm_batches=n)
        for name, n in (("never", 0), ("often", 2))
    )
    plan = []
    original = solver_module.GANSolver._average

    def asked(self):
        original(self)
        before = self.dataset.epoch
        if self is often:
            self.for_use()
        plan.append(self.dataset.epoch == before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver_module.GANSolver, "_average", asked)
        never.fit()
        often.fit()
    assert all(plan)
    assert_same(never, often)
    once = make("gan", images, tmp_path / "often", batch_norm_batches=2, seed=5)
    once.resume()
    assert equal(once.for_use(), often.for_use()) and equal(
        once.for_use(), load_generator(tmp_path / "often.safetensors")
    )


def test_a_stage_without_it_uses_the_plain_average(images, tmp_path):  # noqa: F811
    solver = make("pretrain", images, tmp_path / "run")
    assert solver.for_use() is solver.ema


# --- several checkpoints ---


def test_snapshots_are_the_averages_in_the_states(images, tmp_path):  # noqa: F811
    solver = make("gan", images, tmp_path / "run", keep_every=1, keep_last=1)
    kept = []
    solver.fit(callback=lambda solver: kept.append((solver.step, copy.deepcopy(solver.ema))))
    (tmp_path / "run" / f"state-000000099-{'0' * 16}.safetensors").write_bytes(
        b"of a disk that was full"
    )
    with pytest.warns(UserWarning, match="state-000000099.*is left out"):
        found = snapshots(tmp_path / "run")
    assert [step for step, _ in found] == [step for step, _ in kept] == [4, 8, 12]
    for (_, generator), (_, averaged) in zip(found, kept, strict=True):
        assert equal(generator, averaged) and not generator.training
    assert snapshots(tmp_path / "none") == []


def test_a_generator_is_rebuilt_from_its_weights_alone():
    generator = trained(0, blocks=3, channels=5)
    again = rebuild_generator(generator.state_dict())
    assert (again.num_blocks, again.num_channels) == (3, 5) and equal(again, generator)
