"""Fetches the official sets into data/ (create_data_lists.py --download, --check); writes no lists.

Transfers resume where they stopped, in data/.downloads (see tools/transfer.py). What arrives is
checked (SHA-256, CRC-32, pixels), and a set appears under data/ only when it is whole. A file that
was not downloaded here is never replaced.
"""

import errno
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tools.locks import locked
from tools.transfer import Unusable, check_space, fetch, file_sha256, open_session
from utils import atomic_path, patiently, progress_bar, read_image

IMAGE_LIMIT = 20_000_000  # bytes; the largest image of the sets has 12.5 million, uncompressed
ARCHIVE_LIMIT = 2_000_000_000  # bytes, of an archive whose size is not known
CHECKSUMS = Path(__file__).with_name("checksums.txt")  # lines "path (H, W, 3) SHA-256 of pixels"


class Archive(NamedTuple):
    """A zip archive with images of a set."""

    size: int  # bytes: those of the published file, or a limit where its SHA-256 is not known
    sha256: str | None = None
    folder: str = ""  # of the images it holds, under data/; "": all images of the set


class Source(NamedTuple):
    """One way to get a set: from archives, or, where there are none, image by image."""

    mirrors: list  # addresses; the name of an archive or image is added
    images: dict  # {name on the mirror or in the archive: path under data/}
    archives: dict  # {name: Archive}
    size: int  # bytes of all images, roughly


def _div2k(part, numbers, hr, lr):
    """DIV2K's training or validation images; terms of use: academic research only."""
    images = [f"DIV2K_{part}_HR/{k:04}.png" for k in numbers]
    images += [f"DIV2K_{part}_LR_bicubic/X4/{k:04}x4.png" for k in numbers]
    archives = {
        f"DIV2K_{part}_HR.zip": Archive(*hr, f"DIV2K_{part}_HR/"),
        f"DIV2K_{part}_LR_bicubic_X4.zip": Archive(*lr, f"DIV2K_{part}_LR_bicubic/"),
    }
    mirrors = [
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
        "https://huggingface.co/datasets/goodfellowliu/DIV2K/resolve/main/",
    ]
    return [Source(mirrors, {image: image for image in images}, archives, hr[0] + lr[0])]


def _selfexsr(name, folder, names, size, archive):
    """A set of SelfExSR (Huang et al. 2015): HR cut to a multiple of 4, MATLAB's LR."""
    images = {}
    for k, image in enumerate(names, 1):
        for side in ("HR", "LR"):
            file = f"{folder}/image_SRF_4/img_{k:03}_SRF_4_{side}.png"
            images[file] = f"{name}/{side}/{image}.png"
    commit = "8f6dd8c1d20cb7e8792a7177b4f6fd677633f598"
    github = f"https://raw.githubusercontent.com/jbhuang0604/SelfExSR/{commit}/data/"
    box = "https://uofi.box.com/shared/static/"  # archives with its results, too: up to 1.1 GB
    return [
        Source([github], images, {}, size),
        Source([box], images, {archive: Archive(ARCHIVE_LIMIT)}, size),
    ]


SET5 = ["baby", "bird", "butterfly", "head", "woman"]
SET14 = [
    "baboon", "barbara", "bridge", "coastguard", "comic", "face", "flowers", "foreman", "lenna",
    "man", "monarch", "pepper", "ppt3", "zebra",
]  # fmt: skip
NUMBERED = [f"img_{k:03}" for k in range(1, 101)]

