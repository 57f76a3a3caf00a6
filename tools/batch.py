"""Files of a batch: which are read, where each result goes, and that nothing of the user's is lost.

Knows nothing of networks or of what is in the files.
"""

import glob
import hashlib
import os
import secrets
import shutil
import sys
import threading
import unicodedata
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from tools.image_files import IMAGE_SUFFIXES
from utils import patiently

WRITERS = os.cpu_count() or 1  # threads that write results
WAITING = 64_000_000  # pixels of results that wait for them or are written, unless one has more


def plan(
    paths: Iterable[str | Path],
    output: Path,
    suffix: str = ".png",
    recursive: bool = False,
    keep: Iterable[str | Path] = (),
) -> tuple[dict[Path, Path], set[tuple]]:
    """({image file: file of its result}, originals); prints what is passed over in folders.

    paths: files, folders and patterns like "*.jpg". A result has the image's name and `suffix`;
    with `recursive` it lies in the same subfolder. Where several images have one name, folder or
    suffix come into it, "folder-name.png", whatever the order of the images. The originals are
    the `identities` of the images and of the files to `keep`.

    Raises ValueError for a folder without images, and where results would replace originals or
    would be found as images by the next run.
    """
    images, searched = _find_images(paths, output, recursive)
    names = _names(images, suffix)
    for folder in {output / folder for name in names.values() for folder in name.parents}:
        if searched & identities([folder]):
            cause = f"{folder} is searched for images: the next run would enlarge its results"
            raise ValueError(f"{cause}; choose another -o FOLDER")
    originals = identities([*images, *keep])
    for image, root in images.items():
        # The plain name too: if it is an image's, that one may be the result of an earlier run.
        check_target(output / _name(image, root, suffix, level=0), originals)
        check_target(output / names[image], originals)
    return {image: output / name for image, name in names.items()}, originals


def _find_images(paths, output, recursive):
    """{image: the folder below which it keeps its place} and the `identities` of those searched.

    Each image once; a link and what it points to are two.
    """
    images, searched = {}, set()
    for path in [match for name in paths for match in _expand(name)]:
        root, found = path.parent, [path]  # whether it is an image shows when it is opened
        if os.path.isdir(path):
            root = path
            found, folders, lines = _search(path, output, recursive)
            if not found:
                raise ValueError("; ".join([f"{path}: no images in this folder", *lines]))
            searched |= identities(folders)
            for line in lines:
                print(f"{path}: {line}")
        for image in found:
            images.setdefault(_place(image), (image, root))
    return dict(images.values()), searched


def _place(image):
    """The path of a file by which it is counted once, and a link to it as another one."""
    return os.path.join(os.path.realpath(image.parent), image.name)


def _expand(path):
    """The files that a pattern stands for, which Windows' shells leave to programs; else itself."""
    matches = [] if os.path.lexists(path) else sorted(glob.glob(str(path), recursive=True))
    return [Path(match) for match in matches or [path]]


def _search(root, output, recursive):
    """The images in a folder, all folders searched, and lines that say what was passed over."""
    images, folders, passed_over = [], [], {"subfolder": Counter(), "file": Counter()}

    def unreadable(error):
        passed_over["subfolder"][error.strerror] += 1

    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        folders.append(folder)
        visible = sorted(name for name in subfolders + files if not name.startswith("."))
        subfolders.clear()  # it shall hold those to search next
        for path in [Path(folder, name) for name in visible]:
            suffix = path.suffix.lower()
            if os.path.isdir(path):
                if reason := _why_not(path, output, recursive):
                    passed_over["subfolder"][reason] += 1
                else:
                    subfolders.append(path.name)
            elif suffix in IMAGE_SUFFIXES:
                images.append(path)
            else:
                passed_over["file"][suffix or "without suffix"] += 1
    lines = []
    for kind, reasons in passed_over.items():
        if count := reasons.total():
            kind += "s" * (count > 1)
            lines.append(f"{count} {kind} passed over: {', '.join(sorted(reasons))}")
    return images, folders, lines


def _why_not(folder, output, recursive):
    """Why a subfolder is not searched; None if it is."""
    if not recursive:
        return "--recursive takes them"
    if identities([folder]) & identities([output]):
        return "the output folder"
    if identities([folder]) & identities(folder.absolute().parents):
        return "a link to a folder above"
    return None


