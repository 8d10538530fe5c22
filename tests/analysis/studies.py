"""Made-up studies of arms whose levels are arguments, judged by a claim on their contrasts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from grokscope.analysis import ClaimReport, Results, evaluate_claims
from grokscope.spec import Contrast, Experiment, Phase, Run

SEEDS = (1, 2, 3, 4, 5)
STEPS = np.arange(0, 101, 5)
PLAIN = {
    ("train", "accuracy"): 1.0,
    ("validation", "accuracy"): 0.6,
    ("train", "ncc"): 0.5,
    ("train", "relative_flatness"): 10.0,
    ("train", "relative_flatness_matched"): 10.0,
    ("train", "published_penalty"): 5.0,
    ("train", "logit_scale"): 4.0,
    ("train", "angle_deviation"): 3.0,
}


def arm(name: str, seeds=SEEDS, until=100, noise=0.002, start=0, **levels: float) -> pd.DataFrame:
    """Runs whose levels are constant from the first step on, up to a little noise by seed.

    Levels are named ``split_measure``, such as ``validation_accuracy``.
    """
    given = {tuple(key.split("_", 1)): value for key, value in levels.items()}
    rows = []
    for seed in seeds:
        rng = np.random.default_rng([seed, *map(ord, name)])
        for (split, measure), value in (PLAIN | given).items():
            own = value + rng.normal(0, noise) if measure == "accuracy" and value < 0.97 else value
            own *= 1 if measure == "accuracy" else math.exp(rng.normal(0, noise))
            rows += [(name, seed, s, split, measure, own) for s in STEPS[until >= STEPS]]
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "split", "measure", "value"])


def experiment(*contrasts: Contrast, phases=(50, 100), seeds=SEEDS) -> Experiment:
    run = Run(phases=tuple(Phase(until=each) for each in phases))
    names = {name for each in contrasts for name in (each.arm, each.against)}
    return Experiment(
        name="x", title="X", question="?", arms=dict.fromkeys(sorted(names), run), seeds=seeds,
        contrasts=contrasts,
    )  # fmt: skip


def judged(*frames: pd.DataFrame, contrasts: list[Contrast], **settings) -> ClaimReport:
    results = Results.from_metrics(pd.concat(frames), experiment(*contrasts, **settings))
    (report,) = evaluate_claims(results, [contrasts[0].claim])
    return report
