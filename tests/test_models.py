"""The networks against figure 4 of the paper and direct computations; generator files, mixtures."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import VGG_TABLE, M, trained_generator
from torch import nn
from torch.optim.swa_utils import update_bn

from models import Discriminator, SRResNet, VGGFeatures, interpolate, load_generator, save_generator
from tools import checkpoints


def layers(network):
    """The boxes of figure 4: kind, and of a convolution kernel (k), width (n) and stride (s)."""
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


def norm(x, state, name):
    """Batch norm in eval mode, from a state dict."""
    keys = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *[state[f"{name}.{key}"] for key in keys], eps=1e-5)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- generator ------------------------------------------------------------------------------------


def test_generator_has_the_layers_of_figure_4():
    block = ["k3n64s1", "BN", "PReLU", "k3n64s1", "BN"]
    sub_pixel = ["k3n256s1", "shuffle x2", "PReLU"]
    head, after_blocks, tail = ["k9n64s1", "PReLU"], ["k3n64s1", "BN"], ["k9n3s1"]
    assert layers(SRResNet()) == head + 16 * block + after_blocks + 2 * sub_pixel + tail


def test_generator_computes_figure_4():
    generator = trained_generator(0, blocks=3).double()
    state, lr = generator.state_dict(), torch.rand(2, 3, 5, 7, dtype=torch.float64)

    def conv(x, name):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def prelu(x, name):
        return torch.where(x > 0, x, x * state[f"{name}.weight"])

    features = x = prelu(conv(lr, "head.0"), "head.1")
    for k in range(3):
        body = f"blocks.{k}.body"
        y = prelu(norm(conv(x, f"{body}.0"), state, f"{body}.1"), f"{body}.2")
        x = x + norm(conv(y, f"{body}.3"), state, f"{body}.4")
    x = features + norm(conv(x, "after_blocks.0"), state, "after_blocks.1")
    for k in range(2):
        x = prelu(F.pixel_shuffle(conv(x, f"upsample.{k}.0"), 2), f"upsample.{k}.2")
    torch.testing.assert_close(generator(lr), (conv(x, "tail") + 1) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (7, 13), (24, 24), (1, 30)])
def test_sr_is_four_times_as_high_and_wide(h, w):
    assert SRResNet(2, 8).eval()(torch.rand(2, 3, h, w)).shape == (2, 3, 4 * h, 4 * w)


def test_parameter_counts():
    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    # The published 1,549,462, without the 33 x 64 biases that batch norm would cancel.
    assert count(SRResNet()) == 1_549_462 - 33 * 64
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    convolutions = 3 * 64 * 9 + 64 + sum(9 * widths[k] * widths[k + 1] for k in range(7))
    dense = 512 * 36 * 1024 + 1024 + 1024 + 1
    assert count(Discriminator()) == convolutions + 2 * sum(widths[1:]) + dense


@pytest.mark.parametrize("bad", [dict(num_blocks=0), dict(num_channels=2), dict(init="zeros")])
def test_generator_refuses_arguments_out_of_range(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.*not .*{next(iter(bad.values()))}"):
        SRResNet(**bad)


def test_interpolator_starts_as_bilinear_upsampling():
    torch.manual_seed(0)
    lr = torch.rand(1, 3, 20, 17)
    generator = SRResNet(init="interpolator").eval()
    inner = (..., slice(8, -8), slice(8, -8))  # near the border the network sees zeros outside
    bilinear = F.interpolate(lr, scale_factor=4, mode="bilinear")
    assert (generator(lr) - bilinear)[inner].abs().max() < 0.03
    nn.init.zeros_(generator.tail.weight[:, 3:])  # without the other maps' small weights: exactly
    torch.testing.assert_close(generator(lr)[inner], bilinear[inner], rtol=0, atol=1e-6)


def test_interpolator_starts_without_checkerboard_and_with_gradients():
    torch.manual_seed(0)
    generator = SRResNet(2, 8, init="interpolator")
    for conv, _, _ in generator.upsample:
        for k in (1, 2, 3):  # ICNR: the four sub-pixels of a map are alike
            assert torch.equal(conv.weight[0::4], conv.weight[k::4])
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    for step in range(3):  # behind two gains of 0, the blocks' other weights wait for two steps
        optimizer.zero_grad()
        generator(torch.rand(2, 3, 8, 8)).square().mean().backward()
        if step == 0:  # filters 12 and up are for other maps than R, G and B
            assert (generator.upsample[1][0].weight.grad[12:].abs().amax((1, 2, 3)) > 0).all()
        optimizer.step()
    for name, parameter in generator.named_parameters():
        assert parameter.grad.abs().max() > 0, name


# --- discriminator --------------------------------------------------------------------------------


def test_discriminator_has_the_layers_of_figure_4():
    expected = ["k3n64s1", "leaky 0.2"]
    for name in ["k3n64s2", "k3n128s1", "k3n128s2", "k3n256s1", "k3n256s2", "k3n512s1", "k3n512s2"]:
        expected += [name, "BN", "leaky 0.2"]
    assert layers(Discriminator()) == [*expected, "dense 1024", "leaky 0.2", "dense 1"]


def test_discriminator_computes_the_logits_of_figure_4():
    """Of a 96 x 96 crop: there is no pooling and no sigmoid in the figure's network up to there."""
    torch.manual_seed(0)
    discriminator = Discriminator(4)
    discriminator(torch.rand(4, 3, 96, 96))  # other batch-norm statistics than at first
    discriminator = discriminator.double().eval()
    state, image = discriminator.state_dict(), torch.rand(2, 3, 96, 96, dtype=torch.float64)
    convolutions = [name for name, value in state.items() if value.dim() == 4]
    x = 2 * image - 1
    for k, name in enumerate(convolutions):
        x = F.conv2d(x, state[name], stride=1 + k % 2, padding=1)
        if k == 0:
            x = x + state["features.0.bias"].view(1, -1, 1, 1)
        else:
            index = int(name.split(".")[1])
            x = norm(x, state, f"features.{index + 1}")
        x = torch.maximum(x, 0.2 * x)
    x = x.flatten(1) @ state["classifier.1.weight"].T + state["classifier.1.bias"]
    x = torch.maximum(x, 0.2 * x)
    logits = (x @ state["classifier.3.weight"].T + state["classifier.3.bias"]).squeeze(1)
    torch.testing.assert_close(discriminator(image), logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [16, 96, 128, 131])
