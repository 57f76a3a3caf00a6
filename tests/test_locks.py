"""One process at a time, and the others know which."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tools import locks
from tools.locks import locked

ROOT = Path(locks.__file__).parents[1]


def test_one_that_waits_says_for_whom_and_then_goes_on(tmp_path, monkeypatch):
    held, release, said = threading.Event(), threading.Event(), []

    def hold():
        with locked(tmp_path / "new" / "lock", "is downloading into data"):
            held.set()
            release.wait(60)

    def say(*words, **_):
        said.append(" ".join(words))
        release.set()

    monkeypatch.setattr(locks, "NOTICE", 0)
    monkeypatch.setattr(locks, "print", say, raising=False)
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    with locked(tmp_path / "new" / "lock", "is downloading, too"):
        holder.join(60)
        assert not holder.is_alive()
    [text] = said
    assert text.startswith(f"Waiting: process {os.getpid()} on ")
    assert "is downloading into data since" in text


def test_one_that_does_not_wait_is_refused_with_the_other_s_name(tmp_path):
    program = """
import sys
from tools.locks import locked
with locked("lock", "is training in runs/a"):
    print("held", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    told = rf"process {other.pid} on .* is training in runs/a since .*: stop it"
    with (
        pytest.raises(BlockingIOError, match=told),
        locked(tmp_path / "lock", "is training, too", wait=False),
    ):
        pytest.fail("two hold the lock")
    other.kill()  # however it ends
    other.communicate()
    with locked(tmp_path / "lock", "is training, too", wait=False):
        pass
