"""The losses of the SRGAN paper (Ledig et al. 2017, section 2.2), and two additions.

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
