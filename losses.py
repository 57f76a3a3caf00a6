"""The losses of the SRGAN paper, of batches of images (N, 3, H, W) in [0, 1]; how they are weighed is the solver's.

Networks may compute in half precision: losses are summed up in float32.

Ledig et al. 2017, section 2.2.
"""

import torch
import torch.nn.functional as F

from models import VGGFeatures


def mse(sr, hr):
    """Mean squared error in the paper's range: images in [0, 1] differ by twice as much in [-1, 1]."""
    return 4 * F.mse_loss(sr.float(), hr.float())


def bce(logits, target):
    """Binary cross-entropy of logits (N,) against one target for all: 1.0 real, 0.0 generated."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def content_loss(name, vgg_weights=None, device="cpu"):
    """A content loss by name, "mse" or "vgg<i><j>" (paper, equations 4 and 5), as (f(sr, hr) -> scalar, source of weights)."""
    if name == "mse":
        return mse, None
    if not (name.startswith("vgg") and name[3:].isdigit() and len(name) == 5):
        raise ValueError(f'content_loss is "mse" or "vgg" with i and j, such as "vgg54" or "vgg22"; not {name!r}')
    features = VGGFeatures(int(name[3]), int(name[4]), vgg_weights).to(device, memory_format=torch.channels_last)

    def vgg_loss(sr, hr):
        with torch.no_grad():
            wanted = features(hr)
        return F.mse_loss(features(sr).float(), wanted.float())

    return vgg_loss, features.source


def default_content_weight(name, source):
    """The weight that brings content : adversarial to about 20 : 1 after pre-training.

    The paper's 1/12.75 (0.0061 for squared features, section 3.2) belongs to other VGG19 weights than torchvision's.
    """
    if name == "mse":
        return 1.0
    return 0.5 if source == "torchvision" else 0.015
