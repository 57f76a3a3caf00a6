"""The networks against the paper's figure 4 and against direct computations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models import (
    Discriminator,
    SRResNet,
    VGGFeatures,
    convolve_shuffled,
    load_generator,
    save_generator,
)


def layers(network):
    """What figure 4 writes on its boxes: kind, and for a convolution kernel, width (n) and stride."""
    rows = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            rows.append(f"k{module.kernel_size[0]}n{module.out_channels}s{module.stride[0]}")
        elif isinstance(module, nn.Linear):
            rows.append(f"dense {module.out_features}")
        elif isinstance(module, nn.LeakyReLU):
            rows.append(f"leaky {module.negative_slope}")
        elif isinstance(module, nn.BatchNorm2d):
            rows.append("BN")
        elif isinstance(module, nn.PReLU):
            rows.append("PReLU")
        elif isinstance(module, nn.PixelShuffle):
            rows.append(f"shuffle x{module.upscale_factor}")
    return rows


def test_generator_is_figure_4():
    block = ["k3n64s1", "BN", "PReLU", "k3n64s1", "BN"]
    sub_pixel = ["k3n256s1", "shuffle x2", "PReLU"]
    assert layers(SRResNet()) == ["k9n64s1", "PReLU"] + 16 * block + [
        "k3n64s1",
        "BN",
    ] + 2 * sub_pixel + ["k9n3s1"]


def test_discriminator_is_figure_4():
    expected = ["k3n64s1", "leaky 0.2"]
    for name in ["k3n64s2", "k3n128s1", "k3n128s2", "k3n256s1", "k3n256s2", "k3n512s1", "k3n512s2"]:
        expected += [name, "BN", "leaky 0.2"]
    assert layers(Discriminator()) == [*expected, "dense 1024", "leaky 0.2", "dense 1"]


def test_parameter_counts():
    count = lambda network: sum(p.numel() for p in network.parameters())  # noqa: E731
    assert (
        count(SRResNet()) == 1_547_350
    )  # the published 1,549,462 less 33 x 64 biases that batch norm would cancel
    convolutions = (
        3 * 64 * 9
        + 64
        + 9
        * sum(
            a * b
            for a, b in zip(
                [64, 64, 128, 128, 256, 256, 512], [64, 128, 128, 256, 256, 512, 512], strict=True
            )
        )
    )
    norms = 2 * sum([64, 128, 128, 256, 256, 512, 512])
    assert count(Discriminator()) == convolutions + norms + (512 * 36 * 1024 + 1024) + (1024 + 1)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (7, 13), (24, 24), (1, 30)])
def test_generator_shapes(h, w):
    assert SRResNet(2, 8).eval()(torch.rand(2, 3, h, w)).shape == (2, 3, 4 * h, 4 * w)


def test_generator_skips():
    """Each residual block adds to its input, and the trunk to the head's output: with gains of 0 only the skips remain."""
    generator = SRResNet(3, 8).eval()
    for block in generator.blocks:
        nn.init.zeros_(block.body[4].weight)
    nn.init.zeros_(generator.after_blocks[1].weight)
    lr = torch.rand(1, 3, 6, 5)
    expected = (generator.tail(generator.upsample(generator.head(lr))) + 1) / 2
    assert torch.allclose(generator(lr), expected, atol=1e-6)
    nn.init.ones_(generator.blocks[1].body[4].weight)
    nn.init.ones_(generator.after_blocks[1].weight)
    assert not torch.allclose(generator(lr), expected, atol=1e-3)


