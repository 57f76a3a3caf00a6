"""What a training process has to know of the world around it: signals to stop, and the other processes of its run."""

import contextlib
import signal
import threading
import time

import torch
import torch.distributed
from accelerate.utils import broadcast_object_list
from torch import nn

IMPATIENT = 5  # seconds after which a second Ctrl-C is meant to break off; launchers send signals twice at once


class Stop:
    """A wish to stop: `exception` is None, or what to raise once everything is saved."""

    exception, time = None, 0.0


@contextlib.contextmanager
def deferred_signals():
    """Turns Ctrl-C and SIGTERM into a `Stop` for the block to honour where it is safe; what it did not, its end does."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return

    def request(number, frame):
        if stop.exception and time.monotonic() - stop.time > IMPATIENT:
            raise stop.exception
        stop.exception = stop.exception or (
            KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        )
        stop.time = stop.time or time.monotonic()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.exception:
        raise stop.exception


def ignore_ended_children():
    """Let no ended child process interrupt this one.

    A DataLoader raises the death of a worker out of a signal handler: anywhere, also in the middle of an update. When it
    waits for the next batch it notices that death all the same.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def on_first_process(function, *arguments):
    """Call `function` on the first process alone; every process gets its result, or raises its error."""
    answer = [None, None]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        try:
            answer[0] = function(*arguments)
        except Exception as error:
            answer[1] = error
    result, error = broadcast_object_list(answer)
    if error is not None:
        raise error
    return result


# --- batch norm over all processes -----------------------------------------------------------------------------------


def share_batch_norm(network, device):
    """Make the batch norms of `network` take the statistics of the whole batch, of which each process has a part.

    The names of their weights and buffers stay, so a state moves between one process and several.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d  # same weights and buffers, another forward
    return network


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over equal parts of a batch in several processes, on any device: (N, C, H, W) -> (N, C, H, W).

    `torch.nn.SyncBatchNorm` does the same, faster, but only on GPUs.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        precise = x.to(self.running_mean.dtype)  # mixed precision may hand in half: its sums need single
        mean = _mean_over_processes(precise.mean((0, 2, 3)))
        centred = precise - mean.view(1, -1, 1, 1)
        variance = _mean_over_processes(centred.square().mean((0, 2, 3)))
        with torch.no_grad():
            count = torch.distributed.get_world_size() * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def _mean_over_processes(x):
    return _Sum.apply(x) / torch.distributed.get_world_size()


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes. Each part has moved every process's loss: gradients are summed as well."""

    @staticmethod
    def forward(ctx, x):
        total = x.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.forward(ctx, gradient)
