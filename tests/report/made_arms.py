"""A made-up study of many arms over epochs: a baseline, a penalty, its removal, rivals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd

from grokscope.report import Study
from grokscope.report.words import number

SEEDS = (1, 42, 15213)
STEPS = 20  # an epoch
REMOVAL, LAST = 30, 60
CHANCE = 0.1
PLAIN = {"name": "sgd", "lr": 0.01, "schedule": "constant"}
CHANGED = {"name": "sgd", "lr": 0.1, "schedule": "cosine"}
TASK = {"kind": "images", "source": "uoft-cs/cifar10"}


def phase(
    until: int, cap: float = 0.0, penalty: float = 0.0, optimizer: Mapping[str, Any] = PLAIN
) -> dict[str, Any]:
    """A phase's settings as the experiment's YAML has them; ``until`` in epochs."""
    penalties = [{"measure": "relative_flatness_bound", "weight": -penalty, "start": 0}]
    constraints = [{"kind": "frobenius", "cap": cap, "start": 0, "stop": None}]
    return {
        "until": until * STEPS,
        "optimizer": dict(optimizer),
        "penalties": penalties if penalty else [],
        "constraints": constraints if cap else [],
    }


PUSHED = phase(REMOVAL, 50, 0.01)
PHASES: dict[str, list[dict[str, Any]]] = {
    "baseline": [phase(LAST)],
    "removed": [PUSHED, phase(LAST, 50)],
    "removed, restarted": [PUSHED, phase(LAST, 50, 0.0, CHANGED)],
    "kept, restarted": [PUSHED, phase(LAST, 50, 0.01, CHANGED)],
    "cap 20": [phase(LAST, 20, 0.01)],
    "cap 10, strong": [phase(LAST, 10, 0.03)],
    "cap alone": [phase(LAST, 50)],
    "rate 0.5": [{**phase(LAST), "optimizer": {**PLAIN, "lr": 0.5}}],
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


def arms_study(
    arms: Sequence[str] = tuple(PHASES), seeds: Sequence[int] = SEEDS, **changes: Any
) -> Study:
    """The study; ``changes`` replace its fields. Unknown arms have one phase of a cap of 20."""
    settings = {
        arm: {"task": TASK, "batch_size": 64, "phases": PHASES.get(arm, [phase(LAST, 20, 0.01)])}
        for arm in arms
    }
    settings = deepcopy(settings)  # tests change them
    fields: dict[str, Any] = {
        "name": "suppress-flatness",
        "title": "Does a network need a flat head?",
        "question": "What becomes of a network whose flatness is suppressed?",
        "metrics": pd.concat([one_run(arm, seed) for arm in arms for seed in seeds]),
        "settings": {"name": "suppress-flatness", "seeds": list(seeds), "arms": settings},
        "figures": (
            "accuracies", "flatness_by_arm", "collapse_by_arm", "losses_by_arm", "outcomes",
        ),
    }  # fmt: skip
    return Study(**fields | changes)


def stored(study: Study, arm: str, measure: str, split: str) -> dict[int, dict[int, float]]:
    """Step -> seed -> value."""
    rows = study.metrics
    rows = rows[(rows.arm == arm) & (rows.measure == measure) & (rows.split == split)]
    found: dict[int, dict[int, float]] = {}
    for row in rows.itertuples():
        found.setdefault(int(row.step), {})[int(row.seed)] = float(row.value)
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
    return {seed: statistics.median(own) for seed, own in by_seed.items() if last[seed] >= stop}


def middle(levels: dict[int, float]) -> str:
    return number(statistics.median(levels.values()))
