"""Which device is picked; what runs on a GPU, run on a pretended one: CUDA 7.5 and 8.6, and MPS."""

import contextlib
import importlib
import inspect
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from conftest import trained_generator
from pretended_device import pretended_device
from torch.optim.swa_utils import update_bn
from training import STAGES, assert_same, at_step, make, run_settings

import utils
from datasets import PatchDataset, PatchLoader
from imresize import imresize
from losses import make_content_loss
from models import interpolate, load_generator, save_generator
from super_resolve import super_resolve
from tools import distributed
from tools.acceleration import can_compile
from tools.distributed import train_on_several_gpus
from tools.unused_gpu import build_for, tell_unused_gpu

DEVICES = {"cuda 7.5": ("cuda", (7, 5)), "cuda 8.6": ("cuda", (8, 6)), "mps": ("mps", None)}
SCALER_NEEDS_FLOAT64 = "mps" not in inspect.getsource(torch.amp.GradScaler.unscale_)


@pytest.fixture(params=DEVICES)
def gpu(request, monkeypatch):
    """A machine with this GPU."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)  # a process picks its device once
    with pretended_device(*DEVICES[request.param]) as device:
        yield device
    AcceleratorState._reset_state(reset_partial_state=True)


# --- the pretended device itself ------------------------------------------------------------------


def test_tensors_of_two_devices_do_not_mix(gpu):
    there, here = torch.ones(3, device=gpu.device), torch.ones(3)
    mistakes = [
        lambda: there + here,
        lambda: torch.stack([here, there]),
        lambda: there.index_select(0, torch.tensor([1])),
        lambda: F.conv2d(here.view(1, 1, 1, 3), there.view(1, 1, 1, 3)),
        lambda: torch.nn.Linear(3, 1).to(gpu.device)(here),
        lambda: torch._foreach_add([there], [here]),
    ]
    for mistake in mistakes:
        with pytest.raises(RuntimeError, match="tensors on"):
            mistake()
    with pytest.raises(TypeError, match="array"):
        there.numpy()
    assert (there + 1).view(1, 3)[0].device == here.to(there).device == gpu.device
    assert torch.equal(there.cpu() + here, here + here)


def test_waiting_for_the_device_is_counted(gpu):
    x = torch.ones(3, device=gpu.device)
    waits = [x.sum().item, x.cpu, x.tolist, lambda: float(x[0]), lambda: bool(x[0] > 0)]
    waits += [lambda: torch.zeros(3).copy_(x), lambda: x.to("cpu")]
    for number, wait in enumerate(waits, start=1):
        wait()
        assert gpu.synchronisations == number
    x.copy_(torch.ones(3)).add_(1).clamp_(0, 1)
    assert gpu.synchronisations == number


def test_mps_refuses_float64_and_the_backward_pass_of_a_channels_last_batch_norm(gpu):
    norm = torch.nn.BatchNorm2d(2).to(gpu.device)
    apple = gpu.device.type == "mps"

    def backward(layout):
        image = torch.rand(2, 2, 3, 3).to(gpu.device, memory_format=layout)
        norm(image.requires_grad_()).sum().backward()

    backward(torch.contiguous_format)
    with pytest.raises(RuntimeError, match="view size") if apple else contextlib.nullcontext():
        backward(torch.channels_last)
    with pytest.raises(TypeError, match="float64") if apple else contextlib.nullcontext():
        norm.double()


# --- training -------------------------------------------------------------------------------------


def test_patches_of_the_device_are_those_of_the_cpu(gpu, images):
    dataset = PatchDataset(images, crop_size=16, patches_per_image=2, cache=images.parent / "cache")
    loaders = [PatchLoader(dataset, 4, device=device) for device in (gpu.device, "cpu")]
    assert (loaders[0].pixels.device == gpu.device) == (gpu.device.type == "cuda")  # resident
    for batch, expected in zip(*[loader.epoch(0) for loader in loaders], strict=True):
        for patches, others in zip(batch, expected, strict=True):
            assert patches.device == gpu.device
            assert torch.equal(patches.cpu(), others)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_is_validated_and_resumes_to_the_bit(
    stage, precision, gpu, images, tmp_path
):
    """Muon in the first stage, as in the presets, Adam in the second."""
    if (gpu.device.type, precision) == ("mps", "fp16") and SCALER_NEEDS_FLOAT64:
        pytest.skip("this PyTorch's GradScaler computes in float64, which MPS lacks")
    settings = dict(valid=True, mixed_precision=precision, batch_norm_batches=2, log_every=2)
    settings["optimizer"] = "muon" if stage == "pretrain" else "adam"
    whole = make(stage, images, tmp_path / "whole", epochs=2, **settings)
    assert whole.device.type == gpu.device.type
    assert next(whole.generator.parameters()).device == gpu.device
    whole.fit()
    stopped = make(stage, images, tmp_path / "parts", epochs=2, **settings)
    at_step(stopped, 3, lambda losses: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    again = make(stage, images, tmp_path / "parts", epochs=2, **settings)
    assert again.resume() and again.step == 3 and again.sums
    again.fit()
    assert_same(tmp_path / "parts", tmp_path / "whole")
    assert len(again.history["valid"]) == 2
    assert whole.precision.scaler.is_enabled() == (precision == "fp16")


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_training_waits_once_for_the_device_in_log_every_steps(
    stage, precision, gpu, images, tmp_path
):
    solver = make(stage, images, tmp_path / "run", mixed_precision=precision, patches=9)
    counts, step = [], solver.training_step

    def counted(lr, hr):
        counts.append(gpu.synchronisations)
        return step(lr, hr)

    solver.training_step = counted
    solver.fit(1)
    assert len(counts) == 9 and solver.settings["log_every"] == 3
    assert counts[6] - counts[0] == 2  # two rows


def test_features_are_compared_on_the_device(gpu, vgg_folder):
    loss = make_content_loss("vgg22", "avg", str(vgg_folder / "vgg19.pth"), gpu.device)
    sr, hr = (torch.rand(1, 3, 16, 16, device=gpu.device) for _ in range(2))
    loss(sr.requires_grad_(), hr).backward()
    assert sr.grad.abs().sum() > 0


@pytest.mark.parametrize("gpu", ["mps"], indirect=True)
def test_apple_s_gpus_are_not_compiled_for(gpu):
    with pytest.warns(UserWarning, match="not used on Apple's GPUs"):
        assert not can_compile(gpu.device)


# --- use ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("back_projection", [False, True])
@pytest.mark.parametrize("ensemble", [False, True])
def test_a_generator_enlarges_on_the_device(ensemble, back_projection, dtype, gpu, tmp_path):
    save_generator(tmp_path / "generator.safetensors", trained_generator())
    there, here = (
        load_generator(tmp_path / "generator.safetensors", device)
        for device in (utils.pick_device(), "cpu")
    )
    assert next(there.parameters()).device == gpu.device
    levels = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, levels, (21, 18, 4), dtype, endpoint=True)
    options = dict(ensemble=ensemble, back_projection=back_projection, tile=16, progress=False)
    enlarged = [super_resolve(network, image, **options) for network in (there, here)]
    # The layout on MPS sums in another order: in 16 bits that may be seen.
    np.testing.assert_allclose(*enlarged, rtol=0, atol=2 * (dtype == np.uint16))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1 / 4, 4, (7, 9)])
def test_tensors_are_resized_on_the_device(scale, dtype, gpu):
    torch.manual_seed(0)
    image = (255 * torch.rand(2, 3, 12, 16)).to(dtype)
    resized = imresize(image.to(gpu.device), scale)
    assert resized.device == gpu.device and resized.dtype == dtype
    assert torch.equal(resized.cpu(), imresize(image, scale))


def test_generators_are_mixed_on_the_device(gpu, tmp_path):
    generators = []
    for seed in range(2):
        save_generator(tmp_path / f"{seed}.safetensors", trained_generator(seed))
        generators.append(load_generator(tmp_path / f"{seed}.safetensors", gpu.device))
    mixture = interpolate(*generators, 0.25)
    weights = [generator.tail.weight.detach().cpu() for generator in (*generators, mixture)]
    torch.testing.assert_close(weights[2], weights[0].lerp(weights[1], 0.25))
    update_bn([torch.rand(2, 3, 8, 8, device=gpu.device)], mixture)
    assert next(mixture.parameters()).device == gpu.device


@pytest.mark.parametrize("gpu", ["cuda 8.6"], indirect=True)
def test_the_benchmark_of_a_gpu_writes_what_to_commit(gpu, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(utils.__file__).parent / "benchmarks")
    benchmark = importlib.import_module("gpu")
    monkeypatch.setattr(benchmark, "can_compile", lambda device: False)
    monkeypatch.delitem(benchmark.TYPES, "fp16")  # slow on a CPU, which computes here
    assert benchmark.main(["--rehearse", "-o", str(tmp_path / "gpu.md")]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("# a pretended GPU\n") and "Nothing failed." in text
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| sr")]
    assert len(rows) == 2 * 2 + 2 and all(float(row[5]) > 0 for row in rows)


# --- a card that lies unused ----------------------------------------------------------------------

NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


@pytest.fixture
def no_kernel(monkeypatch):
    """A GPU that is too old: it is there, and the first kernel fails."""

    def fail(*size, device=None, **options):
        if device is None:
            return ones(*size, **options)
        raise RuntimeError(f"{NO_KERNEL}\nCUDA kernel errors might be reported later")

    ones = torch.ones
    monkeypatch.setattr(torch, "ones", fail)


@pytest.fixture
def card(no_kernel, tmp_path, monkeypatch):
    """card(text): `nvidia-smi` prints it."""
    if os.name != "posix":
        pytest.skip("needs shell scripts")

    def put(text):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{text}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tell_unused_gpu.cache_clear()
    yield put
    tell_unused_gpu.cache_clear()


def test_an_unused_card_is_told_once_with_the_cure(card, capsys):
    card("NVIDIA GeForce GTX 1060, 560.94, 6.1")
    assert utils.pick_device() == utils.pick_device() == torch.device("cpu")
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("NVIDIA GeForce GTX 1060 (driver 560.94) lies unused")
    assert f"{NO_KERNEL}." in line and f"{sys.executable} -m pip install" in line
    assert line.endswith("--index-url https://download.pytorch.org/whl/cu126")


@pytest.mark.parametrize(
    ("text", "hidden", "end"),
    [
        ("GRID K520, 367.57, 3.0", None, "a newer driver: https://www.nvidia.com/drivers"),
        ("NVIDIA L4, 560.94, 8.9", "", None),  # hidden on purpose
        ("NVIDIA-SMI has failed because it could not communicate with the driver", None, None),
        ("", None, None),
    ],
)
def test_what_else_is_said_of_a_card(text, hidden, end, card, capsys, monkeypatch):
    card(text)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    utils.pick_device()
    said = capsys.readouterr().out.strip()
    assert said.endswith(end) if end else not said


def test_builds_that_already_fit_are_not_installed_again(card, capsys, monkeypatch):
    card("NVIDIA L4, 580.65.06, 8.9")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    utils.pick_device()
    said = capsys.readouterr().out
    assert NO_KERNEL in said and "pip" not in said


@pytest.mark.parametrize(
    ("driver", "capability", "build"),
    [
        (580, (7, 5), "cu130"),  # T4
        (590, (12, 0), "cu130"),  # RTX 50
        (580, (7, 0), "cu126"),  # V100: CUDA 13 has given it up
        (580, (6, 1), "cu126"),  # GTX 10
        (572, (12, 0), "cu128"),
        (572, (8, 6), "cu126"),
        (528, (8, 6), "cu126"),
        (566, (12, 0), None),
        (516, (8, 6), None),
    ],
)
def test_which_build_fits_a_card(driver, capability, build):
    assert build_for(driver, capability) == build


@pytest.mark.parametrize("gpu", ["cuda 7.5"], indirect=True)
def test_training_passes_over_a_gpu_that_cannot_compute(gpu, no_kernel, images, tmp_path):
    assert torch.cuda.is_available()
    solver = make("pretrain", images, tmp_path / "run")
    assert solver.device == torch.device("cpu")
    solver.fit(1)


# --- several GPUs, from a notebook ----------------------------------------------------------------


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def settings_with_batches(images, *sizes):
    settings = run_settings(images)
    for stage, size in zip(settings["stages"].values(), sizes, strict=True):
        stage["batch_size"] = size
    return settings


@pytest.mark.skipif(sys.platform != "linux", reason="several processes are for Linux")
def test_the_largest_number_of_processes_that_divides_all_batches_trains(
    three_gpus, images, tmp_path, monkeypatch, capsys
):
    program = """
