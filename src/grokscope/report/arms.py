"""An experiment's arms over epochs: their phases, lines and levels, and what they have in common.

A line is the running median over seeds and neighbouring points of one phase: what lies before the
end of a phase never smooths what comes after it. A level is what the claims call one: a run's
median over the last part of a phase. Neither is ever one checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grokscope.analysis.contrasts import level
from grokscope.analysis.statistics import geometric_ratio
from grokscope.report.curves import Curves, MissingMeasureError, running_median

if TYPE_CHECKING:
    from grokscope.report.contents import Study

REFERENCE = "baseline"  # the arm that others are compared with, where there is one of this name
MOST_LINES = 8  # arms that can be told apart in one panel
CLASSES = {"cifar10": 10, "cifar-10": 10, "digits": 10}  # of a source, where none was measured
SAME = 1e-9  # relative; epochs are quotients


@dataclass(frozen=True)
class Span:
    """A phase, or part of one, in epochs: after ``start``, up to and with ``stop``."""

    start: float
    stop: float


class Arm:
    """One arm with its seeds.

    Args:
        name: As in the settings.
        metrics: Its rows of `Study.metrics`, among them one after step 0.
        settings: Its run as nested dicts; may be empty.

    Raises:
        MissingMeasureError: If the rows do not say which epoch a step belongs to.
    """

    def __init__(self, name: str, metrics: pd.DataFrame, settings: Mapping[str, Any]) -> None:
        self.name = " ".join(name.split())
        self.settings = settings
        self.curves = Curves(self.name, metrics, pd.DataFrame())
        later = metrics[metrics["step"] > 0]
        self.epoch_steps = float((later["step"] / later["epoch"]).median())
        if not 0 < self.epoch_steps < math.inf:
            raise MissingMeasureError("the metrics do not say at which epoch a step was")
        ends = metrics.groupby("seed", as_index=False)["step"].max()
        self.ends = {
            int(seed): float(step) / self.epoch_steps
            for seed, step in zip(ends["seed"], ends["step"], strict=True)
        }
        self.phases = self._phases()
        self._read: dict[tuple[str, str], pd.DataFrame] = {}

    def _phases(self) -> list[Span]:
        stops = [each["until"] / self.epoch_steps for each in self._settings_of_phases()]
        stops = stops or [max(self.ends.values())]
        return [Span(*pair) for pair in zip([0.0, *stops[:-1]], stops, strict=True)]

    def _settings_of_phases(self) -> Sequence[Mapping[str, Any]]:
        return self.settings.get("phases", ())

    @property
    def quoted(self) -> str:
        """The name within a sentence: in quotation marks where it would blend with the rest."""
        signs = any(each in self.name for each in (",", ";", ":", " and "))
        blends = signs or self.name[:1].isdigit()  # a value of a sweep
        return f"“{self.name}”" if blends else self.name

    def has(self, measure: str, split: str) -> bool:
        """Whether the measure has a finite value on that split."""
        return self.curves.has(measure, split)

    def get(self, measure: str, split: str) -> pd.DataFrame:
        """Values ``[epochs, seeds]``.

        Raises:
            MissingMeasureError: If the measure has no finite value on that split.
        """
        key = (measure, split)
        if key not in self._read:
            curve = self.curves.get(measure, split)
            self._read[key] = curve.set_index(curve.index / self.epoch_steps)
        return self._read[key]

    def line(self, measure: str, split: str) -> pd.Series:
        """Median over seeds and neighbouring points of the same phase, by epoch.

        Raises:
            MissingMeasureError: If the measure has no finite value on that split.
        """
        curve = self.get(measure, split)
        stops = [phase.stop * (1 + SAME) for phase in self.phases[:-1]]
        phase = np.searchsorted(stops, curve.index.to_numpy(dtype=float))
        return pd.concat([running_median(own) for _, own in curve.groupby(phase)]).dropna()

    def levels(self, measure: str, split: str, span: Span) -> dict[int, float]:
        """Seed -> level at the end of a span, as claims have it; NaN for a run that ended early."""
        if not self.has(measure, split):
            return {}
        curve = self.curves.get(measure, split)
        start, stop = (round(each * self.epoch_steps) for each in (span.start, span.stop))
        found = {}
        for seed in map(int, curve.columns):
            own = curve[seed].dropna()
            known = self.came_to(span.stop, seed)
            steps, values = own.index.to_numpy(dtype=float), own.to_numpy(dtype=float)
            found[seed] = level(steps, values, start, stop) if known else math.nan
        return found

    def came_to(self, epoch: float, seed: int) -> bool:
        """Whether a seed's run was measured at that epoch or later."""
        return self.ends.get(seed, -1.0) >= epoch * (1 - SAME)

    def level(self, measure: str, split: str, span: Span) -> float:
        """Median of the seeds' levels; NaN if none came so far."""
        found = [each for each in self.levels(measure, split, span).values() if each == each]
        return float(np.median(found)) if found else math.nan

    def ratio(self, other: Arm, measure: str, split: str, span: Span) -> float:
        """Geometric mean over seeds of this arm's level over the other's at the same epoch.

        NaN without a seed in which both are positive.
        """
        own, reference = (each.levels(measure, split, span) for each in (self, other))
        seeds = [seed for seed in own if own[seed] > 0 and reference.get(seed, math.nan) > 0]
        if not seeds:
            return math.nan
        return geometric_ratio(
            {seed: own[seed] for seed in seeds}, {seed: reference[seed] for seed in seeds}
        ).effect

    @property
    def classes(self) -> float:
        """Number of classes as measured, or as known of the data; NaN where it is not."""
        for split in ("train", "validation"):
            if self.has("classes", split):
                return float(np.nanmax(self.get("classes", split).to_numpy(dtype=float)))
        source = str(self.settings.get("task", {}).get("source", ""))
        return CLASSES.get(source.rstrip("/").rpartition("/")[2].lower(), math.nan)

    def caps(self) -> list[tuple[Span, float]]:
        """When the head's Frobenius norm is capped, and at what."""
        return [
            (span, float(constraint["cap"]))
            for phase, own in zip(self.phases, self._settings_of_phases(), strict=False)
            for constraint in own.get("constraints", ())
            if constraint.get("kind") == "frobenius"
            for span in self._while_on(constraint, phase)
        ]

    def penalised(self) -> Span | None:
        """The last phase with a penalty, up to where the penalty ends; None without one."""
        found = None
        for phase, own in zip(self.phases, self._settings_of_phases(), strict=False):
            stops = [
                span.stop
                for penalty in own.get("penalties", ())
                if penalty.get("weight")
                for span in self._while_on(penalty, phase)
            ]
            if stops:
                found = Span(phase.start, max(stops))
        return found

    def _while_on(self, setting: Mapping[str, Any], phase: Span) -> list[Span]:
        """The part of a phase in which a scheduled intervention is on; none if it never is."""
        start, stop = setting.get("start") or 0, setting.get("stop")
        last = phase.stop if stop is None else min(phase.stop, stop / self.epoch_steps)
        span = Span(max(phase.start, start / self.epoch_steps), last)
        return [span] if span.start < span.stop else []


