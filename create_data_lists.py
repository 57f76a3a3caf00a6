"""Folders of images -> checked CSV lists of (LR, HR) pairs. Fetches nothing: see tools/download.py.

    python create_data_lists.py                     list all sets under data/, into data/lists/
    python create_data_lists.py --download          first fetch the official sets that are missing
    python create_data_lists.py --embedded          list scikit-image's photographs: no download

A list has the columns hr, lr, width, height: two paths relative to the current directory, and the
size of the HR image in pixels. HR images without LR images get theirs from `imresize`. What is left
out of a list is printed with its reason, and written to `<set>.report.txt` beside the list.
"""

import argparse
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import ceil
from pathlib import Path
from statistics import median_high

from PIL import Image

from tools.download import SETS, check, download, is_there  # behind --download and --check
from tools.image_files import IMAGE_FORMATS, ORIENTATION
from tools.image_sets import find_pairs, find_set, find_unused, is_set
from tools.lr_images import EXACT, CannotWriteError, is_made_here, psnr_to_imresize, update_lr
from utils import SCALE, atomic_path, progress_bar, read_image, write_image, write_rows

USUAL_SETS = {
    "train": ["train", "DIV2K_train", "photos"],
    "valid": ["valid", "DIV2K_valid", "Set5", "Set14", "B100", "Urban100"],
}
SMALLEST_SCORED = 20  # HR pixels: SSIM's window of 11 and a border of 4, in whole LR pixels
NUM_COMPARED = 100  # pairs of a set, evenly spread, that are compared; some seconds
# A pair is far off below this part of the set's median, both in dB. For imresize's own images, and
# those of other filters, blur, noise or JPEG, no true pair is; nearly all false ones are.
FAR_OFF = 2 / 3
SHOWN = 20  # lines of each report that are printed
EMBEDDED_FOLDER = "embedded"  # under data/: the copies of scikit-image's photographs
DEFAULTS = {("--data", "data"), ("--crop-size", "96")}

# Files in scikit-image's wheel. The motorcycle's two views show one scene: both are for training.
EMBEDDED = {
    "train": [
        "astronaut.png", "ihc.png", "hubble_deep_field.jpg", "retina.jpg", "motorcycle_left.png",
        "motorcycle_right.png", "brick.png", "grass.png", "gravel.png", "camera.png",
    ],
    "valid": ["rocket.jpg"],
    "embedded_test": ["chelsea.png", "coffee.png"],
}  # fmt: skip


def create_data_lists(
    data: str | Path = "data",
    out: str | Path | None = None,
    *,
    folders: list[str | Path] | None = None,
    train: str | Path | None = None,
    valid: str | Path | None = None,
    lr_folder: str | Path | None = None,
    crop_size: int = 96,
    verify: bool = False,
) -> list[dict]:
    """Write a list for every set of images, as `out`/<set>.csv, and print what is in none.

    out: None: lists in `data`. folders: the sets to list; None: all under `data` (see `find_set`).
    train, valid: the folders to train and to validate on, listed under these names; None: the first
    of USUAL_SETS that is not the other one, unless `folders` are given. lr_folder: where missing LR
    images are made; None: beside the HR images. crop_size: HR images with a shorter side, in
    pixels, are left out. verify: decode every file instead of reading its header, and compare every
    LR image with imresize(HR), instead of NUM_COMPARED of those that were not made here.

    Returns one {"set", "images", "made", "compared", "skipped", "folder", "list", "warnings"} per
    list. made: LR images made from HR here; skipped and warnings: {path: reason}.

    Raises FileNotFoundError where there is no such folder or no set; ValueError if `valid` is
    `train` or two sets have one name; and, after writing the other lists, for sets without a usable
    image or whose LR images cannot be written.
    """
    if crop_size < SCALE or crop_size % SCALE:
        raise ValueError(f"crop_size must be a positive multiple of {SCALE}, got {crop_size}")
    options = {"--data": data, "--out": out, "--lr-folder": lr_folder, "--crop-size": crop_size}
    options |= {"--train": train, "--valid": valid}
    again = _command(folders, options)  # this call as a command, for messages
    if None not in (train, valid) and _same(find_set(train), find_set(valid)):
        raise ValueError(
            f"--valid {valid} are the images to train on; validate on others: "
            f"{_command(folders, options | {'--valid': None})} --valid FOLDER"
        )
    sets = _choose_sets(data, folders, train, valid, lr_folder)
    unused = {} if folders is not None else _unused(data, sets)
    if not sets:
        raise FileNotFoundError(
            f"{data}: no sets of images in it (current folder: {Path.cwd()}); fetch the official "
            f"ones: {again} --download, name your own: {again} --train FOLDER --valid FOLDER, or "
            f"take scikit-image's photographs: {_command(None, {'--data': data})} --embedded"
            + "".join(f"\n  not used: {path}: {reason}" for path, reason in unused.items())
        )

    table, problems, checked = [], {}, {}
    out = Path(data, "lists") if out is None else Path(out)
    for name, image_set in sets.items():
        smallest = SCALE if name == "train" else SMALLEST_SCORED
        try:
            if image_set not in checked:  # a set to validate on has a list of its own, too
                checked[image_set] = _check_set(image_set, smallest, crop_size, verify)
        except CannotWriteError as error:
            problems[image_set] = f"{error}; make them elsewhere: {again} --lr-folder FOLDER"
            continue
        except OSError as error:  # a folder that may not be read
            problems[image_set] = str(error)
            continue
        rows, row = checked[image_set]
        path, row = out / f"{name}.csv", {"set": name, **row}
        try:
            _write_report(row, path)
            if rows:
                write_rows(path, rows)
        except OSError as error:
            way_out = f"write the lists elsewhere: {again} --out FOLDER"
            raise OSError(f"{path}: cannot be written ({error}); {way_out}") from error
        if rows:
            table.append({**row, "list": path.as_posix()})
        else:
            reasons = "".join(f"\n  {line}" for line in _report(row, path, limit=10))
            reasons = reasons or ", there is none"
            problems[image_set] = f"{row['folder']}: no image can be used{reasons}"

    print_table(table)
    for path, reason in unused.items():
        print(f"not used: {path}: {reason}")
    for role in ("train", "valid") if folders is None else ():
        if role not in [row["set"] for row in table]:
            set5_is_taken = any(image_set.name == "Set5" for image_set in sets.values())
            fetched = "DIV2K_train" if role == "train" else "Set14" if set5_is_taken else "Set5"
            print(
                f"no {role}.csv; name a folder: {again} --{role} FOLDER, or fetch a set: "
                f"{again} --download {fetched}"
            )
    if problems:
        raise ValueError("\n".join([*problems.values(), "mend or remove this and run it again"]))
    return table


