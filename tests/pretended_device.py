"""A GPU on a machine without one: every mistake with devices is an error.

Its tensors hold their values in the CPU's memory and claim to lie on the device. It cannot show
what only the real thing has: its kernels and its memory, torch.compile, several processes.
"""

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch._dynamo  # PyTorch imports it late, and it must not see pretended functions
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# PyTorch copies between devices, and takes indices on the CPU.
MAY_MIX = {"to", "copy_", "type_as", "__getitem__", "__setitem__"}
# The program waits for a value, or for the size of a result.
WAIT = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "equal"}
WAIT |= {"nonzero", "masked_select", "unique", "argwhere"}


class PretendedDevice(TorchFunctionMode):
    """While it is entered, PyTorch's functions know the device `kind`, "cuda" or "mps".

    synchronisations: how often the program has waited for the device.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.device, self.synchronisations = torch.device(kind, 0), 0

        class OnDevice(torch.Tensor):
            __torch_function__ = torch._C._disabled_torch_function_impl
            device = property(lambda tensor: self.device)
            is_cpu = property(lambda tensor: False)
            is_cuda = property(lambda tensor: kind == "cuda")

            def __deepcopy__(tensor, memo):
                copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
                copy.__dict__.update(tensor.__dict__)  # it stays a parameter
                return copy

        self.OnDevice = OnDevice

    def place(self, tensor):
        if tensor.dtype == torch.float64 and self.device.type == "mps":
            raise TypeError("MPS has no float64")
        if isinstance(tensor, self.OnDevice):
            return tensor
        if tensor.is_leaf:
            alias = tensor.detach().as_subclass(self.OnDevice)
            return alias.requires_grad_(tensor.requires_grad)
        return tensor.as_subclass(self.OnDevice)

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        name = function.__name__
        if name == "__get__":  # of an attribute
            name = function.__self__.__name__
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, self.OnDevice)]
        elsewhere = [x for x in tensors if x.dim() and not isinstance(x, self.OnDevice)]
        if name == "_has_compatible_shallow_copy_type":
            return False  # a module that moves gets new parameters: they have another class here
        if here and elsewhere and name not in MAY_MIX:
            raise RuntimeError(f"{name}: tensors on {self.device} and on {elsewhere[0].device}")
        if here and name == "numpy":
            raise TypeError(f"a tensor on {self.device} cannot become an array")

        target = here[0].device if here else None  # where the result lies
        if name == "cpu":
            target = torch.device("cpu")
        elif name == "to":
            for value in (*arguments[1:], *options.values()):
                if isinstance(value, torch.Tensor):
                    target = value.device
                elif isinstance(value, (str, torch.device)):
                    target = torch.device(value)
            arguments = [self.without_device(value) for value in arguments]
        elif name == "copy_":
            target = arguments[0].device
        elif options.get("device") is not None:
            target = torch.device(options["device"])
        options = {key: self.without_device(value) for key, value in options.items()}

        leaves_device = here and target.type != self.device.type
        self.synchronisations += bool((here and name in WAIT) or leaves_device)
        result = function(*arguments, **options)
        if target is not None and target.type == self.device.type:
            return tree_map_only(torch.Tensor, self.place, result)
        if leaves_device and name != "copy_":
            return result.as_subclass(torch.Tensor).clone()
        return result

    def without_device(self, value):
        named = isinstance(value, (str, torch.device))
        return "cpu" if named and str(value).split(":")[0] == self.device.type else value


class RefuseChannelsLast(TorchDispatchMode):
    """On MPS the backward pass of a channels-last batch norm fails (pytorch#188371)."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        is_backward = function is torch.ops.aten.native_batch_norm_backward.default
        if is_backward and not arguments[1].is_contiguous():
            raise RuntimeError("view size is not compatible with input tensor's size")
        return function(*arguments, **(options or {}))


@contextmanager
def pretended_device(kind, capability=None):
    """A machine whose only GPU is a pretended one; yields its `PretendedDevice`."""
    autocast, mode = torch.autocast, PretendedDevice(kind)
    cuda = dict(
        is_available=lambda: kind == "cuda",
        device_count=lambda: int(kind == "cuda"),
        current_device=lambda: 0,
        set_device=lambda device: None,
        get_device_capability=lambda device=None: capability,
        get_device_name=lambda device=None: "a pretended GPU",
        mem_get_info=lambda device=None: (14 * 10**9, 16 * 10**9),
        is_current_stream_capturing=lambda: False,
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda: None,
        max_memory_allocated=lambda: 10**9,
    )
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(patch.multiple(torch.cuda, **cuda))
        mps = dict.fromkeys(("is_available", "is_built"), lambda: kind == "mps")
        enter(patch.multiple(torch.backends.mps, **mps))
        enter(patch.object(torch, "autocast", lambda kind, *more, **m: autocast("cpu", *more, **m)))
        stream = SimpleNamespace(is_capturing=lambda: False)
        accelerator = dict(synchronize=lambda: None, current_stream=lambda: stream)
        enter(patch.multiple(torch.accelerator, **accelerator))
        if kind == "mps":
            enter(RefuseChannelsLast())
        yield enter(mode)
