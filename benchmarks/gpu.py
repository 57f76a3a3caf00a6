"""Whether both stages train right on this GPU, how fast, and how long the presets will take.

    python benchmarks/gpu.py [--seconds 25]     # ten minutes; writes results/gpu_<card>.md
    python benchmarks/gpu.py --rehearse         # small networks, on any device: does it all run?

Each stage trains in each precision, with and without `compile` (torch.compile, or for SRGAN a CUDA
graph), on images in the GPU's memory; and once on images that stay in the CPU's. Losses must fall,
and gradients in float32 agree with the CPU's. The file says what was measured with what, so that it
can be committed as it is.
"""

import argparse
import copy
import itertools
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from train import seconds, step, synchronize  # noqa: E402

import presets  # noqa: E402
from data import made_list, random_vgg  # noqa: E402
from datasets import PatchDataset  # noqa: E402
from losses import mse  # noqa: E402
from models import Discriminator, SRResNet  # noqa: E402
from solver import GANSolver, PretrainSolver  # noqa: E402
from tools.acceleration import can_compile, fastest_precision, speed_up  # noqa: E402
from utils import atomic_path, device_name, pick_device  # noqa: E402

TYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STAGES = ("srresnet", "srgan")
TITLES = ("stage", "precision", "compiled", "images", "patches/s", "TFLOP/s", "of peak", "memory")
TITLES += ("content loss of a batch",)
DIV2K_IMAGES = 800  # of the presets whose time is told
TOLERANCE = 1e-3  # of float32 gradients, which are sums in another order


class Bench:
    """The data, the size of the networks and how long to train, for all measurements."""

    def __init__(self, device, folder, duration, small):
        self.device, self.folder, self.duration, self.small = device, folder, duration, small
        side, count = (192, 2) if small else (1020, 8)
        self.dataset = PatchDataset(
            made_list(folder, count, side, side),
            crop_size=32 if small else 96, cache=f"{folder}/cache",
        )  # fmt: skip
        self.vgg = random_vgg(19, f"{folder}/vgg19.pth")

    def solver(self, stage, **changes):
        torch.manual_seed(0)
        settings = {**presets.get_settings("afternoon")["stages"][stage], **changes}
        settings.update(warmup_steps=0, log_every=10**9)  # no row within a measurement
        if self.small:
            settings.update(batch_size=2, crop_size=32)
        generator = SRResNet(1, 8) if self.small else SRResNet()
        if stage == "srresnet":
            networks, kind = {"generator": generator}, PretrainSolver
        else:
            discriminator = Discriminator(8 if self.small else 64)
            networks, kind = {"generator": generator, "discriminator": discriminator}, GANSolver
            settings.update(vgg_weights=self.vgg, content_loss="vgg22" if self.small else "vgg54")
        return kind(networks, self.dataset, settings, f"{self.folder}/{stage}")

    def flops_per_patch(self, stage):
        """Of a training step; a multiply-add counts as two."""
        solver = self.solver(stage, mixed_precision="no", compile=False)
        lr, hr = next(solver.loader.epoch(0))
        with FlopCounterMode(display=False) as counter:
            step(solver, lr, hr)
        return counter.get_total_flops() / len(hr)

    def peak(self, precision):
        """FLOP/s of a large matrix product: what this device can do, without looking it up."""
        size = 512 if self.small else 8192
        tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
        a, b = (torch.randn(size, size, device=self.device).to(TYPES[precision]) for _ in range(2))
        fastest = min(seconds(lambda: a @ b, 5, self.device) for _ in range(3))
        torch.backends.cuda.matmul.allow_tf32 = tf32  # convolutions use TF32 by default
        return 2 * size**3 / fastest

    def train(self, stage, precision, compiled, resident):
        """(patches a second, content loss of a batch before and after)."""
        solver = self.solver(stage, mixed_precision=precision, compile=compiled)
        if not resident:
            solver.loader.pixels = solver.dataset.pixels
        content_loss = solver.content_loss if stage == "srgan" else mse
        batches = itertools.chain.from_iterable(map(solver.loader.epoch, itertools.count()))
        first = next(batches)

        def loss_of_first():
            with torch.no_grad(), solver.precision.autocast():
                return content_loss(solver.generator(first[0]), first[1]).item()

        before, steps = loss_of_first(), 0
        step(solver, *first)  # compiles
        begin = time.perf_counter()
        while steps < 10 or time.perf_counter() - begin < self.duration:
            for _ in range(10):
                step(solver, *next(batches))
            synchronize(solver.device)
            steps += 10
        taken = (time.perf_counter() - begin) / steps
        solver.check_finite()
        return solver.settings["batch_size"] / taken, before, loss_of_first()

    def largest_gradient_error(self):
        """Of the networks' gradients in float32, from the CPU's, relative to their norm."""
        largest = 0.0
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for network in self.solver("srgan", compile=False).unwrapped.values():
                image, gradients = torch.rand(2, 3, 96, 96), []
                for device in ("cpu", self.device):
                    twin = speed_up(copy.deepcopy(network), device)
                    twin(image.to(device)).square().mean().backward()
                    gradients.append([p.grad.cpu() for p in twin.parameters()])
                norm = max(gradient.norm() for gradient in gradients[0])
                pairs = zip(*gradients, strict=True)
                largest = max(largest, *((a - b).norm().item() / norm.item() for a, b in pairs))
        return largest


