"""All measures of a head at once: sums over blocks of examples, in float64, and what they make.

A *block* is what the head saw and said on some examples: features ``[n, d]``, logits ``[n, c]``,
labels ``[n]``. Blocks add up; nothing is copied to the host before the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grokscope.measures.checks import NotFiniteError, check_head, check_labels, common_dtype
from grokscope.measures.collapse import nc1_pinv, nc4_agreement, ncc, neural_collapse
from grokscope.measures.confidence import (
    cross_entropy_of,
    entropy_of,
    margin_of,
    matched_temperature,
    relative_flatness_at_temperature,
    scale_of,
)
from grokscope.measures.flatness import gini_impurity, row_variance
from grokscope.measures.moments import ClassMoments
from grokscope.measures.robustness import feature_robustness, kernel_robustness
from grokscope.measures.theory import collapse_assumptions

Extra = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

MEMORY = 2**30  # bytes of features and logits that are kept
ELEMENTS = 2**22  # of one float64 temporary: 32 MiB
MATCHED_LOSS = 0.1  # nats: the loss at which confidence is matched, well fitted and not saturated
PUBLISHED_TEMPERATURE = 2.0
DIRECTIONS = 2  # pairs of displacements for each example; seeded, the same at every measurement

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


class Block(NamedTuple):
    """Some examples: features ``[n, d]``, logits ``[n, c]``, labels ``[n]``."""

    features: Tensor
    logits: Tensor
    labels: Tensor


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


def measure_tensors(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    head: nn.Linear,
    *,
    extra: Mapping[str, Extra] | None = None,
    reference: Measurement | None = None,
) -> Measurement:
    """The probe's measures for features and logits that are there already.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, bias included, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        head: The head itself: weight ``[classes, width]`` and bias.
        extra: As in `Probe`.
        reference: As in `Probe.measure`.

    Raises:
        ValueError: If the arguments do not describe one linear head with finite values.
    """
    check_head(features, logits, head.weight)
    check_labels(labels, logits.shape[1], examples=len(features))
    with torch.no_grad():
        collector = Collector(head, extra=extra or {}, reference=reference, memory=2**62)
        collector.add(Block(features, logits, labels))
        return collector.finish()


class Collector:
    """Adds up blocks; `finish` makes a `Measurement` of them.

    Args:
        head: The head the blocks belong to.
        extra: As in `Probe`.
        reference: As in `Probe.measure`.
        memory: As in `Probe`.
    """

    def __init__(
        self,
        head: nn.Linear,
        *,
        extra: Mapping[str, Extra],
        reference: Measurement | None,
        memory: int,
    ) -> None:
        taken = sorted(extra.keys() & UNITS.keys())
        if taken:
            raise ValueError(f"the probe has a measure called {taken[0]!r}; name yours otherwise.")
        self.weight = _wide(head.weight.detach())
        self.bias = None if head.bias is None else _wide(head.bias.detach())
        self.extra, self.reference, self.memory = extra, reference, memory
        self.means: ClassMoments | None = None
        if reference is not None and int((reference.moments.count > 0).sum()) >= 2:
            self.means = reference.moments.to(self.weight.device)
        self.sums: dict[str, Tensor] = {}
        self.kept: list[Block] = []
        self.streamed: ClassMoments | None = None
        self.bytes = self.examples = 0

    @property
    def streaming(self) -> bool:
        """Whether the memory was used up."""
        return self.streamed is not None

    def add(self, block: Block) -> None:
        """Count a block, in pieces whose temporaries stay small."""
        block = Block(_local(block.features), _local(block.logits), _local(block.labels).long())
        rows = max(1, ELEMENTS // max(block.features.shape[1], block.logits.shape[1]))
        for piece in zip(*(tensor.split(rows) for tensor in block), strict=True):
            sums = self._sums(Block(piece[0].double(), piece[1].double(), piece[2]))
            self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}
        self.examples += len(block.labels)
        self.bytes += sum(tensor.nbytes for tensor in block)
        self.kept.append(block)
        if self.bytes > self.memory:
            self.stream()

    def stream(self) -> None:
        """Turn the blocks kept so far into moments, which add up in any amount."""
        for own in self.kept:
            moments = self._moments(own, scatter=True)
            self.streamed = moments if self.streamed is None else self.streamed + moments
        self.kept = []

    def _sums(self, block: Block) -> dict[str, Tensor]:
        """Sums over the examples of a block of all that is a mean over examples."""
        features, logits, labels = block
        square = features.square().sum(dim=-1)
        impurity = gini_impurity(logits)
        total = self.weight.square().sum()
        sums = {
            "accuracy": (logits.argmax(dim=-1) == labels).double(),
            "loss": cross_entropy_of(logits, labels),
            "relative_flatness": square * row_variance(logits, self.weight),
            "relative_flatness_bound": total * square * impurity,
            "published_penalty": total * gini_impurity(logits / PUBLISHED_TEMPERATURE),
            "logit_scale": scale_of(logits),
            "margin": margin_of(logits, labels),
            "entropy": entropy_of(logits),
            "gini": impurity,
            "feature_norm": square.sqrt(),
        }
        reduced = {name: values.sum() for name, values in sums.items()}
        if self.means is not None:
            reduced["nc4_agreement"] = nc4_agreement(features, logits, self.means, "sum")
        for name, function in self.extra.items():
            value = torch.as_tensor(function(features, logits, labels, self.weight))
            if value.dim():
                raise ValueError(
                    f"the extra measure {name!r} returned shape {tuple(value.shape)}; return a "
                    "scalar, the mean over the examples it is given."
                )
            reduced[name] = value.double().to(features.device) * len(labels)
        return reduced

    def _moments(self, block: Block, scatter: bool) -> ClassMoments:
        return ClassMoments.of(block.features, block.labels, len(self.weight), scatter)

    def finish(self) -> Measurement:
        """The measurement.

        Raises:
            NotFiniteError: If features or logits hold NaN or infinity.
        """
        names = list(self.sums)
        means = (torch.stack([self.sums[name].double() for name in names]) / self.examples).tolist()
        values = dict(zip(names, means, strict=True))
        if not (math.isfinite(values["feature_norm"]) and math.isfinite(values["logit_scale"])):
            raise NotFiniteError(
                "features or logits hold NaN or infinity; the model has diverged or overflowed: "
                "measure an earlier step, or run it in a wider dtype."
            )
        values["weight_norm"] = float(self.weight.square().sum().sqrt())
        whole = None
        if not self.streaming:
            whole = Block(*(torch.cat(tensors) for tensors in zip(*self.kept, strict=True)))
        moments = self._moments(whole, scatter=False) if whole is not None else self.streamed
        assert moments is not None
        values |= self._collapse(moments, whole)
        kernel = math.nan
        if whole is not None:
            values |= self._matched(whole, values["accuracy"])
            if self.reference is None:
                values["feature_robustness"], kernel = self._robustness(whole)
        if self.reference is not None:
            values |= gap_measures(self.reference, values["loss"])
        missing = sorted(self._reasons(moments).items())
        left_out = {name: why for name, why in missing if name not in values}
        kept = moments.without_scatter().to(torch.device("cpu"))
        return Measurement(values, self.examples, kept, kernel, left_out)

    def _reasons(self, moments: ClassMoments) -> dict[str, str]:
        """Why measures may be missing, by name."""
        reasons = dict.fromkeys(NEED_ALL if self.streaming else (), NOT_KEPT)
        if self.reference is not None:
            if "feature_robustness" in self.reference.left_out:
                reasons |= dict.fromkeys(GAP_NEEDS_ALL, NOT_KEPT)
            if self.means is None:
                reasons["nc4_agreement"] = f"of the training data {ONE_CLASS}"
        if int((moments.count > 0).sum()) < 2:
            reasons |= dict.fromkeys(NEED_CLASSES, ONE_CLASS)
        elif int((moments.count > 1).sum()) < 2:
            reasons["ncc_unbiased"] = SINGLE
        return reasons

    def _collapse(self, moments: ClassMoments, whole: Block | None) -> dict[str, float]:
        if int((moments.count > 0).sum()) < 2:
            return {}
        # Of a vocabulary few tokens are there: pairs of the others would fill the memory.
        present, _ = moments.of_present_classes()
        values = {"ncc": ncc(present)}
        if int((present.count > 1).sum()) >= 2:
            values["ncc_unbiased"] = ncc(present, unbiased=True)
        if whole is not None:
            values["nc1_pinv"] = nc1_pinv(whole.features, whole.labels, moments)
            if self.reference is None:
                values["nc4_agreement"] = nc4_agreement(whole.features, whole.logits, moments)
        values |= neural_collapse(moments, self.weight, self.bias)
        numbers = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
        met = collapse_assumptions(moments, self.weight, self.bias)
        return numbers | {
            "collapse_scale": met.scale,
            "collapse_radius": met.radius,
            "collapse_offset": met.offset,
            "collapse_residual": met.residual,
            "collapse_flatness_bound": met.bound,
        }

    def _matched(self, whole: Block, accuracy: float) -> dict[str, float]:
        """Kappa at the temperature where the loss is `MATCHED_LOSS`, if there is one."""
        # A wrong answer costs ln 2 or more at any temperature.
        if (1 - accuracy) * math.log(2) >= MATCHED_LOSS:
            return {}
        logits = whole.logits.double()
        try:
            temperature = matched_temperature(logits, whole.labels, MATCHED_LOSS, tolerance=1e-6)
        except ValueError:
            return {}
        kappa = relative_flatness_at_temperature(
            whole.features.double(), logits, self.weight, temperature
        )
        return {"matched_temperature": temperature, "relative_flatness_matched": float(kappa)}

    def _robustness(self, whole: Block) -> tuple[float, float]:
        generator = torch.Generator(whole.features.device).manual_seed(0)
        features, logits = common_dtype(whole.features, whole.logits)
        arguments = (features, logits, whole.labels, self.weight.to(features))
        own = feature_robustness(*arguments, samples=DIRECTIONS, generator=generator)
        kernel = kernel_robustness(*arguments, samples=DIRECTIONS, generator=generator)
        both = torch.stack([own, kernel]).tolist()
        return both[0], both[1]


def gap_measures(train: Measurement, held_out_loss: float) -> dict[str, float]:
    """The generalisation gap and its parts; those that training was measured for."""
    gap = held_out_loss - train["loss"]
    values = {"generalisation_gap": gap}
    if "feature_robustness" in train:
        values["feature_robustness"] = train["feature_robustness"]
        values["representativeness"] = gap - train["feature_robustness"]
        values["representativeness_kde"] = gap - train.kernel_robustness
    return values


def _local(tensor: Tensor) -> Tensor:
    """On a device that knows float64: Apple's MPS does not."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def _wide(tensor: Tensor) -> Tensor:
    return _local(tensor).double()
