"""What makes the networks faster against the plain networks, float64 and plain Adam."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import trained_generator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import Discriminator, SRResNet, load_generator, save_generator
from tools import acceleration
from tools.acceleration import (
    MixedPrecision,
    can_compile,
    compiler_cache,
    computes_in_bf16,
    convolve_shuffled,
    fastest_precision,
    is_out_of_memory,
    keep_freed_memory,
    speed_up,
)

CPU = torch.device("cpu")


# --- the tail without the shuffle -----------------------------------------------------------------


@pytest.mark.parametrize("side", [9, 5, 1])
@pytest.mark.parametrize(("h", "w"), [(7, 5), (4, 6), (1, 1), (1, 9)])
def test_values_and_gradients_are_those_of_shuffling_and_convolving(side, h, w):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, side, padding=side // 2).double()
    x = torch.randn(2, 12, h, w, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, 2, 2 * h, 2 * w, dtype=torch.float64)
    plain = conv(F.pixel_shuffle(x, 2))
    fast = convolve_shuffled(x, conv.weight, conv.bias, side)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    inputs = (x, conv.weight, conv.bias)
    gradients = [torch.autograd.grad((y * probe).sum(), inputs) for y in (fast, plain)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


# --- speed_up -------------------------------------------------------------------------------------


def plain_and_fast(training=False, dtype=torch.float32):
    plain = trained_generator(0).train(training).to(dtype)
    return plain, speed_up(copy.deepcopy(plain), "cpu")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("h", "w"), [(5, 7), (8, 8), (1, 1)])
def test_a_fast_generator_equals_the_plain_one_in_float64(training, h, w):
    """In training mode the gradients and the batch-norm statistics, too."""
    plain, fast = plain_and_fast(training, torch.float64)
    lr = torch.rand(2, 3, h, w, dtype=torch.float64)
    outputs = [network(lr) for network in (plain, fast)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    for sr in outputs:
        sr.square().sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fast.state_dict(), plain.state_dict(), rtol=0, atol=1e-12)


def test_a_fast_generator_equals_the_plain_one_in_float32_but_for_the_order_of_summation():
    plain, fast = plain_and_fast()
    lr = torch.rand(2, 3, 12, 9)
    exact = copy.deepcopy(plain).double()(lr.double())
    errors = [(network(lr) - exact).abs().max().item() for network in (plain, fast)]
    assert errors[1] < max(4 * errors[0], 1e-6)
    assert errors[1] < 1e-4


def test_a_fast_generator_in_bf16_is_close():
    plain, fast = plain_and_fast()
    lr = torch.rand(2, 3, 12, 9)
    with torch.autocast("cpu", torch.bfloat16):
        half = fast(lr)
    error = (half.float() - plain(lr)).abs().mean() / plain(lr).std()
    assert 1e-5 < error < 0.05  # a bf16 number has 8 bits, and 8 layers add up


def test_the_tail_gets_the_maps_before_the_shuffle_and_memory_is_channels_last():
    """Else equal results would mean that nothing is faster."""
    _, fast = plain_and_fast()
    seen = []
    with fast.tail.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape)):
        fast(torch.rand(1, 3, 5, 6))
    assert seen == [(1, 4 * 8, 2 * 5, 2 * 6)]
    weights = [parameter for parameter in fast.parameters() if parameter.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_parameters_keep_their_names_order_and_values():
    plain, fast = plain_and_fast()
    assert [name for name, _ in fast.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    names, values = zip(*plain.state_dict().items(), strict=True)
    assert tuple(fast.state_dict()) == names
    assert all(map(torch.equal, fast.state_dict().values(), values))
    other = SRResNet(2, 8)
    other.load_state_dict(fast.state_dict())
    fast.load_state_dict(SRResNet(2, 8).state_dict())


def test_speeding_up_twice_is_speeding_up_once():
    _, fast = plain_and_fast()
    lr, modules = torch.rand(1, 3, 6, 5), list(fast.modules())
    once = fast(lr)
    assert speed_up(fast, "cpu") is fast
    assert list(fast.modules()) == modules
    assert torch.equal(fast(lr), once)


def test_a_copy_of_a_fast_generator_is_independent():
    plain, fast = plain_and_fast()
    twin, lr = copy.deepcopy(fast), torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(twin(lr), plain(lr), rtol=0, atol=1e-5)
    assert (fast(lr) - plain(lr)).abs().max() > 1e-2


def test_a_loaded_generator_is_fast_and_can_be_saved_again(tmp_path):
    plain, path = trained_generator(0), tmp_path / "generator.safetensors"
    save_generator(path, plain)
    loaded = load_generator(path)
    assert not isinstance(loaded.tail, nn.Conv2d)
    save_generator(path, loaded)
    assert all(
        map(torch.equal, load_generator(path).state_dict().values(), plain.state_dict().values())
    )


def test_other_networks_change_their_layout_only():
    torch.manual_seed(0)
    plain = Discriminator(4).eval()
    fast, image = speed_up(copy.deepcopy(plain), "cpu"), torch.rand(2, 3, 32, 32)
    assert str(fast) == str(plain)
    torch.testing.assert_close(fast(image), plain(image), rtol=1e-4, atol=1e-5)


# --- precision ------------------------------------------------------------------------------------


def small_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
    return network, torch.optim.Adam(network.parameters(), lr=0.02), torch.rand(2, 3, 8, 8)


def test_without_mixed_precision_an_update_is_plain_adam_s():
    plain, optimizer, x = small_network()
    for _ in range(3):
        optimizer.zero_grad()
        (plain(x) - 1).square().mean().backward()
        optimizer.step()
    network, optimizer, x = small_network()
    precision = MixedPrecision("no", CPU)
    for _ in range(3):
        with precision.autocast():
            precision.update(optimizer, (network(x) - 1).square().mean())
    assert all(map(torch.equal, network.parameters(), plain.parameters()))
    assert not precision.scaler.is_enabled()


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_for_the_passes_and_weights_stay_float32(name, dtype):
    network, optimizer, x = small_network()
    exact = copy.deepcopy(network)
    precision = MixedPrecision(name, CPU)
    assert precision.scaler.is_enabled() == (name == "fp16")
    if name == "fp16":  # its first scale, 65536, is too large for this loss
        precision.scaler.load_state_dict({**precision.scaler.state_dict(), "scale": 2.0**10})
    with precision.autocast():
        y = network(x)
        assert y.dtype == dtype
        precision.update(optimizer, (y.float() - 1).square().mean())
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    (exact(x) - 1).square().mean().backward()
    for parameter, other in zip(network.parameters(), exact.parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() < 0.1 * other.grad.norm()
        step = (parameter - other).abs()  # Adam's first is the learning rate
        torch.testing.assert_close(step, torch.full_like(step, 0.02), rtol=1e-3, atol=0)


def test_after_an_update_a_forward_pass_sees_the_new_weights():
    """Autocast keeps the half-precision copies of weights until its context ends."""
    network, optimizer, x = small_network()
    precision = MixedPrecision("bf16", CPU)
    with precision.autocast():
        before = network(x)
        precision.update(optimizer, (before.float() - 1).square().mean())
        after = network(x)
    with precision.autocast():
        assert torch.equal(network(x), after)
    assert not torch.equal(before, after)


def test_fp16_leaves_out_a_step_that_overflows_and_halves_its_scale():
    network, optimizer, x = small_network()
    before, precision = copy.deepcopy(network), MixedPrecision("fp16", CPU)
    scale = precision.scaler.get_scale()
    precision.update(optimizer, network(x).sum() * float("inf"))
    assert all(map(torch.equal, network.parameters(), before.parameters()))
    assert precision.scaler.get_scale() == scale / 2


@pytest.mark.parametrize(
    ("capability", "name"),
    [((6, 1), "no"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")],
)
def test_auto_is_the_precision_of_a_gpu_s_tensor_cores(capability, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fastest_precision(torch.device("cuda")) == name
    assert fastest_precision(torch.device("mps")) == "no"


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_auto_is_bf16_where_it_is_fast(fast, dtype, monkeypatch):
    monkeypatch.setattr(acceleration, "computes_in_bf16", lambda device: fast)
    assert MixedPrecision("auto", CPU).dtype == dtype


# --- what the machine can do ----------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="needs Linux")
def test_bf16_is_fast_on_a_cpu_whose_flags_say_so():
    flags = Path("/proc/cpuinfo").read_text().split()
    assert computes_in_bf16(CPU) == ("avx512_bf16" in flags or "amx_tile" in flags)


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_fast_on_gpus_from_capability_8(capability, fast, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert computes_in_bf16(torch.device("cuda")) == fast
    assert not computes_in_bf16(torch.device("mps"))


def test_without_a_compiler_there_is_a_warning_and_no_compilation(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled before
    broken = torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",))
    with broken, pytest.warns(UserWarning, match=r"work here \(.*no-such-compiler.*going on"):
        assert not can_compile(CPU)


def test_the_warning_names_the_cause_though_it_is_not_in_the_first_line(monkeypatch):
    def fail(function, dynamic):
        raise RuntimeError("backend='inductor' raised:\nCppCompileError: a header is missing")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.warns(UserWarning, match="a header is missing"):
        assert not can_compile(CPU)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_with_a_compiler_compilation_works(recwarn):
    assert can_compile(CPU)
    assert not [w for w in recwarn if "torch.compile does not work" in str(w.message)]


def test_what_is_compiled_for_a_test_is_what_networks_consist_of(monkeypatch, tmp_path):
    """In their layout, with the backward pass: where compilation is known to fail."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    seen = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen[function.__name__.split(".")[0]] = arguments
            return function(*arguments, **(options or {}))

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    with Watch():
        assert can_compile(CPU)
    assert {"convolution_backward", "native_batch_norm_backward"} <= seen.keys()
    for image in seen["convolution_backward"][:3]:
        assert image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()