def arms_of(study: Study) -> list[Arm]:
    """The study's arms in the order of its settings; not those of its counterpart.

    An arm that was looked at only before its first step has no line, so it is left out.

    Raises:
        MissingMeasureError: If nothing was measured yet, or epochs are not known.
    """
    settings = study.settings.get("arms", {})
    names = study.metrics["arm"].astype(str) if len(study.metrics) else pd.Series(dtype=str)
    began = set(names[study.metrics["step"] > 0]) if len(names) else set()
    ordered = [name for name in dict.fromkeys([*map(str, settings), *names]) if name in began]
    if not ordered:
        raise MissingMeasureError("nothing has been measured yet")
    return [Arm(name, study.metrics[names == name], settings.get(name, {})) for name in ordered]


def phase_ends(arms: Sequence[Arm], inner: bool = False) -> list[float]:
    """Epochs at which a phase of an arm ends, ascending; not where all arms end.

    Args:
        arms: The arms.
        inner: Only where another phase of the same arm follows.
    """
    last = last_epoch(arms)
    found: list[float] = []
    for arm in arms:
        found += [each.stop for each in (arm.phases[:-1] if inner else arm.phases)]
    kept: list[float] = []
    for epoch in sorted(found):
        again = kept and math.isclose(epoch, kept[-1])
        if not again and epoch < last and not math.isclose(epoch, last):
            kept.append(epoch)
    return kept


def last_epoch(arms: Sequence[Arm]) -> float:
    """Where the axis of epochs ends: the last phase, so far as any arm has come."""
    return max(max(arm.ends.values()) for arm in arms)


def ceilings(arm: Arm) -> list[tuple[Span, float]]:
    """When there is a cap, and what the published value cannot exceed then: cap² (1 − 1/C).

    Empty where the number of classes is not known.
    """
    if math.isnan(arm.classes):
        return []
    return [(span, cap**2 * (1 - 1 / arm.classes)) for span, cap in arm.caps()]


def reference_of(arms: Sequence[Arm]) -> Arm:
    """The arm named ``baseline``, or the first."""
    return next((arm for arm in arms if arm.name == REFERENCE), arms[0])


def blocks(arms: Sequence[Arm]) -> list[list[Arm]]:
    """The arms in groups of at most `MOST_LINES`, the reference first in each.

    All are drawn: more arms make more rows of panels, of about as many lines each.
    """
    reference = reference_of(arms)
    others = [arm for arm in arms if arm is not reference]
    count = max(1, math.ceil(len(others) / (MOST_LINES - 1)))
    size = max(1, math.ceil(len(others) / count))
    starts = range(0, max(1, len(others)), size)
    return [[reference, *others[start : start + size]] for start in starts]


def alike(arms: Sequence[Arm]) -> list[tuple[float, list[Arm]]]:
    """Arms that are one run up to an epoch, the last such epoch first."""
    common = {pair: _common(*pair) for pair in combinations(arms, 2)}
    found: list[tuple[float, list[Arm]]] = []
    for epoch in sorted({each for each in common.values() if each > 0}, reverse=True):
        for arm in arms:
            group = [
                other
                for other in arms
                if other is arm
                or common.get((arm, other), common.get((other, arm), 0.0)) >= epoch * (1 - SAME)
            ]
            if len(group) > 1 and all(group != known for _, known in found):
                found.append((epoch, group))
    return found


def _common(one: Arm, other: Arm) -> float:
    """Up to which epoch two arms have the same settings; 0 if they differ from the start."""
    if not one.settings or _without(one.settings, "phases") != _without(other.settings, "phases"):
        return 0.0
    epoch = 0.0
    pairs = zip(one._settings_of_phases(), other._settings_of_phases(), strict=False)
    for (own, its), mine, theirs in zip(pairs, one.phases, other.phases, strict=False):
        if _without(own, "until") != _without(its, "until"):
            break
        cosine = own.get("optimizer", {}).get("schedule", "constant") != "constant"
        if mine.stop != theirs.stop:
            # A schedule that ends elsewhere differs from the start; a constant one does not.
            return epoch if cosine else min(mine.stop, theirs.stop)
        epoch = mine.stop
    return epoch


def _without(settings: Mapping[str, Any], name: str) -> str:
    rest = {key: value for key, value in settings.items() if key != name}
    return json.dumps(rest, sort_keys=True, default=str)
