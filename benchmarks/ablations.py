"""What each idea of the recipe is worth: SRResNet on the same number of patches, one change each.

    python benchmarks/ablations.py                       every row, seed 0, that is not yet there
    python benchmarks/ablations.py ema muon --seeds 0 1 2

Into results/ablations.csv. The first rows build the recipe up from the paper's, the others change
one thing of it. The budget is small (see --patches), so that a row takes minutes on one CPU core:
the figures are about the beginning of a training, where most of them come from. Scores are PSNR (Y)
on the middle 512 x 512 pixels of the validation images, which decide, and on Set5 and Set14. What
the parts of SRGAN's loss are worth: benchmarks/controls.py.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import presets  # noqa: E402
from datasets import PairDataset, PatchDataset  # noqa: E402
from metrics import evaluate, mean  # noqa: E402
from models import SRResNet  # noqa: E402
from solver import PretrainSolver  # noqa: E402
from utils import seed_everything, write_rows  # noqa: E402

LAPTOP = presets.get_settings("laptop")
# Built up, one idea after the other. The defaults of `presets.STAGE` are the paper's but for the
# average. Warm-up and average are as short as these trainings.
PAPER = dict(batch_size=4, mixed_precision="auto", ema_decay=0.0)
INTERPOLATOR = dict(PAPER, init=LAPTOP["generator"]["init"])
RATE = dict(
    INTERPOLATOR, learning_rate=LAPTOP["stages"]["srresnet"]["learning_rate"], warmup_steps=50
)
COSINE = dict(RATE, schedule=LAPTOP["stages"]["srresnet"]["schedule"])
EMA = dict(COSINE, ema_decay=0.995)
RECIPE = dict(EMA, optimizer=LAPTOP["stages"]["srresnet"]["optimizer"])
ROWS = {  # name: (what, settings)
    "paper": ("the paper's recipe: constant rate 1e-4, Adam", PAPER),
    "interpolator": ("+ initialised as an interpolator", INTERPOLATOR),
    "rate": ("+ rate 1e-3, warm-up", RATE),
    "cosine": ("+ cosine to zero", COSINE),
    "ema": ("+ averaged weights", EMA),
    "muon": ("+ Muon: the recipe", RECIPE),
    "no interpolator": ("the recipe, default initialisation", dict(RECIPE, init="default")),
    "rate 2e-3": ("the recipe, rate 2e-3", dict(RECIPE, learning_rate=2e-3)),
    "rate 5e-4": ("the recipe, rate 5e-4", dict(RECIPE, learning_rate=5e-4)),
    "batch 16": ("the recipe, batches of 16: a quarter of the steps", dict(RECIPE, batch_size=16)),
    "crops": ("the recipe, the first half with 48 x 48 crops", dict(RECIPE, first_crop=48)),
    "detail": ("the recipe, of two patches the one with more detail", dict(RECIPE, detail=True)),
    "float32": ("the recipe, all in float32", dict(RECIPE, mixed_precision="no")),
}


class DetailSolver(PretrainSolver):
    """Trains on that half of each batch whose patches vary most."""

    def training_step(self, lr, hr):
        keep = hr.var(dim=(1, 2, 3)).topk((len(hr) + 1) // 2).indices
        return super().training_step(lr[keep], hr[keep])


def train(settings, seed, patches):
    """Train one row. Returns its scores."""
    settings = dict(settings, epochs=2)
    init, detail = settings.pop("init", "default"), settings.pop("detail", False)
    first_crop = settings.pop("first_crop", 96)
    settings["batch_size"] *= 1 + detail
    seed_everything(seed)
    # Two epochs of half the patches, so that the crop can grow between them.
    images = PatchDataset(
        "data/lists/train.csv", seed=seed, patches_per_image=patches // 2 * (1 + detail)
    )
    kind, networks = DetailSolver if detail else PretrainSolver, {"generator": SRResNet(init=init)}
    with tempfile.TemporaryDirectory() as folder:
        solver = kind(networks, images, settings, f"{folder}/run")
        images.crop_size = first_crop
        solver.fit(1)
        images.crop_size = 96
        solver.fit(2)
    scores = {"steps": solver.step, "seconds": round(solver.seconds)}
    sets = {
        name: list(PairDataset(f"data/lists/{name}.csv")) for name in ("valid", "Set5", "Set14")
    }
    sets["valid"] = [middle(*pair) for pair in sets["valid"]]
    for name, pairs in sets.items():
        scores[name] = round(mean(evaluate(solver.upscale, pairs, progress=False))["psnr"], 3)
    return scores


def middle(name, lr, hr, side=128):
    """The middle side x side pixels of a pair, in LR pixels."""
    top, left = (lr.shape[0] - side) // 2, (lr.shape[1] - side) // 2
    return (
        name,
        lr[top : top + side, left : left + side],
        hr[4 * top : 4 * (top + side), 4 * left : 4 * (left + side)],
    )


def work(name, seed, patches):
    """One row in a process of its own, with one thread: on two cores, two of them do more."""
    command = [sys.executable, __file__, name, "--worker"]
    command += ["--seeds", str(seed), "--patches", str(patches)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}, seed {seed}: {done.stderr}")
    row = {"row": name, "what": ROWS[name][0], "seed": seed, "patches_per_image": patches}
    return row | json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; none: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--patches", type=int, default=6, help="of each training image in all; an even number"
    )
    parser.add_argument("--output", default="results/ablations.csv")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    os.chdir(ROOT)
    if arguments.worker:
        settings = ROWS[arguments.rows[0]][1]
        print(json.dumps(train(settings, arguments.seeds[0], arguments.patches)))
        return

    output, rows = Path(arguments.output), []
    if output.exists():
        with open(output, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(row["row"], int(row["seed"]), int(row["patches_per_image"])) for row in rows}
    wanted = [(name, seed) for seed in arguments.seeds for name in arguments.rows or ROWS]
    wanted = [(*job, arguments.patches) for job in wanted if (*job, arguments.patches) not in done]
    begin = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count() if not torch.cuda.is_available() else 1) as pool:
        for k, row in enumerate(pool.map(lambda job: work(*job), wanted), start=1):
            rows.append(row)
            write_rows(output, rows)
            left = (time.monotonic() - begin) / k * (len(wanted) - k) / 60
            shown = " ".join(str(row[column]) for column in ("valid", "Set5", "Set14"))
            print(f"{row['what']:55} seed {row['seed']}: {shown}   ({left:.0f} min left)")


if __name__ == "__main__":
    main()