def test_what_is_compiled_lies_where_no_other_user_can_write(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    can_compile(CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen" and not list(tmp_path.iterdir())
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    can_compile(CPU)
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.is_relative_to(tmp_path / "cache")
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be written
    other = Path(compiler_cache())
    assert other.is_dir() and other != Path(compiler_cache())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB). Tried to allocate 1 GB on"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Check 'ptr' failed at cpu_memory.cpp:257:\nFailed to allocate 9 bytes"),
        MemoryError("Unable to allocate 9 GiB for an array"),
    ],
)
def test_every_device_s_lack_of_memory_is_known(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(OSError("tried to allocate"))


MAPPED = """
import ctypes
from tools.acceleration import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks".split()]
    _fields_ += [(f"rest{k}", ctypes.c_int) for k in range(6)]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.mallinfo.restype = ctypes.c_void_p, Info

def mapped():  # blocks that glibc has mapped one by one
    before = libc.mallinfo().hblks
    assert libc.malloc(ctypes.c_size_t(2**28))
    return libc.mallinfo().hblks - before

first = mapped()
keep_freed_memory()
print(first, mapped())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_large_blocks_are_not_mapped_one_by_one():
    """In a process of its own: the setting cannot be taken back."""
    root = Path(acceleration.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", MAPPED], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "0"], done.stderr


@pytest.mark.parametrize("error", [TypeError, OSError, None])
def test_without_glibc_memory_is_left_as_it_is(error, monkeypatch):
    def another_library(name):
        if error:
            raise error
        return object()

    monkeypatch.setattr(acceleration.ctypes, "CDLL", another_library)
    keep_freed_memory()
