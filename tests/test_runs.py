"""Runs side by side: made by hand, whole and damaged, and one that the solver itself trained."""

import json

import pytest
from training import make, run_settings

import plots
from presets import get_settings
from solver import build_solver, validation_pairs
from tools import checkpoints
from tools.runs import epochs, main, read_runs, table


def make_run(folder, stages=("srresnet", "srgan"), epochs=2, **changes):
    """A run of the preset quick with other settings: "seed", or "srgan__content_weight"."""
    settings = get_settings("quick")
    settings["stages"] = {stage: dict(epochs=2) for stage in stages}
    for name, value in changes.items():
        *owner, key = name.split("__")
        (settings["stages"][owner[0]] if owner else settings)[key] = value
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    for k, stage in enumerate(stages):
        for epoch in range(1, epochs + 1):
            step = 100 * epoch
            row = dict(step=step, epoch=epoch, seconds=90.0 * epoch, content_loss=0.1)
            checkpoints.log_row(folder / stage, "train", row)
            valid = dict(step=step, epoch=epoch, psnr=30.0 + k - 0.5 * epoch, ssim=0.8)
            checkpoints.log_row(folder / stage, "valid", valid)
    return folder


def test_the_table_has_the_settings_that_differ_and_the_results(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=3, srgan__content_weight=2.5, srgan__epochs=2)
    histories, problems = read_runs(tmp_path)
    rows = table(histories)
    assert problems == []
    assert list(rows.index) == [(s, r) for s in ("srresnet", "srgan") for r in ("a", "b")]
    results = ["steps", "epochs", "minutes", "psnr", "best psnr"]
    assert list(rows.columns) == ["seed", "srgan.content_weight", *results]
    assert list(rows["srgan.content_weight"]) == ["", "", "0.5", "2.5"]  # 0.5: the default
    assert list(rows["seed"]) == ["0", "3", "0", "3"]
    assert list(rows.loc["srgan", "b"][results]) == [200, "2 of 2", 3.0, 30.0, 30.5]


def test_a_setting_that_only_one_run_names_differs_and_equal_defaults_do_not(tmp_path):
    make_run(tmp_path / "a", generator={"init": "interpolator"})
    make_run(tmp_path / "b", generator={}, srresnet__batch_size=16)  # 16: the default
    rows = table(read_runs(tmp_path)[0])
    assert list(rows.columns[:2]) == ["generator.init", "steps"]
    assert list(rows["generator.init"]) == ["interpolator", "", "interpolator", ""]


def test_a_stage_that_only_one_run_has_makes_no_columns(tmp_path):
    make_run(tmp_path / "a", stages=("srresnet", "srgan", "base"))
    make_run(tmp_path / "b")
    rows = table(read_runs(tmp_path)[0])
    assert rows.columns[0] == "steps" and len(rows) == 5


def test_the_checkerboard_is_shown_where_it_was_logged(tmp_path):
    run = make_run(tmp_path / "a", stages=("srresnet",))
    row = dict(step=200, epoch=2, psnr=28.0, ssim=0.8, checkerboard=1.2345)
    checkpoints.log_row(run / "srresnet", "valid", row)
    make_run(tmp_path / "b", stages=("srresnet",))
    assert list(table(read_runs(tmp_path)[0])["checkerboard"]) == [1.23, ""]


def damage(run, how):
    log = run / "srgan" / "log.jsonl"
    if how == "settings cut off":
        (run / "settings.json").write_text('{"seed": 1, ')
    elif how == "settings of another version":
        (run / "settings.json").write_text('{"depth": 16}')
    elif how == "no settings":
        (run / "settings.json").unlink()
    elif how == "no log":
        log.unlink()
    elif how == "log cut off":
        log.write_text(log.read_text() + '{"kind": "tr')
    elif how == "log not text":
        log.write_bytes(b"\xff\xfe\x00")
    elif how == "log of something else":
        log.write_text("[1]\n")
    elif how == "log without steps":
        log.write_text('{"kind": "train"}\n')


@pytest.mark.parametrize(
    ("how", "named", "rows"),
    [
        ("settings cut off", "its settings cannot be read", 2),
        ("settings of another version", "no setting ['depth']", 2),
        ("no settings", "settings.json", 2),
        ("no log", "srgan: nothing logged yet; train.ipynb trains it", 1),
        ("log cut off", "1 damaged lines", 2),
        ("log not text", "log.jsonl: damaged", 1),
        ("log of something else", "log.jsonl: damaged", 1),
        ("log without steps", "log.jsonl: damaged", 1),
    ],
)
def test_a_damaged_run_is_named_and_the_others_shown(how, named, rows, tmp_path):
    damage(make_run(tmp_path / "bad", seed=1), how)
    make_run(tmp_path / "good")
    histories, problems = read_runs(tmp_path)
    assert len(problems) == 1 and "bad" in problems[0] and named in problems[0]
    shown = table(histories)
    assert sum(run == "bad" for _, run in shown.index) == rows
    assert sum(run == "good" for _, run in shown.index) == 2
    settings = "settings" in how
    assert ("seed" in shown.columns) == (not settings)  # what cannot be read is no difference


def test_an_unfinished_run_is_named(tmp_path):
    make_run(tmp_path / "a", epochs=1)
    assert read_runs(tmp_path)[1] == [
        f"{tmp_path / 'a'}, {s}: unfinished, 1 of 2 epochs" for s in ("srresnet", "srgan")
    ]


