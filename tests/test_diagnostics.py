"""The diagnostics of an adversarial training: each cause is named, and nothing else."""

import re

import pytest
from training import make

from tools import diagnostics
from tools.diagnostics import STEPS, diagnose


def rows(ratio=20.0, real=0.8, generated=0.2, steps=600, every=20):
    values = dict(content_to_adversarial=ratio, d_real=real, d_generated=generated)
    return [{"step": step, **values} for step in range(every, steps + 1, every)]


@pytest.mark.parametrize(
    ("state", "cause", "advice"),
    [
        (dict(ratio=450), "ratio high", "Divide content_weight by about 22"),
        (dict(ratio=float("inf")), "ratio high", "Divide content_weight"),
        (dict(ratio=0.5), "ratio low", "Multiply content_weight by about 40"),
        (dict(ratio=0), "ratio low", "Raise it from 0"),  # content_weight=0
        (dict(real=0.995, generated=0.004), "D has won", "Lower content_weight"),
        (dict(real=0.505, generated=0.495), "D is blind", "Raise learning_rate"),
    ],
)
def test_each_cause_is_named_with_what_to_change(state, cause, advice):
    found = diagnose(rows(**state))
    assert list(found) == [cause]
    assert advice in found[cause] and "step 600" in found[cause]


@pytest.mark.parametrize(
    "state", [{}, dict(ratio=3), dict(ratio=150), dict(real=0.97, generated=0.03)]
)
def test_a_healthy_training_has_no_diagnosis(state):
    assert diagnose(rows(**state)) == {}


def test_a_training_without_a_discriminator_has_no_diagnosis():
    assert diagnose([]) == {}
    assert diagnose([{"step": 1000, "mse": 0.01}]) == {}


def test_what_passes_by_itself_is_not_told():
    ill = dict(ratio=1e4, real=0.5, generated=0.5)
    assert diagnose(rows(**ill, steps=STEPS - 20)) == {}, "too early to judge"
    assert len(diagnose(rows(**ill, steps=STEPS))) == 2
    start = rows(**ill, steps=240)  # an untrained generator: at first all is content
    later = [row for row in rows(steps=900) if row["step"] > 240]
    assert all(diagnose([*start, *later[:k]]) == {} for k in range(len(later)))


def test_what_was_well_long_ago_does_not_count():
    later = rows(ratio=0.5, steps=2000)[-STEPS // 20 :]
    assert list(diagnose([*rows(steps=1500), *later])) == ["ratio low"]


def test_two_causes_are_two_messages():
    assert list(diagnose(rows(ratio=0.4, real=1.0, generated=0.0))) == ["ratio low", "D has won"]


def test_the_solver_warns_once_of_each_cause(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagnostics, "STEPS", 4)
    solver = make("gan", images, tmp_path / "run", log_every=1, content_weight=1e6)
    solver.fit()
    lines = re.split(r"[\r\n]+", capsys.readouterr().out)
    told = [line for line in lines if "content : adversarial" in line]
    assert solver.step > 4 and len(told) == 1
    assert told[0].startswith("warning: ")  # a line of its own, not behind the bar
    assert "up to step 4," in told[0] and "Divide content_weight" in told[0]
