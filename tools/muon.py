"""Muon for convolutions: an optimizer whose steps move all directions of a weight matrix alike; Adam for everything else.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon); the step's size as in Liu et al. 2025, arXiv:2502.16982.
"""

from collections import defaultdict

import torch

from utils import computes_in_bf16


class Muon(torch.optim.Adam):
    """Adam, but for the hidden convolutions, whose averaged gradient is made orthogonal before each step.

    Adam's step along a few strong directions of a convolution's gradient drowns the many weak ones. Muon takes the
    momentum as a matrix (outputs x inputs and taps) and replaces its singular values by about 1. PyTorch's own
    `torch.optim.Muon` takes matrices only and goes through them one by one; here those of one shape go together.

    Args:
        network: its 4-dimensional weights, without the first and the last (pixels come in and go out there), are for
            Muon; the rest is for Adam. With fewer than three such weights all is Adam's.
        lr: Adam's learning rate.
        muon_lr: Muon's, relative to `lr`. At 1 its steps are as large as Adam's usually are: root mean square 0.2 lr.
        fused: see `torch.optim.Adam`.
    """

    MOMENTUM = 0.95

    def __init__(self, network, lr=1e-3, muon_lr=3.0, fused=None):
        parameters = list(network.parameters())
        hidden = [parameter for parameter in parameters if parameter.dim() == 4][1:-1]
        others = [
            parameter for parameter in parameters if all(parameter is not one for one in hidden)
        ]
        super().__init__(
            [dict(params=others), dict(params=hidden)] if hidden else others, lr=lr, fused=fused
        )
        self.hidden, self.muon_lr = hidden, muon_lr
        self._step_supports_amp_scaling = (
            False  # a GradScaler is to undo its scale before `step`, not in Adam's kernel
        )

    def __setstate__(self, state):
        torch.optim.Optimizer.__setstate__(
            self, state
        )  # Adam's wants a count of steps in each state; Muon has none

    @torch.no_grad()
    def step(self):
        """One update from the gradients; those of the hidden convolutions are gone after it."""
        shapes = defaultdict(list)
        for parameter in self.hidden:
            if parameter.grad is not None:
                shapes[parameter.shape].append(parameter)
        for shape, weights in shapes.items():
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, self.MOMENTUM)  # Nesterov's look ahead
            updates = orthogonal(torch.stack([update.flatten(1) for update in ahead]))
            size = (
                0.2 * max(updates.shape[1:]) ** 0.5
            )  # the root mean square of an orthogonal one: max(m, n)**-0.5
            for weight, update in zip(weights, updates, strict=True):
                weight.add_(
                    update.view(shape), alpha=-self.muon_lr * self.param_groups[1]["lr"] * size
                )
                weight.grad = None  # Adam, below, passes over parameters without a gradient
        super().step()


def orthogonal(matrices):
    """(K, m, n) -> (K, m, n): nearly the nearest matrices with orthonormal rows or columns, singular values 0.7 to 1.2.

    Five Newton-Schulz iterations with Jordan's coefficients; of float32 in bfloat16 where that is fast, whose rounding
    they bear.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-12)
    if x.dtype == torch.float32 and computes_in_bf16(x.device):
        x = x.bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)
