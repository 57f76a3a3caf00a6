"""Two processes with half of each batch against one with all of it.

Run as a script, this file is one of the processes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import shared_batch_norm
import torch
from conftest import make_images
from training import last_checkpoint, make, run_settings

import solver as solver_module
from models import load_generator
from solver import GANSolver, PretrainSolver
from tools import checkpoints, distributed
from tools.resumable import TrainingDiverged

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
ROOT = Path(solver_module.__file__).parent
LEARNING_RATE = 1e-5  # of the runs by the command line
OPTIMIZERS = {"pretrain": ("pretrain", "adam"), "gan": ("gan", "adam"), "muon": ("gan", "muon")}


class InDoublePrecision:
    """So exact that what remains between two ways to compute a step is a mistake in one."""

    def __init__(self, networks, *arguments):
        super().__init__({k: network.double() for k, network in networks.items()}, *arguments)

    def training_step(self, lr, hr):
        return super().training_step(lr.double(), hr.double())


class PreciseSRResNet(InDoublePrecision, PretrainSolver):
    pass


class PreciseSRGAN(InDoublePrecision, GANSolver):
    pass


# --- what the processes do ------------------------------------------------------------------------


def train_in_double_precision(images, folder):
    """Three epochs of twelve patches in batches of eight: the last one is a half."""
    for name, (stage, optimizer) in OPTIMIZERS.items():
        kind = PreciseSRResNet if stage == "pretrain" else PreciseSRGAN
        settings = dict(batch_size=8, optimizer=optimizer, batch_norm_batches=0)
        make(stage, images, folder / name, kind=kind, patches=3, **settings).fit()


def train_in_half_precision(images, folder):
    make("gan", images, folder / "half", epochs=1, mixed_precision="bf16", log_every=1).fit()


def train_by_the_command_line(images, folder):
    # In float32 a gradient near zero may have the other sign, and Adam's first steps ask for little
    # else: so they are small.
    settings = run_settings(images, folder=str(folder))
    for stage in settings["stages"].values():
        stage.update(learning_rate=LEARNING_RATE, crop_size=32)
    folder.mkdir(exist_ok=True)
    path = folder / f"mine{os.environ.get('RANK', '')}.json"
    path.write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["solver.py", str(path)])
        solver_module.main()


class StopsOneProcess(GANSolver):
    def training_step(self, lr, hr):
        if self.step == 3 and not self.is_main:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(lr, hr)


class PoisonsOneProcess(GANSolver):
    def training_step(self, lr, hr):
        losses = super().training_step(lr, hr)
        factor = 1.0 if self.is_main else float("nan")
        return {name: value * factor for name, value in losses.items()}


def meet_faults_of_one_process(images, folder):
    """What happens to one process happens to both, or they would wait for each other forever."""
    make("gan", images, folder / "whole", patches=8).fit()
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        make("gan", images, folder / "stopped", patches=8, kind=StopsOneProcess).fit()
    solver = make("gan", images, folder / "stopped", patches=8, seed=9)
    assert solver.resume() and (solver.step, solver.batch) == (4, 4)
    solver.fit()

    with pytest.raises(TrainingDiverged, match="at step 1 "):
        make("gan", images, folder / "poisoned", patches=8, kind=PoisonsOneProcess).fit()

    damaged = make("gan", images, folder / "damaged", patches=8)
    # On GPUs the two forwards before a backward need this.
    assert not damaged.networks["discriminator"].broadcast_buffers
    damaged.save()
    if damaged.is_main:
        damaged.last_checkpoint.write_bytes(b"")
    with pytest.raises(ValueError, match="move the folder away"):
        damaged.resume()


def forbid_writing(folder):
    """Let no file of a run be written by this process."""

    def refuse(path, *arguments):
        raise AssertionError(f"the second process writes {path}")

    for name in ("write", "log_row", "rewrite_log"):
        setattr(checkpoints, name, refuse)
    solver_module.atomic_path = refuse


def work(images, folder):
    distributed.share_batch_norm = shared_batch_norm.share_batch_norm
    distributed.ASK_SECONDS = 0  # ask at each step
    if os.environ["RANK"] == "1":
        forbid_writing(folder)
    train_in_double_precision(images, folder)
    train_in_half_precision(images, folder)
    meet_faults_of_one_process(images, folder)
    train_by_the_command_line(images, folder)


# --- the tests ------------------------------------------------------------------------------------


def run_two(*command, folder):
    """[(output, exit code)] of a Python command in two processes, as a launcher starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = dict(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path),
    )  # fmt: skip
    # Without what `training` says of the CPU: processes without a GPU must meet by themselves.
    environ = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    workers = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**environ, **launched, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return [(worker.communicate(timeout=600)[0], worker.returncode) for worker in workers]
    finally:
        for worker in workers:  # one that failed leaves the other waiting
            worker.kill()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder of one process, folder of two, what the two printed)."""
    folder = tmp_path_factory.mktemp("distributed")
    images = make_images(folder)
    outputs = run_two(__file__, images, folder / "two", folder=folder)
    for text, code in outputs:
        assert code == 0, text
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        train_in_double_precision(images, folder / "one")
        train_in_half_precision(images, folder / "one")
        train_by_the_command_line(images, folder / "one")
        torch.set_num_threads(threads)
    return folder / "one", folder / "two", [text for text, _ in outputs]


def weights_in(tensors):
    """Those of a checkpoint's tensors that are networks, averages of optimizers left out."""
    networks = ("generator.", "discriminator.", "ema.")
    return {k: v for k, v in tensors.items() if k.startswith(networks) and ".adam." not in k}


