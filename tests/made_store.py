"""Stores filled by hand, for the tests of what is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from grokscope.engine.observe import Row
from grokscope.engine.state import State
from grokscope.runs.store import Store
from grokscope.spec import Experiment, Optimizer, Phase, Run, Segment

UNTIL = 2000
MEMORISED, GENERALISED = 300, 1500
POINTS = [0, *range(20, UNTIL + 1, 20)]
ENVIRONMENT = {"torch": "2.9", "revision": None, "seeds": {"split": 1}, "seconds": 1.25}


def made_experiment(
    *untils: int, arms: Sequence[str] = ("grokking",), **changes: Any
) -> Experiment:
    """An experiment whose arms differ in their learning rate, or they would be one."""
    runs = {}
    for number, arm in enumerate(arms):
        optimizer = Optimizer(lr=10.0**-number)
        ends = untils or (UNTIL,)
        runs[arm] = Run(phases=[Phase(until=until, optimizer=optimizer) for until in ends])
    settings: dict[str, Any] = {
        "name": "grokking",
        "title": "Made up",
        "question": "Is it read as it was written?",
        "arms": runs,
        "seeds": (1, 42),
    }
    return Experiment(**(settings | changes))


def made_state(step: int) -> State:
    return State(step, {"model/w": torch.zeros(1)}, "adamw", 1)


def finish(store: Store, segment: Segment, rows: Sequence[Row], **how: Any) -> None:
    """Store a segment; ``how`` may hold step, seconds, environment, diverged."""
    state = made_state(how.pop("step", segment.phase.until))
    seconds, environment = how.pop("seconds", 10.0), how.pop("environment", ENVIRONMENT)
    store.finish(segment, state, rows, seconds=seconds, environment=environment, **how)


def curve(split: str, measure: str, values: Sequence[float]) -> list[Row]:
    return [
        Row(step, step / 8, split, measure, value)
        for step, value in zip(POINTS, values, strict=True)
    ]


def accuracies(memorised: float = MEMORISED, generalised: float = GENERALISED) -> list[Row]:
    """Training accuracy 0, then 1; validation accuracy 0.1, then 1."""
    return [
        *curve("train", "accuracy", [float(step >= memorised) for step in POINTS]),
        *curve("validation", "accuracy", [0.1 + 0.9 * (step >= generalised) for step in POINTS]),
    ]


def stored(folder: Path, asked: Experiment, rows: dict[int, list[Row]]) -> Store:
    """A store of an experiment of one phase, each seed with its rows in every arm."""
    store = Store(folder)
    store.save_experiment(asked)
    for _, seed, (segment,) in asked.runs():
        finish(store, segment, rows[seed])
    return store
