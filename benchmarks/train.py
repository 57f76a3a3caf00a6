"""A training step of both stages against the plain loop of the usual tutorials; where time goes.

    python benchmarks/train.py [--stages srgan] [--rounds 3] [--eager]

The plain loop: eager, float32, default layout, Adam as it comes, `.item()` at each step, both PNG
files opened for every patch. Ours: the solver with the settings of the preset `laptop`, without its
additions to the loss, compiled. Each runs in processes of its own, in turn, because how memory is
allocated belongs to the comparison. Uses data/lists/train.csv where it is, else images made for the
purpose; VGG16 has random weights, which take as long.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from controls import PAPER  # noqa: E402
from table import compare  # noqa: E402

import presets  # noqa: E402
from data import CROP, OpenedPerPatch, made_list, random_vgg  # noqa: E402
from datasets import PatchDataset  # noqa: E402
from losses import bce  # noqa: E402
from models import Discriminator, SRResNet, VGGFeatures  # noqa: E402
from solver import GANSolver, PretrainSolver  # noqa: E402
from tools.acceleration import computes_in_bf16  # noqa: E402
from utils import device_name, pick_device  # noqa: E402

STAGES = ("srresnet", "srgan")


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
    losses = solver.guarded_step(lr, hr, solver.step_once)
    solver.update_ema()
    solver.record(losses)


def plain(stage, dataset, batch_size, vgg, steps, device):
    """Seconds of a step, and of one with its data, in the usual tutorials' way."""
    generator, mse_loss = SRResNet().to(device), torch.nn.MSELoss()
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4)
    loader = iter(torch.utils.data.DataLoader(OpenedPerPatch(dataset), batch_size))
    if stage == "srgan":
        discriminator, features = Discriminator().to(device), vgg16(vgg).to(device)
        optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=1e-4)

    def pretrain(lr, hr):
        loss = mse_loss(generator(lr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def adversarial(lr, hr):
        sr = generator(lr)
        loss_d = bce(discriminator(hr), 1.0) + bce(discriminator(sr.detach()), 0.0)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        content_loss = mse_loss(features(sr), features(hr))
        loss = content_loss + 1e-3 * bce(discriminator(sr), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss_d.item(), loss.item()

    update = adversarial if stage == "srgan" else pretrain

    def on_device(lr, hr):
        return update(lr.to(device), hr.to(device))

    batch = next(loader)
    return {
        "step": seconds(lambda: on_device(*batch), steps, device),
        "loop": seconds(lambda: on_device(*next(loader)), steps, device),
    }


def vgg16(weights):
    """The features that the preset `laptop` compares."""
    return VGGFeatures(5, 3, depth=16, pooling="avg", weights=weights)


def ours(stage, dataset, batch_size, vgg, steps, device, compiled):
    """The same of our solver, and the seconds of each part of a step."""
    settings = presets.get_settings("laptop")["stages"][stage]
    # No row of the history within the measurement: it would be written to the disk.
    settings.update(batch_size=batch_size, log_every=10**9, compile=compiled)
    networks = {"generator": SRResNet()}
    if stage == "srgan":
        networks["discriminator"] = Discriminator()
        settings.update(vgg_weights=vgg, **PAPER)  # the tutorials' loop has no additions either
    kind = GANSolver if stage == "srgan" else PretrainSolver
    solver = kind(networks, dataset, settings, "nowhere")
    batches = solver.loader.epoch(0)
    batch = next(batches)
    result = {"step": seconds(lambda: step(solver, *batch), steps, device)}
    result["loop"] = seconds(lambda: step(solver, *next(batches)), steps, device)
    result["parts"] = parts(solver, batches, steps)
    return result


class Clock:
    """Seconds of the parts of a step, each without the parts that it calls."""

    def __init__(self, device):
        self.device, self.seconds = device, defaultdict(float)
        self.running, self.mark = ["rest"], time.perf_counter()

    def lap(self):
        """Book the time since the last call on the part that runs."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.running[-1]] += now - self.mark
        self.mark = now

    def timed(self, part, function):
        """The function, with its time booked on `part`."""

        def call(*arguments):
            self.lap()
            self.running.append(part)
            result = function(*arguments)
            self.lap()
            self.running.pop()
            return result

        return call


def parts(solver, batches, steps):
    """{part: seconds of a step}; waiting for a GPU after each part makes the sum a little longer.

    The forwards of the discriminator are what remains of `training_step`.
    """
    clock, rest = Clock(solver.device), "losses"
    if isinstance(solver, GANSolver):
        solver.content_loss = clock.timed("VGG features of SR and HR", solver.content_loss)
        rest = "discriminator forward, three times"
    solver.networks["generator"] = clock.timed("generator forward", solver.generator)
    solver.training_step = clock.timed(rest, solver.training_step)
    for optimizer in solver.optimizers.values():
        optimizer.step = clock.timed("optimizers", optimizer.step)
    solver.precision.update = clock.timed("backward", solver.precision.update)
    solver.update_ema = clock.timed("average", solver.update_ema)
    following = clock.timed("data", next)
    for k in range(steps + 2):
        if k == 2:  # warm
            clock.lap()
            clock.seconds.clear()
        step(solver, *following(batches))
    clock.lap()
    return {part: taken / steps for part, taken in clock.seconds.items()}


def flops_per_patch(stage, vgg):
    """Of a training step, by the paper's layers; a multiply-add counts as two.

    What the algorithm needs: the discriminator's own weights get no gradient from the generator's
    loss, and nothing passes through the features of HR.
    """
    generator, discriminator, features = SRResNet(), Discriminator(), vgg16(vgg)
    lr, hr = (torch.rand(1, 3, side, side) for side in (CROP // 4, CROP))
    with FlopCounterMode(display=False) as counter:
        sr = generator(lr)
        loss = sr.sum()
        if stage == "srgan":
            (discriminator(hr) + discriminator(sr.detach())).sum().backward()
            features(hr)
            loss = discriminator.requires_grad_(False)(sr).sum() + features(sr).sum()
        loss.backward()
    return counter.get_total_flops()


def product_rate(device):
    """(FLOP/s, type) of a large matrix product, in the precision that ours computes in."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if computes_in_bf16(device) else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest = min(seconds(lambda: a @ b, 5, device) for _ in range(3))
    return 2 * size**3 / fastest, str(dtype).removeprefix("torch.")


def work(arguments):
    """One loop in this process; prints its seconds, and a product's rate right after them."""
    dataset, device = PatchDataset(arguments.list), pick_device()
    common = (arguments.stages[0], dataset, arguments.batch, arguments.vgg, arguments.steps, device)
    result = plain(*common) if arguments.which == "plain" else ours(*common, not arguments.eager)
    result["rate"], result["dtype"] = product_rate(device)
    print(json.dumps(result))


def run(which, stage, arguments):
    """One loop in a process of its own."""
    command = [sys.executable, __file__, "--which", which, "--stages", stage]
    command += ["--list", arguments.list, "--vgg", arguments.vgg, "--batch", str(arguments.batch)]
    command += ["--steps", str(arguments.steps), *(["--eager"] if arguments.eager else [])]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def report(stage, rounds, arguments):
    """Print the rows of the table, and what each part of a step takes."""
    name = {"srresnet": "SRResNet", "srgan": "SRGAN"}[stage]
    for what, title in (("step", "the step alone"), ("loop", "with its data")):
        speeds = {
            which: [arguments.batch / one[which][what] for one in rounds]
            for which in ("plain", "ours")
        }
        others = {"the tutorials' loop": speeds["plain"]}
        compare(f"training {name}, {title}", "patches/s", speeds["ours"], others)
    flops = flops_per_patch(stage, arguments.vgg) * arguments.batch / 1e12
    ours = [one["ours"] for one in rounds]
    compare(
        f"training {name}, arithmetic of the paper's layers", "TFLOP/s",
        [flops / one["step"] for one in ours],
        {f"a {ours[0]['dtype']} matrix product": [one["rate"] / 1e12 for one in ours]},
    )  # fmt: skip
    taken = ours[-1]["parts"]
    print(f"{name}, of {sum(taken.values()):.3f} s a step:", end=" ")
    shares = (f"{part} {value / sum(taken.values()):.1%}" for part, value in taken.items())
    print("; ".join(shares), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of both loops in turn")
    parser.add_argument("--eager", action="store_true", help="ours without torch.compile")
    parser.add_argument("--list", default="data/lists/train.csv")
    parser.add_argument("--which", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--vgg", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if arguments.which:
        return work(arguments)
    print(
        f"\nbatches of {arguments.batch} patches of {CROP} x {CROP}, {device_name(pick_device())}:"
    )
    with tempfile.TemporaryDirectory() as folder:
        if not Path(arguments.list).exists():
            arguments.list = made_list(folder, 20, 1020, 1020)
        arguments.vgg = random_vgg(16, f"{folder}/vgg16.pth")
        for stage in arguments.stages:
            rounds = [
                {which: run(which, stage, arguments) for which in ("plain", "ours")}
                for _ in range(arguments.rounds)
            ]
            report(stage, rounds, arguments)


if __name__ == "__main__":
    main()
