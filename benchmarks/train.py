"""A training step of SRResNet against the plain loop of the usual tutorials; where the time goes.

    python benchmarks/train.py [--batch 16] [--rounds 2]

The plain loop: eager, float32, default layout, Adam as it comes, `.item()` at each step, both PNG
files opened for every patch. Ours: `PretrainSolver` with the preset `afternoon`. Each runs in
processes of its own, in turn, because how memory is allocated belongs to the comparison. Uses
data/lists/train.csv where it is, else images made for the purpose.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import presets  # noqa: E402
from data import CROP, OpenedPerPatch, made_list  # noqa: E402
from datasets import PatchDataset  # noqa: E402
from losses import mse  # noqa: E402
from models import SRResNet  # noqa: E402
from solver import PretrainSolver  # noqa: E402
from tools.acceleration import computes_in_bf16  # noqa: E402
from utils import device_name, pick_device  # noqa: E402


def synchronize(device):
    if device.type != "cpu":
        torch.accelerator.synchronize()


def seconds(function, count, device):
    """Of one call, after two to warm up."""
    for k in range(count + 2):
        if k == 2:
            synchronize(device)
            begin = time.perf_counter()
        function()
    synchronize(device)
    return (time.perf_counter() - begin) / count


def step(solver, lr, hr):
    """The body of the loop in `Solver.fit`."""
    solver.set_learning_rate()
    losses = solver.guarded_step(lr, hr)
    solver.update_ema()
    solver.record(losses)


def plain(dataset, batch_size, steps, device):
    """Seconds of a step, and of one with its data, in the usual tutorials' way."""
    generator = SRResNet().to(device)
    optimizer, loss_function = torch.optim.Adam(generator.parameters(), lr=1e-4), torch.nn.MSELoss()
    loader = iter(torch.utils.data.DataLoader(OpenedPerPatch(dataset), batch_size))

    def update(lr, hr):
        loss = loss_function(generator(lr.to(device)), hr.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    batch = next(loader)
    return {
        "step": seconds(lambda: update(*batch), steps, device),
        "loop": seconds(lambda: update(*next(loader)), steps, device),
    }


def ours(dataset, batch_size, steps, device):
    """The same of `PretrainSolver`, and what share of a step each part takes."""
    settings = presets.get_settings("afternoon")["stages"]["srresnet"]
    # No row of the history within the measurement: it would be written to the disk.
    settings.update(batch_size=batch_size, log_every=10**9)
    solver = PretrainSolver({"generator": SRResNet()}, dataset, settings, "nowhere")
    batches = solver.loader.epoch(0)
    batch = next(batches)
    result = {"step": seconds(lambda: step(solver, *batch), steps, device)}
    result["loop"] = seconds(lambda: step(solver, *next(batches)), 4 * steps, device)

    parts = dict.fromkeys(("data", "forward", "backward", "optimizer", "averaging"), 0.0)
    generator, optimizer = solver.networks["generator"], solver.optimizers["generator"]
    for k in range(steps + 2):
        marks = [time.perf_counter()]

        def mark(marks=marks):
            synchronize(device)
            marks.append(time.perf_counter())

        lr, hr = next(batches)
        mark()
        with solver.precision.autocast():
            loss = mse(generator(lr), hr)
        mark()
        loss.backward()
        mark()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mark()
        solver.update_ema()
        mark()
        if k >= 2:
            for name, (begin, end) in zip(parts, pairwise(marks), strict=True):
                parts[name] += end - begin
    result["parts"] = {name: taken / sum(parts.values()) for name, taken in parts.items()}
    return result


def flops_per_patch():
    """Of forward and backward, by the paper's layers; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        SRResNet()(torch.rand(1, 3, CROP // 4, CROP // 4)).square().mean().backward()
    return counter.get_total_flops()


def product_rate(device):
    """(FLOP/s, type) of a large matrix product, in the precision that ours computes in."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if computes_in_bf16(device) else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest = min(seconds(lambda: a @ b, 5, device) for _ in range(3))
    return 2 * size**3 / fastest, str(dtype).removeprefix("torch.")


def run(which, arguments):
    """One loop in a process of its own."""
    command = [sys.executable, __file__, "--which", which, "--list", arguments.list]
    command += ["--batch", str(arguments.batch), "--steps", str(arguments.steps)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="of both loops; the fastest counts")
    parser.add_argument("--list", default="data/lists/train.csv")
    parser.add_argument("--which", choices=("plain", "ours"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    device = pick_device()
    if arguments.which:
        loop = {"plain": plain, "ours": ours}[arguments.which]
        dataset = PatchDataset(arguments.list)
        print(json.dumps(loop(dataset, arguments.batch, arguments.steps, device)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if not Path(arguments.list).exists():
            arguments.list = made_list(folder, 20, 1020, 1020)
        rounds = [
            {which: run(which, arguments) for which in ("plain", "ours")}
            for _ in range(arguments.rounds)
        ]
    best = {
        which: {what: min(r[which][what] for r in rounds) for what in ("step", "loop")}
        for which in ("plain", "ours")
    }
    print(
        f"\nSRResNet, batches of {arguments.batch} patches of {CROP} x {CROP}, "
        f"{device_name(device)}, best of {arguments.rounds}:"
    )
    for what, title in (("step", "the step alone"), ("loop", "with its data")):
        times = [best[which][what] for which in ("plain", "ours")]
        speeds = [arguments.batch / taken for taken in times]
        print(
            f"  {title:15} plain {speeds[0]:8.1f} patches/s, ours {speeds[1]:8.1f} patches/s: "
            f"{times[0] / times[1]:5.2f} times"
        )
    parts = ", ".join(f"{name} {share:.1%}" for name, share in rounds[-1]["ours"]["parts"].items())
    rate, dtype = product_rate(device)
    flops = flops_per_patch() * arguments.batch / best["ours"]["step"]
    print(f"  of our step: {parts}")
    print(
        f"  {flops / 1e12:.3f} TFLOP/s of the model, {flops / rate:.0%} of a {dtype} matrix "
        f"product's {rate / 1e12:.3f}"
    )


if __name__ == "__main__":
    main()
