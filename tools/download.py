"""Fetches the official sets into data/ (create_data_lists.py --download, --check); writes no lists.

Transfers resume where they stopped, in data/.downloads. What arrives is checked (size, SHA-256,
CRC-32, pixels), and a set appears under data/ only when it is whole.
"""

import hashlib
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import requests
from filelock import FileLock
from tqdm import tqdm

from utils import atomic_path, read_image

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of data
ATTEMPTS = 5  # in a row without a new byte, before the next address is tried
BACKOFF = 1.0  # seconds before the second attempt; then 3, 7 and 15
BUSY = (429, 500, 502, 503, 504)  # HTTP statuses that may be gone at the next attempt
CHUNK = 2**16  # bytes written at a time: what a dropped connection can lose


class Source(NamedTuple):
    """One way to get a set: from archives, or, where there are none, image by image."""

    mirrors: list  # addresses; the name of an archive or image is added
    images: dict  # {name on the mirror or in the archive: path under data/}
    archives: dict  # {name: (bytes, SHA-256), each None if not known}
    size: int  # bytes of all images, roughly
    pixels: str | None = None  # their `pixel_digest`, where it is known


def _div2k(part, numbers, hr, lr):
    """DIV2K's training or validation images; terms of use: academic research only."""
    images = [f"DIV2K_{part}_HR/{k:04}.png" for k in numbers]
    images += [f"DIV2K_{part}_LR_bicubic/X4/{k:04}x4.png" for k in numbers]
    archives = {f"DIV2K_{part}_HR.zip": hr, f"DIV2K_{part}_LR_bicubic_X4.zip": lr}
    mirrors = [
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
        "https://huggingface.co/datasets/goodfellowliu/DIV2K/resolve/main/",
    ]
    return [Source(mirrors, {image: image for image in images}, archives, hr[0] + lr[0])]


def _selfexsr(name, folder, names, size, archive, pixels):
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
        Source([github], images, {}, size, pixels),
        Source([box], images, {archive: (None, None)}, size, pixels),
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
    "Set5": _selfexsr("Set5", "Set5", SET5, 1000000, "kfahv87nfe8ax910l85dksyl2q212voc.zip",
        "bf3125c845cb714ef80d761cf91c258c20700a07861e8b47a606fa026f4ca64a"),
    "Set14": _selfexsr("Set14", "Set14", SET14, 5500000, "igsnfieh4lz68l926l8xbklwsnnk8we9.zip",
        "14a92e4f0fc2382d13d26de0ebce9a9c68dd04820e93b1140b819efbd4de7316"),
    "B100": _selfexsr("B100", "BSD100", NUMBERED, 29100000, "qgctsplb8txrksm9to9x01zfa4m61ngq.zip",
        "b45173a0062a92c9935369a38923457c06b30129b1ce0f3b139c25a94a3bbc7a"),
    "Urban100": _selfexsr("Urban100", "Urban100", NUMBERED, 150300000,
        "65upg43jjd0a4cwsiqgl6o6ixube6klm.zip",
        "90da5b40cb6f0e8e5a410751b9e40070c05c9841679f747e96ec3e5f13c997a4"),
}  # fmt: skip


