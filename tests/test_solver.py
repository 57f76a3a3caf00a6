"""The solver against an uninterrupted run, autograd and plain arithmetic: stops, kills, faults, losses, modes."""

import csv
import errno
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

os.environ["ACCELERATE_USE_CPU"] = (
    "true"  # before the first solver: these tests are the CPU's, on every machine
)

import solver as solver_module
import utils
from datasets import PairDataset, PatchDataset
from imresize import imresize
from losses import CONTENT_WEIGHTS, content_weight
from models import Discriminator, SRResNet, load_generator
from solver import GANSolver, PretrainSolver, TrainingDiverged, content_loss
from tools import checkpoints as states
from tools import distributed as processes
from tools.checkpoints import read_newest
from utils import seed_everything, write_image

STAGES = ["pretrain", "gan"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


# --- tiny trainings --------------------------------------------------------------------------------------------------


def make_images(folder, count=4, height=48, width=64):
    """A list of smooth random images (small ones, enlarged)."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(count):
        hr = imresize(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), 8)
        write_image(folder / f"{k}.png", hr)
        write_image(folder / f"{k}_lr.png", imresize(hr, 1 / 4))
        rows.append((folder / f"{k}.png", folder / f"{k}_lr.png", width, height))
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("hr", "lr", "width", "height"), *rows])
    return folder / "list.csv"


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def make(stage, images, folder, *, seed=0, blocks=1, patches=4, valid=False, **settings):
    """A new solver, four batches an epoch: as a notebook's training cell builds it each time it is run."""
    settings = {
        "batch_size": 4,
        "epochs": 3,
        "learning_rate": 1e-3,
        "log_every": 3,
        "schedule": "cosine",
        **settings,
    }
    dataset = PatchDataset(
        images, crop_size=16, patches_per_image=patches, cache=images.parent / "cache"
    )
    pairs = [PairDataset(images)[0]] if valid else None
    seed_everything(seed)
    generator = SRResNet(blocks, 4)
    if stage == "pretrain":
        return PretrainSolver(generator, dataset, settings, folder, pairs)
    settings = {"content_loss": "mse", **settings}
    return GANSolver(generator, Discriminator(2), dataset, settings, folder, pairs)


def state_of(solver_or_folder):
    """All of a run's last state in its file but wall-clock time: ({name: tensor}, history and facts)."""
    _, tensors, facts = read_newest(getattr(solver_or_folder, "folder", solver_or_folder))
    history = json.loads(bytes(tensors.pop("history").tolist()))
    for row in history["train"]:
        del row["seconds"]
    return tensors, {**facts, "seconds": None, "history": history}


def assert_same(a, b):
    (tensors_a, facts_a), (tensors_b, facts_b) = state_of(a), state_of(b)
    assert tensors_a.keys() == tensors_b.keys()
    different = [name for name in tensors_a if not torch.equal(tensors_a[name], tensors_b[name])]
    assert not different
    for name in ("epoch", "batch", "step", "history", "python_random", "learning_rate_scale"):
        assert facts_a[name] == facts_b[name], name


def at_step(monkeypatch, solver, number, action):
    """Call action(losses) after the `number`-th update from now; it may return other losses."""
    original, count = type(solver).training_step, 0

    def training_step(self, lr, hr):
        nonlocal count
        losses = original(self, lr, hr)
        count += 1
        return (count == number and action(losses)) or losses

    monkeypatch.setattr(type(solver), "training_step", training_step)


@pytest.fixture(scope="session")
def uninterrupted(images, tmp_path_factory):
    """{stage: a finished training}; "muon": the GAN stage by the other optimizer."""
    solvers = {}
    for name in [*STAGES, "muon"]:
        stage, settings = ("gan", {"optimizer": "muon"}) if name == "muon" else (name, {})
        solvers[name] = make(stage, images, tmp_path_factory.mktemp("whole") / name, **settings)
        solvers[name].fit()
    return solvers


# --- stopped, killed, resumed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@POSIX
def test_stop_within_an_epoch_and_go_on(stage, name, images, uninterrupted, tmp_path, monkeypatch):
    solver = make(stage, images, tmp_path / "run")
    at_step(monkeypatch, solver, 6, lambda losses: os.kill(os.getpid(), getattr(signal, name)))
    handler = signal.getsignal(getattr(signal, name))
    with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit) as stopped:
        solver.fit()
    assert name == "SIGINT" or stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(getattr(signal, name)) is handler
    assert (solver.step, solver.epoch, solver.batch) == (6, 1, 2)

    again = make(
        stage, images, tmp_path / "run", seed=9
    )  # a new process would have drawn other weights
    assert again.resume()
    assert (again.step, again.epoch, again.batch) == (6, 1, 2)
    again.fit()
    assert_same(again, uninterrupted[stage])


@POSIX
def test_a_stop_is_saved_once_and_kept_to_the_end(images, tmp_path, monkeypatch):
    solver = make("pretrain", images, tmp_path / "run", epochs=1)

    def stop_twice(losses):  # as launchers do: the terminal's signal, and their own
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, solver, 2, stop_twice)
    with pytest.raises(KeyboardInterrupt):
        solver.fit()
    assert state_of(solver)[1]["step"] == 2

    again = make("pretrain", images, tmp_path / "run", epochs=1)
    again.resume()
    monkeypatch.setattr(
        again, "_validate", lambda: os.kill(os.getpid(), signal.SIGTERM)
    )  # in the last moment
    with pytest.raises(SystemExit):
        again.fit()
    assert (state_of(again)[1]["step"], state_of(again)[1]["epoch"]) == (4, 1)


