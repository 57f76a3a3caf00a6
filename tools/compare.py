"""The page on which methods' images are compared, pixel by pixel; makes no SR images.

`python -m tools.compare results/Set5 -o compare.html` writes one HTML file: the methods in place,
side by side, with a slider, and their difference to HR, with PSNR and SSIM. It needs no network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metrics import psnr, ssim
from tools.pages import ORIGINAL, fill_template, in_order, png, read_images, read_versions
from utils import progress_bar


def write_page(
    images: str | Path | dict[str, dict[str, np.ndarray]],
    target: str | Path,
    title: str | None = None,
    methods: Sequence[str] | None = None,
) -> Path:
    """Write the page that compares the methods' images and return its path, `target`.

    Args:
        images: a folder that holds <method>/<image>.png, or one image as <method>.png; or
            {image: {method: uint8 (H, W, 3)}}, every image with the same methods. The method HR is
            the original. Without it the page has no PSNR, and the first method stands in for it.
        title: of the page; by default the folder's name.
        methods: the folders to show, in this order; by default all that hold images.

    Raises FileNotFoundError or ValueError naming what is missing or of another size or type.
    """
    if isinstance(images, (str, Path)):
        title = title or Path(images).resolve().name
        images = _read(images, methods)
    if not images or not all(images.values()):
        raise ValueError("no images to compare")
    rows = []
    for image, versions in progress_bar(images.items(), desc="page", unit="image"):
        if versions.keys() != next(iter(images.values())).keys():
            raise ValueError(f"{image}: has other methods than {next(iter(images))}; complete it")
        rows.append({"name": image, "versions": _scored(image, versions)})
    data = {"title": title or rows[0]["name"], "original": ORIGINAL, "images": rows}
    return fill_template("compare_page.html", data, target)


def _read(folder, methods):
    """{image: {method: uint8 (H, W, 3)}} of a folder."""
    versions = read_versions(folder, methods)
    if versions:
        names = next(iter(versions.values()))
        return {image: {method: versions[method][image] for method in versions} for image in names}
    if versions := read_images(folder):
        ordered = {method: versions[method] for method in in_order(versions)}
        return {Path(folder).resolve().name: ordered}
    raise ValueError(f"{folder}: no images; expected <method>/<image>.png, e.g. SRGAN/bird.png")


def _scored(image, versions):
    """[{"method", "png", "psnr", "ssim"}] of {method: array}; the scores are None without HR."""
    first, hr, rows = next(iter(versions.values())), versions.get(ORIGINAL), []
    for method, array in versions.items():
        found = f"{image}, {method}: {array.dtype} {array.shape}"
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"{found}; expected uint8 RGB (H, W, 3)")
        if array.shape != first.shape:
            raise ValueError(f"{found}, but {next(iter(versions))} {first.shape}; make them alike")
        row = {"method": method, "png": png(array), "psnr": None, "ssim": None}
        if hr is not None and method != ORIGINAL:
            try:
                row |= {"psnr": psnr(array, hr), "ssim": ssim(array, hr)}
            except ValueError as error:
                raise ValueError(f"{image}, {method}: {error}") from error
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tools.compare", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "folder", help="holds <method>/<image>.png, e.g. results/Set5; or <method>.png of one image"
    )
    add("-o", "--out", default="compare.html", help="the HTML file (default: compare.html)")
    add("--title", help="of the page (default: the folder's name)")
    add("--methods", nargs="+", help="folders to show, in this order (default: all with images)")
    options = parser.parse_args(arguments)
    try:
        out = write_page(options.folder, options.out, options.title, options.methods)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    main()
