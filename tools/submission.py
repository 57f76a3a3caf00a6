"""Checks that what the course asks for is there, and packs it as one zip; judges no result.

It cannot see whether a notebook's cells were edited after they ran: run all cells once more.

    python -m tools.submission --name 2024123456
"""

import argparse
import csv
import json
import os
import posixpath
import re
import sys
import zipfile
from pathlib import Path
from urllib.parse import unquote

from presets import METHODS
from utils import atomic_path, read_image

NOTEBOOKS = ("train.ipynb", "test.ipynb", "super_resolution.ipynb")
CODE = ("create_data_lists", "datasets", "imresize", "models", "solver", "utils")
SETS = dict(Set5=5, Set14=14, B100=100, Urban100=100, DIV2K_valid=100)  # images of the whole set
SET5 = ("baby", "bird", "butterfly", "head", "woman")
SECTIONS = {  # what a heading of report.md says
    "how generator and discriminator are trained": "训练|train",
    "the best parameters": "参数|parameter",
    "the test results": "测试|结果|result",
    "the images of Set5": "Set5",
    "what was tried and improved": "尝试|改进|tried|improve",
    "what was borrowed, and its sources": "来源|借鉴|参考|source|reference",
}
TRAINED = ("SRResNet", "SRGAN")  # the others are optional
LEFT_OUT = ("data", "checkpoints", "runs")
MODELS = (".pth", ".pt", ".ckpt", ".safetensors", ".onnx", ".npz", ".npy", ".h5", ".bin", ".pkl")
LARGE = (".ipynb", ".png", ".jpg", ".jpeg", ".html", ".pdf", ".docx", ".csv")  # may be over 1 MB
LARGEST = 25  # MB
ZIP = dict(compression=zipfile.ZIP_DEFLATED, strict_timestamps=False)  # files before 1980, too


def check(root: Path) -> tuple[list[str], list[str], list[str]]:
    """(files to hand in, relative to root; notes; what is missing or wrong, and the way out)."""
    files, results = list_files(root), results_folder(root)
    scores = read_scores(root / results / "metrics.csv")
    wanted = [*(f"{name}.py" for name in CODE), "report.md", *NOTEBOOKS]
    problems = [f"{n}: is not there; take the package's own" for n in wanted if n not in files]
    for name in NOTEBOOKS:
        problems += check_notebook(root, name) if name in files else []
    notes, found = check_scores(root, f"{results}/metrics.csv", scores)
    problems += found + check_pictures(root, f"{results}/Set5", scores, files)
    problems += check_report(root, files) if "report.md" in files else []
    return files, [f"results: {results}/", *notes], problems + check_sizes(root, files)


def results_folder(root: Path) -> str:
    """Where the notebooks wrote, as super_resolution.ipynb said: "results/mine"."""
    for cell in code_cells(root, "super_resolution.ipynb"):
        for output in cell.get("outputs", []):
            if said := re.search("saved under (.+)/Set5/", "".join(output.get("text", ""))):
                return posixpath.normpath(said[1])
    return "results"


def list_files(root: Path) -> list[str]:
    """The files to hand in: all but `LEFT_OUT`, hidden files, caches and environments."""
    files = []
    for path, folders, names in os.walk(root):
        folder = Path(path)
        left_out = {"__pycache__", *(LEFT_OUT if folder == root else ())}
        left_out |= {name for name in folders if (folder / name / "pyvenv.cfg").exists()}
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in left_out)
        files += [folder / name for name in sorted(names) if name[0] != "."]
    return [file.relative_to(root).as_posix() for file in files if file.is_file()]


