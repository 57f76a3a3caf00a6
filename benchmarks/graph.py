"""What one launch a step is worth: a GAN step as a CUDA graph, and kernel by kernel.

    python benchmarks/graph.py [--texture-weight 0]     # needs an NVIDIA GPU; two minutes

The settings are those of the preset `gpu`, in bfloat16. First both train twelve steps from the same
weights, and the weights they come to are compared; then both are timed, in turn, with their data.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from table import compare  # noqa: E402
from train import step, synchronize  # noqa: E402

import presets  # noqa: E402
from data import made_list  # noqa: E402
from datasets import PatchDataset  # noqa: E402
from models import Discriminator, SRResNet  # noqa: E402
from solver import GANSolver  # noqa: E402
from utils import device_name, pick_device  # noqa: E402


def make(dataset, folder, **changes):
    torch.manual_seed(0)
    networks = {"generator": SRResNet(init="interpolator"), "discriminator": Discriminator()}
    settings = {**presets.get_settings("gpu")["stages"]["srgan"], **changes, "log_every": 10**9}
    return GANSolver(networks, dataset, settings, f"{folder}/run")


def batches(solver):
    return itertools.chain.from_iterable(map(solver.loader.epoch, itertools.count()))


def trained(solver, steps=12):
    """All weights after so many steps."""
    for lr, hr in itertools.islice(batches(solver), steps):
        step(solver, lr, hr)
    parameters = [p for network in solver.unwrapped.values() for p in network.parameters()]
    return torch.cat([p.detach().flatten() for p in parameters])


def speed(solver, source, steps=40):
    """Patches a second."""
    synchronize(solver.device)
    begin = time.perf_counter()
    for lr, hr in itertools.islice(source, steps):
        step(solver, lr, hr)
    synchronize(solver.device)
    return steps * solver.settings["batch_size"] / (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texture-weight", type=float, help="default: the preset's")
    changes = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    device = pick_device()
    if device.type != "cuda":
        sys.exit("No NVIDIA GPU computes here.")
    print(device_name(device))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = PatchDataset(made_list(folder, 8, 512, 512), cache=f"{folder}/cache")
        graph, plain = (
            trained(make(dataset, folder, compile=compiled, **changes))
            for compiled in (True, False)
        )
        print(f"after 12 steps the weights differ by {(graph - plain).abs().max():.1e} at most")
        for batch_size in (8, 16, 32):
            speeds = {True: [], False: []}
            for compiled in speeds:
                solver = make(dataset, folder, compile=compiled, batch_size=batch_size, **changes)
                source = batches(solver)
                speed(solver, source, 10)  # captures
                speeds[compiled] = [speed(solver, source) for _ in range(3)]
            others = {"kernel by kernel": speeds[False]}
            compare(f"GAN steps of {batch_size}", "patches/s", speeds[True], others)


if __name__ == "__main__":
    main()
