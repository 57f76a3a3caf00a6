"""Which folders are a set of images, and which HR and LR images belong together, by their names.

Decodes nothing, writes nothing.
"""

import os
import shlex
import unicodedata
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tools.image_files import IMAGE_SUFFIXES

# LR images of scale 4 (`utils.SCALE`).
# Where those of <set>/HR lie, after "<set>/", and those of <set>_HR, after "<set>_".
LR_FOLDERS = ["LR", "LR_bicubic/X4", "LR_bicubic/x4", "LR/X4", "LR/x4", "LR_bicubic", "LRbicx4"]
# How the names of an HR image and of its LR image end, where the rest is the same.
ENDINGS = [
    ("", ""), ("", "x4"), ("", "_x4"), ("", "_LR"), ("_HR", ""), ("_HR", "x4"), ("_HR", "_LR"),
    ("_HR", "_LRx4"), ("_HR", "_LR_x4"), ("_HR_x4", "_LR_x4"), ("_HR_x4", "_LRBI_x4"),
]  # fmt: skip


class ImageSet(NamedTuple):
    """Where the HR and LR images of a set lie, and how their names end where LR is made."""

    name: str
    hr_folder: Path
    lr_folder: Path  # the same folder, if *_LR.png lie beside *_HR.png
    endings: tuple[str, str]  # of HR and LR

    def lr_path(self, hr: Path) -> Path:
        """Where the LR image of an HR image is made."""
        stem = hr.stem.removesuffix(self.endings[0])
        return self.lr_folder / f"{stem}{self.endings[1]}.png"


def find_set(folder: str | Path, lr_folder: str | Path | None = None) -> ImageSet:
    """The set of images in a folder; FileNotFoundError if there is no such folder.

    Known layouts: <name>/HR with LR images in <name>/LR; *_HR.png beside *_LR.png; the official
    one, <name>_HR (or any folder with the images themselves) with <name>_LR_bicubic/X4. Of the
    first and last, LR images may also lie in any of LR_FOLDERS. A set without LR images gets them
    there, or in `lr_folder`/<name>_LR_bicubic/X4.
    """
    absolute = Path(os.path.abspath(folder))
    if not absolute.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (current folder: {Path.cwd()})")
    if absolute.name == "HR":
        absolute = absolute.parent
    name = absolute.name.removesuffix("_HR")
    if (absolute / "HR").is_dir():
        hr_folder, endings = absolute / "HR", ("", "")
        places = [absolute / place for place in LR_FOLDERS]
    elif _is_flat(absolute):
        hr_folder, endings, places = absolute, ("_HR", "_LR"), [absolute]
    else:
        hr_folder, endings = absolute, ("", "x4")
        places = [absolute.parent / f"{name}_{place}" for place in ("LR_bicubic/X4", *LR_FOLDERS)]
    wanted = endings[1] if places == [hr_folder] else ""  # which LR images have beside HR ones
    existing = [place for place in places if any(s.endswith(wanted) for s in _image_stems(place))]
    lr_place = (existing or places)[0]
    if lr_folder is not None and not existing:
        lr_place = Path(os.path.abspath(lr_folder), f"{name}_LR_bicubic/X4")
        endings = ("", "x4")
    with suppress(ValueError):  # on another drive of Windows: it stays absolute
        hr_folder = Path(os.path.relpath(hr_folder))
    with suppress(ValueError):
        lr_place = Path(os.path.relpath(lr_place))
    return ImageSet(name, hr_folder, lr_place, endings)


def is_set(folder: Path) -> bool:
    """Whether a folder is a set of images, going by its name and the names in it."""
    return folder.is_dir() and (
        folder.name.endswith("_HR") or (folder / "HR").is_dir() or _is_flat(folder)
    )


def _is_flat(folder):
    """Whether HR and LR images lie together: *_HR beside *_LR, or nothing but *_HR."""
    if folder.name.endswith("_HR"):  # the name of the folder says that all are HR images
        return False
    stems = _image_stems(folder)
    hr = [stem for stem in stems if stem.endswith("_HR")]
    has_pairs = any(stem.removesuffix("_HR") + "_LR" in stems for stem in hr)
    return has_pairs or (bool(hr) and len(hr) == len(stems))


