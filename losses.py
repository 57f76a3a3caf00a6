"""The losses of the SRGAN paper, of batches of images (N, 3, H, W) in [0, 1], their weights, and what they tell.

Networks may compute in half precision: losses are summed up in float32.

Ledig et al. 2017, section 2.2.
"""

import statistics

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


def content_loss(name, vgg_weights=None, device="cpu", vgg_pooling="max"):
    """A content loss by name, "mse" or "vgg<i><j>" (paper, equations 4 and 5), as (f(sr, hr) -> scalar, source of weights)."""
    if name == "mse":
        return mse, None
    if not (name.startswith("vgg") and name[3:].isdigit() and len(name) == 5):
        raise ValueError(
            f'content_loss is "mse" or "vgg" with i and j, such as "vgg54" or "vgg22"; not {name!r}'
        )
    features = VGGFeatures(int(name[3]), int(name[4]), vgg_weights, vgg_pooling).to(
        device, memory_format=torch.channels_last
    )

    def vgg_loss(sr, hr):
        with torch.no_grad():
            wanted = features(hr)
        return F.mse_loss(features(sr).float(), wanted.float())

    return vgg_loss, features.source


# Which weight of the content loss brings content : adversarial to about 20 : 1 after pre-training. The same distance
# between two images is another number in another network: so it depends on where VGG19's weights came from.
CONTENT_WEIGHTS = {
    "mse": 1.0,
    "torchvision": 0.5,  # phi_54; 0.3 to 1.0 land near the paper's 29.4 dB on Set5
    "vgg19-dcbb9e9d.pth": 0.5,  # the file that torchvision downloads
    "other": 0.015,  # weights that are scaled to a mean activation of about 1
}

# The paper's 1/12.75 (section 3.2) scales features, so the squared distance is scaled by its square, 0.0061. It was
# meant to bring the VGG loss to the size of the mean squared error, with other VGG19 weights than torchvision's. With
# those it is a hundredth of what is needed: the adversarial loss rules alone, and Set5 falls to 25.65 dB.
PAPER_CONTENT_WEIGHT = 1 / 12.75**2


def content_weight(weight, name, source):
    """The number that a setting means, for a loss and the source of its weights as `content_loss` takes and returns them.

    weight: a number: itself; None: the one of `CONTENT_WEIGHTS` that fits; "paper": `PAPER_CONTENT_WEIGHT`, and 1 for "mse".
    """
    if weight is None:
        return (
            CONTENT_WEIGHTS["mse"]
            if name == "mse"
            else CONTENT_WEIGHTS.get(source, CONTENT_WEIGHTS["other"])
        )
    if weight == "paper":
        return 1.0 if name == "mse" else PAPER_CONTENT_WEIGHT
    if isinstance(weight, str):
        raise ValueError(
            f'content_weight is a number, "paper", or None for one that fits; not {weight!r}'
        )
    return weight


# --- is the game between generator and discriminator still on? -------------------------------------------------------

STEPS_TO_JUDGE = 500  # what goes wrong for fewer steps than that often comes right by itself
HEALTHY_RATIO = (2, 200)  # content : adversarial; about 20 after pre-training


def health(rows):
    """What is wrong with an adversarial training, as {cause: what is seen, what it means, what to change}; {} if nothing is.

    Args:
        rows: of `Solver.history["train"]`. Judged by the medians of the last `STEPS_TO_JUDGE` steps; {} before these.
    """
    if not rows or rows[-1]["step"] < STEPS_TO_JUDGE:
        return {}
    last = [row for row in rows if row["step"] > rows[-1]["step"] - STEPS_TO_JUDGE]
    names = ("content_to_adversarial", "d_real", "d_generated")
    ratio, real, generated = (statistics.median(row[name] for row in last) for name in names)
    low, high = HEALTHY_RATIO
    says = f"Over the last {STEPS_TO_JUDGE} steps, up to step {rows[-1]['step']}, "
    seen = f"{says}D(x) was {real:.3f} and D(G(z)) {generated:.3f}: "
    found = {}
    if ratio > high:
        found["ratio high"] = (
            f"{says}content : adversarial was {ratio:.0f} : 1 (healthy: {low} to {high}). The generator hardly feels the "
            f"discriminator and stays as smooth as SRResNet. Divide content_weight by about {ratio / 20:.0f}."
        )
    if ratio < low:
        found["ratio low"] = (
            f"{says}content : adversarial was {ratio:.2g} : 1 (healthy: {low} to {high}). Hardly anything holds the generator "
            f"to the content; colours and textures drift. Multiply content_weight by about {20 / ratio:.0f}."
        )
    if real > 0.98 and generated < 0.02:
        found["D has won"] = (
            f"{seen}the discriminator has won, and how to do better the generator learns no more. Lower content_weight, so "
            "that it may follow, or learning_rate; or train SRResNet for longer before."
        )
    if abs(real - generated) < 0.02:
        found["D is dead"] = (
            f"{seen}the discriminator cannot tell them apart, and what it says is noise. Raise learning_rate or batch_size, and "
            "look at the samples: unless they are as good as photographs, begin anew."
        )
    return found