def _command(folders, options):
    """A command line of this program, without options that are None or have their default."""
    words = ["python", "create_data_lists.py", *map(str, folders or [])]
    for option, value in options.items():
        value = value.as_posix() if isinstance(value, Path) else value
        if value is not None and (option, str(value)) not in DEFAULTS:
            words += [option, str(value)]
    return shlex.join(words)


def _choose_sets(data, folders, train, valid, lr_folder):
    """-> {name of a list: the set it lists}; "train" and "valid" are two different ones."""
    named = folders is not None
    if not named:
        folders = [folder for folder in sorted(Path(data).glob("[!.]*")) if is_set(folder)]
    found = [find_set(folder, lr_folder) for folder in folders]
    sets, chosen = {}, {}
    for image_set in found:
        sets.setdefault(image_set.name, image_set)
    for role, folder in (("train", train), ("valid", valid)):
        if folder is not None:
            chosen[role] = find_set(folder, lr_folder)
    for role, usual in USUAL_SETS.items():
        for name in usual:
            taken = role in chosen or any(_same(sets.get(name), other) for other in chosen.values())
            if name in sets and not named and not taken:
                chosen[role] = sets[name]
    # The training set has one list, train.csv, and none under its own name.
    sets = {name: s for name, s in sets.items() if not _same(s, chosen.get("train"))} | chosen
    for image_set in found:
        if named and not any(_same(image_set, other) for other in sets.values()):
            raise ValueError(
                f"{image_set.hr_folder}: another set has the same name, {image_set.name}; rename "
                "one of the folders, or list them one by one, each with another --out"
            )
    return sets


def _same(a, b):
    """Whether two sets, or None, are the same."""
    return None not in (a, b) and a.hr_folder.samefile(b.hr_folder)


def _unused(data, sets):
    """{path: why it is in no list} of the other images under `data`."""
    used = {Path(os.path.abspath(f)) for s in sets.values() for f in (s.hr_folder, s.lr_folder)}
    unused = {}
    for path, (count, first) in find_unused(Path(data), used).items():
        if path == Path(data, EMBEDDED_FOLDER):  # has its own lists
            continue
        if is_set(path):
            reason = "another set has the same name; rename one of the folders"
        elif path == first == Path(data):
            reason = f"move them into a folder of their own, {data}/photos_HR for instance"
        else:
            command = _command(None, {"--data": data, "--train": first})
            reason = f"in no folder named <set>_HR or <set>/HR; to train on them: {command}"
        unused[_printable(path.as_posix())] = f"{count} images, {reason}"
    return unused


