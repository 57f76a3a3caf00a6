"""Fetches the official image sets and lays them out under data/; reads no pixels but to check them, writes no lists.

    python create_data_lists.py --download            what is missing of all sets
    python create_data_lists.py --download Set5 Set14
    python create_data_lists.py --check               compare what is there with what was published

Transfers go on where they stopped, what arrives is checked (size, SHA-256, CRC-32, pixels), and a set appears under
data/ only when it is whole. Work in progress lies in data/.downloads.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import requests
from filelock import FileLock
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util.retry import Retry

from utils import atomic_path, read_image

MIRRORS_VARIABLE = (
    "SRGAN_MIRRORS"  # environment: addresses to try before those of the table, separated by spaces
)
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of data
ATTEMPTS = 5  # in a row without a new byte, before the next mirror is tried
BACKOFF = 1.0  # seconds before the second attempt; doubles
CHUNK = 2**16  # bytes written at a time: what a dropped connection can lose
SPARE_DISK = 256 * 2**20  # bytes left free
MAX_RATIO = 10  # of what an archive unpacks to and its size; PNG files hardly shrink


# ---------------------------------------------------------------------------------------------------------------------
# What is fetched, and from where


class Source(NamedTuple):
    """One way to get a set: from archives, or, where there are none, image by image."""

    mirrors: list  # addresses; the name of an archive or image is added
    images: dict  # {name on the mirror or in the archive: path under data/}
    archives: dict  # {name: (bytes, SHA-256), or (None, None) where they are not known}
    size: int  # bytes of all images, roughly
    pixels: str | None = None  # see pixel_digest


def _div2k(part, numbers, hr, lr):
    # Sizes and SHA-256 from TensorFlow Datasets (datasets/div2k/checksums.tsv); terms: academic research only.
    images = [f"DIV2K_{part}_HR/{k:04}.png" for k in numbers]
    images += [f"DIV2K_{part}_LR_bicubic/X4/{k:04}x4.png" for k in numbers]
    archives = {f"DIV2K_{part}_HR.zip": hr, f"DIV2K_{part}_LR_bicubic_X4.zip": lr}
    mirrors = [
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
        "https://huggingface.co/datasets/goodfellowliu/DIV2K/resolve/main/",  # known to have DIV2K_train_HR.zip
    ]
    return [Source(mirrors, dict(zip(images, images, strict=True)), archives, hr[0] + lr[0])]


def _selfexsr(name, folder, names, size, pixels, archive):
    # The sets as published with SelfExSR (Huang et al. 2015): HR cut to a multiple of 4, LR by MATLAB. The repository
    # holds the images; the archives, tried next, are those linked in its README and hold its results too, up to 1.1 GB.
    repository = "jbhuang0604/SelfExSR", "8f6dd8c1d20cb7e8792a7177b4f6fd677633f598"
    images = {
        f"{folder}/image_SRF_4/img_{k:03}_SRF_4_{side}.png": f"{name}/{side}/{image}.png"
        for side in ("HR", "LR")
        for k, image in enumerate(names, 1)
    }
    mirrors = [
        "https://raw.githubusercontent.com/{}/{}/data/".format(*repository),
        "https://github.com/{}/raw/{}/data/".format(*repository),
    ]
    return [
        Source(mirrors, images, {}, size, pixels),
        Source(
            ["https://uofi.box.com/shared/static/"], images, {archive: (None, None)}, size, pixels
        ),
    ]


NUMBERED = [f"img_{k:03}" for k in range(1, 101)]
SET5 = ["baby", "bird", "butterfly", "head", "woman"]
SET14 = [
    *("baboon", "barbara", "bridge", "coastguard", "comic", "face", "flowers"),
    *("foreman", "lenna", "man", "monarch", "pepper", "ppt3", "zebra"),
]

# No address could be tried where this was written; they were compared with public code that uses them.
SETS = {
    "DIV2K_train": _div2k(
        "train",
        range(1, 801),
        (3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
        (246914039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"),
    ),
    "DIV2K_valid": _div2k(
        "valid",
        range(801, 901),
        (448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
        (31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"),
    ),
    "Set5": _selfexsr(
        "Set5",
        "Set5",
        SET5,
        1000000,
        "bf3125c845cb714ef80d761cf91c258c20700a07861e8b47a606fa026f4ca64a",
        "kfahv87nfe8ax910l85dksyl2q212voc.zip",
    ),
    "Set14": _selfexsr(
        "Set14",
        "Set14",
        SET14,
        5500000,
        "14a92e4f0fc2382d13d26de0ebce9a9c68dd04820e93b1140b819efbd4de7316",
        "igsnfieh4lz68l926l8xbklwsnnk8we9.zip",
    ),
    "B100": _selfexsr(
        "B100",
        "BSD100",
        NUMBERED,
        29100000,
        "b45173a0062a92c9935369a38923457c06b30129b1ce0f3b139c25a94a3bbc7a",
        "qgctsplb8txrksm9to9x01zfa4m61ngq.zip",
    ),
    "Urban100": _selfexsr(
        "Urban100",
        "Urban100",
        NUMBERED,
        150300000,
        "90da5b40cb6f0e8e5a410751b9e40070c05c9841679f747e96ec3e5f13c997a4",
        "65upg43jjd0a4cwsiqgl6o6ixube6klm.zip",
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Sets


def download(names=None, data="data", *, mirrors=(), sets=SETS, progress=True):
    """Fetch the sets called `names` (default: all) that are not yet whole under the folder `data`.

    mirrors: addresses to try first, before those in the environment variable SRGAN_MIRRORS and in the table. Stopped at
    any moment, the next call goes on from there. Raises ValueError for an unknown set, OSError where the disk is too
    full or no mirror gives what was published; the message says what each one gave.
    """
    names = list(names or sets)
    for name in names:
        if name not in sets:
            raise ValueError(f"{name}: no such set; known are {', '.join(sets)}")
    mirrors = [*mirrors, *os.environ.get(MIRRORS_VARIABLE, "").split()]
    data, work = Path(data), Path(data) / ".downloads"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "lock"):
        for leftover in work.glob(".tmp-*"):  # of a run that was killed
            leftover.unlink()
        missing = [name for name in names if not is_whole(name, data, sets)]
        for name in names:
            if name not in missing:
                print(f"{name}: is there")
        _check_disk([sets[name][0] for name in missing], work)
        for name in missing:
            print(
                f"{name}: fetching {len(sets[name][0].images)} images, about {sets[name][0].size / 1e6:,.0f} MB"
            )
            errors = []
            for source in sets[name]:
                try:
                    _fetch_set(name, source, data, mirrors, progress)
                    break
                except (OSError, ValueError) as error:
                    errors.append(str(error))
            else:
                raise OSError(
                    f"{name}: could not be fetched; check the connection, or name a server that has it: --mirror URL\n  "
                    + "\n  ".join(errors)
                )


def is_whole(name, data="data", sets=SETS):
    """Whether every image of a set is there, with the size it arrived in if it was fetched by `download`."""
    if _ready(name, data).exists():
        return False
    sizes = {path: size for path, (size, _) in _manifest(name, data).items()}
    for path in sets[name][0].images.values():
        file = Path(data) / path
        if not file.is_file() or file.stat().st_size != sizes.get(path, file.stat().st_size):
            return False
    return True


def is_there(name, data="data", sets=SETS):
    """Whether there is anything of a set."""
    return (Path(data) / PurePosixPath(next(iter(sets[name][0].images.values()))).parts[0]).is_dir()


def check(names=None, data="data", *, sets=SETS, progress=True):
    """Compare the sets (default: those of which there is anything) with what was published: {path: what is wrong with it}.

    Every file is read: by its CRC-32 where `download` fetched it, else by decoding it; the pixels of the small sets are
    compared.
    """
    problems = {}
    for name in names or [name for name in sets if is_there(name, data, sets)]:
        if name not in sets:
            raise ValueError(f"{name}: no such set; known are {', '.join(sets)}")
        source, manifest = sets[name][0], _manifest(name, data)
        paths = list(source.images.values())
        files = [(Path(data) / path, manifest.get(path)) for path in paths]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = tqdm(
                pool.map(_problem, files), name, len(files), unit="image", disable=not progress
            )
            bad = {path: reason for path, reason in zip(paths, found, strict=True) if reason}
        if not bad and source.pixels and pixel_digest(paths, data) != source.pixels:
            bad = {name: "its images are whole, but not the published ones"}
        problems |= bad
    return problems


def _problem(file_and_described):
    """What is wrong with a file, described as [bytes, CRC-32] or not at all (None); None if nothing."""
    file, described = file_and_described
    if not file.is_file():
        return "is missing"
    if described:
        return (
            None
            if [file.stat().st_size, _crc32(file)] == described
            else "has changed since it was fetched"
        )
    try:
        read_image(file)
    except (OSError, ValueError) as error:
        return str(error).removeprefix(f"{file}: ")
    return None


def pixel_digest(paths, data="data"):
    """SHA-256 of the names and pixels of images (paths under `data`), whatever files they are stored in."""

    def digest(path):
        image = read_image(Path(data) / path)
        return f"{path} {image.shape} {hashlib.sha256(image.tobytes()).hexdigest()}\n"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256("".join(pool.map(digest, sorted(paths))).encode()).hexdigest()


def _ready(name, data):
    return Path(data) / ".downloads" / f"{name}.ready"


def _manifest(name, data):
    """{path under data: [bytes, CRC-32]} of the images that `download` fetched."""
    try:
        return json.loads((Path(data) / ".downloads" / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}


def _check_disk(sources, work):
    # Archives are kept until their set is whole, the largest set's beside everything else.
    archives = max(
        (sum(size or 0 for size, _ in source.archives.values()) for source in sources), default=0
    )
    needed = sum(source.size for source in sources) + archives
    free = shutil.disk_usage(work).free
    if sources and needed + SPARE_DISK > free:
        raise OSError(
            f"{work.parent}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; free some space, or fetch "
            f"fewer sets at a time: --download {next(iter(SETS))}"
        )


def _fetch_set(name, source, data, mirrors, progress):
    """Bring all images of a set into a folder of their own, check them, then move them under `data`.

    The set's manifest, under the name *.ready, marks the point between: from there on there is nothing left to fetch.
    """
    work = data / ".downloads"
    staging, ready = work / name, _ready(name, data)
    archives = [work / archive for archive in source.archives]
    paths = list(source.images.values())
    if not ready.exists():
        mirrors = [*mirrors, *source.mirrors]
        with _session() as session:
            if archives:
                for archive in archives:
                    _fetch_archive(session, mirrors, archive, source, staging, progress)
            else:
                for key, path in tqdm(
                    source.images.items(), name, unit="image", disable=not progress
                ):
                    urls = [_url(mirror, key) for mirror in mirrors]
                    if not (staging / path).exists():
                        _fetch(session, urls, staging / path, check=read_image, progress=False)
        lacking = [path for path in paths if not (staging / path).exists()]
        if lacking:
            raise OSError(
                f"{name}: {len(lacking)} images are not in the archives, {lacking[0]} among them"
            )
        if source.pixels and pixel_digest(paths, staging) != source.pixels:
            shutil.rmtree(staging)
            raise OSError(f"{name}: the images that came are whole, but not the published ones")
        described = {
            path: [(staging / path).stat().st_size, _crc32(staging / path)] for path in paths
        }
        with atomic_path(ready) as temporary:
            temporary.write_text(json.dumps(described, indent=0))

    for folder in sorted(staging.iterdir()) if staging.exists() else []:
        if not (data / folder.name).exists():
            os.rename(folder, data / folder.name)  # the whole folder at once
    for path in paths:
        if (staging / path).exists():
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / path, data / path)
    for leftover in [file for archive in archives for file in work.glob(f"{archive.name}*")]:
        leftover.unlink()
    shutil.rmtree(staging, ignore_errors=True)
    os.replace(
        ready, work / f"{name}.json"
    )  # last: until then a run that was stopped is finished by the next one


def _crc32(path):
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"


# ---------------------------------------------------------------------------------------------------------------------
# Archives


class Damaged(OSError):
    """What arrived is not what was published, and is to be fetched again."""


def _fetch_archive(session, mirrors, archive, source, staging, progress):
    """Fetch an archive and unpack its images into `staging`; should it be damaged, fetch it again, then elsewhere."""
    size, sha256 = source.archives[archive.name]
    urls = [_url(mirror, archive.name) for mirror in mirrors]
    url, seen, errors = None, set(), []
    while urls:
        try:
            if not archive.exists():
                url = _fetch(session, urls, archive, size=size, sha256=sha256, progress=progress)
                urls = urls[urls.index(url) :]
            return _unpack(archive, source.images, staging, progress)
        except Damaged as error:
            archive.unlink(missing_ok=True)
            errors.append(f"{url or 'an earlier run'}: {error}")
            if url in seen:
                urls = urls[1:]
            seen.add(url)
    raise OSError("\n    ".join(errors))


def _unpack(archive, images, staging, progress):
    """Unpack the images of an archive into `staging`, one by one; those unpacked before are left alone.

    Raises Damaged for an archive that is not whole (naming the member whose CRC-32 is wrong), would write elsewhere or
    would write far more than its size.
    """
    wanted = {_last_two(key): path for key, path in images.items()}
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for member in members:
                _refuse_unsafe(archive, member)
            chosen = [(member, wanted.get(_last_two(member.filename))) for member in members]
            chosen = [(member, path) for member, path in chosen if path]
            total = sum(member.file_size for member, _ in chosen)
            if total > MAX_RATIO * archive.stat().st_size:
                raise Damaged(
                    f"{archive}: would unpack to {total / 1e9:.1f} GB, too much for images"
                )
            with tqdm(
                total=total,
                desc=f"unpack {archive.name}",
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar:
                for member, path in chosen:
                    _unpack_member(archive, opened, member, staging / path)
                    bar.update(member.file_size)
    except zipfile.BadZipFile as error:
        raise Damaged(f"{archive}: not a whole zip archive ({error})") from error


def _unpack_member(archive, opened, member, path):
    if (
        path.exists()
        and path.stat().st_size == member.file_size
        and _crc32(path) == f"{member.CRC:08x}"
    ):
        return
    try:
        with (
            atomic_path(path) as temporary,
            opened.open(member) as source,
            open(temporary, "wb") as target,
        ):
            shutil.copyfileobj(source, target, CHUNK)  # compares the CRC-32 at the end
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"{archive}: its member {member.filename} is damaged ({error})") from error


def _refuse_unsafe(archive, member):
    """Raise Damaged for a member that points out of the folder it is unpacked into, or is a link."""
    name = member.filename
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if (
        is_link
        or "\\" in name
        or ":" in name
        or name.startswith("/")
        or ".." in PurePosixPath(name).parts
    ):
        raise Damaged(f"{archive}: its member {name!r} leads out of the folder")


def _last_two(name):
    """Folder and file name: archives differ in what stands before."""
    return "/".join(PurePosixPath(name).parts[-2:])


# ---------------------------------------------------------------------------------------------------------------------
# Transfer


def _session():
    session = requests.Session()
    retry = Retry(
        3, backoff_factor=BACKOFF, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    # No compression: a length that counts other bytes than arrive cannot be checked.
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "srgan-course (requests)"})
    return session


def _url(mirror, name):
    return mirror.rstrip("/") + "/" + name


def _fetch(session, urls, path, *, size=None, sha256=None, check=None, progress=True):
    """Bring a file from the first of `urls` that gives what was published to `path`; returns that address.

    size, sha256: of the published file, where known. check: a function that raises OSError or ValueError for a bad
    file. What has arrived is kept in <path>.part, where the next call goes on. Raises OSError with what each address
    gave.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    errors = []
    for url in urls:
        for _ in range(
            2
        ):  # what is damaged is fetched once more from the same address, from its first byte on
            try:
                _transfer(session, url, part, size, bool(sha256), progress)
                _verify(part, size, sha256, check)
                os.replace(part, path)
                _note(part).unlink(missing_ok=True)
                return url
            except Damaged as error:
                part.unlink(missing_ok=True)
                errors.append(f"{url}: {error}")
            except OSError as error:  # requests' errors are OSErrors, too
                errors.append(f"{url}: {error}")
                break
    raise OSError(f"{path.name} could not be fetched:\n    " + "\n    ".join(errors))