def _names(images, suffix):
    """{image: path of its result in the output folder}, different ones on every file system."""
    levels = dict.fromkeys(images, 0)
    while True:
        names = {image: _name(image, images[image], suffix, levels[image]) for image in images}
        groups = defaultdict(list)
        for image, name in names.items():  # macOS and Windows take A.png and a.png for one
            groups[unicodedata.normalize("NFC", str(name)).casefold()].append(image)
        shared = [image for group in groups.values() if len(group) > 1 for image in group]
        if not shared:
            return names
        levels |= {image: min(levels[image] + 1, 4) for image in shared}


def _name(image, root, suffix, level):
    """The path of a result in the output folder: the plain one at level 0, then longer ones."""
    folder = Path(os.path.abspath(root)).name
    names = [image.stem, f"{folder}-{image.stem}", image.name, f"{folder}-{image.name}"]
    if level == len(names):  # as of p/x/a.png and q/x/a.png
        digest = hashlib.sha256(os.fsencode(_place(image))).hexdigest()
        names.append(f"{names[-1]}-{digest[:8]}")
    return image.relative_to(root).parent / f"{names[level]}{suffix}"


def make_all(
    results: dict[Path, Path],
    read: Callable[[Path], Any],
    make: Callable[[Path, Any, Path], tuple[Callable[[], None], int]],
    originals: set[tuple],
    replace: bool = False,
) -> int:
    """Make each result, and say so in the order of the images; returns how many failed.

    While the calling thread makes one by `make(image, read(image), temporary path)`, other threads
    read the next image and write earlier results: `make` returns the function that does so, and
    how many pixels it writes. Of what is read one image waits, of results `WAITING` pixels.

    Skips results that exist, unless `replace`; goes on after failures, whatever they are.
    """
    counts, writing = Counter(), deque()
    with _warnings_to_their_jobs(), ThreadPoolExecutor(1 + WRITERS) as threads:
        jobs = [_Job(*pair, threads, read, make, originals, replace) for pair in results.items()]

        def finish():
            job = writing.popleft()
            job.step()  # waits until it is written
            counts[job.outcome] += 1
            job.say(f"[{counts.total()}/{len(jobs)}]")

        try:
            for job, following in zip([None, *jobs], [*jobs, None], strict=True):
                if following:
                    following.step()  # starts to read it
                if job:
                    job.step()  # makes its result
                    while writing and (writing[0].is_done() or not _has_room(writing, job.pixels)):
                        finish()
                    job.step()  # starts to write it
                    writing.append(job)
            while writing:
                finish()
        finally:
            for job in reversed(jobs):  # those that only wait to be written first
                job.steps.close()
    if jobs:
        tqdm.write("{enlarged} enlarged, {skipped} skipped, {failed} failed".format_map(counts))
    return counts["failed"]


def _has_room(writing, pixels):
    """Whether one more result may be written beside these."""
    return len(writing) < WRITERS and pixels + sum(job.pixels for job in writing) <= WAITING


class _Job:
    """An image on its way to its result, in four steps, and what there is to say of it."""

    def __init__(self, image, target, *how):
        self.image, self.target = image, target
        self.steps = self._steps(*how)
        self.outcome, self.cause, self.warnings = "enlarged", "", []  # the cause of a failure
        self.pixels, self.written = 0, None

    def step(self):
        """Take the next step, if one is left."""
        _thread.warnings = self.warnings
        try:
            next(self.steps, None)
        except Exception as error:  # a decoder's, or a mistake in here
            self.outcome, self.cause = "failed", str(error).removeprefix(f"{self.image}: ")
            if not self.cause or not isinstance(error, (OSError, ValueError, MemoryError)):
                self.cause = f"{type(error).__name__}: {self.cause}".removesuffix(": ")

    def _steps(self, threads, read, make, originals, replace):
        if os.path.lexists(self.target) and not replace:
            self.outcome = "skipped"
            return
        content = threads.submit(self._in_thread, read, self.image)
        yield
        with new_file(self.target, originals, replace) as temporary:
            write, self.pixels = make(self.image, content.result(), temporary)
            del content  # others need the memory
            yield
            self.written = threads.submit(self._in_thread, write)
            try:
                yield
                self.written.result()
            finally:  # if stopped, too: nothing is deleted under a thread that writes
                if not self.written.cancel():
                    wait([self.written])

    def _in_thread(self, function, *arguments):
        _thread.warnings = self.warnings
        return function(*arguments)

    def is_done(self):
        """Whether the last step would not wait."""
        return self.written is None or self.written.done()

    def say(self, number):
        """Print the outcome and each warning once, above a bar if there is one."""
        tqdm.write(f"{number} {self.image} -> {self.target}")
        if self.outcome == "skipped":
            tqdm.write("  exists, skipped (--force replaces it)")
        if self.outcome == "failed":
            tqdm.write(f"  failed: {self.image}: {self.cause}", file=sys.stderr)
        for warning in dict.fromkeys(self.warnings):
            warning = warning.removeprefix(f"{self.image}: ")
            tqdm.write(f"  warning: {warning}", file=sys.stderr)