def _check_set(image_set, smallest, crop_size, verify):
    """-> (the rows of a set's list, its row of the table). Makes missing LR images."""
    pairs, orphans, skipped = find_pairs(image_set)
    lr_images = [lr for lr in (*pairs.values(), *orphans) if lr is not None]
    # Where all LR images are from elsewhere none is made: theirs may be another degradation.
    if not lr_images or (None in pairs.values() and any(map(is_made_here, lr_images))):
        for hr, lr in pairs.items():
            if lr is None and not os.path.lexists(image_set.lr_path(hr)):
                pairs[hr] = image_set.lr_path(hr)

    def check_pair(hr):
        return _check_pair(hr, pairs[hr], smallest, crop_size, verify)

    rows, others = {}, []  # others: HR images whose LR image was not made here
    for hr, (row, made, reason) in _map(check_pair, pairs, image_set.name):
        if row is None:
            skipped[hr] = reason
        else:
            rows[hr] = row
            others += [] if made else [hr]
    num_made = len(rows) - len(others)

    def compare(hr):
        try:
            return psnr_to_imresize(hr, pairs[hr])
        except (OSError, ValueError) as error:  # damage that the header did not show
            return str(error).removeprefix(f"{hr}: ")

    sample = others if verify else others[:: ceil(len(others) / NUM_COMPARED) or 1]
    psnrs = {}
    for hr, result in _map(compare, sample, f"{image_set.name}: comparing"):
        if isinstance(result, str):
            skipped[hr] = result
            del rows[hr]
        else:
            psnrs[pairs[hr].as_posix()] = result
    return list(rows.values()), {
        "images": len(rows),
        "made": num_made,
        "compared": len(psnrs),
        "skipped": {path.as_posix(): reason for path, reason in skipped.items()},
        "folder": image_set.hr_folder.as_posix(),
        "warnings": _far_off(psnrs, image_set.lr_folder.as_posix()),
    }


def _map(function, items, name):
    """Yield (item, function(item)), computed in threads, with a bar if it takes long."""
    with ThreadPoolExecutor(8) as pool:  # files wait for the disk
        results = pool.map(function, items)
        bar = progress_bar(results, name, len(items), unit="image", delay=1)
        yield from zip(items, bar, strict=True)


