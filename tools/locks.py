"""Lock files: one process at a time, and the others know which. Reading needs no lock."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NOTICE = 2  # seconds of waiting before it is told


@contextmanager
def locked(path: str | Path, work: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`; it is free again when the block or the process ends, however.

    work: what this process does, for the others: "is training in checkpoints/mine". If another one
    holds it, waits and says so; without `wait`, raises BlockingIOError. Both name that process.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(path), path.with_name(f"{path.name}-owner")
    try:
        lock.acquire(timeout=NOTICE if wait else 0)
    except Timeout:
        other = owner.read_text("utf-8") if owner.is_file() else f"another process ({path})"
        if not wait:
            way_out = "stop it, wait for its end, or choose another folder"
            raise BlockingIOError(f"{other}: {way_out}") from None
        print(f"Waiting: {other}.", flush=True)
        lock.acquire()
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner.write_text(
            f"process {os.getpid()} on {platform.node()} {work} since {since}", encoding="utf-8"
        )
        yield
    finally:
        lock.release()
