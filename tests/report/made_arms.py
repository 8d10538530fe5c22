"""A made-up study of many arms over epochs: a baseline, a penalty, its removal, rivals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from grokscope.analysis.run import Results
from grokscope.interventions import FrobeniusCap, Penalty
from grokscope.report import Study
from grokscope.report.words import number
from grokscope.spec import Experiment, Images, Optimizer, Phase, Run

SEEDS = (1, 42, 15213)
STEPS = 20  # an epoch
REMOVAL, LAST = 30, 60
CHANCE = 0.1
PLAIN = Optimizer(name="sgd", lr=0.01)
CHANGED = Optimizer(name="sgd", lr=0.1, schedule="cosine")
TASK = Images(source="uoft-cs/cifar10")


def phase(
    until: float, cap: float = 0.0, penalty: float = 0.0, optimizer: Optimizer = PLAIN
) -> Phase:
    """A phase; ``until`` in epochs."""
    pushed = Penalty(measure="relative_flatness_bound", weight=-penalty) if penalty else None
    return Phase(
        until=round(until * STEPS),
        optimizer=optimizer,
        penalties=(pushed,) if pushed else (),
        constraints=(FrobeniusCap(cap=cap),) if cap else (),
    )


PUSHED = phase(REMOVAL, 50, 0.01)
PHASES: dict[str, list[Phase]] = {
    "baseline": [phase(LAST)],
    "removed": [PUSHED, phase(LAST, 50)],
    "removed, restarted": [PUSHED, phase(LAST, 50, 0.0, CHANGED)],
    "kept, restarted": [PUSHED, phase(LAST, 50, 0.01, CHANGED)],
    "cap 20": [phase(LAST, 20, 0.01)],
    "cap 10, strong": [phase(LAST, 10, 0.03)],
    "cap alone": [phase(LAST, 50)],
    "rate 0.5": [phase(LAST, optimizer=Optimizer(name="sgd", lr=0.5))],
}
# Levels far from the start: training and validation accuracy, kappa, share of the ceiling.
LEVELS = {
    "baseline": (1.0, 0.56, 2.0, 0.0),
    "cap 20": (0.999, 0.565, 400.0, 0.80),
    "cap 10, strong": (0.98, 0.55, 900.0, 0.9),
    "cap alone": (1.0, 0.558, 2.5, 0.0),
    "rate 0.5": (0.4, 0.35, 30.0, 0.0),
    "pushed": (0.12, 0.11, 0.9, 0.98),
    "removed": (1.0, 0.54, 6.0, 0.004),
    "removed, restarted": (0.9, 0.5, 14.0, 0.01),
    "kept, restarted": (0.1, 0.1, 0.5, 0.985),
}
CAPS = {"cap 10, strong": 10.0}
DIVERGED = {("rate 0.5", 42): 24}  # epoch of the last point


def points() -> np.ndarray:
    """Steps looked at: a few early ones, then every two epochs."""
    return np.array([0, 1, 3, 10, *range(2 * STEPS, LAST * STEPS + 1, 2 * STEPS)])


def stretch(level: str, seed: int, epoch: np.ndarray, cap: float) -> dict[str, np.ndarray]:
    """Train and validation curves that settle at an arm's levels within some epochs."""
    rng = np.random.default_rng([seed, len(level), ord(level[0])])
    training, held_out, kappa, share = LEVELS[level]
    settled = 1 - np.exp(-epoch / 5)

    def noise(size: float) -> np.ndarray:
        return np.exp(rng.normal(0, size, len(epoch)))

    ceiling = 0.9 * cap**2
    published = 3 * (1 - settled) + 0.02 + share * ceiling * settled
    return {
        "train/accuracy": np.clip((CHANCE + (training - CHANCE) * settled) * noise(0.004), 0, 1),
        "validation/accuracy": (CHANCE + (held_out - CHANCE) * settled) * noise(0.01),
        "train/relative_flatness": (60 * (1 - settled) + kappa * settled) * noise(0.3),
        "train/relative_flatness_matched": (20 * (1 - settled) + kappa * settled) * noise(0.1),
        "train/relative_flatness_bound": (600 * (1 - settled) + 9 * kappa * settled) * noise(0.3),
        "train/published_penalty": np.minimum(published * noise(0.01), ceiling),
        "train/ncc": (4 * (1 - settled) + 0.05 / training * settled) * noise(0.1),
        "validation/ncc": (5 * (1 - settled) + 1.5 / training * settled) * noise(0.05),
        "train/angle_deviation": (30 * (1 - settled) + 5 * settled) * noise(0.03),
        "train/loss": (2.3 * (1 - settled * training) + 1e-3) * noise(0.2),
        "validation/loss": 2.3 + held_out * settled * noise(0.1),
        "train/logit_scale": 1 + 14 * training * settled,
        "train/minibatch_loss": (2.3 * (1 - settled * training) + 2e-3) * noise(0.1),
    }