def test_processes_without_a_gpu_meet_by_themselves(tmp_path):
    """Nothing but a launcher's variables: not even that it is the CPU's."""
    make_images(tmp_path)
    program = """
import shared_batch_norm
from datasets import PatchDataset
from models import SRResNet
from solver import PretrainSolver
from tools import distributed
distributed.share_batch_norm = shared_batch_norm.share_batch_norm
dataset = PatchDataset("list.csv", crop_size=16)
solver = PretrainSolver({"generator": SRResNet(1, 4)}, dataset, dict(batch_size=4), "run")
lr, _ = next(solver.loader.epoch(0))
print(solver.processes.count, "processes,", len(lr), "patches each")
"""
    for text, code in run_two("-c", program, folder=tmp_path):
        assert code == 0 and "2 processes, 2 patches each" in text, text


def test_several_processes_on_a_cpu_are_refused_with_the_reason(tmp_path):
    settings = run_settings(make_images(tmp_path))
    (tmp_path / "mine.json").write_text(json.dumps(settings))
    for text, code in run_two(ROOT / "solver.py", "mine.json", folder=tmp_path):
        assert code == 1, text
        assert "error: several processes need a GPU each" in text
        assert "start solver.py without a launcher" in text
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        ('settings["learning_rate"] = 0.5', "learning_rate: 0.001 in 0, 0.5 in 1"),
        (
            'settings["log_every"] = 7',
            "log_every: 20 in 0, 7 in 1",
        ),  # rows are means over processes
        ('dataset = PatchDataset("other/list.csv", crop_size=16)', "train_images: 4 images, "),
    ],
)
def test_processes_that_differ_are_refused_before_training(change, told, tmp_path):
    make_images(tmp_path)
    (tmp_path / "other").mkdir()
    make_images(tmp_path / "other", height=56)
    program = f"""
import os
from datasets import PatchDataset
from models import SRResNet
from solver import PretrainSolver
dataset, settings = PatchDataset("list.csv", crop_size=16), dict(batch_size=4, learning_rate=1e-3)
if os.environ["RANK"] == "1":
    {change}
PretrainSolver({{"generator": SRResNet(1, 4)}}, dataset, settings, "run")
"""
    for text, code in run_two("-c", program, folder=tmp_path):
        assert code != 0 and told in text, text  # gloo may abort: the group was not destroyed
        assert "ValueError: process 1 must be as process 0, but has" in text
    assert not (tmp_path / "run").exists()


def test_a_batch_that_processes_cannot_share_is_told_before_the_first_stage(tmp_path):
    settings = run_settings(make_images(tmp_path))
    settings["stages"]["base"]["batch_size"] = 3
    (tmp_path / "mine.json").write_text(json.dumps(settings))
    for text, code in run_two(ROOT / "solver.py", "mine.json", folder=tmp_path):
        assert code == 1, text
        assert "error: base: 2 processes need a batch_size that 2 divides" in text
    assert not (tmp_path / "data" / "cache").exists()