def test_discriminator_takes_crops_of_other_sizes(size):
    assert Discriminator(8)(torch.rand(2, 3, size, size)).shape == (2,)


# --- VGG features ---------------------------------------------------------------------------------

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # ImageNet's
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
ALL_PHI = {
    depth: [(i, j) for i, n in enumerate(counts, 1) for j in range(1, n + 1)]
    for depth, counts in {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}.items()
}


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def phi_by_table(vgg_folder, image):
    """{(depth, i, j): phi_ij of `image`}, computed straight along the table."""
    found = {}
    for depth, table in VGG_TABLE.items():
        state = torch.load(vgg_folder / f"vgg{depth}.pth", weights_only=True)
        x, index, i, j = (image - MEAN) / STD, 0, 1, 0
        for entry in table:
            if entry == M:
                x, index, i, j = F.max_pool2d(x, 2), index + 1, i + 1, 0
                continue
            weight, bias = (state[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
            x, index, j = F.conv2d(x, weight, bias, padding=1).clamp(min=0), index + 2, j + 1
            found[depth, i, j] = x
    return found


@pytest.mark.parametrize(
    ("depth", "i", "j"), [(depth, i, j) for depth in ALL_PHI for i, j in ALL_PHI[depth]]
)
def test_every_phi_equals_a_direct_computation(depth, i, j, vgg_folder, image, phi_by_table):
    features = VGGFeatures(i, j, depth, weights=vgg_folder / f"vgg{depth}.pth")(image)
    assert features.shape[-2:] == (32 // 2 ** (i - 1), 48 // 2 ** (i - 1))
    assert features.std() > 0.1
    torch.testing.assert_close(features, phi_by_table[depth, i, j], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "indices"),
    [
        (16, [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]),
        (19, [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]),
    ],
)
def test_layers_are_numbered_as_torchvision_s(depth, indices, vgg_folder):
    last = VGGFeatures(*ALL_PHI[depth][-1], depth, weights=vgg_folder / f"vgg{depth}.pth")
    numbers = [k for k, layer in enumerate(last.features) if isinstance(layer, nn.Conv2d)]
    assert numbers == indices
    assert len(last.features) == indices[-1] + 2  # a ReLU is the last layer


def test_average_pooling_takes_means_of_2_x_2_features(vgg_folder, image):
    """phi_21 by hand, with a mean in place of the maximum."""
    path = vgg_folder / "vgg19.pth"
    state, x = torch.load(path, weights_only=True), (image - MEAN) / STD
    for index in (0, 2, 5):
        if index == 5:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
        weight, bias = (state[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, padding=1).clamp(min=0)
    average = VGGFeatures(2, 1, pooling="avg", weights=path)(image)
    torch.testing.assert_close(average, x, rtol=1e-4, atol=1e-4)
    assert (average - VGGFeatures(2, 1, weights=path)(image)).abs().max() > 0.1


def test_vgg_is_not_trained_but_its_input_has_a_gradient(vgg_folder):
    features = VGGFeatures(2, 2, weights=vgg_folder / "vgg19.pth")
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert not any(module.training for module in features.train().modules())
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    features(image).sum().backward()
    assert image.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("depth", "i", "j", "there_are"),
    [
        (19, 0, 1, "phi_11..12, phi_21..22, phi_31..34, phi_41..44, phi_51..54$"),
        (19, 6, 1, "phi_51..54$"),
        (19, 1, 3, "phi_11..12"),
        (19, 2, 0, "phi_21..22"),
        (19, 5, 5, "phi_51..54$"),
        (16, 5, 4, "phi_11..12, phi_21..22, phi_31..33, phi_41..43, phi_51..53$"),
        (17, 1, 1, "none"),
    ],
)
def test_a_phi_that_does_not_exist_is_refused_with_those_that_do(depth, i, j, there_are):
    with pytest.raises(ValueError, match=f"VGG{depth} has no phi_{i}{j}; it has .*{there_are}"):
        VGGFeatures(i, j, depth)


# --- generator files ------------------------------------------------------------------------------


def test_a_saved_generator_comes_back(tmp_path):
    generator = trained_generator(0, blocks=3, channels=5)
    path = tmp_path / "new" / "generator.safetensors"
    save_generator(path, generator, steps=7, settings={"epochs": 2})
    again = load_generator(path)
    assert same(again, generator)
    assert (again.num_blocks, again.num_channels) == (3, 5)
    assert again.info == {"steps": 7, "settings": {"epochs": 2}}
    assert not any(module.training for module in again.modules())
    lr = torch.rand(1, 3, 5, 6)
    torch.testing.assert_close(again(lr), generator(lr), rtol=0, atol=1e-5)
    again.train()(lr).sum().backward()  # it can be trained further
    assert all(parameter.grad is not None for parameter in again.parameters())


@pytest.mark.parametrize("kind", ["empty", "half", "text", "other safetensors", "pickle"])
def test_a_file_that_holds_no_generator_is_named(kind, tmp_path):
    path = tmp_path / "generator.safetensors"
    save_generator(path, SRResNet(1, 4))
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "other safetensors":
        checkpoints.write(path, {"a": torch.zeros(1)}, {"info": {}})
    elif kind == "pickle":
        torch.save(SRResNet(1, 4).state_dict(), path)
    with pytest.raises(ValueError, match=r"(?s)generator\.safetensors (is damaged|holds no SRRes)"):
        load_generator(path)


def test_a_missing_generator_file_is_named_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such .*train one"):
        load_generator(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("names", "change"),
    [
        ("tail.weight", lambda value: value[:, :-1]),
        ("head.0.weight", lambda value: torch.zeros(())),
        ("head.0.weight", lambda value: torch.zeros(10**12, 0)),  # a number of channels, no bytes
        ("tail.weight", lambda value: None),
        ("", lambda value: value.double() if value.is_floating_point() else value),
        ("tail.", lambda value: value.half()),
        ("tail.weight", lambda value: value.long()),
        ("blocks.0.body.1.num_batches_tracked", lambda value: value + 0.5),
        ("blocks.0.body.1.running_mean", lambda value: value.double()),
        ("blocks.", lambda value: None),
    ],
)
def test_a_forged_architecture_is_refused(names, change, tmp_path):
    """The file's checksum is right: somebody wrote it so."""
    path, weights = tmp_path / "generator.safetensors", SRResNet(1, 4).state_dict()
    for name in [name for name in weights if name.startswith(names)]:
        weights[name] = change(weights[name])
    weights = {name: value for name, value in weights.items() if value is not None}
    checkpoints.write(path, weights, {"info": {}})
    with pytest.raises(
        ValueError, match=r"(?s)generator\.safetensors holds no SRResNet.*train one"
    ):
        load_generator(path)


@pytest.mark.parametrize("facts", [{}, [], None, "info", {"info": 5}])
def test_forged_facts_are_refused(facts, tmp_path):
    path = tmp_path / "generator.safetensors"
    checkpoints.write(path, SRResNet(1, 4).state_dict(), facts)
    with pytest.raises(ValueError, match=r"generator\.safetensors holds no SRResNet"):
        load_generator(path)


def test_ten_thousand_named_blocks_are_not_built(tmp_path):
    """A name costs its forger 70 bytes; a block would cost the reader a millisecond."""
    path, weights = tmp_path / "generator.safetensors", SRResNet(1, 4).state_dict()
    nothing = torch.zeros(0)
    weights |= {f"blocks.{k}.body.0.weight": nothing for k in range(1, 10**4)}
    checkpoints.write(path, weights, {"info": {}})
    with pytest.raises(ValueError, match=r"generator\.safetensors holds no .*10000 blocks in"):
        load_generator(path)


# --- mixtures of two generators -------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0, 0.0, 1, 1.0])
def test_the_ends_of_a_mixture_are_the_two_generators_to_the_bit(alpha):
    a, b = trained_generator(0), trained_generator(1)
    assert same(interpolate(a, b, alpha), b if alpha else a)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_every_weight_and_statistic_is_mixed(alpha):
    a, b = trained_generator(0, step=1), trained_generator(1, step=2)
    before = copy.deepcopy(a), copy.deepcopy(b)
    mixture = interpolate(a, b, alpha)
    weights_a, weights_b = a.state_dict(), b.state_dict()
    for name, value in mixture.state_dict().items():
        if value.is_floating_point():
            expected = (1 - alpha) * weights_a[name].double() + alpha * weights_b[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    assert not mixture.training
    assert mixture.info == {"alpha": alpha, "a": {"step": 1}, "b": {"step": 2}}
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.fill_(7)
    assert same(a, before[0]) and same(b, before[1]), "the mixture shares memory with them"


def test_other_architectures_and_other_alphas_are_refused():
    a = trained_generator(0)
    for other in (trained_generator(0, blocks=3), trained_generator(0, channels=5)):
        with pytest.raises(ValueError, match="one architecture"):
            interpolate(a, other, 0.5)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha is 0"):
            interpolate(a, a, alpha)


def test_a_mixture_is_saved_and_loaded_as_any_generator(tmp_path):
    mixture = interpolate(trained_generator(0, step=1), trained_generator(1), 0.3)
    save_generator(tmp_path / "mixture.safetensors", mixture, **mixture.info)
    again = load_generator(tmp_path / "mixture.safetensors")
    assert same(again, mixture) and again.info == mixture.info
    assert same(interpolate(again, trained_generator(1), 1.0), trained_generator(1))


def test_update_bn_gives_plain_averages_of_a_mixture_s_own_features():
    generator, inputs = interpolate(trained_generator(0), trained_generator(1), 0.5), []
    batches = [torch.rand(4, 3, 12, 12) * k / 3 for k in (1, 2, 3)]
    norm = generator.blocks[1].body[4]

    def keep(module, x, y):
        inputs.append(x[0].detach().transpose(0, 1).flatten(1))  # (C, N h w)

    with norm.register_forward_hook(keep):
        update_bn(batches, generator)
    assert len(inputs) == 3 and not generator.training
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(1) for x in inputs]).mean(0))
    variances = torch.stack([x.var(1, correction=1) for x in inputs])
    torch.testing.assert_close(norm.running_var, variances.mean(0), rtol=1e-4, atol=1e-8)
