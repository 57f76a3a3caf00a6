"""The losses of the SRGAN paper (Ledig et al. 2017, section 2.2), and three additions.

Images are (N, 3, H, W) in [0, 1]. Networks may compute in half precision; losses are summed in
float32. Weights of losses are settings, see `presets.py`.
"""

import functools
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from imresize import imresize
from models import VGGFeatures
from tools.acceleration import speed_up  # the same results, faster
from utils import SCALE


def mse(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared error in the paper's range [-1, 1], where differences are twice as large."""
    return 4 * F.mse_loss(sr.float(), hr.float())  # equation 4


def bce(logits: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of logits (N,) with one target for all: 1.0 real, 0.0 generated."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def grid_loss(sr: Tensor, hr: Tensor) -> Tensor:
    """How much the mean error depends on the position within 4 x 4 pixels: a fixed pattern.

    An addition of this project, not the paper's: the cheapest way to look sharp is one pattern on
    the sixteen sub-pixels of each LR pixel. For each patch and colour, the mean of SR - HR at each
    of the 16 positions, less the mean of the 16; squared, averaged. Texture has no preferred
    position, so it costs texture nearly nothing.
    """
    errors = F.pixel_unshuffle(sr.float() - hr.float(), SCALE)  # (N, 3 * 16, h, w)
    means = errors.mean((2, 3)).view(len(sr), -1, SCALE**2)
    return (means - means.mean(2, keepdim=True)).square().mean()


def lr_consistency_loss(sr: Tensor, lr: Tensor) -> Tensor:
    """Mean squared difference of SR, reduced bicubically, and LR: (N, 3, 4h, 4w), (N, 3, h, w).

    An addition of this project, not the paper's: deep features do not feel colours that drift
    slowly. Two LR pixels at each side are left out, where reducing needs pixels beyond the patch.
    """
    rows, columns = (reduction(side, sr.device) for side in sr.shape[2:])
    with torch.autocast(sr.device.type, enabled=False):
        difference = rows @ sr.float() @ columns.T - lr.float()
    return difference[:, :, 2:-2, 2:-2].square().mean()


@functools.cache
def reduction(side: int, device: torch.device) -> Tensor:
    """`imresize` to a quarter of one dimension, as a matrix (side / 4, side): a patch is small."""
    identity = torch.eye(side, dtype=torch.float64)[None]
    return imresize(identity, (side // SCALE, side))[0].to(device, torch.float32)


def make_content_loss(
    name: str,
    pooling: str = "max",
    weights: str = "torchvision",
    device: str | torch.device = "cpu",
) -> Callable[[Tensor, Tensor], Tensor]:
    """The content loss of a name, as a function of (sr, hr).

    Args:
        name: "mse", or "vgg<i><j>" (VGG19) or "vgg16_<i><j>" for the mean squared difference of
            the features phi_ij (equation 5).
        pooling, weights: see `VGGFeatures`.

    Raises:
        ValueError, FileNotFoundError: there is no such loss, or there are no weights.
    """
    if name == "mse":
        return mse
    match = re.fullmatch(r"vgg(16_|19_)?(\d)(\d)", name)
    if match is None:
        raise ValueError(f'content_loss is "mse", "vgg54", "vgg22", "vgg16_53", ...; not {name!r}')
    depth, i, j = (match[1] or "19_")[:2], match[2], match[3]
    features = speed_up(VGGFeatures(int(i), int(j), int(depth), pooling, weights), device)

    def vgg_loss(sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            target = features(hr)
        return F.mse_loss(features(sr).float(), target.float())

    return vgg_loss


# Of VGG, each up to the first activation of a block, and how many of its features are 16 pixels.
TEXTURE_LAYERS = ((slice(0, 2), 16), (slice(2, 7), 8), (slice(7, 12), 4))


def make_texture_loss(
    name: str, pooling: str, weights: str, device: str | torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """The texture loss of EnhanceNet (Sajjadi et al. 2017, section 4.2.3), of (sr, hr).

    An addition of this project, not the SRGAN paper's. How features occur together within 16 x 16
    pixels, their Gram matrix, is a texture's signature, wherever its details lie. The loss is
    ||G(SR) - G(HR)||^2 / ||G(HR)||^2, averaged over all squares of 16 x 16 pixels and the layers
    conv1_1, conv2_1 and conv3_1 of VGG: VGG16 for a `name` "vgg16_<i><j>", else VGG19. The other
    arguments, and errors, are those of `make_content_loss`.
    """
    depth = 16 if name.startswith("vgg16_") else 19
    vgg = speed_up(VGGFeatures(3, 1, depth, pooling, weights), device)

    def grams(image: Tensor) -> list[Tensor]:
        """Of each layer, (N, number of squares, C, C)."""
        x, found = vgg.normalise(image), []
        for layers, side in TEXTURE_LAYERS:
            x = vgg.features[layers](x)
            n, c, h, w = x.shape
            x_cut = x[:, :, : h // side * side, : w // side * side].float()
            squares = x_cut.view(n, c, h // side, side, -1, side).permute(0, 2, 4, 1, 3, 5)
            squares = squares.reshape(n, -1, c, side**2)
            with torch.autocast(x.device.type, enabled=False):
                found.append(squares @ squares.transpose(2, 3) / side**2)
        return found

    def texture_loss(sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            targets = grams(hr)
        errors = [
            (gram - target).square().sum((2, 3)) / target.square().sum((2, 3)).clamp_min(1e-3)
            for gram, target in zip(grams(sr), targets, strict=True)
        ]
        return torch.stack([error.mean() for error in errors]).mean()

    return texture_loss
