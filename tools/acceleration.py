"""What makes the networks faster and changes no result: layouts, precision, memory.

Everything here is optional. Tests hold float32 equal to the plain networks up to the order of
summation, and half precision close to it.
"""

import ctypes
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def speed_up(network: nn.Module, device: str | torch.device) -> nn.Module:
    """Move a network to `device` in its fastest form; returns it. Parameters keep their names."""
    tail = getattr(network, "tail", None)
    if isinstance(tail, nn.Conv2d):  # an SRResNet
        # PReLU works on single values, so the shuffle before it can happen after the tail.
        network.upsample[1][1] = nn.Identity()
        network.tail = ShuffledConv2d(tail)
    return network.to(device, memory_format=memory_format(device))


def memory_format(device: str | torch.device) -> torch.memory_format:
    """The layout of weights and batches: channels last, which is faster, but not on Apple's GPUs.

    There the backward pass of a channels-last batch norm fails, or on macOS 14 returns wrong
    gradients (pytorch#188371, pytorch#181411).
    """
    is_apple = torch.device(device).type == "mps"
    return torch.contiguous_format if is_apple else torch.channels_last


class ShuffledConv2d(nn.Module):
    """`conv(pixel_shuffle(x, 2))` with the parameters of `conv`, see `convolve_shuffled`."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias, self.side = conv.weight, conv.bias, conv.kernel_size[0]

    def forward(self, x: Tensor) -> Tensor:
        return convolve_shuffled(x, self.weight, self.bias, self.side)


def convolve_shuffled(x: Tensor, weight: Tensor, bias: Tensor, side: int) -> Tensor:
    """conv(pixel_shuffle(x, 2)) without the large shuffled maps: (N, 4C, h, w) -> (N, K, 2h, 2w).

    A convolution on the fine grid is one on the coarse grid, from the four sub-pixels of each map
    to the four sub-pixels of each output: the same products, summed in another order. Processors
    are slow at convolutions with three outputs, such as the paper's last (k9n3s1). Twelve outputs
    of 5 x 5 taps save a sixth of a training step.

    weight, bias: (K, C, side, side) and (K,), of a convolution with stride 1 and "same" padding.
    side: one of 1, 5, 9, ...; a number, because ONNX export cannot fold shapes.
    """
    out_channels, in_channels = weight.shape[:2]
    taps = (side + 1) // 2  # on the coarse grid
    # Output sub-pixel (p, q) sees the fine kernel p rows and q columns further on; a row or column
    # of zeros fills up. The ONNX exporter can fold `cat` and `stack`, unlike `pad`.
    row = weight.new_zeros(out_channels, in_channels, 1, side)
    column = weight.new_zeros(out_channels, in_channels, side + 1, 1)
    moved = [torch.cat(pair, 2) for pair in ((weight, row), (row, weight))]
    phases = [torch.cat(pair, 3) for rows in moved for pair in ((rows, column), (column, rows))]
    weight = torch.stack(phases, 1).reshape(4 * out_channels, in_channels, taps, 2, taps, 2)
    weight = weight.permute(0, 1, 3, 5, 2, 4).reshape(4 * out_channels, -1, taps, taps)
    bias = torch.stack(4 * [bias], 1).flatten()
    return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=taps // 2), 2)


class MixedPrecision:
    """The precision of forward and backward passes; weights and their updates stay float32.

    name: "no" (float32), "bf16", "fp16", or "auto": the `fastest_precision`.
    """

    def __init__(self, name: str, device: torch.device):
        if name == "auto":
            name = fastest_precision(device)
        self.device_type = device.type
        self.dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        # fp16 has few exponents: scaling keeps small gradients from vanishing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of the forward passes."""
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None)

    def update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One step of `optimizer` on the gradient of `loss`."""
        optimizer.zero_grad(set_to_none=True)
        # The backward pass repeats the types of the forward pass by itself.
        with torch.autocast(self.device_type, enabled=False):
            self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()  # for each network of a GAN: the next loss is scaled anew
        torch.clear_autocast_cache()  # it holds the weights from before the step


class GraphedStep:
    """A training step as a CUDA graph: the CPU launches it at once, not kernel by kernel.

    A step is some thousand small kernels, and the CPU needs longer to launch them than the GPU to
    run them: 62 ms against 10 for a GAN step of 16 patches on an H100. The kernels, and so the
    results, stay the same. Warns and goes on without where capturing fails.

    step: maps (lr, hr) to losses; it must launch the same kernels each time, on the same memory,
        and read nothing from the GPU. What changes from step to step lies in the GPU's memory.
    """

    PLAIN_STEPS = 3  # first, without a graph: they fill caches, which capturing cannot

    def __init__(self, step: Callable[[Tensor, Tensor], dict[str, Tensor]]):
        self.step, self.stream = step, torch.cuda.Stream()
        self.calls, self.graph = 0, None

    def __call__(self, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        # An epoch's last batch may be smaller; if it was the one captured, a whole one replaces it.
        if self.calls == self.PLAIN_STEPS or (self.graph and len(lr) > len(self.inputs[0])):
            self.capture(lr, hr)
        self.calls += 1
        if self.graph is None or lr.shape != self.inputs[0].shape:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):  # autograd remembers streams: that of the graph
                losses = self.run(lr, hr)
            torch.cuda.current_stream().wait_stream(self.stream)
            return losses
        for mine, given in zip(self.inputs, (lr, hr), strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.losses

    def run(self, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        return {name: loss.detach() for name, loss in self.step(lr, hr).items()}

    def capture(self, lr: Tensor, hr: Tensor) -> None:
        """Record the kernels of a step, without running them."""
        self.inputs, graph = (lr.clone(), hr.clone()), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.losses = self.run(*self.inputs)
            self.graph = graph
        except RuntimeError as error:
            cause = " ".join(str(error).split())[:200]
            warnings.warn(f"no CUDA graph ({cause}): going on without", stacklevel=2)


def fastest_precision(device: torch.device) -> str:
    """What "auto" is: "bf16" where it is fast, "fp16" on tensor cores without it, or "no"."""
    if computes_in_bf16(device):
        return "bf16"
    is_volta_or_turing = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 7
    return "fp16" if is_volta_or_turing else "no"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is fast: GPUs from capability 8.0, CPUs with AVX512_BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works, which needs a C++ compiler or Triton; warns if not.

    Never on Apple's GPUs. What it compiles is kept in a folder that only this user can write to.
    """
    try:
        if device.type == "mps":
            raise NotImplementedError("it is not used on Apple's GPUs")
        # PyTorch's own default is a folder in /tmp that another user may have made before.
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiler_cache()
        # The layout matters: there are channels-last convolutions that fail (pytorch#171622).
        layout = dict(device=device, memory_format=memory_format(device))
        x, weight = (torch.ones(8, 8, 3, 3).to(**layout).requires_grad_() for _ in range(2))
        torch.compile(_normalised_convolution, dynamic=False)(x, weight).backward()
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        warnings.warn(f"torch.compile does not work here ({cause}): going on without", stacklevel=2)
        return False
    return True


def _normalised_convolution(x, weight):
    """What the networks consist of, small enough to be compiled for a test."""
    return F.batch_norm(F.conv2d(x, weight, padding=1), None, None, training=True).relu().sum()


def compiler_cache() -> str:
    """A folder for compiled kernels that belongs to this user alone; made if it is not there."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home, "srgan", "compiled")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder)
    except (OSError, RuntimeError):  # no home that can be written: each process compiles anew
        return tempfile.mkdtemp(prefix="srgan-compiled-")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of a GPU, of Apple's GPU, or of the CPU, each with its own error."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("to allocate" in text or "alloc_failed" in text)
    )


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system, in the whole process.

    Call before computing on the CPU. Each training step, and each tile of an image, allocates the
    same large blocks again. glibc maps each one newly, and the kernel fills it with zeros: up to 5
    times slower. Does nothing without glibc.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt  # macOS and musl have none
    except (TypeError, OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
