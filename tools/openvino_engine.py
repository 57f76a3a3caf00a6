"""Networks as ONNX, and computed by OpenVINO from it; both packages are optional. Knows no images.

OpenVINO (https://docs.openvino.ai) is Intel's library for networks on processors of any make.
"""

import importlib
import io
import sys
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tools.acceleration import computes_in_bf16

# {generator: (hint, its weights then, the compiled halves)}; an entry goes with its generator.
_compiled: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def write_onnx(
    network: nn.Module, shape: tuple[int, ...], file: str | io.BytesIO, axes: dict[str, dict]
) -> None:
    """Write a network of one input and one output, in eval mode, as ONNX.

    shape: an input's. axes: {name: {axis of any length: its name}} of the input and the output.
    Raises ImportError without the package onnx.
    """
    _require("onnx")  # PyTorch's exporter imports it
    lr, sr = axes
    names = {"input_names": [lr], "output_names": [sr], "dynamic_axes": axes}
    example = torch.rand(shape).to(next(network.parameters()))
    with warnings.catch_warnings():
        # PyTorch calls this exporter deprecated; the newer one, dynamo=True, needs another package.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network, (example,), file, dynamo=False, **names)


def import_openvino() -> Any:
    """The package. Raises ImportError, which names the command that installs it."""
    # Its import tells Google Analytics, unasked, unless this package of its own is missing.
    sys.modules.setdefault("openvino_telemetry", None)
    return _require("openvino")


def _require(package):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{error}; for this: pip install openvino onnx") from error


def compile_halves(
    generator: nn.Module,
    extract: Callable[[nn.Module, Tensor], Tensor],
    enlarge: Callable[[nn.Module, Tensor], Tensor],
    fast: bool,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """`extract(generator, lr)` and `enlarge(generator, features)` by OpenVINO, without `generator`.

    What they take and return are float32 (1, C, H, W); the next call overwrites what one returned.
    Both are kept, and compiled again, in a quarter of a second, when the weights have changed.

    generator: an SRResNet on the CPU. fast: bfloat16 where the processor is fast in it.
    Raises ImportError without the packages openvino and onnx, ValueError for another device.
    """
    device = next(generator.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"OpenVINO computes on the CPU, and the generator is on {device}")
    # Without this hint OpenVINO itself chooses bfloat16 where that is faster.
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if fast and computes_in_bf16(device) else "f32"}
    weights = generator.state_dict()
    if generator in _compiled:
        old_hint, old, functions = _compiled[generator]
        if old_hint == hint and all(torch.equal(old[name], weights[name]) for name in weights):
            return functions
    openvino = import_openvino()

    def compiled(half, shape, axes):
        file = io.BytesIO()
        write_onnx(half, shape, file, axes)
        file.seek(0)
        return openvino.compile_model(openvino.Core().read_model(file), "CPU", hint)

    # The feature maps are channels last as inside OpenVINO; else a tenth of the time converts them.
    first = compiled(
        _Half(generator, lambda lr: extract(generator, lr).permute(0, 2, 3, 1)),
        (1, 3, 16, 24),
        {"lr": {2: "h", 3: "w"}, "features": {1: "h", 2: "w"}},
    )
    second = compiled(
        _Half(generator, lambda features: enlarge(generator, features.permute(0, 3, 1, 2))),
        (1, 16, 24, generator.num_channels),
        {"features": {1: "h", 2: "w"}, "sr": {2: "4h", 3: "4w"}},
    )
    functions = (
        lambda lr: _call(first, lr).permute(0, 3, 1, 2),
        lambda features: _call(second, features.permute(0, 2, 3, 1)),
    )
    _compiled[generator] = hint, {name: value.clone() for name, value in weights.items()}, functions
    return functions


class _Half(nn.Module):
    """The exporter takes a module."""

    def __init__(self, generator, function):
        super().__init__()
        self.generator, self.function = generator, function
        self.train(generator.training)  # the exporter puts both into eval mode, and back

    def forward(self, x):
        return self.function(x)


def _call(model, x):
    return torch.from_numpy(model(x.contiguous().numpy(), share_inputs=True, share_outputs=True)[0])
