"""Fixtures for several test files."""

import csv

import numpy as np
import pytest
from PIL import Image


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
