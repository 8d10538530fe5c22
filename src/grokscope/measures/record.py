"""One record per measure: its name, what it means, and how it is computed at a head.

Everything that lists measures is made from the records: the probe, tables, reports, docs and
``grokscope measures``. A module of this package lists its own in ``RECORDS``, beside the functions,
and is found by itself: a new measure is one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType
from typing import TypeVar, cast

from torch import Tensor

from grokscope.measures.checks import values_are_readable
from grokscope.measures.moments import ClassMoments

# What a measure may need beside the examples and the head.
NEEDS = {
    "classes": "at least two classes with examples",
    "repeated classes": "at least two classes with two examples or more",
    "memory": "the features of all examples at once, in memory",
    "matched loss": "a temperature at which the loss is 0.1 nats",
    "reference": "the measurement of the training data, on held-out data",
    "training memory": "the features of all training examples at once, in memory",
    "training classes": "class means of the training data: of the reference, else of these data",
    "positions": "all positions of an example, also those that are not measured",
    "training": "a training run: the run logs it, not the probe",
}
# What a batch of several classes has, so that the measure can be a penalty.
OF_A_BATCH = frozenset({"classes"})

Value = TypeVar("Value")


@dataclass(eq=False)
class Batch:
    """Examples at a head, and what measures share of them.

    The probe gives means over examples float64 logits and lengths, and features of the dtype of the
    model (float64 to measures of your own); measures that need all examples in memory the dtype of
    the model; penalties see the dtype of the training step.

    Attributes:
        features: Inputs of the head, ``[n, d]``; for measures that need all positions
            ``[n, t, d]``.
        logits: Outputs of the head, bias included, ``[n, c]`` or ``[n, t, c]``.
        labels: Class indices, ``[n]`` or ``[n, t]``.
        weight: Rows of the head, ``[c, d]``.
        bias: Offsets of the head, ``[c]``.
        known_lengths: Length of each example's features, ``[n]``, float64, where they are known.
        known_moments: Class moments of the features, where they are known; else `moments`
            computes them.
        index: The classes that have examples, ``[present]``, where they are known.
        training: Moments of the training data's classes and their indices; None where these are
            the training data.
        values: Means over these examples by name, for measures that are made of others.
        reference: The same numbers of the training data; empty where these are the training data.
        temperature: Where the loss is the matched one, for measures that need it.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None = None
    known_lengths: Tensor | None = None
    known_moments: ClassMoments | None = None
    index: Tensor | None = None
    training: tuple[ClassMoments, Tensor] | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    temperature: Tensor | None = None
    _shared: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False)

    def shared(self, function: Callable[[Batch], Value]) -> Value:
        """What a function gives of this batch, computed once for all measures that ask for it."""
        if function not in self._shared:
            self._shared[function] = function(self)
        return cast(Value, self._shared[function])

    @property
    def parts(self) -> Sequence[Tensor]:
        """The features in consecutive parts: how a probe holds them, which need no copy."""
        return [self.features]

    @cached_property
    def moments(self) -> ClassMoments:
        """Class moments of the features."""
        if self.known_moments is not None:
            return self.known_moments
        return ClassMoments.of(self.parts, self.labels, len(self.weight))

    @cached_property
    def present(self) -> tuple[ClassMoments, Tensor]:
        """Moments of the classes that have examples, and their indices.

        Raises:
            ValueError: If fewer than two classes have examples.
        """
        if self.index is None:
            if not values_are_readable(self.moments.count):
                raise ValueError("the measure needs to know which classes a batch has")
            return self.moments.of_present_classes()
        if len(self.index) == len(self.weight):
            return self.moments, self.index
        return self.moments.of_classes(self.index), self.index


@dataclass(frozen=True, eq=False)
class Measure:
    """What there is to say of a measure.

    Attributes:
        name: As in `Measurement` and in ``metrics.parquet``.
        title: In words, for tables and figures.
        symbol: In formulas; empty if it has none.
        unit: "nats", "degrees", "share", "probability"; empty if it has none, or that of features.
        direction: What a low or a high value means; empty if neither is better.
        range: Which values it can take.
        formula: One line of Unicode text.
        cost: Of one evaluation; n examples, C classes, width d.
        source: The publication that defines it.
        note: What to keep in mind when reading it.
        needs: What it needs beside examples and a head, words of `NEEDS`. Without any it is a mean
            over examples, which is added up batch by batch.
        evaluate: Its value on a batch, a scalar, or one value per example ``[n]`` whose mean it is.
            Unchecked, without a look at values, so that it can be vmapped. None if it is only
            logged.
        differentiable: Whether gradients flow through ``evaluate``.
        parts: Records of the means that it is made of, also on the training data.
    """

    name: str
    title: str = ""
    symbol: str = ""
    unit: str = ""
    direction: str = ""
    range: str = ""
    formula: str = ""
    cost: str = ""
    source: str = ""
    note: str = ""
    needs: tuple[str, ...] = ()
    evaluate: Callable[[Batch], Tensor] | None = field(default=None, repr=False)
    differentiable: bool = False
    parts: tuple[Measure, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        unknown = [need for need in self.needs if need not in NEEDS]
        if unknown:
            raise ValueError(
                f"the measure {self.name!r} needs {unknown[0]!r}, which is not one of "
                f"{', '.join(NEEDS)}."
            )
        if not self.title:
            object.__setattr__(self, "title", self.name.replace("_", " "))

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean over examples, so that the sums of batches add up."""
        return self.evaluate is not None and set(self.needs) <= {"positions"}

    @property
    def is_probed(self) -> bool:
        """Whether every probe measures it."""
        return self.evaluate is not None and not {"positions", "training"} & set(self.needs)

    @property
    def is_penalty(self) -> bool:
        """Whether a penalty may have its name: it is differentiable and needs a batch alone."""
        return (
            self.evaluate is not None and self.differentiable and OF_A_BATCH.issuperset(self.needs)
        )


@cache
def records() -> Mapping[str, Measure]:
    """The records of all measures by name, found in the modules of ``grokscope.measures``.

    Returns:
        A read-only mapping; means over examples first, in which order probes print them.

    Raises:
        ValueError: If two modules have a measure of one name.

    Cost: O(number of measures), once.

    Example:
        >>> records()["ncc"].title
        'NCC'
    """
    package = importlib.import_module(__package__)
    found: dict[str, Measure] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for record in getattr(
            importlib.import_module(f"{__package__}.{module.name}"), "RECORDS", ()
        ):
            if record.name in found:
                raise ValueError(f"two measures are called {record.name!r}; rename one of them.")
            found[record.name] = record
    in_order = sorted(found.values(), key=lambda record: not record.is_mean)
    return MappingProxyType({record.name: record for record in in_order})


def record_of(name: str) -> Measure:
    """The record of any name in a measurement or in ``metrics.parquet``.

    Args:
        name: Of a measure, of the value of a penalty (``penalty_<measure>``), or of a measure of
            your own.

    Returns:
        Its record; for a measure of your own one that has nothing but its name.

    Cost: O(1).

    Example:
        >>> record_of("penalty_gini").title
        'penalty: Gini impurity'
        >>> record_of("my_measure").title
        'my measure'
    """
    known = records()
    if name in known:
        return known[name]
    if name.startswith("penalty_"):
        measure = record_of(name.removeprefix("penalty_"))
        return Measure(
            name,
            title=f"penalty: {measure.title}",
            symbol=measure.symbol,
            unit=measure.unit,
            range=measure.range,
            note="The mean over the training batches since the last look, in training mode, "
            "without the penalty's weight. The settings of the penalty apply.",
            needs=("training",),
        )
    return Measure(name)
