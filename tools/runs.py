"""Runs side by side: the settings that differ and what came of them; trains and changes nothing.

A run is a folder with settings.json and, for each stage, <stage>/log.jsonl (see `build_solver`).

    python -m tools.runs [checkpoints] [-o runs.csv] [--plot runs.png]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plots import compare_histories, save_figure
from presets import check_settings
from tools.checkpoints import read_log
from utils import write_rows

NOT_COMPARED = {"about", "folder", "results", "test_lists", "stages"}  # change no training
SETTINGS = "train.ipynb writes settings.json again"
KINDS = ("train", "valid", "warmup")  # of rows
Histories = dict[tuple[str, str], dict[str, Any]]


def read_runs(folder: str | Path = "checkpoints") -> tuple[Histories, list[str]]:
    """The trained stages of all runs in a folder, {(run, stage): history}, and problems.

    A history holds the rows "train" and "valid", as in `Solver.history`; "settings", those of the
    run and of this stage with all defaults, {"seed": 0, "srgan.content_weight": 0.5, ...}, or {}
    where they cannot be read; "results". Problems name what is damaged, unfinished or no run.
    """
    runs = sorted(path for path in Path(folder).glob("[!.]*") if path.is_dir())
    histories, problems = {}, []
    if not runs:
        here = f"(current folder: {Path.cwd()})"
        problems.append(f"{folder}: no runs in it {here}; train.ipynb makes them")
    for run in runs:
        try:
            text = (run / "settings.json").read_text(encoding="utf-8")
            settings = check_settings(json.loads(text))
        except (OSError, ValueError) as error:
            problems.append(f"{run}: its settings cannot be read ({error}); {SETTINGS}")
            settings = {"stages": {}}
        logged = [path.parent.name for path in sorted(run.glob("*/log.jsonl"))]
        for stage in dict.fromkeys([*settings["stages"], *logged]):
            log, known = run / stage / "log.jsonl", settings["stages"].get(stage, {})
            try:
                history = {kind: read_log(log.parent, kind) for kind in KINDS}
                if not history["train"]:
                    problems.append(f"{run}, {stage}: nothing logged yet; train.ipynb trains it")
                    continue
                lines = log.read_text(encoding="utf-8").splitlines()
                history["results"] = _results(history, known.get("epochs"))
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                repair = "train.ipynb writes it again from the checkpoint"
                problems.append(f"{log}: damaged ({error!r}); {repair}")
                continue
            if lost := len(lines) - sum(len(history[kind]) for kind in KINDS):
                problems.append(f"{log}: {lost} damaged lines are left out")
            if history["train"][-1]["epoch"] < known.get("epochs", 0):
                epochs = history["results"]["epochs"]
                problems.append(f"{run}, {stage}: unfinished, {epochs} epochs")
            history["settings"] = _flat(settings, stage) if known else {}
            histories[run.name, stage] = history
    return histories, problems


def _results(history, epochs):
    """What came of a stage, as columns of the table."""
    last, valid = history["train"][-1], history["valid"]
    of = f" of {epochs}" if epochs else ""
    columns = {"steps": last["step"], "epochs": f"{last['epoch']:.4g}{of}"}
    columns |= {"minutes": round(last["seconds"] / 60, 1)}
    if valid:
        columns |= {"psnr": round(valid[-1]["psnr"], 3)}
        columns |= {"best psnr": round(max(row["psnr"] for row in valid), 3)}
        if "checkerboard" in valid[-1]:
            columns |= {"checkerboard": round(valid[-1]["checkerboard"], 2)}
    return columns


def _flat(settings, stage):
    """The settings of a run and of one of its stages with nested names: "srgan.content_weight"."""
    nested = {name: value for name, value in settings.items() if name not in NOT_COMPARED}
    nested[stage] = settings["stages"][stage]
    flat = {}
    for name, value in nested.items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): item for key, item in inner.items()}
    return flat


def table(histories: Histories) -> pd.DataFrame:
    """A row for each (stage, run): the settings in which runs differ, steps, time, validation PSNR.

    psnr is the last one, best psnr the largest, in dB (Y). An SRGAN is not chosen by them.
    """
    stages = list(dict.fromkeys(stage for _, stage in histories))
    differing = []
    for name in dict.fromkeys(name for h in histories.values() for name in h["settings"]):
        owner = name.split(".")[0]
        values = {
            str(history["settings"].get(name, ""))
            for (_, stage), history in histories.items()
            if history["settings"] and (owner not in stages or owner == stage)
        }
        if len(values) > 1:
            differing.append(name)
    rows = []
    for (run, stage), history in sorted(histories.items(), key=lambda h: stages.index(h[0][1])):
        settings = {name: str(history["settings"].get(name, "")) for name in differing}
        rows.append({"stage": stage, "run": run, **settings, **history["results"]})
    if not rows:
        return pd.DataFrame()
    columns = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name, "") for name in columns} for row in rows]
    return pd.DataFrame(rows, dtype=object).set_index(["stage", "run"])


def epochs(history: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """A row for each epoch of `Solver.history`, also for one that has only begun.

    steps and minutes since the start of the training; psnr in dB (Y), ssim and what else was
    validated after the epoch; the mean over its steps of each loss, raw.
    """
    if not history["train"]:
        return pd.DataFrame()
    train = pd.DataFrame(history["train"])
    epoch = np.ceil(train.pop("epoch")).astype(int)  # a row ends within its epoch, or with it
    steps = train["step"].diff().fillna(train["step"])  # over which the row is a mean
    last = train[["step", "seconds"]].groupby(epoch).last()
    losses = train.drop(columns=["step", "seconds", "learning_rate"], errors="ignore")
    losses = losses.mul(steps, axis=0).groupby(epoch).sum().div(steps.groupby(epoch).sum(), axis=0)
    table = pd.DataFrame({"steps": last["step"], "minutes": (last["seconds"] / 60).round(1)})
    if history["valid"]:
        valid = pd.DataFrame(history["valid"]).drop(columns="step").set_index("epoch")
        table = table.join(valid.round({"psnr": 3, "ssim": 4, "checkerboard": 2}))
    return table.join(losses.map(lambda value: float(f"{value:.4g}")))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tools.runs", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="checkpoints", help="holds the runs' folders")
    parser.add_argument("-o", "--out", help="write the table as CSV")
    parser.add_argument("--plot", help="draw validation PSNR, for instance runs.png")
    options = parser.parse_args(arguments)
    try:
        histories, problems = read_runs(options.folder)
        for problem in problems:
            print(f"note: {problem}")
        if not histories:
            raise ValueError(f"{options.folder}: no run that can be shown")
        print(table(histories).to_string())
        if options.out:
            write_rows(options.out, table(histories).reset_index().to_dict("records"))
        if options.plot:
            save_figure(compare_histories(histories), options.plot)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
