"""Batch norm over several CPU processes, for the tests and the scaling benchmark.

`torch.nn.SyncBatchNorm` does the same, but refuses CPUs. Training on several CPU processes is
slower than on one with all cores, so the project itself refuses it.
"""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn


def share_batch_norm(network, device):
    """Stands in for `tools.distributed.share_batch_norm` on CPUs; names in the state dict stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d  # same weights and buffers, another forward
    return network


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over equal parts of a batch in several processes: (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        precise = x.to(self.running_mean.dtype)  # mixed precision may pass in half
        y, mean, variance = _SharedNormalization.apply(precise, self.weight, self.bias, self.eps)
        with torch.no_grad():
            count = torch.distributed.get_world_size() * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        return y.to(x.dtype)


class _SharedNormalization(torch.autograd.Function):
    """Normalise by the statistics of all processes' parts; they are returned without a gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        # Equal parts: the whole's variance is the mean of theirs and of their means' squared
        # distances.
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
        # ... and through them. They moved every process's loss, so the sums are over all processes
        # (Ioffe and Szegedy 2015, section 3). Both terms are one line in x for each channel.
        sums = torch.stack([to_weight, to_bias])
        torch.distributed.all_reduce(sums)
        along, level = sums * x.shape[1] / (x.numel() * torch.distributed.get_world_size())
        inverse = (variance + ctx.eps).rsqrt()
        slope = -weight * inverse.square() * along
        offset = -weight * inverse * level - slope * mean
        to_x.addcmul_(x, slope.view(1, -1, 1, 1)).add_(offset.view(1, -1, 1, 1))
        return to_x, to_weight, to_bias, None
