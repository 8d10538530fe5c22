"""Checks of several runs in one process: on streams, and in one forward and backward pass."""

from __future__ import annotations

import torch

from benchmarks.gpu.checks import cases
from benchmarks.gpu.checks.check import Found, check, count, worst
from benchmarks.gpu.checks.steps import EXACT
from benchmarks.gpu.engine import difference, replicas_of, streams_of, training_of, unequal
from benchmarks.gpu.session import Session

STEPS = 60
SEEDS = (1, 2, 3)


@check()
def four_unlike_runs_side_by_side_equal_each_alone(session: Session) -> Found:
    """Runs on neighbouring streams share memory or workspace that one of them still needs."""
    runs = cases.four_unlike(STEPS)
    streams = streams_of(runs.values(), session.device)
    streams.advance(STEPS)
    wrong = {}
    for place, (name, run) in enumerate(runs.items()):
        alone = training_of(run, session.device)
        alone.advance(STEPS)
        wrong[name] = unequal(streams.state(place), alone.state())
    return count(wrong)


@check()
def replicas_in_one_pass_equal_each_run_alone(session: Session) -> Found:
    """The batched step is another step than that of one run, beyond rounding (in float64)."""
    apart = {}
    capped = {"penalties": (cases.PUBLISHED,), "constraints": (cases.CAPS[0],)}
    runs = {
        "equations": cases.modular(),
        "equations, published penalty and cap": cases.modular(**capped),
        "images": cases.images(),
        "images, crops and flips": cases.images(task=cases.AUGMENTED),
    }
    for name, run in runs.items():
        together = replicas_of(run, session.device, SEEDS, dtype=torch.float64)
        together.advance(cases.STEPS)
        for place, seed in enumerate(SEEDS):
            alone = training_of(run, session.device, seed=seed, dtype=torch.float64)
            alone.advance(cases.STEPS)
            apart[f"{name}, seed {seed}"] = difference(together.state(place), alone.state())
    return worst(apart, EXACT, "difference of the weights, as a share of their norm")
