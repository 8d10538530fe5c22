"""Measurements put together from blocks of examples, of one network or of many at once.

What is a mean over examples is added up block by block, in float64. The rest is computed at the
end, from the blocks that were kept, or from the moments of classes if they did not fit in memory.
Nothing is copied to the host before the end. Many networks cost as many kernels and waits for the
device as one. Axes as in `grokscope.probe.trees`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grokscope.measures.checks import NotFiniteError
from grokscope.measures.matched import (
    MATCHED_LOSS,
    MATCHED_TOLERANCE,
    matched_temperatures,
    may_match,
)
from grokscope.measures.moments import ClassMoments
from grokscope.measures.pieces import lengths_of
from grokscope.measures.record import Batch, Measure, records
from grokscope.probe.measurement import Circumstances, Measurement
from grokscope.probe.trees import Block, Heads, Tensors, at, local, map_tensors, over_networks

MEMORY = 2**30  # bytes of features and logits that are kept
# Elements of one float64 temporary of a mean over examples: 32 MiB, or 2 MiB for one network on a
# CPU, so that several stay in a cache. On a GPU and under vmap an operation has to be worth it.
ELEMENTS, CACHED_ELEMENTS = 2**22, 2**18
TOGETHER = 2**25  # of one float64 temporary over all examples of networks: 256 MiB
FINITE = "finite"  # among the sums: a number that is finite if features and logits are
KNOWN = ("count", "mean", "within")  # of the moments of networks
OF_CLASSES = {"classes", "repeated classes", "training classes"}
NOT_FINITE = (
    "features or logits hold NaN or infinity; the model has diverged or overflowed: "
    "measure an earlier step, or run it in a wider dtype."
)


class Assembly:
    """Adds up blocks; `finish` makes a `Measurement` for each network of them.

    Args:
        heads: The heads that the blocks belong to.
        measures: What is asked for; nothing else is computed.
        references: For held-out data, the measurement of each network's training data.
        memory: Bytes of features and logits to keep; beyond it, one network is streamed.
    """

    def __init__(
        self,
        heads: Heads,
        measures: Sequence[Measure],
        *,
        references: Sequence[Measurement] | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.heads = heads.wide()
        self.networks, self.classes, self.width = self.heads.weight.shape
        self.asked, self.references, self.memory = measures, references, memory
        wanted = {record.name: record for measure in measures for record in _with_parts(measure)}
        needs = {need for record in wanted.values() for need in record.needs}
        # Moments of the training data, and the classes that they are of.
        self.training: tuple[Tensors, Tensor] | None = None
        if references is not None and "training classes" in needs:
            self.training = _training_classes(references, self.heads.weight.device)
        self.means: list[Measure] = []
        self.rest: list[Measure] = []
        for record in wanted.values():
            streams = self.training is not None and record.needs == ("training classes",)
            (self.means if record.is_mean or streams else self.rest).append(record)
        self.counts_classes = bool(needs & OF_CLASSES)
        self.keeps = self.counts_classes or bool(needs & {"memory", "training memory"})
        self.sums: dict[str, Tensor] = {}
        self.kept: list[Block] = []
        self.streamed: ClassMoments | None = None
        self.bytes = self.examples = 0

    def add(self, block: Block, positions: Block | None = None) -> None:
        """Count a block of the examples that count, in pieces whose temporaries stay small.

        ``positions`` are all from which they were chosen, for measures that need them.
        """
        block, examples = map_tensors(local, block), block.labels.shape[1]
        self._sum([record for record in self.means if "positions" not in record.needs], block)
        of_positions = [record for record in self.means if "positions" in record.needs]
        if positions is not None and of_positions:
            self._sum(
                of_positions, map_tensors(local, positions), examples / positions.labels.shape[1]
            )
        self.examples += examples
        if self.keeps:
            self.bytes += sum(tensor.nbytes for tensor in block)
            self.kept.append(block)
            if self.bytes > self.memory and self.networks == 1:
                self.stream()

    def stream(self) -> None:
        """Turn the blocks kept so far into moments, which add up in any amount."""
        for block in self.kept:
            moments = ClassMoments.of(block.features[0], block.labels[0], self.classes, True)
            self.streamed = moments if self.streamed is None else self.streamed + moments
        self.kept = []

    def _sum(self, measures: Sequence[Measure], block: Block, share: float = 1.0) -> None:
        """Add up means over examples, each of which counts as ``share`` examples."""
        built_in = [record for record in measures if records().get(record.name) is record]
        extra = [record for record in measures if records().get(record.name) is not record]

        def sums(tensors: Tensors) -> Tensors:
            features, lengths = tensors["features"], tensors["known_lengths"]
            # Squares of float64 features may overflow; those of narrower ones don't.
            of_features = features if features.dtype == torch.float64 else lengths
            finite = of_features.sum() + tensors["logits"].sum()
            batch = self._batch(tensors)
            values = {record.name: _value(record, batch) for record in built_in}
            if extra:
                batch = self._batch(tensors | {"features": features.double()})
                values |= {record.name: _value(record, batch) for record in extra}
            examples = len(batch.labels)
            return {FINITE: finite} | {
                name: share * (value.sum() if value.dim() else value * examples)
                for name, value in values.items()
            }

        alone = self.networks == 1 and not block.logits.is_cuda
        # Features of one network are widened piece by piece where they are used.
        largest = block.logits if alone and not extra else max(block, key=Tensor.numel)
        rows = max(1, (CACHED_ELEMENTS if alone else ELEMENTS) // largest[:, 0].numel())
        whole = block._asdict() | {"known_lengths": lengths_of(block.features)}
        pieces = zip(*(tensor.split(rows, dim=1) for tensor in whole.values()), strict=True)
        heads = self.heads.named()
        if self.training is not None:
            heads["training"] = self.training[0]
        for tensors in pieces:
            piece = dict(zip(whole, tensors, strict=True))
            piece["logits"] = piece["logits"].double()
            for name, value in over_networks(sums, piece | heads).items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _batch(self, tensors: Tensors, **known: Any) -> Batch:
        """What measures are given of one network."""
        if "training" in tensors and self.training is not None:
            known["training"] = ClassMoments(**tensors["training"]), self.training[1]
        names = ("features", "logits", "labels", "weight", "bias", "known_lengths")
        known |= {name: tensors[name] for name in names if name in tensors}
        parts = known["features"]
        return Batch(**known) if isinstance(parts, Tensor) else _InParts(parts, known)

    def finish(self) -> list[Measurement | NotFiniteError]:
        """A measurement for each network; an error for those that are not finite."""
        averages = torch.stack(list(self.sums.values())) / self.examples
        means = dict(zip(self.sums, averages, strict=True))
        columns = dict(zip(self.sums, averages.tolist(), strict=True))
        finite = [math.isfinite(value) for value in columns.pop(FINITE)]
        found: list[Measurement | NotFiniteError] = [NotFiniteError(NOT_FINITE) for _ in finite]
        whole = self._whole()
        at_once = max(
            1, TOGETHER // max(1, whole["labels"].shape[1] * max(self.width, self.classes))
        )
        fine = [network for network, is_finite in enumerate(finite) if is_finite]
        for first in range(0, len(fine), at_once):
            networks = fine[first : first + at_once]
            for group in self._groups(at(whole, networks), networks):
                group.temperatures = self._temperatures(group, columns)
                every = [self._circumstances(group, place) for place in range(len(group.networks))]
                rest = self._rest(group, every, means)
                for place, network in enumerate(group.networks):
                    known = {name: column[network] for name, column in columns.items()}
                    known |= {name: column[place] for name, column in rest.items()}
                    moments = group.class_moments[place] if group.class_moments else None
                    found[network] = self._measurement(known, every[place], moments)
        return found

    def _whole(self) -> Tensors:
        """All blocks in one, without examples if none were kept; features of one network in parts.

        They are by far the largest: a copy would cost more than most measures of them.
        """
        none = self.heads.weight.new_zeros(self.networks, 0, max(self.width, self.classes))
        nothing = Block(none[..., : self.width], none[..., : self.classes], none[..., 0].long())
        columns = dict(zip(Block._fields, zip(*(self.kept or [nothing]), strict=True), strict=True))
        in_parts = self.networks == 1 and len(self.kept) > 1 and not none.is_cuda
        return {
            name: tensors if name == "features" and in_parts else _joined(tensors)
            for name, tensors in columns.items()
        }

    def _groups(self, block: Tensors, networks: Sequence[int]) -> Iterator[_Group]:
        """Networks whose data have the same classes; usually that is all of them."""
        if not self.counts_classes:
            yield _Group(networks, block)
            return
        if self.streamed is None:
            moments = _moments(block, self.classes)
        else:
            moments = {name: tensor[None] for name, tensor in vars(self.streamed).items()}
        host = [moments[name].cpu() for name in KNOWN]
        groups: dict[Hashable, list[int]] = {}
        for place, count in enumerate(host[0].numpy()):
            key = ((count > 0).tobytes(), (count > 1).sum() > 1)
            groups.setdefault(key, []).append(place)
        for places in groups.values():
            yield _Group(
                [networks[place] for place in places],
                at(block, places),
                at(moments, places),
                [ClassMoments(*(tensor[place] for tensor in host)) for place in places],
            )

    def _temperatures(self, group: _Group, means: Mapping[str, list[float]]) -> list[float | None]:
        """The matched temperature of each network of a group; None if there is none."""
        found: list[float | None] = [None] * len(group.networks)
        asked = any("matched loss" in record.needs for record in self.rest)
        if not asked or self.streamed is not None:
            return found
        accuracies = [means["accuracy"][network] for network in group.networks]
        places = [place for place, accuracy in enumerate(accuracies) if may_match(accuracy)]
        if places:
            block = at(group.block, places)
            temperatures = matched_temperatures(
                block["logits"], block["labels"], MATCHED_LOSS, MATCHED_TOLERANCE
            )
            for place, temperature in zip(places, temperatures, strict=True):
                found[place] = temperature
        return found

    def _rest(
        self, group: _Group, every: Sequence[Circumstances], means: Mapping[str, Tensor]
    ) -> dict[str, list[float]]:
        """What is not a mean over examples, by name, for each network of a group."""
        measures = [
            record
            for record in self.rest
            if not all(circumstances.why_not(record) for circumstances in every)
        ]
        if not measures:
            return {}
        parts = {part.name for record in measures for part in record.parts}
        tensors: Tensors = group.block | at(self.heads.named(), group.networks)
        tensors["moments"] = group.moments
        values = {name: means[name] for name in parts & means.keys()}
        tensors["values"] = at(values, group.networks)
        tensors["reference"] = self._reference(group, parts | {record.name for record in measures})
        tensors["temperature"] = self.heads.weight.new_tensor(
            [1.0 if temperature is None else temperature for temperature in group.temperatures]
        )
        index = group.index(self.heads.weight.device)

        def values_of(tensors: Tensors) -> Tensors:
            known = {name: tensors[name] for name in ("values", "reference", "temperature")}
            if tensors["moments"]:
                known["known_moments"] = ClassMoments(**tensors["moments"])
            batch = self._batch(tensors, index=index, **known)
            values = {record.name: _value(record, batch) for record in measures}
            return {name: value.mean() if value.dim() else value for name, value in values.items()}

        # The same displacements for all networks, as for each of them alone.
        values = over_networks(values_of, tensors, randomness="same")
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

    def _reference(self, group: _Group, names: set[str]) -> Tensors:
        """What measures are made of, of the training data."""
        if self.references is None:
            return {}
        known = [self.references[network].known() for network in group.networks]
        return {
            name: self.heads.weight.new_tensor([values[name] for values in known])
            for name in names.intersection(*known)
        }

    def _circumstances(self, group: _Group, place: int) -> Circumstances:
        present, repeated = group.classes
        return Circumstances(
            present,
            repeated,
            kept=self.streamed is None,
            reference=None if self.references is None else self.references[group.networks[place]],
            matched=group.temperatures[place] is not None,
            positions=all(record.name in self.sums for record in self.means),
        )

    def _measurement(
        self,
        known: Mapping[str, float],
        circumstances: Circumstances,
        moments: ClassMoments | None,
    ) -> Measurement:
        why_not = {record.name: circumstances.why_not(record) for record in self.means + self.rest}
        asked = [record.name for record in self.asked]
        there = [name for name, why in why_not.items() if not why]
        return Measurement(
            {name: known[name] for name in asked if not why_not[name]},
            self.examples,
            moments,
            left_out={name: why_not[name] for name in sorted(asked) if why_not[name]},
            parts={name: known[name] for name in there if name not in asked},
            units={record.name: record.unit for record in self.asked if record.unit},
        )


@dataclass
class _Group:
    """Networks whose data have the same classes."""

    networks: Sequence[int]  # their numbers
    block: Tensors  # as in `Block`, features of one network in parts
    # Class moments by name, with a first axis of networks; empty if nobody asks for them.
    moments: Tensors = field(default_factory=dict)
    class_moments: Sequence[ClassMoments] = ()  # of each network, on the host
    temperatures: Sequence[float | None] = ()  # at which each has the matched loss

    @cached_property
    def classes(self) -> tuple[int, int]:
        """How many classes have examples; how many have two or more, in one of the networks."""
        if not self.class_moments:
            return 0, 0
        count = self.class_moments[0].count.numpy()
        return int((count > 0).sum()), int((count > 1).sum())

    def index(self, device: torch.device) -> Tensor | None:
        """The classes that have examples."""
        if not self.class_moments:
            return None
        return (self.class_moments[0].count > 0).nonzero().squeeze(-1).to(device)


def _with_parts(measure: Measure) -> Iterator[Measure]:
    for part in measure.parts:
        yield from _with_parts(part)
    yield measure


def _value(record: Measure, batch: Batch) -> Tensor:
    assert record.evaluate is not None
    return torch.as_tensor(record.evaluate(batch)).to(batch.labels.device, torch.float64)


def _moments(block: Tensors, classes: int) -> Tensors:
    """Moments of each network."""
    features, labels = block["features"], block["labels"]
    if len(labels) > 1 and not labels.is_cuda:
        # Those of one network with the classes of all; on a GPU they would be too many for sums
        # that are the same each time.
        networks = torch.arange(len(labels), device=labels.device)
        together = (labels + classes * networks[:, None]).flatten()
        moments = ClassMoments.of(features.flatten(0, 1), together, len(labels) * classes)
        return {name: getattr(moments, name).unflatten(0, (-1, classes)) for name in KNOWN}

    def of(tensors: Tensors) -> Tensors:
        moments = ClassMoments.of(tensors["features"], tensors["labels"], classes)
        return {name: getattr(moments, name) for name in KNOWN}

    return over_networks(of, {"features": features, "labels": labels})


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)


class _InParts(Batch):
    """A batch whose features are put together only for a measure that asks for all in one."""

    parts: Sequence[Tensor] = ()

    def __init__(self, parts: Sequence[Tensor], known: Mapping[str, Any]) -> None:
        super().__init__(**{**known, "features": parts[0]})
        self.parts = parts
        del self.features  # until it is asked for

    def __getattr__(self, name: str) -> Tensor:
        if name != "features":
            raise AttributeError(name)
        self.features = torch.cat(list(self.parts))
        return self.features


def _training_classes(
    references: Sequence[Measurement], device: torch.device
) -> tuple[Tensors, Tensor] | None:
    """Moments of the training data, stacked, of the classes that one of them has."""
    known = [reference.moments for reference in references if reference.moments is not None]
    if len(known) < len(references):
        return None
    counts = torch.stack([moments.count for moments in known])
    index = (counts > 0).any(dim=0).nonzero().squeeze(-1)
    chosen = [vars(moments.of_classes(index)) for moments in known]
    stacked = {name: torch.stack([part[name] for part in chosen]).to(device) for name in KNOWN}
    return stacked, index.to(device)
