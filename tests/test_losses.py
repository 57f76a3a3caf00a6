"""The losses against their formulas."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from skimage import data

import losses
from imresize import imresize
from models import VGGFeatures
from tools import vgg_weights


@pytest.fixture
def weights(vgg_folder, monkeypatch):
    """Random VGG weights where checkpoints/ is looked for; the folder."""
    monkeypatch.setattr(vgg_weights, "FOLDER", vgg_folder)
    return vgg_folder


def two_images(size=16):
    return torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- pixels and logits ----------------------------------------------------------------------------


def test_mse_is_in_the_paper_s_range():
    sr, hr = two_images()
    expected = (((2 * sr - 1) - (2 * hr - 1)) ** 2).mean().item()
    assert losses.mse(sr, hr).item() == pytest.approx(expected, rel=1e-6)
    assert losses.make_content_loss("mse") is losses.mse


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_bce_is_the_formula(target):
    logits = torch.tensor([-3.0, 0.0, 2.0])
    p = torch.sigmoid(logits.double())
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert losses.bce(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_bce_does_not_overflow():
    assert losses.bce(torch.tensor([-1e4]), 1.0).item() == 1e4


def test_losses_of_half_precision_are_summed_in_float32():
    sr, hr = (images.bfloat16() for images in two_images(64))
    assert torch.equal(losses.mse(sr, hr), losses.mse(sr.float(), hr.float()))
    logits = torch.linspace(-3, 3, 7).half()
    assert torch.equal(losses.bce(logits, 1.0), losses.bce(logits.float(), 1.0))


# --- this project's additions ---------------------------------------------------------------------


def test_grid_loss_is_its_definition_in_plain_loops():
    sr, hr = two_images(16).double()
    squares = []
    for patch in (sr - hr).numpy():
        for colour in patch:
            means = [colour[row::4, column::4].mean() for row in range(4) for column in range(4)]
            squares += [(mean - np.mean(means)) ** 2 for mean in means]
    assert losses.grid_loss(sr, hr).item() == pytest.approx(np.mean(squares), rel=1e-5)


def test_grid_loss_sees_a_fixed_pattern_and_neither_brightness_nor_texture():
    hr = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    pattern = torch.zeros(4, 4)
    pattern[1, 2] = 0.1
    assert losses.grid_loss(hr + pattern.repeat(24, 24), hr) > 5e-4
    assert losses.grid_loss(hr + 0.1, hr) < 1e-12
    texture = 0.1 * torch.rand(hr.shape, generator=torch.Generator().manual_seed(1))
    assert losses.grid_loss(hr + texture, hr) < 1e-5


def test_lr_consistency_loss_is_its_definition():
    random = np.random.default_rng(0)
    sr, lr = random.random((32, 48, 3), np.float32), random.random((8, 12, 3), np.float32)
    reduced = imresize(sr.astype(np.float64), 1 / 4)
    expected = np.mean((reduced - lr)[2:-2, 2:-2] ** 2)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in (sr, lr)]
    assert losses.lr_consistency_loss(*tensors).item() == pytest.approx(expected, rel=1e-5)


def test_a_patch_of_hr_is_consistent_with_its_lr_patch_up_to_rounding():
    hr = data.astronaut()
    lr = imresize(hr, 1 / 4)
    patches = hr[96:192, 200:296], lr[24:48, 50:74]
    hr, lr = (torch.from_numpy(patch / 255).permute(2, 0, 1)[None] for patch in patches)
    assert (
        losses.lr_consistency_loss(hr, lr) < 1.1 * 2 / 12 / 255**2
    )  # rounded after each dimension
    assert losses.lr_consistency_loss(hr + 0.02, lr) > 3e-4


# --- content losses -------------------------------------------------------------------------------


def phi_22_by_hand(image, weights):
    """(3, H, W) float64 -> (128, H/2, W/2) by SciPy, one filter and one map at a time."""

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


def test_vgg22_is_equation_5(weights):
    state = torch.load(weights / "vgg19.pth", weights_only=True)
    sr, hr = two_images(12)
    features = [
        np.stack([phi_22_by_hand(image.double().numpy(), state) for image in images])
        for images in (sr, hr)
    ]
    assert features[0].shape == (2, 128, 6, 6) and features[0].std() > 0.1
    expected = ((features[0] - features[1]) ** 2).mean()  # over channels, too
    loss = losses.make_content_loss("vgg22")
    assert loss(sr, hr).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "phi", "pooling"),
    [
        ("vgg54", (5, 4, 19), "max"),
        ("vgg19_54", (5, 4, 19), "avg"),
        ("vgg22", (2, 2, 19), "avg"),
        ("vgg16_53", (5, 3, 16), "max"),
    ],
)
def test_a_name_says_which_features_are_compared(name, phi, pooling, weights):
    sr, hr = two_images(32)
    features = VGGFeatures(*phi, pooling=pooling)
    expected = (features(sr) - features(hr)).square().mean()
    loss = losses.make_content_loss(name, pooling)
    torch.testing.assert_close(loss(sr, hr), expected, rtol=1e-3, atol=0)
    assert expected > 0 and loss(hr, hr) == 0


def test_a_content_loss_takes_weights_from_a_file(weights):
    sr, hr = two_images()
    found, named = losses.make_content_loss("vgg22"), weights / "vgg19.pth"
    assert losses.make_content_loss("vgg22", weights=str(named))(sr, hr) == found(sr, hr)


@pytest.mark.parametrize(("name", "depth"), [("vgg16_53", 16), ("vgg22", 19), ("mse", 19)])
def test_texture_loss_is_its_definition(name, depth, weights):
    sr, hr = two_images(40)  # 2 x 2 squares of 16 pixels, and a rest that is left out
    errors = []
    for i, side in ((1, 16), (2, 8), (3, 4)):
        vgg, found = VGGFeatures(i, 1, depth, "avg"), []
        sr_features, hr_features = vgg(sr).numpy(), vgg(hr).numpy()
        for n, row, column in np.ndindex(2, 2, 2):
            grams = []
            for features in (sr_features[n], hr_features[n]):
                square = features[:, side * row : side * (row + 1)]
                square = square[:, :, side * column : side * (column + 1)]
                grams.append(np.einsum("cij,dij->cd", square, square) / side**2)
            found.append(((grams[0] - grams[1]) ** 2).sum() / (grams[1] ** 2).sum())
        errors.append(np.mean(found))
    loss = losses.make_texture_loss(name, "avg", "torchvision", "cpu")
    assert loss(sr, hr).item() == pytest.approx(np.mean(errors), rel=1e-3)
    assert loss(hr, hr) == 0


def test_texture_loss_does_not_mind_where_in_a_square_a_detail_lies(weights):
    loss = losses.make_texture_loss("vgg22", "max", "torchvision", "cpu")
    hr = torch.full((1, 3, 16, 16), 0.5)
    hr[:, :, 4:6, 4:6], moved, absent = 1.0, torch.full_like(hr, 0.5), torch.full_like(hr, 0.5)
    moved[:, :, 8:10, 8:10] = 1.0
    assert 0 < 10 * loss(moved, hr) < loss(absent, hr)


@pytest.mark.parametrize(
    "name", ["", "MSE", "l1", "vgg", "vgg5", "vgg545", "vgg18_54", "vgg54 ", "vgg_54"]
)
def test_a_content_loss_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match=f'content_loss is "mse", "vgg54".*; not {name!r}'):
        losses.make_content_loss(name)


@pytest.mark.parametrize("name", ["vgg16_54", "vgg61", "vgg13", "vgg19"])
def test_a_content_loss_of_features_that_do_not_exist_is_refused(name):
    with pytest.raises(ValueError, match=r"VGG\d\d has no phi_\d\d; it has phi_11"):
        losses.make_content_loss(name)


@pytest.mark.parametrize(("name", "phi"), [("vgg22", (2, 2)), ("vgg16_43", (4, 3, 16))])
def test_the_gradient_goes_through_sr_only(name, phi, weights):
    loss, features = losses.make_content_loss(name), VGGFeatures(*phi)
    sr, hr = (images.clone().requires_grad_() for images in two_images())
    value = loss(sr, hr)
    value.backward()
    assert hr.grad is None and not loss(sr.detach(), hr).requires_grad
    again, target = sr.detach().clone().requires_grad_(), features(hr).detach()
    (features(again) - target).square().mean().backward()
    torch.testing.assert_close(sr.grad, again.grad, rtol=1e-3, atol=1e-3 * sr.grad.std().item())
    step = 1e-3 * sr.grad / sr.grad.abs().max()
    assert loss(sr.detach() - step, hr) < value


def test_the_gradient_of_mse_is_the_formula_s():
    sr, hr = two_images()
    sr.requires_grad_()
    losses.mse(sr, hr).backward()
    torch.testing.assert_close(sr.grad, 8 * (sr.detach() - hr) / sr.numel())
