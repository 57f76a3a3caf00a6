"""The networks of the SRGAN paper; how to save, load and mix generators; nothing about training.

Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network", CVPR 2017
(https://arxiv.org/abs/1609.04802). Images are float RGB tensors in [0, 1]; the paper's [-1, 1] stays inside the networks.

Legend of the comments: N is the batch, h and w the LR size, so HR is (N, 3, 4h, 4w).
"""

import copy
import itertools
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SCALE = 4


# --- generator -------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """x + BN(conv(PReLU(BN(conv(x))))), the paper's "B residual blocks" (figure 4, after Gross and Wilber)."""

    def __init__(self, channels):
        super().__init__()
        # No bias in front of a batch norm: its mean subtraction would cancel it.
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return x + self.body(x)


def sub_pixel_block(channels):
    """Twice the height and width: k3n256s1, PixelShuffle x2, PReLU (figure 4; Shi et al. 2016)."""
    return nn.Sequential(
        nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()
    )


class SRResNet(nn.Module):
    """The generator of the paper's figure 4: LR (N, 3, h, w) in [0, 1] -> SR (N, 3, 4h, 4w), nominally in [0, 1].

    The output is not clamped: beyond the range a clamp would have no gradient. `utils.to_array` clamps and rounds.

    Args:
        num_blocks: residual blocks; the paper has 16.
        num_channels: feature maps; the paper has 64. At least 3.
        init: "default" for PyTorch's initialisation, or "interpolator": the same architecture, begun as a bilinear
            enlargement (see `init_as_interpolator`), which saves hours of training.
    """

    def __init__(self, num_blocks=16, num_channels=64, init="default"):
        super().__init__()
        if num_blocks < 1 or num_channels < 3:
            raise ValueError(
                f"SRResNet takes num_blocks >= 1 and num_channels >= 3, not {num_blocks} and {num_channels}"
            )
        if init not in ("default", "interpolator"):
            raise ValueError(f'SRResNet: init is "default" or "interpolator", not {init!r}')
        self.num_blocks, self.num_channels = num_blocks, num_channels
        self.head = nn.Sequential(nn.Conv2d(3, num_channels, 9, padding=4), nn.PReLU())  # k9n64s1
        self.blocks = nn.Sequential(*[ResidualBlock(num_channels) for _ in range(num_blocks)])
        self.after_blocks = nn.Sequential(
            nn.Conv2d(num_channels, num_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_channels),
        )
        self.upsample = nn.Sequential(sub_pixel_block(num_channels), sub_pixel_block(num_channels))
        self.tail = nn.Conv2d(num_channels, 3, 9, padding=4)  # k9n3s1
        if init == "interpolator":
            init_as_interpolator(self)

    def forward(self, lr):
        return self.enlarge(self.trunk(lr))

    # Two halves, because they look at neighbourhoods of different size: `super_resolve` cuts them differently.

    def trunk(self, lr):
        """(N, 3, h, w) in [0, 1] -> feature maps (N, C, h, w)."""
        features = self.head(lr)
        return features + self.after_blocks(self.blocks(features))

    def enlarge(self, features):
        """Feature maps (N, C, h, w) -> SR (N, 3, 4h, 4w), nominally in [0, 1]."""
        first, (conv, _, prelu) = self.upsample
        features = prelu(
            conv(first(features))
        )  # (N, 4C, 2h, 2w): the second sub-pixel block without its shuffle
        sr = convolve_shuffled(features, self.tail)  # (N, 3, 4h, 4w) in [-1, 1]
        return (sr + 1) / 2


def convolve_shuffled(x, conv):
    """conv(pixel_shuffle(x, 2)), (N, 4C, h, w) -> (N, K, 2h, 2w), without ever making the large, shuffled maps.

    A convolution on the fine grid is one on the coarse grid, from the four sub-pixels of each map to the four sub-pixels
    of each output: the same products, summed in another order. Processors are slow at convolutions with few outputs, and
    the paper's last one, k9n3s1, has three: twelve outputs, 5 x 5 taps and no shuffle of 64 maps save a
    sixth of a training step.

    Args:
        conv: stride 1, with a bias and "same" padding, the kernel's side one of 1, 5, 9, ...
    """
    weight = conv.weight  # (K, C, side, side)
    out_channels, in_channels, side, _ = weight.shape
    taps = (side + 1) // 2  # on the coarse grid
    # Output sub-pixel (p, q) sees the fine kernel p rows and q columns further on; a row or column of zeros fills up.
    # `cat` and `stack`, because the ONNX exporter can work those out beforehand, unlike `pad` and `repeat_interleave`.
    row, column = (
        weight.new_zeros(out_channels, in_channels, 1, side),
        weight.new_zeros(*weight.shape[:2], side + 1, 1),
    )
    moved = [torch.cat(pair, 2) for pair in ((weight, row), (row, weight))]
    phases = [torch.cat(pair, 3) for rows in moved for pair in ((rows, column), (column, rows))]
    weight = torch.stack(phases, 1).reshape(out_channels * 4, in_channels, taps, 2, taps, 2)
    weight = weight.permute(0, 1, 3, 5, 2, 4).reshape(out_channels * 4, in_channels * 4, taps, taps)
    bias = torch.stack(4 * [conv.bias], 1).flatten()
    return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=taps // 2), 2)