@POSIX
def test_an_impatient_second_stop_breaks_off(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: clock[0])
    with pytest.raises(KeyboardInterrupt), processes.deferred_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.exception
        clock[0] += processes.IMPATIENT + 1
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")


def run_until_killed(stage, images, folder, kill_at, settings, report):
    """In a child process: train, and die by SIGKILL where the `kill_at`-th line of the project's own code would begin."""
    files = {module.__file__ for module in (solver_module, states, utils, processes)}
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.settrace(trace)
    solver = make(stage, images, folder, valid=True, **settings)
    solver.resume()
    solver.fit()
    sys.settrace(None)
    report.send(count)


@pytest.fixture(scope="session")
def fresh_process():
    """run(*arguments of run_until_killed) -> how many lines it began, or None if it was killed."""
    context = multiprocessing.get_context(
        "forkserver"
    )  # what is loaded once, every child has; this process's threads, none
    context.set_forkserver_preload(
        ["test_solver", "torch._dynamo"]
    )  # the latter is what the first optimizer loads
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()

    def run(*arguments):
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=run_until_killed, args=(*arguments, send))
        child.start()
        send.close()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        return receive.recv() if child.exitcode == 0 else None

    return run


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
@POSIX
def test_killed_anywhere_and_resumed_is_bit_identical(
    stage, kills, images, tmp_path, fresh_process
):
    epochs = 2 if kills < 10 else 12
    fresh_process(stage, images, tmp_path / "whole", None, {"epochs": epochs})

    often = {
        "epochs": epochs,
        "checkpoint_minutes": 0,
    }  # a state after each step: many kills fall into writing one
    whole_run = fresh_process(stage, images, tmp_path / "counted", None, often)
    only_resumed = fresh_process(stage, images, tmp_path / "counted", None, often)
    # One kill in three falls into resuming; the others come one step later or more, and together gain 0.6 of the run.
    one_step = (whole_run - only_resumed) // (4 * epochs)
    most = int(1.2 * (whole_run - only_resumed) / (kills - kills // 3)) - one_step
    moments, steps = random.Random(kills), set()
    for kill in range(kills):
        resuming = kill % 3 == 0
        moment = (
            moments.randrange(1, only_resumed)
            if resuming
            else only_resumed + moments.randrange(one_step, most)
        )
        killed = fresh_process(stage, images, tmp_path / "killed", moment, often)
        assert killed is None, "it came to its end before it was killed"
        steps.add(
            state_of(tmp_path / "killed")[1]["step"] if states.files(tmp_path / "killed") else None
        )
    assert len(steps) > kills // 2  # it went on in between
    assert fresh_process(stage, images, tmp_path / "killed", None, often)

    assert_same(tmp_path / "killed", tmp_path / "whole")
    weights = [
        load_generator(tmp_path / f"{name}.safetensors").state_dict()
        for name in ("killed", "whole")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    log = [
        json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in log if row["kind"] == "train"] == sorted(
        {row["step"] for row in log}
    )
    assert not list((tmp_path / "killed").glob(".tmp*"))


def test_fit_means_until(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run")
    solver.fit(1)
    assert (solver.epoch, solver.step) == (1, 4)
    before = state_of(solver)
    solver.fit(1)
    assert (solver.epoch, solver.step) == (1, 4)
    assert all(
        torch.equal(before[0][name], value)
        for name, value in solver._state()[0].items()
        if name != "history"
    )
    solver.fit()
    solver.fit()
    assert (solver.epoch, solver.step) == (3, 12)


def test_fit_does_not_train_over_another_run(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"].folder, tmp_path / "run")
    files = sorted(path.read_bytes() for path in (tmp_path / "run").iterdir())
    with pytest.raises(FileExistsError, match=r"resume\(\)"):
        make("pretrain", images, tmp_path / "run").fit()
    assert files == sorted(path.read_bytes() for path in (tmp_path / "run").iterdir())


@pytest.mark.parametrize("stage", STAGES)
def test_measure_leaves_no_trace(stage, images, uninterrupted, tmp_path):
    solver = make(stage, images, tmp_path / "run")
    assert solver.measure() > 0
    solver.fit(1)
    solver._sums = {"content_loss": torch.tensor(3.0)}
    before = deepcopy(solver._state())
    assert solver.measure(steps=2) > 0
    after = solver._state()
    assert before[1] == after[1]
    assert all(torch.equal(before[0][name], after[0][name]) for name in {*before[0], *after[0]})
    solver._sums = {}
    solver.fit()
    assert_same(solver, uninterrupted[stage])


def test_muon_goes_on_to_the_bit(images, uninterrupted, tmp_path, monkeypatch):
    solver = make("gan", images, tmp_path / "run", optimizer="muon")
    at_step(monkeypatch, solver, 6, lambda losses: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        solver.fit()
    assert any(name.endswith(".momentum") for name in state_of(solver)[0])
    again = make("gan", images, tmp_path / "run", optimizer="muon", seed=9)
    again.resume()
    again.fit(2)
    assert again.measure() > 0  # which puts a state back, too
    again.fit()
    assert_same(again, uninterrupted["muon"])


# --- what a state holds, and who may go on from it -------------------------------------------------------------------


def test_changed_settings_and_lists_are_told_and_refused(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"].folder, tmp_path / "run")
    with pytest.raises(ValueError, match=r"learning_rate: 0\.001 in the state, 0\.002 now"):
        make("pretrain", images, tmp_path / "run", learning_rate=2e-3).resume()
    assert make("pretrain", images, tmp_path / "run", learning_rate=2e-3).resume(allow_changes=True)
    assert make("pretrain", images, tmp_path / "run", log_every=7, keep_last=5).resume(), (
        "bookkeeping may change"
    )

    (tmp_path / "more").mkdir()
    more = make_images(tmp_path / "more", count=5)
    with pytest.raises(ValueError, match=r"train_images: 4 images, \w+ in the state, 5 images"):
        make("pretrain", more, tmp_path / "run").resume()
    with pytest.raises(ValueError, match="patches_per_image: 4 in the state, 5 now"):
        make("pretrain", images, tmp_path / "run", patches=5).resume()


@pytest.mark.parametrize(("then", "now"), [("gan", "muon"), ("muon", "gan")])
def test_another_optimizer_is_refused_or_begins_anew(then, now, images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[then].folder, tmp_path / "run")
    settings = dict(epochs=4, optimizer="muon" if now == "muon" else "adam")
    with pytest.raises(ValueError, match=r"optimizer: \w+ in the state, \w+ now"):
        make("gan", images, tmp_path / "run", **settings).resume()
    solver = make("gan", images, tmp_path / "run", **settings)
    assert solver.resume(allow_changes=True) and not any(
        o.state for o in solver.optimizers.values()
    )
    weights = uninterrupted[then].generator.state_dict()
    assert all(
        torch.equal(value, weights[name]) for name, value in solver.generator.state_dict().items()
    )
    solver.fit()
    assert solver.step == 16


def test_another_machine_is_told(images, uninterrupted, tmp_path, monkeypatch, capsys):
    """ "auto" is bf16 where that is faster: a run may move on, and is told that its last digits may."""
    for bf16 in (True, False):
        monkeypatch.setattr(solver_module, "computes_in_bf16", lambda device, bf16=bf16: bf16)
        solver = make(
            "pretrain", images, tmp_path / "run", mixed_precision="auto", epochs=1 if bf16 else 2
        )
        assert solver.autocast._enabled == bf16
        assert solver.resume(allow_changes=True) != bf16
        solver.fit()
    assert (
        "other last digits" in (text := capsys.readouterr().out)
        and "bf16 was True, is False" in text
    )
    again = make("pretrain", images, tmp_path / "run", mixed_precision="auto", epochs=2)
    assert again.resume() and "other last digits" not in capsys.readouterr().out


def test_another_batch_size_goes_on_after_the_same_part_of_the_epoch(images, tmp_path, monkeypatch):
    solver = make("pretrain", images, tmp_path / "run")
    at_step(monkeypatch, solver, 6, lambda losses: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        solver.fit()
    smaller = make(
        "pretrain", images, tmp_path / "run", batch_size=2
    )  # eight batches an epoch, of which four are done
    smaller.resume(allow_changes=True)
    assert (smaller.epoch, smaller.batch, smaller.step) == (1, 4, 6)
    smaller.fit()
    assert (smaller.epoch, smaller.batch, smaller.step) == (3, 0, 6 + 4 + 8)
    assert [row["epoch"] for row in smaller.history["train"]] == sorted(
        row["epoch"] for row in smaller.history["train"]
    )


def rewrite(path, change):
    """Put another state in the place of one: change(tensors, facts) edits them."""
    tensors, facts = states.read(path)
    change(tensors, facts)
    path.unlink()
    return states.write(path.parent, facts["step"], tensors, facts, keep_last=99)


def test_states_of_older_versions_are_read(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["gan"].folder, tmp_path / "run")

    def age(tensors, facts):
        facts["history"] = json.loads(bytes(tensors.pop("history").tolist()))
        facts["scaler"] = None
        del facts["batch"], facts["batches_per_epoch"], facts["identity"]["warmup_steps"]

    rewrite(states.files(tmp_path / "run")[-1], age)
    solver = make("gan", images, tmp_path / "run")
    assert solver.resume()
    assert (solver.epoch, solver.batch, solver.step) == (3, 0, 12)
    assert solver.history == uninterrupted["gan"].history
    with pytest.raises(
        ValueError, match="warmup_steps: 0 in the state, 1 now"
    ):  # absent then means its default
        make("gan", images, tmp_path / "run", warmup_steps=1).resume()


def test_a_state_of_other_networks_is_refused(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"].folder, tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"state-\d+-\w+\.safetensors is the state of other networks"
    ):
        make("pretrain", images, tmp_path / "run", blocks=2).resume()
    with pytest.raises(ValueError, match="the state of other networks"):
        make("gan", images, tmp_path / "run").resume(allow_changes=True)


def truncated(data):
    return data[: len(data) // 2]


def bit_flipped(data):
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize(
    "damage", [truncated, bit_flipped, lambda data: b""], ids=["truncated", "flipped", "empty"]
)
def test_a_damaged_newest_state_is_named_and_skipped(damage, images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"].folder, tmp_path / "run")
    older, newest = states.files(tmp_path / "run")
    newest.write_bytes(damage(newest.read_bytes()))
    solver = make("pretrain", images, tmp_path / "run")
    with pytest.warns(UserWarning, match=newest.name):
        assert solver.resume()
    assert solver.last_state == older
    solver.fit()
    assert_same(solver, uninterrupted["pretrain"])
    older, newest = states.files(tmp_path / "run")
    assert states.read(newest)[1]["step"] == 12

    for path in (older, newest):
        path.write_bytes(damage(path.read_bytes()))
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


def test_a_state_with_code_in_it_runs_none(images, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["pretrain"].folder, tmp_path / "run")
    data = pickle.dumps(Malice(tmp_path / "marker"))
    assert pickle.loads(data) and (tmp_path / "marker").exists()  # it would
    (tmp_path / "marker").unlink()
    for payload in (
        data,
        safetensors.torch.save({"x": torch.ones(1)}),
    ):  # also a file of the format that is no state
        checksum = hashlib.sha256(payload).hexdigest()[:16]
        forged = tmp_path / "run" / f"state-000000099-{checksum}.safetensors"
        forged.write_bytes(payload)
        with pytest.warns(UserWarning, match=forged.name):
            assert make("pretrain", images, tmp_path / "run").resume()
        assert not (tmp_path / "marker").exists()
        forged.unlink()


def test_which_states_are_kept(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", epochs=7, keep_last=2, keep_every=3)
    solver.fit()
    assert [states.read(path)[1]["epoch"] for path in solver.states()] == [3, 6, 7]
    solver = make("pretrain", images, tmp_path / "one", keep_last=1)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".tmp-0123.safetensors").write_bytes(
        b"of a process that was killed while it wrote"
    )
    solver.fit()
    assert not list((tmp_path / "one").glob(".tmp*"))
    assert [states.read(path)[1]["epoch"] for path in solver.states()] == [3]


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_stops_before_it_is_saved_and_retry_goes_on(stage, images, tmp_path, monkeypatch):
    solver = make(stage, images, tmp_path / "run", log_every=100)

    def poison(losses):
        with torch.no_grad():
            next(solver.generator.parameters()).fill_(float("nan"))
        return {name: value * float("nan") for name, value in losses.items()}

    at_step(monkeypatch, solver, 7, poison)
    with pytest.raises(
        TrainingDiverged, match=r"step 7 \(epoch 2, batch 3\).*last good state is .*state-000000004"
    ):
        solver.fit()
    with pytest.raises(TrainingDiverged):
        solver.save()
    for path in solver.states():
        assert all(
            value.isfinite().all()
            for value in states.read(path)[0].values()
            if value.is_floating_point()
        )

    solver.retry()
    assert (solver.step, solver.learning_rate(4)) == (
        4,
        0.5 * make(stage, images, tmp_path / "x").learning_rate(4),
    )
    again = make(
        stage, images, tmp_path / "run", log_every=100
    )  # the halved rate outlives the process
    again.resume()
    assert again.learning_rate_scale == 0.5
    solver.fit()
    assert solver.step == 12
    assert all(np.isfinite(list(row.values())).all() for row in solver.history["train"])


def test_a_loss_that_is_not_finite_is_not_saved(images, tmp_path, monkeypatch):
    solver = make("pretrain", images, tmp_path / "run", log_every=100, checkpoint_minutes=0)
    at_step(
        monkeypatch,
        solver,
        3,
        lambda losses: {name: value * float("inf") for name, value in losses.items()},
    )
    with pytest.raises(TrainingDiverged, match=r"A loss is not finite at step 3 .*state-000000002"):
        solver.fit()


def test_a_weight_that_is_not_finite_is_not_saved(images, tmp_path, monkeypatch):
    solver = make("pretrain", images, tmp_path / "run", epochs=1)
    at_step(
        monkeypatch,
        solver,
        4,
        lambda losses: solver.generator.tail.bias.data.fill_(float("inf")) is None,
    )
    with pytest.raises(
        TrainingDiverged, match=r"tail\.bias is not finite at step 4.*state-000000000"
    ):
        solver.fit()
    assert [states.read(path)[1]["step"] for path in solver.states()] == [0]
    assert not (tmp_path / "run.safetensors").exists()


def test_retry_without_a_state_says_so(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="no state to go back to"):
        make("pretrain", images, tmp_path / "run").retry()


@pytest.mark.parametrize("stage", STAGES)
def test_out_of_memory_says_which_batch_fits(stage, images, tmp_path, monkeypatch):
    solver = make(stage, images, tmp_path / "run")
    solver.fit(1)
    tensors, _ = state_of(solver)
    forward = F.mse_loss

    def limited(sr, hr):
        if len(sr) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(sr, hr)

    with monkeypatch.context() as patch:  # in the GAN's step the discriminator has moved by then
        patch.setattr(F, "mse_loss", limited)
        with pytest.raises(torch.OutOfMemoryError, match="batch_size=4: batch_size=2 fits"):
            solver.fit()
        now = solver._state()[0]
        assert all(torch.equal(now[name], value) for name, value in tensors.items())
    assert all(p.requires_grad for name in solver.networks for p in solver.bare(name).parameters())
    solver.fit()
    assert solver.step == 12


@pytest.mark.parametrize("folder", ["run", "."])  # of the state; of the generator
def test_a_full_disk_leaves_the_state_before_whole(
    folder, images, uninterrupted, tmp_path, monkeypatch
):
    write_bytes = Path.write_bytes

    def full(path, data):
        if path.parent != tmp_path / folder:
            return write_bytes(path, data)
        write_bytes(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    solver = make("pretrain", images, tmp_path / "run")
    solver.fit(2)
    good = solver.last_state
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            OSError, match=f"(?s)No space left.*step 12.*whole: .*{good.name}.*Make room"
        ) as failed:
            solver.fit()
    assert failed.value.errno == errno.ENOSPC
    assert solver.states()[-1] == good
    assert not list(tmp_path.rglob(".tmp*"))

    again = make("pretrain", images, tmp_path / "run")
    again.resume()
    assert again.last_state == good
    again.fit()
    assert_same(again, uninterrupted["pretrain"])


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


def test_a_really_full_disk(images, small_disk):
    solver = make("pretrain", images, small_disk / "run", keep_last=99)
    with pytest.raises(OSError, match=r"No space left on device.*The state before is whole"):
        solver.fit(99)
    again = make("pretrain", images, small_disk / "run", keep_last=99)
    assert again.resume() and again.last_state == solver.last_state


def test_a_folder_that_cannot_be_written_is_told_before_training(images, tmp_path):
    (tmp_path / "run").write_text("a file in its place")
    solver = make("pretrain", images, tmp_path / "run")
    with pytest.raises(OSError, match="run: cannot be written"):
        solver.fit()
    assert solver.step == 0


def test_a_read_only_folder_is_told_before_training(images, tmp_path):
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
            OSError, match=r"closed/run: cannot be written .*Make room, or make the folder writable"
        ):
            solver.fit()
        assert solver.step == 0
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@POSIX
def test_a_killed_worker_costs_nothing(images, tmp_path, monkeypatch):
    settings = dict(patches=32, epochs=1)
    solver = make("pretrain", images, tmp_path / "run", num_workers=1, **settings)

    def kill_worker(losses):
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)

    at_step(monkeypatch, solver, 3, kill_worker)
    with pytest.raises(
        RuntimeError,
        match=r"Batch \d+ of epoch 1 cannot be loaded .*worker.*is saved.*num_workers=0",
    ):
        solver.fit()
    assert state_of(solver)[1]["step"] == solver.step >= 3

    again, whole = (
        make("pretrain", images, tmp_path / name, **settings) for name in ("run", "whole")
    )
    assert again.resume() and again.step == solver.step
    again.fit()
    whole.fit()
    assert_same(again, whole)


@pytest.mark.parametrize(
    "settings",
    [{"batchsize": 4}, {"mixed_precision": "half"}, {"schedule": "step"}, {"optimizer": "sgd"}],
)
def test_unknown_settings_are_refused_at_once(settings, images, tmp_path):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make("pretrain", images, tmp_path / "run", **settings)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_learning_rate_schedules(images, tmp_path):
    def rates(**settings):
        solver = make("pretrain", images, tmp_path / "run", learning_rate=1.0, epochs=2, **settings)
        return [solver.learning_rate(step) for step in range(9)]

    assert rates(schedule="constant") == [1] * 9
    assert rates(schedule="tenth") == [1] * 4 + [0.1] * 5
    assert rates(schedule="cosine") == pytest.approx(
        [(1 + np.cos(np.pi * k / 8)) / 2 for k in range(9)]
    )
    assert rates(schedule="constant", warmup_steps=4) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]
    )


def test_the_rate_reaches_adam(images, tmp_path):
    solver = make("gan", images, tmp_path / "run", epochs=1, log_every=1)
    solver.fit()
    assert [row["learning_rate"] for row in solver.history["train"]] == [
        solver.learning_rate(k) for k in range(4)
    ]
    assert all(
        group["lr"] == solver.learning_rate(3)
        for o in solver.optimizers.values()
        for group in o.param_groups
    )


def test_the_average_is_of_weights_and_statistics(images, tmp_path, monkeypatch):
    solver = make("pretrain", images, tmp_path / "run", epochs=1, ema_decay=0.3)
    expected = {name: value.clone() for name, value in solver.generator.state_dict().items()}
    average = solver._average

    def checked():
        average()
        decay = min(0.3, (1 + solver.step) / (10 + solver.step))
        for name, value in solver.generator.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
                torch.testing.assert_close(solver.ema.state_dict()[name], expected[name])

    monkeypatch.setattr(solver, "_average", checked)
    solver.fit()
    assert not solver.ema.training and not any(p.requires_grad for p in solver.ema.parameters())
    assert any("running_var" in name for name in expected)
    lr = PairDataset(images)[0][1]
    saved = load_generator(tmp_path / "run.safetensors")
    assert saved.info["images"] == 4 and saved.info["step"] == 4
    assert np.array_equal(solver.upscale(lr), utils.to_array(saved(utils.to_tensor(lr))))


def test_history_rows_are_means_and_the_log_is_the_history(images, tmp_path, monkeypatch):
    losses = []
    solver = make("pretrain", images, tmp_path / "run", valid=True)
    original = PretrainSolver.training_step

    def recorded(self, lr, hr):
        result = original(self, lr, hr)
        losses.append(result["content_loss"].item())
        return result

    monkeypatch.setattr(PretrainSolver, "training_step", recorded)
    solver.fit()
    rows = solver.history["train"]
    assert [row["step"] for row in rows] == [
        3,
        4,
        6,
        8,
        9,
        12,
    ]  # every third, and at the end of an epoch
    assert [row["epoch"] for row in rows] == [0.75, 1, 1.5, 2, 2.25, 3]
    ends = [0, *(row["step"] for row in rows)]
    means = [np.mean(losses[a:b]) for a, b in itertools.pairwise(ends)]
    assert [row["content_loss"] for row in rows] == pytest.approx(means, rel=1e-5)
    assert [(row["step"], row["epoch"]) for row in solver.history["valid"]] == [
        (4, 1),
        (8, 2),
        (12, 3),
    ]

    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for kind in ("train", "valid"):
        assert [
            {k: v for k, v in row.items() if k != "kind"} for row in log if row["kind"] == kind
        ] == solver.history[kind]


def test_callback_after_each_epoch(images, tmp_path):
    seen = []
    make("pretrain", images, tmp_path / "run").fit(
        callback=lambda solver: seen.append((solver.epoch, solver.step))
    )
    assert seen == [(1, 4), (2, 8), (3, 12)]


def test_tensorboard(images, tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    solver = make("pretrain", images, tmp_path / "run", tensorboard=True, valid=True, log_every=1)
    at_step(
        monkeypatch,
        solver,
        7,
        lambda losses: {name: value * float("nan") for name, value in losses.items()},
    )
    with pytest.raises(TrainingDiverged):
        solver.fit()
    solver.retry()
    solver.fit()
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/content_loss")]
    assert shown == [
        (row["step"], pytest.approx(row["content_loss"])) for row in solver.history["train"]
    ]
    assert len(events.Scalars("valid/psnr")) == 3


def test_two_solvers_with_different_precision_in_one_process(images, tmp_path):
    kinds = {}
    for name in ("no", "bf16", "no"):
        solver = make(
            "gan", images, tmp_path / f"{name}-{len(kinds)}", mixed_precision=name, epochs=1
        )
        solver.generator.head[0].register_forward_hook(
            lambda module, x, y, name=name: kinds.update({name: y.dtype})
        )
        solver.fit()
        assert all(p.dtype == torch.float32 for p in solver.generator.parameters())
        assert solver.upscale(np.zeros((8, 8, 3), np.uint8)).shape == (32, 32, 3)
    assert kinds == {"no": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def compiler(monkeypatch):
    """Where torch.compile has what it needs. It keeps what it has made: a second run of these tests is faster."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setattr(
        torch._inductor.config, "compile_threads", 1
    )  # no pool of processes for a few kernels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not utils.can_compile(torch.device("cpu")):
            pytest.skip("torch.compile has no compiler here")
    yield
    torch._dynamo.reset()


class FewKernels(SRResNet):
    """Quickly compiled."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.head = torch.nn.Conv2d(
            3, 4, 3, padding=1, bias=False
        )  # a bias would follow the rounding of its zero gradient
        self.upsample = torch.nn.Conv2d(4, 48, 3, padding=1)
        self.blocks, self.after_blocks, self.tail = (
            torch.nn.BatchNorm2d(4),
            torch.nn.PReLU(),
            torch.nn.Identity(),
        )

    def forward(self, lr):
        return F.pixel_shuffle(self.upsample(self.after_blocks(self.blocks(self.head(lr)))), 4)


def test_compiled_is_nearly_the_same_and_goes_on_to_the_bit(
    compiler, images, tmp_path, monkeypatch
):
    """Twelve patches in batches of eight: an epoch's last batch has another shape, and the run goes on with that one."""
    monkeypatch.setattr(sys.modules[__name__], "SRResNet", FewKernels)
    settings = dict(
        patches=3, batch_size=8, epochs=2, schedule="constant", learning_rate=1e-4, log_every=1
    )
    whole = make("pretrain", images, tmp_path / "whole", compile=True, **settings)
    plain = make("pretrain", images, tmp_path / "plain", **settings)
    for solver in (whole, plain):
        solver.fit()
    assert whole.generator._compiled_call_impl and not plain.generator._compiled_call_impl
    tensors, others = whole._state()[0], plain._state()[0]
    assert tensors.keys() == others.keys()
    for name in (
        name
        for name in others
        if name.split(".")[0] in ("generator", "ema") and ".adam." not in name
    ):
        torch.testing.assert_close(tensors[name], others[name], rtol=1e-4, atol=1e-5)

    torch._dynamo.reset()  # what a new process has not yet compiled
    stopped = make("pretrain", images, tmp_path / "stopped", compile=True, **settings)
    at_step(monkeypatch, stopped, 3, lambda losses: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    torch._dynamo.reset()
    again = make("pretrain", images, tmp_path / "stopped", compile=True, seed=9, **settings)
    assert again.resume() and (again.step, again.batch) == (3, 1)
    again.fit()
    assert_same(again, whole)


def test_where_it_cannot_compile_it_goes_on_without(images, uninterrupted, tmp_path, monkeypatch):
    def no_compiler(*arguments, **settings):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(
        UserWarning,
        match=r"torch.compile does not work here \(.*compiler found\): going on without",
    ):
        solver = make("pretrain", images, tmp_path / "run", compile=True)
    solver.fit()
    assert_same(solver, uninterrupted["pretrain"])


def test_the_loss_scale_of_fp16_is_part_of_the_state(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", mixed_precision="fp16", epochs=1)
    solver.scaler.update(128.0) if solver.scaler._scale is not None else solver.scaler.scale(
        torch.ones(1)
    )
    solver.scaler.update(128.0)
    solver.fit()
    again = make("pretrain", images, tmp_path / "run", mixed_precision="fp16", epochs=1)
    again.resume()
    assert again.scaler.get_scale() == solver.scaler.get_scale() == 128.0


def test_a_third_stage_is_one_method(images, tmp_path):
    """And it may update a network twice, also in mixed precision: the second forward is of the updated weights."""

    class Third(PretrainSolver):
        def training_step(self, lr, hr):
            first = F.l1_loss(self.networks["generator"](lr), hr)
            self.update("generator", first)
            second = F.l1_loss(self.networks["generator"](lr), hr)
            self.update("generator", second)
            return {"content_loss": first, "change": (second - first).abs()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "PretrainSolver", Third)
        solver = make(
            "pretrain",
            images,
            tmp_path / "run",
            mixed_precision="bf16",
            epochs=1,
            learning_rate=0.01,
        )
    solver.fit()
    assert all(row["change"] > 1e-4 for row in solver.history["train"])


# --- the stages ------------------------------------------------------------------------------------------------------


def a_batch(images, count=4):
    dataset = PatchDataset(images, crop_size=16, patches_per_image=4, cache=images.parent / "cache")
    return dataset.__getitems__(list(range(count)))


def test_srresnet_learns_one_batch(images, tmp_path):
    solver = make("pretrain", images, tmp_path / "run", schedule="constant", learning_rate=3e-3)
    lr, hr = a_batch(images)
    losses = [solver.training_step(lr, hr)["content_loss"].item() for _ in range(60)]
    assert losses[-1] < 0.4 * losses[0]


def test_the_discriminator_learns_to_tell_one_batch_apart(images, tmp_path):
    solver = make("gan", images, tmp_path / "run")
    for group in solver.optimizers["generator"].param_groups:
        group["lr"] = 0.0
    lr, hr = a_batch(images)
    rows = [{k: v.item() for k, v in solver.training_step(lr, hr).items()} for _ in range(40)]
    assert rows[0]["d_real"] == pytest.approx(0.5, abs=0.2) and rows[0][
        "d_generated"
    ] == pytest.approx(0.5, abs=0.2)
    assert rows[-1]["d_real"] > 0.9 and rows[-1]["d_generated"] < 0.1
    assert rows[-1]["discriminator_loss"] < 0.3 < 1 < rows[0]["discriminator_loss"]


def test_the_generator_learns_to_be_taken_for_real(images, tmp_path):
    solver = make("gan", images, tmp_path / "run", content_weight=0.0, adversarial_weight=1.0)
    for group in solver.optimizers["discriminator"].param_groups:
        group["lr"] = 0.0
    lr, hr = a_batch(images)
    rows = [{k: v.item() for k, v in solver.training_step(lr, hr).items()} for _ in range(40)]
    assert rows[-1]["adversarial_loss"] < rows[0]["adversarial_loss"] - 0.01
    assert rows[-1]["d_generated"] > rows[0]["d_generated"]


def test_each_paragraph_moves_one_network(images, tmp_path, monkeypatch):
    solver = make("gan", images, tmp_path / "run")
    order, update = [], solver.update

    def weights():
        return {
            name: [p.detach().clone() for p in solver.bare(name).parameters()]
            for name in solver.networks
        }

    def observed(name, loss):
        other = {"generator": "discriminator", "discriminator": "generator"}[name]
        before, gradients = weights(), [p.grad for p in solver.bare(other).parameters()]
        gradients = [None if g is None else g.clone() for g in gradients]
        update(name, loss)
        after = weights()
        assert any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before[other], after[other], strict=True))
        for old, p in zip(gradients, solver.bare(other).parameters(), strict=True):
            assert p.grad is None if old is None else torch.equal(old, p.grad)
        order.append(name)

    monkeypatch.setattr(solver, "update", observed)
    solver.training_step(*a_batch(images))
    assert order == ["discriminator", "generator"]


def test_the_gan_step_is_the_paper_s(images, tmp_path):
    """Losses and gradients of one step, written out with autograd on copies."""
    solver = make("gan", images, tmp_path / "run", content_weight=2.0, adversarial_weight=0.5)
    generator, discriminator = deepcopy(solver.generator), deepcopy(solver.bare("discriminator"))
    lr, hr = a_batch(images)
    losses = solver.training_step(lr, hr)

    sr = generator(lr)
    real, generated = torch.sigmoid(discriminator(hr)), torch.sigmoid(discriminator(sr.detach()))
    d_loss = -(real.log().mean() + (1 - generated).log().mean())
    wanted = torch.autograd.grad(d_loss, list(discriminator.parameters()))
    torch.testing.assert_close(losses["discriminator_loss"], d_loss)
    for p, gradient in zip(solver.bare("discriminator").parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)

    moved = solver.bare("discriminator")
    content = 2.0 * ((2 * sr - 2 * hr) ** 2).mean()
    adversarial = 0.5 * -torch.sigmoid(moved(sr)).log().mean()
    wanted = torch.autograd.grad(content + adversarial, list(generator.parameters()))
    torch.testing.assert_close(losses["perceptual_loss"], content + adversarial)
    for p, gradient in zip(solver.generator.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)


def test_the_base_mode_starts_at_random(images, tmp_path):
    solver = make("gan", images, tmp_path / "run", log_every=1, epochs=1)
    solver.fit()
    columns = {
        "perceptual_loss",
        "content_loss",
        "adversarial_loss",
        "discriminator_loss",
        "d_real",
        "d_generated",
    }
    for row in solver.history["train"]:
        assert columns | {"content_to_adversarial"} <= row.keys()
        assert row["perceptual_loss"] == pytest.approx(
            row["content_loss"] + row["adversarial_loss"], rel=1e-5
        )
        assert row["content_to_adversarial"] == pytest.approx(
            row["content_loss"] / row["adversarial_loss"]
        )


# --- content losses --------------------------------------------------------------------------------------------------

VGG = {
    1: (3, [64] * 2),
    2: (64, [128] * 2),
    3: (128, [256] * 4),
    4: (256, [512] * 4),
    5: (512, [512] * 4),
}


@pytest.fixture(scope="session")
def vgg_weights(tmp_path_factory):
    """vgg_weights(blocks) -> a file of random weights with VGG19's shapes and torchvision's names up to that block."""
    folder = tmp_path_factory.mktemp("vgg")

    def write(blocks):
        path, generator, index, weights = (
            folder / f"vgg{blocks}.pth",
            torch.Generator().manual_seed(0),
            0,
            {},
        )
        if not path.exists():
            for block in range(1, blocks + 1):
                previous, widths = VGG[block]
                for width in widths:
                    scale = (2 / (9 * previous)) ** 0.5
                    weights[f"features.{index}.weight"] = scale * torch.randn(
                        width, previous, 3, 3, generator=generator
                    )
                    weights[f"features.{index}.bias"] = 0.1 * torch.randn(
                        width, generator=generator
                    )
                    previous, index = width, index + 2
                index += 1  # the pooling
            torch.save(weights, path)
        return path

    return write


def test_phi_22_is_the_fourth_convolution_after_its_activation(vgg_weights, images):
    path = vgg_weights(2)
    weights = torch.load(path, weights_only=True)
    loss, source = content_loss("vgg22", path)

    def phi_22(x):
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        for index in (0, 2, "pool", 5, 7):
            if index == "pool":
                x = F.max_pool2d(x, 2)
            else:
                x = F.conv2d(
                    x,
                    weights[f"features.{index}.weight"],
                    weights[f"features.{index}.bias"],
                    padding=1,
                ).relu()
        return x

    sr, hr = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert phi_22(sr).shape == (2, 128, 8, 8)
    torch.testing.assert_close(loss(sr, hr), ((phi_22(sr) - phi_22(hr)) ** 2).mean())
    assert source == path.name


@pytest.mark.parametrize("name", ["mse", "vgg11", "vgg12", "vgg22", "vgg31", "vgg54"])
def test_each_content_loss_moves_the_generator_by_its_own_gradient(
    name, vgg_weights, images, tmp_path
):
    path = None if name == "mse" else vgg_weights(int(name[3]))
    settings = dict(
        content_loss=name, vgg_weights=path and str(path), adversarial_weight=0.0, epochs=1
    )
    solver = make("gan", images, tmp_path / "run", content_weight=3.0, **settings)
    generator, loss = deepcopy(solver.generator), content_loss(name, path)[0]
    lr, hr = a_batch(images, 2)
    solver.training_step(lr, hr)
    wanted = torch.autograd.grad(3.0 * loss(generator(lr), hr), list(generator.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in wanted)
    for p, gradient in zip(solver.generator.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-7)


def test_frozen_layers_stay_and_the_others_move(images, tmp_path):
    solver = make(
        "gan", images, tmp_path / "run", frozen_layers=["upsample", "tail"], optimizer="muon"
    )
    before = {name: value.clone() for name, value in solver.generator.named_parameters()}
    solver.fit(1)
    moved = {
        name
        for name, value in solver.generator.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == {name for name in before if not name.startswith(("upsample.", "tail."))}
    again = make(
        "gan", images, tmp_path / "run", frozen_layers=["upsample", "tail"], optimizer="muon"
    )
    assert again.resume()
    again.fit(2)
    assert torch.equal(again.generator.tail.weight, before["tail.weight"])
    with pytest.raises(ValueError, match='no module "last"'):
        make("gan", images, tmp_path / "other", frozen_layers=["last"])


def test_default_content_weights(vgg_weights, images, tmp_path):
    assert make("gan", images, tmp_path / "a").config["content_weight"] == 1.0
    own = make("gan", images, tmp_path / "b", content_loss="vgg11", vgg_weights=str(vgg_weights(1)))
    assert own.config["content_weight"] == CONTENT_WEIGHTS["other"]
    assert content_weight(None, "vgg54", "torchvision") == 0.5


@pytest.mark.parametrize("name", ["l1", "vgg", "vgg5", "vgg65", "vgg23", "vgg541"])
def test_unknown_content_losses_are_named(name, images, tmp_path):
    with pytest.raises(ValueError, match=r"phi_|content_loss"):
        make("gan", images, tmp_path / "run", content_loss=name)
