"""The solver against uninterrupted runs, autograd and plain arithmetic."""

import contextlib
import errno
import io
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import types
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import make_images
from killing import contents, count_lines, run_killed
from training import (
    KINDS,
    STAGES,
    a_batch,
    assert_same,
    at_step,
    last_checkpoint,
    make,
    run_settings,
)

import solver as solver_module
import utils
from datasets import PairDataset
from losses import grid_loss, lr_consistency_loss, make_texture_loss
from metrics import evaluate, mean
from models import Discriminator, SRResNet, load_generator
from presets import RUN, get_settings
from solver import GANSolver, PretrainSolver, build_solver, load_generators, train, validation_pairs
from super_resolve import super_resolve
from tools import acceleration, checkpoints, distributed, resumable, vgg_weights
from tools.acceleration import GraphedStep
from tools.resumable import TrainingDiverged

ROOT = Path(solver_module.__file__).parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
OURS = [solver_module, resumable, checkpoints, distributed, utils]  # where kills fall


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Faster for tiny networks; and a forked process has no threads to compute with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    """{stage: the folder of a finished training}; "muon": the GAN stage by the other optimizer."""
    folders = {}
    for name in [*STAGES, "muon"]:
        stage, settings = ("gan", {"optimizer": "muon"}) if name == "muon" else (name, {})
        folders[name] = tmp_path_factory.mktemp("whole") / name
        make(stage, images, folders[name], **settings).fit()
    return folders


def stop(solver, step, number=signal.SIGINT):
    """Train until a signal stops the solver after `step` more steps."""
    at_step(solver, step, lambda losses: os.kill(os.getpid(), number))
    with pytest.raises((KeyboardInterrupt, SystemExit)) as stopped:
        solver.fit()
    return stopped.value


# --- stopped, killed, resumed ---------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@POSIX
def test_stopped_within_an_epoch_and_resumed_is_bit_identical(
    stage, name, images, uninterrupted, tmp_path, capsys
):
    number = getattr(signal, name)
    solver, handler = make(stage, images, tmp_path / "run"), signal.getsignal(number)
    error = stop(solver, 5, number)
    assert type(error) is (KeyboardInterrupt if name == "SIGINT" else SystemExit)
    assert name == "SIGINT" or error.code == 128 + number
    told, printed = "stopped, all is saved: run again to go on", capsys.readouterr().out
    assert (told in str(error), told in printed) == (name == "SIGINT", name != "SIGINT")
    assert signal.getsignal(number) is handler
    assert (solver.step, solver.epoch, solver.batch) == (5, 1, 1)

    again = make(stage, images, tmp_path / "run", seed=9)  # other weights, until it resumes
    assert again.resume()
    assert (again.step, again.epoch, again.batch) == (5, 1, 1)
    again.fit()
    assert_same(tmp_path / "run", uninterrupted[stage])


def test_muon_resumes_to_the_bit(images, uninterrupted, tmp_path):
    stop(make("gan", images, tmp_path / "run", optimizer="muon"), 5)
    assert any(name.endswith(".momentum") for name in last_checkpoint(tmp_path / "run")[0])
    again = make("gan", images, tmp_path / "run", optimizer="muon", seed=9)
    again.resume()
    again.fit()
    assert_same(tmp_path / "run", uninterrupted["muon"])


@POSIX
def test_a_stop_is_saved_whenever_it_comes(images, tmp_path):
    def stop_twice(losses):  # as launchers do: the terminal's signal, and their own
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    solver = make("pretrain", images, tmp_path / "run", epochs=1)
    at_step(solver, 2, stop_twice)
    with pytest.raises(KeyboardInterrupt):
        solver.fit()
    assert last_checkpoint(tmp_path / "run")[1]["step"] == 2

    class StoppedAtTheEnd(PretrainSolver):
        def validate(self):
            if self.epoch:
                os.kill(os.getpid(), signal.SIGTERM)

    again = make("pretrain", images, tmp_path / "run", epochs=1, kind=StoppedAtTheEnd)
    again.resume()
    with pytest.raises(SystemExit):
        again.fit()
    facts = last_checkpoint(tmp_path / "run")[1]
    assert (facts["step"], facts["epoch"], facts["batch"]) == (4, 1, 0)


@POSIX
def test_a_lost_terminal_that_was_to_be_ignored_is_ignored(images, tmp_path):
    """`nohup` starts a training with this signal ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        solver = make("pretrain", images, tmp_path / "run", epochs=1)
        at_step(solver, 2, lambda losses: os.kill(os.getpid(), signal.SIGHUP))
        solver.fit()
        assert solver.epoch == 1 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@POSIX
def test_a_lost_terminal_is_saved_before_anything_is_shown_there(images, tmp_path, monkeypatch):
    """Whatever is written to it raises OSError."""

    class Lost(io.StringIO):
        def write(self, text):
            if lost:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    class EagerBar(utils.tqdm):
        def update(self, n=1):
            super().update(n)
            self.refresh()

    def lose(losses):
        lost.append(True)
        os.kill(os.getpid(), signal.SIGHUP)

    lost, solver = [], make("pretrain", images, tmp_path / "run", epochs=1)
    at_step(solver, 2, lose)
    monkeypatch.setattr(utils, "tqdm", EagerBar)
    with contextlib.redirect_stdout(Lost()), pytest.raises((OSError, SystemExit)):
        solver.fit()
    assert last_checkpoint(tmp_path / "run")[1]["step"] == 2


@POSIX
def test_an_impatient_second_stop_breaks_off(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(distributed.time, "monotonic", lambda: clock[0])
    broken_off = pytest.raises(KeyboardInterrupt, match="checkpoint before")
    with broken_off, distributed.deferred_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.exception
        clock[0] += distributed.IMPATIENT + 1
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")


class Killed(BaseException):
    """As a kill: nothing catches it, and nothing is saved because of it."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ["validate", "show"])