@torch.no_grad()
def init_as_interpolator(generator):
    """Initialise an `SRResNet` so that it begins as a bilinear enlargement and learns from there.

    A default initialisation spends its first thousands of steps on learning to copy the picture. Here the first three
    feature maps carry R, G and B through the whole network; the other maps start at random as usual:

    - head: centre tap 1 (PReLU lets values in [0, 1] pass);
    - residual blocks and the block after them: last batch-norm gain 0, so that the trunk is its skips (Goyal et al.
      2017); the gain after the blocks moves from the first step on, the blocks' own from the second;
    - sub-pixel convolutions: ICNR (Aitken et al. 2017), the four sub-pixels of a map start alike, hence no
      checkerboard; the first three maps are passed on. After two of them each pixel is repeated 4 x 4 times;
    - tail: (1 2 2 2 1)/8 in both directions turns that repetition into exactly bilinear interpolation (half-pixel
      centres), scaled to [-1, 1]; the weights from the other maps are small, so that they have gradients too.
    """
    rgb = range(3)
    head = generator.head[0]
    head.weight[:3] = 0
    head.bias[:3] = 0
    for c in rgb:
        head.weight[c, c, 4, 4] = 1

    for block in generator.blocks:
        nn.init.zeros_(block.body[4].weight)
    nn.init.zeros_(generator.after_blocks[1].weight)

    for conv, _, _ in generator.upsample:
        conv.weight.copy_(
            conv.weight[::4].repeat_interleave(4, dim=0)
        )  # PixelShuffle: map c is filters 4c .. 4c+3
        conv.bias.copy_(conv.bias[::4].repeat_interleave(4, dim=0))
        conv.weight[:12] = 0
        conv.bias[:12] = 0
        for c in rgb:
            conv.weight[4 * c : 4 * c + 4, c, 1, 1] = 1

    tap = torch.tensor([1, 2, 2, 2, 1]) / 8
    nn.init.normal_(generator.tail.weight, std=1e-3)
    generator.tail.weight[:, :3] = 0
    for c in rgb:
        generator.tail.weight[c, c, 2:7, 2:7] = 2 * torch.outer(
            tap, tap
        )  # [0, 1] -> [-1, 1]: times 2, minus 1
    generator.tail.bias.fill_(-1)