@pytest.mark.parametrize("seconds, asked", [(0.1, [1, 21, 41]), (1, [1, 3, 5]), (9, [1, 2, 3])])
def test_processes_are_asked_every_two_seconds(seconds, asked, monkeypatch):
    clock, questions = [0.0], []

    class TwoAccelerators:
        def reduce(self, flags):
            questions.append(call)
            return flags + torch.tensor([0, 1, 0])  # the other one wants to stop

    monkeypatch.setattr(distributed.time, "monotonic", lambda: clock[0])
    processes = distributed.Processes()
    processes.accelerator, processes.count = TwoAccelerators(), 2
    for call in range(1, 50):
        clock[0] += seconds
        answer = processes.any(False, False)
        assert answer == [False, call == (questions or [0])[-1]]
    assert questions[:3] == asked


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_compute_what_one_does(name, runs):
    (one, facts_one), (two, facts_two) = (last_checkpoint(folder / name) for folder in runs[:2])
    assert one.keys() == two.keys()
    assert facts_one["identity"] == facts_two["identity"]
    for key in one:
        torch.testing.assert_close(
            two[key], one[key], rtol=1e-7, atol=1e-9, msg=lambda text, key=key: key + text
        )
    histories = (facts["history"]["train"] for facts in (facts_one, facts_two))
    for rows in zip(*histories, strict=True):
        # Each process has the ratio of its own patches.
        ratios = [row.pop("content_to_adversarial", 0) for row in rows]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-2)
        assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_two_processes_in_half_precision_come_near_it(runs):
    histories = []
    for folder in runs[:2]:
        tensors, facts = last_checkpoint(folder / "half")
        histories.append(facts["history"]["train"])
        kinds = {value.dtype for value in weights_in(tensors).values()}
        assert kinds == {torch.float32, torch.int64}
    for one, two in zip(*histories, strict=True):
        for name in ("content_loss", "discriminator_loss", "d_real", "d_generated"):
            assert two[name] == pytest.approx(one[name], rel=0.02), name


@pytest.mark.parametrize("stage", ["srresnet", "srgan", "base"])
def test_the_command_line_on_two_processes(stage, runs):
    (one, _), (two, facts) = (last_checkpoint(folder / stage) for folder in runs[:2])
    assert facts["step"] == 4 and facts["versions"]["processes"] == 2
    one, two = weights_in(one), weights_in(two)
    assert any("running_var" in key for key in one)
    # Adam's first steps follow the sign of a gradient. Where that is nearly zero, the rounding of
    # float32 decides, so single weights may be steps apart; in double precision, above, none are.
    apart = torch.cat([(two[key] - one[key]).abs().flatten().double() for key in one])
    assert (apart > 1e-5).double().mean() < 1e-3
    assert apart.max() < 2 * 4 * LEARNING_RATE


@pytest.mark.parametrize("stage", ["srresnet", "srgan", "base"])
def test_the_generator_file_holds_the_average(stage, runs):
    averages = checkpoints.under("ema.", last_checkpoint(runs[1] / stage)[0])
    saved = load_generator(runs[1] / f"{stage}.safetensors").state_dict()
    assert saved.keys() == averages.keys()
    different = {key for key in saved if not torch.equal(saved[key], averages[key])}
    # A GAN's batch-norm statistics are recomputed, see `inference_generator`.
    statistics = {key for key in saved if "running" in key or "num_batches" in key}
    assert different == (set() if stage == "srresnet" else statistics)


def test_srgan_starts_from_srresnet_and_the_base_mode_does_not(runs):
    srresnet, srgan, base = (
        load_generator(runs[1] / f"{stage}.safetensors").tail.weight
        for stage in ("srresnet", "srgan", "base")
    )
    assert (srgan - srresnet).abs().max() < 1e-3 < (base - srresnet).abs().max()


def test_one_of_two_is_told_to_stop(runs):
    (whole, facts), (stopped, facts_stopped) = (
        last_checkpoint(runs[1] / name) for name in ("whole", "stopped")
    )
    assert facts["step"] == facts_stopped["step"] == 24
    assert whole.keys() == stopped.keys()
    assert not [name for name in whole if not torch.equal(whole[name], stopped[name])]
    rows = (each["history"]["train"] for each in (facts, facts_stopped))
    for row, row_stopped in zip(*rows, strict=True):
        # Sums are added up in another order once a checkpoint was saved.
        assert row == pytest.approx(row_stopped, rel=1e-6)


