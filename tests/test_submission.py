"""What is handed in: each condition broken once, in a small package and in the committed one."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tools import submission
from tools.submission import SET5, SETS, check, results_folder
from utils import write_image, write_rows

ROOT = Path(__file__).parents[1]
REPORT = """# Report
## 1 训练方法
### 1.1 生成器
Text.
## 2 最佳参数与测试结果
| a | b |
### 2.1 Set5 图像
{figures}
## 3 尝试与改进
1. Text.
## 4 来源
Ledig et al.
"""
SOURCES = {
    "train.ipynb": ["preset = 'laptop'", "%matplotlib inline\nprint(1)", "x = 1"],
    "test.ipynb": ["preset = 'laptop'", "write_rows('metrics.csv', rows)", "display(table)"],
    "super_resolution.ipynb": ["preset = 'laptop'", "write_image(pictures)", "'_details'"],
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The working folder: a small package that is complete, and things that are not handed in."""
    root = tmp_path / "package"
    for name, sources in SOURCES.items():
        said = "saved under results/Set5/: HR" if name == "super_resolution.ipynb" else "1"
        stream = {"output_type": "stream", "name": "stdout", "text": [said]}
        cells = [
            {"cell_type": "code", "execution_count": k, "source": [source], "outputs": [stream]}
            for k, source in enumerate(sources, start=1)
        ]
        cells[-1]["outputs"] = (
            [stream] if "print" in sources[-1] or "display" in sources[-1] else []
        )
        empty = {"cell_type": "code", "execution_count": None, "source": [], "outputs": []}
        text = {"cell_type": "markdown", "source": ["# Title"]}
        write(root / name, {"cells": [text, *cells, empty], "nbformat": 4})
    for name in submission.CODE:
        write(root / f"{name}.py", "")
    write(root / "report.md", REPORT.format(figures=figures(SET5)))
    rows = []
    for name, count in SETS.items():
        images = SET5 if name == "Set5" else [f"{k:03d}" for k in range(count)]
        for method in ("bicubic", "SRResNet", "SRGAN", "base mode"):
            if method == "base mode" and name != "Set5":
                continue
            scores = dict(psnr=30.0, ssim=0.9)
            rows += [{"set": name, "method": method, "name": image, **scores} for image in images]
    write_rows(root / "results/metrics.csv", rows)
    for method in ("HR", "SRResNet", "SRGAN", "base_mode"):
        for k, name in enumerate(SET5):
            picture = np.full((8, 8 + 4 * k, 3), 100, np.uint8)
            write_image(root / f"results/Set5/{method}/{name}.png", picture)
    for name in SET5:
        write_image(root / f"results/Set5_details/{name}.png", np.zeros((4, 4, 3), np.uint8))
    left_out = ["data/a.png", "checkpoints/srgan.safetensors", "runs/train.ipynb", ".git/HEAD"]
    left_out += [".venv/x.py", "env/pyvenv.cfg", "env/lib/torch.bin", "tools/__pycache__/a.pyc"]
    left_out += [".ipynb_checkpoints/train.ipynb", ".DS_Store"]
    for name in [*left_out, "results/data/list.csv"]:  # the last one is: only root's data is not
        write(root / name, "")
    monkeypatch.chdir(root)
    return root


def figures(names):
    return "\n".join(f"![{name}](results/Set5_details/{name}.png)" for name in names)


def edit(name, **changes):
    """Change entries of the second code cell of a notebook."""
    path = Path(name)
    notebook = read(path)
    notebook["cells"][2].update(changes)
    write(path, notebook)


def edit_table(keep=lambda row: True, change=lambda row: row):
    header, *rows = Path("results/metrics.csv").read_text().splitlines()
    rows = [change(row) for row in rows if keep(row)]
    Path("results/metrics.csv").write_text("\n".join([header, *rows]) + "\n")


def edit_report(old, new):
    text = Path("report.md").read_text(encoding="utf-8")
    assert old in text
    write(Path("report.md"), text.replace(old, new))


