"""Presets and their checks: what is wrong is refused by name, before anything is loaded."""

import copy
import json
import re
from pathlib import Path

import pytest
from training import KINDS, make, run_settings

import presets
import solver
from datasets import PatchDataset, PatchLoader

WRONG = {str: 3, int: 2.5, float: "0.1", bool: 1, list: "tail", dict: ["num_blocks"]}
STAGES = {"srresnet": presets.STAGE, "srgan": {**presets.STAGE, **presets.ADVERSARIAL}}
OF_A_STAGE = [
    (stage, name)
    for stage, names in (("srresnet", presets.STAGE), ("srgan", presets.ADVERSARIAL))
    for name in names
]


def wrong_values(name, default):
    """Values that a setting cannot have: of another type, None, out of range."""
    kind = type(default)
    values = [WRONG[kind], None]
    if kind in (int, float):
        values += [True, presets.AT_LEAST.get(name, 0) - 1, float("nan"), float("inf")]
    if name in presets.AT_MOST:
        values.append(presets.AT_MOST[name] + 0.5)
    if name in presets.ONE_OF:
        values.append("other")
    return values


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_a_preset_passes_its_checks(preset):
    checked = presets.check_settings(presets.get_settings(preset))
    assert checked["folder"] == f"checkpoints/{preset}" and checked["about"]
    assert list(checked["stages"])[:2] == ["srresnet", "srgan"]
    for stage, settings in checked["stages"].items():
        assert settings.keys() == STAGES["srresnet" if stage == "srresnet" else "srgan"].keys()


@pytest.mark.parametrize(
    "settings", [presets.STAGE, STAGES["srgan"], presets.RUN], ids=["stage", "gan", "run"]
)
def test_the_defaults_are_in_their_own_ranges(settings):
    assert presets.check(settings, settings, "the defaults") == settings


@pytest.mark.parametrize("name", presets.RUN)
def test_a_wrong_setting_of_the_run_is_refused_by_name(name, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in wrong_values(name, presets.RUN[name]):
        with pytest.raises(ValueError, match=rf"the run: {name} is .*{re.escape(str(value))}"):
            solver.train(run_settings(images, **{name: value}))
    assert not list(tmp_path.iterdir()), "nothing is decoded, and no folder is made"


@pytest.mark.parametrize(("stage", "name"), OF_A_STAGE)
def test_a_wrong_setting_of_a_stage_is_refused_by_name(stage, name, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = run_settings(images)
    for value in wrong_values(name, STAGES[stage][name]):
        settings["stages"][stage][name] = value
        with pytest.raises(ValueError, match=rf"{stage}: {name} is .*{re.escape(str(value))}"):
            solver.train(settings)
        with pytest.raises(ValueError, match=rf"{stage}: {name} is .*{re.escape(str(value))}"):
            solver.build_solver(settings, "base")
    assert not list(tmp_path.iterdir()), "nothing is decoded, and no folder is made"


@pytest.mark.parametrize(("stage", "name"), OF_A_STAGE)
def test_a_solver_built_by_hand_refuses_them_too(stage, name, images, tmp_path):
    kind = "pretrain" if stage == "srresnet" else "gan"
    for value in wrong_values(name, STAGES[stage][name]):
        with pytest.raises(
            ValueError, match=rf"{KINDS[kind].__name__}: {name} is .*{re.escape(str(value))}"
        ):
            make(kind, images, tmp_path / "run", **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(epochs=3), r"the run has no setting \['epochs'\]; it has .*'seed'"),
        (dict(stages=dict(srresnet=dict(batchsize=4))), r"srresnet has no setting \['batchsize'\]"),
        (dict(stages=dict(srresnet=dict(content_weight=1.0))), "srresnet has no setting"),
        (dict(stages=dict(srgan=dict(start="srresnet"))), "srgan: start is a stage before it"),
        (dict(stages=dict(a=dict(start="b"), b=dict(start=""))), "a: start is a stage before it"),
        (dict(stages=dict(a=dict(start="a"))), "a: start is a stage before it"),
        (dict(stages=dict(srresnet=dict(crop_size=16))), "srresnet: crop_size is 16; .* 32 to"),
        (dict(stages=dict(srresnet=3)), "srresnet.* 3"),
    ],
)
def test_what_cannot_be_a_run_is_refused(changes, message, images):
    with pytest.raises(ValueError, match=message):
        presets.check_settings(run_settings(images, **changes))


