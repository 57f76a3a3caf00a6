"""Folders of images -> checked CSV lists of (LR, HR) pairs. Fetches nothing: see tools/download.py.

    python create_data_lists.py                     list all sets under data/, into data/lists/
    python create_data_lists.py --download          first fetch the official sets that are missing
    python create_data_lists.py --embedded          list scikit-image's photographs: no download

A list has the columns hr, lr, width, height: two paths relative to the current directory, and the
size of the HR image in pixels. HR images without LR images get theirs from `imresize`.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from imresize import imresize
from tools.download import SETS, check, download, is_there  # behind --download and --check
from tools.image_files import IMAGE_FORMATS, IMAGE_SUFFIXES, ORIENTATION
from utils import SCALE, read_image, write_image, write_rows

USUAL_SETS = {"train": ["DIV2K_train", "photos"], "valid": ["DIV2K_valid", "Set5"]}
DOWNLOAD = "python create_data_lists.py --download"
MARKER = "MADE_BY_IMRESIZE.txt"  # in a folder of LR images that were made here and may be replaced

# Files in scikit-image's wheel. The motorcycle's two views show one scene: both are for training.
EMBEDDED = {
    "train": [
        "astronaut.png", "ihc.png", "hubble_deep_field.jpg", "retina.jpg", "motorcycle_left.png",
        "motorcycle_right.png", "brick.png", "grass.png", "gravel.png", "camera.png",
    ],
    "valid": ["rocket.jpg"],
    "embedded_test": ["chelsea.png", "coffee.png"],
}  # fmt: skip


class ImageSet(NamedTuple):
    """Where the HR and LR images of a set lie, and how the names of its LR files end."""

    name: str
    hr_folder: Path
    lr_folder: Path  # the same folder, if *_LR.png lie beside *_HR.png
    lr_suffix: str


def create_data_lists(
    data: str | Path = "data",
    out: str | Path = "data/lists",
    *,
    folders: list[str | Path] | None = None,
    train: str | Path | None = None,
    valid: str | Path | None = None,
    crop_size: int = 96,
    verify: bool = False,
) -> list[dict]:
    """Write a list for every set of images, as `out`/<set>.csv.

    folders: the sets to list; None: all under `data` (see `find_set`). train, valid: the folders
    to train and to validate on, listed under these names; None: the first of USUAL_SETS, unless
    `folders` are given. crop_size: HR images with a shorter side, in pixels, are left out. verify:
    decode every file instead of reading its header.

    Returns one {"set", "images", "folder", "list", "skipped": {path: reason}} per list. Raises
    FileNotFoundError where there is no such folder or no set, and, after writing the other lists,
    ValueError for sets without a usable image.
    """
    named = folders is not None
    if not named:
        folders = [
            folder
            for folder in sorted(Path(data).glob("[!.]*"))
            if folder.name.endswith("_HR") or (folder / "HR").is_dir() or any(folder.glob("*_HR.*"))
        ]
    sets = {image_set.name: image_set for image_set in map(find_set, folders)}
    for role, folder in [("train", train), ("valid", valid)]:
        existing = [name for name in USUAL_SETS[role] if name in sets]
        if folder is not None:
            sets[role] = find_set(folder)
        elif existing and not named:
            sets[role] = sets[existing[0]]
    # The training set has one list, train.csv, and none under its own name.
    sets = {name: s for name, s in sets.items() if name == "train" or s != sets.get("train")}
    if not sets:
        raise FileNotFoundError(
            f"{data}: no sets of images in it (current folder: {Path.cwd()}); fetch the official "
            f"ones: {DOWNLOAD}, or name your own: python create_data_lists.py --train FOLDER"
        )

    table, empty = [], []
    for name, image_set in sets.items():
        rows, skipped = _check_set(image_set, crop_size, verify)
        path, folder = Path(out) / f"{name}.csv", image_set.hr_folder.as_posix()
        if rows:
            write_rows(path, rows)
            row = {"set": name, "images": len(rows), "folder": folder, "list": path.as_posix()}
            table.append({**row, "skipped": skipped})
        else:
            reasons = "".join(f"\n  {file}: {skipped[file]}" for file in list(skipped)[:10])
            empty.append(f"{folder}: no image of it can be used{reasons or ', it has none'}")
    if empty:
        raise ValueError("\n".join([*empty, "fill or remove the folder and run this again"]))
    return table


def find_set(folder: str | Path) -> ImageSet:
    """The set of images in a folder.

    Known layouts: <name>/HR with LR images in <name>/LR; *_HR.png beside *_LR.png; the official
    one, <name>_HR (or any folder with the images themselves) with <name>_LR_bicubic/X4.
    """
    absolute = Path(os.path.abspath(folder))
    if not absolute.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (current folder: {Path.cwd()})")
    if absolute.name == "HR":
        absolute = absolute.parent
    name = absolute.name.removesuffix("_HR")
    if (absolute / "HR").is_dir():
        hr_folder, lr_folder, lr_suffix = absolute / "HR", absolute / "LR", ""
    elif any(absolute.glob("*_HR.*")):
        hr_folder, lr_folder, lr_suffix = absolute, absolute, "_LR"
    else:
        hr_folder, lr_suffix = absolute, f"x{SCALE}"
        lr_folder = absolute.with_name(f"{name}_LR_bicubic") / f"X{SCALE}"
    with suppress(ValueError):  # on another drive of Windows: they stay absolute
        hr_folder, lr_folder = Path(os.path.relpath(hr_folder)), Path(os.path.relpath(lr_folder))
    return ImageSet(name, hr_folder, lr_folder, lr_suffix)


def _find_images(image_set):
    """-> {key: HR path}, {key: LR path}, {path: why it is neither}; LR has the key of its HR."""
    _, hr_folder, lr_folder, _ = image_set
    images, skipped = {"HR": {}, "LR": {}}, {}
    for path in sorted({*hr_folder.glob("[!.]*"), *lr_folder.glob("[!.]*")}):  # no hidden files
        if path.is_dir() or path.name in (MARKER, "Thumbs.db"):
            continue
        if hr_folder == lr_folder:
            key, _, side = path.stem.rpartition("_")
        elif path.parent == hr_folder:
            key, side = path.stem.removesuffix("_HR"), "HR"
        else:
            key, side = path.stem.removesuffix("_LR").removesuffix(f"x{SCALE}"), "LR"
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped[path.as_posix()] = "not an image, going by its name"
        elif side not in images:
            skipped[path.as_posix()] = "its name ends neither in _HR nor in _LR"
        elif key in images[side]:
            skipped[path.as_posix()] = f"has the same name as {images[side][key].name}"
        else:
            images[side][key] = path
    return images["HR"], images["LR"], skipped


def _check_set(image_set, crop_size, verify):
    """-> (the rows of a set's list, {path: why it is not listed}). Makes missing LR images."""
    lr_folder = image_set.lr_folder
    hr_images, lr_images, skipped = _find_images(image_set)
    marker = lr_folder / MARKER
    if hr_images and not lr_images:
        lr_folder.mkdir(parents=True, exist_ok=True)
        marker.write_text("Made by create_data_lists.py from the HR images with imresize.\n")
    make = marker.exists()
    if make:
        lr_images = {key: lr_folder / f"{key}{image_set.lr_suffix}.png" for key in hr_images}
    for key, lr in lr_images.items():
        if key not in hr_images:
            skipped[lr.as_posix()] = "no HR image of this name"

    def check_pair(key):
        return _check_pair(hr_images[key], lr_images.get(key), make, crop_size, verify)

    rows = []
    with ThreadPoolExecutor(8) as pool:  # reading headers waits for the disk
        results = pool.map(check_pair, hr_images)
        bar = tqdm(results, image_set.name, len(hr_images), unit="image", delay=1)
        for hr, (row, reason) in zip(hr_images.values(), bar, strict=True):
            if row is None:
                skipped[hr.as_posix()] = reason
            else:
                rows.append(row)
    return rows, skipped


def _check_pair(hr, lr, make, crop_size, verify):
    """-> (the row of the pair, None), or (None, why it is not listed). If `make`, makes `lr`."""
    try:
        width, height = _image_size(hr, verify)
        if min(width, height) < crop_size:
            return None, f"{width} x {height} pixels, smaller than a patch of {crop_size}"
        if lr is None:
            return None, "no LR image of this name"
        if make and (not lr.exists() or lr.stat().st_mtime_ns < hr.stat().st_mtime_ns):
            image = read_image(hr)[: height // SCALE * SCALE, : width // SCALE * SCALE]
            write_image(lr, imresize(image, 1 / SCALE))
        lr_size, expected = _image_size(lr, verify), (width // SCALE, height // SCALE)
    except (OSError, ValueError) as error:
        return None, str(error).removeprefix(f"{hr}: ")
    if lr_size != expected:
        return None, f"{lr} has width and height {lr_size}, expected {expected}"
    return {"hr": hr.as_posix(), "lr": lr.as_posix(), "width": width, "height": height}, None


def _image_size(path, verify):
    """(width, height) of what `read_image` gives; decodes PNG and JPEG if in doubt or `verify`."""
    if not verify:
        with suppress(Exception), Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.format in ("JPEG", "MPO"):  # MPO: a camera's JPEG with previews
                turned = image.getexif().get(ORIENTATION, 1) >= 5  # lying on its side
                return (image.height, image.width) if turned else image.size
            extras = {"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp", "loop"}
            if image.format == "PNG" and extras.isdisjoint(image.info):  # upright, one frame
                with open(path, "rb") as file:
                    file.seek(-12, os.SEEK_END)  # a file cut short lacks the last chunk
                    if file.read()[4:8] == b"IEND":
                        return image.size
    height, width, _ = read_image(path).shape  # explains what is wrong with a file
    return width, height


def embedded_photographs(folder: str | Path = "data/embedded") -> list[dict]:
    """Copy photographs from scikit-image's wheel into `folder`, and list them in its lists/."""
    import skimage  # here because only this function needs it

    source, folder = Path(skimage.__file__).parent / "data", Path(folder)
    for name, files in EMBEDDED.items():
        for file in files:
            path = folder / f"{name}_HR" / Path(file).with_suffix(".png")
            if not path.exists():
                write_image(path, read_image(source / file))
    return create_data_lists(folder, folder / "lists")


def print_table(table: list[dict]) -> None:
    """Print what `create_data_lists` returns, with up to 20 skipped files of each set."""
    print(f"{'set':16} {'images':>6}  {'skipped':>7}  {'HR images in':32} list")
    for row in table:
        skipped = len(row["skipped"])
        print(f"{row['set']:16} {row['images']:6}  {skipped:7}  {row['folder']:32} {row['list']}")
    for row in table:
        for path in list(row["skipped"])[:20]:
            print(f"skipped in {row['set']}: {path}: {row['skipped'][path]}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write CSV lists of (LR, HR) image pairs.")
    add = parser.add_argument
    add("folders", nargs="*", help="folders to list (default: all sets under --data)")
    add("--train", metavar="FOLDER", help="train on this (default: DIV2K_train, else photos)")
    add("--valid", metavar="FOLDER", help="validate on this (default: DIV2K_valid, else Set5)")
    add("--data", default="data", metavar="FOLDER", help="where the sets lie (default: data)")
    add("--out", metavar="FOLDER", help="where the lists go (default: lists in --data)")
    add("--crop-size", type=int, default=96, help="leave out smaller HR images (default: 96)")
    add("--verify", action="store_true", help="decode every file instead of reading its header")
    add("--download", nargs="*", metavar="SET", help="first fetch these sets (default: all)")
    add("--mirror", action="append", default=[], metavar="URL", help="fetch from here first")
    add("--check", nargs="*", metavar="SET", help="only compare sets with the published ones")
    add("--embedded", action="store_true", help="list scikit-image's photographs instead")
    options = parser.parse_args(arguments)
    data = Path(options.data)
    try:
        if options.embedded:
            print_table(embedded_photographs(data / "embedded"))
            return 0
        if options.check is not None:
            problems = check(options.check, data)
            lines = [f"{path}: {problem}" for path, problem in problems.items()]
            print("\n".join(lines) or "all is as published")
            return 1 if problems else 0
        if options.download is not None:
            download(options.download, data, mirrors=options.mirror)
        out = options.out or data / "lists"
        sets = {"folders": options.folders or None, "train": options.train, "valid": options.valid}
        crop_size, verify = options.crop_size, options.verify
        print_table(create_data_lists(data, out, **sets, crop_size=crop_size, verify=verify))
        absent = [name for name in SETS if not options.folders and not is_there(name, data)]
        if absent:
            print(f"not there: {', '.join(absent)}; to fetch: {DOWNLOAD} {' '.join(absent)}")
        return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