import json, os, sys
folder = json.load(open(sys.argv[1]))["folder"]
print(folder + ":", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], flush=True)
sys.exit(os.environ.get("FAILS"))
"""
    (tmp_path / "solver.py").write_text(program)
    monkeypatch.setattr(distributed, "SOLVER", tmp_path / "solver.py")
    settings = settings_with_batches(images, 4, 8, 2)
    make("pretrain", images, tmp_path / "run")  # as the cells below have, when all are run again
    train_on_several_gpus(settings)
    said = capsys.readouterr().out
    assert "2 of 3 GPUs are used" in said
    assert "checkpoints/tiny: 0 of 2" in said and "checkpoints/tiny: 1 of 2" in said
    monkeypatch.setenv("FAILS", "there is no disk")
    with pytest.raises(RuntimeError, match="2 GPUs failed"):
        train_on_several_gpus(settings)
    assert "there is no disk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "platform", "said"),
    [((3, 5, 6), "linux", "1 of 3 GPUs"), ((4, 4, 4), "win32", "One of 3 GPUs")],
)
def test_one_process_trains_in_the_notebook_itself(
    sizes, platform, said, three_gpus, images, monkeypatch, capsys
):
    monkeypatch.setattr(distributed.sys, "platform", platform)
    monkeypatch.setattr(distributed, "run_and_show", None)
    train_on_several_gpus(settings_with_batches(images, *sizes))
    assert said in capsys.readouterr().out


def test_gpus_without_a_driver_are_none(three_gpus, images, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distributed, "run_and_show", None)
    train_on_several_gpus(run_settings(images))
    assert not capsys.readouterr().out