def download(
    names: Iterable[str] | None = None, data: str | Path = "data", *, mirrors: Iterable[str] = ()
) -> None:
    """Fetch the sets called `names` (default: all) that are not yet whole under the folder `data`.

    mirrors: addresses to try first, before the environment variable SRGAN_MIRRORS and the table.
    Raises ValueError for an unknown set, OSError for a full disk or if no mirror gives a good one.
    """
    names = _known(names or SETS)
    mirrors = [*mirrors, *os.environ.get("SRGAN_MIRRORS", "").split()]
    data, work = Path(data), Path(data) / ".downloads"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "lock"):
        missing = [name for name in names if not is_whole(name, data)]
        needed = 0
        for source in [SETS[name][0] for name in missing]:
            needed += source.size * (2 if source.archives else 1)  # archives beside their images
        free = shutil.disk_usage(work).free
        if needed > free:
            raise OSError(
                f"{data}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; "
                "free some space, or fetch fewer sets at a time: --download Set5"
            )
        for name in names:
            if name in missing:
                _fetch_set(name, data, mirrors)
            else:
                print(f"{name}: is there")
            shutil.rmtree(work / name, ignore_errors=True)


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

    Compares the CRC-32 of what `download` fetched, decodes other files, and compares the pixels of
    the small sets. Returns {path: what is wrong with it}.
    """
    problems = {}
    for name in _known(names or [name for name in SETS if is_there(name, data)]):
        source, manifest = SETS[name][0], _read_manifest(name, data)
        paths = list(source.images.values())
        files = [Path(data) / path for path in paths]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reasons = pool.map(_problem, files, [manifest.get(path) for path in paths])
            reasons = tqdm(reasons, name, len(paths), unit="image", delay=1)
            bad = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}
        if not bad and source.pixels and pixel_digest(paths, data) != source.pixels:
            bad = {name: "its images are whole, but not the published ones"}
        problems |= bad
    return problems


def pixel_digest(paths: Iterable[str], data: str | Path = "data") -> str:
    """SHA-256 of the names and pixels of images (paths under `data`), whatever their format."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        image = read_image(Path(data) / path)
        pixels = hashlib.sha256(image.tobytes()).hexdigest()
        digest.update(f"{path} {image.shape} {pixels}\n".encode())
    return digest.hexdigest()


def _known(names):
    for name in names:
        if name not in SETS:
            raise ValueError(f"{name}: no such set; known are {', '.join(SETS)}")
    return list(names)


def _problem(file, described=None):
    """What is wrong with an image, described as [bytes, CRC-32] where known; None: nothing."""
    if not file.is_file():
        return "is missing"
    if described:
        return None if _describe(file) == described else "has changed since it was fetched"
    try:
        read_image(file)
    except (OSError, ValueError) as error:
        return str(error).removeprefix(f"{file}: ")
    return None


def _read_manifest(name, data):
    """{path under data: [bytes, CRC-32]} of the images that `download` fetched."""
    manifest = Path(data) / ".downloads" / f"{name}.json"
    return json.loads(manifest.read_text()) if manifest.exists() else {}


def _describe(file):
    content = file.read_bytes()
    return [len(content), f"{zlib.crc32(content):08x}"]


def _fetch_set(name, data, mirrors):
    """Fetch a set from the first of its sources that gives it, and move it under `data`."""
    first = SETS[name][0]
    print(f"{name}: fetching {len(first.images)} images, about {first.size / 1e6:,.0f} MB")
    work, errors = data / ".downloads" / name, []
    for source in SETS[name]:
        try:
            _fetch_images(name, source, work, mirrors)
            break
        except (OSError, ValueError) as error:
            errors.append(str(error))
    else:
        way_out = "check the connection, or name a server that has it: --mirror URL"
        raise OSError(f"{name}: could not be fetched; {way_out}\n  " + "\n  ".join(errors))

    staging, paths = work / "images", source.images.values()
    with atomic_path(data / ".downloads" / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({path: _describe(staging / path) for path in paths}))
    for leftover in [*staging.rglob(".tmp-*"), *staging.rglob("*.part")]:  # of what was stopped
        leftover.unlink()
    for folder in staging.iterdir():
        if not (data / folder.name).exists():
            os.rename(folder, data / folder.name)  # the whole folder appears at once
    for path in paths:
        if (staging / path).exists():  # its folder was there before
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / path, data / path)