def test_only_the_first_process_writes_and_shows(runs):
    """Nor could the second have written: see `forbid_writing`."""
    first, second = runs[2]
    for text in ("PSNR", "Resumed from", "epoch 2/2"):
        assert text in first and text not in second
    log = (runs[1] / "srgan" / "log.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in log]
    assert kinds == ["train", "train", "valid", "train", "train", "valid"]


# --- killed (make soak) ---------------------------------------------------------------------------


def train_slowly(images, folder, seconds):
    """Sixty steps of so many seconds; each process leaves its number in a file."""
    distributed.share_batch_norm = shared_batch_norm.share_batch_norm
    distributed.ASK_SECONDS = 0.2
    solver = make("gan", images, folder, patches=60, epochs=1, log_every=1)
    solver.resume()
    training_step = solver.training_step

    def slow_step(lr, hr):
        time.sleep(seconds)
        Path(f"rank{solver.processes.rank}").write_text(str(os.getpid()))
        return training_step(lr, hr)

    solver.training_step = slow_step
    solver.fit()
    torch.distributed.barrier()  # gloo aborts where one process ends while another still talks
    torch.distributed.destroy_process_group()


@contextmanager
def launched(folder, name, seconds=0.1):
    """`accelerate launch`, as the README has it, of two processes of this file."""
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = [Path(sys.executable).parent / "accelerate", "launch", *options.split()]
    launcher = subprocess.Popen(
        [*command, "--dynamo_backend", "no", __file__, "list.csv", name, str(seconds)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield launcher
    finally:
        launcher.kill()


def ranks(folder):
    """The processes that train now, once both do."""
    files = [folder / f"rank{rank}" for rank in range(2)]
    for file in files:
        file.unlink(missing_ok=True)
    while not all(file.is_file() and file.read_text() for file in files):
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def wait_for_the_end_of(processes):
    while any(psutil.pid_exists(number) for number in processes):
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make_images(folder)
    with launched(folder, "run", 0) as launcher:
        assert launcher.wait() == 0, launcher.stdout.read()
    return folder / "run"


def assert_goes_on_to_the_same_weights(folder, whole):
    step = last_checkpoint(folder / "run")[1]["step"]
    with launched(folder, "run", 0) as launcher:
        assert launcher.wait() == 0, launcher.stdout.read()
    (one, _), (other, facts) = last_checkpoint(folder / "run"), last_checkpoint(whole)
    assert 0 <= step < facts["step"] == 60
    assert not [key for key in one if not torch.equal(one[key], other[key])]
    return step


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(tmp_path, whole):
    make_images(tmp_path)
    with launched(tmp_path, "run") as launcher:
        processes = ranks(tmp_path)
        launcher.kill()
        wait_for_the_end_of(processes)
    assert assert_goes_on_to_the_same_weights(tmp_path, whole) > 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_processes_one_is_killed_and_the_next_launch_goes_on(victim, tmp_path, whole):
    make_images(tmp_path)
    with launched(tmp_path, "run") as launcher:
        processes = ranks(tmp_path)
        os.kill(processes[victim], signal.SIGKILL)
        assert launcher.wait() == 1
        wait_for_the_end_of(processes)
    assert_goes_on_to_the_same_weights(tmp_path, whole)


@pytest.mark.slow
def test_slow_processes_are_told_to_stop_and_save(tmp_path, whole):
    """Steps of three seconds: within the thirty that a launcher waits before it kills."""
    make_images(tmp_path)
    with launched(tmp_path, "run", 3) as launcher:
        ranks(tmp_path)
        launcher.terminate()
        launcher.wait()
    assert assert_goes_on_to_the_same_weights(tmp_path, whole) > 0


@pytest.mark.slow
def test_a_second_launch_into_one_folder_is_refused(tmp_path, whole):
    make_images(tmp_path)
    with launched(tmp_path, "run") as launcher:
        processes = ranks(tmp_path)
        (text, code), *_ = run_two(__file__, "list.csv", "run", "0", folder=tmp_path)
        assert code == 1 and f"process {processes[0]} on " in text, text
        assert launcher.wait() == 0
    (one, _), (other, _) = last_checkpoint(tmp_path / "run"), last_checkpoint(whole)
    assert not [key for key in one if not torch.equal(one[key], other[key])]


if __name__ == "__main__":
    if len(sys.argv) == 4:
        train_slowly(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
    else:
        work(Path(sys.argv[1]), Path(sys.argv[2]))
