"""`Measurement`: measures of a head by name, with units, and why the others are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from grokscope.measures.moments import ClassMoments
from grokscope.measures.record import Measure, record_of

# Why measures are missing.
NOT_KEPT = "features did not all fit in memory; give the Probe more memory=... (bytes)."
ONE_CLASS = "fewer than two classes have examples; pass data of several classes."
SINGLE = "fewer than two classes have two examples or more; pass more data."
NO_REFERENCE = "needs reference=, the measurement of the training data."
NO_TEMPERATURE = "no temperature reaches a loss of 0.1 nats."
NO_POSITIONS = "needs all positions of an example, which only the look of a task keeps."
NOT_LOGGED = "only a training run logs it."
# What the measurement of the training data answers, where there is one.
OF_REFERENCE = {"reference", "training classes", "training memory"}


@dataclass(frozen=True, eq=False)
class Measurement(Mapping[str, float]):
    """Measures by name, as plain numbers; prints as a table.

    Attributes:
        numbers: Name -> value.
        examples: How many examples counted.
        moments: Class moments of the features, float64, on the CPU; None if no measure that was
            asked for needs them.
        left_out: Why, by name, a measure that was asked for is missing.
        parts: Values that the measures of held-out data are made of, if they were not asked for.
        units: Units of measures that have no record of their own.
    """

    numbers: Mapping[str, float] = field(repr=False)
    examples: int
    moments: ClassMoments | None = field(repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)
    parts: Mapping[str, float] = field(default_factory=dict, repr=False)
    units: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("numbers", "left_out", "parts", "units"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[type[Measurement], tuple[object, ...]]:
        # A read-only view of a dict can't be pickled, a dict can.
        values = vars(self).values()
        return Measurement, tuple(
            dict(value) if isinstance(value, MappingProxyType) else value for value in values
        )

    def __getitem__(self, name: str) -> float:
        if name in self.numbers:
            return self.numbers[name]
        present = f"; there are {', '.join(self)}"
        why = f": {self.left_out[name]}" if name in self.left_out else present
        raise KeyError(f"{name!r} was not measured{why}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __hash__(self) -> int:
        return hash(frozenset(self.numbers.items()))

    def including(self, **more: float) -> Measurement:
        """This measurement with more values.

        Args:
            more: Values by name; they replace those of the same name.

        Returns:
            A new measurement; this one stays as it is.
        """
        return replace(self, numbers={**self.numbers, **more})

    def unit(self, name: str) -> str:
        """Unit of a measure.

        Args:
            name: Of the measure.

        Returns:
            As in its record; empty if it has none.
        """
        return self.units.get(name) or record_of(name).unit

    def known(self) -> dict[str, float]:
        """All values, also those that were computed only as parts of others."""
        return {**self.parts, **self.numbers}

    @property
    def kernel_robustness(self) -> float:
        """As `measures.kernel_robustness`, for the gap of held-out data; NaN if not computed."""
        return self.parts.get("kernel_robustness", math.nan)

    def __str__(self) -> str:
        wide = max(map(len, self), default=0)
        rows = [
            f"{name:<{wide}}  {value:>12.6g}  {self.unit(name)}" for name, value in self.items()
        ]
        for why in dict.fromkeys(self.left_out.values()):
            names = ", ".join(name for name, reason in self.left_out.items() if reason == why)
            rows.append(f"not measured: {names}; {why}")
        return "\n".join([f"{self.examples:,} examples", *(row.rstrip() for row in rows)])


@dataclass(frozen=True)
class Circumstances:
    """What decides which measures there can be."""

    present: int  # how many classes have examples
    repeated: int  # how many have two examples or more
    kept: bool  # whether the features of all examples are in memory
    reference: Measurement | None  # of the training data, for held-out data
    matched: bool  # whether a temperature reaches the matched loss
    positions: bool  # whether all positions of an example are known

    def why_not(self, measure: Measure) -> str:
        """Why there is no such measure here; empty if there is one."""
        return next(filter(None, (self._lacks(need, measure) for need in measure.needs)), "")

    def _lacks(self, need: str, measure: Measure) -> str:
        if self.reference is not None and need in OF_REFERENCE:
            return _lacks_of(self.reference, need, measure)
        one_class = "" if self.present > 1 else ONE_CLASS
        single = "" if self.repeated > 1 else SINGLE
        not_kept = "" if self.kept else NOT_KEPT
        return {
            "reference": NO_REFERENCE,
            "training": NOT_LOGGED,
            "classes": one_class,
            "repeated classes": one_class or single,
            "training classes": one_class or not_kept,
            "memory": not_kept,
            "training memory": not_kept,
            "matched loss": "" if self.matched else NO_TEMPERATURE,
            "positions": "" if self.positions else NO_POSITIONS,
        }[need]


def _lacks_of(reference: Measurement, need: str, measure: Measure) -> str:
    """What the measurement of the training data lacks for a measure of held-out data."""
    if need == "training classes":
        if reference.moments is None:
            return "reference= was measured without class means."
        few = int((reference.moments.count > 0).sum()) < 2
        return f"of the training data {ONE_CLASS}" if few else ""
    wanted = [part.name for part in measure.parts]
    if "reference" not in measure.needs:  # then it is the training data's
        wanted.append(measure.name)
    missing = next((name for name in wanted if name not in reference.known()), None)
    without = f"reference= was measured without {missing}."
    return "" if missing is None else reference.left_out.get(missing, without)
