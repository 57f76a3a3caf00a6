"""The losses against their formulas, one by one: what they are, whom they move, how they are weighed, what they tell."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from test_solver import a_batch, images, make  # noqa: F401  (a fixture)

import losses
from models import SRResNet

REAL_WEIGHTS = Path(__file__).parents[2] / "shared" / "weights" / "vgg19_conv1_1_to_conv3_1.pth"
REAL = pytest.mark.skipif(not REAL_WEIGHTS.is_file(), reason="VGG19's layers are not there")


def two_images(size=16):
    return torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_mse_is_in_the_papers_range():
    sr, hr = two_images()
    assert losses.mse(sr, hr).item() == pytest.approx(
        (((2 * sr - 1) - (2 * hr - 1)) ** 2).mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_bce_is_the_formula(target):
    logits = torch.tensor([-3.0, 0.0, 2.0])
    p = torch.sigmoid(logits.double())
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert losses.bce(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_bce_does_not_overflow():
    assert losses.bce(torch.tensor([-1e4]), 1.0).item() == 1e4


# --- phi_22 on VGG19's own weights ---


def phi_22_by_hand(image, weights):
    """(3, H, W) float64 in [0, 1] -> (128, H/2, W/2): convolutions by SciPy, one filter and one map at a time."""

    def convolution(x, index):
        weight, bias = (
            weights[f"features.{index}.{kind}"].double().numpy() for kind in ("weight", "bias")
        )
        sums = [
            sum(correlate(m, k, mode="constant") for m, k in zip(x, kernels, strict=True))
            for kernels in weight
        ]
        return np.maximum(np.stack(sums) + bias[:, None, None], 0)

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's
    x = (image - mean[:, None, None]) / std[:, None, None]
    x = convolution(convolution(x, 0), 2)
    channels, height, width = x.shape
    x = x.reshape(channels, height // 2, 2, width // 2, 2).max(axis=(2, 4))
    return convolution(convolution(x, 5), 7)


@REAL
def test_phi_22_on_the_real_layers_equals_a_direct_computation():
    weights = torch.load(REAL_WEIGHTS, weights_only=True)
    loss, source = losses.content_loss("vgg22", REAL_WEIGHTS)
    sr, hr = two_images(12)
    by_hand = [
        np.stack([phi_22_by_hand(image.double().numpy(), weights) for image in batch])
        for batch in (sr, hr)
    ]
    assert by_hand[0].shape == (2, 128, 6, 6)
    assert by_hand[0].std() > 0.1
    assert loss(sr, hr).item() == pytest.approx(((by_hand[0] - by_hand[1]) ** 2).mean(), rel=1e-4)
    assert source == REAL_WEIGHTS.name


# --- whom they move ---


@pytest.mark.parametrize("name", ["mse", pytest.param("vgg22", marks=REAL)])
def test_a_content_loss_moves_the_generator_through_its_own_gradient_only(name, images, tmp_path):  # noqa: F811
    """With the adversarial weight 0, one step is Adam's on the content loss's gradient; nothing else gets one."""
    vgg_weights = None if name == "mse" else str(REAL_WEIGHTS)
    settings = dict(
        content_loss=name, vgg_weights=vgg_weights, content_weight=3.0, adversarial_weight=0.0
    )
    solver = make("gan", images, tmp_path / "run", **settings)
    twin, discriminator = (
        copy.deepcopy(solver.generator),
        copy.deepcopy(solver.bare("discriminator")),
    )
    lr, hr = a_batch(images, 2)
    solver.training_step(lr, hr)

    loss, _ = losses.content_loss(name, vgg_weights)
    content = 3.0 * loss(twin(lr), hr)
    assert content.requires_grad
    gradients = torch.autograd.grad(content, list(twin.parameters()))
    for p, gradient in zip(solver.generator.parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-7)
    # The discriminator's gradient is its own loss's: of the content it knows nothing.
    sr = copy.deepcopy(twin)(lr).detach()
    own = losses.bce(discriminator(hr), 1.0) + losses.bce(discriminator(sr), 0.0)
    wanted = torch.autograd.grad(own, list(discriminator.parameters()))
    for p, gradient in zip(solver.bare("discriminator").parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["mse", pytest.param("vgg22", marks=REAL)])
def test_the_gradient_is_that_of_the_images_and_of_nothing_constant(name):
    loss, _ = losses.content_loss(name, None if name == "mse" else REAL_WEIGHTS)
    sr, hr = (x.requires_grad_() for x in two_images())
    loss(sr, hr).backward()
    assert sr.grad.abs().max() > 0
    assert name == "mse" or hr.grad is None  # the photograph's features are computed without one
    with torch.no_grad():
        step = 0.05 * sr.grad / sr.grad.abs().max()
        assert loss(sr - step, hr) < loss(sr, hr)


@REAL
def test_a_generator_approaches_the_photograph_in_features():
    torch.manual_seed(0)
    generator = SRResNet(1, 4)
    loss, _ = losses.content_loss("vgg22", REAL_WEIGHTS)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-2)
    lr, hr = torch.rand(2, 3, 4, 4), two_images()[0]
    values = []
    for _ in range(15):
        value = loss(generator(lr), hr)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


# --- how they are weighed ---


def test_a_weight_for_each_source():
    assert losses.content_weight(None, "mse", None) == 1.0
    assert losses.content_weight(None, "vgg54", "torchvision") == 0.5
    assert losses.content_weight(None, "vgg54", "vgg19-dcbb9e9d.pth") == 0.5, (
        "the same weights, downloaded by hand"
    )
    assert losses.content_weight(None, "vgg22", "vgg19_conv1_1_to_conv3_1.pth") == 0.015
    assert losses.content_weight(0.2, "vgg22", "torchvision") == 0.2
    with pytest.raises(ValueError, match="'papers'"):
        losses.content_weight("papers", "vgg22", "torchvision")


def test_the_papers_weight_scales_the_features_by_a_twelfth(images, tmp_path):  # noqa: F811
    assert losses.content_weight("paper", "vgg54", "torchvision") == pytest.approx(
        0.00615, abs=1e-5
    )
    assert losses.content_weight("paper", "mse", None) == 1.0
    sr, hr = two_images()
    assert losses.PAPER_CONTENT_WEIGHT * ((sr - hr) ** 2).mean() == pytest.approx(
        ((sr / 12.75 - hr / 12.75) ** 2).mean()
    )
    solver = make("gan", images, tmp_path / "run", content_weight="paper")
    assert solver.config["content_weight"] == 1.0


# --- what they tell ---


def rows(ratio=20.0, real=0.8, generated=0.2, steps=600, every=20):
    names = dict(content_to_adversarial=ratio, d_real=real, d_generated=generated)
    return [{"step": step, **names} for step in range(every, steps + 1, every)]


@pytest.mark.parametrize(
    ("state", "cause", "advice"),
    [
        (dict(ratio=450), "ratio high", "Divide content_weight by about 22"),
        (dict(ratio=0.5), "ratio low", "Multiply content_weight by about 40"),
        (dict(real=0.995, generated=0.004), "D has won", "Lower content_weight"),
        (dict(real=0.505, generated=0.495), "D is dead", "Raise learning_rate"),
    ],
)
def test_each_cause_is_named_with_what_to_change(state, cause, advice):
    found = losses.health(rows(**state))
    assert list(found) == [cause]
    assert advice in found[cause] and "step 600" in found[cause]


def test_a_healthy_training_is_left_in_peace():
    assert losses.health([]) == {}
    assert losses.health(rows()) == {}
    assert losses.health(rows(ratio=3)) == losses.health(rows(ratio=150)) == {}
    assert losses.health(rows(real=0.97, generated=0.03)) == {}


def test_what_passes_by_itself_is_not_told():
    assert losses.health(rows(ratio=1e4, real=0.5, generated=0.5, steps=480)) == {}, (
        "too early to judge"
    )
    start = rows(
        ratio=1e4, real=0.5, generated=0.5, steps=240
    )  # an untrained generator: at first all is content
    later = [row for row in rows(steps=900) if row["step"] > 240]
    assert all(losses.health([*start, *later[:k]]) == {} for k in range(len(later)))


def test_two_causes_are_two_messages():
    assert list(losses.health(rows(ratio=0.4, real=1.0, generated=0.0))) == [
        "ratio low",
        "D has won",
    ]


def test_the_solver_warns_once_of_each_cause(images, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(losses, "STEPS_TO_JUDGE", 4)
    solver = make("gan", images, tmp_path / "run", log_every=1, content_weight=1e6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solver.fit()
    told = [
        str(warning.message)
        for warning in caught
        if "content : adversarial" in str(warning.message)
    ]
    assert len(told) == 1 and "step 4," in told[0] and "Divide content_weight" in told[0]
