"""Many networks of one shape measured at once: as many kernels and waits as for one of them.

Axes: ``r`` networks, ``n`` examples of each, ``d`` width, ``c`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from grokscope.measures.checks import NotFiniteError, check_labels
from grokscope.measures.collapse import collapse_of
from grokscope.measures.confidence import matched_temperatures
from grokscope.measures.moments import ClassMoments
from grokscope.measures.theory import assumptions_of
from grokscope.probe import values as computed
from grokscope.probe.collector import NOT_FINITE
from grokscope.probe.measurement import Measurement, assembled, reasons_of
from grokscope.probe.values import Block

ELEMENTS = 2**25  # of one float64 temporary over all networks: 256 MiB
CPU = torch.device("cpu")


class Heads(NamedTuple):
    """Heads of many networks: weights ``[r, c, d]`` and biases ``[r, c]`` or None."""

    weight: Tensor
    bias: Tensor | None

    def wide(self) -> Heads:
        """In float64, detached."""
        bias = None if self.bias is None else self.bias.detach().double()
        return Heads(self.weight.detach().double(), bias)

    def of(self, networks: Sequence[int]) -> Heads:
        """Those of some networks."""
        bias = None if self.bias is None else _at(self.bias, networks)
        return Heads(_at(self.weight, networks), bias)


@torch.no_grad()
def measure_together(
    blocks: Iterable[Block], heads: Heads, references: Sequence[Measurement] | None = None
) -> list[Measurement | NotFiniteError]:
    """What `Probe.measure` says of each of many networks.

    Args:
        blocks: What the heads saw and said: features ``[r, n, d]``, logits ``[r, n, c]`` and labels
            ``[r, n]``, block by block.
        heads: The heads themselves.
        references: For held-out data, the measurement of each network's training data.

    Returns:
        A measurement for each network; an error for those that are no longer finite.

    Raises:
        ValueError: If labels are out of range.

    Cost: the arithmetic of all networks; kernels and waits for the device of about one.
    """
    whole = Block(*(torch.cat(tensors, dim=1) for tensors in zip(*blocks, strict=True)))
    count, examples, width = whole.features.shape
    classes = whole.logits.shape[-1]
    check_labels(whole.labels.flatten(), classes)
    at_once = max(1, ELEMENTS // (examples * max(width, classes)))
    found: list[Measurement | NotFiniteError] = []
    for first in range(0, count, at_once):
        places = range(first, min(count, first + at_once))
        given = None if references is None else [references[place] for place in places]
        found += _measured(_of(whole, places), heads.of(places).wide(), given)
    return found


def _measured(
    block: Block, heads: Heads, references: Sequence[Measurement] | None
) -> list[Measurement | NotFiniteError]:
    """Networks with the same classes go together; usually that is all of them."""
    finite = [tensor.isfinite().flatten(1).all(dim=1) for tensor in block[:2]]
    fine = torch.stack(finite).all(dim=0).tolist()
    moments = _moments(block, len(heads.weight[0]))
    host = [each.to(CPU) for each in moments]
    counts = host[0].numpy()
    groups: dict[Hashable, list[int]] = {}
    for place, is_finite in enumerate(fine):
        if is_finite:
            key = [counts[place] > 0, (counts[place] > 1).sum() > 1]
            if references is not None:
                key.append(references[place].moments.count.numpy() > 0)
            groups.setdefault(tuple(each.tobytes() for each in key), []).append(place)
    found: list[Measurement | NotFiniteError] = [NotFiniteError(NOT_FINITE) for _ in fine]
    for places in groups.values():
        given = None if references is None else [references[place] for place in places]
        own = ClassMoments(*(_at(each, places) for each in moments))
        group = _Group(_of(block, places), heads.of(places), own, given)
        for place, (numbers, kernel) in zip(places, group.numbers(), strict=True):
            reference = None if references is None else references[place]
            reasons = reasons_of(group.present, group.several, reference)
            kept = ClassMoments(*(each[place] for each in host))
            examples = block.labels.shape[1]
            found[place] = assembled(numbers, kernel, kept, examples, reference, reasons)
    return found


class _Group:
    """Networks whose data, and whose references' data, have the same classes.

    Args:
        block: Of all of them.
        heads: Float64.
        moments: Of the block, each tensor with a first axis of networks.
        references: As in `measure_together`.
    """

    def __init__(
        self,
        block: Block,
        heads: Heads,
        moments: ClassMoments,
        references: Sequence[Measurement] | None,
    ) -> None:
        self.block, self.heads, self.moments, self.references = block, heads, moments, references
        self.index = (moments.count[0] > 0).nonzero().squeeze(-1)
        self.present = len(self.index)
        self.several = int((moments.count[0] > 1).sum())  # two or more of all, or of none

    def numbers(self) -> Iterator[tuple[dict[str, float], float]]:
        """The numbers of each network, and its kernel robustness."""
        columns = self._means()
        columns["weight_norm"] = self.heads.weight.square().sum(dim=(1, 2)).sqrt().tolist()
        collapse = self._collapse() if self.present >= 2 else [{}] * len(self.block.labels)
        matched = self._matched(columns["accuracy"])
        both: list[Sequence[float]] = [(math.nan, math.nan)] * len(self.block.labels)
        if self.references is None:
            robustness = vmap(_robustness, randomness="same")
            both = robustness(*self.block, self.heads.weight).tolist()
        for place in range(len(self.block.labels)):
            own = {name: values[place] for name, values in columns.items()}
            own |= collapse[place] | matched.get(place, {})
            if self.references is None:
                own["feature_robustness"] = both[place][0]
            yield own, both[place][1]

    def _means(self) -> dict[str, list[float]]:
        """Means over examples by name, of each network."""
        networks, examples, width = self.block.features.shape
        means = self._means_of_training()
        rows = computed.ELEMENTS // (networks * max(width, self.block.logits.shape[-1]))
        totals: dict[str, Tensor] = {}
        pieces = (tensor.split(max(1, rows), dim=1) for tensor in self.block)
        for piece in zip(*pieces, strict=True):
            sums = vmap(computed.sums_of)(Block(*piece).wide(), self.heads.weight)
            if means is not None:
                stacked, index = means
                sums["nc4_agreement"] = _agreed(Block(*piece).wide(), stacked, index)
            totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
        return _columns({name: value / examples for name, value in totals.items()})

    def _means_of_training(self) -> tuple[list[Tensor], Tensor] | None:
        """Moments of the references, stacked, of the classes that there are."""
        if self.references is None:
            return None
        index = (self.references[0].moments.count > 0).nonzero().squeeze(-1)
        if len(index) < 2:
            return None
        own = [each.moments.of_classes(index) for each in self.references]
        parts = zip(*((each.count, each.mean, each.within) for each in own), strict=True)
        device = self.block.features.device
        return [torch.stack(part).to(device) for part in parts], index.to(device)

    def _collapse(self) -> list[dict[str, float]]:
        index, unbiased = self.index, self.several >= 2
        asks_own = self.references is None

        def one(
            count: Tensor,
            mean: Tensor,
            within: Tensor,
            block: Block,
            weight: Tensor,
            bias: Tensor | None,
        ) -> tuple[dict[str, Tensor], Tensor]:
            moments = ClassMoments(count, mean, within)
            present = moments.of_classes(index)
            values = computed.ncc_of(present, unbiased)
            values |= computed.spread_of(block, moments, present, index, asks_own)
            values |= collapse_of(present, index, weight, bias)
            return values, assumptions_of(present, index, weight, bias)

        of_each = (0, 0, 0, 0, 0, None if self.heads.bias is None else 0)
        own = self.moments
        values, met = vmap(one, of_each)(own.count, own.mean, own.within, self.block, *self.heads)
        columns = _columns(values)
        return [
            {name: values[place] for name, values in columns.items()}
            | computed.collapse_numbers(numbers, self.present)
            for place, numbers in enumerate(met.tolist())
        ]

    def _matched(self, accuracies: Sequence[float]) -> dict[int, dict[str, float]]:
        """Kappa at matched loss by network, of those that can be matched."""
        places = [place for place, each in enumerate(accuracies) if computed.may_match(each)]
        if not places:
            return {}
        block = _of(self.block, places)
        temperatures = matched_temperatures(
            block.logits, block.labels, computed.MATCHED_LOSS, computed.MATCHED_TOLERANCE
        )
        weight = _at(self.heads.weight, places)
        each = [1.0 if own is None else own for own in temperatures]
        kappas = vmap(computed.matched_of)(block, weight, weight.new_tensor(each)).tolist()
        return {
            place: {"matched_temperature": own, "relative_flatness_matched": kappa}
            for place, own, kappa in zip(places, temperatures, kappas, strict=True)
            if own is not None
        }


def _moments(block: Block, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and within of each network: those of one with all of their classes."""
    networks = len(block.labels)
    first = classes * torch.arange(networks, device=block.labels.device)
    labels = (block.labels + first[:, None]).flatten()
    own = ClassMoments.of(block.features.flatten(0, 1), labels, networks * classes)
    shape = (networks, classes)
    return own.count.view(shape), own.mean.view(*shape, -1), own.within.view(shape)


def _agreed(block: Block, means: Sequence[Tensor], index: Tensor) -> Tensor:
    def one(block: Block, count: Tensor, mean: Tensor, within: Tensor) -> Tensor:
        return computed.agreed_of(block, ClassMoments(count, mean, within), index)

    agreed: Tensor = vmap(one)(block, *means)
    return agreed


def _robustness(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return computed.robustness_of(Block(features, logits, labels), weight)


def _columns(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Numbers of each network by name, with one look at the device."""
    stacked = torch.stack([each.double() for each in values.values()]).tolist()
    return dict(zip(values, stacked, strict=True))


def _of(block: Block, places: Sequence[int]) -> Block:
    """A block of some networks."""
    return Block(*(_at(tensor, places) for tensor in block))


def _at(tensor: Tensor, places: Sequence[int]) -> Tensor:
    """Some entries of the first axis, in rising order; no copy if that is all of them."""
    if len(places) == len(tensor):
        return tensor
    return tensor.index_select(0, torch.tensor(places, device=tensor.device))
