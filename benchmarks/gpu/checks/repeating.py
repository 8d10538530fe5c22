"""Checks that a run is a function of its settings: made twice, and resumed."""

from __future__ import annotations

from functools import cache

import torch

from benchmarks.gpu.checks import cases
from benchmarks.gpu.checks.check import Found, check, count
from benchmarks.gpu.engine import training_of, unequal
from benchmarks.gpu.session import Session
from grokscope.engine.state import State

HALF = 30


@cache
def whole(device: torch.device) -> dict[str, State]:
    """The ends of all runs that were made without a break."""
    ends = {}
    for name, run in cases.what_hinders_capture(2 * HALF).items():
        training = training_of(run, device)
        training.advance(2 * HALF)
        ends[name] = training.state()
    return ends


@check()
def the_same_run_made_twice_is_the_same_to_the_bit(session: Session) -> Found:
    """Some kernel adds up in an order that changes; results repeat up to rounding only."""
    first = whole(session.device)
    whole.cache_clear()
    second = whole(session.device)
    return count({name: unequal(first[name], second[name]) for name in first})


@check()
def thirty_steps_and_thirty_more_are_sixty(session: Session) -> Found:
    """A checkpoint misses something that the next step depends on: resumed runs are others."""
    wrong = {}
    for name, run in cases.what_hinders_capture(2 * HALF).items():
        half = training_of(run, session.device)
        half.advance(HALF)
        resumed = training_of(run, session.device, state=half.state())
        resumed.advance(HALF)
        wrong[name] = unequal(resumed.state(), whole(session.device)[name])
    return count(wrong)