ERROR = [{"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}]
CASES = {  # what breaks: how, and what is said
    "a module is missing": (lambda: os.remove("solver.py"), "solver.py: is not there"),
    "a notebook is missing": (lambda: os.remove("test.ipynb"), "test.ipynb: is not there"),
    "a notebook is damaged": (lambda: write(Path("test.ipynb"), "{"), "test.ipynb: no notebook"),
    "a cell was not run": (
        lambda: edit("train.ipynb", execution_count=None, outputs=[]),
        "train.ipynb, code cell 2: was run as number None, not 2; restart the kernel",
    ),
    "cells ran in another order": (
        lambda: edit("train.ipynb", execution_count=7),
        "train.ipynb, code cell 2: was run as number 7, not 2",
    ),
    "a cell ended in an error": (
        lambda: edit("super_resolution.ipynb", outputs=ERROR),
        "super_resolution.ipynb, code cell 2: ended with KeyError",
    ),
    "an output was deleted": (
        lambda: edit("train.ipynb", outputs=[]),
        "train.ipynb, code cell 2: its output is missing",
    ),
    "no table": (
        lambda: os.remove("results/metrics.csv"),
        "results/metrics.csv: no scores of Urban100; python create_data_lists.py --download "
        "Urban100, then run test.ipynb, code cell 2",
    ),
    "a table without scores": (
        lambda: write(Path("results/metrics.csv"), "set,method\nSet5,SRGAN\n"),
        "results/metrics.csv: no scores of Set5",
    ),
    "a set is missing": (
        lambda: edit_table(lambda row: not row.startswith("B100")),
        "results/metrics.csv: no scores of B100",
    ),
    "SRGAN lacks an image": (
        lambda: edit_table(lambda row: not row.startswith("B100,SRGAN,042")),
        "results/metrics.csv: 1 images of B100 lack SRGAN; run test.ipynb, code cell 2",
    ),
    "a score is no number": (
        lambda: edit_table(
            change=lambda row: row.replace("30.0", "nan") if "Set14,bicubic,003" in row else row
        ),
        "results/metrics.csv: 1 images of Set14 lack bicubic",
    ),
    "a picture is missing": (
        lambda: os.remove("results/Set5/SRGAN/bird.png"),
        "results/Set5/SRGAN/bird.png: is not there; run super_resolution.ipynb, code cell 2",
    ),
    "a picture of an optional method is missing": (
        lambda: os.remove("results/Set5/base_mode/bird.png"),
        "results/Set5/base_mode/bird.png: is not there",
    ),
    "a picture is damaged": (
        lambda: write(Path("results/Set5/SRGAN/bird.png"), "no image"),
        "bird.png: not an image",
    ),
    "a picture has another size": (
        lambda: write_image("results/Set5/SRGAN/bird.png", np.zeros((8, 8, 3), np.uint8)),
        "results/Set5/SRGAN/bird.png: has another size than results/Set5/HR/bird.png",
    ),
    "no report": (lambda: os.remove("report.md"), "report.md: is not there"),
    "a report in another encoding": (
        lambda: Path("report.md").write_bytes("报告".encode("gbk")),
        "report.md: is not UTF-8; save it again",
    ),
    "no training": (lambda: edit_report("训练方法", "方法"), "how generator and discriminator"),
    "no parameters": (lambda: edit_report("最佳参数与", ""), "the best parameters"),
    "no results": (lambda: edit_report("与测试结果", ""), "the test results"),
    "no images": (lambda: edit_report("Set5 图像", "图像"), "the images of Set5"),
    "nothing tried": (lambda: edit_report("尝试与改进", "其他"), "what was tried and improved"),
    "no sources": (lambda: edit_report("来源", "其他"), "its sources"),
    "an empty section": (lambda: edit_report("Ledig et al.", ""), "an empty one, on what was borr"),
    "an empty section before another": (
        lambda: edit_report("1. Text.", ""),
        "an empty one, on what was tried",
    ),
    "a figure is missing": (
        lambda: edit_report("Ledig", "![a](results/curves/a%20b.png) Ledig"),
        "report.md: the figure results/curves/a b.png is not in what is handed in",
    ),
    "a figure of a page is missing": (
        lambda: edit_report("Ledig", '<img width="9" src="results/b.png"> Ledig'),
        "report.md: the figure results/b.png",
    ),
    "a figure is in data, which is not handed in": (
        lambda: edit_report("Ledig", "![a](data/a.png) Ledig"),
        "report.md: the figure data/a.png",
    ),
    "an image of Set5 is not shown": (
        lambda: edit_report("![woman](results/Set5_details/woman.png)", ""),
        "report.md: shows no woman of Set5; run super_resolution.ipynb, code cell 3",
    ),
    "a model by its name": (
        lambda: write(Path("results/srgan.SafeTensors"), ""),
        "results/srgan.SafeTensors: a model file",
    ),
    "a model by its size": (
        lambda: Path("tools/weights.txt").write_bytes(bytes(1_100_000)),
        "tools/weights.txt: 1.1 MB, is it a model?",
    ),
    "a large model called a picture": (
        lambda: Path("results/x.png").write_bytes(bytes(26_000_000)),
        "results/x.png: 26.0 MB, is it a model?",
    ),
}


def run(*options):
    """The exit code of the command in the working folder: 0, or the text that it ends with."""
    try:
        submission.main(["--name", "2024123456", *options])
    except SystemExit as error:
        return error.code
    return 0


def packed():
    with zipfile.ZipFile("2024123456.zip") as archive:
        assert archive.testzip() is None
        return archive.namelist()


def test_a_complete_package_is_packed_without_data_models_and_environments(package, capsys):
    assert run() == 0
    expected = {path for path in package.rglob("*") if path.is_file()}
    names = [path.relative_to(package).as_posix() for path in expected]
    left = ("data/", "checkpoints/", "runs/", ".", "env/")
    wanted = {n for n in names if not n.startswith(left) and not n.endswith((".zip", ".pyc"))}
    assert set(packed()) == {f"2024123456/{name}" for name in wanted}
    assert len(wanted) == 37
    printed = capsys.readouterr().out
    assert "Urban100: 100 of 100 images\n" in printed and "missing" not in printed


def test_what_was_packed_is_complete_itself(package, tmp_path):
    assert run() == 0
    zipfile.ZipFile("2024123456.zip").extractall(tmp_path / "unpacked")
    files, _, problems = check(tmp_path / "unpacked" / "2024123456")
    assert problems == [] and len(files) == 37


@pytest.mark.parametrize("case", CASES)
def test_each_condition(case, package, capsys):
    break_it, said = CASES[case]
    break_it()
    assert "things are missing" in run()
    assert said in capsys.readouterr().out
    assert not Path("2024123456.zip").exists()


def test_anyway_packs_what_there_is_and_says_what_is_missing(package, capsys):
    os.remove("results/Set5/SRGAN/bird.png")
    assert run("--anyway") == 0
    assert "missing: results/Set5/SRGAN/bird.png" in capsys.readouterr().out
    assert "2024123456/results/Set5/SRGAN/baby.png" in packed()


def test_a_set_that_is_tested_in_part_is_said(package, capsys):
    edit_table(lambda row: not row.startswith("DIV2K_valid") or ",00" in row)
    assert run() == 0
    said = "DIV2K_valid: 10 of 100 images; report.md has to say so"
    assert said in capsys.readouterr().out


def test_the_results_are_those_that_the_notebooks_wrote(package, capsys):
    output = {"output_type": "stream", "text": "saved under results/my run/Set5/: SRGAN, HR"}
    notebook = read(Path("super_resolution.ipynb"))
    for cell in notebook["cells"][1:]:
        cell["outputs"] = [output]
    write(Path("super_resolution.ipynb"), notebook)
    assert run() != 0  # though there is a folder results/ from before
    assert "missing: results/my run/metrics.csv: no scores of Set5" in capsys.readouterr().out
    os.rename("results", "elsewhere")
    os.mkdir("results")
    os.rename("elsewhere", "results/my run")
    text = Path("report.md").read_text(encoding="utf-8")
    write(Path("report.md"), text.replace("results/", "results/my%20run/"))
    assert run() == 0


def test_a_zip_that_is_there_is_not_replaced(package):
    Path("2024123456.zip").write_text("mine")
    for options in ((), ("--anyway",)):
        assert "2024123456.zip is there already" in run(*options)
    assert Path("2024123456.zip").read_text() == "mine"


def test_a_name_that_is_a_path_is_refused(package):
    with pytest.raises(SystemExit):
        submission.main(["--name", "../2024"])
    assert not list(Path("..").glob("*.zip"))


def test_the_committed_package_is_complete(monkeypatch):
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0:  # what else lies in the folder is not the package's
        tracked = set(listing.stdout.split("\n"))
        found = [file for file in submission.list_files(ROOT) if file in tracked]
        monkeypatch.setattr(submission, "list_files", lambda root: found)
    files, notes, problems = check(ROOT)
    assert problems == []
    assert {"train.ipynb", "results/metrics.csv", "tools/mos.py"} <= set(files)
    assert notes[:2] == ["results: results/", "Set5: 5 of 5 images"]


def test_the_committed_notebook_says_where_it_wrote():
    text = (ROOT / "super_resolution.ipynb").read_text(encoding="utf-8")
    assert "saved under results/Set5/" in text  # else `results_folder` falls back
    assert results_folder(ROOT) == "results"


def test_the_command_is_a_module_of_tools():
    command = [sys.executable, "-m", "tools.submission", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "--anyway" in result.stdout, result.stderr
