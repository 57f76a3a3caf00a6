"""What is committed besides code: notebooks as they were run, results that agree, no models."""

import ast
import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from metrics import psnr
from utils import read_image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ["train.ipynb", "test.ipynb", "super_resolution.ipynb"]


def code_cells(name):
    return [
        cell
        for cell in json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_was_run_from_top_to_bottom(name):
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_light_and_plain(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text) < 3e6
    assert "application/vnd.jupyter.widget" not in text
    assert '"widgets"' not in text
    assert not [cell["metadata"] for cell in code_cells(name) if "execution" in cell["metadata"]]


@pytest.mark.parametrize("name", ["README.md", "report.md"])
def test_documents_link_to_files_that_exist(name):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert links
    assert not [
        link for link in links if not link.startswith("http") and not (ROOT / link).exists()
    ]


def means():
    """{(set, method): (psnr, ssim)} of results/metrics.csv, means over images."""
    with open(ROOT / "results" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = {(row["set"], row["method"]) for row in rows}
    chosen = {key: [row for row in rows if (row["set"], row["method"]) == key] for key in keys}
    return {
        key: tuple(sum(float(r[c]) for r in rs) / len(rs) for c in ("psnr", "ssim"))
        for key, rs in chosen.items()
    }


def test_committed_bicubic_row_is_the_control_row():
    published = {
        "Set5": (28.430, 0.8111),
        "Set14": (26.091, 0.7048),
        "B100": (25.962, 0.6681),
        "Urban100": (23.141, 0.6581),
    }
    for name, (dB, similarity) in published.items():
        found = means()[name, "bicubic"]
        assert found[0] == pytest.approx(dB, abs=0.01)
        assert found[1] == pytest.approx(similarity, abs=0.0005)


def test_the_reports_table_is_the_notebooks():
    """Each row `| method | 28.430 / .8111 | ...` of the five-set table, to the last digit."""
    text = (ROOT / "report.md").read_text(encoding="utf-8")
    header = re.search(r"^\| PSNR \(dB\) / SSIM \|(.+)\|$", text, re.MULTILINE)
    sets = [name.split("（")[0].strip() for name in header[1].split("|")]
    assert len(sets) == 5
    rows = 0
    for method, label in {
        "bicubic": "双三次",
        "SRResNet": "SRResNet",
        "SRGAN": "SRGAN",
        "SRGAN, back-projected": "SRGAN，反投影",
        "SRGAN-MSE": "SRGAN-MSE",
        "base mode": "基础模式",
    }.items():
        line = re.search(rf"^\| {label} \|(.+)\|$", text[header.end() :], re.MULTILINE)
        for name, cell in zip(sets, line[1].split("|"), strict=True):
            scores = means().get((name, method))  # what is only for comparison was run on two sets
            assert cell.strip() == ("{:.3f} / {:.4f}".format(*scores) if scores else "")
            rows += scores is not None
    assert rows == 24


@pytest.mark.parametrize("method", ["bicubic", "SRResNet", "SRGAN", "SRGAN-MSE", "base mode"])
def test_committed_pictures_are_the_tables(method):
    folder, originals = (
        ROOT / "results" / "Set5" / method.replace(" ", "_"),
        ROOT / "results" / "Set5" / "HR",
    )
    values = [
        psnr(read_image(path), read_image(originals / path.name))
        for path in sorted(folder.glob("*.png"))
    ]
    assert len(values) == 5
    assert sum(values) / 5 == pytest.approx(means()["Set5", method][0], abs=0.01)


def test_no_model_file_is_tracked():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    models = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".npz")
    assert not [name for name in listing.stdout.split() if name.endswith(models)]


def public_functions(path):
    """(name, definition) of the functions and methods that a module or a public class offers."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = node.body if isinstance(node, ast.ClassDef) else []
        for function in [node, *inside]:
            named = isinstance(function, ast.FunctionDef) and not node.name.startswith("_")
            if named and (function.name == "__init__" or not function.name.startswith("_")):
                yield f"{path.name}:{function.lineno} {function.name}", function


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")], ids=str)
def test_every_public_function_has_type_hints(path):
    for name, function in public_functions(path):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{name}: {bare}"
        if function.name != "__init__":
            assert function.returns is not None, name


def test_notebooks_and_badges_name_the_same_repository():
    names = re.findall(r"REPOSITORY = \W*https://github.com/([\w.-]+/[\w.-]+)", "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in NOTEBOOKS
    ))  # fmt: skip
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = re.findall(r"colab.research.google.com/github/([\w.-]+/[\w.-]+)/blob", readme)
    assert len(names) == len(badges) == 3 and len({*names, *badges}) == 1