def _fetch_images(name, source, work, mirrors):
    """Bring all images of a set into the folder `work`/images, and check them."""
    staging = work / "images"
    mirrors = [mirror.rstrip("/") for mirror in [*mirrors, *source.mirrors]]
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # Content-Length: that of the file itself
        for archive, (size, sha256) in source.archives.items():
            unpack = partial(_unpack, sha256=sha256, images=source.images, staging=staging)
            _fetch(session, mirrors, archive, work / archive, unpack, size)
        if not source.archives:
            for key, path in tqdm(source.images.items(), name, unit="image", delay=1):
                _fetch(session, mirrors, key, staging / path, _problem)
    lacking = [path for path in source.images.values() if not (staging / path).exists()]
    if lacking:
        raise OSError(f"{name}: {len(lacking)} images did not come, {lacking[0]} among them")
    if source.pixels and pixel_digest(source.images.values(), staging) != source.pixels:
        shutil.rmtree(staging)
        raise OSError(f"{name}: the images that came are whole, but not the published ones")


def _unpack(archive, sha256, images, staging):
    """Unpack the images of an archive into `staging`; returns what is wrong with it, or None.

    A member is known by its folder and its name, since archives differ in what stands before. It
    is written to the path in `images`: an archive cannot choose where.
    """
    if sha256:
        digest = hashlib.sha256()
        with open(archive, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            return "its SHA-256 is not that of the published file"
    wanted = {PurePosixPath(key).parts[-2:]: path for key, path in images.items()}
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in tqdm(opened.infolist(), f"unpack {archive.name}", delay=1):
                path = wanted.get(PurePosixPath(member.filename).parts[-2:])
                if path is not None:
                    with atomic_path(staging / path) as temporary:
                        temporary.write_bytes(opened.read(member))  # compares the CRC-32
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        return f"not a whole zip archive ({error})"
    return None


def _fetch(session, mirrors, name, path, check, size=None):
    """Bring the file `name` of the first of `mirrors` that has a good one to `path`.

    check(path) returns what is wrong with the file, or None. size: in bytes, where known.
    """
    part, errors = path.with_name(f"{path.name}.part"), []  # the next call resumes `part`
    path.parent.mkdir(parents=True, exist_ok=True)
    for url in [f"{mirror}/{name}" for mirror in mirrors]:
        for _ in range(2):  # a damaged file is fetched once more from the same address
            try:
                if not path.exists():
                    _transfer(session, url, part, size)
                    os.replace(part, path)
            except OSError as error:  # those of requests are OSErrors, too
                errors.append(f"{url}: {error}")
                break
            problem = check(path)
            if problem is None:
                return
            path.unlink()
            errors.append(f"{url}: {problem}")
    raise OSError(f"{path.name} could not be fetched:\n    " + "\n    ".join(errors))


def _transfer(session, url, part, size):
    """Append to `part` until it is as long as the server's file; resume dropped connections."""
    part.touch()
    longest, stalled = part.stat().st_size, 0
    while stalled < ATTEMPTS:
        time.sleep(BACKOFF * (2**stalled - 1))
        try:
            if _transfer_once(session, url, part, size):
                return
            error = "the connection was closed too early"
        except requests.RequestException as failure:
            if failure.response is not None and failure.response.status_code not in BUSY:
                raise
            error = failure
        stalled = 0 if part.stat().st_size > longest else stalled + 1
        longest = max(longest, part.stat().st_size)
    raise OSError(f"gave up after {ATTEMPTS} attempts without progress ({error})")


def _transfer_once(session, url, part, size):
    """One request for what `part` lacks; returns whether `part` is complete now."""
    have = part.stat().st_size
    headers = {"Range": f"bytes={have}-"} if have else {}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing lies beyond what we have
            return True
        response.raise_for_status()
        begin = have if response.status_code == 206 else 0  # 200: the server sends the whole file
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length else None
        if size and total and total != size:
            raise OSError(f"offers {total} bytes, {size} were published")
        bar = {"total": total, "initial": begin, "unit": "B", "unit_scale": True, "delay": 1}
        with open(part, "ab" if begin else "wb") as file, tqdm(desc=part.stem, **bar) as progress:
            for piece in response.iter_content(CHUNK):
                file.write(piece)
                progress.update(len(piece))
    return total is None or part.stat().st_size >= total
