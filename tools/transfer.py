"""Brings one file from the first of several servers that has a good one; resumes; trusts nobody.

What a server sends has a limit, and whatever is wrong with it, the next one is asked. Knows nothing
of image sets: see tools/download.py.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from utils import patiently, progress_bar

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of data
ATTEMPTS = 5  # in a row with less than CHUNK new bytes, before the next address is tried
BACKOFF = 1.0  # seconds before the second attempt; then 3, 7 and 15
BUSY = (429, 500, 502, 503, 504)  # HTTP statuses that may be gone at the next attempt
LONGEST_WAIT = 60  # seconds; a server that asks for more (Retry-After) is left for the next one
SLOWEST = 1000  # bytes a second, on average over SLOW_PERIOD; a slower server is left, too
SLOW_PERIOD = 60  # seconds
CHUNK = 2**16  # bytes read at a time
RESERVE = 100_000_000  # bytes of the disk that stay free, for other programs


class Unusable(ValueError):
    """What a server sends is of no use: the next one is asked."""


# All that a server can cause. Other OSErrors are the disk's, and end the run.
SERVER_FAULTS = (requests.RequestException, HTTPError, ValueError, OverflowError)


def open_session() -> requests.Session:
    """A session for `fetch`: it asks for no compression, and does not leave https for http."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # Content-Length: that of the file itself
    session.hooks["response"].append(_check_redirect)
    return session


def check_space(folder: Path, size: int = 0) -> None:
    """OSError (ENOSPC) if `size` bytes do not fit on the disk of `folder` beside the reserve."""
    needed, free = (size + RESERVE) / 1e9, shutil.disk_usage(folder).free / 1e9
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:.1f} GB are needed and {free:.1f} GB are free")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file of any size, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(
    session: requests.Session,
    urls: Iterable[str],
    path: Path,
    check: Callable[[Path], str | None],
    limit: int,
    exact: bool = False,
) -> None:
    """Bring the file of the first of `urls` that has a good one to `path`; resume `path`.part.

    check(file) returns what is wrong with a file, or None. limit: of the file, in bytes; exact: it
    has as many. Raises Unusable if no address gives a good file, OSError if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and check(path) is None:  # fetched by a run that was stopped
        return
    path.unlink(missing_ok=True)
    part, errors = path.with_name(f"{path.name}.part"), []
    for url in urls:
        for _ in range(2):  # a damaged file is fetched once more from the same address
            try:
                _transfer(session, url, part, limit, exact)
            except SERVER_FAULTS as error:
                errors.append(f"{url}: {_printable(error)}")
                break
            problem = check(part)
            if problem is None:
                patiently(os.replace, part, path)
                return
            patiently(part.unlink)
            errors.append(f"{url}: {_printable(problem)}")
    raise Unusable(f"{path.name} could not be fetched:\n    " + "\n    ".join(errors))


def _printable(text):
    """A text with words of a server or an archive, short and without control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:300])


def _transfer(session, url, part, limit, exact):
    """Append to `part` until it is as long as the server's file; resume dropped connections."""
    part.touch()
    stalled, wait = 0, 0
    while stalled < ATTEMPTS:
        time.sleep(wait)
        before, wait = part.stat().st_size, 0
        try:
            if _transfer_once(session, url, part, limit, exact):
                return
            error = "the connection was closed too early"
        except requests.HTTPError as failure:
            if failure.response.status_code not in BUSY:
                raise
            wait = Retry().get_retry_after(failure.response) or 0
            if wait > LONGEST_WAIT:
                asked = failure.response.headers["Retry-After"]
                raise Unusable(f"{failure} (Retry-After: {asked})") from failure
            error = failure
        except (requests.ConnectionError, requests.Timeout, HTTPError) as failure:
            error = failure
        stalled = 0 if part.stat().st_size >= before + CHUNK else stalled + 1
        wait = max(wait, BACKOFF * (2**stalled - 1))
    raise Unusable(f"gave up after {ATTEMPTS} attempts without progress ({error})")


def _transfer_once(session, url, part, limit, exact):
    """One request for what `part` lacks; returns whether `part` is complete now."""
    have = part.stat().st_size
    if exact and have >= limit:
        return True
    headers = {"Range": f"bytes={have}-"} if have else {}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416 and have and not exact:
            return True  # nothing lies beyond what we have
        begin, total = _announced(response)
        if begin > have:
            raise Unusable(f"sends the bytes from {begin}, not from {have}")
        if total is not None and (total != limit if exact else total > limit):
            expected = "were published" if exact else "are the limit"
            raise Unusable(f"offers {total} bytes, {limit} {expected}")
        skip = have - begin  # a server without ranges sends the whole file
        bar = {"total": total, "initial": begin, "unit": "B", "unit_scale": True, "delay": 1}
        began, received = time.monotonic(), 0
        with open(part, "ab") as file, progress_bar(desc=part.stem, **bar) as progress:
            while piece := response.raw.read1(CHUNK):  # what is there, without waiting for CHUNK
                progress.update(len(piece))
                received += len(piece)
                if time.monotonic() - began > SLOW_PERIOD:
                    if received < SLOWEST * SLOW_PERIOD:
                        raise Unusable(f"is too slow: {received} bytes in {SLOW_PERIOD} seconds")
                    began, received = time.monotonic(), 0
                new = piece[skip:]
                skip -= len(piece) - len(new)
                if have + len(new) > limit and not exact:
                    file.truncate(0)
                    raise Unusable(f"sends more than {limit} bytes, the limit")
                check_space(part.parent)
                have += file.write(new[: limit - have])
                if exact and have == limit:
                    break
    goal = limit if exact else total
    return goal is None or have >= goal


def _announced(response):
    """The first byte that a response sends, and the bytes of the whole file (None: not known)."""
    response.raise_for_status()
    given = "bytes 0-"
    if response.status_code == 206:
        given = response.headers.get("Content-Range", "")
    begin = re.match("bytes ([0-9]+)-", given)
    if response.status_code not in (200, 206) or not begin:
        raise Unusable(f"answers with HTTP status {response.status_code} and range {given!r}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":  # unpacked, it could be of any size
        raise Unusable(f"sends the file compressed, as {encoding}")
    length = response.headers.get("Content-Length", "")
    begin = int(begin[1])
    return begin, begin + int(length) if length.isdecimal() else None


def _check_redirect(response, **_):
    if response.is_redirect:
        response.close()  # requests would read what comes with it, however long
        target = urljoin(response.url, response.headers["Location"])
        if urlsplit(response.url).scheme == "https" and urlsplit(target).scheme != "https":
            raise Unusable(f"redirects from https to {target}")