# --- discriminator ---------------------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """The discriminator of the paper's figure 4: images (N, 3, H, W) in [0, 1] -> logits (N,).

    Eight 3 x 3 convolutions (n64s1, n64s2, n128s1 ... n512s2), LeakyReLU 0.2, batch norm from the second on, dense 1024,
    dense 1. The paper's final sigmoid is left to the loss (binary cross-entropy *with logits*, which cannot overflow).

    Args:
        num_channels: feature maps of the first convolution; the paper has 64 (and 128, 256, 512 after it).
    """

    def __init__(self, num_channels=64):
        super().__init__()
        self.num_channels = num_channels
        layers, previous = [], 3
        for index in range(8):
            width, stride = num_channels * 2 ** (index // 2), 1 + index % 2
            layers.append(nn.Conv2d(previous, width, 3, stride, padding=1, bias=index == 0))
            if index > 0:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.LeakyReLU(0.2))
            previous = width
        self.features = nn.Sequential(*layers)
        # 96 x 96 crops arrive here as 6 x 6, which the pooling leaves as they are; it only lets other sizes in.
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(previous * 36, 16 * num_channels),
            nn.LeakyReLU(0.2),
            nn.Linear(16 * num_channels, 1),
        )

    def forward(self, image):
        features = self.features(2 * image - 1)  # (N, 512, H/16, W/16)
        return self.classifier(self.pool(features)).squeeze(1)  # (N,)


# --- VGG19 features --------------------------------------------------------------------------------------------------

VGG19_CONVOLUTIONS = [
    (64, 2),
    (128, 2),
    (256, 4),
    (512, 4),
    (512, 4),
]  # (width, how many) before each max-pooling
VGG_FOLDER = Path("checkpoints")  # where a weights file of one's own is looked for: vgg19*.pth


class VGGFeatures(nn.Module):
    """phi_ij of the paper (section 2.2.1): images (N, 3, H, W) in [0, 1] -> features (N, C, H/2^(i-1), W/2^(i-1)).

    phi_ij is the output of the j-th convolution, after its activation, before the i-th max-pooling of VGG19. Frozen,
    always in eval mode, normalises with ImageNet's statistics inside. Checkpoints leave it out: it can be had again.

    Args:
        i, j: phi_ij; (5, 4) is the paper's VGG54, (2, 2) its VGG22.
        pooling: "max", VGG19's own, or "avg", as Gatys et al. 2016 recommend where images are made: to raise the maximum of
            each 2 x 2 features, one pixel in four is enough, and a generator learns to draw that grid everywhere.
        weights: a state-dict file (.pth) with torchvision's key names that holds at least the layers up to phi_ij; or
            "torchvision", which downloads `VGG19_Weights.IMAGENET1K_V1` (548 MB) once; or None: a file
            checkpoints/vgg19*.pth that holds the layers if there is one, else torchvision's.

    Attributes:
        source: where the weights came from: "torchvision", or the file's name.

    Raises:
        ValueError: there is no phi_ij, or the file lacks layers.
        FileNotFoundError: neither a file nor torchvision's download can be had; says what to put where.
    """

    def __init__(self, i, j, weights=None, pooling="max"):
        super().__init__()
        if pooling not in ("max", "avg"):
            raise ValueError(f'pooling is "max" or "avg", not {pooling!r}')
        if not (1 <= i <= 5 and 1 <= j <= VGG19_CONVOLUTIONS[i - 1][1]):
            counts = ", ".join(
                f"phi_{k}1..{k}{n}" for k, (_, n) in enumerate(VGG19_CONVOLUTIONS, start=1)
            )
            raise ValueError(f"VGG19 has no phi_{i}{j}; it has {counts}")
        layers, previous = [], 3
        for block, (width, count) in enumerate(VGG19_CONVOLUTIONS[:i], start=1):
            if block > 1:
                layers.append(nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2))
            for _ in range(j if block == i else count):
                layers += [nn.Conv2d(previous, width, 3, padding=1), nn.ReLU()]
                previous = width
        self.features = nn.Sequential(*layers)  # numbered as torchvision's vgg19().features
        self.source = self._load(weights, name=f"phi_{i}{j}")
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, image):
        return self.features((image - self.mean) / self.std)

    def train(self, mode=True):
        return super().train(False)  # a frozen yardstick: `.train()` on a parent must not switch it

    def _load(self, weights, name):
        wanted = [f"features.{key}" for key in self.features.state_dict()]
        if weights is None:
            own = [
                path
                for path in sorted(VGG_FOLDER.glob("vgg19*.pth"))
                if set(wanted) <= set(_read_weights(path))
            ]
            weights = own[0] if own else "torchvision"
        state = _torchvision_weights() if weights == "torchvision" else _read_weights(weights)
        missing = [key for key in wanted if key not in state]
        if missing:
            raise ValueError(
                f"{weights} lacks {', '.join(missing[:4])}{' ...' if missing[4:] else ''}, which {name} needs: choose a lower "
                'phi_ij, a file with more layers, or weights="torchvision"'
            )
        self.features.load_state_dict({key.removeprefix("features."): state[key] for key in wanted})
        return "torchvision" if weights == "torchvision" else Path(weights).name


def _read_weights(path):
    """A state dict from a .pth file; `weights_only` so that a file can hold tensors but run no code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such VGG19 weights file. {_VGG_HELP}") from None
    except Exception as error:
        raise ValueError(f"{path} is not a readable state dict ({error}). {_VGG_HELP}") from error


def _torchvision_weights():
    try:
        from torchvision.models import VGG19_Weights  # here, not above: only this needs torchvision

        return VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (
        Exception
    ) as error:  # no network, no disk, or a torchvision that does not fit the installed torch
        raise FileNotFoundError(
            f"torchvision's VGG19 weights cannot be had ({error}). {_VGG_HELP}"
        ) from error


_VGG_HELP = (
    "Download https://download.pytorch.org/models/vgg19-dcbb9e9d.pth into the folder checkpoints/ "
    '(any file checkpoints/vgg19*.pth is found), or train with the content loss "mse", which needs none.'
)


# --- between two generators ------------------------------------------------------------------------------------------