def hours(preset, rates, compiles, auto):
    """How long a preset takes on DIV2K by {(stage, precision, compiled, True): patches/s}."""
    total = 0
    for name, stage in presets.check_settings(presets.get_settings(preset))["stages"].items():
        precision = auto if stage["mixed_precision"] == "auto" else stage["mixed_precision"]
        kind = "srresnet" if name == "srresnet" else "srgan"
        rate = rates.get((kind, precision, stage["compile"] and compiles, True))
        if rate is None:
            return "not known"
        total += stage["epochs"] * stage["patches_per_image"] * DIV2K_IMAGES / rate / 3600
    return f"{total:.1f} hours"


def header(device, compiles, auto):
    facts = [f"PyTorch {torch.__version__}", f"Python {platform.python_version()}"]
    facts += [platform.system(), f"torch.compile {'works' if compiles else 'does not work'}"]
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        memory = torch.cuda.mem_get_info(device)[1]
        facts += [f"compute capability {major}.{minor}", f"{memory / 1e9:.1f} GB"]
    return f'{", ".join(facts)}; precision "auto" is {auto}.'


def row(bench, way, flops, peak):
    """(a row of the table, patches a second); for a failure (a row with its cause, None)."""
    stage, precision, compiled, resident = way
    cuda = bench.device.type == "cuda"
    cells = [stage, precision, "yes" if compiled else "", "" if resident else "on the CPU"]
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        rate, before, after = bench.train(*way)
        if not after < before:
            raise ArithmeticError(f"the content loss did not fall: {before:.4f} to {after:.4f}")
    except Exception as error:  # the other ways are measured all the same
        cells.append(f"**failed**: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return f"| {' | '.join(cells)} |", None
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if cuda else ""
    cells += [f"{rate:.1f}", f"{rate * flops / 1e12:.3f}", f"{rate * flops / peak:.0%}", memory]
    return f"| {' | '.join([*cells, f'{before:.4f} to {after:.4f}'])} |", rate


def report(bench, write):
    """Write the report, line by line; returns how much of it went wrong."""
    compiles, auto = can_compile(bench.device), fastest_precision(bench.device)
    write(f"# {device_name(bench.device)}\n\n{header(bench.device, compiles, auto)}")
    write("Of peak: of a large matrix product in the same precision (float32: TF32).\n")
    if bench.small:
        write("**A rehearsal with small networks: its numbers mean nothing.**\n")
    write(f"| {' | '.join(TITLES)} |\n|{len(TITLES) * '---|'}")
    flops = {stage: bench.flops_per_patch(stage) for stage in STAGES}
    # A CPU emulates fp16, slowly.
    precisions = [name for name in TYPES if name != "fp16" or bench.device.type != "cpu"]
    peaks = {precision: bench.peak(precision) for precision in precisions}
    ways = [
        (stage, precision, compiled, True)
        for stage, precision in itertools.product(STAGES, precisions)
        for compiled in ((False, True) if compiles else (False,))
    ]
    rates, failures = {}, 0
    for way in [*ways, *((stage, auto, False, False) for stage in STAGES)]:
        line, rate = row(bench, way, flops[way[0]], peaks[way[1]])
        write(line)
        failures += rate is None
        rates[way] = rate
    error = bench.largest_gradient_error()
    failures += not error < TOLERANCE
    write(f"\nGradients in float32 differ from the CPU's by {error:.1e} of their norm, at most.")
    for preset in ("afternoon", "paper"):
        write(f"Preset `{preset}` on DIV2K: {hours(preset, rates, compiles, auto)} of training.")
    write(f"\n{failures or 'Nothing'} failed.")
    return failures


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=25, help="for each row of the table")
    parser.add_argument("--rehearse", action="store_true", help="small networks, a few steps")
    parser.add_argument("-o", "--output", help="default: results/gpu_<card>.md")
    arguments = parser.parse_args(arguments)
    device = pick_device()
    if device.type == "cpu" and not arguments.rehearse:
        sys.exit("No GPU computes here. --rehearse tries everything on the CPU.")
    lines = []

    def write(line):
        print(line, flush=True)
        lines.append(line)

    # The images' file is mapped while it is in use: on Windows it may outlive its folder.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        seconds = 0 if arguments.rehearse else arguments.seconds
        failures = report(Bench(device, folder, seconds, arguments.rehearse), write)
    name = re.sub(r"\W+", "_", device_name(device))
    path = arguments.output or ROOT / "results" / f"gpu_{name}.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
