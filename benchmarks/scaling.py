"""How training scales over processes: patches a second of one process and of two, and bytes a step for a projection.

    python benchmarks/scaling.py

On a machine without GPUs each process has one thread, so two of them use two cores; where there are GPUs, one each, and as
many processes as GPUs. Every process has the same share of a batch ("weak scaling"): twice the processes, twice the patches.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHARE = {"cpu": 4, "cuda": 16}  # patches of 96 x 96 that each process has of a batch
STEPS = 10  # that are timed, after one to warm up
LINKS = {
    "NVLink (H100)": 450e9,
    "PCIe 4.0 x16": 25e9,
    "100 Gbit/s Ethernet": 12.5e9,
}  # bytes a second, each direction


def make_list(folder):
    """Eight images of noise, and their list."""
    from utils import write_image

    rng = np.random.default_rng(0)
    rows = ["hr,lr,width,height"]
    for k in range(8):
        for name, side in ((f"{k}.png", 384), (f"{k}_lr.png", 96)):
            write_image(folder / name, rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        rows.append(
            f"{(folder / str(k)).as_posix()}.png,{(folder / str(k)).as_posix()}_lr.png,384,384"
        )
    (folder / "list.csv").write_text("\n".join(rows))


def work(folder):
    """One of the processes: seconds per step of both stages, printed by the first."""
    import torch

    from datasets import PatchDataset
    from models import Discriminator, SRResNet
    from solver import GANSolver, PretrainSolver

    processes = int(os.environ.get("WORLD_SIZE", 1))
    batch_size = processes * SHARE["cuda" if torch.cuda.is_available() else "cpu"]
    dataset = PatchDataset(folder / "list.csv", cache=folder / "cache")
    settings = dict(batch_size=batch_size)
    pretrain = PretrainSolver(SRResNet(), dataset, settings, folder / "srresnet")
    seconds = {"SRResNet": pretrain.measure(STEPS)}
    gan = GANSolver(
        SRResNet(), Discriminator(), dataset, dict(settings, content_loss="mse"), folder / "srgan"
    )
    seconds["SRGAN"] = gan.measure(STEPS)
    if gan.is_main:
        print(json.dumps({"batch_size": batch_size, "device": str(gan.device), "seconds": seconds}))


def run(folder, processes):
    """The measurement of `processes` processes, each with one thread and, where there are any, one GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(processes):
        env = dict(os.environ, OMP_NUM_THREADS="1")
        if processes > 1:
            env.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                LOCAL_WORLD_SIZE=str(processes),
            )
            env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        command = [sys.executable, __file__, str(folder)]
        workers.append(
            subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        )
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError("a process failed; its message stands above")
    return json.loads(outputs[0].strip().splitlines()[-1])


def main():
    import torch

    from models import Discriminator, SRResNet

    processes = max(2, torch.cuda.device_count())
    with tempfile.TemporaryDirectory() as folder:
        make_list(Path(folder))
        one, many = run(folder, 1), run(folder, processes)
    size = {
        name: 4 * sum(p.numel() for network in networks for p in network.parameters())
        for name, networks in {
            "SRResNet": [SRResNet()],
            "SRGAN": [SRResNet(), Discriminator()],
        }.items()
    }
    for stage in size:
        speeds = [run["batch_size"] / run["seconds"][stage] for run in (one, many)]
        gain = speeds[1] / speeds[0]
        print(
            f"{stage}, {one['device'].split(':')[0]}: {speeds[0]:.2f} patches/s in one process, {speeds[1]:.2f} in "
            f"{processes}: {gain:.2f} times as many ({gain / processes:.0%} efficiency)"
        )
    # A ring all-reduce of n processes carries 2 (n - 1) / n of the gradients over each link.
    for stage, bytes_ in size.items():
        moved = 2 * 7 / 8 * bytes_
        times = ", ".join(
            f"{1e3 * moved / speed:.2f} ms over {link}" for link, speed in LINKS.items()
        )
        print(
            f"{stage}, 8 GPUs: {bytes_ / 1e6:.1f} MB of gradients, {moved / 1e6:.1f} MB over each link a step: {times}"
        )


if __name__ == "__main__":
    work(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