def test_a_stage_that_is_not_there_is_named(images):
    with pytest.raises(ValueError, match="no stage 'gan'; there are srresnet, srgan, base"):
        solver.build_solver(run_settings(images), "gan")


def test_a_misspelt_preset_names_the_presets():
    for read in (presets.get_settings, presets.read_settings):
        with pytest.raises(
            ValueError, match="no preset 'lapptop'; there are quick, laptop, gpu, aft"
        ):
            read("lapptop")


def test_a_preset_is_a_copy_to_change():
    before = copy.deepcopy(presets.PRESETS), copy.deepcopy(presets.RUN)
    settings = presets.get_settings("laptop")
    checked = presets.check_settings(settings)
    for mine in (settings, checked):
        mine["test_lists"].append("mine.csv")
        mine["stages"]["srgan"]["epochs"] = 7
        mine["generator"]["num_blocks"] = 1
        mine["stages"]["more"] = {}
    assert before == (presets.PRESETS, presets.RUN)


def test_settings_are_read_from_a_file(images, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(run_settings(images)))
    read = presets.read_settings(tmp_path / "settings.json")
    assert read == {**presets.RUN, **run_settings(images)}
    assert presets.read_settings("quick") == presets.get_settings("quick")


def test_a_run_of_ones_own_has_its_own_folders(images, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(run_settings(images)))
    for source in ("laptop", tmp_path / "settings.json"):
        settings = presets.read_settings(source, "elsewhere", "slow_rate-2.5")
        folders = settings.pop("folder"), settings.pop("results")
        assert folders == ("elsewhere/slow_rate-2.5", "results/slow_rate-2.5")
        others = presets.read_settings(source)
        assert settings == {k: v for k, v in others.items() if k not in ("folder", "results")}


@pytest.mark.parametrize("run", ["a/b", "a\\b", "..", ".hidden", "a b", "C:"])
def test_a_run_whose_name_is_no_folders_is_refused(run):
    with pytest.raises(ValueError, match="run is a name of letters"):
        presets.read_settings("laptop", run=run)


def test_tests_and_pictures_take_the_settings_that_a_run_was_trained_with(images, tmp_path):
    arguments = "laptop", f"{tmp_path}/checkpoints", "mine"
    assert presets.trained_settings(*arguments) == presets.read_settings(*arguments)
    folder = tmp_path / "checkpoints/mine"
    folder.mkdir(parents=True)
    trained = {**run_settings(images), "folder": "where/it/was/trained", "results": "results/mine"}
    (folder / "settings.json").write_text(json.dumps(trained))
    read = presets.trained_settings(*arguments)
    assert read == {**presets.RUN, **trained, "folder": folder.as_posix()}


@pytest.mark.parametrize(("patches", "batch"), [(1, 4), (3, 4), (3, 5), (100, 16)])
def test_the_steps_of_a_stage_are_those_of_its_loader(patches, batch, images):
    dataset = PatchDataset(
        images, crop_size=32, patches_per_image=patches, cache=images.parent / "cache"
    )
    stage = dict(epochs=3, patches_per_image=patches, batch_size=batch)
    settings = run_settings(images, stages=dict(srresnet=stage))
    expected = 3 * len(PatchLoader(dataset, batch))
    assert presets.steps(settings, len(dataset.pairs)) == {"srresnet": expected}


@pytest.mark.parametrize("content", [b'{"folder": "check', b"\xff\xfe\x00", b"", None])
def test_a_settings_file_that_cannot_be_read_is_named(content, tmp_path):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.json is no settings file that can be read"):
        presets.read_settings(path)


@pytest.mark.parametrize("content", ["[]", "3", '"quick"', "null"])
def test_a_json_file_of_something_else_is_refused(content, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="settings"):
        presets.check_settings(presets.read_settings(tmp_path / "settings.json"))


def test_the_readme_says_the_steps_of_each_preset():
    lines = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
    for preset in presets.PRESETS:
        settings = presets.get_settings(preset)
        images = 10 if preset == "quick" else 800
        counts = presets.steps(settings, images)
        (row,) = [line for line in lines if line.startswith(f"| `{preset}` |")]
        assert f"{counts['srresnet']:,} + {counts['srgan']:,}" in row
