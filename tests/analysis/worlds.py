"""Made-up grokking runs in which the truth is known: who falls when is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from grokscope.analysis import ClaimReport, Curve, Results, Trajectory, evaluate_claims
from grokscope.spec import Experiment

SEEDS = (1, 42, 15213, 7)


def points(until: int = 4000, per_decade: int = 10, gap: int = 50) -> np.ndarray:
    """Measuring points as runs have them: ten a decade, then 50 steps apart."""
    found = [0]
    while found[-1] < until:
        here = found[-1]
        step = round(here * 10 ** (1 / per_decade))
        if here >= gap:
            step = min(step, here - here % gap + gap)
        found.append(min(max(step, here + 1), here + gap, until))
    return np.array(found, dtype=float)


def rise(steps: np.ndarray, at: float, width: float) -> np.ndarray:
    """A sigmoid in log time, one half at ``at``; the width is in decades."""
    time = np.log10(np.maximum(steps, 0.5))
    return 1 / (1 + np.exp(-np.clip((time - np.log10(at)) / width, -500, 500)))


def tenth(at: float, width: float) -> float:
    """When such a sigmoid is a tenth up."""
    return float(10 ** (np.log10(at) - width * np.log(9)))


def two_stages(steps: np.ndarray, early: float, late: float) -> np.ndarray:
    """Rises to a peak while memorising, falls at 700 and at 2,700 by so many decades."""
    rng = np.random.default_rng(5)
    log = 2 + 0.36 * rise(steps, 250, 0.05) - early * rise(steps, 700, 0.02)
    log = log - late * rise(steps, 2700, 0.02) + 0.05 * rng.normal(size=len(steps))
    return 10**log


def run_of(steps: np.ndarray, train: np.ndarray, validation: np.ndarray) -> Trajectory:
    """A run of which only the two accuracies were measured."""
    curves = {"train": Curve(steps, train), "validation": Curve(steps, validation)}
    return Trajectory("a", 1, {("accuracy", split): curve for split, curve in curves.items()})


@dataclass(frozen=True)
class World:
    """Runs that memorise, wait on a shallow plateau and generalise.

    Attributes:
        memorises: Step at which training accuracy is half way up.
        generalises: Step at which validation accuracy is half way up; infinite for never.
        falls: Measure -> ((step, decades, width), ...): stages of its fall on a log scale.
        noise: Standard deviation of falling measures, decades.
        spikes: Share of measuring points after memorisation at which the loss spikes.
        scatter: Between seeds, of all steps, decades.
        seeds: The runs.
    """

    memorises: float = 400.0
    generalises: float = 2700.0
    falls: Mapping[str, tuple[tuple[float, float, float], ...]] = field(default_factory=dict)
    noise: float = 0.05
    spikes: float = 0.15
    scatter: float = 0.02
    seeds: Sequence[int] = SEEDS
    until: int = 4000

    def metrics(self) -> pd.DataFrame:
        """The tidy frame."""
        return pd.concat([self._run(seed) for seed in self.seeds], ignore_index=True)

    def _run(self, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        steps = points(self.until)
        late = 10 ** rng.normal(0, self.scatter)
        fit = rise(steps, self.memorises * late, 0.05)
        grok = (
            rise(steps, self.generalises * late, 0.025)
            if np.isfinite(self.generalises)
            else np.zeros(len(steps))
        )
        spike = (steps > 1.3 * self.memorises) & (rng.random(len(steps)) < self.spikes)
        size = np.where(spike, rng.uniform(0.2, 1.0, len(steps)), 0.0)
        shallow = 0.2 * fit + 0.12 * fit * rise(steps, 1.5 * self.memorises, 0.15)
        accuracy = np.clip(0.01 + 0.99 * fit + 0.004 * (fit > 0.97) - 0.5 * size, 0, 1)
        held_out = shallow + (1 - shallow) * grok + rng.normal(0, 0.006, len(steps))
        held_out = np.clip(held_out * (1 - 0.6 * size), 0, 1)
        loss = 10 ** (0.66 - 2 * fit - 0.3 * grok + 1.2 * size + rng.normal(0, 0.05, len(steps)))
        values = {
            ("train", "accuracy"): accuracy,
            ("validation", "accuracy"): held_out,
            ("train", "loss"): loss,
        }
        for name, stages in self.falls.items():
            split, measure = name.split("/")
            log = 2.0 + rng.normal(0, self.noise, len(steps)) + 0.7 * size
            for at, decades, width in stages:
                log = log - decades * rise(steps, at * late, width)
            values[split, measure] = 10**log
        frames = [
            pd.DataFrame({"step": steps.astype(int), "split": split, "measure": name, "value": own})
            for (split, name), own in values.items()
        ]
        frame = pd.concat(frames, ignore_index=True).assign(arm="grokking", seed=seed)
        frame["epoch"] = frame["step"] / 8
        return frame[["arm", "seed", "step", "epoch", "split", "measure", "value"]]


AT_MEMORISATION = ((700.0, 1.0, 0.03),)
AT_GENERALISATION = ((2700.0, 1.0, 0.03),)
HALF_AND_HALF = ((700.0, 0.6, 0.03), (2700.0, 0.6, 0.03))
MOSTLY_EARLY = ((700.0, 0.9, 0.03), (2700.0, 0.3, 0.03))
NEVER: tuple[tuple[float, float, float], ...] = ()


def judged(
    metrics: pd.DataFrame,
    claims: Sequence[str],
    experiment: Experiment | None = None,
    arm: str | None = None,
) -> list[ClaimReport]:
    """What the claims say of a tidy frame."""
    return evaluate_claims(Results.from_metrics(metrics, experiment), claims, arm=arm)
