"""Checks of single steps: against the CPU, against eager steps, and for hidden waits."""

from __future__ import annotations

import warnings

import torch

from benchmarks.gpu.checks import cases
from benchmarks.gpu.checks.check import Found, check, count, worst
from benchmarks.gpu.engine import difference, training_of, unequal
from benchmarks.gpu.session import Session

EXACT = 1e-9  # of float64 numbers that differ by rounding alone
EAGER = 50  # steps over which captured and eager ones are compared
WAITED = "called a synchronizing CUDA operation"  # PyTorch's warning
CPU = torch.device("cpu")


@check(needs_gpu=True)
def a_captured_step_equals_an_eager_one_to_the_bit(session: Session) -> Found:
    """The graph bakes in what changes between steps, or reads what the host has since reused.

    Steps that were not captured count as unequal, and the details say why they were not.
    """
    wrong, reasons = {}, {}
    for name, run in cases.what_hinders_capture(EAGER).items():
        captured, eager = (
            training_of(run, session.device, graphs=graphs) for graphs in (True, False)
        )
        for training in (captured, eager):
            training.advance(EAGER)
        wrong[name] = unequal(captured.state(), eager.state())
        if why := captured.launcher.eager:
            reasons[name] = why
            wrong[name] += ["it was not captured"] * session.on_gpu
    found = count(wrong)
    return Found(found.measured, 0, found.unit, found.details | {"not captured": reasons})


@check(needs_gpu=True)
def twenty_steps_in_float64_equal_those_of_the_cpu(session: Session) -> Found:
    """The GPU computes another step than the CPU, beyond rounding: nothing it trains is valid."""
    apart = {}
    for name, run in cases.every_intervention().items():
        states = []
        for device in (session.device, CPU):
            training = training_of(run, device, dtype=torch.float64, graphs=False)
            training.advance(cases.STEPS)
            states.append(training.state())
        apart[name] = difference(*states)
    return worst(apart, EXACT, "difference of the weights, as a share of their norm")


@check(needs_gpu=True)
def nothing_waits_for_the_device_between_looks(session: Session) -> Found:
    """Some operation makes the host wait, so that the device idles at every step."""
    waits = {}
    for name, run in cases.what_hinders_capture(400).items():
        training = training_of(run, session.device)
        training.advance(40)  # captures
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                training.advance(300)  # and fills the tables of coming steps once
            finally:
                torch.cuda.set_sync_debug_mode("default")
        if not training.launcher.eager:
            waits[name] = sorted(
                {f"{one.filename}:{one.lineno}" for one in caught if WAITED in str(one.message)}
            )
    return count(waits, "places that wait")
