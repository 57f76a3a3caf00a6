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
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

IMPATIENT = 5  # seconds until a second Ctrl-C breaks off; launchers send signals twice at once


class StopRequest:
    """`exception` is None, or what to raise once everything is saved."""

    exception: BaseException | None = None
    time = 0.0


@contextlib.contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a `StopRequest`, for the block to honour where it is safe."""
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

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
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
        """The logical OR of each flag over processes. Costs a round trip."""
        if self.count == 1:
            return list(flags)
        counts = self.accelerator.reduce(torch.tensor(flags, device=self.device).float())
        return (counts > 0).tolist()

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