# DIV2K's sizes and SHA-256 are those of TensorFlow Datasets (datasets/div2k/checksums.tsv).
SETS = {
    "DIV2K_train": _div2k("train", range(1, 801),
        (3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
        (246914039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a")),
    "DIV2K_valid": _div2k("valid", range(801, 901),
        (448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
        (31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553")),
    "Set5": _selfexsr("Set5", "Set5", SET5, 1000000, "kfahv87nfe8ax910l85dksyl2q212voc.zip"),
    "Set14": _selfexsr("Set14", "Set14", SET14, 5500000, "igsnfieh4lz68l926l8xbklwsnnk8we9.zip"),
    "B100": _selfexsr("B100", "BSD100", NUMBERED, 29100000, "qgctsplb8txrksm9to9x01zfa4m61ngq.zip"),
    "Urban100": _selfexsr("Urban100", "Urban100", NUMBERED, 150300000,
        "65upg43jjd0a4cwsiqgl6o6ixube6klm.zip"),
}  # fmt: skip


def download(
    names: Iterable[str] | None = None, data: str | Path = "data", *, mirrors: Iterable[str] = ()
) -> None:
    """Fetch the sets called `names` (default: all) that are not yet whole under the folder `data`.

    mirrors: addresses to try first, before the environment variable SRGAN_MIRRORS and the table.
    Raises ValueError for an unknown set. Raises OSError for a full or read-only disk; and, after
    the other sets, for one that no mirror gives, or that would replace files of the user's own.
    """
    names = _known(names or SETS)
    mirrors = [*mirrors, *os.environ.get("SRGAN_MIRRORS", "").split()]
    data, work = Path(data), Path(data) / ".downloads"
    missing = [name for name in names if not is_whole(name, data)]
    for name in names:
        if name not in missing:
            print(f"{name}: is there")
            shutil.rmtree(work / name, ignore_errors=True)  # what a killed run left
    if not missing:
        return
    failures = []
    try:
        work.mkdir(parents=True, exist_ok=True)
        with locked(work / "lock", f"is downloading into {data}"):
            missing = [name for name in missing if not is_whole(name, data)]  # even now
            check_space(work, sum(_needed(name, work) for name in missing))
            for name in missing:
                try:
                    _fetch_set(name, data, mirrors)
                    shutil.rmtree(work / name, ignore_errors=True)
                except Unusable as error:
                    print(f"{name}: not fetched; the error at the end says why")
                    failures.append(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "free some space, then run this again: it resumes (or --download Set5: less)"
            raise OSError(f"{data}: {error.strerror}; {way_out}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OSError(f"{error}; make it writable, or name another folder (--data)") from error
        raise
    if failures:
        raise OSError("\n".join(failures))


def is_whole(name: str, data: str | Path = "data") -> bool:
    """Whether every image of a set is there, with its published size if `download` fetched it."""
    described = _read_manifest(name, data)
    for path in SETS[name][0].images.values():
        file = Path(data) / path
        if not file.is_file():
            return False
        if path in described and described[path][0] != file.stat().st_size:
            return False
    return True


def is_there(name: str, data: str | Path = "data") -> bool:
    """Whether there is anything of a set."""
    first = next(iter(SETS[name][0].images.values()))
    return (Path(data) / PurePosixPath(first).parts[0]).is_dir()


def check(names: Iterable[str] | None = None, data: str | Path = "data") -> dict[str, str]:
    """Compare sets (default: those of which there is anything) with what was published.

    Compares the CRC-32 of what `download` fetched, and of other files the pixels with those that
    were published; DIV2K's are only decoded. Returns {path: what is wrong with it}.
    """
    problems = {}
    for name in _known(names or [name for name in SETS if is_there(name, data)]):
        problems |= _problems(name, Path(data))
    return problems


def _known(names):
    names = list(names)
    for name in names:
        if name not in SETS:
            raise ValueError(f"{name}: no such set; known are {', '.join(SETS)}")
    return names


def _problems(name, data):
    """{path: what is wrong with it} of the images of a set under `data`."""
    manifest, published = _read_manifest(name, data), _read_checksums()
    paths = list(SETS[name][0].images.values())

    def problem(path):
        with suppress(OSError):
            if _describe(data / path) == manifest.get(path):
                return None
        reason = _problem(data / path, published.get(path))
        if reason is None and path in manifest and path not in published:
            return "has changed since it was fetched"
        return reason

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = progress_bar(pool.map(problem, paths), name, len(paths), unit="image", delay=1)
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _problem(file, published=None):
    """What is wrong with an image, whose checksum is `published` where known; None: nothing."""
    if not file.is_file():
        return "is missing"
    try:
        image = read_image(file)
    except (OSError, ValueError) as error:
        return str(error).removeprefix(f"{file}: ")
    return None if published in (None, _checksum(image)) else "is not the published image"


def _checksum(image):
    """Of the pixels, whatever the format and the metadata of their file."""
    return f"{image.shape} {hashlib.sha256(image.tobytes()).hexdigest()}"


def _read_checksums():
    """{path under data: "(H, W, 3) SHA-256"} of the images whose pixels are known."""
    return dict(line.split(" ", 1) for line in CHECKSUMS.read_text().splitlines())


def _read_manifest(name, data):
    """{path under data: [bytes, CRC-32]} of the images that `download` fetched."""
    manifest = Path(data) / ".downloads" / f"{name}.json"
    try:
        return json.loads(manifest.read_text()) if manifest.exists() else {}
    except ValueError as error:
        raise OSError(f"{manifest}: damaged ({error}); delete it, then run this again") from error


def _describe(file):
    content = file.read_bytes()
    return [len(content), f"{zlib.crc32(content):08x}"]


def _needed(name, work):
    """Bytes that fetching a set takes on the disk, beside what a stopped run left there."""
    source = SETS[name][0]
    size = source.size * (2 if source.archives else 1)  # archives beside their images
    files = [file for file in (work / name).rglob("*") if file.is_file()]
    return max(0, size - sum(file.stat().st_size for file in files))


def _fetch_set(name, data, mirrors):
    """Fetch what a set lacks from the first of its sources that gives it; move it under `data`."""
    first, manifest = SETS[name][0], _read_manifest(name, data)
    staging = data / ".downloads" / name / "images"
    problems = _problems(name, data)
    # What was fetched here and cannot be read is damaged. All else that is there is the user's.
    damaged = {path for path in problems if path in manifest and _problem(data / path)}
    own = [path for path in problems if os.path.lexists(data / path) and path not in damaged]
    _refuse_to_replace([f"{data / path} ({problems[path]})" for path in own], name)
    kept = set(first.images.values()) - set(problems)
    print(f"{name}: fetching {len(problems)} images (the set: {first.size / 1e6:,.0f} MB)")
    errors = []
    for source in SETS[name]:
        try:
            _fetch_images(name, source, kept, staging, mirrors)
            break
        except Unusable as error:
            errors.append(str(error))
    else:
        way_out = "check the connection, or name a server that has it: SRGAN_MIRRORS, see README.md"
        raise Unusable(f"{name}: could not be fetched; {way_out}\n  " + "\n  ".join(errors))
    _place(name, damaged, staging, data)


def _refuse_to_replace(files, name):
    """Unusable if there are any of these files of the user's own."""
    if files:
        raise Unusable(
            f"{name}: stopped, for it would replace what was not downloaded here: "
            f"{', '.join(files[:5])}{f' and {len(files) - 5} more' if len(files) > 5 else ''}; "
            "move it away, then run this again"
        )


def _place(name, damaged, staging, data):
    """Move the images from `staging` to `data`, where other files than the `damaged` stay."""
    paths = [path for path in SETS[name][0].images.values() if (staging / path).exists()]
    there = [path for path in paths if os.path.lexists(data / path) and path not in damaged]
    other = [
        f"{data / path} (is not the published image)"
        for path in there
        if _describe(data / path) != _describe(staging / path)
        and _problem(data / path, _checksum(read_image(staging / path)))
    ]
    _refuse_to_replace(other, name)
    paths = [path for path in paths if path not in there]
    manifest = _read_manifest(name, data) | {path: _describe(staging / path) for path in paths}
    with atomic_path(data / ".downloads" / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(manifest))
    leftovers = [*staging.rglob(".tmp-*"), *staging.rglob("*.part")]  # of what was stopped
    for file in [*leftovers, *(staging / path for path in there)]:
        file.unlink()
    for folder in staging.iterdir():
        if not (data / folder.name).exists():
            patiently(os.rename, folder, data / folder.name)  # the whole folder appears at once
    for path in paths:
        if (staging / path).exists():  # its folder was there before
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            patiently(os.replace, staging / path, data / path)


def _fetch_images(name, source, kept, staging, mirrors):
    """Bring the images of a set that are not `kept` into the folder `staging`, checked."""
    published = _read_checksums()
    mirrors = [mirror.rstrip("/") for mirror in [*mirrors, *source.mirrors]]
    with open_session() as session:
        for file, archive in source.archives.items():
            images = source.images.items()
            images = {key: path for key, path in images if path.startswith(archive.folder)}
            if kept.issuperset(images.values()):
                continue
            check = partial(_unpack, archive=archive, images=images, staging=staging)
            urls, exact = [f"{mirror}/{file}" for mirror in mirrors], archive.sha256 is not None
            fetch(session, urls, staging.parent / file, check, archive.size, exact)
        if source.archives:
            return
        for key, path in progress_bar(source.images.items(), name, unit="image", delay=1):
            if path not in kept:
                urls = [f"{mirror}/{key}" for mirror in mirrors]
                check = partial(_problem, published=published.get(path))
                fetch(session, urls, staging / path, check, IMAGE_LIMIT)


def _unpack(file, archive, images, staging):
    """Unpack the images of an archive into `staging`; returns what is wrong with it, or None."""
    if archive.sha256:
        if file.stat().st_size != archive.size:
            return f"has {file.stat().st_size} bytes, {archive.size} were published"
        if file_sha256(file) != archive.sha256:
            return "its SHA-256 is not that of the published file"
    published = {} if archive.sha256 else _read_checksums()
    lacking = set(images.values())
    try:
        for path, content in _read_members(file, images):
            check_space(staging.parent)
            with atomic_path(staging / path) as temporary:
                temporary.write_bytes(content)
                if path in published and (problem := _problem(temporary, published[path])):
                    return f"its {path} {problem}"
            lacking.discard(path)
    except Unusable as error:
        return str(error)
    return f"lacks {len(lacking)} images, {min(lacking)} among them" if lacking else None


def _read_members(file, images):
    """Yield path and content of each image in a zip archive; Unusable for whatever is wrong.

    A member is known by its folder and its name, since archives differ in what stands before. The
    path is that in `images`: an archive cannot choose where it is written.
    """
    wanted = {PurePosixPath(key).parts[-2:]: path for key, path in images.items()}
    try:
        with zipfile.ZipFile(file) as opened:
            for member in progress_bar(opened.infolist(), f"unpack {file.name}", delay=1):
                path = wanted.get(PurePosixPath(member.filename).parts[-2:])
                if path is None:
                    continue
                if member.file_size > IMAGE_LIMIT:
                    raise Unusable(f"{path} has {member.file_size} bytes")
                # The other methods unpack a block without a limit.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise Unusable(f"{path} has the compression method {member.compress_type}")
                yield path, opened.read(member)  # compares the CRC-32
    except Exception as error:  # zipfile raises nearly anything
        raise Unusable(f"not a whole zip archive ({error})") from error
