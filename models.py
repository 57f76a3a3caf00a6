"""The networks of the SRGAN paper, and generator files; nothing about training.

Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
Network", CVPR 2017 (https://arxiv.org/abs/1609.04802). Images are float RGB tensors in [0, 1];
the paper's [-1, 1] stays inside the networks.
In the comments N is the batch, h and w the LR size: HR and SR are (N, 3, 4h, 4w).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools import checkpoints  # files with a checksum
from tools.acceleration import speed_up  # the same results, faster
from tools.vgg_weights import load_vgg_weights  # a file, or a download


class ResidualBlock(nn.Module):
    """x + BN(conv(PReLU(BN(conv(x))))), of the paper's "B residual blocks" (figure 4)."""

    def __init__(self, channels: int):
        super().__init__()
        # No bias before a batch norm: subtracting the mean would cancel it.
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def sub_pixel_block(channels: int) -> nn.Sequential:
    """Twice the height and width: k3n256s1, PixelShuffle x2, PReLU (figure 4; Shi et al. 2016)."""
    conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)
    return nn.Sequential(conv, nn.PixelShuffle(2), nn.PReLU())


class SRResNet(nn.Module):
    """The generator of figure 4: LR (N, 3, h, w) in [0, 1] -> SR (N, 3, 4h, 4w), near [0, 1].

    SR is not clamped: outside the range a clamp would have no gradient. `utils.to_array` clamps.
    init: "default" for PyTorch's initialisation, or "interpolator" for `init_as_interpolator`.
    Raises ValueError for less than 1 block or 3 channels, and for another init.
    """

    def __init__(self, num_blocks: int = 16, num_channels: int = 64, init: str = "default"):
        super().__init__()
        if num_blocks < 1 or num_channels < 3 or init not in ("default", "interpolator"):
            raise ValueError(
                'SRResNet takes num_blocks >= 1, num_channels >= 3, init "default" or '
                f'"interpolator"; not {num_blocks}, {num_channels} and {init!r}'
            )
        self.num_blocks, self.num_channels = num_blocks, num_channels
        self.info: dict[str, Any] = {}  # of its training; `load_generator` fills it in
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

    def forward(self, lr: Tensor) -> Tensor:
        features = self.head(lr)  # (N, 64, h, w)
        features = features + self.after_blocks(self.blocks(features))
        sr = self.tail(self.upsample(features))  # (N, 3, 4h, 4w) in [-1, 1]
        return (sr + 1) / 2


@torch.no_grad()
def init_as_interpolator(generator: SRResNet) -> None:
    """Initialise a generator as bilinear upsampling.

    With the default initialisation the first thousands of steps only learn to copy the image. Here
    the first three feature maps carry R, G and B through the network; the others start at random.

    - head: centre tap 1 (PReLU passes values in [0, 1]);
    - residual blocks, and the block after them: the last batch norm's gain is 0, so only the skips
      pass (Goyal et al. 2017);
    - sub-pixel convolutions: the four sub-pixels of a map start equal (ICNR, Aitken et al. 2017),
      the first three maps are passed on: each pixel is repeated 4 x 4 times;
    - tail: (1 2 2 2 1)/8 in both directions turns that repetition into bilinear interpolation
      (half-pixel centres), scaled to [-1, 1]; its other weights are small, so they have gradients.
    """
    head = generator.head[0]
    head.weight[:3] = 0
    head.bias[:3] = 0
    head.weight[:3, :3, 4, 4] = torch.eye(3)

    for block in generator.blocks:
        nn.init.zeros_(block.body[4].weight)
    nn.init.zeros_(generator.after_blocks[1].weight)

    for conv, _, _ in generator.upsample:  # PixelShuffle: map c is filters 4c .. 4c+3
        conv.weight.copy_(conv.weight[::4].repeat_interleave(4, dim=0))
        conv.bias.copy_(conv.bias[::4].repeat_interleave(4, dim=0))
        conv.weight[:12] = 0
        conv.bias[:12] = 0
        conv.weight[:12, :3, 1, 1] = torch.eye(3).repeat_interleave(4, dim=0)

    tap = torch.tensor([1, 2, 2, 2, 1]) / 8
    nn.init.normal_(generator.tail.weight, std=1e-3)
    generator.tail.weight[:, :3] = 0
    for c in range(3):
        generator.tail.weight[c, c, 2:7, 2:7] = 2 * torch.outer(tap, tap)  # [0, 1] -> [-1, 1]
    generator.tail.bias.fill_(-1)


# (width / 64, stride) of the eight convolutions of figure 4: k3n64s1, k3n64s2, ..., k3n512s2.
CONVOLUTIONS = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)]