def one_run(arm: str, seed: int) -> pd.DataFrame:
    """Metrics of one arm and seed; arms with the same first phase have the same values there."""
    step = points()
    step = step[step <= DIVERGED.get((arm, seed), LAST) * STEPS]
    epoch = step / STEPS
    cap = CAPS.get(arm, 50.0 if arm in LEVELS and arm != "cap 20" else 20.0)
    if len(PHASES.get(arm, "-")) == 1:
        curves = stretch(arm if arm in LEVELS else "cap 20", seed, epoch, cap)
    else:
        first, then = stretch("pushed", seed, epoch, cap), stretch(arm, seed, epoch - REMOVAL, cap)
        curves = {name: np.where(epoch <= REMOVAL, first[name], then[name]) for name in first}
    wide = pd.DataFrame({"step": step, "epoch": epoch, **curves})
    long = wide.melt(["step", "epoch"], var_name="name").assign(arm=arm, seed=seed)
    long[["split", "measure"]] = long["name"].str.split("/", expand=True)
    return long[["arm", "seed", "step", "epoch", "split", "measure", "value"]]


def metrics(arms: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    return pd.concat([one_run(arm, seed) for arm in arms for seed in seeds], ignore_index=True)


def unchanged(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


def arms_study(
    arms: Sequence[str] = tuple(PHASES),
    seeds: Sequence[int] = SEEDS,
    *,
    change: Callable[[pd.DataFrame], pd.DataFrame] = unchanged,
    phases: Mapping[str, list[Phase]] = {},
    tasks: Mapping[str, Any] = {},
    **fields: Any,
) -> Study:
    """The study; unknown arms have one phase with a cap of 20.

    ``change`` is applied to its metrics, ``phases`` and ``tasks`` replace those of arms, ``fields``
    its own.
    """
    known = {**PHASES, **phases}
    runs = {
        arm: Run(
            task=tasks.get(arm, TASK), batch_size=64,
            phases=tuple(known.get(arm, [phase(LAST, 20, 0.01)])),
        )
        for arm in arms
    }  # fmt: skip
    asked = Experiment(
        name="suppress-flatness", title="Does a network need a flat head?",
        question="What becomes of a network whose flatness is suppressed?", arms=runs,
        seeds=tuple(seeds),
    )  # fmt: skip
    whole: dict[str, Any] = {
        "results": Results.from_metrics(change(metrics(arms, seeds)), asked),
        "name": asked.name,
        "title": asked.title,
        "question": asked.question,
        "settings": asked.model_dump(mode="json"),
        "figures": (
            "outcomes", "accuracies", "flatness_by_arm", "collapse_by_arm", "losses_by_arm",
        ),
    }  # fmt: skip
    return Study(**whole | fields)


def stored(study: Study, arm: str, measure: str, split: str) -> dict[int, dict[int, float]]:
    """Step -> seed -> value."""
    found: dict[int, dict[int, float]] = {}
    for seed, run in study.results.arms[arm].runs.items():
        for step, value in zip(*run.curve(measure, split), strict=True):
            found.setdefault(int(step), {})[seed] = float(value)
    return found


def naive_level(
    study: Study, arm: str, measure: str, split: str, start: float, stop: float
) -> dict[int, float]:
    """Seed -> median over the last fifth of what lies between two epochs."""
    by_seed: dict[int, list[float]] = {}
    last: dict[int, float] = {}
    for step, values in stored(study, arm, measure, split).items():
        for seed, value in values.items():
            last[seed] = max(last.get(seed, 0), step / STEPS)
            if stop - 0.2 * (stop - start) <= step / STEPS <= stop:
                by_seed.setdefault(seed, []).append(value)
    return {
        seed: statistics.median(values) for seed, values in by_seed.items() if last[seed] >= stop
    }


def middle(levels: dict[int, float]) -> str:
    return number(statistics.median(levels.values()))
