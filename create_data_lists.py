"""Which files are in which set, checked: folders of images -> CSV lists of (LR, HR) pairs. Trains nothing, loads no pixels.

    python create_data_lists.py                       lists of all that lies under data/, into data/lists/
    python create_data_lists.py my_photos other/HR    lists of these folders
    python create_data_lists.py --train my_photos     train on these
    python create_data_lists.py --download            first fetch the official sets that are missing (see download.py)
    python create_data_lists.py --embedded            lay out and list scikit-image's photographs: no download

A list has the columns hr, lr, width, height: two paths relative to the current directory, and the size of the HR image.
HR images without LR images get theirs from `imresize`, at a quarter of the size.
"""

import argparse
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from imresize import imresize
from tools.download import SETS, check, download, is_there
from utils import IMAGE_FORMATS, IMAGE_SUFFIXES, read_image, write_image, write_rows

SCALE = 4
TRAINING_SETS = ["DIV2K_train", "photos"]  # the first one that is there is trained on
VALIDATION_SETS = ["DIV2K_valid", "Set5"]
DOWNLOAD = "python create_data_lists.py --download"
MARKER = "MADE_BY_IMRESIZE.txt"  # in a folder of LR images that were made here, and may be completed and replaced here

# Photographs in scikit-image's wheel. The two views of the motorcycle are one scene: both are for training.
EMBEDDED = {
    "train": [
        *("astronaut", "ihc", "hubble_deep_field", "retina", "motorcycle_left", "motorcycle_right"),
        *("brick", "grass", "gravel", "camera"),
    ],
    "valid": ["rocket"],
    "embedded_test": ["chelsea", "coffee"],
}


class ImageSet(NamedTuple):
    """A set of images: its name, and the folders of its HR and LR images (one and the same for *_HR.png beside *_LR.png)."""

    name: str
    hr_folder: Path
    lr_folder: Path


def create_data_lists(
    data="data",
    out="data/lists",
    *,
    folders=None,
    train=None,
    valid=None,
    crop_size=96,
    verify=False,
    progress=True,
):
    """Write a list for every set of images, as `out`/<set>.csv, and return a table of what was found.

    folders: the sets to list; by default all under `data`: <name>_HR, <name>/HR (LR images in <name>_LR_bicubic/X4,
    <name>/LR), and *_HR.png beside *_LR.png. train, valid: the folders to train on and to validate on; by default
    DIV2K's, else `photos` and Set5. crop_size: smaller HR images are left out. verify: decode every file, instead of
    reading its header only.

    Returns a list of {"set", "images", "folder", "list", "skipped"}, skipped: {path: reason}. Raises FileNotFoundError
    for a folder that does not exist or where no set is found, ValueError for a set without a usable image.
    """
    sets = {}
    if folders is not None:
        sets = {image_set.name: image_set for image_set in map(find_set, folders)}
    elif train is None or Path(data).is_dir():
        sets = {image_set.name: image_set for image_set in find_sets(data)}
    for role, folder, usual in (("train", train, TRAINING_SETS), ("valid", valid, VALIDATION_SETS)):
        if folder is not None:
            sets[role] = find_set(folder)
        elif folders is None and (name := next((name for name in usual if name in sets), None)):
            sets[role] = sets[name]
    sets = {
        name: found for name, found in sets.items() if name == "train" or found != sets.get("train")
    }
    if not sets:
        raise FileNotFoundError(
            f"{data}: no sets of images in it; fetch the official ones: {DOWNLOAD}, or name the folder of your own: "
            "python create_data_lists.py --train FOLDER"
        )

    table, checked, empty = [], {}, []
    for name, image_set in sets.items():
        if image_set not in checked:
            checked[image_set] = _check_set(image_set, crop_size, verify, progress)
        rows, skipped = checked[image_set]
        path, folder = Path(out) / f"{name}.csv", image_set.hr_folder.as_posix()
        if rows:
            write_rows(path, rows)
            table.append(
                {
                    "set": name,
                    "images": len(rows),
                    "folder": folder,
                    "list": path.as_posix(),
                    "skipped": skipped,
                }
            )
        else:
            reasons = [f"\n  {file}: {reason}" for file, reason in list(skipped.items())[:10]]
            empty.append(
                f"{folder}: no image of it can be used{''.join(reasons) or ', it has none'}"
            )
    if empty:
        raise ValueError(
            "\n".join([*empty, "fill or remove the folder and run create_data_lists.py again"])
        )
    return table