class Discriminator(nn.Module):
    """The discriminator of figure 4: images (N, 3, H, W) in [0, 1] -> logits (N,).

    The final sigmoid is left to the loss: binary cross-entropy with logits cannot overflow.
    """

    def __init__(self, num_channels: int = 64):
        super().__init__()
        layers, previous = [], 3
        for factor, stride in CONVOLUTIONS:
            width, first = factor * num_channels, not layers
            layers.append(nn.Conv2d(previous, width, 3, stride, padding=1, bias=first))
            if not first:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.LeakyReLU(0.2))
            previous = width
        self.features = nn.Sequential(*layers)
        # The features of a 96 x 96 crop are 6 x 6 already. Pooling admits other crop sizes.
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(previous * 36, 16 * num_channels),
            nn.LeakyReLU(0.2),
            nn.Linear(16 * num_channels, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        features = self.features(2 * image - 1)  # (N, 512, H/16, W/16)
        return self.classifier(self.pool(features)).squeeze(1)  # (N,)


VGG_WIDTHS = (64, 128, 256, 512, 512)  # of the convolutions before each max-pooling
VGG_COUNTS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # how many they are


class VGGFeatures(nn.Module):
    """phi_ij (section 2.2.1): (N, 3, H, W) in [0, 1] -> features (N, C, H/2^(i-1), W/2^(i-1)).

    phi_ij is the output of the j-th convolution, after its activation, before the i-th max-pooling.
    ValueError if there is none. It is not trained, stays in eval mode, and is in no checkpoint.

    Args:
        i, j: of VGG19 (5, 4) is the paper's VGG54, (2, 2) its VGG22; VGG16's last is (5, 3).
        depth: 19 or 16.
        pooling: "max" as in VGG, or "avg" (Gatys et al. 2016). The maximum of 2 x 2 features rises
            if one pixel in four does, so with "max" a generator learns to draw a grid.
        weights: "torchvision", "original" or a file, see `tools.vgg_weights`.
    """

    def __init__(
        self, i: int, j: int, depth: int = 19, pooling: str = "max", weights: str = "torchvision"
    ):
        super().__init__()
        counts = VGG_COUNTS.get(depth, ())
        if not (1 <= i <= len(counts) and 1 <= j <= counts[i - 1]):
            names = [f"phi_{block}1..{block}{n}" for block, n in enumerate(counts, start=1)]
            raise ValueError(f"VGG{depth} has no phi_{i}{j}; it has {', '.join(names) or 'none'}")
        layers, previous = [], 3
        for block in range(1, i + 1):
            if block > 1:
                layers.append(nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2))
            for _ in range(j if block == i else counts[block - 1]):
                layers += [nn.Conv2d(previous, VGG_WIDTHS[block - 1], 3, padding=1), nn.ReLU()]
                previous = VGG_WIDTHS[block - 1]
        self.features = nn.Sequential(*layers)  # numbered as torchvision's vgg19().features
        load_vgg_weights(self.features, depth, weights)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def normalise(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std

    def forward(self, image: Tensor) -> Tensor:
        return self.features(self.normalise(image))

    def train(self, mode: bool = True) -> "VGGFeatures":
        return super().train(False)  # stays in eval mode


def save_generator(path: str | Path, generator: SRResNet, **info: Any) -> None:
    """Write a generator's weights, and `info` about its training (anything JSON can hold)."""
    checkpoints.write(path, generator.state_dict(), {"kind": "generator", "info": info})


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> SRResNet:
    """The generator of a file that `save_generator` wrote, in eval mode; `info` is an attribute.

    Raises FileNotFoundError if there is none, ValueError if it is damaged or holds something else.
    """
    way_out = "train one with train.ipynb, or name another .safetensors file"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such generator file: {way_out}")
    weights, facts = checkpoints.read(path)
    try:
        # The architecture is in the names and shapes. On the device "meta" nothing is allocated
        # until they have been compared.
        blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        if len(weights) < 13 * len(blocks):  # tensors of a block: a forged file could name millions
            raise ValueError(f"{len(blocks)} blocks in {len(weights)} tensors")
        with torch.device("meta"):
            generator = SRResNet(len(blocks), len(weights["head.0.weight"]))
        for name, value in generator.state_dict().items():
            if weights[name].dtype != value.dtype:
                raise TypeError(f"{name} is {weights[name].dtype}")
        generator.load_state_dict(weights, assign=True)
        generator.info = dict(facts["info"])
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} holds no SRResNet ({error}): {way_out}") from error
    return speed_up(generator, device).eval()


def interpolate(generator_a: SRResNet, generator_b: SRResNet, alpha: float) -> SRResNet:
    """The weights (1 - alpha) a + alpha b, from smooth to sharp (ESRGAN, 2018, section 3.4).

    b must have been trained from a. Batch-norm statistics are mixed, too; those of the mixture's
    own features come from `torch.optim.swa_utils.update_bn`.
    Raises ValueError if the architectures differ or alpha is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is 0 (the first generator) to 1 (the second), not {alpha}")
    mixture, other = copy.deepcopy(generator_a).eval(), generator_b.state_dict()
    weights = mixture.state_dict()
    if [value.shape for value in weights.values()] != [value.shape for value in other.values()]:
        raise ValueError("only generators of one architecture can be mixed")
    for name, value in weights.items():
        if value.is_floating_point():
            value.lerp_(other[name].to(value), alpha)
    mixture.info = {"alpha": alpha, "a": generator_a.info, "b": generator_b.info}
    return mixture
