"""GAN diagnostics: whether generator and discriminator still learn from each other."""

import statistics
from typing import Any

STEPS = 500  # judged together; what goes wrong for fewer steps often recovers by itself
HEALTHY_RATIO = (2, 200)  # content : adversarial, as weighted; about 20 after pre-training


def diagnose(rows: list[dict[str, Any]]) -> dict[str, str]:
    """{cause: what is seen, what it means, what to change} of an adversarial training; {} if well.

    Args:
        rows: of `Solver.history["train"]`. Judged by medians over the last `STEPS` steps.
    """
    if not rows or "content_to_adversarial" not in rows[-1] or rows[-1]["step"] < STEPS:
        return {}
    last = [row for row in rows if row["step"] > rows[-1]["step"] - STEPS]
    names = ("content_to_adversarial", "d_real", "d_generated")
    ratio, real, generated = (statistics.median(row[name] for row in last) for name in names)
    low, high = HEALTHY_RATIO
    when = f"Over the last {STEPS} steps, up to step {rows[-1]['step']}, "
    outputs = f"{when}D(HR) was {real:.3f} and D(G(LR)) {generated:.3f}: "
    balance = f"{when}content : adversarial was {ratio:.2g} : 1 (healthy: {low} to {high}). "
    found = {}
    if ratio > high:
        found["ratio high"] = (
            f"{balance}The discriminator hardly moves the generator, which stays as smooth as "
            f"SRResNet. Divide content_weight by about {ratio / 20:.0f}."
        )
    if ratio < low:
        change = (
            f"Multiply content_weight by about {20 / ratio:.0f}" if ratio else "Raise it from 0"
        )
        found["ratio low"] = (
            f"{balance}The content loss hardly holds the generator; colours and textures drift. "
            f"{change}."
        )
    if real > 0.98 and generated < 0.02:
        found["D has won"] = (
            f"{outputs}the discriminator has won, and the generator's gradient vanishes. Lower "
            "content_weight or learning_rate, or train SRResNet for longer first."
        )
    if abs(real - generated) < 0.02:
        found["D is blind"] = (
            f"{outputs}the discriminator cannot tell them apart, and its gradient is noise. Raise "
            "learning_rate or batch_size; unless the samples look real, start again."
        )
    return found