@torch.no_grad()
def interpolate(generator_a, generator_b, alpha, batches=None):
    """The generator between two, weight by weight: (1 - alpha) a + alpha b (Wang et al., ESRGAN, 2018, section 3.4).

    From SRResNet (0) to the SRGAN that was trained from it (1) the way leads from smooth to sharp. Networks that were
    not trained one from the other have no such way between them.

    Args:
        generator_a, generator_b: two `SRResNet` of one architecture; left as they are.
        alpha: 0 to 1; 0 is a, 1 is b, to the bit.
        batches: LR batches (N, 3, h, w) of training patches, from which `reestimate_batch_norm` takes the mixture's
            statistics; None mixes the statistics as the weights.

    Returns:
        A new `SRResNet` in eval mode, on a's device; its `info` tells alpha and the training of both.

    Raises:
        ValueError: two architectures, or alpha is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is 0 (the first generator) to 1 (the second), not {alpha}")
    one, other = _architecture(generator_a), _architecture(generator_b)
    if one != other:
        raise ValueError(
            f"only generators of one architecture can be mixed, these are {one} and {other}"
        )
    mixture = copy.deepcopy(generator_a).eval()
    theirs = generator_b.state_dict()
    for key, value in mixture.state_dict().items():  # the tensors themselves: written in place
        if value.is_floating_point():
            value.lerp_(theirs[key].to(value), alpha)
        elif alpha > 0.5:
            value.copy_(theirs[key])  # batches counted
    infos = {
        name: getattr(generator, "info", {})
        for name, generator in (("a", generator_a), ("b", generator_b))
    }
    mixture.info = {"alpha": alpha, **infos}
    return mixture if batches is None else reestimate_batch_norm(mixture, batches)


@torch.no_grad()
def reestimate_batch_norm(generator, batches):
    """Take the means and variances of a generator's batch norms anew, and plainly: averages over `batches`.

    Of weights that were averaged or mixed, the averaged or mixed statistics are not the statistics. In eval mode they
    shift and scale the features all the same, which SRGANs show as coloured blobs.

    Args:
        generator: any network with batch norms; changed in place, its mode stays.
        batches: LR batches (N, 3, h, w) of training patches, float in [0, 1], on any device; at least one. Each counts
            the same. The batch norms see them as in training, normalised by themselves; the variances are unbiased.

    Returns:
        The generator.

    Raises:
        ValueError: no batches; the generator is as it was.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("no batches to take batch-norm statistics from")
    modes = [(module, module.training) for module in generator.modules()]
    norms = [module for module, _ in modes if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    some_weight = next(generator.parameters())
    try:
        generator.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = (
                None  # PyTorch's word for a plain average over all batches since the reset
            )
        for lr in itertools.chain([first], batches):
            generator(lr.to(some_weight))  # device and type
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    return generator


# --- files -----------------------------------------------------------------------------------------------------------


def save_generator(path, generator, **info):
    """Write a generator's weights to a .safetensors file that `load_generator` can rebuild the network from.

    Args:
        path: the file; its folder is made. Replaced whole or not at all.
        generator: an `SRResNet`.
        info: what to remember about its training (anything JSON can hold), kept readable in the file's metadata.
    """
    from safetensors.torch import save

    from utils import atomic_path

    architecture, training = json.dumps(_architecture(generator)), json.dumps(info)
    metadata = {"format": "srgan-generator", "architecture": architecture, "training": training}
    state = {
        key: value.detach().cpu().contiguous() for key, value in generator.state_dict().items()
    }
    with atomic_path(path) as part:
        part.write_bytes(save(state, metadata))


def _architecture(generator):
    return {"num_blocks": generator.num_blocks, "num_channels": generator.num_channels}


def rebuild_generator(weights):
    """The `SRResNet`, in eval mode, of a state dict alone: its architecture is in the names and shapes."""
    blocks = {key.split(".")[1] for key in weights if key.startswith("blocks.")}
    generator = SRResNet(len(blocks), len(weights["head.0.weight"]))
    generator.load_state_dict(weights)
    return generator.to(memory_format=torch.channels_last).eval()


def load_generator(path, device="cpu"):
    """The `SRResNet` of a file that `save_generator` wrote, in eval mode on `device`, `generator.info` telling its training.

    Raises:
        FileNotFoundError: no such file. ValueError: not a generator's file, damaged, or of another architecture.
    """
    from safetensors import safe_open

    way_out = "train one with train.ipynb, or name another .safetensors file"
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such generator file: {way_out}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or no .safetensors file ({error}): {way_out}"
        ) from error
    if metadata.get("format") != "srgan-generator":
        raise ValueError(f"{path} is a .safetensors file, but not of a generator: {way_out}")
    generator = SRResNet(**json.loads(metadata["architecture"]))
    try:
        generator.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds the weights of another architecture ({error}): {way_out}"
        ) from error
    generator.info = json.loads(metadata["training"])
    return generator.to(device, memory_format=torch.channels_last).eval()
