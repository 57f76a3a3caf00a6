"""Two processes with half of each batch against one with all of it; run as a script, this file is one of the processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_solver import make, make_images, state_of

import solver as solver_module
from models import load_generator
from solver import GANSolver, PretrainSolver, TrainingDiverged
from tools.checkpoints import read_newest


def in_double_precision(stage):
    """A stage whose arithmetic is so exact that what remains between two ways to compute it is a mistake in one."""

    class Double({"pretrain": PretrainSolver, "gan": GANSolver}[stage]):
        def __init__(self, *arguments):
            super().__init__(
                *[a.double() if isinstance(a, torch.nn.Module) else a for a in arguments]
            )

        def training_step(self, lr, hr):
            return super().training_step(lr.double(), hr.double())

    return Double


LEARNING_RATE = 1e-5  # of the runs by the command line
RUNS = {"pretrain": ("pretrain", {}), "gan": ("gan", {}), "muon": ("gan", dict(optimizer="muon"))}


def train_in_double_precision(folder):
    """Each stage, a few epochs."""
    images = folder.parent / "list.csv"
    for run, (stage, how) in RUNS.items():
        name = "PretrainSolver" if stage == "pretrain" else "GANSolver"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["test_solver"], name, in_double_precision(stage))
            make(
                stage, images, folder / run, patches=3, batch_size=8, **how
            ).fit()  # 12 patches: the last batch is a half


def train_in_half_precision(folder):
    make(
        "gan",
        folder.parent / "list.csv",
        folder / "half",
        epochs=1,
        mixed_precision="bf16",
        log_every=1,
    ).fit()


def train_by_the_command_line(folder):
    (folder / "settings.json").write_text(json.dumps(settings(folder.parent / "list.csv", folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["solver.py", str(folder / "settings.json")])
        solver_module.main()


def settings(images, folder):
    # In float32 a gradient near zero may have the other sign, and Adam's first steps ask for little else: so they are small.
    stage = dict(batch_size=4, epochs=2, learning_rate=LEARNING_RATE, log_every=3)
    return dict(
        seed=0,
        crop_size=32,
        patches_per_image=2,
        train_list=str(images),
        valid_list=str(images),
        num_valid_images=1,
        folder=str(folder),
        generator=dict(num_blocks=1, num_channels=4, init="interpolator"),
        discriminator=dict(num_channels=2),
        pretrain=stage,
        gan=dict(stage, content_loss="mse", patches_per_image=3, batch_size=6),
        base=dict(stage, content_loss="mse", epochs=1, name="random"),
    )


def stop_one_and_go_on(folder):
    """Two processes, of which one is told to stop: both save, stop, and go on to what they would have come to."""
    images = folder.parent / "list.csv"
    make("gan", images, folder / "stopped_whole", patches=8).fit()

    class Stopped(GANSolver):
        def training_step(self, lr, hr):
            if self.step == 3 and self.accelerator.process_index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(lr, hr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["test_solver"], "GANSolver", Stopped)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            make("gan", images, folder / "stopped", patches=8).fit()
    solver = make("gan", images, folder / "stopped", patches=8, seed=9)
    assert solver.resume() and (solver.step, solver.batch) == (10, 2)
    solver.fit()

    class Poisoned(GANSolver):
        def training_step(self, lr, hr):
            losses = super().training_step(lr, hr)
            return (
                {k: v * float("nan") for k, v in losses.items()}
                if self.accelerator.process_index == 1
                else losses
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["test_solver"], "GANSolver", Poisoned)
        with pytest.raises(
            TrainingDiverged, match="at step 1 "
        ):  # what one process meets stops all
            make("gan", images, folder / "poisoned", patches=8).fit()

    damaged = make("gan", images, folder / "damaged", patches=8)
    assert not damaged.networks["discriminator"].broadcast_buffers
    damaged.save()
    solver.accelerator.wait_for_everyone()
    if damaged.is_main:
        damaged.last_state.write_bytes(b"")
    with pytest.raises(ValueError, match="move the folder away"):
        damaged.resume()  # an error of the first process is everyone's


def run_two(*command, folder):
    """[(what it printed, exit code)] of a Python command in two processes, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = dict(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2"
    )
    where.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    environ = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    workers = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
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
    make_images(folder)
    outputs = run_two(__file__, folder / "two", folder=folder)
    for text, code in outputs:
        assert code == 0, text
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_in_double_precision(folder / "one")
        train_in_half_precision(folder / "one")
        train_by_the_command_line(folder / "one")
    return folder / "one", folder / "two", [text for text, _ in outputs]


