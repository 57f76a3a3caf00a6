"""The three notebooks are executed, on two tiny images, in the right order and in the wrong one."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from conftest import make_images
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
STAGE = dict(patches_per_image=2, crop_size=32, batch_size=2, log_every=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with two images, and settings.json of a run of two steps a stage."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    images = str(make_images(tmp_path, count=2, height=96, width=96))
    adversarial = dict(**STAGE, content_loss="mse", content_weight=1.0, keep_every=1)
    settings = dict(
        folder="checkpoints/tiny",
        results="results/tiny",
        train_list=images,
        valid_list=images,
        num_valid_images=1,
        test_lists=[images, "data/lists/absent.csv"],
        generator=dict(num_blocks=1, num_channels=4),
        discriminator=dict(num_channels=4),
        stages=dict(srresnet=STAGE, srgan=adversarial, base=dict(**adversarial, start="")),
    )
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    return tmp_path


def execute(name, folder, preset="settings.json", twice=False, before=""):
    """What a notebook prints when all cells run; with `twice` each code cell runs two times.

    before: code that runs first.
    """
    notebook = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        if "parameters" in cell.metadata.get("tags", ()):
            lines = cell.source.splitlines()
            (line,) = [k for k, text in enumerate(lines) if text.startswith("preset = ")]
            lines[line] = f"preset = {preset!r}"
            cell.source = "\n".join(lines)
    notebook.cells = [copy for cell in cells for copy in [cell] * (1 + twice)]
    if twice:
        notebook.cells = [
            nbformat.from_dict({**cell, "id": f"c{k}"}) for k, cell in enumerate(notebook.cells)
        ]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(before))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_the_three_notebooks_run_and_every_cell_may_run_twice(folder):
    printed = execute("train", folder, twice=True)
    assert printed.count("2 steps in") == 6  # two cells and a loop, each of them two times
    assert printed.count("Resumed from checkpoint-000000002") == 3
    curves = {path.name for path in (folder / "results/tiny/curves").iterdir()}
    assert curves == {"srresnet.png", "srgan.png", "base.png"}
    assert "absent is absent" in execute("test", folder, twice=True)
    table = (folder / "results/tiny/metrics.csv").read_text()
    assert {line.split(",")[1] for line in table.splitlines()[1:]} >= {
        "bicubic",
        "SRResNet",
        "SRGAN",
    }
    execute("super_resolution", folder, twice=True)
    methods = {path.name for path in (folder / "results/tiny/list").iterdir()}
    assert methods == {"bicubic", "SRResNet", "SRGAN", "base_mode", "HR"}


def test_before_any_training_the_other_two_show_bicubic_and_say_what_is_missing(folder):
    for name in ("test", "super_resolution"):
        assert "srgan.safetensors is not there; train.ipynb makes it" in execute(name, folder)


@pytest.mark.parametrize("name", ["train", "test", "super_resolution"])
def test_a_misspelt_preset_is_one_sentence_with_the_names(name, folder):
    with pytest.raises(CellExecutionError) as error:
        execute(name, folder, preset="lapto")
    assert error.value.evalue.startswith("there is no preset 'lapto'; there are quick, laptop")
    assert len(error.value.traceback.strip().splitlines()) < 12 + 45  # the cell, and the sentence


def test_the_notebooks_run_on_a_gpu(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    before = """
from pretended_device import pretended_device

context = pretended_device("cuda", (8, 6))
context.__enter__()
"""
    for name in ("train", "test", "super_resolution"):
        printed = execute(name, folder, before=before)
    assert "SRGAN" in printed