_thread = threading.local()  # its `warnings` are those of the job for which the thread works


@contextmanager
def _warnings_to_their_jobs():
    """Collect warnings: `warnings.catch_warnings(record=True)` would mix those of all threads."""

    def collect(message, *where, **more):
        if hasattr(_thread, "warnings"):
            _thread.warnings.append(str(message))
        else:  # a library's own thread
            show(message, *where, **more)

    with warnings.catch_warnings():
        show, warnings.showwarning = warnings.showwarning, collect
        warnings.simplefilter("always", append=True)  # else in all images the first one only
        yield


@contextmanager
def pipes(paths: list[str], output: str) -> Iterator[tuple[list, Path]]:
    """Let "-" stand for stdin among the paths, and for stdout as output folder.

    Yields paths that can be used instead. Messages go to stderr while stdout is the image's, which
    is sent when the block ends.
    """
    stdout = sys.stdout
    with TemporaryDirectory() as folder:
        stdin, results = Path(folder, "stdin"), Path(folder, "stdout")
        if "-" in paths:
            with open(stdin, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        paths = [stdin if path == "-" else path for path in paths]
        if output != "-":
            yield paths, Path(output)
            return
        with redirect_stdout(sys.stderr):
            yield paths, results
        for result in results.glob("*"):  # none if it failed
            with open(result, "rb") as file:
                shutil.copyfileobj(file, stdout.buffer)
            stdout.flush()


def identities(paths: Iterable[str | Path]) -> set[tuple]:
    """What files have in common with all their names and links; nothing for what is missing."""
    found = set()
    for path in paths:
        with suppress(OSError):
            status = os.stat(path)
            # Some network drives of Windows number no files.
            number = status.st_ino or os.path.normcase(os.path.realpath(path))
            found.add((status.st_dev, number))
    return found


def check_target(target: str | Path, originals: set[tuple], replace: bool = True) -> None:
    """Raise ValueError if `target` is one of the `originals`, by whatever name, link or case.

    Raises FileExistsError if it exists at all, unless `replace`.
    """
    if identities([target]) & originals:
        raise ValueError(f"{target} would replace an original; choose another name or folder")
    if os.path.lexists(target) and not replace:
        raise FileExistsError(f"{target} exists: choose another name or folder, or --force")


@contextmanager
def new_file(target: str | Path, originals: set[tuple], replace: bool = False) -> Iterator[Path]:
    """Yield a temporary path that becomes `target` when the block ends without error.

    Raises ValueError if `target` is one of the `originals`, and FileExistsError if it exists, even
    since a moment ago, without `replace`. Makes the parent folder, and deletes from it what runs
    left that were killed.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(target.parent) as folder:
        yield folder / target.name
        check_target(target, originals, replace)
        if replace:
            patiently(os.replace, folder / target.name, target)
        else:
            _give_name(folder / target.name, target)
    originals |= identities([target])  # what this run made, it never replaces


def _give_name(file, target):
    """Rename a file; FileExistsError if the name is taken, which `os.rename` may not check."""
    with suppress(OSError):
        os.link(file, target)
        return
    # The name is taken, or the file system has no hard links: there an empty file takes the name.
    open(target, "x").close()
    patiently(os.replace, file, target)


@contextmanager
def _temporary_folder(parent):
    """Yield a folder in `parent` that only the holder of its lock deletes: nobody else's is."""
    for path in parent.glob(f".super_resolve-{12 * '[0-9a-f]'}.lock"):
        lock = FileLock(path)
        with suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            _delete(path.with_suffix(""), lock)
    folder = parent / f".super_resolve-{secrets.token_hex(6)}"
    lock = FileLock(f"{folder}.lock")
    lock.acquire()
    try:
        folder.mkdir()
        yield folder
    finally:
        _delete(folder, lock)


def _delete(folder, lock):
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    if not folder.exists():  # else the next run tries again
        with suppress(OSError):
            os.unlink(lock.lock_file)
