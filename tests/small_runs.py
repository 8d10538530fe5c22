"""Runs that take a second, for the tests of engine and runs."""

from __future__ import annotations

from grokscope.spec import (
    Experiment,
    ModularArithmetic,
    Observation,
    Optimizer,
    Phase,
    Run,
    Seeds,
    Segment,
)

TASK = ModularArithmetic(modulus=7, width=16, heads=2, train_fraction=0.6)

BROKEN = '''
import torch
from grokscope import Split, Task

def broken(after: int) -> Task:
    """A model whose loss fails after so many steps."""
    data = Split(torch.randn(40, 4), torch.arange(40) % 4)
    calls = []

    def loss(logits, labels):
        calls.append(1)
        if len(calls) > after:
            raise ZeroDivisionError("the loss is broken")
        return torch.nn.functional.cross_entropy(logits, labels)

    return Task(torch.nn.Linear(4, 4), data, data, loss=loss)
'''


def run(*untils: int, lr: float = 1e-2, **changes: object) -> Run:
    """Phases that end at the given steps, each with the same optimiser."""
    optimizer = Optimizer(lr=lr, weight_decay=0.5, warmup_steps=3)
    settings: dict[str, object] = {
        "task": TASK,
        "batch_size": 8,
        "phases": tuple(Phase(until=until, optimizer=optimizer) for until in untils),
        "observation": Observation(
            per_decade=3, max_gap=9, train_examples=20, validation_examples=18
        ),
    }
    return Run(**(settings | changes))


def segment(*untils: int, seed: int = 1, **changes: object) -> Segment:
    """The last segment of such a run."""
    return run(*untils, **changes).segments(seed)[-1]


def experiment(seeds: tuple[int, ...] = (1, 2), **arms: Run) -> Experiment:
    """An experiment of such runs."""
    return Experiment(
        name="small",
        title="Small",
        question="Does it run?",
        arms=arms or {"a": run(30)},
        seeds=seeds,
    )


def resolved(seed: int) -> Seeds:
    return Seeds().resolve(seed)
