"""The losses of the SRGAN paper (Ledig et al. 2017, section 2.2).

Images are (N, 3, H, W) in [0, 1]. Networks may compute in half precision; losses are summed in
float32. Weights of losses are settings, see `presets.py`.
"""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models import VGGFeatures
from tools.acceleration import speed_up  # the same results, faster


def mse(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared error in the paper's range [-1, 1], where differences are twice as large."""
    return 4 * F.mse_loss(sr.float(), hr.float())  # equation 4


def bce(logits: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of logits (N,) with one target for all: 1.0 real, 0.0 generated."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


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
