"""Scores images that any program made, bicubic beside them: `python metrics.py`; makes no images.

It pairs the files of two folders by their names, checks their sizes, and says what it did.
"""

import argparse
import re
import sys
from pathlib import Path

from datasets import Pair, read_list, read_pair
from imresize import imresize
from metrics import SMALLEST, mean, psnr, ssim
from tools.image_sets import is_image_name
from utils import SCALE, progress_bar, read_image, write_rows

SUFFIXES = re.compile(r"(_SR|_HR|_GT|_out|[_-]?x4)+$", re.IGNORECASE)  # that programs append
EDGE = 12  # pixels: a frame, or the trace of padding with zeros, is not wider


def score_folder(folder: Path, originals: dict[str, Path | Pair]) -> tuple[list, list, list]:
    """Score the SR images of a folder against {name: HR file, or pair of a list}.

    Returns rows of {"method", "name", "psnr", "ssim"}, those of bicubic first; notes on what was
    done; problems: what could not be scored, and why.
    """
    paths, notes, problems = pair_by_name(list_images(folder), list(originals))
    place = folder.resolve()
    method = place.as_posix() if place.name == "bicubic" else place.name  # not the control's name
    control, rows = [], []
    for name, path in progress_bar(paths.items(), desc="score", unit="image", disable=None):
        try:
            lr, hr, full = read_original(originals[name])
            sr = read_image(path)
            if sr.shape != hr.shape:
                cause = size_difference(sr.shape[:2], hr.shape[:2], full)
                raise ValueError(f"{pixels(sr.shape)}, not {pixels(hr.shape)}: {cause}")
            bicubic = imresize(lr, SCALE, padding="replicate")
            scores = [{"psnr": psnr(x, hr), "ssim": ssim(x, hr)} for x in (bicubic, sr)]
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
            continue
        control.append({"method": "bicubic", "name": name, **scores[0]})
        rows.append({"method": method, "name": name, **scores[1]})
        if full != hr.shape[:2]:
            cut = f"{pixels(full)} to {pixels(hr.shape)}"
            notes.append(f"{name}: HR cut at right and bottom from {cut}, multiples of {SCALE}")
        if min(hr.shape[:2]) >= SMALLEST + 2 * EDGE:
            gained, usual = (psnr(x, hr, EDGE) - psnr(x, hr) for x in (sr, bicubic))
            if gained > usual + 1:  # dB
                frame = f"{gained:.1f} dB more without its outer {EDGE} pixels, is there a frame?"
                notes.append(f"{name}: {frame}")
    return control + rows, notes, problems


def pair_by_name(paths: list[Path], names: list[str]) -> tuple[dict[str, Path], list, list]:
    """({name: path}, notes, problems): by equal names, then by names equal without `SUFFIXES`."""

    def bare(name):
        return SUFFIXES.sub("", name).casefold()

    found = {name: [path for path in paths if path.stem == name] for name in names}
    exact = {path for fitting in found.values() for path in fitting}
    rest = [path for path in paths if path not in exact]
    for name in names:
        found[name] = found[name] or [path for path in rest if bare(path.stem) == bare(name)]
    taken = [path for fitting in found.values() for path in fitting]
    problems = [f"{path}: no HR image of this name" for path in paths if path not in taken]
    pairs, notes = {}, []
    for name, fitting in found.items():
        if len(fitting) != 1 or taken.count(fitting[0]) > 1:
            those = ", ".join(path.name for path in fitting)
            cause = f"not clear which is whose: {those}" if those else "no SR image of this name"
            problems.append(f"{name}: {cause}; name each SR image as its HR image")
            continue
        pairs[name] = fitting[0]
        if fitting[0].stem != name:
            notes.append(f"{fitting[0].name} is paired with {name}")
    return pairs, notes, problems


