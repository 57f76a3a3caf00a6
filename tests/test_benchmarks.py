"""The benchmarks' arithmetic: rows of the table, counted operations, seconds of the parts."""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import trained_generator
from torch import nn
from training import make

import presets
import utils
from models import SRResNet, VGGFeatures

FOLDER = Path(utils.__file__).parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """benchmark(name): one of the scripts, imported."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_row_has_medians_and_the_median_of_each_round_s_ratio(benchmark, capsys):
    # One slow round of both: the quotient of the medians would be 1.5.
    ours, theirs = [2.0, 6.0, 3000.0], [2.0, 4.0, 1000.0]
    benchmark("table").compare("reading", "patches/s", ours, {"theirs": theirs, "same": ours})
    rows = [cells(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["reading", "patches/s", "6", "4", "theirs", "1.5 times"]
    assert rows[1] == ["reading", "patches/s", "6", "6", "same", "1 times"]
    benchmark("table").compare("x", "y", [1.0, 9.0, 4.0], {"z": [2.0, 3.0, 1.0]})
    assert cells(capsys.readouterr().out)[2:] == ["4", "2", "z", "3 times"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345, "0.0123"), (4.564, "4.56"), (78_912.3, "78,900"), (0.5, "0.5")]
)
def test_numbers_have_three_digits(value, text, benchmark):
    assert benchmark("table").number(value) == text


def test_the_table_has_every_script_s_rows_and_names_the_one_that_failed(
    benchmark, tmp_path, monkeypatch, capfd
):
    table = benchmark("table")
    monkeypatch.setattr(table, "HERE", tmp_path)
    (tmp_path / "a.py").write_text("print('said before')\nprint('| what | u | 1 | 2 | way | 3 |')")
    (tmp_path / "b.py").write_text("print('| lost | u | 1 | 2 | way | 3 |')\nraise SystemExit(1)")
    assert table.main(["a.py", "b.py", "a.py"]) == 1
    out = capfd.readouterr().out
    lines = out[out.index(f"PyTorch {torch.__version__}") :].splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ")]
    row = ["what", "u", "1", "2", "way", "3"]
    assert rows[0] == list(table.TITLES) and set(rows[1][0]) == {"-"} and rows[2:] == [row, row]
    assert len({len(line) for line in lines if line.startswith("| ")}) == 1  # aligned
    assert lines[-1].startswith("b.py failed") and "said before" in out


def conv_flops(height, width, conv):
    """Two for each multiply-add of a convolution whose output has this size."""
    return 2 * height * width * conv.weight.numel()


def test_the_operations_of_srresnet_are_counted_by_hand(benchmark, tmp_path):
    """Forward, and backward to inputs and weights: three times; the first layer has no input's."""
    network, forward, first = SRResNet(), 0, None
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            # The last layer works at 96, the second sub-pixel convolution at 48, the rest at 24.
            side = 96 if name == "tail" else 48 if name.startswith("upsample.1") else 24
            count = conv_flops(side, side, module)
            first, forward = first or count, forward + count
    vgg = benchmark("data").random_vgg(16, tmp_path / "vgg16.pth")
    flops = benchmark("train").flops_per_patch("srresnet", vgg)
    assert flops == 3 * forward - first
    assert 16 * flops == pytest.approx(123e9, rel=0.01)


@pytest.mark.parametrize("depth", [16, 19])
def test_random_vgg_weights_fit_and_keep_features_as_large_as_the_image(benchmark, depth, tmp_path):
    path = benchmark("data").random_vgg(depth, tmp_path / "vgg.pth")
    features = VGGFeatures(2, 2, depth=depth, weights=path)(torch.rand(1, 3, 32, 32))
    assert 0.1 < features.square().mean().sqrt() < 10


def test_a_part_s_seconds_are_without_those_of_the_parts_it_calls(benchmark, monkeypatch):
    train = benchmark("train")
    now = itertools.count()  # each reading is a second later
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(now))
    clock = train.Clock(torch.device("cpu"))
    inner = clock.timed("inner", lambda x: x + 1)
    outer = clock.timed("outer", lambda x: 2 * inner(inner(x)))
    assert outer(1) == 6
    clock.lap()
    # Between readings: rest, outer, inner, outer, inner, outer, rest.
    assert clock.seconds == {"rest": 2, "outer": 3, "inner": 2}


