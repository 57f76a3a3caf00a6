"""What a training must know of the world around it: stop requests, and the processes of its run."""

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

import presets
from utils import pick_device

SOLVER = Path(__file__).parents[1] / "solver.py"
IMPATIENT = 5  # seconds until a second Ctrl-C breaks off; launchers send signals twice at once
STOPPED = "stopped, all is saved: run again to go on"  # the one line that a notebook shows
ASK_SECONDS = 2  # between two questions of `Processes.any`; launchers kill 30 s after SIGTERM


class StopRequest:
    """`exception` is None, or what to raise once everything is saved."""

    exception: BaseException | None = None
    time = 0.0


@contextlib.contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Turn Ctrl-C, SIGTERM and a lost terminal into a `StopRequest`, to honour where it is safe."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return

    def request(number, frame):
        if stop.exception and time.monotonic() - stop.time > IMPATIENT:
            raise KeyboardInterrupt("broken off; the checkpoint before is valid")
        interrupt = (
            KeyboardInterrupt(STOPPED) if number == signal.SIGINT else SystemExit(128 + number)
        )
        stop.exception = stop.exception or interrupt
        stop.time = stop.time or time.monotonic()

    numbers = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up and signal.getsignal(hang_up) != signal.SIG_IGN:  # what `nohup` sets stays
        numbers.append(hang_up)
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.exception:
        raise stop.exception


class Processes:
    """The processes of a run: one, or as many as `accelerate launch` started.

    `device` is this process's, `rank` its number of `count`; `is_main` is the one that writes.
    """

    def __init__(self):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            # Without a GPU, they would each train alone unless told to meet on the CPU.
            on_cpu = not torch.cuda.is_available()
        else:
            on_cpu = pick_device().type == "cpu"  # also where a GPU is too old to compute
        # Accelerate allows one mixed precision a process; a notebook may hold two solvers.
        self.accelerator = accelerate.Accelerator(mixed_precision="no", cpu=on_cpu)
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.launcher = os.getppid()
        self.calls_left, self.calls_between, self.asked_at = 0, 1, time.monotonic()  # of `any`

    def launcher_is_gone(self) -> bool:
        """Whether the launcher was killed: it can no longer end this process, nor its siblings."""
        return self.count > 1 and os.getppid() != self.launcher

    def require_same(self, describe: Callable[[], dict[str, Any]]) -> None:
        """Raise ValueError in every process if what `describe` returns differs between them."""
        if self.count == 1:
            return
        first, *others = gather_object([describe()])
        for rank, other in enumerate(others, 1):
            names = [name for name in first if first[name] != other.get(name)]
            lines = [
                f"\n  {name}: {first[name]} in 0, {other.get(name)} in {rank}" for name in names
            ]
            if lines:
                raise ValueError(f"process {rank} must be as process 0, but has{''.join(lines)}")

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, with gradients and batch-norm statistics of all processes' patches."""
        if self.count == 1:
            return network
        network = self.accelerator.prepare(share_batch_norm(network, self.device))
        # Two forwards before a backward (real and generated images) fail if buffers are broadcast
        # in between.
        network.broadcast_buffers = False
        return network

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means over processes."""
        return self.accelerator.reduce(values, reduction="mean")

    def any(self, *flags: bool) -> list[bool]:
        """The logical OR of each flag over processes; all False between two questions.

        A question is a round trip, and all processes must ask it at the same call. So the answer
        says at which call the next one is due: after `ASK_SECONDS` by the first process's clock.
        """
        if self.count == 1:
            return list(flags)
        if self.calls_left > 0:
            self.calls_left -= 1
            return [False] * len(flags)
        now = time.monotonic()
        rate = self.calls_between / max(now - self.asked_at, 1e-3)  # calls a second
        wait = max(1, round(ASK_SECONDS * rate)) if self.is_main else 0
        sums = self.accelerator.reduce(torch.tensor([*flags, wait], device=self.device).float())
        *counts, self.calls_between = sums.int().tolist()
        self.calls_left, self.asked_at = self.calls_between - 1, now
        return [count > 0 for count in counts]

    def on_main(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` on the first process; every process gets its result, or its error."""
        answer = [None, None]
        if self.is_main:
            try:
                answer[0] = function(*arguments)
            except Exception as error:
                answer[1] = error
        result, error = broadcast_object_list(answer)
        if error is not None:
            raise error
        return result


def share_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let batch norms use the statistics of the whole batch. Raises ValueError on a CPU."""
    if device.type != "cuda":
        way_out = "on a CPU start solver.py without a launcher, one process uses all cores"
        raise ValueError(f"several processes need a GPU each: {way_out}")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def train_on_several_gpus(settings: dict[str, Any]) -> None:
    """Train all stages of a run, one process on each GPU; does nothing with less than two GPUs.

    For notebooks. `accelerate launch` does the work, so a notebook may call this again, whatever
    it has computed since. The number of processes is the largest that divides the batch of every
    stage. Stopping the cell stops them, saved. Raises RuntimeError if they fail.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < 2:
        return
    stages = presets.check_settings(settings)["stages"].values()
    common = math.gcd(*[stage["batch_size"] for stage in stages])
    count = max(n for n in range(1, gpus + 1) if common % n == 0)
    if sys.platform != "linux":
        print(f"One of {gpus} GPUs is used: several train together on Linux only.")
        return
    print(f"{count} of {gpus} GPUs are used: the largest number that divides batch_size.")
    if count == 1:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "settings.json")
        file.write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
        command += ["--num_machines=1", f"--num_processes={count}", "--main_process_port=0"]
        command += ["--mixed_precision=no", "--dynamo_backend=no", str(SOLVER), str(file)]
        code = run_and_show(command)
    if code:
        raise RuntimeError(f"training on {count} GPUs failed with exit code {code}, see above")


def run_and_show(command: list[str]) -> int:
    """Run a command and print what it prints, as it comes; returns its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # newline="": carriage returns stay, so that a progress bar overwrites itself
    output = io.TextIOWrapper(process.stdout, "utf-8", "replace", newline="")
    try:
        for line in output:
            print(line, end="", flush=True)
    except KeyboardInterrupt:
        # A terminal and Jupyter interrupt the command, too; others only this process.
        process.send_signal(signal.SIGINT)
        for line in output:  # it saves first
            print(line, end="", flush=True)
        raise
    finally:
        process.wait()
    return process.returncode