# ---------------------------------------------------------------------------------------------------------------------
# Finding sets


def find_sets(data="data"):
    """The sets of images under the folder `data`, in natural order of their names."""
    if not Path(data).is_dir():
        raise FileNotFoundError(f"{data}: no such folder (current folder: {Path.cwd()})")
    found = {}
    for folder in sorted(Path(data).iterdir(), key=natural_order):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        if folder.name.endswith("_HR") or (folder / "HR").is_dir() or any(folder.glob("*_HR.*")):
            image_set = find_set(folder)
            found.setdefault(image_set.name, image_set)
    return list(found.values())


def find_set(folder):
    """The set of images in a folder: <name>_HR, <name> with HR and LR inside, or <name> with the images themselves."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (current folder: {Path.cwd()})")
    if folder.name in ("", "..", "HR"):  # "." and ".." say no name, HR says nothing
        absolute = Path(os.path.abspath(folder))
        folder = absolute.parent if absolute.name == "HR" else absolute
    if (folder / "HR").is_dir():
        return ImageSet(folder.name, folder / "HR", folder / "LR")
    if any(folder.glob("*_HR.*")):
        return ImageSet(folder.name, folder, folder)
    name = folder.absolute().name.removesuffix("_HR")
    return ImageSet(name, folder, folder.with_name(f"{name}_LR_bicubic") / f"X{SCALE}")


def natural_order(path):
    """Sort key: img_2 before img_10."""
    name = Path(path).name
    return [
        (int(part), "") if part.isdecimal() else (-1, part.lower())
        for part in re.split(r"(\d+)", name)
    ], name


def _images(folder, suffix):
    """({name without `suffix` (a pattern): path}, in natural order, {path: why not}) of the files in a folder."""
    images, skipped = {}, {}
    for path in sorted(folder.iterdir(), key=natural_order) if folder.is_dir() else []:
        if path.name.startswith(".") or path.name in (MARKER, "Thumbs.db") or path.is_dir():
            continue
        name = re.sub(suffix, "", path.stem)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped[path.as_posix()] = "not an image, going by its name"
        elif name in images:
            skipped[path.as_posix()] = f"has the same name as {images[name].name}"
        else:
            images[name] = path
    return images, skipped


# ---------------------------------------------------------------------------------------------------------------------
# Checking sets


def _check_set(image_set, crop_size, verify, progress):
    """(rows, skipped) of one set: the lines of its list, and {path: why it is not in it}. Makes missing LR images."""
    name, hr_folder, lr_folder = image_set
    if hr_folder == lr_folder:
        everything, skipped = _images(hr_folder, "$^")
        hr_images = {
            k.removesuffix("_HR"): path for k, path in everything.items() if k.endswith("_HR")
        }
        lr_images = {
            k.removesuffix("_LR"): path for k, path in everything.items() if k.endswith("_LR")
        }
        others = [path for k, path in everything.items() if not k.endswith(("_HR", "_LR"))]
        skipped |= {path.as_posix(): "its name ends neither in _HR nor in _LR" for path in others}
    else:
        hr_images, skipped = _images(hr_folder, "_HR$")
        lr_images, lr_skipped = _images(lr_folder, rf"(_LR|x{SCALE})$")
        skipped |= lr_skipped

    hr_headers = _headers(hr_images.values(), f"{name} HR", verify, progress)
    for path, size in list(hr_headers.items()):
        if isinstance(size, str):
            skipped[path.as_posix()] = size
        elif min(size) < crop_size:
            skipped[path.as_posix()] = (
                f"{size[0]} x {size[1]} pixels, smaller than a patch of {crop_size} x {crop_size}"
            )
    usable = {key: path for key, path in hr_images.items() if path.as_posix() not in skipped}

    if not lr_images or (lr_folder / MARKER).exists():
        suffix = (
            f"x{SCALE}"
            if lr_folder.name == f"X{SCALE}"
            else "_LR"
            if hr_folder == lr_folder
            else ""
        )
        lr_images = {key: lr_folder / f"{key}{suffix}.png" for key in usable}
        failed = _make_lr_images(usable, lr_images, lr_folder, name, progress)
        skipped |= {usable.pop(key).as_posix(): reason for key, reason in failed.items()}
    for key, path in lr_images.items():
        if key not in hr_images:
            skipped[path.as_posix()] = "no HR image of this name"
    lr_headers = _headers(
        [lr_images[key] for key in usable if key in lr_images], f"{name} LR", verify, progress
    )

    rows = []
    for key, hr in usable.items():
        width, height = hr_headers[hr]
        if key not in lr_images:
            skipped[hr.as_posix()] = f"no LR image of this name in {lr_folder.as_posix()}"
            continue
        lr = lr_images[key]
        size, expected = lr_headers[lr], (width // SCALE, height // SCALE)
        if isinstance(size, str):
            skipped[lr.as_posix()] = size
        elif size != expected:
            skipped[lr.as_posix()] = (
                f"{size[0]} x {size[1]} pixels, {expected[0]} x {expected[1]} belong to {hr.name}"
            )
        else:
            rows.append(
                {"hr": _relative(hr), "lr": _relative(lr), "width": width, "height": height}
            )
    return rows, skipped


def _relative(path):
    try:
        return Path(os.path.relpath(path)).as_posix()
    except ValueError:  # on another drive of Windows
        return path.absolute().as_posix()


def _headers(paths, label, verify, progress):
    """{path: (width, height), or why it cannot be used (str)}; decodes each file if `verify`."""
    with ThreadPoolExecutor(
        os.cpu_count() if verify else 8
    ) as pool:  # headers wait for the disk, not for a core
        paths = list(paths)
        sizes = pool.map(lambda path: _image_size(path, verify), paths)
        hide = not progress or (len(paths) < 1000 and not verify)
        return dict(
            zip(paths, tqdm(sizes, label, len(paths), unit="image", disable=hide), strict=True)
        )


def _image_size(path, verify=False):
    """(width, height) of an image as `read_image` gives it, from the file's header; a str says why it cannot be read."""
    try:
        if not path.stat().st_size:
            return "the file is empty"
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            # Looking for an orientation would decode a PNG file without any.
            if image.format != "PNG" or {
                "exif",
                "xmp",
                "Raw profile type exif",
                "XML:com.adobe.xmp",
            } & set(image.info):
                turned = (
                    image.getexif().get(0x0112, 1) >= 5
                )  # EXIF orientations 5 to 8 lie on their side
                width, height = (height, width) if turned else (width, height)
            if image.mode == "F":
                return "floating-point pixels, of unknown range"
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                return f"{image.n_frames} frames or pages"
            cut_short = image.format == "PNG" and not _ends_as_png(path)
        if verify or cut_short:
            read_image(path)
        return width, height
    except Exception as error:  # damaged headers make decoders raise nearly anything
        return str(error).removeprefix(f"{path}: ")