def size_difference(sr: tuple, hr: tuple, full: tuple) -> str:
    """The likely cause of another size; all are (height, width), hr is full cut to multiples of 4.

    The cut is at the right and at the bottom, as for the published results.
    """
    (height, width), shaved = hr, {hr[0] - sr[0], hr[1] - sr[1]}
    causes = {
        (width, height): "it is turned by 90 degrees",
        (height // 4, width // 4): "the size of LR, it was not enlarged",
        (height // 2, width // 2): "it was enlarged 2 times instead of 4",
        (4 * height, 4 * width): "HR was enlarged instead of LR",
        tuple(-(-side // 4) * 4 for side in full): "LR was made of HR before HR was cut",
        full: "HR is cut at right and bottom to a multiple of 4, do the same before making LR",
    }
    if len(shaved) == 1 and 0 < min(shaved) <= 64:
        causes.setdefault(sr, f"are {min(shaved) / 2:g} pixels cut off each side? Keep them")
    return causes.get(sr, "another image, or its program cropped or resized it")


def read_original(source: Path | Pair) -> tuple:
    """lr, hr, and the (height, width) of hr before it was cut to a multiple of 4."""
    if isinstance(source, Pair):
        return *read_pair(source), (source.height, source.width)
    image = read_image(source)
    height, width = (side // SCALE * SCALE for side in image.shape[:2])
    hr = image[:height, :width]
    return imresize(hr, 1 / SCALE, padding="replicate"), hr, image.shape[:2]


def list_images(folder: Path) -> list[Path]:
    """The images in a folder, sorted; says what else lies there. Raises OSError without one."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (current folder: {Path.cwd()})")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in files if path.is_file() and is_image_name(path.name)]
    if not images:
        raise FileNotFoundError(f"{folder}: no images in this folder; name the one that has them")
    if others := [path.name for path in files if path not in images]:
        print(f"note: {folder}: no images, not looked at: {', '.join(others)}")
    return images


def pixels(shape: tuple) -> str:
    return f"{shape[1]} x {shape[0]} pixels"


def print_table(rows: list[dict], expected: int) -> None:
    """A line for each image and the mean; bicubic, the first half of the rows, on the left."""
    count = len(rows) // 2
    left, right = ([*half, mean(half)] for half in (rows[:count], rows[count:]))
    width = max(len(row["name"]) for row in left)
    print(f"PSNR in dB / SSIM of luma (Y), 4 pixels shaved; {count} of {expected} images")
    print(f"{'':{width}}  {'bicubic':>16}  {rows[-1]['method']:>16}")
    for pair in zip(left, right, strict=True):
        cells = "  ".join(f"{row['psnr']:7.3f} / {row['ssim']:.4f}" for row in pair)
        print(f"{pair[0]['name']:{width}}  {cells}")


def main(arguments: list[str] | None = None) -> None:
    """The command line; exit code 1 unless every image was scored."""
    parser = argparse.ArgumentParser(description="PSNR and SSIM of x4 images of any program.")
    parser.add_argument("sr_folder", type=Path, help="the images to score")
    originals = parser.add_mutually_exclusive_group(required=True)
    originals.add_argument("hr_folder", type=Path, nargs="?", help="the originals")
    originals.add_argument("--set", help="instead: Set5 (in data/lists), or a list, my/list.csv")
    parser.add_argument("-o", "--out", help="write the score of every image as CSV")
    options = parser.parse_args(arguments)
    try:
        if options.set:
            path = options.set if options.set.endswith(".csv") else f"data/lists/{options.set}.csv"
            named = [(pair.name, pair) for pair in read_list(path)]
            print("bicubic: MATLAB's, of the set's own LR images")
        else:
            named = [(path.stem, path) for path in list_images(options.hr_folder)]
            print("bicubic: MATLAB's, of HR reduced to a quarter by imresize; no LR file was read")
        if len(dict(named)) < len(named):
            raise ValueError(f"two originals have the same name: {sorted(n for n, _ in named)}")
        rows, notes, problems = score_folder(options.sr_folder, dict(named))
        if rows:
            print_table(rows, len(named))
        if rows and options.out:
            name = Path(options.set).stem if options.set else options.hr_folder.resolve().name
            write_rows(options.out, [{"set": name, **row} for row in rows])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for note in notes:
        print(f"note: {note}")
    if problems:
        sys.exit("\n".join(f"error: {problem}" for problem in problems))