@pytest.mark.parametrize("side", [9, 5, 1])
@pytest.mark.parametrize(("h", "w"), [(7, 5), (4, 6), (1, 1), (1, 9)])
def test_convolution_of_the_shuffled_without_shuffling(side, h, w):
    """Values and all gradients are those of the plain way: shuffle, then convolve."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, side, padding=side // 2).double()
    x = torch.randn(2, 12, h, w, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, 2, 2 * h, 2 * w, dtype=torch.float64)
    plain, fast = conv(F.pixel_shuffle(x, 2)), convolve_shuffled(x, conv)
    assert fast.shape == plain.shape
    assert torch.allclose(fast, plain, rtol=0, atol=1e-12)
    inputs = (x, conv.weight, conv.bias)
    for got, expected in zip(
        torch.autograd.grad((fast * probe).sum(), inputs),
        torch.autograd.grad((plain * probe).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(got, expected, rtol=0, atol=1e-10)
    # It does see which sub-pixel is which: rows and columns of a pixel exchanged give something else.
    exchanged = x.detach().view(2, 3, 2, 2, h, w).transpose(2, 3).reshape(x.shape)
    assert not torch.allclose(convolve_shuffled(exchanged, conv), plain, atol=1e-3)


def test_generator_is_the_plain_chain_of_its_layers():
    """Also in training mode, where the gradients count: what the paper draws, layer after layer."""
    torch.manual_seed(0)
    generator = SRResNet(2, 8, init="interpolator").double()
    nn.init.uniform_(generator.after_blocks[1].weight)
    lr = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    features = generator.head(lr)
    features = features + generator.after_blocks(generator.blocks(features))
    plain = (generator.tail(generator.upsample(features)) + 1) / 2
    assert torch.allclose(generator(lr), plain, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad(sr.square().sum(), generator.parameters())
        for sr in (generator(lr), plain)
    ]
    for got, expected in zip(*gradients, strict=True):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [dict(num_blocks=0), dict(num_channels=2), dict(init="zeros")])
def test_generator_refuses(bad):
    with pytest.raises(ValueError, match="SRResNet"):
        SRResNet(**bad)


def test_interpolator_begins_as_bilinear():
    torch.manual_seed(0)
    lr = torch.rand(1, 3, 20, 17)
    generator = SRResNet(init="interpolator").eval()
    inner = (..., slice(8, -8), slice(8, -8))  # at the rim the network sees zeros outside
    bilinear = F.interpolate(lr, scale_factor=4, mode="bilinear")
    assert (generator(lr) - bilinear)[inner].abs().max() < 0.03
    nn.init.zeros_(
        generator.tail.weight[:, 3:]
    )  # without the small weights of the other maps: exactly
    assert torch.allclose(generator(lr)[inner], bilinear[inner], atol=1e-6)


def test_interpolator_starts_without_checkerboard_and_with_gradients():
    generator = SRResNet(2, 8, init="interpolator")
    for conv, _, _ in generator.upsample:
        assert torch.equal(
            conv.weight[0::4], conv.weight[3::4]
        )  # ICNR: the four sub-pixels of a map are alike
    generator(torch.rand(2, 3, 8, 8)).square().mean().backward()
    moved = {
        name
        for name, p in generator.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert {"tail.weight", "head.0.weight", "after_blocks.1.weight"} <= moved


@pytest.mark.parametrize("size", [16, 96, 128, 131])
def test_discriminator_gives_logits(size):
    logits = Discriminator(8)(4 * torch.randn(2, 3, size, size))
    assert logits.shape == (2,)
    layers_after = [m for m in Discriminator(8).modules() if isinstance(m, nn.Sigmoid)]
    assert not layers_after


def test_discriminator_pooling_leaves_96_as_it_is():
    discriminator = Discriminator(8).eval()
    image = torch.rand(1, 3, 96, 96)
    features = discriminator.features(2 * image - 1)
    assert features.shape[-2:] == (6, 6)
    assert torch.equal(discriminator.classifier(features).squeeze(1), discriminator(image))


# --- VGG19 ---

# (convolution widths before each pooling) written out once more, from Simonyan and Zisserman's table 1, column E
TABLE_E = [
    64,
    64,
    "M",
    128,
    128,
    "M",
    256,
    256,
    256,
    256,
    "M",
    512,
    512,
    512,
    512,
    "M",
    512,
    512,
    512,
    512,
    "M",
]


def vgg_reference(i, j, state):
    """phi_ij straight from the table and torch.nn.functional; also the keys that it needs."""

    def phi(x):
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        index, block, nth = 0, 1, 0
        for entry in TABLE_E:
            if entry == "M":
                x, index, block, nth = F.max_pool2d(x, 2), index + 1, block + 1, 0
                continue
            x = F.relu(
                F.conv2d(
                    x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1
                )
            )
            index, nth = index + 2, nth + 1
            if (block, nth) == (i, j):
                return x
        raise AssertionError

    return phi


@pytest.fixture(scope="module")
def vgg_state():
    generator = torch.Generator().manual_seed(0)
    state, index, previous = {}, 0, 3
    for entry in TABLE_E:
        if entry == "M":
            index += 1
            continue
        width = entry
        state[f"features.{index}.weight"] = (
            torch.randn(width, previous, 3, 3, generator=generator) / (3 * previous**0.5) * 1.4
        )
        state[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
        previous, index = width, index + 2
    return state


@pytest.fixture(scope="module")
def vgg_file(vgg_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(vgg_state, path)
    return path


ALL_PHI = [(i, j) for i, count in enumerate([2, 2, 4, 4, 4], start=1) for j in range(1, count + 1)]


@pytest.mark.parametrize(("i", "j"), ALL_PHI)
def test_every_phi_equals_a_direct_computation(i, j, vgg_state, vgg_file):
    image = torch.rand(1, 3, 32, 48)
    features = VGGFeatures(i, j, vgg_file)(image)
    assert features.shape[-2:] == (32 // 2 ** (i - 1), 48 // 2 ** (i - 1))
    assert torch.allclose(features, vgg_reference(i, j, vgg_state)(image), rtol=1e-4, atol=1e-4)
    assert (features >= 0).all()
    assert (features > 0).any()  # after the activation


def test_average_pooling(vgg_state, vgg_file):
    """phi_21 by hand with a mean in the pooling's place."""
    image = torch.rand(1, 3, 16, 24)
    x = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    for index in (0, 2, 5):
        x = x if index < 5 else x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
        x = F.conv2d(
            x, vgg_state[f"features.{index}.weight"], vgg_state[f"features.{index}.bias"], padding=1
        ).relu()
    assert torch.allclose(VGGFeatures(2, 1, vgg_file, "avg")(image), x, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(VGGFeatures(2, 1, vgg_file)(image), x, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="pooling"):
        VGGFeatures(2, 1, vgg_file, "mean")


def test_vgg_is_a_frozen_yardstick(vgg_file):
    features = VGGFeatures(2, 2, vgg_file)
    assert not any(p.requires_grad for p in features.parameters())
    assert not features.train().training
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    features(image).sum().backward()
    assert image.grad.abs().max() > 0  # but what is measured by it does get a gradient


@pytest.mark.parametrize(("i", "j"), [(0, 1), (6, 1), (1, 3), (2, 0), (5, 5)])
def test_there_is_no_such_phi(i, j):
    with pytest.raises(ValueError, match=f"no phi_{i}{j}"):
        VGGFeatures(i, j)


def test_a_partial_file_serves_the_layers_it_has(vgg_state, tmp_path):
    path = tmp_path / "vgg19_part.pth"
    torch.save(
        {key: value for key, value in vgg_state.items() if int(key.split(".")[1]) <= 10}, path
    )
    assert VGGFeatures(3, 1, path).source == "vgg19_part.pth"
    with pytest.raises(ValueError, match=r"vgg19_part.pth lacks features.12.weight"):
        VGGFeatures(5, 4, path)


def test_weights_are_found_or_asked_for(vgg_state, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "VGG_FOLDER", tmp_path)
    calls = []
    monkeypatch.setattr(models, "_torchvision_weights", lambda: calls.append(1) or vgg_state)
    assert VGGFeatures(2, 2).source == "torchvision"  # no file of one's own: torchvision's
    torch.save(
        {key: value for key, value in vgg_state.items() if int(key.split(".")[1]) <= 7},
        tmp_path / "vgg19_small.pth",
    )
    assert VGGFeatures(2, 2).source == "vgg19_small.pth"
    assert VGGFeatures(5, 4).source == "torchvision"  # the file does not reach so far
    assert len(calls) == 2


def test_without_any_weights_the_error_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "VGG_FOLDER", tmp_path)
    monkeypatch.setitem(
        __import__("sys").modules, "torchvision.models", None
    )  # as if it could not be imported
    with pytest.raises(
        FileNotFoundError, match=r"vgg19-dcbb9e9d\.pth into the folder checkpoints/"
    ):
        VGGFeatures(5, 4)


