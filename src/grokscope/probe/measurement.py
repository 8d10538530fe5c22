"""`Measurement`: every measure of a head by name, with units, and why some are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from grokscope.measures.moments import ClassMoments

# What can't be added up block by block, and the parts of the gap that come from it.
NEED_ALL = (
    "feature_robustness",
    "matched_temperature",
    "nc4_agreement",
    "relative_flatness_matched",
)
GAP_NEEDS_ALL = ("feature_robustness", "representativeness", "representativeness_kde")
# Why measures are missing.
NOT_KEPT = "features did not all fit in memory; give the Probe more memory=... (bytes)."
ONE_CLASS = "fewer than two classes have examples; pass data of several classes."
SINGLE = "fewer than two classes have two examples or more; pass more data."

# Every measure of the probe; the empty ones have no unit, or that of the features.
UNITS = {
    "accuracy": "share",
    "angle_deviation": "degrees",
    "collapse_flatness_bound": "nats",
    "collapse_offset": "",
    "collapse_radius": "",
    "collapse_residual": "",
    "collapse_scale": "",
    "entropy": "nats",
    "feature_norm": "",
    "feature_robustness": "nats",
    "generalisation_gap": "nats",
    "gini": "probability",
    "logit_scale": "nats",
    "loss": "nats",
    "margin": "nats",
    "matched_temperature": "",
    "mean_class_angle": "degrees",
    "nc1_pinv": "",
    "nc1_quotient": "",
    "nc2_equiangularity": "",
    "nc2_equinorm": "",
    "nc2_etf_distance": "",
    "nc3_self_duality": "",
    "nc4_agreement": "share",
    "nc4_means": "share",
    "ncc": "",
    "ncc_unbiased": "",
    "published_penalty": "",
    "relative_flatness": "nats",
    "relative_flatness_bound": "nats",
    "relative_flatness_matched": "nats",
    "representativeness": "nats",
    "representativeness_kde": "nats",
    "weight_norm": "",
}
NEED_CLASSES = tuple(each for each in UNITS if each.startswith(("nc", "coll")) or "angle" in each)


@dataclass(frozen=True, eq=False)
class Measurement(Mapping[str, float]):
    """Every measure by name, as plain numbers; prints as a table.

    Attributes:
        numbers: Name -> value.
        examples: How many examples counted.
        moments: Class moments of the features, float64, on the CPU.
        kernel_robustness: As `measures.kernel_robustness`, for the gap of held-out data.
        left_out: Why, by name, measures are missing: features that did not fit in memory, or data
            of fewer than two classes.
    """

    numbers: Mapping[str, float] = field(repr=False)
    examples: int
    moments: ClassMoments = field(repr=False)
    kernel_robustness: float = field(default=math.nan, repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", MappingProxyType(dict(self.numbers)))
        object.__setattr__(self, "left_out", MappingProxyType(dict(self.left_out)))

    def __reduce__(self) -> tuple[type[Measurement], tuple[object, ...]]:
        # A read-only view of a dict can't be pickled, a dict can.
        views = {"numbers": dict(self.numbers), "left_out": dict(self.left_out)}
        values = vars(self) | views
        return Measurement, tuple(values.values())

    def __getitem__(self, name: str) -> float:
        if name in self.numbers:
            return self.numbers[name]
        there = f"; there are {', '.join(self)}"
        why = f": {self.left_out[name]}" if name in self.left_out else there
        raise KeyError(f"{name!r} was not measured{why}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __hash__(self) -> int:
        return hash(frozenset(self.numbers.items()))

    def including(self, **more: float) -> Measurement:
        """This measurement with more values."""
        return replace(self, numbers={**self.numbers, **more})

    def unit(self, name: str) -> str:
        """Unit of a measure; empty where it has none."""
        return UNITS.get(name, "")

    def __str__(self) -> str:
        wide = max(map(len, self), default=0)
        rows = [
            f"{name:<{wide}}  {value:>12.6g}  {self.unit(name)}" for name, value in self.items()
        ]
        for why in dict.fromkeys(self.left_out.values()):
            names = ", ".join(name for name, own in self.left_out.items() if own == why)
            rows.append(f"not measured: {names}; {why}")
        return "\n".join([f"{self.examples:,} examples", *(row.rstrip() for row in rows)])


def gap_measures(train: Measurement, held_out_loss: float) -> dict[str, float]:
    """The generalisation gap and its parts; those that training was measured for."""
    gap = held_out_loss - train["loss"]
    values = {"generalisation_gap": gap}
    if "feature_robustness" in train:
        values["feature_robustness"] = train["feature_robustness"]
        values["representativeness"] = gap - train["feature_robustness"]
        values["representativeness_kde"] = gap - train.kernel_robustness
    return values


def reasons_of(
    present: int, several: int, reference: Measurement | None, streaming: bool = False
) -> dict[str, str]:
    """Why measures may be missing, by name.

    Args:
        present: Classes with examples.
        several: Classes with two examples or more.
        reference: As in `Probe.measure`.
        streaming: Whether the examples did not fit in memory.
    """
    reasons = dict.fromkeys(NEED_ALL if streaming else (), NOT_KEPT)
    if reference is not None:
        if "feature_robustness" in reference.left_out:
            reasons |= dict.fromkeys(GAP_NEEDS_ALL, NOT_KEPT)
        if int((reference.moments.count > 0).sum()) < 2:
            reasons["nc4_agreement"] = f"of the training data {ONE_CLASS}"
    if present < 2:
        reasons |= dict.fromkeys(NEED_CLASSES, ONE_CLASS)
    elif several < 2:
        reasons["ncc_unbiased"] = SINGLE
    return reasons


def assembled(
    numbers: Mapping[str, float],
    kernel: float,
    moments: ClassMoments,
    examples: int,
    reference: Measurement | None,
    reasons: Mapping[str, str],
) -> Measurement:
    """A measurement of its numbers; with a reference, the gap and its parts are added."""
    values = dict(numbers)
    if reference is not None:
        values |= gap_measures(reference, values["loss"])
    left_out = {name: why for name, why in sorted(reasons.items()) if name not in values}
    return Measurement(values, examples, moments, kernel, left_out)