def test_processes_without_a_gpu_meet_by_themselves(tmp_path):
    """Nothing but a launcher's variables: not even that it is the CPU's, which importing `test_solver` says."""
    make_images(tmp_path)
    program = """
from datasets import PatchDataset
from models import SRResNet
from solver import PretrainSolver
solver = PretrainSolver(SRResNet(1, 4), PatchDataset("list.csv", crop_size=16), dict(batch_size=4), "run")
lr, _ = next(solver.loader.epoch(0))
print(solver.accelerator.num_processes, "processes,", len(lr), "patches each")
"""
    for text, code in run_two("-c", program, folder=tmp_path):
        assert code == 0 and "2 processes, 2 patches each" in text, text


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_compute_what_one_does(run, runs):
    (_, one, facts_one), (_, two, facts_two) = (read_newest(folder / run) for folder in runs[:2])
    assert one.keys() == two.keys()
    assert facts_one["identity"] == facts_two["identity"]
    for name in one.keys() - {"history"}:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-7, atol=1e-9, msg=lambda text, name=name: name + text
        )
    histories = [json.loads(bytes(tensors["history"].tolist()))["train"] for tensors in (one, two)]
    for rows in zip(*histories, strict=True):
        a, b = ({key: value for key, value in row.items() if key != "seconds"} for row in rows)
        assert a == pytest.approx(b, rel=1e-5)


def test_two_processes_in_half_precision_come_near_it(runs):
    histories = []
    for folder in runs[:2]:
        _, tensors, _ = read_newest(folder / "half")
        histories.append(json.loads(bytes(tensors["history"].tolist()))["train"])
        kinds = {
            value.dtype
            for key, value in tensors.items()
            if key.split(".")[0] in ("generator", "discriminator", "ema")
        }
        assert kinds == {torch.float32, torch.int64}
    for one, two in zip(*histories, strict=True):
        for name in ("content_loss", "discriminator_loss", "d_real", "d_generated"):
            assert two[name] == pytest.approx(one[name], rel=0.02), name


@pytest.mark.parametrize(("name", "steps"), [("srresnet", 4), ("srgan", 4), ("random", 2)])
def test_the_command_line_on_two_processes(name, steps, runs):
    (_, one, _), (_, two, facts) = (read_newest(folder / name) for folder in runs[:2])
    assert facts["step"] == steps
    weights = [
        key
        for key in one
        if key.split(".")[0] in ("generator", "discriminator", "ema") and ".adam." not in key
    ]
    assert any("running_var" in key for key in weights)
    # Adam's first steps follow the sign of a gradient: where that is all but zero, float32's rounding decides. So single
    # weights may be steps apart; `test_two_processes_compute_what_one_does` has double precision, and no such exception.
    apart = torch.cat([(two[key] - one[key]).abs().flatten().double() for key in weights])
    assert (apart > 1e-5).double().mean() < 1e-3
    assert apart.max() < 2 * steps * LEARNING_RATE
    first = {path.name: load_generator(path).state_dict() for path in runs[1].glob("*.safetensors")}
    averaged = [
        key
        for key in two
        if key.startswith("ema.") and (name == "srresnet" or "running" not in key)
    ]
    averaged = [
        key for key in averaged if "num_batches" not in key
    ]  # a GAN's statistics are taken anew, see `for_use`
    assert averaged and all(
        torch.equal(first[f"{name}.safetensors"][key[4:]], two[key]) for key in averaged
    )


def test_the_gan_starts_from_srresnet_and_the_base_mode_does_not(runs):
    srresnet, srgan, random = (
        load_generator(runs[1] / f"{name}.safetensors").tail.weight
        for name in ("srresnet", "srgan", "random")
    )
    assert (srgan - srresnet).abs().max() < 1e-3 < (random - srresnet).abs().max()


def test_one_of_two_is_told_to_stop(runs):
    (whole, facts_whole), (stopped, facts) = (
        state_of(runs[1] / name) for name in ("stopped_whole", "stopped")
    )
    assert facts["step"] == facts_whole["step"] == 24
    assert whole.keys() == stopped.keys()
    assert not [name for name in whole if not torch.equal(whole[name], stopped[name])]
    for a, b in zip(facts_whole["history"]["train"], facts["history"]["train"], strict=True):
        assert a == pytest.approx(
            b, rel=1e-6
        )  # sums are added up in another order once a state was saved


def test_only_the_first_process_writes_and_shows(runs):
    first, second = runs[2]
    assert "PSNR" in first and "Going on from" in first and "epoch 1/2" in first
    assert "PSNR" not in second and "Going on from" not in second and "epoch" not in second
    log = (runs[1] / "srgan" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in log] == [
        "train",
        "valid",
        "train",
        "train",
        "valid",
    ]


if __name__ == "__main__":
    train_in_double_precision(Path(sys.argv[1]))
    train_in_half_precision(Path(sys.argv[1]))
    stop_one_and_go_on(Path(sys.argv[1]))
    train_by_the_command_line(Path(sys.argv[1]))