def code_cells(root: Path, name: str) -> list[dict]:
    """The code cells of a notebook, without empty ones; [] if it cannot be read."""
    try:
        cells = json.loads((root / name).read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [{**c, "source": "".join(c["source"])} for c in code if "".join(c["source"]).strip()]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def maker(root: Path, name: str, text: str) -> str:
    """What makes a missing file: "run test.ipynb, code cell 4", the first with this text."""
    numbers = [k for k, c in enumerate(code_cells(root, name), start=1) if text in c["source"]]
    return f"run {name}, code cell {numbers[0]}" if numbers else f"run {name}"


def check_notebook(root: Path, name: str) -> list[str]:
    """Whether a notebook ran from top to bottom, with outputs and without errors."""
    cells, problems = code_cells(root, name), []
    if not cells:
        return [f"{name}: no notebook with code that can be read; take the package's own"]
    for k, cell in enumerate(cells, start=1):
        outputs, count = cell.get("outputs", []), cell.get("execution_count")
        errors = [output for output in outputs if output.get("output_type") == "error"]
        # A call of print or display that is in no block surely has an output.
        if errors:
            problems.append(f"{name}, code cell {k}: ended with {errors[0].get('ename')}")
        elif count != k:
            problems.append(f"{name}, code cell {k}: was run as number {count}, not {k}")
        elif not outputs and re.search(r"^(print|display)\(", cell["source"], re.M):
            problems.append(f"{name}, code cell {k}: its output is missing")
    way_out = "restart the kernel and run all cells, then save"
    return [f"{problems[0]}; {way_out}"] if problems else []  # what follows follows from it


def read_scores(table: Path) -> dict[tuple[str, str], set[str]]:
    """{(set, method): names of its images} of a table of scores; {} if it cannot be read."""
    names = {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                if float(row["psnr"]) > 0 and -1 <= float(row["ssim"]) <= 1:  # not for nan
                    names.setdefault((row["set"], row["method"]), set()).add(row["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return names


def check_scores(root: Path, table: str, scores: dict) -> tuple[list[str], list[str]]:
    """(how many images of each set were scored; which sets, methods and images are missing)."""
    run, notes, problems = maker(root, "test.ipynb", "metrics.csv"), [], []
    for name, whole in SETS.items():
        images = {image for (key, _), names in scores.items() if key == name for image in names}
        if not images:
            get = f"python create_data_lists.py --download {name}"
            problems.append(f"{table}: no scores of {name}; {get}, then {run}")
            continue
        partly = "" if len(images) >= whole else "; report.md has to say so"
        notes.append(f"{name}: {len(images)} of {whole} images{partly}")
        for method in ("bicubic", *TRAINED):
            if lacking := len(images - scores.get((name, method), set())):
                problems.append(f"{table}: {lacking} images of {name} lack {method}; {run}")
    return notes, problems


def check_pictures(root: Path, folder: str, scores: dict, files: list[str]) -> list[str]:
    """Whether every method that was trained has its SR image of each LR image of Set5."""
    run = maker(root, "super_resolution.ipynb", "write_image(pictures")
    scored = {method for _, method in scores}
    methods = [m for m in METHODS.values() if m in scored or m in TRAINED]
    problems = []
    for path in [f"{folder}/{m.replace(' ', '_')}/{n}.png" for m in ("HR", *methods) for n in SET5]:
        original = f"{folder}/HR/{Path(path).name}"
        if path not in files:
            problems.append(f"{path}: is not there; {run}")
        elif original in files:
            try:
                if read_image(root / path).shape != read_image(root / original).shape:
                    raise ValueError(f"{path}: has another size than {original}")
            except (OSError, ValueError) as error:
                problems.append(f"{error}; {run}")
    return problems


def check_report(root: Path, files: list[str]) -> list[str]:
    """Whether report.md has every section, with text below it, and every figure."""
    try:
        text = (root / "report.md").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return ["report.md: is not UTF-8; save it again in your editor as UTF-8"]
    text = re.sub(r"^```.*?^```", "code", text, flags=re.S | re.M)
    problems = []
    for what, words in SECTIONS.items():
        # A heading, and below it text or a lower heading.
        if not re.search(rf"^(##+) .*({words}).*\n\s*(?=[^#\s]|\1#)", text, re.I | re.M):
            problems.append(f"report.md: no section, or an empty one, on {what} ({words})")
    links = re.findall(r"!\[[^\]]*\]\(\s*<?([^)>\s]+)|<img[^>]+src=[\"']([^\"']+)", text)
    figures = [posixpath.normpath(unquote(a or b)) for a, b in links]
    missing = [figure for figure in figures if figure not in files]
    problems += [f"report.md: the figure {f} is not in what is handed in" for f in missing]
    run = maker(root, "super_resolution.ipynb", "_details")
    lacking = [name for name in SET5 if not any(name in Path(figure).stem for figure in figures)]
    return problems + [f"report.md: shows no {n} of Set5; {run}, link the picture" for n in lacking]


def check_sizes(root: Path, files: list[str]) -> list[str]:
    """Whether no model is among the files, by its name or by its size."""
    problems = []
    for file in files:
        suffix, size = Path(file).suffix.lower(), (root / file).stat().st_size / 1e6
        if suffix in MODELS:
            problems.append(f"{file}: a model file; move it into checkpoints/, which stays here")
        elif size > (LARGEST if suffix in LARGE else 1):
            problems.append(f"{file}: {size:.1f} MB, is it a model? Move it out of this folder")
    return problems


def main(arguments: list[str] | None = None) -> None:
    """The command line; exit code 1 if something is missing."""
    title = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser("python -m tools.submission", description=title)
    parser.add_argument("--name", required=True, help="of the zip: your student number")
    parser.add_argument("--anyway", action="store_true", help="pack although something is missing")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[\w-]+", options.name):
        parser.error(f"--name is letters, digits, - and _, not {options.name!r}")
    out = Path(f"{options.name}.zip")
    if out.exists():  # before the check, or it would be packed, too
        sys.exit(f"error: {out} is there already; move it away or delete it, and run again")
    try:
        files, notes, problems = check(Path("."))
        for line in [*notes, *(f"missing: {problem}" for problem in problems)]:
            print(line)
        if problems and not options.anyway:
            sys.exit(f"error: {len(problems)} things are missing; --anyway packs without them")
        with atomic_path(out) as path, zipfile.ZipFile(path, "w", **ZIP) as file:
            for name in files:
                file.write(name, f"{options.name}/{name}")
    except OSError as error:
        sys.exit(f"error: {error}")
    print(f"{out}: {len(files)} files, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