@pytest.mark.parametrize("stage", ["pretrain", "gan"])
def test_measuring_the_parts_trains_as_without_it(stage, benchmark, images, tmp_path):
    train = benchmark("train")
    solvers = [make(stage, images, tmp_path / name, patches=8) for name in ("a", "b")]
    seconds = train.parts(solvers[0], solvers[0].loader.epoch(0), 2)
    batches = solvers[1].loader.epoch(0)
    for _ in range(4):  # two of them to warm up
        train.step(solvers[1], *next(batches))
    weights = [solver.generator.state_dict() for solver in solvers]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    expected = {"data", "generator forward", "backward", "optimizers", "average", "rest"}
    if stage == "gan":
        expected |= {"VGG features of SR and HR", "discriminator forward, three times"}
    else:
        expected |= {"losses"}
    assert set(seconds) == expected


def test_tiles_with_an_overlap_equal_the_whole_where_it_is_the_receptive_field(benchmark):
    script, generator = (
        benchmark("benchmarks.super_resolve"),
        trained_generator(blocks=1, channels=4),
    )
    image = script.real_image(53, 71)
    tiles = script.overlapping_tiles(generator, image, side=20).astype(int)
    # Tiles this small are convolved by another library, which rounds differently.
    assert abs(tiles - script.whole(generator, image)).max() <= 1
    seams = script.overlapping_tiles(generator, image, side=20, overlap=2).astype(int)
    assert abs(seams - script.whole(generator, image)).max() > 3


@pytest.mark.parametrize("way", ["BARE", "RUNTIME", "OPENVINO", "ENGINE"])
def test_each_way_enlarges_as_super_resolve_does(benchmark, way):
    script, generator = (
        benchmark("benchmarks.super_resolve"),
        trained_generator(blocks=1, channels=4),
    )
    way = getattr(script, way)
    if way in script.NEEDS and not script.is_installed(script.NEEDS[way]):
        pytest.skip(f"{way} is not installed")
    image = script.real_image(20, 31)
    result = script.enlarger(way, generator)(image).astype(int)
    assert abs(result - script.enlarger(script.EXACT, generator)(image)).max() <= 1


def test_ways_that_are_not_installed_are_left_out_and_named(benchmark, monkeypatch, capfd):
    script = benchmark("benchmarks.super_resolve")
    monkeypatch.setattr(script, "is_installed", lambda package: False)
    ours = {script.EXACT: [script.BARE, script.RUNTIME], script.ENGINE: [script.OPENVINO]}
    monkeypatch.setattr(script, "SPEEDS", [(12, 16, 1, ours)])
    script.speed(None)
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("not installed, left out: ONNX Runtime, OpenVINO")
    assert [cells(line)[4] for line in out[1:]] == [script.BARE]
    assert cells(out[1])[0] == "enlarging 12 x 16"


def test_local_contrast_is_the_share_of_fine_detail(benchmark):
    local_contrast = benchmark("controls").local_contrast
    hr = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    gray = np.full_like(hr, 128)
    half = ((hr.astype(int) + 128) // 2).astype(np.uint8)
    assert local_contrast(hr, hr) == 1 and local_contrast(gray, hr) == 0
    assert local_contrast(half, hr) == pytest.approx(0.5, rel=0.01)
    hr[:, :48] = 128  # a window without detail has no say
    assert local_contrast(hr, hr) == 1


def test_every_control_differs_from_the_preset_in_settings_that_exist(benchmark):
    rows = benchmark("controls").ROWS
    for _, changes in rows.values():
        run = presets.get_settings("laptop")
        run["stages"]["srgan"] |= changes
        presets.check_settings(run)
    assert rows["texture"][1] == {}
    checked = presets.check_settings(presets.get_settings("paper"))["stages"]["srgan"]
    assert all(checked[name] == value for name, value in rows["paper"][1].items())
