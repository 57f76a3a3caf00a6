"""Fixtures for several test files."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import SRResNet


def make_images(folder, count=4, height=48, width=64):
    """Path of `folder/list.csv`: pairs of smooth random images, HR and the means of its 4 x 4."""
    random = np.random.default_rng(0)
    rows = []
    for k in range(count):
        small = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        hr = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        hr.save(folder / f"{k}.png")
        hr.reduce(4).save(folder / f"{k}_lr.png")
        rows.append((folder / f"{k}.png", folder / f"{k}_lr.png", width, height))
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("hr", "lr", "width", "height"), *rows])
    return folder / "list.csv"


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Path of a list of four 64 x 48 HR images and their LR images, for tests that change none."""
    return make_images(tmp_path_factory.mktemp("images"))


def trained_generator(seed=0, blocks=2, channels=8, **info):
    """A generator in eval mode whose batch norms have other gains and statistics than at first."""
    torch.manual_seed(seed)
    generator = SRResNet(blocks, channels)
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    generator(torch.rand(3, 3, 8, 8))
    generator.info = info
    return generator.eval()


M = "max-pooling"
VGG_TABLE = {  # columns D and E of Simonyan and Zisserman's table 1
    16: [64, 64, M, 128, 128, M, 256, 256, 256, M, 512, 512, 512, M, 512, 512, 512, M],
    19: [64, 64, M, 128, 128, M, *(4 * [256]), M, *(4 * [512]), M, *(4 * [512]), M],
}


@pytest.fixture(scope="session")
def vgg_folder(tmp_path_factory):
    """A folder with vgg16.pth and vgg19.pth: random weights under torchvision's key names."""
    folder, random = tmp_path_factory.mktemp("vgg"), torch.Generator().manual_seed(0)
    for depth, table in VGG_TABLE.items():
        state, index, previous = {}, 0, 3
        for entry in table:
            if entry == M:
                index += 1
                continue
            shape, scale = (entry, previous, 3, 3), (2 / (9 * previous)) ** 0.5
            state[f"features.{index}.weight"] = scale * torch.randn(shape, generator=random)
            state[f"features.{index}.bias"] = 0.1 * torch.randn(shape[0], generator=random)
            previous, index = shape[0], index + 2  # a ReLU follows
        torch.save(state, folder / f"vgg{depth}.pth")
    yield folder
    for path in folder.iterdir():  # 140 MB
        path.unlink()