def test_a_weights_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_here"), "w"))

    path = tmp_path / "vgg19_evil.pth"
    torch.save({"features.0.weight": Evil()}, path)
    with pytest.raises(ValueError, match="not a readable state dict"):
        VGGFeatures(1, 1, path)
    assert not (tmp_path / "was_here").exists()


# --- generator files ---


def test_saved_generator_comes_back(tmp_path):
    generator = SRResNet(2, 8)
    generator(torch.rand(2, 3, 8, 8))  # so that the batch-norm statistics are not the initial ones
    path = tmp_path / "new" / "generator.safetensors"
    save_generator(path, generator, steps=7)
    again = load_generator(path)
    lr = torch.rand(1, 3, 5, 6)
    assert torch.allclose(
        again(lr), generator.eval()(lr), atol=1e-6
    )  # channels last may sum in another order
    assert not again.training
    assert again.info == {"steps": 7}


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "truncated", "text", "other", "architecture", "pickle"]
)
def test_bad_generator_files_are_named(kind, tmp_path):
    path = tmp_path / "generator.safetensors"
    save_generator(path, SRResNet(1, 4))
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    elif kind == "architecture":
        path.write_bytes(data.replace(b'num_blocks\\": 1', b'num_blocks\\": 2'))
    elif kind == "pickle":
        torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(
        FileNotFoundError if kind == "missing" else ValueError,
        match=r"(?s)generator\.safetensors.*train one",
    ):
        load_generator(path)
