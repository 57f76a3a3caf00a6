"""What a training process has to know of the world around it: signals to stop, and the other processes of its run."""

import contextlib
import signal
import threading
import time

import torch
import torch.distributed
import torch.nn.functional as F
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

    `torch.nn.SyncBatchNorm` does the same, but only on GPUs.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        precise = x.to(
            self.running_mean.dtype
        )  # mixed precision may hand in half: its sums need single
        y, mean, variance = _SharedNormalization.apply(precise, self.weight, self.bias, self.eps)
        with torch.no_grad():
            count = torch.distributed.get_world_size() * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        return y.to(x.dtype)


class _SharedNormalization(torch.autograd.Function):
    """Normalise by the statistics of all processes' parts; they come back, too, without a gradient.

    Written out, so that PyTorch's own batch norm, which goes over the images few times, can do the work.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        # Parts of one size: the whole's variance is the mean of theirs and of their means' squared distances.
        mine = torch.stack([mean, variance])
        parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, mine)
        means, variances = torch.stack(parts, 1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    def backward(ctx, gradient, *_):
        x, weight, mean, variance = ctx.saved_tensors
        # As if the statistics were constants ...
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        # ... and through them: they have moved every process's loss, so the sums are over all of them (Ioffe and Szegedy
        # 2015, section 3). Both terms together are one straight line in x for each channel.
        sums = torch.stack([to_weight, to_bias])
        torch.distributed.all_reduce(sums)
        along, level = sums * x.shape[1] / (x.numel() * torch.distributed.get_world_size())
        inverse = (variance + ctx.eps).rsqrt()
        slope = -weight * inverse.square() * along
        offset = -weight * inverse * level - slope * mean
        to_x.addcmul_(x, slope.view(1, -1, 1, 1)).add_(offset.view(1, -1, 1, 1))
        return to_x, to_weight, to_bias, None
