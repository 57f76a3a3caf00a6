"""Muon for convolutions: an optimizer that moves all directions of a weight matrix alike.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon); the size of a step as in Liu et al.
2025, arXiv:2502.16982. Optional: worth 0.07 dB to SRResNet at equal steps (report.md, 5.1).
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from tools.acceleration import computes_in_bf16


class Muon(torch.optim.Adam):
    """Adam, but for the hidden convolutions, whose averaged gradient is made orthogonal.

    Adam's step along a few strong directions of a convolution's gradient drowns the many weak ones.
    Muon takes the momentum as a matrix (outputs x inputs and taps) and replaces its singular values
    by about 1. `torch.optim.Muon` takes matrices only, one by one; here those of one shape are
    updated together.
    Muon is for the 4-dimensional weights of `network`, without the first and the last, Adam for the
    rest. muon_lr: relative to `lr`. At 1 a step's root mean square is 0.2 lr, as Adam's usually is.
    """

    MOMENTUM = 0.95

    def __init__(
        self, network: nn.Module, lr: float = 1e-3, muon_lr: float = 3.0, fused: bool | None = None
    ):
        parameters = list(network.parameters())
        hidden = [parameter for parameter in parameters if parameter.dim() == 4][1:-1]
        others = [p for p in parameters if all(p is not weight for weight in hidden)]
        groups = [dict(params=others), dict(params=hidden)] if hidden else others
        super().__init__(groups, lr=lr, fused=fused)
        self.hidden, self.muon_lr = hidden, muon_lr
        # A GradScaler must remove its scale before `step`, not inside Adam's kernel.
        self._step_supports_amp_scaling = False

    def __setstate__(self, state):
        # Adam's own expects a step count for each weight, which Muon's weights lack.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self) -> None:
        """One update. Afterwards the hidden convolutions have no gradients."""
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
            ahead = torch._foreach_lerp(gradients, momenta, self.MOMENTUM)  # Nesterov momentum
            updates = orthogonal(torch.stack([update.flatten(1) for update in ahead]))
            # An orthogonal m x n matrix has the root mean square max(m, n)^-0.5.
            size = 0.2 * max(updates.shape[1:]) ** 0.5
            rate = self.muon_lr * self.param_groups[1]["lr"] * size
            for weight, update in zip(weights, updates, strict=True):
                weight.add_(update.view(shape), alpha=-rate)
                weight.grad = None  # Adam skips parameters without a gradient
        super().step()


def orthogonal(matrices: Tensor) -> Tensor:
    """(K, m, n) -> (K, m, n): near the closest orthonormal matrices, singular values 0.7 to 1.2.

    Five Newton-Schulz iterations with Jordan's coefficients. They tolerate bfloat16 rounding, which
    is used where it is fast.
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