def _check_pair(hr, lr, smallest, crop_size, verify):
    """-> (row of the pair, whether LR is made here, None), or (None, None, why it has no row)."""
    try:
        hr.as_posix().encode()  # lists are UTF-8
        width, height = _image_size(hr, verify)
        size, side = f"{width} x {height} pixels", min(width, height)
        if side < smallest:
            raise ValueError(f"{size}, at least {smallest} a side are needed")
        if side < crop_size:
            way_out = f"to list it: --crop-size {side // SCALE * SCALE}"
            raise ValueError(f"{size}, smaller than a patch of {crop_size}; {way_out}")
        if lr is None:
            raise ValueError("no LR image of this name")
        made = update_lr(hr, lr)
        lr_size, expected = _image_size(lr, verify), (width // SCALE, height // SCALE)
        if lr_size != expected:
            raise ValueError(f"{lr} has width and height {lr_size}, expected {expected}")
    except UnicodeEncodeError:
        return None, None, "its path is not UTF-8, which lists are; rename it"
    except (OSError, ValueError) as error:
        return None, None, str(error).removeprefix(f"{hr}: ")
    row = {"hr": hr.as_posix(), "lr": lr.as_posix(), "width": width, "height": height}
    return row, made, None


def _far_off(psnrs, folder):
    """{LR path: warning}; psnrs: {LR path: PSNR to imresize(HR)} of the pairs that were compared.

    A set that is far from imresize as a whole has one warning, of its folder.
    """
    if not psnrs:
        return {}
    median = median_high(psnrs.values())
    warnings = {}
    if median < FAR_OFF * EXACT:
        warnings[folder] = (
            f"LR images differ from imresize(HR), PSNR {median:.1f} dB (median of {len(psnrs)}): "
            "made by another method, or belonging to other images"
        )
    for lr, psnr in sorted(psnrs.items(), key=lambda item: item[1]):
        if psnr < FAR_OFF * median:
            warnings[lr] = (
                f"PSNR to imresize(HR) is {psnr:.1f} dB, the median of the set {median:.1f} dB: "
                "does it belong to another image?"
            )
    return warnings


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


def embedded_photographs(
    folder: str | Path = f"data/{EMBEDDED_FOLDER}", crop_size: int = 96
) -> list[dict]:
    """Copy photographs from scikit-image's wheel into `folder`, and list them in its lists/."""
    import skimage  # here because only this function needs it

    source, folder = Path(skimage.__file__).parent / "data", Path(folder)
    for name, files in EMBEDDED.items():
        for file in files:
            path = folder / f"{name}_HR" / Path(file).with_suffix(".png")
            if not path.exists():
                write_image(path, read_image(source / file))
    return create_data_lists(folder, crop_size=crop_size)


def print_table(table: list[dict]) -> None:
    """Print what `create_data_lists` returns, with up to SHOWN lines of each set's report."""
    print(
        f"{'set':16} {'images':>6}  {'LR made':>7}  {'compared':>8}  {'skipped':>7}  "
        f"{'HR images in':32} list"
    )
    for row in table:
        print(
            f"{row['set']:16} {row['images']:6}  {row['made']:7}  {row['compared']:8}  "
            f"{len(row['skipped']):7}  {_printable(row['folder']):32} {_printable(row['list'])}"
        )
    for row in table:
        given = row["images"] - row["made"]
        if row["compared"] < given:
            print(
                f"{row['set']}: {row['compared']} of {given} LR images were compared with "
                "imresize(HR); --verify compares all"
            )
        print(
            "".join(f"{row['set']}: {line}\n" for line in _report(row, row["list"], SHOWN)), end=""
        )


def _report_path(list_file):
    return Path(list_file).with_suffix(".report.txt")


def _report(row, list_file, limit=None):
    """The lines of a set's report; of more than `limit` the first, and where the others are."""
    lines = [f"warning: {_printable(f'{k}: {v}')}" for k, v in row["warnings"].items()]
    lines += [f"skipped: {_printable(f'{k}: {v}')}" for k, v in row["skipped"].items()]
    if limit is not None and len(lines) > limit:
        more = f"... and {len(lines) - limit} more, see {_report_path(list_file).as_posix()}"
        return [*lines[:limit], more]
    return lines


def _write_report(row, list_file):
    """Write a set's report beside its list; remove one that is out of date."""
    path, lines = _report_path(list_file), _report(row, list_file)
    if lines:
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _printable(text):
    """The text with control characters, and bytes that are not UTF-8, as backslashes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write CSV lists of (LR, HR) image pairs.")
    add = parser.add_argument
    add("folders", nargs="*", help="folders to list (default: all sets under --data)")
    add("--train", metavar="FOLDER", help="train on this (default: DIV2K_train, else photos)")
    add("--valid", metavar="FOLDER", help="validate on this (default: DIV2K_valid, else Set5)")
    add("--lr-folder", metavar="FOLDER", help="make LR images here (default: beside HR images)")
    add("--data", default="data", metavar="FOLDER", help="where the sets lie (default: data)")
    add("--out", metavar="FOLDER", help="where the lists go (default: lists in --data)")
    add("--crop-size", type=int, default=96, help="leave out smaller HR images (default: 96)")
    add("--verify", action="store_true", help="decode every file, compare every pair")
    add("--download", nargs="*", metavar="SET", help="first fetch these sets (default: all)")
    add("--mirror", action="append", default=[], metavar="URL", help="fetch from here first")
    add("--check", nargs="*", metavar="SET", help="only compare sets with the published ones")
    add("--embedded", action="store_true", help="list scikit-image's photographs instead")
    options = parser.parse_args(arguments)
    ignored = [
        vars(options)[k] for k in ("train", "valid", "lr_folder", "out", "download", "check")
    ]
    if options.embedded and (options.folders or ignored.count(None) < len(ignored)):
        parser.error("--embedded goes with --data and --crop-size only")
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # what stands in for them in a notebook
            stream.reconfigure(errors="backslashreplace")  # names that the console cannot show
    data = Path(options.data)
    try:
        if options.embedded:
            embedded_photographs(data / EMBEDDED_FOLDER, options.crop_size)
            return 0
        if options.check is not None:
            problems = check(options.check, data)
            lines = [f"{path}: {problem}" for path, problem in problems.items()]
            print("\n".join(lines) or "all is as published")
            return 1 if problems else 0
        if options.download is not None:
            download(options.download, data, mirrors=options.mirror)
        create_data_lists(
            data, options.out, folders=options.folders or None, train=options.train,
            valid=options.valid, lr_folder=options.lr_folder, crop_size=options.crop_size,
            verify=options.verify,
        )  # fmt: skip
        absent = [name for name in SETS if not options.folders and not is_there(name, data)]
        if absent:
            command = _command(None, {"--data": data})
            print(
                f"not there: {', '.join(absent)}; to fetch: {command} --download {' '.join(absent)}"
            )
        return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
