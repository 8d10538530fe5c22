"""Checks of what is measured: in float32 and in float64, on the GPU and on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from benchmarks.gpu.checks import cases
from benchmarks.gpu.checks.check import Found, check, count, worst
from benchmarks.gpu.checks.steps import CPU
from benchmarks.gpu.engine import training_of
from benchmarks.gpu.session import Session
from grokscope.engine.loop import Training
from grokscope.engine.state import MODEL, State
from grokscope.spec import Run

ROUNDING = 1e-4  # of float32 in a look; TF32 would miss it
RUNS = {"equations": cases.modular, "images": cases.images}
TRAINED = 60  # steps before the look: a network that has learned something


@check()
def a_look_in_float32_equals_one_in_float64_on_the_cpu(session: Session) -> Found:
    """A look rounds its products, to TF32 or worse: curves move by more than they should."""
    return apart(session.device, torch.float32, ROUNDING)


@check(needs_gpu=True)
def a_look_in_float64_equals_one_on_the_cpu(session: Session) -> Found:
    """A measure is computed in another way on the GPU, or draws other random directions."""
    return apart(session.device, torch.float64, 1e-7)


@check(needs_gpu=True)
def tf32_is_used_where_a_phase_asks_for_it_and_nowhere_else(session: Session) -> Found:
    """The setting has no effect on training, or it leaks into looks and into other runs."""
    wrong = {}
    for name, make in RUNS.items():
        full, rounded = make(TRAINED), make(TRAINED, precision="tf32")
        first, second, other = (training_of(run, session.device) for run in (full, full, rounded))
        first.advance(10)
        before = measured_now(first)
        other.advance(10)
        second.advance(10)
        weights, beside, changed = (
            [tensor for name, tensor in training.state().tensors.items() if name.startswith(MODEL)]
            for training in (first, second, other)
        )
        found = {
            "TF32 changes nothing": all(map(torch.equal, weights, changed)),
            "a run beside it changes": not all(map(torch.equal, weights, beside)),
            "a look after it changes": not equal(measured_now(first), before),
        }
        wrong[name] = [what for what, is_wrong in found.items() if is_wrong]
    return count(wrong, "things that are wrong")


def apart(device: torch.device, dtype: torch.dtype, limit: float) -> Found:
    """The largest difference of a measure from the CPU's in float64, as a share of its size."""
    differences = {}
    for name, make in RUNS.items():
        trained = training_of(make(TRAINED), CPU)
        trained.advance(TRAINED)
        state = trained.state()
        here, exact = measured(make, state, device, dtype), measured(make, state, CPU)
        for measure, value in exact.items():
            differences[f"{name}, {measure}"] = relative(here[measure], value)
    return worst(differences, limit, "difference of a measure, as a share of its size")


def measured(
    make: Callable[..., Run],
    state: State,
    device: torch.device,
    dtype: torch.dtype = torch.float64,
) -> dict[str, float]:
    """What a look finds of given weights, by ``split/measure``."""
    return measured_now(training_of(make(TRAINED + 1), device, dtype=dtype, state=state))


def measured_now(training: Training) -> dict[str, float]:
    """What a look finds, by ``split/measure``; without what training itself saw."""
    return {
        f"{row.split}/{row.measure}": row.value
        for row in training.look()
        if not row.measure.startswith(("minibatch_", "penalty_"))
    }


def equal(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two looks found the same, to the bit."""
    return all(relative(one[name], value) == 0 for name, value in other.items())


def relative(here: float, exact: float) -> float:
    """The difference, as a share of the value; of values near zero the difference itself."""
    if math.isnan(here) and math.isnan(exact):
        return 0.0
    return abs(here - exact) / max(abs(exact), 1e-2)
