"""The three notebooks are executed, on two tiny images, in the right order and in the wrong one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import make_images
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools.submission import list_files

ROOT = Path(__file__).parents[1]
STAGE = dict(patches_per_image=2, crop_size=32, batch_size=2, log_every=1)


@pytest.fixture
def project(tmp_path):
    """A copy of the project, with settings.json of a run of two steps a stage on two images."""
    folder = tmp_path / "project"
    for name in (".gitignore", "checkpoints/.gitignore", "data/.gitignore", *list_files(ROOT)):
        if not name.startswith("results/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    images = make_images(folder / "data", count=2, height=96, width=96).as_posix()
    adversarial = dict(**STAGE, content_loss="mse", content_weight=1.0, keep_every=1)
    settings = dict(
        folder="checkpoints/tiny",
        results="results/quick",
        train_list=images,
        valid_list=images,
        num_valid_images=1,
        test_lists=[images, "data/lists/absent.csv"],
        generator=dict(num_blocks=1, num_channels=4),
        discriminator=dict(num_channels=4),
        stages=dict(srresnet=STAGE, srgan=adversarial, base=dict(**adversarial, start="")),
    )
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def execute(notebook, folder, preset="settings.json", run="", twice=False, before=""):
    """What a notebook prints when all cells run in `folder`; with `twice` each runs two times.

    before: code that runs first.
    """
    notebook = nbformat.read(notebook, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        if cell.metadata.get("tags") == ["parameters"]:
            cell.source += f"\npreset, run = {preset!r}, {run!r}"
    notebook.cells = [copy for cell in cells for copy in [cell] * (1 + twice)]
    if twice:
        notebook.cells = [
            nbformat.from_dict({**cell, "id": f"c{k}"}) for k, cell in enumerate(notebook.cells)
        ]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(before))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_the_three_notebooks_run_and_every_cell_may_run_twice(project):
    printed = execute(project / "train.ipynb", project, twice=True)
    assert printed.count("2 steps in") == 6  # two cells and a loop, each of them two times
    assert printed.count("Resumed from checkpoint-000000002") == 3
    results = project / "results/quick"
    curves = {path.name for path in (results / "curves").iterdir()}
    assert curves == {"srresnet.png", "srgan.png", "base.png"}
    assert "absent is absent" in execute(project / "test.ipynb", project, twice=True)
    table = (results / "metrics.csv").read_text()
    methods = {line.split(",")[1] for line in table.splitlines()[1:]}
    assert methods >= {"bicubic", "SRResNet", "SRGAN"}
    assert (results / "perception_distortion.png").exists()
    execute(project / "super_resolution.ipynb", project, twice=True)
    methods = {path.name for path in (results / "list").iterdir()}
    assert methods == {"bicubic", "SRResNet", "SRGAN", "base_mode", "HR"}
    pages = {path.name for path in results.glob("*.html")}
    assert pages == {"compare_list.html", "compare_one_image.html", "rating_list.html"}


def test_one_command_runs_copies_and_changes_no_committed_file(project):
    def command(*arguments):
        done = subprocess.run(arguments, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("git", "init", "-q")
    command("git", "add", ".")
    run = sys.executable, "-m", "tools.run_notebooks", "settings.json"
    assert "Executed notebooks: runs/settings/" in command(*run)
    assert "Executed notebooks: runs/settings-2/" in command(*run, "--only", "test")
    assert command("git", "diff", "--name-only") == ""  # against what was added
    assert command("git", "ls-files", "--others", "--exclude-standard") == ""
    # A copy, opened where it lies, finds the project.
    copies = project / "runs/settings"
    assert "SRGAN" in execute(copies / "test.ipynb", copies)


def test_a_run_of_ones_own_is_found_by_its_name_in_all_three(project):
    for name in ("train", "test", "super_resolution"):
        execute(project / f"{name}.ipynb", project, run="mine")
    assert (project / "checkpoints/mine/srgan.safetensors").exists()
    assert (project / "results/mine/metrics.csv").exists()
    assert not (project / "checkpoints/tiny").exists() and not (project / "results/quick").exists()


def test_settings_that_changed_are_refused_with_the_way_to_a_run_of_its_own(project):
    execute(project / "train.ipynb", project)
    settings = json.loads((project / "settings.json").read_text())
    settings["stages"]["srresnet"]["learning_rate"] = 5e-4
    (project / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(CellExecutionError) as error:
        execute(project / "train.ipynb", project)
    assert 'give this run a folder of its own: run = "a-name"' in error.value.evalue
    execute(project / "train.ipynb", project, run="a-name")


def test_before_any_training_the_other_two_show_bicubic_and_say_what_is_missing(project):
    for name in ("test", "super_resolution"):
        printed = execute(project / f"{name}.ipynb", project)
        assert "srgan.safetensors is not there; train.ipynb makes it" in printed


@pytest.mark.parametrize("name", ["train", "test", "super_resolution"])
def test_outside_the_project_a_notebook_says_where_to_open_it(name, tmp_path):
    with pytest.raises(CellExecutionError) as error:
        execute(ROOT / f"{name}.ipynb", tmp_path)
    assert error.value.evalue == f"{tmp_path} lacks solver.py: open this notebook in its project"


@pytest.mark.parametrize("name", ["train", "test", "super_resolution"])
def test_a_misspelt_preset_is_one_sentence_with_the_names(name):
    with pytest.raises(CellExecutionError) as error:
        execute(ROOT / f"{name}.ipynb", ROOT, preset="lapto")
    assert error.value.evalue.startswith("there is no preset 'lapto'; there are quick, laptop")
    assert len(error.value.traceback.strip().splitlines()) < 12 + 45  # the cell, and the sentence


def test_the_notebooks_run_on_a_gpu(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    before = """
from pretended_device import pretended_device

context = pretended_device("cuda", (8, 6))
context.__enter__()
"""
    for name in ("train", "test", "super_resolution"):
        printed = execute(project / f"{name}.ipynb", project, before=before)
    assert "SRGAN" in printed
