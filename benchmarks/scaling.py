"""How training scales over processes: patches a second of one and of two, and bytes a step.

    python benchmarks/scaling.py

Without GPUs each process has one thread, so two of them use two cores; with GPUs, as many processes
as GPUs. Every process has the same share of a batch ("weak scaling"): twice the processes, twice
the patches. On CPUs `Solver` refuses several processes, because one with all cores is faster; here
the tests' batch norm lets them.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SHARE = {"cpu": 4, "cuda": 16}  # patches of 96 x 96 that each process has of a batch
STEPS = 10  # that are timed, after two to warm up
LINKS = {  # bytes a second, each direction
    "NVLink (H100)": 450e9,
    "PCIe 4.0 x16": 25e9,
    "100 Gbit/s Ethernet": 12.5e9,
}


def make_list(folder):
    """Eight images of noise, and their list."""
    from utils import write_image, write_rows

    random, rows = np.random.default_rng(0), []
    for k in range(8):
        row = {"hr": f"{folder}/{k}.png", "lr": f"{folder}/{k}x4.png", "width": 384, "height": 384}
        write_image(row["hr"], random.integers(0, 256, (384, 384, 3), dtype=np.uint8))
        write_image(row["lr"], random.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        rows.append(row)
    write_rows(folder / "list.csv", rows)


def work(folder):
    """One of the processes: seconds per step of both stages, printed by the first."""
    import shared_batch_norm
    import torch
    from train import seconds, step

    from datasets import PatchDataset
    from models import Discriminator, SRResNet
    from solver import GANSolver, PretrainSolver
    from tools import distributed

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        distributed.share_batch_norm = shared_batch_norm.share_batch_norm
    batch_size = int(os.environ.get("WORLD_SIZE", 1)) * SHARE[kind]
    dataset = PatchDataset(folder / "list.csv", cache=folder / "cache")
    settings = dict(batch_size=batch_size, log_every=10**9)

    def measure(solver):
        batches = solver.loader.epoch(0)
        return seconds(lambda: step(solver, *next(batches)), STEPS, solver.device)

    srresnet = PretrainSolver({"generator": SRResNet()}, dataset, settings, folder / "srresnet")
    taken = {"SRResNet": measure(srresnet)}
    networks = {"generator": SRResNet(), "discriminator": Discriminator()}
    srgan = GANSolver(networks, dataset, {**settings, "content_loss": "mse"}, folder / "srgan")
    taken["SRGAN"] = measure(srgan)
    if srgan.is_main:
        print(json.dumps({"batch_size": batch_size, "device": kind, "seconds": taken}))
    srgan.processes.accelerator.end_training()


def run(folder, processes):
    """The measurement of so many processes, each with one thread and, if there are any, one GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(processes):
        env = dict(os.environ, OMP_NUM_THREADS="1")
        if processes > 1:
            env.update(RANK=str(rank), LOCAL_RANK=str(rank))
            env.update(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
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
    for stage in one["seconds"]:
        speeds = [run["batch_size"] / run["seconds"][stage] for run in (one, many)]
        gain = speeds[1] / speeds[0]
        print(
            f"{stage}, {one['device']}: {speeds[0]:.2f} patches/s in one process, "
            f"{speeds[1]:.2f} in {processes}: {gain:.2f} times as many "
            f"({gain / processes:.0%} efficiency)"
        )
    # A ring all-reduce of n processes carries 2 (n - 1) / n of the gradients over each link.
    for stage, networks in {
        "SRResNet": [SRResNet()],
        "SRGAN": [SRResNet(), Discriminator()],
    }.items():
        size = 4 * sum(p.numel() for network in networks for p in network.parameters())
        moved = 2 * 7 / 8 * size
        times = ", ".join(
            f"{1e3 * moved / rate:.2f} ms over {link}" for link, rate in LINKS.items()
        )
        print(
            f"{stage}, 8 GPUs: {size / 1e6:.1f} MB of gradients, {moved / 1e6:.1f} MB over each "
            f"link a step: {times}"
        )


if __name__ == "__main__":
    work(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
