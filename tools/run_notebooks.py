"""Runs copies of the three notebooks in turn; the notebooks themselves stay as they are.

    python -m tools.run_notebooks quick      # a preset, or a settings.json

The copies, with their outputs, are in a new folder under runs/. In JupyterLab they can be opened
and run again.
"""

import argparse
import sys
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

import create_data_lists
from presets import read_settings

NOTEBOOKS = ("train", "test", "super_resolution")


def run_notebooks(preset: str, run: str = "", names: list[str] | None = None) -> Path:
    """Run copies of the notebooks `names`, by default all three, and return their folder.

    preset, run: as in the first cell of each notebook. The working folder is to be the project's,
    to which relative paths refer. Raises ValueError for a wrong preset or run, and
    PapermillExecutionError where a cell fails: its copy shows how far it came.
    """
    settings = read_settings(preset, run=run)
    if preset == "quick" and not Path(settings["train_list"]).exists():
        create_data_lists.main(["--embedded"])
    folder = new_folder(Path("runs"), run or Path(preset).stem)
    for name in names or NOTEBOOKS:
        target = folder / f"{name}.ipynb"
        print(f"\n{target.as_posix()}", flush=True)
        papermill.execute_notebook(
            f"{name}.ipynb", target, {"preset": preset, "run": run}, progress_bar=False,
            stdout_file=sys.stdout, stderr_file=sys.stderr,
        )  # fmt: skip
    return folder


def new_folder(parent: Path, name: str) -> Path:
    """Make `parent`/<name>, or <name>-2, -3 ...: earlier copies may hold somebody's changes."""
    parent.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tools.run_notebooks", description=__doc__)
    parser.add_argument("preset", help="quick, laptop, gpu, afternoon, paper; or a settings.json")
    parser.add_argument("--run", default="", help="a name for a run of your own")
    parser.add_argument("--only", nargs="+", choices=NOTEBOOKS, help="some of the notebooks")
    options = parser.parse_args(arguments)
    try:
        folder = run_notebooks(options.preset, options.run, options.only)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except (PapermillExecutionError, KeyboardInterrupt) as error:
        if getattr(error, "ename", "KeyboardInterrupt") == "KeyboardInterrupt":
            sys.exit("stopped; the same command goes on")
        sys.exit(f"error: {error.ename}: {error.evalue}")
    print(f"\nExecuted notebooks: {folder.as_posix()}/")


if __name__ == "__main__":
    main()