def _verify(part, size, sha256, check):
    if size is not None and part.stat().st_size != size:
        raise Damaged(f"{part.stat().st_size} bytes arrived, {size} were published")
    if sha256 is not None:
        digest = hashlib.sha256()
        with open(part, "rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
        if digest.hexdigest() != sha256:
            raise Damaged("its SHA-256 is not that of the published file")
    if check is not None:
        try:
            check(part)
        except (OSError, ValueError) as error:
            raise Damaged(str(error)) from error


def _note(part):
    """Beside a partial file: where it comes from and which version it is, so that two versions are never joined."""
    return part.with_name(part.name + ".json")


def _transfer(session, url, part, size, published, progress):
    """Append to `part` until it is as long as the server's file; goes on after a dropped connection.

    published: the whole will be compared with a SHA-256, so that a part from another server may be continued, too.
    Raises OSError when no new byte comes in ATTEMPTS attempts, and for a server's file that has not `size` bytes.
    """
    begin = longest = part.stat().st_size if part.exists() else 0
    stalled = 0
    while True:
        try:
            if _transfer_once(session, url, part, size, published, progress):
                return
            error = "the connection was closed too early"
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as dropped:
            if longest == begin and (not part.exists() or part.stat().st_size <= begin):
                raise  # nothing came at all, though urllib3 has tried more than once
            error = dropped
        arrived = part.stat().st_size if part.exists() else 0
        stalled = 0 if arrived > longest else stalled + 1
        longest = max(longest, arrived)
        if stalled >= ATTEMPTS:
            raise OSError(f"gave up after {ATTEMPTS} attempts without progress ({error})")
        time.sleep(BACKOFF * 2**stalled)


def _transfer_once(session, url, part, size, published, progress):
    """One request; returns whether `part` is complete now."""
    try:
        note = json.loads(_note(part).read_text())
    except (OSError, ValueError):
        note = {}
    have = part.stat().st_size if part.exists() else 0
    version = note.get("version") if note.get("url") == url else None
    headers = {}
    if have and (version or published):
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version  # should the file have changed, the server sends it whole
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if (
            response.status_code == 416
        ):  # nothing lies beyond what we have: complete, or longer than the server's file
            if have == size:
                return True
            part.unlink()
            return False
        response.raise_for_status()
        begin, total = _extent(response)
        if size is not None and total not in (None, size):
            raise OSError(f"offers {total} bytes, {size} were published")
        if begin not in (0, have):
            raise OSError(f"sends bytes from {begin} on, where {have} were asked for")
        # A weak ETag does not promise equal bytes.
        etag = response.headers.get("ETag", "")
        version = (
            etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        )
        with open(part, "ab" if begin else "wb") as file:
            with atomic_path(_note(part)) as temporary:
                temporary.write_text(json.dumps({"url": url, "version": version}))
            bar = tqdm(
                total=total,
                initial=begin,
                desc=part.stem,
                unit="B",
                unit_scale=True,
                disable=not progress,
                leave=True,
            )
            with bar:
                for piece in response.iter_content(CHUNK):
                    file.write(piece)
                    bar.update(len(piece))
                    if size is not None and file.tell() > size:
                        raise OSError(f"sends more than the {size} bytes that were published")
    return total is None or part.stat().st_size >= total


def _extent(response):
    """(offset of the first byte, length of the whole file or None) of a response to a request for a file or its rest."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not match:
            raise OSError(
                f"sends a part without saying which: {response.headers.get('Content-Range')}"
            )
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, None if length is None else int(length)