def test_a_stage_that_the_settings_no_longer_have_is_shown(tmp_path):
    run = make_run(tmp_path / "a", stages=("srresnet", "srgan"))
    settings = json.loads((run / "settings.json").read_text())
    del settings["stages"]["srgan"]
    (run / "settings.json").write_text(json.dumps(settings))
    assert list(table(read_runs(tmp_path)[0]).index) == [("srresnet", "a"), ("srgan", "a")]


def test_files_and_hidden_folders_are_no_runs_and_nothing_trained_is_said(tmp_path):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "vgg16.pth").write_bytes(b"")
    histories, problems = read_runs(tmp_path)
    assert histories == {} and len(problems) == 1
    assert f"{tmp_path}: no runs in it" in problems[0] and "train.ipynb" in problems[0]
    assert table(histories).empty
    plots.as_png(plots.compare_histories(histories))


def test_the_plot_has_a_panel_for_each_stage_and_a_line_for_each_run(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", stages=("srresnet",), epochs=1)
    figure = plots.compare_histories(read_runs(tmp_path)[0])
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["srresnet", "srgan"]
    lines = {line.get_label(): line for line in panels["srresnet"].lines}
    assert list(lines) == ["a", "b"]
    assert lines["a"].get_xydata().tolist() == [[100, 29.5], [200, 29.0]]
    assert lines["b"].get_xydata().tolist() == [[100, 29.5]]
    (alone,) = panels["srgan"].lines
    assert alone.get_color() == lines["a"].get_color()  # of one run in every panel


def test_the_command_writes_table_and_plot(tmp_path, capsys):
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b", epochs=1, seed=7)
    out, plot = tmp_path / "runs.csv", tmp_path / "runs.png"
    main([str(tmp_path / "runs"), "-o", str(out), "--plot", str(plot)])
    printed = capsys.readouterr().out
    assert "b, srgan: unfinished, 1 of 2 epochs" in printed and "best psnr" in printed
    assert out.read_text().splitlines()[0] == "stage,run,seed,steps,epochs,minutes,psnr,best psnr"
    assert plot.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match="no run that can be shown"):
        main([str(tmp_path / "absent")])


def test_a_run_that_the_solver_trained_is_read(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, weight in (("a", 1.0), ("b", 0.25)):
        settings = run_settings(images, folder=f"checkpoints/{name}")
        settings["stages"] = {s: settings["stages"][s] for s in ("srresnet", "srgan")}
        settings["stages"]["srgan"]["content_weight"] = weight
        for stage in settings["stages"]:
            solver = build_solver(settings, stage, validation_pairs(settings))
            solver.fit()
    histories, problems = read_runs()
    assert problems == []
    rows = table(histories)
    assert list(rows.columns[:2]) == ["srgan.content_weight", "steps"]
    assert list(rows["srgan.content_weight"]) == ["", "", "1.0", "0.25"]
    assert set(rows["steps"]) == {solver.step} and set(rows["epochs"]) == {"2 of 2"}
    last = solver.history["valid"][-1]["psnr"]
    assert rows.loc["srgan", "b"]["psnr"] == pytest.approx(last, abs=5e-4)


def test_epochs_are_rows_with_the_means_over_their_steps():
    def row(step, epoch, loss, **more):
        rate = dict(learning_rate=1e-4)
        return dict(step=step, epoch=epoch, seconds=30.0 * step, content_loss=loss, **rate, **more)

    rows = [row(10, 0.4, 0.2), row(20, 0.8, 0.4), row(25, 1.0, 0.123456), row(35, 1.4, 3)]
    valid = [dict(step=25, epoch=1, psnr=27.123456, ssim=0.812345, checkerboard=1.2345)]
    shown = epochs({"train": rows, "valid": valid})
    assert shown.index.name == "epoch" and list(shown.index) == [1, 2]
    names = ["steps", "minutes", "psnr", "ssim", "checkerboard", "content_loss"]
    assert list(shown.columns) == names
    mean = (10 * 0.2 + 10 * 0.4 + 5 * 0.123456) / 25
    assert list(shown.loc[1]) == [25, 12.5, 27.123, 0.8123, 1.23, float(f"{mean:.4g}")]
    assert list(shown.loc[2][["steps", "minutes", "content_loss"]]) == [35, 17.5, 3]  # unfinished
    assert shown.loc[2][["psnr", "ssim"]].isna().all()
    alone = epochs({"train": rows, "valid": []})
    assert list(alone.columns) == ["steps", "minutes", "content_loss"] and len(alone) == 2
    assert epochs({"train": [], "valid": []}).empty


def test_epochs_of_what_the_solver_trained(images, tmp_path):
    solver = make("gan", images, tmp_path / "run", valid=True, log_every=3)
    solver.fit(2)
    shown = epochs(solver.history)
    assert list(shown["steps"]) == [4, 8]
    assert list(shown["psnr"]) == [round(row["psnr"], 3) for row in solver.history["valid"]]
    # of rows after the steps 6 and 8; the first epoch's end with the steps 3 and 4
    expected = sum(row["d_real"] for row in solver.history["train"][2:]) / 2
    assert shown["d_real"][2] == pytest.approx(expected, rel=1e-3)
    assert "learning_rate" not in shown and "seconds" not in shown


@pytest.mark.filterwarnings("error::FutureWarning")
def test_tables_warn_of_nothing(tmp_path):
    make_run(tmp_path / "a", srgan__content_weight=2.5)
    table(read_runs(tmp_path)[0])