def is_image_name(name: str) -> bool:
    """Whether a file is an image, going by its name; hidden files are not."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _image_stems(folder):
    names = os.listdir(folder) if folder.is_dir() else []
    return {Path(name).stem for name in names if is_image_name(name)}


def find_pairs(image_set: ImageSet) -> tuple[dict, list, dict]:
    """-> ({HR path: its LR path or None}, [LR paths without HR], {path: why it is in no pair}).

    The last names all that is not in the first: LR images without HR, other files, subfolders.
    """
    hr_images, skipped = _images_in(image_set.hr_folder)
    if image_set.lr_folder == image_set.hr_folder:
        lr_images = {stem: path for stem, path in hr_images.items() if stem.endswith("_LR")}
        for stem in [stem for stem in hr_images if not stem.endswith("_HR")]:
            path = hr_images.pop(stem)
            if stem not in lr_images:
                skipped[path] = "its name ends neither in _HR nor in _LR"
    else:
        lr_images = {}
        if image_set.lr_folder.is_dir():
            lr_images, more = _images_in(image_set.lr_folder)
            skipped |= more
        for stem in [stem for stem in hr_images if stem.endswith("_LR")]:
            if stem.removesuffix("_LR") + "_HR" in hr_images:
                skipped[hr_images.pop(stem)] = "an LR image among the HR images, by its name"
    names = pair_names(hr_images, lr_images, image_set.endings)
    paired = set(names.values())
    orphans = [path for stem, path in lr_images.items() if stem not in paired]
    skipped |= dict.fromkeys(orphans, "no HR image of this name")
    pairs = {path: lr_images.get(names.get(stem)) for stem, path in hr_images.items()}
    return pairs, orphans, skipped


def _images_in(folder):
    """-> ({stem: path of an image}, {path: why it is not an image of the set}) of a folder."""
    images, skipped, hidden = {}, {}, 0
    for name in sorted(os.listdir(folder)):
        path = folder / name
        stem = unicodedata.normalize("NFC", path.stem)  # macOS may write accents as NFD
        if name.startswith("."):
            hidden += not name.startswith(".tmp-")  # what `atomic_path` leaves when it is killed
        elif path.is_dir():
            files = sum(len(files) for _, _, files in os.walk(path))
            command = shlex.join(["python", "create_data_lists.py", path.as_posix()])
            listing = f"a folder of {files} files; to list its images: {command}"
            skipped[path] = listing if files else "an empty folder"
        elif not is_image_name(name):
            skipped[path] = "not an image, going by its name"
        elif not path.is_file():  # also a pipe, which would wait for ever when it is opened
            skipped[path] = "a link to nothing, or no regular file"
        elif stem in images:
            skipped[path] = f"has the same name as {images[stem].name}"
        else:
            images[stem] = path
    if hidden:
        skipped[folder / ".*"] = f"{hidden} hidden files"
    return images, skipped


def pair_names(
    hr_names: Iterable[str], lr_names: Iterable[str], usual: tuple[str, str] = ("", "")
) -> dict[str, str]:
    """{HR name: LR name} without suffixes, by `usual` and the other ENDINGS.

    The endings that fit most names come first, so that in {a, ax4} and {ax4, ax4x4} all find their
    partner; of those that fit equally many `usual`, then equal names. No LR name is given twice.
    """
    hr_names, free = list(hr_names), set(lr_names)
    rules = []
    for hr_ending, lr_ending in [usual, *ENDINGS]:
        rule = {n: n.removesuffix(hr_ending) + lr_ending for n in hr_names if n.endswith(hr_ending)}
        rules.append({hr: lr for hr, lr in rule.items() if lr in free})
    pairs = {}
    for rule in sorted(rules, key=len, reverse=True):
        for hr, lr in rule.items():
            if hr not in pairs and lr in free:
                pairs[hr] = lr
                free.remove(lr)
    return pairs


def find_unused(folder: Path, used: Collection[Path]) -> dict[Path, tuple[int, Path]]:
    """{folder: (number of images in it, the first folder that holds some)}, for unused folders.

    used: absolute paths. What is in a used folder is not looked at; a folder around it is looked at
    part by part, any other as a whole.
    """
    unused, loose = {}, 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        absolute = Path(os.path.abspath(path))
        if absolute in used or path.name.startswith("."):
            continue
        if any(absolute in other.parents for other in used):
            unused |= find_unused(path, used)
        elif path.is_dir():
            counts = {
                Path(place): sum(map(is_image_name, files)) for place, _, files in os.walk(path)
            }
            if any(counts.values()):
                first = next(place for place, count in counts.items() if count)
                unused[path] = (sum(counts.values()), first)
        else:
            loose += is_image_name(path.name)
    if loose:
        unused[folder] = (loose, folder)
    return unused
