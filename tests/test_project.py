"""What is committed besides code: notebooks as they were run, results that agree, no models."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

from metrics import psnr
from models import Discriminator, SRResNet
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


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "report.md"])
def test_documents_link_to_files_that_exist(name):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert links
    assert not [
        link for link in links if not link.startswith("http") and not (ROOT / link).exists()
    ]


@pytest.fixture(scope="module")
def scores():
    """results/metrics.csv: a row for each image, method and set."""
    return pd.read_csv(ROOT / "results" / "metrics.csv")


def mean_of(column, scores, name, method):
    return scores[(scores["set"] == name) & (scores.method == method)][column].mean()


def test_committed_bicubic_row_is_the_control_row(scores):
    published = {
        "Set5": (28.430, 0.8111),
        "Set14": (26.091, 0.7048),
        "B100": (25.962, 0.6681),
        "Urban100": (23.141, 0.6581),
    }
    for name, (dB, similarity) in published.items():
        assert mean_of("psnr", scores, name, "bicubic") == pytest.approx(dB, abs=0.01)
        assert mean_of("ssim", scores, name, "bicubic") == pytest.approx(similarity, abs=0.0005)


LABELS = {  # in report.md
    "bicubic": "双三次",
    "SRResNet": "SRResNet",
    "SRGAN": "SRGAN",
    "SRGAN, back-projected": "SRGAN，反投影",
    "SRGAN-MSE": "SRGAN-MSE",
    "base mode": "基础模式",
}


def report_table(title):
    """{first cell: other cells} of the rows of report.md's table that begins with `title`."""
    text = (ROOT / "report.md").read_text(encoding="utf-8")
    lines = text[text.index(f"| {title} |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize(
    "title, write",
    [
        ("PSNR (dB) / SSIM", lambda s: f"{s.psnr.mean():.3f} / {s.ssim.mean():.4f}"),
        ("棋盘格 / 色斑", lambda s: f"{s.checkerboard.mean():.2f} / {s.blobs.sum():.0f}"),
        ("谱距离 (dB)", lambda s: f"{s.spectral.mean():.2f}"),
    ],
)
def test_the_reports_tables_are_the_notebooks(title, write, scores):
    """Each row `| method | 28.430 / 0.8111 | ...` over the five sets, to the last digit."""
    table = report_table(title)
    sets = [name.split("（")[0] for name in table[title]]
    assert len(sets) == 5 and {"---", title, *LABELS.values()} == set(table)
    expected = {label: [] for label in LABELS.values()}
    for method, label in LABELS.items():
        for name in sets:  # what is only for comparison was run on two sets
            found = scores[(scores["set"] == name) & (scores.method == method)]
            expected[label].append("" if found.empty else write(found))
    assert expected == {label: table[label] for label in LABELS.values()}


def test_the_report_trained_as_long_as_the_notebook():
    """Steps and minutes of each stage, as train.ipynb prints them with the files for use."""
    outputs = [output for cell in code_cells("train.ipynb") for output in cell["outputs"]]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    table = report_table("步数 × 批大小")
    for k, stage in enumerate(("srresnet", "srgan", "srgan_mse", "base")):
        found = re.search(rf"/{stage}\.safetensors: ([\d,]+) steps, ([\d.]+) minutes", said)
        assert table["步数 × 批大小"][k].split(" × ")[0] == found[1]
        assert table["用时（分钟）"][k] == found[2]


@pytest.mark.parametrize(
    "title, network",
    [("生成器（LR 为 24×24 时）", SRResNet), ("判别器（图像为 96×96）", Discriminator)],
)
def test_the_parameters_in_the_report_are_the_networks(title, network):
    with torch.device("meta"):
        parameters = sum(value.numel() for value in network().parameters())
    table = report_table(title)
    counts = {row: cells[-1].replace(",", "") for row, cells in table.items()}
    counts = {row: int(count) for row, count in counts.items() if count.isdigit()}
    assert counts.pop("合计") == sum(counts.values()) == parameters


def headings(path):
    """The headings of a Markdown file or a notebook; of a notebook what is before its Chinese."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [heading.split(" · ")[0] if path.suffix == ".ipynb" else heading for heading in found]


def requirements():
    """(number, what, where, check) of each row of README.zh-CN.md's requirement table."""
    text = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.+?) \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list("12345678")
    return rows


@pytest.mark.parametrize("number", range(8))
def test_a_requirement_is_where_its_row_says(number):
    """Links are files; what is in “quotes” after one is a heading, in `backticks` a definition."""
    _, _, where, _ = requirements()[number]
    named = 0
    for link, text in re.findall(r"\]\((.+?)\)([^\[]*)", where):
        path = ROOT / link
        assert path.exists(), link
        for heading in re.findall("“(.+?)”", text):
            assert heading in headings(path), f"{link}: {heading}"
            named += 1
        for name in re.findall("`(.+?)`", text):
            if path.suffix == ".py":
                pattern = rf"^(def|class) {name}\b|^{name} = "
                assert re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE), name
                named += 1
    assert named


@pytest.mark.parametrize("method", ["bicubic", "SRResNet", "SRGAN", "SRGAN-MSE", "base mode"])
def test_committed_pictures_are_the_tables(method, scores):
    folder, originals = (
        ROOT / "results" / "Set5" / method.replace(" ", "_"),
        ROOT / "results" / "Set5" / "HR",
    )
    values = [
        psnr(read_image(path), read_image(originals / path.name))
        for path in sorted(folder.glob("*.png"))
    ]
    assert len(values) == 5
    assert sum(values) / 5 == pytest.approx(mean_of("psnr", scores, "Set5", method), abs=0.01)


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
