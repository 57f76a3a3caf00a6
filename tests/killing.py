"""Runs a function in a child process that is killed (SIGKILL) at a chosen line of our code."""

import os
import signal
import sys
import threading

from tqdm import tqdm


def run_killed(function, modules, at):
    """Run `function` in a forked process; kill it before the `at`-th line of `modules`.

    Lines of all threads count. Returns False if the function came to its end first.
    """
    files = {module.__file__ for module in modules}
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            if frame.f_code.co_filename not in files:
                return None
            count += 1
            if count >= at:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            # tqdm's own is shared by forked processes. Killed while it is held, it would stay
            # locked for all of them.
            tqdm.set_lock(threading.RLock())
            threading.settrace(trace)
            sys.settrace(trace)
            function()
            sys.settrace(None)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, (
        "the function failed before it was killed"
    )
    return os.WIFSIGNALED(status)


def count_lines(function, modules):
    """How many lines of `modules` a whole run of `function` begins: the range for `at`."""
    files, count = {module.__file__ for module in modules}, 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        count += 1
        return trace

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
        threading.settrace(before)
    return count


def contents(folder):
    """{relative path: bytes} of the files under a folder, without locks and temporary files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "lock" not in path.name and not path.name.startswith(".tmp-")
    }