def _ends_as_png(path):
    with open(path, "rb") as file:
        file.seek(-min(12, path.stat().st_size), os.SEEK_END)
        return file.read()[4:8] == b"IEND"


# ---------------------------------------------------------------------------------------------------------------------
# Making LR images


def _make_lr_images(hr_images, lr_images, folder, label, progress):
    """Write the LR images that are missing or older than their HR image; returns {name: reason} of those that failed."""

    def make(key):
        try:
            hr = read_image(hr_images[key])
            height, width = (side // SCALE * SCALE for side in hr.shape[:2])
            write_image(lr_images[key], imresize(hr[:height, :width], 1 / SCALE))
        except (OSError, ValueError) as error:
            return key, str(error).removeprefix(f"{hr_images[key]}: ")
        return key, None

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        (folder / MARKER).write_text(
            f"Made by create_data_lists.py from the HR images: imresize(hr, 1/{SCALE}).\n"
        )
        for leftover in folder.glob(".tmp-*"):  # of a run that was killed
            leftover.unlink()
        todo = [key for key in hr_images if not _up_to_date(lr_images[key], hr_images[key])]
        if not todo:
            return {}
        failed = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tasks = [pool.submit(make, key) for key in todo]
            bar = tqdm(
                as_completed(tasks), f"{label} LR", len(todo), unit="image", disable=not progress
            )
            try:
                for task in bar:
                    key, reason = task.result()
                    if reason is not None:
                        failed[key] = reason
            finally:
                pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for hundreds of images
    return failed


def _up_to_date(lr, hr):
    return lr.exists() and lr.stat().st_mtime_ns >= hr.stat().st_mtime_ns


# ---------------------------------------------------------------------------------------------------------------------
# Photographs that are there without a download


def embedded_photographs(folder="data/embedded", progress=True):
    """Lay out the photographs in scikit-image's wheel under `folder` and list them there in lists/: train, valid, embedded_test.

    Returns the table of `create_data_lists`. Raises FileNotFoundError where scikit-image has been installed without
    them.
    """
    import skimage  # only its folder of pictures is used

    source, folder = Path(skimage.__file__).parent / "data", Path(folder)
    for name, photographs in EMBEDDED.items():
        for photograph in photographs:
            path = folder / f"{name}_HR" / f"{photograph}.png"
            original = next(source.glob(f"{photograph}.*"), None)
            if original is None:
                raise FileNotFoundError(
                    f"{source}: has no {photograph}; install scikit-image anew from PyPI"
                )
            if not path.exists():
                write_image(path, read_image(original))
    sets = {name: folder / f"{name}_HR" for name in EMBEDDED}
    return create_data_lists(
        out=folder / "lists",
        folders=[sets["embedded_test"]],
        train=sets["train"],
        valid=sets["valid"],
        progress=progress,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def print_table(table, show=20):
    """Print what `create_data_lists` returns: set, images, folder, list; then up to `show` skipped files of each set."""
    print(f"{'set':16} {'images':>6}  {'skipped':>7}  {'HR images in':32} list")
    for row in table:
        print(
            f"{row['set']:16} {row['images']:6}  {len(row['skipped']):7}  {row['folder']:32} {row['list']}"
        )
    for row in table:
        for path, reason in list(row["skipped"].items())[:show]:
            print(f"skipped in {row['set']}: {path}: {reason}")
        if len(row["skipped"]) > show:
            print(f"skipped in {row['set']}: ... and {len(row['skipped']) - show} more")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Write CSV lists of (LR, HR) image pairs to train and test on."
    )
    parser.add_argument(
        "folders", nargs="*", help="folders to list (default: all sets under --data)"
    )
    parser.add_argument(
        "--train", metavar="FOLDER", help="train on this folder (default: DIV2K_train, else photos)"
    )
    parser.add_argument(
        "--valid",
        metavar="FOLDER",
        help="validate on this folder (default: DIV2K_valid, else Set5)",
    )
    parser.add_argument(
        "--data", default="data", metavar="FOLDER", help="where the sets lie (default: data)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the lists go (default: lists in --data)"
    )
    parser.add_argument(
        "--crop-size", type=int, default=96, help="leave out smaller HR images (default: 96)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="decode every file instead of reading its header"
    )
    parser.add_argument(
        "--download",
        nargs="*",
        metavar="SET",
        help=f"first fetch these sets (default: {', '.join(SETS)})",
    )
    parser.add_argument(
        "--mirror", action="append", default=[], metavar="URL", help="fetch from this address first"
    )
    parser.add_argument(
        "--check",
        nargs="*",
        metavar="SET",
        help="only compare the sets under data with the published ones",
    )
    parser.add_argument(
        "--embedded", action="store_true", help="scikit-image's photographs, into data/embedded"
    )
    options = parser.parse_args(arguments)
    try:
        if options.embedded:
            print_table(embedded_photographs(Path(options.data) / "embedded"))
            return 0
        if options.check is not None:
            problems = check(options.check, options.data)
            print(
                "".join(f"{path}: {problem}\n" for path, problem in problems.items())
                or "all is as published\n",
                end="",
            )
            return 1 if problems else 0
        if options.download is not None:
            download(options.download, options.data, mirrors=options.mirror)
        table = create_data_lists(
            options.data,
            options.out or Path(options.data) / "lists",
            folders=options.folders or None,
            train=options.train,
            valid=options.valid,
            crop_size=options.crop_size,
            verify=options.verify,
        )
        print_table(table)
        absent = [name for name in SETS if not options.folders and not is_there(name, options.data)]
        if absent:
            print(f"not there: {', '.join(absent)}; to fetch: {DOWNLOAD} {' '.join(absent)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
