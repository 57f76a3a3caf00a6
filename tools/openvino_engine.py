"""Networks as ONNX, and computed by OpenVINO from it; both packages are optional. Knows no images.

OpenVINO (https://docs.openvino.ai) is Intel's library for networks on processors of any make.
"""

import importlib
import io
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tools.acceleration import computes_in_bf16

# {network: (fast, its weights then, the compiled parts)}; an entry goes with its network.
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


def compile_parts(
    network: nn.Module, parts: dict[Callable[[nn.Module, Tensor], Tensor], int], fast: bool
) -> list[Callable[[Tensor], Tensor]]:
    """Parts of a network in eval mode, as functions of a tensor that OpenVINO computes.

    Compiling takes a quarter of a second. The functions are kept while the network lives, and made
    again when its weights have changed.

    Args:
        network: on the CPU.
        parts: {part(network, x): channels of x}; x is float32 (1, C, H, W), as is the result, which
            the next call of the same part overwrites.
        fast: bfloat16 where the processor is fast in it, else float32.

    Raises ImportError without the packages openvino and onnx, ValueError for a network on a GPU.
    """
    device = next(network.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"OpenVINO computes on the CPU; the network is on {device}: move it there")
    weights = network.state_dict()
    if network in _compiled:
        was_fast, were, functions = _compiled[network]
        if was_fast == fast and all(torch.equal(were[name], weights[name]) for name in weights):
            return functions
    openvino = import_openvino()
    # Without the hint OpenVINO itself chooses bfloat16 where that is faster.
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if fast and computes_in_bf16(device) else "f32"}
    functions = []
    for part, channels in parts.items():
        file = io.BytesIO()
        axes = {"x": {1: "h", 2: "w"}, "y": {1: "H", 2: "W"}}
        write_onnx(_ChannelsLast(network, part), (1, 16, 24, channels), file, axes)
        file.seek(0)
        model = openvino.compile_model(openvino.Core().read_model(file), "CPU", hint)
        functions.append(partial(_call, model))
    _compiled[network] = fast, {name: value.clone() for name, value in weights.items()}, functions
    return functions


class _ChannelsLast(nn.Module):
    """A part of a network for (N, H, W, C), OpenVINO's own layout; to convert them costs 7 %."""

    def __init__(self, network, part):
        super().__init__()
        self.network, self.part = network, part
        self.train(network.training)  # the exporter puts it into eval mode, and back

    def forward(self, x):
        return self.part(self.network, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _call(model, x):
    x = x.permute(0, 2, 3, 1).contiguous().numpy()
    y = model(x, share_inputs=True, share_outputs=True)[0]  # without copies
    return torch.from_numpy(y).permute(0, 3, 1, 2)
