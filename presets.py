"""The settings of every preset, and what each setting may be; trains nothing.

A run is a folder, the lists of its images, and stages that are trained one after the other. The
stage "srresnet" trains the generator alone; every other stage is adversarial. A preset says only
what differs from the defaults.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

TEST_SETS = ("Set5", "Set14", "B100", "Urban100", "DIV2K_valid")  # the first one is shown, too
RUN = dict(  # settings of a whole run
    about="",  # what to expect, in a sentence
    folder="checkpoints/mine",  # checkpoints, logs and generators
    train_list="data/lists/train.csv",
    valid_list="data/lists/valid.csv",
    test_lists=[f"data/lists/{s}.csv" for s in TEST_SETS],
    results="results",  # tables and pictures
    num_valid_images=3,  # validated after each epoch, never trained on
    seed=0,
    generator={},  # arguments of SRResNet
    discriminator={},  # arguments of Discriminator
    stages={},
)

STAGE = dict(  # settings of every stage
    epochs=1,  # one epoch: patches_per_image patches of every training image
    patches_per_image=100,
    crop_size=96,  # HR pixels (paper, section 3.2)
    batch_size=16,  # over all processes (paper)
    learning_rate=1e-4,  # the paper's; of Adam
    schedule="constant",  # "cosine": to zero; "tenth": a tenth in the second half (paper, SRGAN)
    warmup_steps=0,  # the rate grows linearly from zero
    optimizer="adam",  # "muon": see tools/muon.py
    ema_decay=0.999,  # of the averaged generator; half-life 693 steps
    batch_norm_batches=0,  # batches to recompute its batch-norm statistics from; 0: averaged too
    mixed_precision="no",  # "bf16", "fp16"; "auto": what the device is fastest in, or "no"
    compile=False,  # torch.compile, a minute at the start; for Adam on a GPU a CUDA graph, seconds
    log_every=20,  # steps between rows of the history; reading a loss synchronises a GPU
    checkpoint_minutes=10,  # between checkpoints within an epoch
    keep_last=2,  # checkpoints kept
    keep_every=0,  # also keep the generator of every k-th epoch; 0: none
)

ADVERSARIAL = dict(  # more settings of an adversarial stage
    start="srresnet",  # the stage whose generator it starts from; "": random weights (base mode)
    content_loss="vgg54",  # "mse", "vgg<i><j>" of VGG19, "vgg16_<i><j>" of VGG16 (equations 4, 5)
    content_weight=0.5,  # of torchvision's phi_54: content : adversarial starts near 20 : 1
    adversarial_weight=1e-3,  # paper, equation 3
    grid_weight=0.0,  # of `losses.grid_loss`; 0: the paper's loss
    lr_consistency_weight=0.0,  # of `losses.lr_consistency_loss`; 0: the paper's loss
    texture_weight=0.0,  # of `losses.make_texture_loss`; 0: the paper's loss
    discriminator_warmup_steps=0,  # the discriminator alone, before the first generator step
    vgg_weights="torchvision",  # "original": Simonyan and Zisserman's; or a file
    vgg_pooling="max",  # "avg": the content loss draws no checkerboard of its own
    frozen_layers=[],  # modules of the generator that are not trained, such as "upsample"
    batch_norm_batches=32,
)

METHODS = dict(srresnet="SRResNet", srgan="SRGAN", srgan_mse="SRGAN-MSE", base="base mode")

ONE_OF = dict(
    schedule=("constant", "cosine", "tenth"),
    optimizer=("adam", "muon"),
    mixed_precision=("no", "bf16", "fp16", "auto"),
    vgg_pooling=("max", "avg"),
)
# Smaller patches than 32 may reach one pixel in the discriminator: batch norm needs more.
AT_LEAST = dict(epochs=1, patches_per_image=1, crop_size=32, batch_size=1, log_every=1, keep_last=1)
AT_MOST = dict(ema_decay=1)
# May change when a run resumes: they do not change what is trained.
BOOKKEEPING = {"log_every", "checkpoint_minutes", "keep_last", "keep_every", "batch_norm_batches"}

# What Muon, bfloat16, compilation and the initialisation are worth: report.md, section 5.
FAST = dict(optimizer="muon", learning_rate=1e-3, schedule="cosine", mixed_precision="auto")
INTERPOLATOR = dict(init="interpolator")  # starts as bilinear upsampling: saves hours
PIXELS = dict(content_loss="mse", content_weight=1.0)  # needs no VGG weights
# A few minutes: batches of 8 give more steps for the same pixels; EMA with a half-life of 69 steps.
SHORT = dict(batch_size=8, ema_decay=0.99, mixed_precision="auto")
SRRESNET = dict(**FAST, compile=True, epochs=6, batch_size=8, warmup_steps=200)
CONTRASTS = dict(  # what SRGAN is compared with, short
    srgan_mse=dict(**SHORT, **PIXELS, compile=True, patches_per_image=14),
    base=dict(**SHORT, **PIXELS, compile=True, patches_per_image=14, start=""),
)
# The paper's loss and three additions: against fixed patterns, against stains, for texture (report,
# section 5.3).
# The last features of VGG16 with average pooling, as phi_54 is of VGG19.
ADDITIONS = dict(
    learning_rate=2e-4,
    schedule="cosine",
    content_loss="vgg16_53",
    content_weight=0.02,
    vgg_weights="original",
    vgg_pooling="avg",
    grid_weight=150.0,
    lr_consistency_weight=30.0,
    texture_weight=0.5,
    discriminator_warmup_steps=300,
    mixed_precision="auto",
    compile=True,
)
VGG19 = dict(content_loss="vgg54", content_weight=0.5, vgg_weights="torchvision", vgg_pooling="max")

PRESETS = dict(
    quick=dict(
        about="Ten photographs, minutes: SRResNet at least 1 dB above bicubic on held-out ones.",
        train_list="data/embedded/lists/train.csv",
        valid_list="data/embedded/lists/valid.csv",
        test_lists=["data/embedded/lists/embedded_test.csv"],
        results="results/quick",
        generator=INTERPOLATOR,
        stages=dict(
            # small batches: more steps for the same pixels
            srresnet=dict(**FAST, epochs=8, batch_size=4, warmup_steps=100),
            srgan=dict(**PIXELS, patches_per_image=16, batch_size=4),
        ),
    ),
    laptop=dict(
        about="Two CPU cores. On 291 photographs two and a half hours for SRResNet, 31.67 dB on "
        "Set5, and as long for SRGAN. On DIV2K, 800 images, 2.7 times as long.",
        generator=INTERPOLATOR,
        stages=dict(
            srresnet=SRRESNET,
            srgan=dict(**ADDITIONS, epochs=10, patches_per_image=24, batch_size=8),
            **CONTRASTS,
        ),
    ),
    gpu=dict(
        about="One NVIDIA GPU: the committed results. SRResNet as in laptop; SRGAN on 291 "
        "photographs in minutes on an H100: 29.6 dB on Set5.",
        generator=INTERPOLATOR,
        stages=dict(
            srresnet=SRRESNET,
            srgan=dict(**ADDITIONS, epochs=4, patches_per_image=160, batch_size=16, keep_every=1),
            **CONTRASTS,
        ),
    ),
    afternoon=dict(
        about="One GPU, DIV2K: a tenth of the paper's steps; SRResNet above 31.5 dB on Set5. "
        "SRGAN by VGG19's phi_54 and three losses that are not the paper's; not yet run.",
        generator=INTERPOLATOR,
        stages=dict(
            srresnet=dict(**FAST, compile=True, epochs=20, warmup_steps=1000),
            srgan=dict(**ADDITIONS | VGG19, epochs=4),
            srgan_mse=dict(**PIXELS, epochs=1, schedule="tenth"),
            base=dict(**PIXELS, start=""),
        ),
    ),
    paper=dict(  # section 3.2: 1e6 steps, then 1e5 at 1e-4 and 1e5 at 1e-5; 5,000 steps an epoch
        about="The paper's own recipe, DIV2K: 32.05 dB and 29.40 dB on Set5, as published.",
        # The paper's content weight, (1/12.75)^2 = 0.0061, belongs to the original weights of
        # VGG19. With torchvision's it is a hundredth of what is needed: Set5 falls to 25.65 dB.
        stages=dict(srresnet=dict(epochs=200), srgan=dict(epochs=40, schedule="tenth")),
    ),
)


def get_settings(preset: str) -> dict[str, Any]:
    """The settings of a preset, a copy to change. Raises ValueError with the names for another."""
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    return copy.deepcopy({**RUN, "folder": f"checkpoints/{preset}", **PRESETS[preset]})


def read_settings(
    source: str | Path, checkpoints: str = "checkpoints", run: str = ""
) -> dict[str, Any]:
    """The settings of a preset, or of a .json file.

    run: a name for a run of one's own, with the folders `checkpoints`/<run> and results/<run>.
    Without it a preset has `checkpoints`/<preset>, and a file says its own. Raises ValueError for
    another preset, a file that cannot be read, and a run whose name is no folder's.
    """
    if source in PRESETS or not str(source).endswith(".json"):
        settings = {**get_settings(str(source)), "folder": f"{checkpoints}/{source}"}
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
            settings = copy.deepcopy({**RUN, **json.loads(text)})
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{source} is no settings file that can be read ({error})") from error
    if run:
        if not all(letter.isalnum() or letter in "-_." for letter in run) or run.startswith("."):
            raise ValueError(f"run is a name of letters, digits, -, _ and dots, not {run!r}")
        settings |= {"folder": f"{checkpoints}/{run}", "results": f"results/{run}"}
    return settings


def trained_settings(
    source: str | Path, checkpoints: str = "checkpoints", run: str = ""
) -> dict[str, Any]:
    """The settings with which a run was last trained; where it was not, those of `read_settings`.

    So what was changed for the training holds for tests and pictures. Arguments and errors as for
    `read_settings`.
    """
    settings = read_settings(source, checkpoints, run)
    saved = Path(settings["folder"], "settings.json")
    if not saved.is_file():
        return settings
    return {**read_settings(saved), "folder": settings["folder"]}  # the folder may have moved


def steps(settings: dict[str, Any], num_images: int) -> dict[str, int]:
    """Generator steps of each stage, in all its epochs, on so many training images."""
    return {
        name: stage["epochs"]
        * math.ceil(num_images * stage["patches_per_image"] / stage["batch_size"])
        for name, stage in check_settings(settings)["stages"].items()
    }


def check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run with all defaults filled in. Raises as `check`."""
    checked, before = check(settings, RUN, "the run"), []
    for stage, values in checked["stages"].items():
        defaults = STAGE if stage == "srresnet" else {**STAGE, **ADVERSARIAL}
        checked["stages"][stage] = check(values, defaults, stage)
        start = checked["stages"][stage].get("start")
        if start and start not in before:
            raise ValueError(f"{stage}: start is a stage before it, or '' for none; not {start!r}")
        before.append(stage)
    return checked


def check(values: dict[str, Any], defaults: dict[str, Any], owner: str) -> dict[str, Any]:
    """A copy of `values` over `defaults`.

    Raises ValueError for an unknown name, a wrong type or a value out of range; names the setting.
    """
    if not isinstance(values, dict):
        raise ValueError(f"the settings of {owner} are names with values, not {values!r}")
    unknown = sorted(set(values) - set(defaults))
    if unknown:
        raise ValueError(f"{owner} has no setting {unknown}; it has {sorted(defaults)}")
    for name, value in values.items():
        kind = type(defaults[name])
        number = kind in (int, float)
        right = int if kind is int else (int, float) if kind is float else kind
        if not isinstance(value, right) or (number and isinstance(value, bool)):
            raise ValueError(f"{owner}: {name} is a {kind.__name__}, not {value!r}")
        if name in ONE_OF and value not in ONE_OF[name]:
            raise ValueError(f"{owner}: {name} is one of {', '.join(ONE_OF[name])}; not {value!r}")
        low, high = AT_LEAST.get(name, 0), AT_MOST.get(name, 1e12)
        if number and not low <= value <= high:
            raise ValueError(f"{owner}: {name} is {value}; it is from {low} to {high:g}")
    return copy.deepcopy({**defaults, **values})
