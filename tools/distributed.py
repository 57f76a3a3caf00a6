"""What a training must know of the world around it: stop requests, and the processes of its run."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

IMPATIENT = 5  # seconds until a second Ctrl-C breaks off; launchers send signals twice at once
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
            raise stop.exception
        interrupt = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
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
        # Without a GPU, launched processes would each train alone unless told to meet on the CPU.
        on_cpu = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available()
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