def test_a_validation_is_logged_once_wherever_a_kill_falls(stage, method, images, tmp_path):
    """Between saving and validating: it is made up. Between validating and saving: it is kept."""
    make(stage, images, tmp_path / "whole", valid=True).fit()

    class KilledThere(KINDS[stage]):
        pass

    def killed(self):
        if (self.epoch, self.batch) == (2, 0):
            raise Killed
        getattr(KINDS[stage], method)(self)

    setattr(KilledThere, method, killed)
    with pytest.raises(Killed):
        make(stage, images, tmp_path / "run", valid=True, kind=KilledThere).fit()
    lines = (tmp_path / "run" / "log.jsonl").read_text()
    assert lines.count('"psnr"') == (1 if method == "validate" else 2)
    assert len(last_checkpoint(tmp_path / "run")[1]["history"]["valid"]) == 1

    again = make(stage, images, tmp_path / "run", valid=True, seed=9)
    again.resume()
    again.fit(2)  # nothing is left to train
    assert [row["step"] for row in again.history["valid"]] == [4, 8]
    again.fit()
    assert_same(tmp_path / "run", tmp_path / "whole")
    whole, rows = (checkpoints.read_log(tmp_path / name, "valid") for name in ("whole", "run"))
    assert rows == whole and [row["step"] for row in rows] == [4, 8, 12]
    done = make(stage, images, tmp_path / "run", valid=True)
    done.resume()
    assert done.history == again.history  # with the last row, which no checkpoint holds
    checkpoints.files(tmp_path / "run")[-1].unlink()
    done.resume()
    assert [row["step"] for row in done.history["valid"]] == [4, 8]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_anywhere_and_resumed_is_bit_identical(stage, kills, images, tmp_path):
    epochs = 2 if kills < 10 else 24

    def training(name, **settings):
        def run():
            solver = make(stage, images, tmp_path / name, valid=True, epochs=epochs, **settings)
            solver.resume()
            solver.fit()

        return run

    training("whole")()
    # A checkpoint after each step: many kills fall into writing one.
    whole_run = count_lines(training("counted", checkpoint_minutes=0), OURS)
    only_resumed = count_lines(training("counted", checkpoint_minutes=0), OURS)
    # One kill in four falls into resuming. The others come a step later or more, and together gain
    # 0.6 of the run.
    one_step = (whole_run - only_resumed) // (4 * epochs)
    most = int(1.2 * (whole_run - only_resumed) / (kills - kills // 4)) - one_step
    moments, steps = random.Random(kills), set()
    killed = training("killed", checkpoint_minutes=0)
    for kill in range(kills):
        moment = only_resumed + moments.randrange(one_step, most)
        if kill % 4 == 1:
            moment = moments.randrange(1, only_resumed)
        assert run_killed(killed, OURS, moment), "it came to its end before it was killed"
        there = checkpoints.files(tmp_path / "killed")
        steps.add(last_checkpoint(tmp_path / "killed")[1]["step"] if there else None)
    assert len(steps) >= kills // 2  # it went on in between
    assert not run_killed(killed, OURS, sys.maxsize)

    assert_same(tmp_path / "killed", tmp_path / "whole")
    names = ("killed", "whole")
    weights = [load_generator(tmp_path / f"{name}.safetensors").state_dict() for name in names]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for kind in ("train", "valid"):
        logs = [checkpoints.read_log(tmp_path / name, kind) for name in names]
        assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
    assert not list((tmp_path / "killed").glob(".tmp*"))


def test_fit_means_until(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run")
    solver.fit(1)
    assert (solver.epoch, solver.step) == (1, 4)
    before = last_checkpoint(tmp_path / "run")[0]
    solver.fit(1)
    assert (solver.epoch, solver.step) == (1, 4)
    assert all(torch.equal(before[k], value) for k, value in solver.state()[0].items() if "." in k)
    solver.fit()
    solver.fit()
    assert (solver.epoch, solver.step) == (3, 12)


def test_fit_does_not_train_over_another_run(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"], tmp_path / "run")
    files = contents(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"resume\(\)"):
        make("pretrain", images, tmp_path / "run").fit()
    assert files == contents(tmp_path / "run")


def test_a_second_training_in_one_folder_is_refused_and_told_which_process_is_there(
    images, tmp_path
):
    program = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from pathlib import Path
from training import make
make("pretrain", Path(sys.argv[1]), Path(sys.argv[2])).fit()
"""
    answers, folder = [], tmp_path / "run"

    def start_another(losses):
        command, there = [sys.executable, "-c", program, images, folder], contents(tmp_path)
        answers.append(subprocess.run(command, capture_output=True, text=True, cwd=ROOT))
        assert contents(tmp_path) == there

    solver = make("pretrain", images, folder)
    at_step(solver, 6, start_another)
    solver.fit()
    assert answers[0].returncode == 1
    told = rf"BlockingIOError: process {os.getpid()} on .* is training in {folder} since "
    assert re.search(told, answers[0].stderr)
    make("pretrain", images, tmp_path / "alone").fit()
    assert_same(folder, tmp_path / "alone")
    solver.fit()  # the folder is free again


def test_a_training_that_another_one_has_overtaken_is_refused(images, uninterrupted, tmp_path):
    """Or it would go on from an older step, and the next run would resume from the other's."""
    stop(make("pretrain", images, tmp_path / "run"), 5)
    late, other = (make("pretrain", images, tmp_path / "run") for _ in range(2))
    late.resume()
    other.resume()
    other.fit()
    there = contents(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"checkpoint-000000008.*resume\(\)"):
        late.fit()
    assert contents(tmp_path / "run") == there
    assert late.resume() and late.step == 12
    late.fit()
    assert_same(tmp_path / "run", uninterrupted["pretrain"])


def test_a_refused_checkpoint_is_not_trained_over(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"], tmp_path / "run")
    solver = make("pretrain", images, tmp_path / "run", learning_rate=2e-3)
    with pytest.raises(ValueError, match="other settings"):
        solver.resume()
    with pytest.raises(FileExistsError):
        solver.fit()


# --- what a checkpoint holds, and who may resume from it ------------------------------------------


def test_changed_settings_are_named_and_refused(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"], tmp_path / "run")
    changed = make("pretrain", images, tmp_path / "run", learning_rate=2e-3, epochs=4)
    with pytest.raises(ValueError, match=r"(?s)epochs: 3 then, 4 now.*rate: 0\.001 then, 0\.002 "):
        changed.resume()
    assert changed.resume(allow_changes=True)
    changed.fit()
    assert changed.step == 16
    with pytest.raises(ValueError, match="patches_per_image: 4 then, 5 now"):
        make("pretrain", images, tmp_path / "run", patches=5).resume(False)


def test_bookkeeping_may_change(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["gan"], tmp_path / "run")
    bookkeeping = dict(log_every=7, keep_last=5, keep_every=1, checkpoint_minutes=1)
    assert make("gan", images, tmp_path / "run", **bookkeeping, batch_norm_batches=1).resume()


def test_other_pixels_under_the_same_names_are_refused(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"], tmp_path / "run")
    (tmp_path / "more").mkdir()
    more = make_images(tmp_path / "more", count=5)
    with pytest.raises(ValueError, match=r"train_images: 4 images, \w+ then, 5 images"):
        make("pretrain", more, tmp_path / "run").resume()

    (tmp_path / "other").mkdir()
    same_pixels = make_images(tmp_path / "other")
    assert make("pretrain", same_pixels, tmp_path / "run").resume()  # wherever they lie
    image = utils.read_image(tmp_path / "other" / "2.png")
    image[5, 6, 1] ^= 1
    utils.write_image(tmp_path / "other" / "2.png", image)
    changed = make("pretrain", same_pixels, tmp_path / "run")
    with pytest.raises(ValueError, match=r"train_images: 4 images, (\w+) then, 4 images, (?!\1)"):
        changed.resume()
    assert changed.resume(allow_changes=True)


@pytest.mark.parametrize(("then", "now"), [("gan", "muon"), ("muon", "gan")])
def test_another_optimizer_is_refused_or_starts_again(then, now, images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[then], tmp_path / "run")
    solver = make(
        "gan", images, tmp_path / "run", epochs=4, optimizer="muon" if now == "muon" else "adam"
    )
    with pytest.raises(ValueError, match=r"optimizer: \w+ then, \w+ now"):
        solver.resume()
    assert solver.resume(allow_changes=True)
    assert not any(optimizer.state for optimizer in solver.optimizers.values())
    saved = checkpoints.under("generator.", last_checkpoint(uninterrupted[then])[0])
    weights = solver.generator.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in weights.items())
    solver.fit()
    assert solver.step == 16


def test_another_precision_is_told(images, tmp_path, monkeypatch, capsys):
    """ "auto" is bf16 where that is fast: a run may move on, and its rounding with it."""
    for bf16 in (True, False):
        monkeypatch.setattr(acceleration, "computes_in_bf16", lambda device, bf16=bf16: bf16)
        solver = make("pretrain", images, tmp_path / "run", mixed_precision="auto")
        assert solver.resume() != bf16
        assert ("may not be bit-identical" in capsys.readouterr().out) != bf16
        solver.fit(1 if bf16 else 2)
    again = make("pretrain", images, tmp_path / "run", mixed_precision="auto")
    assert again.resume() and "bit-identical" not in capsys.readouterr().out


def test_another_batch_size_goes_on_after_the_same_part_of_the_epoch(images, tmp_path):
    stop(make("pretrain", images, tmp_path / "run"), 6)
    smaller = make("pretrain", images, tmp_path / "run", batch_size=2)  # eight batches an epoch
    smaller.resume(allow_changes=True)
    assert (smaller.epoch, smaller.batch, smaller.step) == (1, 4, 6)
    smaller.fit()
    assert (smaller.epoch, smaller.batch, smaller.step) == (3, 0, 6 + 4 + 8)
    epochs = [row["epoch"] for row in smaller.history["train"]]
    assert epochs == sorted(epochs)


def test_a_checkpoint_of_other_networks_is_refused(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"], tmp_path / "run")
    with pytest.raises(ValueError, match=r"checkpoint-000000012\.safetensors is of other networks"):
        make("pretrain", images, tmp_path / "run", blocks=2).resume()
    with pytest.raises(ValueError, match="of other networks"):
        make("gan", images, tmp_path / "run").resume(allow_changes=True)


DAMAGES = dict(
    truncated=lambda data: data[: len(data) // 2],
    flipped=lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    empty=lambda data: b"",
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage, images, uninterrupted, tmp_path
):
    shutil.copytree(uninterrupted["pretrain"], tmp_path / "run")
    older, newest = checkpoints.files(tmp_path / "run")
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    solver = make("pretrain", images, tmp_path / "run")
    with pytest.warns(UserWarning, match=newest.name):
        assert solver.resume()
    assert solver.last_checkpoint == older
    solver.fit()
    assert_same(tmp_path / "run", uninterrupted["pretrain"])

    for path in (older, newest):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="move the folder away"),
    ):
        make("pretrain", images, tmp_path / "run").resume()


class Malice:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_none_of_250_changed_bytes_in_checkpoint_and_generator_is_loaded(
    stage, uninterrupted, tmp_path
):
    random_bytes = random.Random(0)
    checkpoint = checkpoints.files(uninterrupted[stage])[-1]
    for source, load in [
        (checkpoint, checkpoints.read),
        (Path(f"{uninterrupted[stage]}.safetensors"), load_generator),
    ]:
        data, path = source.read_bytes(), tmp_path / source.name
        for _ in range(125):
            damaged = bytearray(data)
            damaged[random_bytes.randrange(len(data))] ^= random_bytes.randrange(1, 256)
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged"):
                load(path)


def test_a_checkpoint_with_code_in_it_runs_none(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"], tmp_path / "run")
    data = pickle.dumps(Malice(tmp_path / "marker"))
    assert pickle.loads(data) and (tmp_path / "marker").exists()  # it would
    (tmp_path / "marker").unlink()
    forged = tmp_path / "run" / "checkpoint-000000099.safetensors"
    for payload in (data, safetensors.torch.save({"x": torch.ones(1)})):
        forged.write_bytes(payload)
        with pytest.warns(UserWarning, match=forged.name):
            assert make("pretrain", images, tmp_path / "run").resume()
        assert not (tmp_path / "marker").exists()


def test_which_checkpoints_and_generators_are_kept(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", epochs=7, keep_last=3, keep_every=3)
    kept = {}

    def keep(solver):
        if solver.batch == 0:
            kept[solver.epoch] = deepcopy(solver.ema.state_dict())

    solver.fit(callback=keep)
    files = checkpoints.files(tmp_path / "run")
    assert [checkpoints.read(path)[1]["epoch"] for path in files] == [5, 6, 7]
    generators = sorted((tmp_path / "run").glob("epoch-*"))
    assert [path.name for path in generators] == ["epoch-003.safetensors", "epoch-006.safetensors"]
    for epoch, path in zip((3, 6), generators, strict=True):
        generator = load_generator(path)
        assert (generator.info["epoch"], generator.info["step"]) == (epoch, 4 * epoch)
        weights = generator.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in kept[epoch].items())


def test_what_a_killed_process_left_is_removed(images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-0123.safetensors").write_bytes(b"half a checkpoint")
    make("pretrain", images, tmp_path / "run", keep_last=1).fit(1)
    assert not list((tmp_path / "run").glob(".tmp-*"))
    assert list(contents(tmp_path / "run")) == ["checkpoint-000000004.safetensors", "log.jsonl"]


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_is_never_saved_and_the_way_out_is_one(stage, images, tmp_path):
    solver = make(stage, images, tmp_path / "run", log_every=100)

    def poison(losses):
        with torch.no_grad():
            next(solver.generator.parameters()).fill_(float("nan"))
        return {name: value * float("nan") for name, value in losses.items()}

    at_step(solver, 7, poison)
    with pytest.raises(
        TrainingDiverged,
        match=r"a loss is not finite at step 7 \(epoch 2\).*Halve learning_rate.*allow_changes=True"
        r".* resumes from .*checkpoint-000000004\.",
    ):
        solver.fit()
    with pytest.raises(TrainingDiverged):
        solver.save()
    for path in [*checkpoints.files(tmp_path / "run"), tmp_path / "run.safetensors"]:
        tensors = checkpoints.read(path)[0].values()
        assert all(value.isfinite().all() for value in tensors if value.is_floating_point())

    again = make(stage, images, tmp_path / "run", log_every=100, learning_rate=5e-4)
    assert again.resume(allow_changes=True) and again.step == 4
    again.fit()
    assert again.step == 12
    assert all(np.isfinite(list(row.values())).all() for row in again.history["train"])


def test_an_infinite_loss_is_not_saved_within_an_interval(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", log_every=100, checkpoint_minutes=0)
    at_step(solver, 3, lambda losses: {k: value * float("inf") for k, value in losses.items()})
    with pytest.raises(TrainingDiverged, match=r"a loss is not finite at step 3 .*-000000002"):
        solver.fit()


def test_an_infinite_weight_is_not_saved(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", epochs=1)
    at_step(solver, 4, lambda losses: solver.generator.tail.bias.data.fill_(float("inf")) is None)
    with pytest.raises(TrainingDiverged, match=r"tail\.bias is not finite at step 4.*-000000000"):
        solver.fit()
    assert last_checkpoint(tmp_path / "run")[1]["step"] == 0
    assert not (tmp_path / "run.safetensors").exists()


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("pretrain", torch.OutOfMemoryError("CUDA out of memory")),
        ("gan", RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 b")),
    ],
)
def test_out_of_memory_says_what_to_change(stage, error, images, tmp_path):
    solver = make(stage, images, tmp_path / "run")

    def full(losses):
        raise error

    at_step(solver, 6, full)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"batch_size=4: halve it \(or crop_size\).*-000000004.* valid"
    ):
        solver.fit()
    again = make(stage, images, tmp_path / "run", batch_size=2)
    assert again.resume(allow_changes=True) and again.step == 4
    again.fit()
    assert again.step == 4 + 2 * 8


@pytest.mark.parametrize("name", ["run/checkpoint-000000008.safetensors", "run.safetensors"])
def test_a_failed_write_leaves_the_checkpoint_before_valid(name, images, uninterrupted, tmp_path):
    """The system refuses files as large as a checkpoint, or even as a generator."""
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    solver = make("pretrain", images, tmp_path / "run")
    solver.fit(2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / name).stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"run: cannot be written \(.*Make room.* valid checkpoint is .*00008\."
        ) as failed:
            solver.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert all(after[path] == before[path] for path in before if "checkpoint" in path.name)
    assert after.keys() == before.keys() and not list(tmp_path.rglob(".tmp*"))

    again = make("pretrain", images, tmp_path / "run")
    again.resume()
    assert again.step == 8
    again.fit()
    assert_same(tmp_path / "run", uninterrupted["pretrain"])


def mount(folder, options):
    """Whether a file system in memory could be mounted there."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return (
        os.name == "posix"
        and not os.geteuid()
        and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.fixture
def small_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    if not mount(tmp_path / "disk", "size=256k"):
        pytest.skip("may not mount a small disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_valid(images, small_disk):
    solver = make("pretrain", images, small_disk / "run", keep_last=99)
    with pytest.raises(
        OSError, match=r"No space left on device.*last valid checkpoint is "
    ) as full:
        solver.fit(99)
    assert full.value.errno == errno.ENOSPC
    again = make("pretrain", images, small_disk / "run", keep_last=99)
    assert again.resume() and again.last_checkpoint == solver.last_checkpoint


def test_a_folder_that_cannot_be_made_fails_before_training(images, tmp_path):
    (tmp_path / "run").write_text("a file in its place")
    solver = make("pretrain", images, tmp_path / "run")
    with pytest.raises(OSError, match="run: cannot be written"):
        solver.fit()
    assert solver.step == 0


def test_a_read_only_folder_fails_before_training(images, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    mounted = False
    if os.access(folder, os.W_OK):  # permissions do not bind this user; a file system does
        mounted = mount(folder, "ro") or pytest.skip(
            "permissions do not bind this user, who may not mount either"
        )
    try:
        solver = make("pretrain", images, folder / "run")
        with pytest.raises(
            OSError, match=r"closed.run: cannot be written .*Make room, or make the folder writable"
        ):
            solver.fit()
        assert solver.step == 0
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


# --- the loop -------------------------------------------------------------------------------------


COSINE = [(1 + np.cos(np.pi * k / 8)) / 2 for k in range(8)]


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        (dict(schedule="constant"), [1] * 12),
        (dict(schedule="tenth"), [1] * 4 + [0.1] * 8),
        (dict(schedule="cosine"), [*COSINE, 0, 0, 0, 0]),
        (dict(schedule="constant", warmup_steps=4), [0.2, 0.4, 0.6, 0.8] + [1] * 8),
        (dict(schedule="tenth", warmup_steps=1), [0.5, 1, 1, 1] + [0.1] * 8),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_learning_rate_is_its_formula(settings, factors, images, tmp_path):
    """Of both optimizers at each step; two epochs are planned, a third shows what comes after."""
    solver = make("gan", images, tmp_path / "run", epochs=2, learning_rate=2e-3, **settings)
    rates, update = {"generator": [], "discriminator": []}, solver.update

    def observed(name, loss):
        rates[name] += [group["lr"] for group in solver.optimizers[name].param_groups]
        update(name, loss)

    solver.update = observed
    solver.fit(3)
    for name in rates:
        assert rates[name] == pytest.approx([2e-3 * factor for factor in factors], abs=1e-12)
    assert solver.history["train"][-1]["learning_rate"] == rates["generator"][-1]


def test_the_average_is_of_weights_and_statistics(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", epochs=1, ema_decay=0.3)
    expected = {name: value.clone() for name, value in solver.generator.state_dict().items()}
    weights = []

    def keep(losses):
        weights.append(deepcopy(solver.generator.state_dict()))
        at_step(solver, 1, keep)

    at_step(solver, 1, keep)
    solver.fit()
    assert len(weights) == 4
    for step, now in enumerate(weights, start=1):
        decay = min(0.3, (1 + step) / (10 + step))  # short at first
        for name in expected:
            if now[name].is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * now[name]
    averages = {k: v for k, v in solver.ema.state_dict().items() if v.is_floating_point()}
    assert any("running_var" in name for name in averages)
    for name, average in averages.items():
        torch.testing.assert_close(average, expected[name])
    assert not solver.ema.training and not any(p.requires_grad for p in solver.ema.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_validation_is_of_the_generator_that_is_saved(stage, images, tmp_path):
    solver = make(stage, images, tmp_path / "run", valid=True)
    solver.fit()
    saved = load_generator(tmp_path / "run.safetensors")
    assert (saved.info["stage"], saved.info["step"], saved.info["images"]) == ("run", 12, 4)
    assert saved.info["settings"] == solver.settings

    def upscale(lr):
        return super_resolve(saved, lr, progress=False)

    scores = mean(evaluate(upscale, solver.valid_pairs, progress=False))
    row = solver.history["valid"][-1]
    assert row == {"step": 12, "epoch": 3, "psnr": scores["psnr"], "ssim": scores["ssim"]}
    lr = solver.valid_pairs[0][1]
    assert np.array_equal(solver.upscale(lr), upscale(lr))


def test_no_pairs_mean_no_validation(images, tmp_path, capsys):
    solver = make("gan", images, tmp_path / "run", valid=False)
    solver.fit(1)
    assert solver.history["valid"] == [] and "PSNR" not in capsys.readouterr().out


def test_history_rows_are_means_and_the_log_is_the_history(images, tmp_path):
    losses = []
    solver = make("pretrain", images, tmp_path / "run", valid=True)

    def keep(result):
        losses.append(result["content_loss"].item())
        at_step(solver, 1, keep)

    at_step(solver, 1, keep)
    solver.fit()
    rows = solver.history["train"]
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 12]  # and at the end of an epoch
    assert [row["epoch"] for row in rows] == [0.75, 1, 1.5, 2, 2.25, 3]
    ends = [0, *(row["step"] for row in rows)]
    means = [np.mean(losses[a:b]) for a, b in itertools.pairwise(ends)]
    assert [row["content_loss"] for row in rows] == pytest.approx(means, rel=1e-5)
    valid = [(row["step"], row["epoch"]) for row in solver.history["valid"]]
    assert valid == [(4, 1), (8, 2), (12, 3)]
    for kind in solver.history:
        assert checkpoints.read_log(tmp_path / "run", kind) == solver.history[kind]


def test_the_callback_begins_and_follows_each_row_and_each_epoch(images, tmp_path):
    seen = []

    def look(solver):
        seen.append((solver.epoch, solver.batch, solver.step, len(solver.history["train"])))

    make("pretrain", images, tmp_path / "run").fit(2, callback=look)
    first = [(0, 0, 0, 0), (0, 3, 3, 1), (0, 4, 4, 2), (1, 0, 4, 2)]
    assert seen == [*first, (1, 2, 6, 3), (1, 4, 8, 4), (2, 0, 8, 4)]
    again = make("pretrain", images, tmp_path / "run")
    again.resume()
    seen.clear()
    again.fit(2, callback=look)  # nothing is left to do
    assert seen == [(2, 0, 8, 4)]


def test_what_was_left_to_validate_is_shown_after_the_pictures(images, tmp_path, capsys):
    make("pretrain", images, tmp_path / "run").fit(1)
    seen, again = [], make("pretrain", images, tmp_path / "run", valid=True)
    again.resume()
    capsys.readouterr()

    def look(solver):
        seen.append((len(solver.history["valid"]), "after epoch 1" in capsys.readouterr().out))

    again.fit(1, callback=look)
    assert seen == [(0, False), (1, True)]


def test_lines_stand_above_the_bar_not_behind_it(images, tmp_path, capsys):
    make("pretrain", images, tmp_path / "run", valid=True).fit()
    lines = capsys.readouterr().out.splitlines()  # also at carriage returns
    said = [line for line in lines if "after epoch" in line]
    assert len(said) == 3 and all(line.startswith("after epoch") for line in said)
    assert "run: epoch 3/3: 100%" in lines[-1]  # the last thing is the bar


def test_the_bar_runs_over_all_steps_of_a_stage(images, tmp_path, capsys):
    error = stop(make("pretrain", images, tmp_path / "run"), 6)
    text = capsys.readouterr().out
    assert "run: epoch 2/3" in text and " 6/12 " in text
    assert str(error) == "stopped, all is saved: run again to go on"
    again = make("pretrain", images, tmp_path / "run")
    again.resume()
    again.fit()
    text = capsys.readouterr().out
    assert "after epoch 1 and 2 batches." in text
    assert "run: epoch 3/3" in text and " 6/12 " in text and " 12/12 " in text
    again.fit()
    assert capsys.readouterr().out == ""


def test_two_solvers_with_different_precision_in_one_process(images, tmp_path):
    kinds = {}
    for count, name in enumerate(("no", "bf16", "no")):
        solver = make("gan", images, tmp_path / f"{count}", mixed_precision=name, epochs=1)
        solver.generator.head[0].register_forward_hook(
            lambda module, x, y, name=name: kinds.update({name: y.dtype})
        )
        solver.fit()
        assert all(p.dtype == torch.float32 for p in solver.generator.parameters())
    assert kinds == {"no": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def compiler(monkeypatch):
    """Where torch.compile has what it needs. It keeps kernels: a second run of a test is faster."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not acceleration.can_compile(torch.device("cpu")):
            pytest.skip("torch.compile has no compiler here")
    with torch._inductor.config.patch(compile_threads=1):  # no pool of processes
        yield
    torch._dynamo.reset()


class FewKernels(SRResNet):
    """Quickly compiled."""

    def __init__(self):
        super().__init__(1, 4)
        # A bias would follow the rounding of its zero gradient.
        self.head = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.blocks, self.after_blocks = torch.nn.BatchNorm2d(4), torch.nn.PReLU()
        self.upsample, self.tail = torch.nn.Conv2d(4, 48, 3, padding=1), torch.nn.Identity()

    def forward(self, lr):
        return F.pixel_shuffle(self.upsample(self.after_blocks(self.blocks(self.head(lr)))), 4)


class RecordedStep(GraphedStep):
    """A CUDA graph on the CPU: it repeats the step on the memory that it was captured with."""

    solver = None

    def capture(self, lr, hr):
        tensors, _ = self.solver.state()
        before = {name: value.clone() for name, value in tensors.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "CUDAGraph", lambda: self)
            patch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
            super().capture(lr, hr)
        with torch.no_grad():  # recording computes nothing
            for name, value in tensors.items():
                value.copy_(before[name])
        self.replays = 0

    def replay(self):
        self.replays += 1
        for name, loss in self.run(*self.inputs).items():
            self.losses[name].copy_(loss)


@pytest.mark.parametrize(
    ("patches", "stopped_at", "replays"),
    [
        (5, None, 9 - 3 - 2),  # epochs of batches of 8, 8 and 4: three plain steps, two smaller
        (5, 7, None),
        (7, None, 2 * 3),  # 8, 8, 8 and 4, which is captured first, then replaced
    ],
)
def test_a_graphed_training_is_the_plain_one(
    patches, stopped_at, replays, images, tmp_path, monkeypatch
):
    settings = dict(patches=patches, batch_size=8, grid_weight=1.0, lr_consistency_weight=1.0)
    settings |= dict(discriminator_warmup_steps=6, log_every=1, crop=32)
    settings |= dict(learning_rate=2**-10, schedule="constant")  # equal in float32 and float64
    make("gan", images, tmp_path / "plain", **settings).fit()
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(solver_module, "GraphedStep", RecordedStep)
    monkeypatch.setattr(GANSolver, "can_graph", lambda solver: True)

    def stop(solver):
        if solver.step == stopped_at and solver.last_checkpoint.stem.endswith("000000"):
            signal.raise_signal(signal.SIGINT)

    for _ in range(2):
        solver = make("gan", images, tmp_path / "graphed", **settings, compile=True)
        monkeypatch.setattr(RecordedStep, "solver", solver)
        solver.resume()
        with contextlib.suppress(KeyboardInterrupt):
            solver.fit(callback=stop)
        if not stopped_at:
            assert solver.step_once.replays == replays
            break
    facts = [last_checkpoint(tmp_path / name)[1] for name in ("plain", "graphed")]
    for fact in facts:
        del fact["identity"]["compile"]
    assert facts[0] == facts[1]
    tensors = [last_checkpoint(tmp_path / name)[0] for name in ("plain", "graphed")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_compiled_is_nearly_the_same_and_resumes_to_the_bit(compiler, images, tmp_path):
    """Batches of eight and of four: the last one of an epoch has another shape, and is resumed."""
    settings = dict(patches=3, batch_size=8, epochs=2, schedule="constant", learning_rate=1e-4)

    def few(name, seed=0, **more):
        utils.seed_everything(seed)
        return make(
            "pretrain", images, tmp_path / name, generator=FewKernels(), **settings, **more
        )  # fmt: skip

    whole, plain = few("whole", compile=True), few("plain")
    for solver in (whole, plain):
        solver.fit()
    assert whole.generator._compiled_call_impl and not plain.generator._compiled_call_impl
    weights = [solver.generator.state_dict() for solver in (whole, plain)]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)

    torch._dynamo.reset()  # what a new process has not yet compiled
    stop(few("stopped", compile=True), 3)
    torch._dynamo.reset()
    again = few("stopped", seed=9, compile=True)
    assert again.resume() and (again.step, again.batch) == (3, 1)
    again.fit()
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_a_cpu_compiles_the_generator_and_not_the_discriminator(images, tmp_path, monkeypatch):
    """Nothing is compiled before the first step."""
    monkeypatch.setattr("solver.can_compile", lambda device: True)
    networks = make("gan", images, tmp_path / "run", compile=True).unwrapped
    compiled = {name for name, network in networks.items() if network._compiled_call_impl}
    assert compiled == {"generator"}


def test_where_it_cannot_compile_it_goes_on_without(images, tmp_path, monkeypatch):
    def no_compiler(*arguments, **settings):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(
        UserWarning,
        match=r"torch.compile does not work here \(.*compiler found.*: going on without",
    ):
        solver = make("pretrain", images, tmp_path / "run", compile=True)
    assert not solver.generator._compiled_call_impl
    solver.fit()
    assert solver.step == 12


def test_the_loss_scale_of_fp16_is_part_of_the_checkpoint(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", mixed_precision="fp16")
    solver.fit(1)
    scale = solver.precision.scaler.get_scale()
    solver.precision.scaler.update(scale / 4)
    solver.fit(2)
    again = make("pretrain", images, tmp_path / "run", mixed_precision="fp16")
    assert again.precision.scaler.get_scale() != scale / 4
    again.resume()
    assert again.precision.scaler.get_scale() == scale / 4 == solver.precision.scaler.get_scale()


class Third(PretrainSolver):
    """Two updates in a step, by the mean absolute error."""

    def training_step(self, lr, hr):
        first = F.l1_loss(self.networks["generator"](lr), hr)
        self.update("generator", first)
        second = F.l1_loss(self.networks["generator"](lr), hr)
        self.update("generator", second)
        return {"content_loss": first, "change": (second - first).abs()}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_third_stage_is_one_method(precision, images, tmp_path):
    """Also in mixed precision the second forward is of the updated weights."""
    settings = dict(mixed_precision=precision, epochs=1, learning_rate=0.01, kind=Third)
    solver = make("pretrain", images, tmp_path / "run", **settings)
    solver.fit()
    assert all(row["change"] > 1e-4 for row in solver.history["train"])
    assert make("pretrain", images, tmp_path / "run", **settings).resume()


# --- the stages -----------------------------------------------------------------------------------


def test_srresnet_learns_one_batch(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", learning_rate=3e-3)
    lr, hr = a_batch(images)
    losses = [solver.training_step(lr, hr)["content_loss"].item() for _ in range(60)]
    assert losses[-1] < 0.4 * losses[0]


def steps_of_one_batch(solver, images, constant):
    """40 steps of a GAN on one batch, while one of its networks does not move."""
    for group in solver.optimizers[constant].param_groups:
        group["lr"] = 0.0
    lr, hr = a_batch(images)
    return [{k: v.item() for k, v in solver.training_step(lr, hr).items()} for _ in range(40)]


def test_the_discriminator_learns_to_tell_one_batch_apart(images, tmp_path):
    rows = steps_of_one_batch(make("gan", images, tmp_path / "run"), images, "generator")
    assert rows[0]["d_real"] == pytest.approx(0.5, abs=0.2)
    assert rows[0]["d_generated"] == pytest.approx(0.5, abs=0.2)
    assert rows[-1]["d_real"] > 0.9 and rows[-1]["d_generated"] < 0.1
    assert rows[-1]["discriminator_loss"] < 0.3 < 1 < rows[0]["discriminator_loss"]


def test_the_generator_learns_to_be_taken_for_real(images, tmp_path):
    weights = dict(content_weight=0.0, adversarial_weight=1.0)
    solver = make("gan", images, tmp_path / "run", **weights)
    rows = steps_of_one_batch(solver, images, "discriminator")
    assert rows[-1]["adversarial_loss"] < rows[0]["adversarial_loss"] - 0.01
    assert rows[-1]["d_generated"] > rows[0]["d_generated"]


def test_each_paragraph_moves_one_network(images, tmp_path):
    solver = make("gan", images, tmp_path / "run")
    order, update = [], solver.update

    def weights(name):
        return [p.detach().clone() for p in solver.unwrapped[name].parameters()]

    def gradients(name):
        return [p.grad.clone() for p in solver.unwrapped[name].parameters() if p.grad is not None]

    def equal(before, after):
        return len(before) == len(after) and all(map(torch.equal, before, after))

    def observed(name, loss):
        other = {"generator": "discriminator", "discriminator": "generator"}[name]
        before = weights(name), weights(other), gradients(other)
        update(name, loss)
        assert not equal(before[0], weights(name))
        assert equal(before[1], weights(other)) and equal(before[2], gradients(other))
        order.append(name)

    solver.update = observed
    for _ in range(2):
        solver.training_step(*a_batch(images))
    assert order == 2 * ["discriminator", "generator"]
    assert all(p.requires_grad for p in solver.unwrapped["discriminator"].parameters())


class InDoublePrecision(GANSolver):
    """So exact that what remains between two ways to compute a step is a mistake in one."""

    def __init__(self, networks, *arguments):
        networks = {name: network.double() for name, network in networks.items()}
        super().__init__(networks, *arguments)

    def training_step(self, lr, hr):
        return super().training_step(lr.double(), hr.double())


def test_the_gan_step_is_that_of_the_paper_written_out(images, tmp_path):
    """Three steps of a plain loop: equations 2 and 3, Adam at 1e-4, raw losses."""
    solver = make(
        "gan", images, tmp_path / "run", kind=InDoublePrecision, batch_norm_batches=0, epochs=1,
        schedule="constant", content_weight=2.0, adversarial_weight=0.5, log_every=1,
        learning_rate=1e-4, patches=3,
    )  # fmt: skip
    utils.seed_everything(0)
    generator, discriminator = SRResNet(1, 4).double(), Discriminator(2).double()
    g_adam, d_adam = (
        torch.optim.Adam(network.parameters(), lr=1e-4) for network in (generator, discriminator)
    )
    expected = []
    for lr, hr in solver.loader.epoch(0):
        lr, hr = lr.double(), hr.double()
        sr = generator(lr)
        real = torch.sigmoid(discriminator(hr))
        generated = torch.sigmoid(discriminator(sr.detach()))
        d_loss = -(real.log().mean() + (1 - generated).log().mean())
        d_adam.zero_grad()
        d_loss.backward()
        d_adam.step()

        content = ((2 * sr - 2 * hr) ** 2).mean()  # of images in [-1, 1]
        adversarial = -torch.sigmoid(discriminator(sr)).log().mean()
        perceptual = 2.0 * content + 0.5 * adversarial
        g_adam.zero_grad()
        perceptual.backward()
        g_adam.step()
        expected.append(
            dict(
                perceptual_loss=perceptual.item(),
                content_loss=content.item(),
                adversarial_loss=adversarial.item(),
                discriminator_loss=d_loss.item(),
                d_real=real.mean().item(),
                d_generated=generated.mean().item(),
                content_to_adversarial=(2.0 * content / (0.5 * adversarial)).item(),
            )
        )
    solver.fit()
    bookkeeping = {"step", "epoch", "seconds", "learning_rate"}
    rows = [{k: row[k] for k in row.keys() - bookkeeping} for row in solver.history["train"]]
    assert len(rows) == 3
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)  # sums are float32
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        weights = solver.unwrapped[name].state_dict()
        for key, value in network.state_dict().items():
            # Losses are float32: what follows is within a hundredth of Adam's step.
            torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-6)


def test_the_additions_to_the_loss_are_raw_in_the_history_and_move_the_generator(
    images, tmp_path, vgg_folder, monkeypatch
):
    monkeypatch.setattr(vgg_weights, "FOLDER", vgg_folder)
    settings = dict(epochs=1, content_weight=0.0, adversarial_weight=0.0, patches=1, crop=32)
    weights = dict(grid_weight=2.0, lr_consistency_weight=3.0, texture_weight=0.5)
    solver = make("gan", images, tmp_path / "run", **settings, **weights)
    lr, hr = next(solver.loader.epoch(0))
    generator = deepcopy(solver.generator)
    sr = generator(lr)
    expected = {"grid_loss": grid_loss(sr, hr), "lr_consistency_loss": lr_consistency_loss(sr, lr)}
    expected["texture_loss"] = make_texture_loss("mse", "max", "torchvision", "cpu")(sr, hr)
    total = 2.0 * expected["grid_loss"] + 3.0 * expected["lr_consistency_loss"]
    (total + 0.5 * expected["texture_loss"]).backward()
    solver.fit()
    (row,) = solver.history["train"]
    for name, value in expected.items():
        assert row[name] == pytest.approx(value.item(), rel=1e-5)
    for trained, wanted in zip(solver.generator.parameters(), generator.parameters(), strict=True):
        assert torch.allclose(trained.grad, wanted.grad, atol=1e-7)
    without = make("gan", images, tmp_path / "without", **settings)
    without.fit()
    assert not without.history["train"][0].keys() & expected.keys()


WARM_UP = dict(discriminator_warmup_steps=7, epochs=1)  # an epoch has four batches


def test_the_warm_up_trains_the_discriminator_alone(images, tmp_path):
    solver = make("gan", images, tmp_path / "run", **WARM_UP)
    before = {name: deepcopy(network) for name, network in solver.unwrapped.items()}

    seen, step = [], solver.training_step

    def look_and_train(lr, hr):
        seen.append({name: same_weights(solver.unwrapped[name], before[name]) for name in before})
        return step(lr, hr)

    solver.training_step = look_and_train
    solver.fit()
    assert seen[0] == {"generator": True, "discriminator": False}
    rows = solver.history["warmup"]
    assert [(row["step"], row["warmup_step"]) for row in rows] == [(0, 3), (0, 6), (0, 7)]
    assert rows[0].keys() == {"step", "warmup_step", "discriminator_loss", "d_real", "d_generated"}
    assert [row["step"] for row in solver.history["train"]] == [3, 4]
    assert checkpoints.read_log(tmp_path / "run", "warmup") == rows


@pytest.mark.parametrize("after", [1, 5, 7, 9])
@POSIX
def test_stopped_in_the_warm_up_and_resumed_is_bit_identical(after, images, tmp_path):
    make("gan", images, tmp_path / "whole", **WARM_UP).fit()
    solver = make("gan", images, tmp_path / "run", **WARM_UP)
    step, done = solver.discriminator_step, itertools.count(1)

    def counted(sr, hr):
        if next(done) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return step(sr, hr)

    solver.discriminator_step = counted
    with pytest.raises(KeyboardInterrupt):
        solver.fit()
    assert solver.warmup_step + solver.step == after
    again = make("gan", images, tmp_path / "run", seed=9, **WARM_UP)
    again.resume()
    again.fit()
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_frozen_layers_stay_and_the_others_move(images, tmp_path):
    settings = dict(frozen_layers=["upsample", "tail"], optimizer="muon")
    solver = make("gan", images, tmp_path / "run", **settings)
    before = {name: value.clone() for name, value in solver.generator.named_parameters()}
    solver.fit(1)
    again = make("gan", images, tmp_path / "run", **settings, seed=9)
    assert again.resume()
    again.fit(2)
    for now in (solver, again):
        moved = {k for k, p in now.generator.named_parameters() if not torch.equal(p, before[k])}
        assert moved == {name for name in before if not name.startswith(("upsample.", "tail."))}
    with pytest.raises(ValueError, match="no module 'last'"):
        make("gan", images, tmp_path / "other", frozen_layers=["last"])


# --- a run ----------------------------------------------------------------------------------------


def same_weights(network, other):
    weights, others = network.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(weights[k], others[k]) for k in weights
    )


def test_srgan_starts_from_srresnet_and_the_base_mode_at_random(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = run_settings(images, seed=3)
    with pytest.raises(FileNotFoundError, match=r"checkpoints.tiny.srresnet\.safetensors"):
        build_solver(settings, "srgan")
    build_solver(settings, "srresnet").fit()
    srresnet = load_generator("checkpoints/tiny/srresnet.safetensors")
    assert same_weights(build_solver(settings, "srgan").generator, srresnet)
    base = build_solver(settings, "base").generator
    utils.seed_everything(3)
    assert same_weights(base, SRResNet(1, 4))
    assert type(build_solver(settings, "srresnet")) is PretrainSolver
    assert type(build_solver(settings, "base")) is GANSolver


def test_the_notebook_is_the_command_line_to_the_bit(images, tmp_path, monkeypatch):
    """A loop over the stages with a callback, and `python solver.py settings.json`."""
    for way in ("notebook", "command"):
        (tmp_path / way).mkdir()
    settings = run_settings(images)
    (tmp_path / "command" / "mine.json").write_text(json.dumps(settings))
    command = [sys.executable, ROOT / "solver.py", "mine.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path / "command", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PSNR") == 6 and "srgan: epoch 2/2" in done.stdout

    monkeypatch.chdir(tmp_path / "notebook")
    valid_pairs = validation_pairs(settings)
    shown = []
    for stage in settings["stages"]:
        torch.seed()  # what other cells do between them does not matter
        solver = build_solver(settings, stage, valid_pairs)
        solver.fit(callback=lambda solver: shown.append(solver.upscale(valid_pairs[0][1])))
    assert len(shown) == 3 * (1 + 4 + 2)
    for stage in settings["stages"]:
        folders = [tmp_path / way / "checkpoints" / "tiny" for way in ("notebook", "command")]
        assert_same(*[folder / stage for folder in folders])
        notebook, command = (load_generator(folder / f"{stage}.safetensors") for folder in folders)
        assert same_weights(notebook, command)
        written = json.loads((folders[1] / "settings.json").read_text())
        assert written == {**RUN, **settings}


def test_the_stopped_command_ends_in_one_line(images, tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt(distributed.STOPPED)

    monkeypatch.setattr(solver_module, "train", stopped)
    monkeypatch.setattr(sys, "argv", ["solver.py", "quick"])
    with pytest.raises(SystemExit) as ended:
        solver_module.main()
    assert ended.value.code == 130
    assert capsys.readouterr().out == "stopped, all is saved: run again to go on\n"


def test_the_generators_of_a_run_are_named_and_missing_ones_told(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings = run_settings(images)
    for stage in ("srresnet", "base"):
        build_solver(settings, stage).fit()
    capsys.readouterr()
    generators = load_generators(settings)
    assert list(generators) == ["SRResNet", "base mode"]
    assert capsys.readouterr().out.startswith("SRGAN: checkpoints/tiny/srgan.safetensors is not")
    for method, stage in (("SRResNet", "srresnet"), ("base mode", "base")):
        saved = load_generator(f"checkpoints/tiny/{stage}.safetensors")
        assert same_weights(generators[method].cpu(), saved)
        assert generators[method].info["stage"] == stage


def test_a_run_that_is_done_is_resumed_and_trains_nothing(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = run_settings(images)
    train(settings)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    capsys.readouterr()
    train(settings)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    text = capsys.readouterr().out
    assert text.count("after epoch 2.") == 3 and "PSNR" not in text


def test_the_command_line_names_what_is_wrong_and_allows_changes(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["solver.py", *arguments])
        solver_module.main()

    with pytest.raises(SystemExit, match=r"^error: there is no preset 'aftenoon'; there are quick"):
        run("aftenoon")
    settings = run_settings(images)
    del settings["stages"]["srgan"], settings["stages"]["base"]
    Path("mine.json").write_text(json.dumps(settings))
    run("mine.json")
    settings["stages"]["srresnet"]["learning_rate"] = 2e-4
    Path("mine.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match=r"(?s)^error: .*learning_rate: 0\.0001 then, 0\.0002 now"):
        run("mine.json")
    run("mine.json", "--allow-changes")
    settings["train_list"] = "nowhere.csv"
    Path("mine.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match=r"^error: nowhere\.csv"):
        run("mine.json")


def test_a_validation_image_too_small_to_score_is_named_before_training(tmp_path):
    images = make_images(tmp_path, count=1, height=16, width=64)
    with pytest.raises(ValueError, match="0: 64 x 16 pixels are too few to score, 19 a side"):
        validation_pairs({**RUN, "valid_list": str(images)})
    images = make_images(tmp_path, count=1, height=20, width=64)
    [(_, _, hr)] = validation_pairs({**RUN, "valid_list": str(images)})
    assert evaluate(lambda lr: hr, [("0", hr[::4, ::4], hr)], progress=False)


@pytest.mark.parametrize(
    "name, values", [("generator", {"blocks": 2}), ("discriminator", {"num_channels": "8"})]
)
def test_wrong_arguments_of_a_network_are_named(name, values, images, tmp_path):
    settings = run_settings(images, folder=str(tmp_path), **{name: values})
    with pytest.raises(ValueError, match=r"generator and discriminator: .*(blocks|str)"):
        build_solver(settings, "base" if name == "discriminator" else "srresnet")


def test_the_validation_pairs_are_the_first_of_their_list(images):
    settings = {**get_settings("quick"), "valid_list": str(images), "num_valid_images": 2}
    pairs, all_pairs = validation_pairs(settings), list(PairDataset(images))
    assert [name for name, _, _ in pairs] == [name for name, _, _ in all_pairs][:2]
    assert all(np.array_equal(pairs[k][i], all_pairs[k][i]) for k in (0, 1) for i in (1, 2))
    assert validation_pairs({**settings, "num_valid_images": 0}) == []
